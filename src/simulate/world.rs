//! Chance: how many requests come in a while, how many of them fail, and how long they take, drawn with
//! a seed.
//!
//! Requests arrive independently, so the numbers that go to a version and fail, or do not, are
//! independent Poisson variables, drawn exactly and without drawing a single request. Latencies are drawn
//! one by one, from a log-normal distribution of stable's (median 50 ms, 99th percentile 160 ms), by
//! looking twelve random bits up in a table (Marsaglia, Tsang & Wang 2004). At less than a nanosecond for each
//! that is cheaper than drawing a count for each bucket, until there are dozens of requests to a bucket.

use std::ops::Range;

use rand::{Rng, RngExt, SeedableRng, rngs::SmallRng};
use rand_distr::{Distribution, Poisson};

use super::{
    crowd::{Clients, Timing},
    scenario::{Scenario, Slowness},
};
use crate::{
    analysis::{error_rate::Sample, users::Users, verdict::Arms},
    model::{
        histogram::{self, BUCKETS, Histogram},
        weight::Weight,
    },
};

/// What one version did in a while.
#[derive(Debug, Clone, Default)]
pub struct Did {
    /// Requests, and how many of them failed.
    pub sample: Sample,
    /// How long they took; empty where the scenario does not look at that.
    pub latency: Histogram,
}

/// One course of a scenario.
#[derive(Debug)]
pub struct World<'a> {
    scenario: &'a Scenario,
    latencies: Option<&'a Latencies>,
    /// Requests a second, where the load is usual.
    rate: f64,
    rng: SmallRng,
    draws: [[Draw; 2]; 2],
    did: [Did; 2],
    /// Who makes the requests, where clients are pinned.
    clients: Option<Clients>,
    /// Above which buckets those are slow.
    edges: [Option<Arms<usize>>; 2],
    /// Counts of each of the canary's endpoints, where there are several.
    endpoints: Vec<Sample>,
    /// Which of them is passed over, and until when.
    passed_over: Option<(usize, f64)>,
}

impl<'a> World<'a> {
    /// The course that belongs to a seed.
    pub fn new(scenario: &'a Scenario, latencies: Option<&'a Latencies>, rate: f64, seed: u64) -> Self {
        let several = if scenario.endpoints > 1 { scenario.endpoints as usize } else { 0 };
        let mut rng = SmallRng::seed_from_u64(seed);
        Self {
            scenario,
            latencies,
            rate,
            clients: scenario.crowd.map(|crowd| Clients::new(crowd, &mut rng)),
            edges: [None; 2],
            rng,
            draws: [[Draw::default(); 2]; 2],
            did: [Did::default(), Did::default()],
            endpoints: vec![Sample::default(); several],
            passed_over: None,
        }
    }

