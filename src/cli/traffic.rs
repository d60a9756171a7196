//! How much traffic a service has: as it is told, as a running instance says, or as Prometheus remembers.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::{Method, Request, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use super::args;
use crate::{admin::client, rollout::forecast::Traffic};

/// What is asked of a service, wherever that is to be learned.
pub(super) fn of(service: &str, args: &args::Plan) -> anyhow::Result<Traffic> {
    let source = &args.source;
    let Traffic { requests_per_second, failing } = match (source.rate, source.admin, &source.prometheus) {
        (Some(rate), ..) => Traffic { requests_per_second: rate, failing: USUALLY_FAILING },
        (_, Some(admin), _) => ask(running(admin, service))?,
        (.., Some(prometheus)) => ask(remembered(prometheus, service, args.query.as_deref()))?,
        _ => bail!("say how much traffic there is: --rate, --admin or --prometheus"),
    };
    if !(requests_per_second > 0.0 && requests_per_second <= 1e6) {
        bail!("service `{service}` has {requests_per_second} requests a second: give a --rate over 0");
    }
    Ok(Traffic { requests_per_second, failing: args.fails.unwrap_or(failing) })
}

fn ask(asked: impl Future<Output = anyhow::Result<Traffic>>) -> anyhow::Result<Traffic> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { tokio::time::timeout(PATIENCE, asked).await.context("no answer in time")? })
}

/// What a running instance has seen in the last ten to twenty seconds.
async fn running(admin: SocketAddr, service: &str) -> anyhow::Result<Traffic> {
    let status = client::call(admin, Method::GET, &format!("/services/{service}"), None).await?;
    let backends = status["backends"].as_array().map(Vec::as_slice).unwrap_or_default();
    let rate = |backend: &Value| backend["recent"]["requests_per_second"].as_f64();
    let stable = backends.iter().find(|backend| backend["role"] == "stable");
    Ok(Traffic {
        requests_per_second: backends.iter().filter_map(rate).sum(),
        failing: stable.and_then(|stable| stable["recent"]["error_rate"].as_f64()).unwrap_or(0.0),
    })
}

/// What Prometheus has seen in the last hour: of Tidegate's own metrics, or by a query for those who do not
/// run it yet.
async fn remembered(prometheus: &str, service: &str, query: Option<&str>) -> anyhow::Result<Traffic> {
    let rate =
        |labels: &str| format!("sum(rate(tidegate_requests_total{{service=\"{service}\"{labels}}}[1h]))");
    let asked = query.map_or_else(|| rate(""), ToOwned::to_owned);
    let requests = instant(prometheus, &asked).await?;
    let requests = requests.with_context(|| format!("Prometheus knows nothing of `{asked}`"))?;
    let failing = match query {
        Some(_) => Some(USUALLY_FAILING),
        None => {
            let failed = rate(&format!(",role=\"stable\",status=~\"{FAILURES}\""));
            instant(prometheus, &format!("{failed} / {}", rate(",role=\"stable\""))).await?
        }
    };
    Ok(Traffic {
        requests_per_second: requests,
        failing: failing.filter(|share| share.is_finite()).unwrap_or(0.0),
    })
}

/// The value of a query now, if it has one.
async fn instant(prometheus: &str, query: &str) -> anyhow::Result<Option<f64>> {
    let base: Uri = prometheus.parse().with_context(|| format!("`{prometheus}` is not a URL"))?;
    let (Some("http"), Some(authority)) = (base.scheme_str(), base.authority()) else {
        bail!("write Prometheus as a URL such as http://127.0.0.1:9090, not `{prometheus}`");
    };
    let port = authority.port_u16().unwrap_or(80);
    let stream = TcpStream::connect((authority.host().trim_matches(['[', ']']), port)).await;
    let stream = stream.with_context(|| format!("cannot reach {prometheus}"))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("{}/api/v1/query", base.path().trim_end_matches('/')))
        .header(header::HOST, authority.as_str())
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(Full::new(Bytes::from(format!("query={}", form_encoded(query)))))?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), LONGEST_ANSWER).collect().await;
    let body = body.map_err(anyhow::Error::from_boxed)?.to_bytes();
    connection.abort();
    let answer: Value = serde_json::from_slice(&body)
        .with_context(|| format!("{prometheus} does not answer like Prometheus ({status})"))?;
    if let Some(error) = answer["error"].as_str() {
        bail!("Prometheus refuses `{query}`: {error}");
    }
    // A vector has series with a value each, a scalar is one value; both are [time, "number"].
    let data = &answer["data"];
    let value =
        if data["resultType"] == "scalar" { &data["result"][1] } else { &data["result"][0]["value"][1] };
    Ok(value.as_str().and_then(|number| number.parse().ok()))
}

fn form_encoded(text: &str) -> String {
    let encode = |byte: u8| {
        if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") }
    };
    text.bytes().map(encode).collect()
}

/// The share of requests that stable fails, where nobody knows better.
const USUALLY_FAILING: f64 = 0.001;
/// Values of `status` that are failures.
const FAILURES: &str = "5xx|connect_failure|timeout|reset|grpc_failure";
const PATIENCE: Duration = Duration::from_secs(10);
const LONGEST_ANSWER: usize = 1 << 20;
