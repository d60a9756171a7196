//! Slow start: an endpoint that is new, or well again, gets its share little by little.
//!
//! Its caches are cold and its code is not compiled yet. Where a rule has chosen one, it is taken with
//! a chance that rises with its age, and else the other one is; so it works alike for every rule, and
//! does not depend on how loads compare.

/// The chance at the very beginning (Envoy's `min_weight_percent`): without any, nothing would warm up.
const LEAST: f64 = 0.1;

/// Whether an endpoint of this age takes a request that it was chosen for. `uniform` is a random number.
pub fn takes(age_millis: u64, window_millis: u64, uniform: u64) -> bool {
    if age_millis >= window_millis {
        return true;
    }
    let chance = (age_millis as f64 / window_millis as f64).max(LEAST);
    // 53 bits are what an f64 holds.
    ((uniform >> 11) as f64) < chance * (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of a thousand evenly spread numbers make it take the request.
    fn of_a_thousand(age: u64) -> usize {
        (0..1000u64).filter(|i| takes(age, 1000, (2 * i + 1) * (u64::MAX / 2000))).count()
    }

    #[test]
    fn the_share_rises_with_age() {
        assert_eq!(of_a_thousand(0), 100);
        assert_eq!(of_a_thousand(50), 100);
        assert!((499..=501).contains(&of_a_thousand(500)));
        assert_eq!(of_a_thousand(1000), 1000);
        assert!(takes(0, 0, u64::MAX));
    }
}
