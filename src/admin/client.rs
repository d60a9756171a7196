//! A small client of the API, for the demo and the command line.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http::{HeaderName, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use super::problem::Problem;

/// Why the API did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers at the address.
    #[error("no admin API at {address}")]
    Connect {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// TLS could not be agreed on; most often the certificate is not trusted.
    #[error("no TLS with {address}")]
    Tls {
        /// The address.
        address: SocketAddr,
        /// What rustls said.
        #[source]
        source: std::io::Error,
    },
    /// The connection broke, or what came was not HTTP.
    #[error("the admin API broke the connection")]
    Http(#[from] hyper::Error),
    /// What came was not JSON.
    #[error("the admin API did not answer with JSON")]
    Json(#[from] serde_json::Error),
    /// The path or the token has characters that HTTP has no place for.
    #[error("a name or the token has characters that it cannot have")]
    Parts(#[source] http::Error),
    /// It refused, and said why.
    #[error("{}", .0.detail)]
    Refused(Problem),
}

/// A call of the API.
#[derive(Debug)]
pub struct Call<'a> {
    /// What the API is called there: host and port.
    pub host: &'a str,
    /// Who asks, where that has to be shown.
    pub token: Option<&'a str>,
    /// How TLS is spoken, and the name that the certificate has to be for; plain HTTP, if left out.
    pub tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    /// The method.
    pub method: Method,
    /// The path under `/api/v1`.
    pub path: &'a str,
    /// The body, as JSON.
    pub body: Option<&'a Value>,
    /// Fields beside those that every call has.
    pub fields: &'a [(HeaderName, String)],
}

/// Calls the API: `path` under `/api/v1`, with an optional JSON body.
///
/// # Errors
/// When nobody answers, or the answer is not a success.
pub async fn call(
    address: SocketAddr,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Result<Value, ClientError> {
    let host = &address.to_string();
    call_as(address, Call { host, token: None, tls: None, method, path, body, fields: &[] }).await
}

/// The same as somebody.
///
/// # Errors
/// When nobody answers, or the answer is not a success.
pub async fn call_as(address: SocketAddr, call: Call<'_>) -> Result<Value, ClientError> {
    let (host, token, path) = (call.host, call.token, call.path);
    let body = call.body.map(ToString::to_string).unwrap_or_default();
    let mut request = Request::builder()
        .method(call.method)
        .uri(format!("/api/v1{path}"))
        .header(header::HOST, host)
        .header(header::CONTENT_TYPE, "application/json");
    if let Some(token) = token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    for (name, value) in call.fields {
        request = request.header(name, value);
    }
    let request = request.body(Full::new(Bytes::from(body))).map_err(ClientError::Parts)?;
    let stream =
        TcpStream::connect(address).await.map_err(|source| ClientError::Connect { address, source })?;
    match call.tls {
        None => ask(stream, request).await,
        Some((config, name)) => {
            let agreed = TlsConnector::from(config).connect(name, stream).await;
            ask(agreed.map_err(|source| ClientError::Tls { address, source })?, request).await
        }
    }
}

async fn ask<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Value, ClientError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        Ok::<_, hyper::Error>((status, response.into_body().collect().await?.to_bytes()))
    };
    let mut exchange = std::pin::pin!(exchange);
    let (status, bytes) = tokio::select! {
        result = &mut exchange => result?,
        // It may have ended with the answer.
        _ended = connection => exchange.await?,
    };
    if status == StatusCode::OK {
        return Ok(serde_json::from_slice(&bytes)?);
    }
    Err(ClientError::Refused(serde_json::from_slice(&bytes)?))
}
