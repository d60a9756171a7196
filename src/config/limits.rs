//! `[services.NAME.limits]` and `[routes.limits]`: how much of a service's backends may be asked for.

use std::num::{NonZeroU32, NonZeroU64};

use serde::Deserialize;
use toml::Spanned;

use super::{
    report::Report,
    written::{Section, Size, TIMEOUT, Table, Time, positive, size, time},
};
use crate::routing::limits::{Adaptive, InFlight, Limits, Rate, RouteLimits, RouteRates};

/// `[services.NAME.limits]` as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLimits {
    max_body_size: Option<Size>,
    min_body_rate: Option<Size>,
    body_timeout: Option<Time>,
    max_in_flight: Option<Spanned<i64>>,
    adaptive_in_flight: Option<Spanned<Table<RawAdaptive>>>,
    rate: Option<Spanned<Table<RawRate>>>,
    client_rate: Option<Spanned<Table<RawRate>>>,
}

impl Section for RawLimits {
    const HEADER: &'static str = "[services.NAME.limits]";
}

/// `[routes.limits]` as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRouteLimits {
    max_body_size: Option<Size>,
    rate: Option<Spanned<Table<RawRate>>>,
    client_rate: Option<Spanned<Table<RawRate>>>,
}

impl Section for RawRouteLimits {
    const HEADER: &'static str = "[routes.limits]";
}

/// `adaptive_in_flight` as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAdaptive {
    min: Option<Spanned<i64>>,
    max: Option<Spanned<i64>>,
}

impl Section for RawAdaptive {
    const HEADER: &'static str = "adaptive_in_flight = { min = 20, max = 1000 }";
}

/// `rate` and `client_rate` as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRate {
    per_second: Option<Spanned<i64>>,
    burst: Option<Spanned<i64>>,
}

impl Section for RawRate {
    const HEADER: &'static str = "rate = { per_second = 100, burst = 200 }";
}

/// More requests for each second than one machine can take, so that a limit beyond it is a slip.
const MAX_RATE: u32 = 10_000_000;

/// How much may be asked for.
pub(super) fn lower(raw: RawLimits, report: &mut Report<'_>) -> Limits {
    let RawLimits {
        max_body_size,
        min_body_rate,
        body_timeout,
        max_in_flight,
        adaptive_in_flight,
        rate,
        client_rate,
    } = raw;
    let min_rate = min_body_rate.and_then(|written| size(&written, "min_body_rate", 1..=1 << 30, report));
    Limits {
        max_body_size: lower_body_size(max_body_size, report),
        min_body_rate: min_rate.and_then(NonZeroU64::new),
        body_timeout: body_timeout.and_then(|written| time(&written, "body_timeout", TIMEOUT, report)),
        in_flight: lower_in_flight(max_in_flight, adaptive_in_flight, report),
        rate: rate.and_then(|written| lower_rate(written, report)),
        client_rate: client_rate.and_then(|written| lower_rate(written, report)),
    }
}

/// How much of it one route may ask for.
pub(super) fn of_route(raw: RawRouteLimits, report: &mut Report<'_>) -> RouteLimits {
    let RawRouteLimits { max_body_size, rate, client_rate } = raw;
    RouteLimits {
        max_body_size: lower_body_size(max_body_size, report),
        rates: RouteRates {
            rate: rate.and_then(|written| lower_rate(written, report)),
            client_rate: client_rate.and_then(|written| lower_rate(written, report)),
        },
    }
}

fn lower_body_size(written: Option<Size>, report: &mut Report<'_>) -> Option<u64> {
    written.and_then(|written| size(&written, "max_body_size", 0..=i64::MAX as u64, report))
}

fn lower_in_flight(
    fixed: Option<Spanned<i64>>,
    adaptive: Option<Spanned<Table<RawAdaptive>>>,
    report: &mut Report<'_>,
) -> Option<InFlight> {
    if let (Some(fixed), Some(_)) = (&fixed, &adaptive) {
        report
            .error(fixed.span(), "there are two limits of requests at a time, one fixed and one adaptive")
            .help("remove one; the most that the adaptive one may come to is its `max`");
    }
    let fixed = fixed.and_then(|written| positive(&written, "max_in_flight", MAX_RATE, report));
    match adaptive {
        None => fixed.map(InFlight::Fixed),
        Some(written) => lower_adaptive(written, report).map(InFlight::Adaptive),
    }
}

fn lower_adaptive(written: Spanned<Table<RawAdaptive>>, report: &mut Report<'_>) -> Option<Adaptive> {
    let place = written.span();
    let RawAdaptive { min, max } = written.into_inner().0;
    let default = Adaptive::default();
    let given = [(min, "min"), (max, "max")]
        .map(|(written, key)| written.map(|written| positive(&written, key, MAX_RATE, report)));
    let (min, max) = match given {
        [None, None] => (default.min, default.max),
        [None, Some(max)] => {
            (Some(default.min).filter(|min| Some(*min) < max).unwrap_or(NonZeroU32::MIN), max?)
        }
        [Some(min), None] => (min?, default.max.max(min?)),
        [Some(min), Some(max)] => (min?, max?),
    };
    if min >= max {
        report
            .error(place, format!("a limit from {min} to {max} does not adapt"))
            .help("write a `max` above `min`, or `max_in_flight` for a limit that stays");
        return None;
    }
    Some(Adaptive { min, max })
}