    /// Lets `seconds` pass from `time` on, in which stable and the canary each have a share of all requests.
    /// Rates are those of the middle.
    pub fn pass(&mut self, (time, seconds): (f64, f64), shares: [f64; 2]) {
        let middle = time + seconds / 2.0;
        let requests = self.rate * self.scenario.load.at(middle) * seconds;
        let stable = self.scenario.stable.at(middle);
        self.passed_over = self.passed_over.filter(|(_, until)| time < *until);
        let failing = [stable, if self.is_cured() { stable } else { self.scenario.canary.at(middle) }];
        self.did.iter_mut().for_each(|did| did.latency.clear());
        if let Some(clients) = &mut self.clients {
            self.did.iter_mut().for_each(|did| did.sample = Sample::default());
            let timing = self.latencies.map(|latencies| -> Timing<'_> { (latencies, self.edges) });
            clients.pass(requests, (shares, failing), timing, &mut self.rng, &mut self.did);
        } else {
            (0..2).for_each(|arm| self.serve(arm, requests * shares[arm], failing[arm]));
        }
        if !self.endpoints.is_empty() {
            self.spread(failing);
        }
    }

    /// Has users looked at for latencies above these buckets, where there are users, and latencies.
    pub(super) fn look_for(&mut self, edges: impl FnOnce() -> [Option<Arms<usize>>; 2]) {
        if self.clients.is_some() && self.latencies.is_some() {
            self.edges = edges();
        }
    }

    /// What users did, where clients are pinned and the canary has had a weight since this was asked last.
    pub(super) fn users(&mut self, weight: Weight) -> Option<Users> {
        self.clients.as_mut().map(|clients| clients.told(weight))
    }

    /// A rollout begins: nobody has failed any more.
    pub(super) fn begin(&mut self) {
        if let Some(clients) = &mut self.clients {
            clients.restart();
        }
    }

    /// What stable and the canary did in what passed last.
    pub fn did(&self) -> &[Did; 2] {
        &self.did
    }

    fn serve(&mut self, arm: usize, requests: f64, failing: f64) {
        let cluster = self.scenario.cluster;
        let [failed, fine] = &mut self.draws[arm];
        let failures = cluster * failed.draw(requests * failing / cluster as f64, &mut self.rng);
        let successes = fine.draw(requests * (1.0 - failing), &mut self.rng);
        let Did { sample, latency } = &mut self.did[arm];
        *sample = Sample { requests: failures + successes, failures };
        if let Some(latencies) = self.latencies {
            // What fails has no latency that is compared.
            latencies.of[arm].draw(successes, &mut self.rng, latency);
        }
    }

    /// Gives the canary's requests to its endpoints: all get as many, and the first one those that
    /// failed beyond stable's rate.
    fn spread(&mut self, [stable, canary]: [f64; 2]) {
        let excess = if canary > stable { (canary - stable) / canary } else { 0.0 };
        let sample = self.did[1].sample;
        for request in 0..sample.requests {
            let failed = request < sample.failures;
            let first = failed && self.rng.random::<f64>() < excess;
            let index = if first { 0 } else { self.any_endpoint() };
            self.endpoints[index].add(Sample { requests: 1, failures: u64::from(failed) });
        }
    }

    /// One of those that are not passed over.
    fn any_endpoint(&mut self) -> usize {
        match self.passed_over {
            None => self.rng.random_range(0..self.endpoints.len()),
            Some((out, _)) => {
                let index = self.rng.random_range(0..self.endpoints.len() - 1);
                index + usize::from(index >= out)
            }
        }
    }

    /// Has one of the canary's endpoints passed over until a moment.
    pub fn pass_over(&mut self, endpoint: usize, until: f64) {
        self.passed_over = Some((endpoint, until));
    }

    /// Whether the endpoint that fails more than stable is passed over now, and so the canary is like it.
    pub fn is_cured(&self) -> bool {
        matches!(self.passed_over, Some((0, _)))
    }

    /// What each of the canary's endpoints has done; empty unless there are several.
    pub fn endpoints(&self) -> &[Sample] {
        &self.endpoints
    }
}

/// Draws of a Poisson variable whose mean seldom changes.
#[derive(Debug, Clone, Copy, Default)]
struct Draw {
    mean: f64,
    of: Option<Poisson<f64>>,
}

impl Draw {
    fn draw(&mut self, mean: f64, rng: &mut SmallRng) -> u64 {
        if mean != self.mean {
            // A mean of 0 has no distribution: it is always 0.
            *self = Self { mean, of: Poisson::new(mean).ok() };
        }
        // The cast saturates.
        self.of.map_or(0, |of| of.sample(rng) as u64)
    }
}

/// How long requests of each arm take.
#[derive(Debug)]
pub struct Latencies {
    of: [Buckets; 2],
}

impl Latencies {
    /// Stable's, and those of a canary that is slower.
    pub fn new(slowness: Slowness) -> Self {
        let usual = weights(1.0);
        let slow = weights(slowness.times.max(f64::MIN_POSITIVE));
        let share = slowness.share.clamp(0.0, 1.0);
        let mixed = usual.iter().zip(&slow).map(|(usual, slow)| (1.0 - share) * usual + share * slow);
        let mixed: Vec<f64> = mixed.collect();
        Self { of: [&usual, &mixed].map(|weights| Buckets::new(weights)) }
    }

