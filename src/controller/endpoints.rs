//! The canary's endpoints: what each has done since the rollout began, and what follows if one of them alone
//! is sick. The version is not to blame then; the endpoint is passed over, and the others show what the
//! version is like.

use std::{net::SocketAddr, time::Duration};

use super::{gained::sample, service::ServiceTask, status::EndpointStatus};
use crate::{
    analysis::{
        attribution::{Attribution, EJECTION, Suspect},
        explain::explain,
        verdict::Verdict,
    },
    clock,
    model::time::Timestamp,
    store::record::Kind,
    telemetry::{
        ledger::Key,
        reader::{Counted, Endpoints},
    },
};

/// How long after the decision a worker may still send somebody to the canary.
const SWAP: Duration = Duration::from_millis(10);

impl ServiceTask {
    /// A rollout begins: whatever the endpoints did before is another version's.
    pub(super) fn begin_endpoints(&mut self) {
        self.began = self.now.clone();
        self.suspect = Suspect::default();
        if let Some(key) = self.canary_key() {
            self.hub.health().backend(&key).cool();
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

    /// What each of the canary's endpoints has done since the rollout began.
    pub(super) fn endpoints(&self) -> Vec<EndpointStatus> {
        let counted = self.counted().into_iter();
        counted.map(|(endpoint, counted)| status(endpoint, counted)).collect()
    }

    /// Takes back what was concluded from the failures of one endpoint alone, and has it passed over.
    pub(super) fn tell_endpoint_from_version(&mut self, verdict: &mut Verdict, at: Timestamp) {
        let counted = self.counted();
        let samples: Vec<_> = counted.iter().map(|(_, counted)| sample(*counted)).collect();
        let name = |index: usize| counted[index].0.to_string().into();
        let attribution = self.suspect.attribute(verdict, at, &samples, name);
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

    pub(super) fn counted(&self) -> Vec<(SocketAddr, Counted)> {
        let Some(key) = self.canary_key() else { return Vec::new() };
        let of = |endpoints: &Endpoints<Counted>| endpoints.get(&key).cloned().unwrap_or_default();
        let began = of(&self.began.endpoints);
        let since = |(address, now): (SocketAddr, Counted)| {
            (address, now.since(began.get(&address).copied().unwrap_or_default()))
        };
        of(&self.now.endpoints).into_iter().map(since).collect()
    }

    /// The rollout's canary, whatever it has become.
    fn canary_key(&self) -> Option<Key> {
        let record = self.record.as_ref()?;
        Some(Key { service: self.config.name.clone(), backend: record.roles.canary()?.clone() })
    }
}

fn status(endpoint: SocketAddr, counted: Counted) -> EndpointStatus {
    let Counted { requests, failures } = counted;
    EndpointStatus { endpoint, requests, failures, error_rate: sample(counted).rate() }
}
