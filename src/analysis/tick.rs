//! What an analysis is given once a tick.

use super::{error_rate::Sample, users::Users, verdict::Arms};
use crate::model::histogram::Histogram;

/// What one arm did in one tick.
#[derive(Debug, Clone, Copy)]
pub struct ArmTick<'a> {
    /// Attempts that ended and count for or against the backend.
    pub requests: u64,
    /// Those of them that failed.
    pub failures: u64,
    /// How long those took that did not fail.
    pub latency: &'a Histogram,
    /// The same of endpoints that are still warming up. They are in none of the above and compared
    /// with nothing, since a cold endpoint says little about its version.
    pub warming: Sample,
    /// The same of requests that were sent to the backend by something other than chance, if there were any.
    /// They are in none of the above and compared with nothing, since they may differ from those of the
    /// other arm; but limits hold for them too.
    pub sent: Option<Sent<'a>>,
    /// Failures of the canary that no user saw, since stable answered in its place. They are failures all
    /// the same; but they cost nobody anything.
    pub shielded: u64,
    /// Requests that none of the backend's endpoints could take: there was none that is usable, or no place. They are
    /// in none of the above, as no attempt was made; but users went without an answer.
    pub unserved: u64,
}

/// Requests that were sent to a backend by something other than chance.
#[derive(Debug, Clone, Copy)]
pub struct Sent<'a> {
    /// How many.
    pub sample: Sample,
    /// How long those took that did not fail.
    pub latency: &'a Histogram,
}

impl<'a> ArmTick<'a> {
    /// What an arm did of whose requests nothing is to be told apart.
    pub const fn new(requests: u64, failures: u64, latency: &'a Histogram) -> Self {
        Self {
            requests,
            failures,
            latency,
            warming: Sample { requests: 0, failures: 0 },
            sent: None,
            shielded: 0,
            unserved: 0,
        }
    }

    /// Counts are read while they grow, so a failure may be seen before its request.
    pub(super) fn sample(&self) -> Sample {
        Sample { requests: self.requests, failures: self.failures.min(self.requests) }
    }

    /// How many chance has brought, and of those that were not served, all.
    pub(super) fn drawn(&self) -> u64 {
        self.requests.saturating_add(self.warming.requests).saturating_add(self.unserved)
    }

    /// Those that were sent.
    pub(super) fn sent(&self) -> Sample {
        self.sent.map(|sent| sent.sample).unwrap_or_default()
    }

    /// Those for which limits hold: all but those of endpoints that are warming up.
    pub(super) fn warm(&self) -> Sample {
        let mut warm = self.sample();
        warm.add(self.sent());
        warm
    }

    /// All of them.
    pub(super) fn all(&self) -> Sample {
        let mut all = self.warm();
        all.add(self.warming);
        all
    }

    /// The same as users met them: what could not be taken has failed.
    pub(super) fn met(&self) -> Sample {
        self.with_unserved(self.all())
    }

    /// Those that are compared, likewise.
    pub(super) fn compared_as_met(&self) -> Sample {
        self.with_unserved(self.sample())
    }

    fn with_unserved(&self, mut sample: Sample) -> Sample {
        sample.add(Sample { requests: self.unserved, failures: self.unserved });
        sample
    }

    /// How long those took for which limits hold.
    pub(super) fn latencies(&self) -> impl Iterator<Item = &'a Histogram> + use<'a> {
        std::iter::once(self.latency).chain(self.sent.map(|sent| sent.latency))
    }
}

/// What both arms did in one tick.
#[derive(Debug, Clone, Copy)]
pub struct Tick<'a> {
    /// What stable did.
    pub stable: ArmTick<'a>,
    /// What the canary did.
    pub canary: ArmTick<'a>,
    /// The same by route, in the order in which the analysis was told of them; empty where requests
    /// are not counted by route. They are in the arms' counts as well.
    pub routes: &'a [Arms<Sample>],
    /// What is compared in place of requests, where users are the unit.
    pub users: Option<&'a Users>,
}

impl<'a> Tick<'a> {
    pub(super) fn samples(&self) -> Arms<Sample> {
        self.arms(ArmTick::sample)
    }

    /// The same of each arm.
    pub(super) fn arms<T>(&self, of: impl Fn(&ArmTick<'a>) -> T) -> Arms<T> {
        Arms { stable: of(&self.stable), canary: of(&self.canary) }
    }
}
