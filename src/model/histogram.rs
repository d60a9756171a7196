//! Latency in buckets: logarithmic, 32 to a doubling, so that a quantile is known to 2.2 % whatever
//! its size, and two histograms add and subtract bucket by bucket.
//!
//! Bucket 0 holds everything under a microsecond; bucket `i` holds latencies from `2^((i-1)/32)` up
//! to `2^(i/32)` microseconds; the last one also holds whatever is longer than 71 minutes. Equal
//! ratios are equal numbers of buckets anywhere, which is what lets the analysis ask "20 % slower"
//! by shifting an index.

use std::{ops::Range, sync::LazyLock, time::Duration};

/// Buckets to a doubling of latency. Twice as many would take twice the 8 KiB of each worker, backend and
/// role, and give what is saved and recorded another meaning, to know a quantile to 1.1 %.
pub const PER_DOUBLING: usize = 32;

/// Number of buckets: below 1 µs, 32 doublings, and the overflow in the last.
pub const BUCKETS: usize = 1 + 32 * PER_DOUBLING;

/// Buckets to a block, of which a histogram keeps as many as it needs and a worker notes which it has written.
pub(crate) const BLOCK: usize = PER_DOUBLING;

/// Mantissa bits that the lookup table is indexed by: 4 entries to a bucket, so that one comparison
/// with the next edge settles the rest.
const TABLE_BITS: u32 = PER_DOUBLING.ilog2() + 2;

/// Lower edges of the buckets of one doubling as 52-bit mantissas (fraction of 2⁵²), and one
/// guard after the last.
static EDGES: LazyLock<[u64; PER_DOUBLING + 1]> = LazyLock::new(|| {
    std::array::from_fn(|k| match k {
        PER_DOUBLING => 1 << 52,
        _ => {
            let edge = (k as f64 / PER_DOUBLING as f64).exp2();
            edge.to_bits() & ((1 << 52) - 1)
        }
    })
});

/// For each value of the mantissa's leading bits, the bucket that its smallest mantissa falls into.
static TABLE: LazyLock<[u8; 1 << TABLE_BITS]> = LazyLock::new(|| {
    std::array::from_fn(|i| {
        let mantissa = (i as u64) << (52 - TABLE_BITS);
        let after = EDGES.iter().position(|&edge| edge > mantissa).unwrap_or(PER_DOUBLING);
        u8::try_from(after - 1).expect("there are few buckets to a doubling")
    })
});

/// The bucket that a latency falls into, 0 to [`BUCKETS`] − 1.
#[inline]
pub fn index(latency: Duration) -> usize {
    let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
    if nanos < 1_000 {
        return 0;
    }
    let bits = (nanos as f64 / 1_000.0).to_bits();
    let doubling = (bits >> 52) as usize - 1023;
    let mantissa = bits & ((1 << 52) - 1);
    let within = usize::from(TABLE[(mantissa >> (52 - TABLE_BITS)) as usize]);
    let within = within + usize::from(mantissa >= EDGES[within + 1]);
    (1 + doubling * PER_DOUBLING + within).min(BUCKETS - 1)
}

/// The upper edge of bucket `index`, which its latencies stay below.
pub fn upper_edge(index: usize) -> Duration {
    Duration::from_secs_f64((index as f64 / PER_DOUBLING as f64).exp2() / 1e6)
}

/// Counts by bucket, and their sum.
///
/// Of a thousand buckets a service uses a hundred that lie together, so no others are kept and nothing goes
/// over them.
#[derive(Debug, Clone)]
pub struct Histogram {
    /// The buckets that are kept, from `first` on; the others are empty.
    counts: Vec<u64>,
    first: usize,
    /// The first bucket that is not empty, and the one after the last; the largest and the smallest there
    /// are where all are.
    used: (usize, usize),
    total: u64,
    sum_nanos: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: Vec::new(), first: 0, used: UNUSED, total: 0, sum_nanos: 0 }
    }
}

