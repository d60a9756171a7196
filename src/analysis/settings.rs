//! What an analysis is asked to watch, and how sure it has to be.

use std::time::Duration;

use super::{error_rate::Margin, users::Unit};

/// A setting outside its range.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("`{key}` must be {range}, not {value}")]
pub struct OutOfRange {
    /// The setting's name in the configuration.
    pub key: &'static str,
    /// The values that it may have, in words.
    pub range: &'static str,
    /// The value that it was given.
    pub value: f64,
}

/// What an analysis watches and how sure it has to be. The defaults suit most services.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Largest probability that a whole rollout of a harmless canary is rolled back; over 0, at
    /// most 0.5.
    pub alpha: f64,
    /// How many times stable's failure rate is still too little to matter; 1 or more.
    pub ratio_tolerance: f64,
    /// How much above stable's failure rate is still too little to matter, as a share of requests
    /// (0.0002 is 0.02 percentage points); 0 or more, below 1.
    pub absolute_tolerance: f64,
    /// How much worse than stable, as a share of requests, promotion must be able to exclude; over
    /// 0, below 1.
    pub promotion_margin: f64,
    /// Largest probability of promoting a canary that is worse by the margin; over 0, at most 0.5.
    pub promotion_alpha: f64,
    /// Whether each step is left only when what promotion must exclude is excluded, not the last one alone.
    pub prove_each_step: bool,
    /// Canary requests that a step must see before it may be left.
    pub minimum_requests: u64,
    /// How much slower than stable the canary may be at the median and the 99th percentile, as a
    /// share (0.2 is 20 %); nothing switches the comparison off. Over 0.
    pub latency_margin: Option<f64>,
    /// The canary's failure rate must stay below this whatever stable does; over 0, below 1.
    pub max_error_rate: Option<f64>,
    /// The canary's 99th percentile must stay below this whatever stable does.
    pub max_p99: Option<Duration>,
    /// How many failures, or slow requests, come together; 1 or more. Nothing estimates it from
    /// stable's own ticks.
    pub dispersion: Option<f64>,
    /// How many requests more than stable would have the canary may be expected to fail, in all steps of the
    /// rollout; over 0. Nothing sets no limit.
    pub max_harm: Option<f64>,
    /// What is counted; users only where clients are pinned.
    pub unit: Unit,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            alpha: 0.01,
            ratio_tolerance: 1.1,
            absolute_tolerance: 0.0002,
            promotion_margin: 0.005,
            promotion_alpha: 0.05,
            prove_each_step: false,
            minimum_requests: 100,
            latency_margin: Some(0.2),
            max_error_rate: None,
            max_p99: None,
            dispersion: None,
            max_harm: None,
            unit: Unit::Request,
        }
    }
}

impl Settings {
    /// How much worse than stable the canary may be.
    pub fn tolerance(&self) -> Margin {
        Margin { ratio: self.ratio_tolerance, absolute: self.absolute_tolerance }
    }

    /// Every setting that is out of its range.
    pub fn faults(&self) -> Vec<OutOfRange> {
        let probability = "over 0 and at most 0.5";
        let share = "over 0 and below 1";
        let in_half = |v: f64| v > 0.0 && v <= 0.5;
        let in_unit = |v: f64| v > 0.0 && v < 1.0;
        let latency = self.latency_margin.unwrap_or(0.2);
        let errors = self.max_error_rate.unwrap_or(0.5);
        let dispersion = self.dispersion.unwrap_or(1.0);
        let harm = self.max_harm.unwrap_or(1.0);
        [
            ("alpha", probability, self.alpha, in_half(self.alpha)),
            ("promotion_alpha", probability, self.promotion_alpha, in_half(self.promotion_alpha)),
            (
                "ratio_tolerance",
                "from 1 to 100",
                self.ratio_tolerance,
                (1.0..=100.0).contains(&self.ratio_tolerance),
            ),
            (
                "absolute_tolerance",
                "0 or more and below 1",
                self.absolute_tolerance,
                (0.0..1.0).contains(&self.absolute_tolerance),
            ),
            ("promotion_margin", share, self.promotion_margin, in_unit(self.promotion_margin)),
            ("latency_margin", "over 0 and at most 100", latency, latency > 0.0 && latency <= 100.0),
            ("max_error_rate", share, errors, in_unit(errors)),
            ("dispersion", "from 1 to 10000", dispersion, (1.0..=10_000.0).contains(&dispersion)),
            ("max_harm", "1 or more", harm, harm >= 1.0 && harm.is_finite()),
        ]
        .into_iter()
        .filter(|(.., fine)| !fine)
        .map(|(key, range, value, _)| OutOfRange { key, range, value })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_in_range() {
        assert_eq!(Settings::default().faults(), []);
    }

    #[test]
    fn every_fault_is_named() {
        let settings = Settings { alpha: f64::NAN, max_error_rate: Some(1.0), ..Settings::default() };
        let keys: Vec<_> = settings.faults().iter().map(|f| f.key).collect();
        assert_eq!(keys, ["alpha", "max_error_rate"]);
    }
}