    /// The bucket of one request of an arm.
    pub(super) fn draw_one(&self, arm: usize, rng: &mut SmallRng) -> usize {
        let buckets = &self.of[arm];
        match buckets.places[rng.next_u32() as usize % PLACES] {
            LEFT => buckets.left.bucket(rng.next_u32()),
            place => buckets.span.start + usize::from(place),
        }
    }
}

/// A distribution over the histogram's buckets. Each has as many of a table's places as it has whole 4,096ths;
/// the places that are left stand for what is left of all of them, which one draw in thirty is of.
#[derive(Debug)]
struct Buckets {
    /// For each place the bucket less `span.start`, or [`LEFT`].
    places: Box<[u16; PLACES]>,
    left: Alias,
    /// The buckets that come, and some between.
    span: Range<usize>,
}

impl Buckets {
    /// By the weight of each bucket.
    fn new(weights: &[f64]) -> Self {
        let sum: f64 = weights.iter().sum();
        let shares = || weights.iter().map(move |weight| weight / sum * PLACES as f64);
        let left = Alias::new(shares().map(f64::fract));
        let whole = || shares().map(|share| share as usize).enumerate().filter(|(_, whole)| *whole > 0);
        let (mut start, mut end) = (left.span.start, left.span.end);
        whole().for_each(|(bucket, _)| (start, end) = (start.min(bucket), end.max(bucket + 1)));
        let place = |(bucket, whole): (usize, usize)| std::iter::repeat_n((bucket - start) as u16, whole);
        let mut places = Box::new([LEFT; PLACES]);
        places.iter_mut().zip(whole().flat_map(place)).for_each(|(place, bucket)| *place = bucket);
        Self { places, left, span: start..end }
    }

    /// Adds as many latencies to a histogram.
    fn draw(&self, count: u64, rng: &mut SmallRng, into: &mut Histogram) {
        into.raise(&self.span, count, |counts| {
            for _ in 0..count / PLACES_IN_WORD {
                self.add(PLACES_IN_WORD, rng, counts);
            }
            self.add(count % PLACES_IN_WORD, rng, counts);
        });
    }

    /// Counts as many as one word is enough for.
    #[inline(always)]
    fn add(&self, few: u64, rng: &mut SmallRng, counts: &mut [u64]) {
        let mut word = rng.next_u64();
        for _ in 0..few {
            let place = self.places[word as usize % PLACES];
            word >>= PLACE_BITS;
            match counts.get_mut(usize::from(place)) {
                Some(count) => *count += 1,
                None => counts[self.left.bucket(rng.next_u32()) - self.span.start] += 1,
            }
        }
    }
}

/// Bits that tell the place: few enough for the table to stay in the fastest cache.
const PLACE_BITS: u32 = 12;
const PLACES: usize = 1 << PLACE_BITS;
const PLACES_IN_WORD: u64 = (u64::BITS / PLACE_BITS) as u64;
/// In a place: what is left. No bucket is that far from another.
const LEFT: u16 = u16::MAX;

/// A distribution over buckets by the alias method (Walker 1977): columns of the same probability, each of
/// them shared by two buckets at most. Half a random word tells the column and the side.
#[derive(Debug)]
struct Alias {
    /// 2^[`COLUMN_BITS`] of them.
    columns: Box<[Column]>,
    /// The buckets that come, and some between.
    span: Range<usize>,
}

#[derive(Debug, Clone, Copy)]
struct Column {
    /// The first bucket's part of the column, of 2^[`SIDE_BITS`]; the other one has the rest.
    part: u32,
    buckets: [u16; 2],
}

impl Alias {
    /// By the weight of each bucket. Shares are rounded to multiples of 2⁻³².
    fn new(weights: impl Iterator<Item = f64> + Clone) -> Self {
        let sum: f64 = weights.clone().sum();
        let share = |weight: f64| (weight / sum * f64::from(SIDE) * f64::from(COLUMNS)).round() as u32;
        let mut shares: Vec<(u16, u32)> = (0..).zip(weights.map(share)).collect();
        shares.retain(|(_, share)| *share > 0);
        let ends = shares.first().zip(shares.last());
        let span = ends.map_or(0..0, |(first, last)| usize::from(first.0)..usize::from(last.0) + 1);
        // As many as there are columns, and in sum what these hold, which is 0 in 32 bits: the largest makes
        // up for the rounding.
        shares.resize(COLUMNS as usize, (0, 0));
        let rounded = shares.iter().fold(0, |sum: u32, (_, share)| sum.wrapping_add(*share));
        let largest = shares.iter_mut().max_by_key(|(_, share)| *share).expect("there are columns");
        largest.1 = largest.1.wrapping_sub(rounded);

        let (mut small, mut large): (Vec<_>, Vec<_>) =
            shares.into_iter().partition(|(_, share)| *share < SIDE);
        let mut columns = Vec::with_capacity(COLUMNS as usize);
        while let Some((bucket, part)) = small.pop() {
            // Those left fill a column each on average, so where one does not, another has too much.
            let (other, share) = large.pop().expect("the shares fill the columns");
            columns.push(Column { part, buckets: [bucket, other] });
            let left = (other, share - (SIDE - part));
            if left.1 < SIDE { small.push(left) } else { large.push(left) }
        }
        columns.extend(large.into_iter().map(|(bucket, _)| Column { part: SIDE, buckets: [bucket; 2] }));
        Self { columns: columns.into(), span }
    }