impl PartialEq for Histogram {
    /// Whether all counts are the same, however many buckets are kept for them.
    fn eq(&self, other: &Self) -> bool {
        let numbers = |of: &Self| (of.used, of.total, of.sum_nanos);
        numbers(self) == numbers(other) && self.used().1 == other.used().1
    }
}

impl Eq for Histogram {}

/// [`Histogram::used`] where every bucket is empty.
const UNUSED: (usize, usize) = (BUCKETS, 0);

impl Histogram {
    /// Counts one latency.
    pub fn record(&mut self, latency: Duration) {
        self.add(index(latency), 1);
        self.add_nanos(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Adds `count` latencies to bucket `index`, leaving their sum to [`Self::add_nanos`].
    ///
    /// # Panics
    /// When there is no such bucket.
    #[inline]
    pub fn add(&mut self, index: usize, count: u64) {
        if count > 0 {
            self.keep(&(index..index + 1));
            self.counts[index - self.first] += count;
            self.total += count;
            self.used = (self.used.0.min(index), self.used.1.max(index + 1));
        }
    }

    /// Adds to the sum of all latencies, in nanoseconds.
    pub fn add_nanos(&mut self, nanos: u64) {
        self.sum_nanos = self.sum_nanos.saturating_add(nanos);
    }

    /// Adds a count to each of the buckets from `first` on, leaving their sum to [`Self::add_nanos`].
    ///
    /// # Panics
    /// When there are no such buckets.
    pub fn add_all(&mut self, first: usize, counts: &[u64]) {
        let (Some(low), Some(high)) =
            (counts.iter().position(|count| *count > 0), counts.iter().rposition(|count| *count > 0))
        else {
            return;
        };
        let (used, counts) = (first + low..first + high + 1, &counts[low..=high]);
        self.add_block(used.start, counts.iter().copied());
    }

    /// The same in one pass over counts that are read only now; a few empty ones at the ends cost little.
    ///
    /// # Panics
    /// When there are no such buckets.
    #[inline]
    pub(crate) fn add_block(&mut self, first: usize, counts: impl ExactSizeIterator<Item = u64>) {
        let buckets = first..first + counts.len();
        self.keep(&buckets);
        let mut total = 0;
        for (mine, theirs) in self.counts[first - self.first..].iter_mut().zip(counts) {
            *mine += theirs;
            total += theirs;
        }
        self.total += total;
        self.use_up_to(&buckets);
    }

    /// Has the counts of these buckets raised by `total` in all, leaving their sum to [`Self::add_nanos`].
    ///
    /// # Panics
    /// When there are no such buckets.
    #[inline]
    pub(crate) fn raise(&mut self, buckets: &Range<usize>, total: u64, raise: impl FnOnce(&mut [u64])) {
        self.keep(buckets);
        raise(&mut self.counts[buckets.start - self.first..buckets.end - self.first]);
        self.total += total;
        self.use_up_to(buckets);
        debug_assert_eq!(
            self.total,
            self.used().1.iter().sum::<u64>(),
            "the counts are not raised by {total}"
        );
    }

    /// Notes which of these buckets, which are kept, are not empty any more.
    #[inline]
    fn use_up_to(&mut self, buckets: &Range<usize>) {
        let counts = &self.counts[buckets.start - self.first..buckets.end - self.first];
        if buckets.start < self.used.0
            && let Some(low) = counts.iter().position(|count| *count > 0)
        {
            self.used.0 = self.used.0.min(buckets.start + low);
        }
        if buckets.end > self.used.1
            && let Some(high) = counts.iter().rposition(|count| *count > 0)
        {
            self.used.1 = self.used.1.max(buckets.start + high + 1);
        }
    }

    /// Keeps at least these buckets.
    ///
    /// # Panics
    /// When there are no such buckets.
    #[inline]
    pub(crate) fn keep(&mut self, buckets: &Range<usize>) {
        if buckets.start < self.first || buckets.end > self.first + self.counts.len() {
            self.grow(buckets);
        }
    }

    #[cold]
    fn grow(&mut self, buckets: &Range<usize>) {
        assert!(buckets.end <= BUCKETS, "there is no bucket {}", buckets.end - 1);
        let (start, end) = match self.counts.len() {
            0 => (buckets.start, buckets.end),
            kept => (buckets.start.min(self.first), buckets.end.max(self.first + kept)),
        };
        let (start, end) = (start / BLOCK * BLOCK, end.next_multiple_of(BLOCK).min(BUCKETS));
        let mut counts = vec![0; end - start];
        if !self.counts.is_empty() {
            counts[self.first - start..][..self.counts.len()].copy_from_slice(&self.counts);
        }
        (self.counts, self.first) = (counts, start);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        let used = self.range();
        // No bytes at an address where nothing is are as dear as a hundred of them: glibc's memset with AVX-512
        // stores under a mask of none, and the processor has to find out that no fault is meant.
        if !used.is_empty() {
            self.counts[used.start - self.first..used.end - self.first].fill(0);
        }
        (self.used, self.total, self.sum_nanos) = (UNUSED, 0, 0);
    }

    /// Adds every count of `other`.
    pub fn merge(&mut self, other: &Self) {
        self.merge_counts(other);
        self.add_nanos(other.sum_nanos);
    }

    /// The same without the sum of their latencies.
    pub fn merge_counts(&mut self, other: &Self) {
        let (first, counts) = other.used();
        self.add_all(first, counts);
    }

    /// What came in since `earlier`, an older reading of the same counters.
    ///
    /// A count that went down (its counter was made anew) reads as zero.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let (first, mine) = self.used();
        let mut counts = mine.to_vec();
        let both = overlap(&self.range(), &earlier.range());
        let (start, theirs) = (both.start - first, earlier.within(both));
        // All of them at once, as if none had gone down, which seldom one has: it shows in the highest bit.
        let mut highest = 0;
        for (count, earlier) in counts[start..].iter_mut().zip(theirs) {
            *count = count.wrapping_sub(*earlier);
            highest |= *count;
        }
        if highest >> (u64::BITS - 1) != 0 {
            let one_by_one =
                mine[start..].iter().zip(theirs).map(|(now, earlier)| now.saturating_sub(*earlier));
            counts[start..].iter_mut().zip(one_by_one).for_each(|(count, gained)| *count = gained);
        }
        let used = match counts.iter().position(|count| *count > 0) {
            Some(low) => {
                let high = counts.iter().rposition(|count| *count > 0).unwrap_or(low);
                (first + low, first + high + 1)
            }
            None => UNUSED,
        };
        let total = counts.iter().sum();
        Self { counts, first, used, total, sum_nanos: self.sum_nanos.saturating_sub(earlier.sum_nanos) }
    }

    /// The buckets between the first and the last that are not empty; where all are, none that are kept.
    fn range(&self) -> Range<usize> {
        if self.used.0 < self.used.1 { self.used.0..self.used.1 } else { self.first..self.first }
    }

    /// The counts of those of these buckets that lie between the first and the last that are not empty.
    fn within(&self, buckets: Range<usize>) -> &[u64] {
        let both = overlap(&self.range(), &buckets);
        &self.counts[both.start - self.first..both.end - self.first]
    }

    /// The first bucket that is not empty, and all counts from there to the last one that is not.
    pub fn used(&self) -> (usize, &[u64]) {
        (self.range().start, self.within(0..BUCKETS))
    }

    /// The buckets that are not empty and their counts, in order.
    pub fn occupied(&self) -> impl Iterator<Item = (usize, u64)> {
        let (first, counts) = self.used();
        (first..).zip(counts.iter().copied()).filter(|(_, count)| *count > 0)
    }

    /// How many latencies were counted.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Whether nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// Sum of all latencies, in seconds.
    pub fn sum_seconds(&self) -> f64 {
        self.sum_nanos as f64 / 1e9
    }

    /// How many latencies lie in buckets before `index`.
    pub fn below(&self, index: usize) -> u64 {
        self.within(0..index).iter().sum()
    }

    /// How many latencies lie in buckets after `index`.
    pub fn above(&self, index: usize) -> u64 {
        self.within(index + 1..BUCKETS).iter().sum()
    }

    /// The upper edge of the bucket that holds the `level` quantile (0 to 1), or nothing where
    /// nothing was counted.
    pub fn quantile(&self, level: f64) -> Option<Duration> {
        if self.total == 0 {
            return None;
        }
        // Whole requests, so that nothing is converted bucket by bucket. The cast saturates.
        let rank = ((level.clamp(0.0, 1.0) * self.total as f64).ceil() as u64).clamp(1, self.total);
        let (first, counts) = self.used();
        let mut seen = 0;
        // By blocks first, whose sums do not wait for each other.
        let mut blocks = (first..).step_by(BLOCK).zip(counts.chunks(BLOCK));
        let (start, within) = blocks.find(|(_, counts)| {
            let here = counts.iter().sum::<u64>();
            let is_here = seen + here >= rank;
            seen += if is_here { 0 } else { here };
            is_here
        })?;
        let index = within.iter().position(|count| {
            seen += count;
            seen >= rank
        })?;
        Some(upper_edge(start + index))
    }

    /// The mean of the `count` shortest latencies, by the upper edges of their buckets; nothing if there
    /// are not so many.
    pub fn mean_of_quickest(&self, count: u64) -> Option<Duration> {
        if count == 0 || count > self.total {
            return None;
        }
        let (mut left, mut sum) = (count, Duration::ZERO);
        for (index, here) in self.occupied() {
            let taken = here.min(left);
            sum += upper_edge(index).mul_f64(taken as f64 / count as f64);
            left -= taken;
            if left == 0 {
                break;
            }
        }
        Some(sum)
    }
}

/// What two ranges have in common; an empty part of the first one where that is nothing.
fn overlap(one: &Range<usize>, other: &Range<usize>) -> Range<usize> {
    let start = other.start.clamp(one.start, one.end);
    start..other.end.clamp(start, one.end)
}

/// A histogram as the pairs of bucket and count that are not empty: a few dozen of a thousand.
pub mod sparse {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use super::{BUCKETS, Histogram};

