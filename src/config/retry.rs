//! `[services.NAME.retry]`: when a request that has failed is tried again.

use std::ops::RangeInclusive;

use serde::Deserialize;
use toml::Spanned;

use super::{
    report::Report,
    suggest::suggest,
    written::{Section, Size, TIMEOUT, Table, Text, Time, WAIT, count, size, time, time_or},
};
use crate::routing::retry::{Backoff, Budget, Conditions, Retry};

const CONDITIONS: [&str; 7] =
    ["connect-failure", "refused-stream", "reset", "unavailable", "502", "503", "504"];
const STATUSES: RangeInclusive<u16> = 500..=599;
const ATTEMPTS: RangeInclusive<u32> = 0..=10;
const PERCENT: RangeInclusive<u32> = 0..=100;
const PER_SECOND: RangeInclusive<u32> = 0..=100_000;
/// What is kept is kept for each request in flight.
const KEPT: RangeInclusive<u64> = 0..=1024 * 1024;

/// `[services.NAME.retry]` as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRetry {
    attempts: Option<Spanned<i64>>,
    on: Option<Spanned<Vec<Text>>>,
    shield: Option<Spanned<bool>>,
    per_try_timeout: Option<Time>,
    backoff: Option<Spanned<Table<RawBackoff>>>,
    budget: Option<Spanned<Table<RawBudget>>>,
    max_body: Option<Size>,
}

impl Section for RawRetry {
    const HEADER: &'static str = "[services.NAME.retry]";
}

/// `backoff` as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawBackoff {
    base: Option<Time>,
    max: Option<Time>,
}

impl Section for RawBackoff {
    const HEADER: &'static str = "backoff = { base = \"25ms\", max = \"250ms\" }";
}

/// `budget` as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawBudget {
    percent: Option<Spanned<i64>>,
    min_per_second: Option<Spanned<i64>>,
}

impl Section for RawBudget {
    const HEADER: &'static str = "budget = { percent = 20, min_per_second = 10 }";
}

/// When requests of one service are tried again.
pub(super) fn lower(raw: Spanned<Table<RawRetry>>, has_canary: bool, report: &mut Report<'_>) -> Retry {
    let place = raw.span();
    let RawRetry { attempts, on, shield, per_try_timeout, backoff, budget, max_body } = raw.into_inner().0;
    let default = Retry::default();
    let attempts = attempts.and_then(|written| count(&written, "attempts", ATTEMPTS, report));
    let attempts = attempts.unwrap_or(default.attempts);
    let shields = shield.as_ref().is_some_and(|shield| *shield.get_ref());
    if let Some(shield) = shield.filter(|_| shields && !has_canary) {
        report
            .warning(shield.span(), "there is no canary to shield users from")
            .help("add `canary = \"…\"` to the service, or remove `shield`");
    }
    if attempts == 0 && !shields {
        report
            .error(place, "nothing is ever tried again")
            .help("write at least one of `attempts = 1` and `shield = true`, or remove the table");
    }
    let max_body = max_body.and_then(|written| size(&written, "max_body", KEPT, report));
    let max_body = max_body.and_then(|bytes| usize::try_from(bytes).ok());
    Retry {
        attempts,
        on: on.map_or(default.on, |written| lower_conditions(&written, report)),
        shield: shields,
        per_try_timeout: per_try_timeout.and_then(|t| time(&t, "per_try_timeout", TIMEOUT, report)),
        backoff: backoff.map_or(default.backoff, |written| lower_backoff(written.into_inner().0, report)),
        budget: budget.map_or(default.budget, |written| lower_budget(written, report)),
        max_body: max_body.unwrap_or(default.max_body),
    }
}

fn lower_conditions(written: &Spanned<Vec<Text>>, report: &mut Report<'_>) -> Conditions {
    let mut on = Conditions {
        connect_failure: false,
        refused_stream: false,
        reset: false,
        unavailable: false,
        statuses: Vec::new(),
    };
    if written.get_ref().is_empty() {
        report
            .error(written.span(), "no failure is tried again")
            .help("name at least one, or leave `on` out for the default");
    }
    for text in written.get_ref() {
        match text.get_ref().as_str() {
            "connect-failure" => on.connect_failure = true,
            "refused-stream" => on.refused_stream = true,
            "reset" => on.reset = true,
            "unavailable" => on.unavailable = true,
            other => match other.parse() {
                Ok(status) if STATUSES.contains(&status) => on.statuses.push(status),
                _ => {
                    let remedy = match other.parse::<u16>() {
                        Ok(_) => Some("write a status from 500 to 599".to_owned()),
                        Err(_) => suggest(other, &CONDITIONS, "conditions"),
                    };
                    let problem = format!("`{other}` is nothing after which a request is tried again");
                    report.error(text.span(), problem).help_if(remedy);
                }
            },
        }
    }
    on
}