fn lower_rate(written: Spanned<Table<RawRate>>, report: &mut Report<'_>) -> Option<Rate> {
    let place = written.span();
    let RawRate { per_second, burst } = written.into_inner().0;
    let burst = burst.map(|burst| positive(&burst, "burst", MAX_RATE, report));
    let Some(per_second) = per_second else {
        report
            .error(place, "this rate does not say how many requests it means")
            .help("add `per_second`, such as `{ per_second = 100 }`");
        return None;
    };
    let per_second = positive(&per_second, "per_second", MAX_RATE, report)?;
    match burst {
        None => Some(Rate { per_second, burst: per_second }),
        Some(burst) => Some(Rate { per_second, burst: burst? }),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{errors, parsed},
        *,
    };

    fn limits(keys: &str) -> Limits {
        parsed(&format!("[services.web.limits]\n{keys}")).services.remove(0).limits
    }

    #[test]
    fn nothing_is_limited_by_default() {
        assert_eq!(parsed("").services[0].limits, Limits::default());
        assert_eq!(limits(""), Limits::default());
    }

    #[test]
    fn a_burst_is_one_second_of_the_rate() {
        let rate = limits("rate = { per_second = 7 }\nclient_rate = { per_second = 3, burst = 9 }");
        let numbers = |rate: Option<Rate>| rate.map(|rate| (rate.per_second.get(), rate.burst.get()));
        assert_eq!((numbers(rate.rate), numbers(rate.client_rate)), (Some((7, 7)), Some((3, 9))));
        let body = limits("max_body_size = '1MiB'\nmin_body_rate = '1KiB'\nbody_timeout = '1m'");
        assert_eq!((body.max_body_size, body.min_body_rate), (Some(1 << 20), NonZeroU64::new(1024)));
    }

    #[test]
    fn requests_at_a_time_are_limited_to_a_number_or_within_bounds() {
        let of = |keys: &str| limits(keys).in_flight.map(InFlight::bounds);
        assert_eq!(of(""), None);
        assert_eq!(of("max_in_flight = 7"), Some((7, 7)));
        assert_eq!(of("adaptive_in_flight = {}"), Some((20, 1000)));
        assert_eq!(of("adaptive_in_flight = { max = 10 }"), Some((1, 10)));
        assert_eq!(of("adaptive_in_flight = { min = 3, max = 10 }"), Some((3, 10)));
        let wrong =
            errors("[services.web.limits]\nmax_in_flight = 7\nadaptive_in_flight = { min = 10, max = 3 }");
        assert_eq!(
            wrong,
            [
                "there are two limits of requests at a time, one fixed and one adaptive",
                "a limit from 10 to 3 does not adapt"
            ]
        );
    }

    #[test]
    fn a_route_has_limits_of_its_own() {
        let of = |keys: &str| {
            let text = format!("[[routes]]\nservice = 'web'\npath = '/a'\n[routes.limits]\n{keys}");
            parsed(&text).routes.remove(1).filters.limits
        };
        assert_eq!(of(""), RouteLimits::default());
        let limits = of("max_body_size = '1KiB'\nrate = { per_second = 7 }");
        assert_eq!((limits.max_body_size, limits.rates.client_rate), (Some(1024), None));
        assert_eq!(limits.rates.rate.map(|rate| rate.burst.get()), Some(7));
        let service = Limits { max_body_size: Some(5), ..Limits::default() };
        assert_eq!(limits.over(service).max_body_size, Some(1024));
        assert_eq!(of("client_rate = { per_second = 1 }").over(service), service);
        let wrong =
            "[[routes]]\nservice = 'web'\npath = '/a'\n[routes.limits]\nmax_body_size = '1mb'\nrate = {}";
        assert_eq!(errors(wrong).len(), 2);
    }

    #[test]
    fn what_cannot_be_meant_is_a_fault() {
        let bad = "[services.web.limits]\nmax_body_size = '1mb'\nmin_body_rate = '0B'\nbody_timeout = '0s'\n\
                   max_in_flight = 0\nrate = {}\nclient_rate = { per_second = -1, burst = 0 }";
        assert_eq!(
            errors(bad),
            [
                "`1mb` is not a size",
                "`min_body_rate` of 0B is too small",
                "`body_timeout` of 0s is too short",
                "`max_in_flight` must be from 1 to 10000000, not 0",
                "this rate does not say how many requests it means",
                "`per_second` must be from 1 to 10000000, not -1",
                "`burst` must be from 1 to 10000000, not 0",
            ]
        );
    }
}
