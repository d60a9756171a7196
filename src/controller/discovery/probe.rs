//! Asking an address whether it is well.

use anyhow::bail;
use http::{HeaderValue, Request, header};
use http_body_util::Full;

use super::{super::client, check::Subject};
use crate::{model::protocol::Protocol, routing::policy::Probe};

const USER_AGENT: HeaderValue = HeaderValue::from_static("tidegate-health-check");

/// Asks once, on a connection of its own.
///
/// # Errors
/// When the answer is not the right one, or there is none; what it says is for the log.
pub(super) async fn ask(probe: &Probe, subject: &Subject) -> anyhow::Result<()> {
    let endpoint = &subject.endpoint;
    let speaks = match probe {
        Probe::Tcp => endpoint.protocol,
        Probe::Http { .. } => Protocol::Http1,
        Probe::Grpc { .. } => Protocol::Http2,
    };
    let reach = client::Reach {
        host: &endpoint.host,
        address: subject.address,
        tls: subject.tls.as_deref(),
        send_proxy_protocol: subject.send_proxy_protocol,
    };
    let stream = client::connect(&reach, speaks).await?;
    match probe {
        Probe::Tcp => Ok(()),
        Probe::Http { path, host, expected_statuses } => {
            let request = Request::get(path)
                .header(header::HOST, host.clone().unwrap_or_else(|| endpoint.to_string()))
                .header(header::USER_AGENT, USER_AGENT)
                .header(header::CONNECTION, "close")
                .body(Full::default())?;
            let status = client::ask(stream, speaks, request, 0).await?.status;
            if !expected_statuses.iter().any(|expected| expected.contains(&status)) {
                bail!("status {status}");
            }
            Ok(())
        }
        Probe::Grpc { service } => {
            client::ask_health(stream, service, &endpoint.to_string(), USER_AGENT).await
        }
    }
}
