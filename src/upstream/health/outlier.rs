//! Passive outlier ejection: an endpoint whose requests fail one after the other is passed over for a
//! while. The decisions are pure; `telemetry::health` holds what they are made from, for all workers.
//!
//! After Envoy's "consecutive 5xx" detector. Not here: its success-rate detector, which needs hundreds
//! of requests at five endpoints or more, and would judge the canary's endpoints a second time, by a
//! rule without the analysis' bound on false alarms (but see `analysis::attribution`, which does so where that
//! speaks for the canary). An ejection says nothing to the analysis: the
//! failures that led to it have been counted against the backend, as they were before.

use std::{sync::Arc, time::Duration};

use crate::{
    routing::policy::OutlierDetection,
    telemetry::health::{BackendHealth, EndpointHealth, Millis},
};

/// For each of these that an endpoint has been well after an ejection, the next one is shorter by one
/// base time (Envoy's `interval`).
const FORGIVEN_AFTER: Duration = Duration::from_secs(10);

/// Whether one more of `endpoints` may be ejected where `ejected` are already. One may always be where
/// there is another to take its requests; the only one never.
pub fn may_eject(endpoints: usize, ejected: usize, percent: u8) -> bool {
    endpoints > 1 && (ejected == 0 || (ejected + 1) * 100 <= endpoints * usize::from(percent))
}

/// For how many times the base time an endpoint is ejected, after an ejection for `last` times the base
/// time (0: there was none) that ended so long ago.
pub fn times(last: u32, well_for: Duration) -> u32 {
    let forgiven = well_for.as_millis() / FORGIVEN_AFTER.as_millis();
    let forgiven = u32::try_from(forgiven).unwrap_or(u32::MAX);
    last.saturating_sub(forgiven).saturating_add(1)
}

/// How long an ejection lasts.
pub fn duration(settings: &OutlierDetection, times: u32) -> Duration {
    settings.base_ejection_time.saturating_mul(times).min(settings.max_ejection_time)
}

/// Takes note that a request to one of `all` failed, and ejects it if that is one too many. Returns how
/// long for, if so.
pub(in crate::upstream) fn failed(
    settings: &OutlierDetection,
    backend: &BackendHealth,
    endpoint: &EndpointHealth,
    all: impl FnOnce() -> Vec<Arc<EndpointHealth>>,
    now: Millis,
) -> Option<Duration> {
    if endpoint.failed() < settings.consecutive_5xx {
        return None;
    }
    // If somebody decides just now, the next failure is soon enough.
    let _right = backend.try_begin_ejecting()?;
    let (until, last) = endpoint.ejection();
    let all = all();
    let ejected = all.iter().filter(|endpoint| endpoint.ejection().0 > now).count();
    if until > now || !may_eject(all.len(), ejected, settings.max_ejection_percent) {
        return None;
    }
    let times = times(last, Duration::from_millis(now - until));
    let lasts = duration(settings, times);
    let millis = Millis::try_from(lasts.as_millis()).unwrap_or(Millis::MAX);
    endpoint.eject(now.saturating_add(millis), times);
    backend.changed();
    Some(lasts)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_only_endpoint_stays_and_one_of_several_may_go() {
        assert!(!may_eject(1, 0, 100));
        assert!(may_eject(2, 0, 0));
        assert!(!may_eject(2, 1, 10));
        assert!(may_eject(2, 1, 100));
        assert!(may_eject(20, 1, 10) && !may_eject(20, 2, 10));
    }

    #[test]
    fn ejections_get_longer_and_are_forgiven() {
        let settings = OutlierDetection::default();
        let lasts = |last, seconds| duration(&settings, times(last, Duration::from_secs(seconds))).as_secs();
        assert_eq!([lasts(0, 1000), lasts(1, 0), lasts(2, 9)], [30, 60, 90]);
        assert_eq!([lasts(5, 20), lasts(5, 60)], [120, 30]);
        assert_eq!(lasts(50, 0), 300);
        assert_eq!(duration(&settings, times(u32::MAX, Duration::ZERO)).as_secs(), 300);
    }

    proptest! {
        #[test]
        fn the_cap_is_never_exceeded_but_by_the_first(endpoints in 0usize..200, percent in 0u8..=100) {
            let mut ejected = 0;
            while may_eject(endpoints, ejected, percent) {
                ejected += 1;
            }
            prop_assert!(ejected <= (endpoints * usize::from(percent) / 100).max(usize::from(endpoints > 1)));
        }
    }
}
