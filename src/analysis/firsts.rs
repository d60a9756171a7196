//! Which slots fail for the first time: what [`users`](super::users) compares, from sets of those that have
//! failed.

use super::{error_rate::Sample, users::Firsts, verdict::Arms};
use crate::model::slots::{SLOTS, Slots};

/// Slots for which something has been so already, in whichever arm.
#[derive(Debug, Clone, Default)]
pub struct Once {
    used: Slots,
    pass: u32,
}

impl Once {
    /// Takes in a tick. `is_so` are the slots of each arm for which it is so by now, since they were last
    /// counted anew; `canary` those that are the canary's, of which it may have had fewer for a part of the
    /// tick; `others` the requests that are not pinned.
    ///
    /// A slot for which it was so in both arms for the first time counts for neither.
    pub fn take(&mut self, is_so: Arms<&Slots>, canary: &Slots, others: Arms<Sample>) -> Firsts {
        let Arms { stable: new_stable, canary: new_canary } = is_so.map(|slots| slots.without(&self.used));
        let first = Arms {
            stable: new_stable.without(&new_canary).count(),
            // Where the weight has fallen, what was under way there is of slots that it has no more.
            canary: new_canary.without(&new_stable).and(canary).count(),
        };
        let free = self.free(canary);
        self.used.unite(&new_stable);
        self.used.unite(&new_canary);
        Firsts { free, first, others, pass: self.pass }
    }

    /// Whether so few are left that they are to be counted anew.
    pub fn is_half_used(&self) -> bool {
        self.used.count() > u64::from(SLOTS) / 2
    }

    /// Counts them anew: it has not been so for any.
    pub fn count_anew(&mut self) {
        *self = Self { used: Slots::default(), pass: self.pass.saturating_add(1) };
    }

    fn free(&self, canary: &Slots) -> Arms<u64> {
        let free = Slots::all().without(&self.used);
        let of_canary = free.and(canary).count();
        Arms { stable: free.count() - of_canary, canary: of_canary }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::weight::Weight;

    fn slots(of: &[u16]) -> Slots {
        let mut slots = Slots::default();
        of.iter().for_each(|slot| assert!(slots.insert(*slot)));
        slots
    }

    /// What a tick comes to in which these slots have failed by now, of stable and of the canary, at a weight.
    fn take(once: &mut Once, stable: &[u16], canary: &[u16], hundredths: u16) -> (Arms<u64>, Arms<u64>) {
        let weight = Slots::below(Weight::from_hundredths(hundredths).unwrap());
        let is_so = Arms { stable: &slots(stable), canary: &slots(canary) };
        let Firsts { free, first, .. } = once.take(is_so, &weight, Arms::default());
        (free, first)
    }

    #[test]
    fn a_slot_counts_once_in_whichever_arm() {
        let mut once = Once::default();
        let arms = |stable, canary| Arms { stable, canary };
        assert_eq!(take(&mut once, &[500, 9_999], &[3], 100), (arms(9_900, 100), arms(2, 1)));
        assert_eq!(take(&mut once, &[500, 9_999], &[3], 100), (arms(9_898, 99), arms(0, 0)));
        // Slot 500 has moved over, and fails there too.
        assert_eq!(take(&mut once, &[500, 9_999], &[3, 500, 4], 1_000), (arms(8_999, 998), arms(0, 1)));
    }

    #[test]
    fn who_fails_in_both_arms_at_once_counts_for_neither() {
        let mut once = Once::default();
        let arms = |stable, canary| Arms { stable, canary };
        assert_eq!(take(&mut once, &[50, 51], &[50, 52], 100).1, arms(1, 1));
        assert_eq!(take(&mut once, &[50, 51], &[50, 51, 52], 100), (arms(9_900, 97), arms(0, 0)));
        // The weight has fallen since.
        assert_eq!(take(&mut once, &[50, 51], &[50, 51, 52, 60, 5], 10).1, arms(0, 1));
    }

    #[test]
    fn once_half_of_all_have_failed_they_are_counted_anew() {
        let mut once = Once::default();
        let many: Vec<u16> = (0..5_001).collect();
        take(&mut once, &many[1..], &[], 0);
        assert!(!once.is_half_used());
        take(&mut once, &many, &[], 0);
        assert!(once.is_half_used());
        once.count_anew();
        let firsts = once.take(
            Arms { stable: &slots(&[1]), canary: &Slots::default() },
            &Slots::default(),
            Arms::default(),
        );
        assert_eq!((firsts.free.stable, firsts.first.stable, firsts.pass), (10_000, 1, 1));
    }
}
