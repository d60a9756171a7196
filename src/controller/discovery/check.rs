//! One address' checks, one after the other.

use std::{net::SocketAddr, sync::Arc};

use tokio::time;

use super::{
    probe,
    verdict::{Verdict, pause},
};
use crate::{
    clock,
    model::protocol::ProxyProtocol,
    routing::{policy::HealthCheck, snapshot::Endpoint},
    telemetry::{
        health::{BackendHealth, EndpointHealth},
        ledger::Hub,
    },
    tls::client::Connector,
};

/// Who is checked.
pub(super) struct Subject {
    pub(super) endpoint: Endpoint,
    pub(super) address: SocketAddr,
    /// How it speaks TLS, if it does.
    pub(super) tls: Option<Arc<Connector>>,
    /// The version of the PROXY protocol that it expects, if it does.
    pub(super) send_proxy_protocol: Option<ProxyProtocol>,
    pub(super) health: Arc<EndpointHealth>,
    pub(super) backend: Arc<BackendHealth>,
}

/// Checks until it is aborted.
pub(super) async fn run(subject: Subject, check: Arc<HealthCheck>, hub: Arc<Hub>) {
    let Subject { endpoint, address, health, backend, .. } = &subject;
    let mut verdict = Verdict::new();
    for round in 0.. {
        let asked = probe::ask(&check.probe, &subject);
        let asked = time::timeout(check.timeout, asked).await;
        let failure = match asked {
            Ok(Ok(())) => None,
            Ok(Err(why)) => Some(format!("{why:#}")),
            Err(_) => Some("no answer in time".to_owned()),
        };
        if let Some(healthy) = verdict.observe(failure.is_none(), &check) {
            health.checked(healthy, hub.health().millis(clock::monotonic()));
            backend.changed();
            match failure {
                Some(why) => tracing::warn!(%endpoint, %address, why, "an endpoint is unhealthy"),
                None => tracing::info!(%endpoint, %address, "an endpoint is healthy again"),
            }
        }
        time::sleep(pause(check.interval, *address, round)).await;
    }
}
