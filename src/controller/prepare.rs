//! Making sure that the canary is there before anybody is sent to it.

use std::time::Duration;

use tokio::{net::TcpStream, task::JoinSet, time};

use crate::{model::name::ServiceName, routing::snapshot::Endpoint};

/// How long one endpoint may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(2);
/// How long to wait before the next try.
const PAUSE: Duration = Duration::from_millis(500);
/// How long all of it may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// Whether one of these takes a connection now.
///
/// # Errors
/// When none does: what the last one said.
pub(super) async fn any_accepts(endpoints: &[Endpoint]) -> Result<(), String> {
    let mut tries: JoinSet<_> =
        endpoints.iter().cloned().map(|endpoint| async move { accepts(&endpoint).await }).collect();
    let mut last = "it has none".to_owned();
    while let Some(tried) = tries.join_next().await {
        match tried {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(why)) => last = why,
            Err(error) => last = error.to_string(),
        }
    }
    Err(last)
}

/// Whether it takes a connection now.
async fn accepts(Endpoint { host, port, protocol: _ }: &Endpoint) -> Result<(), String> {
    match time::timeout(CONNECT, TcpStream::connect((host.as_str(), *port))).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no answer".to_owned()),
    }
}

/// Waits until every endpoint has accepted a connection.
///
/// # Errors
/// When one of them has not within a minute: which, and what it said last.
pub(super) async fn endpoints_accept(service: ServiceName, endpoints: Vec<Endpoint>) -> Result<(), String> {
    let deadline = time::Instant::now() + DEADLINE;
    for endpoint in &endpoints {
        let mut told = false;
        loop {
            let Err(error) = accepts(endpoint).await else { break };
            if time::Instant::now() + PAUSE >= deadline {
                return Err(format!("endpoint {endpoint} takes no connection: {error}"));
            }
            if !std::mem::replace(&mut told, true) {
                tracing::warn!(%service, %endpoint, %error, "the rollout waits for the canary to take connections");
            }
            time::sleep(PAUSE).await;
        }
    }
    Ok(())
}
