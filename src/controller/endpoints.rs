//! The canary's endpoints: what each has done since the rollout began, and what follows if one of them alone
//! is sick. The version is not to blame then; the endpoint is passed over, and the others show what the
//! version is like.

use std::{net::SocketAddr, time::Duration};

use super::{service::ServiceTask, status::EndpointStatus};
use crate::{
    analysis::{
        attribution::{Attribution, EJECTION},
        error_rate::Sample,
        explain::explain,
        verdict::Verdict,
    },
    clock,
    model::time::Timestamp,
    store::record::{Endpoints, Kind},
    telemetry::{ledger::Key, reader::Counted},
};

/// How long after the decision a worker may still send somebody to the canary.
const SWAP: Duration = Duration::from_millis(10);

impl ServiceTask {
    /// A rollout begins: whatever the endpoints did before is another version's.
    pub(super) fn begin_endpoints(&mut self) {
        self.endpoints = Endpoints::default();
        if let Some(key) = self.canary_key() {
            self.hub.health().backend(&key).cool();
        }
    }

    /// A tick: counts what each of them has done in it.
    pub(super) fn count_endpoints(&mut self) {
        let Some(key) = self.canary_key() else { return };
        let before = self.before.endpoints.get(&key);
        for (address, now) in self.now.endpoints.get(&key).into_iter().flatten() {
            let before = before.and_then(|before| before.get(address)).copied().unwrap_or_default();
            let Counted { requests, failures } = now.since(before);
            self.endpoints.counted.entry(*address).or_default().add(Sample { requests, failures });
        }
    }

    /// Ends what is still under way at the canary since before the rollout went back. What has come later was sent
    /// there by a rule or a preview, and goes on.
    pub(super) fn cut_canary(&self, went_back: Timestamp) {
        if let Some(key) = self.canary_key() {
            let health = self.hub.health();
            let ago = clock::now().since(went_back).saturating_sub(SWAP);
            let now = health.millis(clock::monotonic());
            health.cut(&key, now.saturating_sub(ago.as_millis() as u64));
        }
    }

    /// What each of the canary's endpoints that are there has done since the rollout began.
    pub(super) fn endpoint_status(&self) -> Vec<EndpointStatus> {
        let there = self.counted().filter(|(address, _)| self.is_there(*address));
        there.map(|(endpoint, counted)| status(endpoint, counted)).collect()
    }

    /// Takes back what was concluded from the failures of one endpoint alone, and has it passed over.
    pub(super) fn tell_endpoint_from_version(&mut self, verdict: &mut Verdict) {
        let mut suspect = std::mem::take(&mut self.endpoints.suspect);
        suspect.keep(|name| name.parse().is_ok_and(|address| self.is_there(address)));
        let counted: Vec<_> = self.counted().collect();
        let samples: Vec<_> = counted.iter().map(|(_, counted)| *counted).collect();
        let name = |index: usize| counted[index].0.to_string().into();
        let attribution = suspect.attribute(verdict, self.tick, &samples, name);
        self.endpoints.suspect = suspect;
        let Attribution::Endpoint { index } = attribution else { return };
        let (Some(key), (address, _)) = (self.canary_key(), counted[index]) else { return };
        let health = self.hub.health();
        let (backend, now) = (health.backend(&key), health.millis(clock::monotonic()));
        let until = now.saturating_add(EJECTION.as_millis() as u64);
        if backend.eject(address, now, until) {
            let why = explain(verdict);
            let what = format!("endpoint {address} of {} is passed over: {why}", key.backend);
            self.note(Kind::Endpoint, what);
        }
    }

    /// What each of them has done since the rollout began. Those that are gone are among them: what they have
    /// failed counts against the canary still.
    pub(super) fn counted(&self) -> impl Iterator<Item = (SocketAddr, Sample)> {
        self.endpoints.counted.iter().map(|(address, counted)| (*address, *counted))
    }

    pub(super) fn is_there(&self, address: SocketAddr) -> bool {
        self.canary_key()
            .and_then(|key| self.now.endpoints.get(&key))
            .is_some_and(|there| there.contains_key(&address))
    }

    /// The rollout's canary, whatever it has become.
    fn canary_key(&self) -> Option<Key> {
        let record = self.record.as_ref()?;
        Some(Key { service: self.config.name.clone(), backend: record.roles.canary()?.clone() })
    }
}

fn status(endpoint: SocketAddr, counted: Sample) -> EndpointStatus {
    let Sample { requests, failures } = counted;
    EndpointStatus { endpoint, requests, failures, error_rate: counted.rate() }
}
