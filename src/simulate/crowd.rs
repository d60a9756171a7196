//! Clients that are pinned, and make very different numbers of requests: who comes, on which side, and who
//! fails for the first time.

use rand::{RngExt, rngs::SmallRng};
use rand_distr::{Distribution, Poisson};

use crate::{
    analysis::{
        error_rate::Sample,
        firsts::Once,
        users::{Seen, Users},
        verdict::Arms,
    },
    model::{
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
    /// Clients that make the rest, all as many.
    pub light: u16,
}

/// The clients of one course.
#[derive(Debug)]
pub(super) struct Clients {
    crowd: Crowd,
    /// Of heavy clients, the doomed ones first.
    heavy: Vec<u16>,
    /// Of light ones, in order.
    light: Vec<u16>,
    seen: Arms<Slots>,
    failed: Arms<Slots>,
    once: Once,
}

impl Clients {
    /// Lays them out over the slots, as another salt does each time.
    pub(super) fn new(crowd: Crowd, rng: &mut SmallRng) -> Self {
        let mut lay_out = |count| (0..count).map(|_| rng.random_range(0..SLOTS)).collect::<Vec<u16>>();
        let (heavy, mut light) = (lay_out(crowd.heavy), lay_out(crowd.light));
        light.sort_unstable();
        let (seen, failed, once) = Default::default();
        Self { crowd, heavy, light, seen, failed, once }
    }

    /// Lets so many requests come on average, of which stable and the canary get these shares and fail those of
    /// clients who are not doomed.
    pub(super) fn pass(
        &mut self,
        requests: f64,
        shares: [f64; 2],
        failing: [f64; 2],
        rng: &mut SmallRng,
    ) -> [Sample; 2] {
        let [of_stable, of_canary] = shares.map(|share| (share * f64::from(SLOTS)).round() as u16);
        let end = of_canary.saturating_add(of_stable);
        let mut samples = [Sample::default(); 2];
        let each = draw(requests / 100.0);
        for at in 0..self.heavy.len() {
            let slot = self.heavy[at];
            if slot >= end {
                continue;
            }
            let is_doomed = at < usize::from(self.crowd.doomed);
            let arm = usize::from(slot < of_canary);
            for _ in 0..each(rng) {
                let failed = is_doomed || rng.random::<f64>() < failing[arm];
                self.count(slot, arm, failed, &mut samples);
            }
        }
        let rest =
            requests * (1.0 - f64::from(self.crowd.heavy) / 100.0) / f64::from(self.crowd.light.max(1));
        let below = |slot: u16| self.light.partition_point(|light| *light < slot);
        let ranges = [below(of_canary)..below(end), 0..below(of_canary)];
        for (arm, range) in ranges.into_iter().enumerate().filter(|(_, range)| !range.is_empty()) {
            for _ in 0..draw(rest * range.len() as f64)(rng) {
                let slot = self.light[rng.random_range(range.clone())];
                let failed = rng.random::<f64>() < failing[arm];
                self.count(slot, arm, failed, &mut samples);
            }
        }
        samples
    }

    fn count(&mut self, slot: u16, arm: usize, failed: bool, samples: &mut [Sample; 2]) {
        samples[arm].add(Sample { requests: 1, failures: u64::from(failed) });
        let of = |arms: &mut Arms<Slots>| {
            if arm == 0 { arms.stable.insert(slot) } else { arms.canary.insert(slot) }
        };
        of(&mut self.seen);
        if failed {
            of(&mut self.failed);
        }
    }

    /// What of it counts, where the canary has had a weight since the last time.
    pub(super) fn told(&mut self, weight: Weight) -> Users {
        let canary = Slots::below(weight);
        let failed = self.once.take(self.failed.as_ref(), &canary, Arms::default());
        if self.once.is_half_used() {
            self.once.count_anew();
            self.failed = Arms::default();
        }
        let of = Arms { stable: Slots::all().without(&canary), canary };
        let seen = |seen: &Slots, of: &Slots| Seen { slots: seen.and(of).count(), of: of.count() };
        let seen =
            Arms { stable: seen(&self.seen.stable, &of.stable), canary: seen(&self.seen.canary, &of.canary) };
        Users { failed, seen, ..Users::default() }
    }

    /// A rollout begins.
    pub(super) fn restart(&mut self) {
        (self.seen, self.failed, self.once) = Default::default();
    }
}

/// Draws how many come of which this many are to be expected.
fn draw(mean: f64) -> impl Fn(&mut SmallRng) -> u64 {
    let of = Poisson::new(mean).ok();
    // The cast saturates.
    move |rng| of.map_or(0, |of: Poisson<f64>| of.sample(rng) as u64)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn as_many_come_and_fail_as_it_says() {
        let mut rng = SmallRng::seed_from_u64(5);
        let mut clients = Clients::new(Crowd { heavy: 50, doomed: 2, light: 1_000 }, &mut rng);
        let mut sums = [Sample::default(); 2];
        for _ in 0..1_000 {
            let did = clients.pass(100.0, [0.5, 0.5], [0.0, 0.0], &mut rng);
            sums.iter_mut().zip(did).for_each(|(sum, did)| sum.add(did));
        }
        // Five standard deviations of 100,000 requests, and of 2,000 that fail.
        let all = sums[0].requests + sums[1].requests;
        let failures = sums[0].failures + sums[1].failures;
        assert!((98_400..=101_600).contains(&all) && (1_776..=2_224).contains(&failures), "{sums:?}");
        let told = clients.told(Weight::from_percent(50.0).unwrap());
        assert_eq!(told.failed.first.stable + told.failed.first.canary, 2);
        let seen = told.seen.map(|seen| seen.users());
        // All 1,050, but for the estimate's own error.
        assert!((1_000..=1_100).contains(&(seen.stable + seen.canary)), "{seen:?}");
        clients.pass(100.0, [0.5, 0.5], [0.0, 0.0], &mut rng);
        let told = clients.told(Weight::from_percent(50.0).unwrap());
        assert_eq!(told.failed.first, Arms { stable: 0, canary: 0 });
        clients.restart();
        assert_eq!(clients.told(Weight::ZERO).seen.stable.slots, 0);
    }
}
