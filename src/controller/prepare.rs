//! Making sure that the canary is there before anybody is sent to it.

use std::time::Duration;

use tokio::{net::TcpStream, time};

use crate::{model::name::ServiceName, routing::snapshot::Endpoint};

/// How long one endpoint may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(2);
/// How long to wait before the next try.
const PAUSE: Duration = Duration::from_millis(500);
/// How long all of it may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// Waits until every endpoint has accepted a connection.
///
/// # Errors
/// When one of them has not within a minute: which, and what it said last.
pub(super) async fn endpoints_accept(service: ServiceName, endpoints: Vec<Endpoint>) -> Result<(), String> {
    let deadline = time::Instant::now() + DEADLINE;
    for endpoint in &endpoints {
        let Endpoint { host, port, protocol: _ } = endpoint;
        let mut told = false;
        loop {
            let attempt = time::timeout(CONNECT, TcpStream::connect((host.as_str(), *port))).await;
            let error = match attempt {
                Ok(Ok(_)) => break,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer".to_owned(),
            };
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