    /// The bucket that half a word stands for.
    fn bucket(&self, half: u32) -> usize {
        let column = &self.columns[(half >> SIDE_BITS) as usize];
        usize::from(column.buckets[usize::from(half % SIDE >= column.part)])
    }
}

/// Bits that tell the column: more columns than buckets that come.
const COLUMN_BITS: u32 = 10;
/// Bits that tell the side.
const SIDE_BITS: u32 = u32::BITS - COLUMN_BITS;
const COLUMNS: u32 = 1 << COLUMN_BITS;
const SIDE: u32 = 1 << SIDE_BITS;

/// The density of the logarithm in the middle of each bucket, for latencies `times` as long as stable's.
fn weights(times: f64) -> Vec<f64> {
    let density = |bucket: usize| {
        let middle = histogram::upper_edge(bucket).as_secs_f64().ln() - 0.5 * BUCKET_WIDTH;
        let off = (middle - (MEDIAN * times).ln()) / SPREAD;
        (-0.5 * off * off).exp()
    };
    (0..BUCKETS).map(density).collect()
}

/// Median of stable's latencies, in seconds.
const MEDIAN: f64 = 0.05;
/// Standard deviation of their logarithm.
const SPREAD: f64 = 0.5;
/// Width of a bucket, in the logarithm.
const BUCKET_WIDTH: f64 = std::f64::consts::LN_2 / histogram::PER_DOUBLING as f64;

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(scenario: &Scenario, shares: [f64; 2]) -> [Sample; 2] {
        let mut world = World::new(scenario, None, 100.0, 3);
        let mut sums = [Sample::default(); 2];
        for second in 0..1_000 {
            world.pass((f64::from(second), 1.0), shares);
            sums.iter_mut().zip(world.did()).for_each(|(sum, did)| sum.add(did.sample));
        }
        sums
    }

    /// Within five standard deviations: one seed in a million is outside.
    fn near(count: u64, mean: f64, cluster: f64) -> bool {
        (count as f64 - mean).abs() <= 5.0 * (cluster * mean).sqrt()
    }

    #[test]
    fn as_many_come_and_fail_as_it_says() {
        let scenario = Scenario::constant("x", "", (0.01, 0.05), true);
        let [stable, canary] = sums(&scenario, [0.9, 0.1]);
        assert!(near(stable.requests, 90_000.0, 1.0) && near(stable.failures, 900.0, 1.0), "{stable:?}");
        assert!(near(canary.requests, 10_000.0, 1.0) && near(canary.failures, 500.0, 1.0), "{canary:?}");
        let nothing = Scenario::constant("x", "", (0.0, 1.0), true);
        let [stable, canary] = sums(&nothing, [1.0, 0.1]);
        assert_eq!((stable.failures, canary.failures), (0, canary.requests));
    }

    #[test]
    fn clusters_fail_together() {
        let scenario = Scenario { cluster: 4, ..Scenario::constant("x", "", (0.01, 0.01), false) };
        let [stable, _] = sums(&scenario, [1.0, 0.0]);
        assert!(near(stable.failures, 1_000.0, 4.0) && stable.failures.is_multiple_of(4), "{stable:?}");
    }

    #[test]
    fn one_endpoint_fails_for_all() {
        let scenario = Scenario { endpoints: 4, ..Scenario::constant("x", "", (0.0, 0.05), true) };
        let mut world = World::new(&scenario, None, 1_000.0, 3);
        for second in 0..100 {
            world.pass((f64::from(second), 1.0), [0.5, 0.5]);
        }
        let [first, others @ ..] = world.endpoints() else { panic!("there are four") };
        assert!(near(first.failures, 2_500.0, 1.0), "{first:?}");
        assert!(others.iter().all(|other| other.failures == 0 && other.requests > 10_000));
    }

