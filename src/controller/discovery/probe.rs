//! Asking an address whether it is well.

use std::pin::pin;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::{HeaderValue, Request, header};
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use super::{check::Subject, grpc};
use crate::{
    model::protocol::Protocol,
    routing::{policy::Probe, snapshot::Endpoint},
    tls::client::Connector,
};

const USER_AGENT: HeaderValue = HeaderValue::from_static("tidegate-health-check");
/// Bytes of an answer that are looked at; the right one has seven.
const MAX_ANSWER: usize = 1024;

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
    let stream = connect(subject, speaks).await?;
    match probe {
        Probe::Tcp => Ok(()),
        Probe::Http { path, host, expected_statuses } => {
            let host = host.clone().unwrap_or_else(|| endpoint.to_string());
            let status = http_status(stream, path, &host).await?;
            if !expected_statuses.iter().any(|expected| expected.contains(&status)) {
                bail!("status {status}");
            }
            Ok(())
        }
        Probe::Grpc { service } => grpc_serving(stream, service, endpoint).await,
    }
}

/// A connection's bytes, with or without TLS.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

async fn connect(subject: &Subject, speaks: Protocol) -> anyhow::Result<Box<dyn Stream>> {
    let mut stream = TcpStream::connect(subject.address).await.context("no connection")?;
    if let Some(version) = subject.send_proxy_protocol {
        stream.write_all(version.own()).await.context("no connection")?;
    }
    let Some(connector) = &subject.tls else { return Ok(Box::new(stream)) };
    let name = connector.server_name(&subject.endpoint.host).context("no name for the certificate")?;
    let stream = TlsConnector::from(connector.config(speaks)).connect(name, stream).await;
    let stream = stream.context("no TLS")?;
    if !Connector::is_agreed(speaks, stream.get_ref().1.alpn_protocol()) {
        bail!("it speaks another protocol than it is asked in");
    }
    Ok(Box::new(stream))
}

async fn http_status(stream: impl Stream + 'static, path: &str, host: &str) -> anyhow::Result<u16> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path)
        .header(header::HOST, host)
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())?;
    let exchange = async { Ok(sender.send_request(request).await?.status().as_u16()) };
    driven(exchange, connection).await
}

async fn grpc_serving(
    stream: impl Stream + 'static,
    service: &str,
    endpoint: &Endpoint,
) -> anyhow::Result<()> {
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    let request = Request::post(format!("http://{endpoint}/grpc.health.v1.Health/Check"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, USER_AGENT)
        .body(Full::new(Bytes::from(grpc::request(service))))?;
    let exchange = async {
        let (head, body) = sender.send_request(request).await?.into_parts();
        if head.status != http::StatusCode::OK {
            bail!("status {}", head.status);
        }
        let body = Limited::new(body, MAX_ANSWER).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!(error)).context("no whole answer")?;
        let status = body.trailers().unwrap_or(&head.headers).get("grpc-status");
        match status.map(HeaderValue::as_bytes) {
            Some(b"0") => {}
            Some(other) => bail!("grpc-status {}", String::from_utf8_lossy(other)),
            None => bail!("no grpc-status"),
        }
        match grpc::serving_status(&body.to_bytes()) {
            Some(grpc::SERVING) => Ok(()),
            Some(other) => bail!("serving status {other}"),
            None => bail!("the answer is no HealthCheckResponse"),
        }
    };
    driven(exchange, connection).await
}

/// Carries an exchange out on a connection that it drives meanwhile.
async fn driven<T>(
    exchange: impl Future<Output = anyhow::Result<T>>,
    connection: impl Future<Output = hyper::Result<()>>,
) -> anyhow::Result<T> {
    let mut exchange = pin!(exchange);
    tokio::select! {
        biased;
        done = &mut exchange => done,
        // What had come before the end is still to be read.
        _ended = connection => exchange.await,
    }
}
