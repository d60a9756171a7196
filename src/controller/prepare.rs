//! Making sure that the canary is there, and does what it should, before anybody is sent to it.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::{TcpStream, lookup_host},
    task::JoinSet,
    time::{self, Instant},
};

use super::{client::Reach, probe};
use crate::{
    config::probe::Probe,
    model::{name::ServiceName, protocol::ProxyProtocol},
    routing::snapshot::Endpoint,
    tls::client::Connector,
};

/// How long one endpoint may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(2);
/// How long to wait before the next try to connect.
const PAUSE: Duration = Duration::from_millis(500);

/// Whether one of these takes a connection now.
///
/// # Errors
/// When none does: what the last one said.
pub(super) async fn any_accepts(endpoints: &[Endpoint]) -> Result<(), String> {
    let mut tries: JoinSet<_> =
        endpoints.iter().cloned().map(|endpoint| async move { connect(&endpoint).await }).collect();
    let mut last = "it has none".to_owned();
    while let Some(tried) = tries.join_next().await {
        match tried {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(why)) => last = why,
            Err(error) => last = error.to_string(),
        }
    }
    Err(last)
}

/// Its addresses, if one of them takes a connection now.
async fn connect(Endpoint { host, port, protocol: _ }: &Endpoint) -> Result<Vec<SocketAddr>, String> {
    let attempt = async {
        let addresses: Vec<_> = lookup_host((host.as_str(), *port)).await?.collect();
        TcpStream::connect(&addresses[..]).await.map(|_| addresses)
    };
    match time::timeout(CONNECT, attempt).await {
        Ok(Ok(addresses)) => Ok(addresses),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no answer".to_owned()),
    }
}

/// A canary to be prepared.
#[derive(Debug)]
pub(super) struct Canary {
    pub(super) service: ServiceName,
    pub(super) endpoints: Vec<Endpoint>,
    /// How they speak TLS, if they do.
    pub(super) tls: Option<Arc<Connector>>,
    /// The version of the PROXY protocol that they expect, if they do.
    pub(super) send_proxy_protocol: Option<ProxyProtocol>,
    pub(super) probes: Vec<Probe>,
    /// How long all of it may take.
    pub(super) deadline: Duration,
}

/// Waits until every endpoint has accepted a connection and passed every probe, all endpoints at the same
/// time.
///
/// # Errors
/// When one of them has not within the deadline: which, and what came last instead of what.
pub(super) async fn prepare(canary: Canary) -> Result<(), String> {
    let Canary { service, endpoints, tls, send_proxy_protocol, probes, deadline } = canary;
    let until = Instant::now() + deadline;
    let probes: Arc<[Probe]> = probes.into();
    let mut preparing = JoinSet::new();
    for endpoint in endpoints {
        let (service, tls, probes) = (service.clone(), tls.clone(), Arc::clone(&probes));
        preparing.spawn(Subject { service, endpoint, tls, send_proxy_protocol, until }.prepare(probes));
    }
    while let Some(prepared) = preparing.join_next().await {
        prepared.unwrap_or_else(|panicked| Err(format!("preparing ended with a bug: {panicked}")))?;
    }
    Ok(())
}

/// One endpoint of it.
struct Subject {
    service: ServiceName,
    endpoint: Endpoint,
    tls: Option<Arc<Connector>>,
    send_proxy_protocol: Option<ProxyProtocol>,
    until: Instant,
}

impl Subject {
    async fn prepare(self, probes: Arc<[Probe]>) -> Result<(), String> {
        let addresses = self.accepts().await?;
        for address in addresses {
            for probe in probes.iter() {
                self.passes(probe, address).await?;
            }
        }
        Ok(())
    }

    /// Its addresses, once one of them has accepted a connection.
    async fn accepts(&self) -> Result<Vec<SocketAddr>, String> {
        let mut told = false;
        loop {
            let error = match connect(&self.endpoint).await {
                Ok(addresses) => return Ok(addresses),
                Err(error) => error,
            };
            let what = format!("endpoint {} takes no connection: {error}", self.endpoint);
            self.wait(PAUSE, what, &mut told).await?;
        }
    }

    /// One of its addresses has passed a probe as often in a row as it takes.
    async fn passes(&self, probe: &Probe, address: SocketAddr) -> Result<(), String> {
        let Probe { question, times, interval, .. } = probe;
        let place = match self.endpoint.host.parse::<IpAddr>() {
            Ok(_) => self.endpoint.to_string(),
            Err(_) => format!("{} ({address})", self.endpoint),
        };
        let subject = format!("the probe `{question}` of {place}");
        let (mut in_a_row, mut told, mut last) = (0, false, None);
        loop {
            let reach = Reach {
                host: &self.endpoint.host,
                address,
                tls: self.tls.as_deref(),
                send_proxy_protocol: self.send_proxy_protocol,
            };
            let asked = probe::ask(probe, &self.endpoint, &reach);
            let Ok(asked) = time::timeout_at(self.until, asked).await else {
                // What came before says more than that this one was cut short.
                return Err(last.unwrap_or_else(|| format!("{subject} got no answer before time was up")));
            };
            let Err(got) = asked else {
                in_a_row += 1;
                if in_a_row >= *times {
                    return Ok(());
                }
                let so_far = last.insert(format!("{subject} has passed {in_a_row} of {times} times")).clone();
                // Nothing to be told while it goes well.
                self.wait(*interval, so_far, &mut true).await?;
                continue;
            };
            in_a_row = 0;
            let what = last.insert(format!("{subject} got {got}")).clone();
            self.wait(*interval, what, &mut told).await?;
        }
    }

    /// Waits before the next try; what came of the last one is logged once.
    ///
    /// # Errors
    /// When there is no time for another one.
    async fn wait(&self, pause: Duration, what: String, told: &mut bool) -> Result<(), String> {
        if Instant::now() + pause >= self.until {
            return Err(what);
        }
        if !std::mem::replace(told, true) {
            let service = &self.service;
            tracing::warn!(%service, "the rollout waits for the canary: {what}");
        }
        time::sleep(pause).await;
        Ok(())
    }
}
