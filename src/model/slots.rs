//! Pinned clients by the number that decides their side: a slot for each hundredth of a percent.
//!
//! A weight gives the canary the slots below it, so a slot is what is drawn, and whoever shares one shares
//! its side.

use super::weight::Weight;

/// How many slots there are: one for each weight over zero.
// Written out: by way of `Weight::FULL` the length of an array would depend on what is inlined into it, which the
// compiler gives up on where it optimises.
pub const SLOTS: u16 = 10_000;

/// Words that have a bit for each slot.
pub const WORDS: usize = (SLOTS as usize).div_ceil(u64::BITS as usize);

/// A set of slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slots(Box<[u64; WORDS]>);

impl Default for Slots {
    fn default() -> Self {
        Self(Box::new([0; WORDS]))
    }
}

impl Slots {
    /// Those that a weight gives to the canary.
    pub fn below(weight: Weight) -> Self {
        Self::of(|index| match usize::from(weight.hundredths()).saturating_sub(64 * index) {
            some @ 0..64 => (1 << some) - 1,
            _ => u64::MAX,
        })
    }

    /// All that there are.
    pub fn all() -> Self {
        Self::below(Weight::FULL)
    }

    /// Those of odd numbers, which are half of them.
    pub fn odd() -> Self {
        Self::of(|_| 0xaaaa_aaaa_aaaa_aaaa).and(&Self::all())
    }

    /// By words of 64, each with the first slot in its lowest bit.
    pub fn of(word: impl FnMut(usize) -> u64) -> Self {
        Self(Box::new(std::array::from_fn(word)))
    }

    /// Adds one, which is below [`SLOTS`]. Whether it is new.
    pub fn insert(&mut self, slot: u16) -> bool {
        let (word, bit) = place(slot);
        let Some(word) = self.0.get_mut(word) else { return false };
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }

    /// Adds all words of another one.
    pub fn unite(&mut self, other: &Self) {
        self.0.iter_mut().zip(&*other.0).for_each(|(mine, theirs)| *mine |= theirs);
    }

    /// Those that are in the other one too.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        Self::of(|index| self.0[index] & other.0[index])
    }

    /// Those that are not in the other one.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        Self::of(|index| self.0[index] & !other.0[index])
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }
}

/// The word of a slot, and its bit in it.
#[inline]
pub const fn place(slot: u16) -> (usize, u64) {
    (slot as usize / u64::BITS as usize, 1 << (slot as usize % u64::BITS as usize))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn halves_are_halves_and_the_whole_is_all() {
        assert_eq!(Slots::odd().count(), u64::from(SLOTS) / 2);
        assert_eq!(Slots::below(Weight::FULL).count(), u64::from(SLOTS));
        assert_eq!(SLOTS, Weight::FULL.hundredths());
        assert_eq!(Slots::below(Weight::ZERO), Slots::default());
    }

    proptest! {
        #[test]
        fn a_weight_has_the_slots_that_it_admits(uniform: u64, hundredths in 0u16..=SLOTS) {
            let weight = Weight::from_hundredths(hundredths).unwrap();
            let (mut slot, below) = (Slots::default(), Slots::below(weight));
            prop_assert!(slot.insert(Weight::slot(uniform)));
            prop_assert_eq!(slot.and(&below).count() == 1, weight.admits(uniform));
            prop_assert_eq!(slot.without(&below).count() == 0, weight.admits(uniform));
            prop_assert_eq!(below.count(), u64::from(hundredths));
            let mut united = below;
            united.unite(&slot);
            prop_assert_eq!(united.insert(Weight::slot(uniform)), false);
        }
    }
}
