//! `[services.NAME.timeouts]`: how long a backend may take.

use serde::Deserialize;

use super::{
    Timeouts,
    report::Report,
    written::{Section, TIMEOUT, Time, time, time_or},
};

/// `[services.NAME.timeouts]` as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTimeouts {
    connect: Option<Time>,
    response: Option<Time>,
    idle: Option<Time>,
    tunnel: Option<Time>,
    grpc_max: Option<Time>,
}

impl Section for RawTimeouts {
    const HEADER: &'static str = "[services.NAME.timeouts]";
}

/// How long the backends of one service may take.
pub(super) fn lower(raw: RawTimeouts, report: &mut Report<'_>) -> Timeouts {
    let RawTimeouts { connect, response, idle, tunnel, grpc_max } = raw;
    let default = Timeouts::default();
    Timeouts {
        connect: time_or(default.connect, connect.as_ref(), "connect", TIMEOUT, report),
        response: time_or(default.response, response.as_ref(), "response", TIMEOUT, report),
        idle: time_or(default.idle, idle.as_ref(), "idle", TIMEOUT, report),
        tunnel: time_or(default.tunnel, tunnel.as_ref(), "tunnel", TIMEOUT, report),
        grpc_max: grpc_max.and_then(|written| time(&written, "grpc_max", TIMEOUT, report)),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{errors, parsed},
        *,
    };

    #[test]
    fn each_timeout_has_a_default_and_is_not_zero() {
        assert_eq!(parsed("").services[0].timeouts, Timeouts::default());
        let zero = "[services.web.timeouts]\nconnect = '0s'\nresponse = '0s'\nidle = '0s'\n\
                    tunnel = '0s'\ngrpc_max = '0s'";
        assert_eq!(errors(zero).len(), 5);
    }
}
