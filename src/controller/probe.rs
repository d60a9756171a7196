//! One try of a probe: an endpoint of a canary is asked, as a request would reach it.

use http::{HeaderValue, Request, header};
use http_body_util::Full;
use tokio::time;

use super::client::{self, Reach};
use crate::{
    clock,
    config::probe::{Http, Probe, Question},
    model::{protocol::Protocol, units::format_duration},
    routing::snapshot::Endpoint,
};

const USER_AGENT: HeaderValue = HeaderValue::from_static("tidegate-probe");
/// Bytes of an answer that are looked at.
const MAX_BODY: usize = 1 << 20;

/// Asks once, on a connection of its own.
///
/// # Errors
/// What came instead of the right answer, in words that follow "got".
pub(super) async fn ask(probe: &Probe, endpoint: &Endpoint, reach: &Reach<'_>) -> Result<(), String> {
    let asked = async {
        match &probe.question {
            Question::Http(http) => ask_http(http, endpoint, reach).await,
            Question::Grpc { service } => {
                ask_grpc(service, endpoint, reach).await.map_err(|why| format!("{why:#} instead of SERVING"))
            }
        }
    };
    match time::timeout(probe.timeout, asked).await {
        Ok(asked) => asked,
        Err(_) => Err(format!("no answer within {}", format_duration(probe.timeout))),
    }
}

async fn ask_http(http: &Http, endpoint: &Endpoint, reach: &Reach<'_>) -> Result<(), String> {
    let began = clock::monotonic();
    let answer = async {
        let stream = client::connect(reach, endpoint.protocol).await?;
        client::ask(stream, endpoint.protocol, request(http, endpoint, reach.tls.is_some())?, MAX_BODY).await
    };
    let answer = answer.await.map_err(|why| format!("{why:#}"))?;
    http.expected.judge(answer.status, &answer.body, began.elapsed())
}

async fn ask_grpc(service: &str, endpoint: &Endpoint, reach: &Reach<'_>) -> anyhow::Result<()> {
    let stream = client::connect(reach, Protocol::Http2).await?;
    client::ask_health(stream, service, &endpoint.to_string(), USER_AGENT).await
}

fn request(http: &Http, endpoint: &Endpoint, is_tls: bool) -> http::Result<Request<Full<bytes::Bytes>>> {
    let Http { method, path, host, headers, body, expected: _ } = http;
    let host = host.clone().unwrap_or_else(|| endpoint.to_string());
    let request = Request::builder().method(method);
    let request = match endpoint.protocol {
        Protocol::Http1 => request.uri(path).header(header::HOST, host).header(header::CONNECTION, "close"),
        Protocol::Http2 => request.uri(format!("{}://{host}{path}", if is_tls { "https" } else { "http" })),
    };
    let request = match headers.iter().any(|(name, _)| name == header::USER_AGENT) {
        true => request,
        false => request.header(header::USER_AGENT, USER_AGENT),
    };
    let request = headers.iter().fold(request, |request, (name, value)| request.header(name, value));
    request.body(Full::new(body.clone()))
}