    /// Writes it.
    ///
    /// # Errors
    /// Those of what it is written to.
    pub fn serialize<S: Serializer>(histogram: &Histogram, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(histogram.occupied())
    }

    /// Reads it; the sum of its latencies is lost.
    ///
    /// # Errors
    /// When there is no such bucket, or more than can be counted.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Histogram, D::Error> {
        let mut histogram = Histogram::default();
        for (index, count) in Vec::<(usize, u64)>::deserialize(from)? {
            if index >= BUCKETS || histogram.total().checked_add(count).is_none() {
                return Err(D::Error::custom(format_args!("no histogram has {count} in bucket {index}")));
            }
            histogram.add(index, count);
        }
        Ok(histogram)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn edges_fall_where_the_formula_says() {
        assert_eq!(index(Duration::ZERO), 0);
        assert_eq!(index(Duration::from_nanos(999)), 0);
        assert_eq!(index(Duration::from_micros(1)), 1);
        assert_eq!(index(Duration::from_micros(2)), 33);
        assert_eq!(index(Duration::from_micros(1024)), 321);
        assert_eq!(index(Duration::from_secs(1 << 40)), BUCKETS - 1);
    }

    #[test]
    fn an_earlier_reading_subtracts() {
        let mut early = Histogram::default();
        early.record(Duration::from_millis(3));
        let mut late = early.clone();
        late.record(Duration::from_millis(7));
        let delta = late.since(&early);
        assert_eq!((delta.total(), delta.above(0)), (1, 1));
        assert_eq!(delta.occupied().collect::<Vec<_>>(), [(index(Duration::from_millis(7)), 1)]);
        assert_eq!(early.since(&late).total(), 0);
    }

