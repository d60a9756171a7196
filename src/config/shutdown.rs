//! `[shutdown]`: how the process ends.

use serde::Deserialize;

use super::{
    Shutdown,
    report::Report,
    written::{Section, Time, WAIT, time_or},
};

/// `[shutdown]` as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawShutdown {
    delay: Option<Time>,
    deadline: Option<Time>,
}

impl Section for RawShutdown {
    const HEADER: &'static str = "[shutdown]";
}

/// How the process ends.
pub(super) fn lower(raw: RawShutdown, report: &mut Report<'_>) -> Shutdown {
    let RawShutdown { delay, deadline } = raw;
    let default = Shutdown::default();
    Shutdown {
        delay: time_or(default.delay, delay.as_ref(), "delay", WAIT, report),
        deadline: time_or(default.deadline, deadline.as_ref(), "deadline", WAIT, report),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{errors, parsed},
        *,
    };

    #[test]
    fn a_shutdown_may_be_immediate() {
        assert_eq!(parsed("").shutdown, Shutdown::default());
        let shutdown = parsed("[shutdown]\ndelay = '0s'\ndeadline = '1m'").shutdown;
        assert_eq!((shutdown.delay.as_secs(), shutdown.deadline.as_secs()), (0, 60));
        assert_eq!(errors("[shutdown]\ndelay = '10'"), ["`10` is not a duration"]);
    }
}