    #[test]
    fn latencies_are_as_long_as_they_say() {
        let slowness = Slowness { share: 1.0, times: 2.0 };
        let latencies = Latencies::new(slowness);
        let scenario = Scenario { latency: Some(slowness), ..Scenario::constant("x", "", (0.0, 0.0), true) };
        let mut world = World::new(&scenario, Some(&latencies), 100_000.0, 3);
        world.pass((0.0, 1.0), [0.5, 0.5]);
        let [stable, canary] = world.did();
        let median = |did: &Did| did.latency.quantile(0.5).unwrap().as_secs_f64();
        // A bucket is 2.2 % wide, and the median of 50,000 is known to 0.3 %.
        assert!((0.048..0.053).contains(&median(stable)) && (0.096..0.106).contains(&median(canary)));
        assert!((0.15..0.17).contains(&stable.latency.quantile(0.99).unwrap().as_secs_f64()));
    }

    /// Stable's latencies, and those of a canary of which one request in twenty is eight times slower.
    fn distributions() -> [Vec<f64>; 2] {
        let (usual, slow) = (weights(1.0), weights(8.0));
        let mixed = usual.iter().zip(&slow).map(|(usual, slow)| 0.95 * usual + 0.05 * slow).collect();
        [usual, mixed].map(|weights: Vec<f64>| {
            let sum: f64 = weights.iter().sum();
            weights.iter().map(|weight| weight / sum).collect()
        })
    }

    #[test]
    fn buckets_come_as_often_as_they_weigh() {
        for shares in distributions() {
            let buckets = Buckets::new(&shares);
            let mut found = vec![0.0; BUCKETS];
            let mut left = 0.0;
            for place in &*buckets.places {
                match *place {
                    LEFT => left += 1.0 / PLACES as f64,
                    place => found[buckets.span.start + usize::from(place)] += 1.0 / PLACES as f64,
                }
            }
            assert!(left < 0.08, "{left} are looked up twice");
            let side = left / f64::from(COLUMNS) / f64::from(SIDE);
            for column in &buckets.left.columns {
                found[usize::from(column.buckets[0])] += side * f64::from(column.part);
                found[usize::from(column.buckets[1])] += side * f64::from(SIDE - column.part);
            }
            for (bucket, (found, share)) in found.iter().zip(&shares).enumerate() {
                // The largest makes up for the rounding of all, which is half of 2⁻³² of what is left for each.
                assert!((found - share).abs() < 1e-8, "{found} in place of {share} in bucket {bucket}");
                assert!(*found == 0.0 || buckets.span.contains(&bucket));
            }
        }
    }

    /// χ² over the buckets that ten or more are expected in, and one of all others: in all but one case of
    /// a million it is within five standard deviations, √(2·degrees), of the number of its degrees.
    #[test]
    fn buckets_are_drawn_as_often_as_they_weigh() {
        for shares in distributions() {
            let (buckets, mut rng) = (Buckets::new(&shares), SmallRng::seed_from_u64(3));
            let mut drawn = Histogram::default();
            let mut draws = 0;
            // Every number of draws that a last word may be for.
            while draws < 1_000_000 {
                let count = 500 + draws % 7;
                buckets.draw(count, &mut rng, &mut drawn);
                draws += count;
            }
            assert_eq!(drawn.total(), draws);
            let mut counts = vec![0; BUCKETS];
            drawn.occupied().for_each(|(bucket, count)| counts[bucket] = count);
            let (mut squares, mut degrees, mut others) = (0.0, 0.0, (0.0, 0.0));
            let square = |count: f64, expected: f64| (count - expected) * (count - expected) / expected;
            for (count, share) in counts.into_iter().zip(&shares) {
                let (count, expected) = (count as f64, share * draws as f64);
                if expected < 10.0 {
                    others = (others.0 + count, others.1 + expected);
                } else {
                    squares += square(count, expected);
                    degrees += 1.0;
                }
            }
            squares += square(others.0, others.1);
            let off = (squares - degrees).abs();
            assert!(degrees > 150.0 && off < 5.0 * (2.0 * degrees).sqrt(), "{squares} of {degrees}");
        }
    }

    #[test]
    fn a_seed_has_one_course() {
        let scenario = Scenario::constant("x", "", (0.01, 0.05), true);
        assert_eq!(sums(&scenario, [0.5, 0.5]), sums(&scenario, [0.5, 0.5]));
    }
}
