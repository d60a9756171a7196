//! Which requests to stable are copied to the canary: settings as values.

use http::Method;

use crate::model::weight::Weight;

/// Which requests to stable are copied to the canary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// The share of them (default all); a dark step of a rollout has its own.
    pub percent: Weight,
    /// Those with one of these methods (default GET, HEAD and OPTIONS).
    pub methods: Box<[Method]>,
    /// Bytes of body that one may have to be copied (default 64 KiB).
    pub max_body: usize,
    /// Copies at a time, over all workers (default 100).
    pub max_in_flight: u32,
    /// How long the canary may take for a copy before it counts as slower than it may be, in thousandths of
    /// what stable took (default 1,200); nothing where times are not compared.
    pub tolerated: Option<u32>,
    /// Whether the canary has failed a copy that it answers with another status than stable (default true).
    pub mismatch_fails: bool,
}

impl Default for Mirror {
    fn default() -> Self {
        Self {
            percent: Weight::FULL,
            methods: [Method::GET, Method::HEAD, Method::OPTIONS].into(),
            max_body: 64 * 1024,
            max_in_flight: 100,
            tolerated: Some(1_200),
            mismatch_fails: true,
        }
    }
}

impl Mirror {
    /// Of a service that copies requests only in dark steps of its rollouts.
    pub fn of_rollouts() -> Self {
        Self { percent: Weight::ZERO, ..Self::default() }
    }

    /// Whether a request is among those that are copied, where a dark step's share, if it is not zero, takes
    /// the place of the service's own. `random` draws a uniformly distributed number.
    pub fn covers(&self, method: &Method, copies: Weight, random: impl FnOnce() -> u64) -> bool {
        let percent = if copies == Weight::ZERO { self.percent } else { copies };
        percent > Weight::ZERO
            && self.methods.contains(method)
            && (percent == Weight::FULL || percent.admits(random()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_change_something_is_not_copied_unless_asked_for() {
        let mirror = Mirror::default();
        let covers =
            |mirror: &Mirror, method| mirror.covers(&method, Weight::ZERO, || panic!("no number is needed"));
        assert!(covers(&mirror, Method::GET) && covers(&mirror, Method::HEAD));
        assert!(!covers(&mirror, Method::POST) && !covers(&mirror, Method::CONNECT));
        let wider = Mirror { methods: [Method::POST].into(), ..mirror };
        assert!(covers(&wider, Method::POST) && !covers(&wider, Method::GET));
    }

    #[test]
    fn a_share_is_drawn() {
        let quarter = Mirror { percent: Weight::from_percent(25.0).unwrap(), ..Mirror::default() };
        let covers = |mirror: &Mirror, copies, number| mirror.covers(&Method::GET, copies, || number);
        assert!(covers(&quarter, Weight::ZERO, u64::MAX / 4 - 1));
        assert!(!covers(&quarter, Weight::ZERO, u64::MAX / 4 + 2));
        let half = Weight::from_percent(50.0).unwrap();
        assert!(covers(&quarter, half, u64::MAX / 4 + 2), "a dark step has its own share");
        assert!(covers(&Mirror::of_rollouts(), half, u64::MAX / 2 - 1));
        assert!(!covers(&Mirror::of_rollouts(), Weight::ZERO, 0));
    }
}
