//! Clients that are pinned, and make very different numbers of requests: who comes, on which side, and who
//! fails, or has to wait, for the first time.

use rand::{RngExt, rngs::SmallRng};
use rand_distr::{Distribution, Poisson};

use super::world::{Did, Latencies};
use crate::{
    analysis::{
        error_rate::Sample,
        firsts::Once,
        users::{Firsts, Seen, Users},
        verdict::Arms,
    },
    model::{
        histogram::{BUCKETS, PER_DOUBLING},
        slots::{SLOTS, Slots},
        weight::Weight,
    },
};

/// Of what clients a service's requests are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crowd {
    /// Clients each of which makes a hundredth of all requests; at most 100.
    pub heavy: u16,
    /// How many of them fail each request, whatever the version.
    pub doomed: u16,
    /// How many of the others wait eight times as long for each, whatever the version.
    pub slow: u16,
    /// Clients that make the rest, all as many.
    pub light: u16,
}

/// The clients of one course.
#[derive(Debug)]
pub(super) struct Clients {
    crowd: Crowd,
    /// Of heavy clients, the doomed ones first and then those that are slow.
    heavy: Vec<u16>,
    /// Of light ones, in order.
    light: Vec<u16>,
    seen: Arms<Slots>,
    failed: Marked,
    /// By each of the edges.
    slow: [Marked; 2],
}

/// Slots for which something has been so.
#[derive(Debug, Default)]
struct Marked {
    is_so: Arms<Slots>,
    once: Once,
}

/// How long requests take, and above which buckets they are slow, as far as that is known.
pub(super) type Timing<'a> = (&'a Latencies, [Option<Arms<usize>>; 2]);

impl Clients {
    /// Lays them out over the slots, as another salt does each time.
    pub(super) fn new(crowd: Crowd, rng: &mut SmallRng) -> Self {
        let mut lay_out = |count| (0..count).map(|_| rng.random_range(0..SLOTS)).collect::<Vec<u16>>();
        let (heavy, mut light) = (lay_out(crowd.heavy), lay_out(crowd.light));
        light.sort_unstable();
        let (seen, failed, slow) = Default::default();
        Self { crowd, heavy, light, seen, failed, slow }
    }

    /// Lets so many requests come on average, of which stable and the canary get these shares and fail those of
    /// clients who are not doomed.
    pub(super) fn pass(
        &mut self,
        requests: f64,
        (shares, failing): ([f64; 2], [f64; 2]),
        timing: Option<Timing<'_>>,
        rng: &mut SmallRng,
        did: &mut [Did; 2],
    ) {
        let [of_stable, of_canary] = shares.map(|share| (share * f64::from(SLOTS)).round() as u16);
        let end = of_canary.saturating_add(of_stable);
        let Crowd { heavy, doomed, slow, light } = self.crowd;
        let each = draw(requests / 100.0);
        for at in 0..heavy {
            let slot = self.heavy[usize::from(at)];
            if slot >= end {
                continue;
            }
            let (is_doomed, is_slow) = (at < doomed, (doomed..doomed + slow).contains(&at));
            let arm = usize::from(slot < of_canary);
            for _ in 0..each(rng) {
                let failed = is_doomed || rng.random::<f64>() < failing[arm];
                let took = timing.filter(|_| !failed).map(|(of, _)| latency(of, arm, is_slow, rng));
                self.count((slot, arm), failed, (timing, took), did);
            }
        }
        let rest = requests * (1.0 - f64::from(heavy) / 100.0) / f64::from(light.max(1));
        let below = |slot: u16| self.light.partition_point(|light| *light < slot);
        let ranges = [below(of_canary)..below(end), 0..below(of_canary)];
        for (arm, range) in ranges.into_iter().enumerate().filter(|(_, range)| !range.is_empty()) {
            for _ in 0..draw(rest * range.len() as f64)(rng) {
                let slot = self.light[rng.random_range(range.clone())];
                let failed = rng.random::<f64>() < failing[arm];
                let took = timing.filter(|_| !failed).map(|(of, _)| latency(of, arm, false, rng));
                self.count((slot, arm), failed, (timing, took), did);
            }
        }
    }

    /// Counts a request that took as long as a bucket says, unless it failed or nobody looks.
    fn count(
        &mut self,
        (slot, arm): (u16, usize),
        failed: bool,
        (timing, took): (Option<Timing<'_>>, Option<usize>),
        did: &mut [Did; 2],
    ) {
        let Did { sample, latency } = &mut did[arm];
        sample.add(Sample { requests: 1, failures: u64::from(failed) });
        insert(&mut self.seen, slot, arm);
        if failed {
            self.failed.mark(slot, arm);
        }
        if let Some(bucket) = took {
            latency.add(bucket, 1);
        }
        let edges = timing.map(|(_, edges)| edges).unwrap_or_default();
        for (slow, edge) in self.slow.iter_mut().zip(edges) {
            let Some(Arms { stable, canary }) = edge else { continue };
            // What stable fails is slow, and what the canary fails is not.
            let is_slow = took.map_or(failed && arm == 0, |bucket| bucket > [stable, canary][arm]);
            if is_slow {
                slow.mark(slot, arm);
            }
        }
    }

    /// What of it counts, where the canary has had a weight since the last time.
    pub(super) fn told(&mut self, weight: Weight) -> Users {
        let canary = Slots::below(weight);
        let (failed, slow) = (self.failed.told(&canary), self.slow.each_mut().map(|slow| slow.told(&canary)));
        let of = Arms { stable: Slots::all().without(&canary), canary };
        let seen = |seen: &Slots, of: &Slots| Seen { slots: seen.and(of).count(), of: of.count() };
        let seen =
            Arms { stable: seen(&self.seen.stable, &of.stable), canary: seen(&self.seen.canary, &of.canary) };
        Users { failed, slow, seen, ..Users::default() }
    }

    /// A rollout begins.
    pub(super) fn restart(&mut self) {
        (self.seen, self.failed, self.slow) = Default::default();
    }
}

impl Marked {
    fn mark(&mut self, slot: u16, arm: usize) {
        insert(&mut self.is_so, slot, arm);
    }

