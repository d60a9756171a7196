//! Asking somebody something over HTTP, on a connection of its own: what health checks, probes and hooks
//! do. No redirect is followed and no proxy is asked: who is asked is who was named.

use std::{net::SocketAddr, pin::pin};

use anyhow::{Context as _, anyhow, bail};
use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    net::{TcpStream, lookup_host},
};
use tokio_rustls::TlsConnector;

use super::grpc;
use crate::{
    model::protocol::{Protocol, ProxyProtocol},
    tls::client::Connector,
};

/// Bytes of an answer about health that are looked at; the right one has seven.
const MAX_HEALTH: usize = 1024;

/// A connection's bytes, with or without TLS.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// What somebody has answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Bytes,
}

/// Whom to ask, and how they are reached.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reach<'a> {
    pub(super) host: &'a str,
    pub(super) address: SocketAddr,
    /// How they speak TLS, if they do.
    pub(super) tls: Option<&'a Connector>,
    /// The version of the PROXY protocol that they expect, if they do.
    pub(super) send_proxy_protocol: Option<ProxyProtocol>,
}

/// Connects.
///
/// # Errors
/// When there is no connection, or it does not speak what it should.
pub(super) async fn connect(reach: &Reach<'_>, speaks: Protocol) -> anyhow::Result<Box<dyn Stream>> {
    let mut stream = TcpStream::connect(reach.address).await.context("no connection")?;
    if let Some(version) = reach.send_proxy_protocol {
        stream.write_all(version.own()).await.context("no connection")?;
    }
    let Some(connector) = reach.tls else { return Ok(Box::new(stream)) };
    let name = connector.server_name(reach.host).context("no name for the certificate")?;
    let stream = TlsConnector::from(connector.config(speaks)).connect(name, stream).await;
    let stream = stream.context("no TLS")?;
    if !Connector::is_agreed(speaks, stream.get_ref().1.alpn_protocol()) {
        bail!("it speaks another protocol than it is asked in");
    }
    Ok(Box::new(stream))
}

/// Connects to the first address of a host that takes a connection.
///
/// # Errors
/// When the host has no address, or what the last one said.
pub(super) async fn connect_to(
    (host, port): (&str, u16),
    tls: Option<&Connector>,
    speaks: Protocol,
) -> anyhow::Result<Box<dyn Stream>> {
    let mut last = anyhow!("no address");
    for address in lookup_host((host, port)).await.context("no address")? {
        match connect(&Reach { host, address, tls, send_proxy_protocol: None }, speaks).await {
            Ok(stream) => return Ok(stream),
            Err(why) => last = why,
        }
    }
    Err(last)
}

/// Asks, and takes an answer with the first `most` bytes of its body; the rest is not waited for.
///
/// # Errors
/// When there is no answer.
pub(super) async fn ask(
    stream: Box<dyn Stream>,
    speaks: Protocol,
    request: Request<Full<Bytes>>,
    most: usize,
) -> anyhow::Result<Answer> {
    let stream = TokioIo::new(stream);
    match speaks {
        Protocol::Http1 => {
            let (mut sender, connection) = http1::handshake(stream).await?;
            driven(async { taken(sender.send_request(request).await?, most).await }, connection).await
        }
        Protocol::Http2 => {
            let (mut sender, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
            driven(async { taken(sender.send_request(request).await?, most).await }, connection).await
        }
    }
}

async fn taken(response: http::Response<Incoming>, most: usize) -> anyhow::Result<Answer> {
    let (head, mut body) = response.into_parts();
    let mut kept = BytesMut::new();
    while kept.len() < most {
        let Some(frame) = body.frame().await else { break };
        if let Ok(data) = frame.context("no whole answer")?.into_data() {
            kept.extend_from_slice(&data[..data.len().min(most - kept.len())]);
        }
    }
    Ok(Answer { status: head.status.as_u16(), body: kept.freeze() })
}

/// Asks in gRPC whether `service` is well, or the server as a whole where that is empty.
///
/// # Errors
/// When it does not answer with `SERVING`.
pub(super) async fn ask_health(
    stream: Box<dyn Stream>,
    service: &str,
    authority: &str,
    user_agent: HeaderValue,
) -> anyhow::Result<()> {
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    let request = Request::post(format!("http://{authority}/grpc.health.v1.Health/Check"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, user_agent)
        .body(Full::new(Bytes::from(grpc::request(service))))?;
    let exchange = async {
        let (head, body) = sender.send_request(request).await?.into_parts();
        if head.status != http::StatusCode::OK {
            bail!("status {}", head.status);
        }
        let body = Limited::new(body, MAX_HEALTH).collect().await;
        let body = body.map_err(|error| anyhow!(error)).context("no whole answer")?;
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
