//! The canary's share of a service's requests.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The canary's share of requests: 0 to 100 percent in hundredths of a percent.
///
/// An integer inside, so that weights compare exactly and NaN does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Weight(u16);

/// A number that is not a weight.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a weight is a percentage from 0 to 100 with at most two decimals, not {0}")]
pub struct InvalidWeight(pub String);

impl Weight {
    /// No requests at all.
    pub const ZERO: Self = Self(0);
    /// Every request.
    pub const FULL: Self = Self(10_000);

    /// A weight from hundredths of a percent, 0 to 10,000.
    ///
    /// # Errors
    /// When it is more than 10,000.
    pub fn from_hundredths(hundredths: u16) -> Result<Self, InvalidWeight> {
        if hundredths > Self::FULL.0 {
            return Err(InvalidWeight((f64::from(hundredths) / 100.0).to_string()));
        }
        Ok(Self(hundredths))
    }

    /// A weight from a percentage, 0 to 100 with at most two decimals.
    ///
    /// # Errors
    /// When it is out of range, has more decimals, or is not a number.
    pub fn from_percent(percent: f64) -> Result<Self, InvalidWeight> {
        let hundredths = (percent * 100.0).round();
        let exact = (percent * 100.0 - hundredths).abs() < 1e-6;
        if !(0.0..=10_000.0).contains(&hundredths) || !exact {
            return Err(InvalidWeight(percent.to_string()));
        }
        Ok(Self(hundredths as u16))
    }

    /// Hundredths of a percent, 0 to 10,000.
    pub const fn hundredths(self) -> u16 {
        self.0
    }

    /// The percentage, 0 to 100.
    pub fn percent(self) -> f64 {
        f64::from(self.0) / 100.0
    }

    /// What is left of all requests.
    #[must_use]
    pub const fn complement(self) -> Self {
        Self(Self::FULL.0 - self.0)
    }

    /// Whether a uniformly distributed 64-bit number falls into this share.
    ///
    /// The number is scaled to 0..10,000 by multiplication, so the share is exact to 2⁻⁵⁰, and a
    /// number that falls into a weight falls into every larger one: raising the weight moves
    /// requests from stable to canary and never back.
    #[inline]
    pub const fn admits(self, uniform: u64) -> bool {
        Self::slot(uniform) < self.0
    }

    /// The largest weight that does not admit such a number: below it lie 0 to 9,999 hundredths of a percent.
    #[inline]
    pub const fn slot(uniform: u64) -> u16 {
        // Below 10,000.
        (((uniform as u128) * 10_000) >> 64) as u16
    }
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} %", self.percent())
    }
}

impl FromStr for Weight {
    type Err = InvalidWeight;
    fn from_str(text: &str) -> Result<Self, InvalidWeight> {
        let number = text.trim_end_matches('%').trim();
        let percent = number.parse().map_err(|_| InvalidWeight(format!("`{text}`")))?;
        Self::from_percent(percent)
    }
}

impl Serialize for Weight {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.percent())
    }
}

impl<'de> Deserialize<'de> for Weight {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let percent = f64::deserialize(deserializer)?;
        Self::from_percent(percent).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn percentages_have_two_decimals_and_a_range() {
        assert_eq!(Weight::from_percent(12.5).unwrap().hundredths(), 1250);
        assert_eq!(Weight::from_percent(0.01).unwrap().hundredths(), 1);
        assert_eq!(Weight::from_percent(100.0).unwrap(), Weight::FULL);
        for bad in [-0.01, 100.01, 0.001, f64::NAN, f64::INFINITY] {
            assert!(Weight::from_percent(bad).is_err(), "{bad}");
        }
        assert_eq!("2.5%".parse::<Weight>().unwrap().hundredths(), 250);
        assert!("ten".parse::<Weight>().is_err());
    }

    #[test]
    fn the_ends_admit_nothing_and_everything() {
        for uniform in [0, 1, u64::MAX / 2, u64::MAX] {
            assert!(!Weight::ZERO.admits(uniform));
            assert!(Weight::FULL.admits(uniform));
        }
    }

    #[test]
    fn the_share_is_the_weight() {
        let weight = Weight::from_percent(12.34).unwrap();
        // 10,000 × 100 evenly spaced numbers: each hundredth of a percent gets exactly 100.
        let step = u64::MAX / 1_000_000;
        let admitted = (0..1_000_000).filter(|i| weight.admits(i * step + step / 2)).count();
        assert_eq!(admitted, 123_400);
    }

    proptest! {
        #[test]
        fn raising_the_weight_never_sends_anyone_back(uniform: u64, a in 0u16..=10_000, b in 0u16..=10_000) {
            let (low, high) = (Weight(a.min(b)), Weight(a.max(b)));
            prop_assert!(!low.admits(uniform) || high.admits(uniform));
        }
    }
}