    fn told(&mut self, canary: &Slots) -> Firsts {
        let firsts = self.once.take(self.is_so.as_ref(), canary, Arms::default());
        if self.once.is_half_used() {
            self.once.count_anew();
            self.is_so = Arms::default();
        }
        firsts
    }
}

fn insert(slots: &mut Arms<Slots>, slot: u16, arm: usize) {
    let slots = if arm == 0 { &mut slots.stable } else { &mut slots.canary };
    slots.insert(slot);
}

/// The bucket of a request that did not fail.
fn latency(of: &Latencies, arm: usize, is_slow: bool, rng: &mut SmallRng) -> usize {
    let bucket = of.draw_one(arm, rng);
    if is_slow { (bucket + 3 * PER_DOUBLING).min(BUCKETS - 1) } else { bucket }
}

/// Draws how many come of which this many are to be expected.
fn draw(mean: f64) -> impl Fn(&mut SmallRng) -> u64 {
    let of = Poisson::new(mean).ok();
    // The cast saturates.
    move |rng| of.map_or(0, |of: Poisson<f64>| of.sample(rng) as u64)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rand::SeedableRng;

    use super::*;
    use crate::{model::histogram, simulate::scenario::Slowness};

    const HALF: ([f64; 2], [f64; 2]) = ([0.5, 0.5], [0.0, 0.0]);

    fn half() -> Weight {
        Weight::from_percent(50.0).unwrap()
    }

    #[test]
    fn as_many_come_and_fail_as_it_says() {
        let mut rng = SmallRng::seed_from_u64(5);
        let crowd = Crowd { heavy: 50, doomed: 2, slow: 0, light: 1_000 };
        let (mut clients, mut did) = (Clients::new(crowd, &mut rng), Default::default());
        (0..1_000).for_each(|_| clients.pass(100.0, HALF, None, &mut rng, &mut did));
        // Five standard deviations of 100,000 requests, and of 2,000 that fail.
        let sums = did.each_ref().map(|did| did.sample);
        let all = sums[0].requests + sums[1].requests;
        let failures = sums[0].failures + sums[1].failures;
        assert!((98_400..=101_600).contains(&all) && (1_776..=2_224).contains(&failures), "{sums:?}");
        let told = clients.told(half());
        assert_eq!(told.failed.first.stable + told.failed.first.canary, 2);
        let seen = told.seen.map(|seen| seen.users());
        // All 1,050, but for the estimate's own error.
        assert!((1_000..=1_100).contains(&(seen.stable + seen.canary)), "{seen:?}");
        clients.pass(100.0, HALF, None, &mut rng, &mut did);
        let told = clients.told(half());
        assert_eq!(told.failed.first, Arms { stable: 0, canary: 0 });
        clients.restart();
        assert_eq!(clients.told(Weight::ZERO).seen.stable.slots, 0);
    }

    #[test]
    fn who_waits_longer_is_slow_once() {
        let mut rng = SmallRng::seed_from_u64(5);
        let crowd = Crowd { heavy: 50, doomed: 0, slow: 2, light: 1_000 };
        let (mut clients, mut did) = (Clients::new(crowd, &mut rng), <[Did; 2]>::default());
        let latencies = Latencies::new(Slowness { share: 0.0, times: 1.0 });
        // Of the others' requests two in a million take longer, and of theirs one in three.
        let edge = histogram::index(Duration::from_millis(500));
        let timing = (&latencies, [None, Some(Arms { stable: edge, canary: edge })]);
        let mut pass = |clients: &mut Clients| {
            (0..100).for_each(|_| clients.pass(100.0, HALF, Some(timing), &mut rng, &mut did));
            clients.told(half()).slow.map(|slow| slow.first.stable + slow.first.canary)
        };
        assert_eq!([pass(&mut clients), pass(&mut clients)], [[0, 2], [0, 0]]);
        assert!(did.iter().all(|did| did.latency.total() == did.sample.requests));
        let slow: u64 = did.iter().map(|did| did.latency.above(edge)).sum();
        // Of two hundredths of 20,000 requests: five standard deviations of 131.
        assert!((74..=188).contains(&slow), "{slow}");
    }
}
