//! Which requests to stable are copied to the canary: settings as values.

use http::Method;

use crate::model::weight::Weight;

/// Which requests to stable are copied to the canary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// The share of them (default all).
    pub percent: Weight,
    /// Those with one of these methods (default GET, HEAD and OPTIONS).
    pub methods: Box<[Method]>,
    /// Bytes of body that one may have to be copied (default 64 KiB).
    pub max_body: usize,
    /// Copies at a time, over all workers (default 100).
    pub max_in_flight: u32,
}

impl Default for Mirror {
    fn default() -> Self {
        Self {
            percent: Weight::FULL,
            methods: [Method::GET, Method::HEAD, Method::OPTIONS].into(),
            max_body: 64 * 1024,
            max_in_flight: 100,
        }
    }
}

impl Mirror {
    /// Whether a request is among those that are copied. `random` draws a uniformly distributed number.
    pub fn covers(&self, method: &Method, random: impl FnOnce() -> u64) -> bool {
        self.methods.contains(method) && (self.percent == Weight::FULL || self.percent.admits(random()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_change_something_is_not_copied_unless_asked_for() {
        let mirror = Mirror::default();
        let covers = |mirror: &Mirror, method| mirror.covers(&method, || panic!("no number is needed"));
        assert!(covers(&mirror, Method::GET) && covers(&mirror, Method::HEAD));
        assert!(!covers(&mirror, Method::POST) && !covers(&mirror, Method::CONNECT));
        let wider = Mirror { methods: [Method::POST].into(), ..mirror };
        assert!(covers(&wider, Method::POST) && !covers(&wider, Method::GET));
    }

    #[test]
    fn a_share_is_drawn() {
        let quarter = Mirror { percent: Weight::from_percent(25.0).unwrap(), ..Mirror::default() };
        assert!(quarter.covers(&Method::GET, || u64::MAX / 4 - 1));
        assert!(!quarter.covers(&Method::GET, || u64::MAX / 4 + 2));
    }
}