fn lower_backoff(raw: RawBackoff, report: &mut Report<'_>) -> Backoff {
    let RawBackoff { base, max } = raw;
    let default = Backoff::default();
    let base = time_or(default.base, base.as_ref(), "base", WAIT, report);
    let longest = time_or(default.max.max(base), max.as_ref(), "max", WAIT, report);
    if let Some(written) = max.filter(|_| longest < base) {
        report
            .error(written.span(), "the longest wait, `max`, is shorter than the first, `base`")
            .help("write a longer time, or a shorter `base`");
    }
    Backoff { base, max: longest }
}

fn lower_budget(written: Spanned<Table<RawBudget>>, report: &mut Report<'_>) -> Budget {
    let place = written.span();
    let RawBudget { percent, min_per_second } = written.into_inner().0;
    let default = Budget::default();
    let percent = percent.and_then(|written| count(&written, "percent", PERCENT, report));
    let least = min_per_second.and_then(|written| count(&written, "min_per_second", PER_SECOND, report));
    let budget = Budget {
        percent: percent.and_then(|percent| u8::try_from(percent).ok()).unwrap_or(default.percent),
        min_per_second: least.unwrap_or(default.min_per_second),
    };
    if (budget.percent, budget.min_per_second) == (0, 0) {
        report.error(place, "this budget allows nothing").help("the default is `{ percent = 20 }`");
    }
    budget
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{
        super::testing::{errors, parsed, warnings},
        *,
    };

    fn retry(keys: &str) -> Retry {
        let text = format!("[services.web.retry]\n{keys}");
        parsed(&text).services.remove(0).retry.unwrap()
    }

    #[test]
    fn it_is_off_unless_asked_for() {
        assert_eq!(parsed("").services[0].retry, None);
        assert_eq!(retry(""), Retry::default());
    }

    #[test]
    fn conditions_are_those_that_are_named() {
        let on = retry("on = ['reset', '500', '503', 'unavailable']").on;
        let wanted = Conditions {
            connect_failure: false,
            refused_stream: false,
            reset: true,
            unavailable: true,
            statuses: vec![500, 503],
        };
        assert_eq!(on, wanted);
        let on = retry("on = ['connect-failure', 'refused-stream', 'reset', '502', '503', '504']").on;
        assert_eq!(on, Conditions::default());
    }

    #[test]
    fn a_shield_needs_no_retries() {
        let shield = "[services.web.retry]\nattempts = 0\nshield = true";
        assert_eq!(warnings(shield), ["there is no canary to shield users from"]);
        let retry = retry("attempts = 0\nshield = true");
        assert_eq!((retry.attempts, retry.shield), (0, true));
    }

    #[test]
    fn a_long_first_wait_raises_the_longest() {
        let backoff = retry("backoff = { base = '1s' }").backoff;
        assert_eq!(backoff, Backoff { base: Duration::from_secs(1), max: Duration::from_secs(1) });
        assert_eq!(retry("backoff = { base = '0s' }").backoff.base, Duration::ZERO);
    }

    #[test]
    fn every_mistake_is_named() {
        let errors = |keys: &str| errors(&format!("[services.web.retry]\n{keys}"));
        let wrong = "attempts = 11\non = ['404', 'rest', '5xx']\nper_try_timeout = '0s'\nmax_body = '2MiB'";
        assert_eq!(
            errors(wrong),
            [
                "`attempts` cannot be 11",
                "`404` is nothing after which a request is tried again",
                "`rest` is nothing after which a request is tried again",
                "`5xx` is nothing after which a request is tried again",
                "`per_try_timeout` of 0s is too short",
                "`max_body` of 2MiB is too large",
            ]
        );
        assert_eq!(errors("on = []"), ["no failure is tried again"]);
        assert_eq!(errors("attempts = 0"), ["nothing is ever tried again"]);
        let short = errors("backoff = { base = '1s', max = '10ms' }");
        assert_eq!(short, ["the longest wait, `max`, is shorter than the first, `base`"]);
        let none = errors("budget = { percent = 0, min_per_second = 0 }");
        assert_eq!(none, ["this budget allows nothing"]);
        assert_eq!(errors("budget = { percent = 101, min_per_second = -1 }").len(), 2);
    }
}