    #[test]
    fn an_empty_histogram_has_no_quantile() {
        assert_eq!(Histogram::default().quantile(0.5), None);
    }

    #[test]
    fn a_quantile_counts_requests_that_a_float_cannot() {
        let mut histogram = Histogram::default();
        // As a float, the total is one more than it is.
        histogram.add(3, (1 << 53) + 3);
        assert_eq!(histogram.quantile(1.0), Some(upper_edge(3)));
    }

    proptest! {
        #[test]
        fn the_bucket_is_the_one_of_the_logarithm(nanos in 1_000u64..4_000_000_000_000) {
            let i = index(Duration::from_nanos(nanos));
            let by_log = 1 + ((nanos as f64 / 1_000.0).log2() * 32.0 + 1e-12).floor() as usize;
            prop_assert!(i.abs_diff(by_log.min(BUCKETS - 1)) <= usize::from(
                // Within rounding of an edge either neighbour is right.
                ((nanos as f64 / 1_000.0).log2() * 32.0).fract().min(1.0 - ((nanos as f64 / 1_000.0).log2() * 32.0).fract()) < 1e-9
            ));
        }

        #[test]
        fn nothing_is_missed_beyond_what_is_used(
            mine in prop::collection::vec((0..BUCKETS, 0u64..5), 0..20),
            theirs in prop::collection::vec((0..BUCKETS, 0u64..5), 0..20),
        ) {
            let of = |counts: &[(usize, u64)]| {
                let mut histogram = Histogram::default();
                counts.iter().for_each(|(index, count)| histogram.add(*index, *count));
                histogram
            };
            let (first, second) = (of(&mine), of(&theirs));
            let mut both = first.clone();
            both.merge(&second);
            prop_assert_eq!(&both, &of(&[&mine[..], &theirs].concat()));
            // The same bucket by bucket, over all of them.
            let mut all = vec![0; BUCKETS];
            mine.iter().chain(&theirs).for_each(|(index, count)| all[*index] += count);
            prop_assert_eq!(both.total(), all.iter().sum::<u64>());
            let occupied: Vec<_> = all.iter().copied().enumerate().filter(|(_, count)| *count > 0).collect();
            prop_assert_eq!(both.occupied().collect::<Vec<_>>(), occupied);
            for index in 0..BUCKETS {
                prop_assert_eq!(both.above(index), all[index + 1..].iter().sum::<u64>());
                prop_assert_eq!(both.below(index), all[..index].iter().sum::<u64>());
            }
            let mut at_once = Histogram::default();
            at_once.add_all(0, &all);
            prop_assert_eq!(&at_once, &both);
            prop_assert_eq!(&both.since(&second), &first);
            // Counters that were made anew have less.
            let less = |index: &usize| of(&mine).occupied().find(|(at, _)| at == index).map_or(0, |(_, count)| count);
            let anew = second.since(&first).occupied().collect::<Vec<_>>();
            prop_assert_eq!(anew, second.occupied().map(|(index, count)| (index, count.saturating_sub(less(&index)))).filter(|(_, count)| *count > 0).collect::<Vec<_>>());
            both.clear();
            prop_assert_eq!(both, Histogram::default());
        }

        #[test]
        fn a_quantile_is_within_a_bucket_of_the_truth(mut nanos in prop::collection::vec(1_000u64..1_000_000_000, 1..200), level in 0.0f64..=1.0) {
            let mut histogram = Histogram::default();
            for n in &nanos {
                histogram.record(Duration::from_nanos(*n));
            }
            nanos.sort_unstable();
            let rank = ((level * nanos.len() as f64).ceil() as usize).clamp(1, nanos.len());
            let exact = nanos[rank - 1] as f64 / 1e9;
            let estimate = histogram.quantile(level).unwrap().as_secs_f64();
            prop_assert!(estimate >= exact * 0.999 && estimate <= exact * 1.0233, "{estimate} for {exact}");
        }
    }
}
