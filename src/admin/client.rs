//! A small client of the API, for the demo and the command line.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

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
    /// The connection broke, or what came was not HTTP.
    #[error("the admin API broke the connection")]
    Http(#[from] hyper::Error),
    /// What came was not JSON.
    #[error("the admin API did not answer with JSON")]
    Json(#[from] serde_json::Error),
    /// It refused, and said why.
    #[error("{}", .0.detail)]
    Refused(Problem),
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
    let stream =
        TcpStream::connect(address).await.map_err(|source| ClientError::Connect { address, source })?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let body = body.map(ToString::to_string).unwrap_or_default();
    let request = Request::builder()
        .method(method)
        .uri(format!("/api/v1{path}"))
        .header(header::HOST, address.to_string())
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))
        .expect("the parts are valid");
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        Ok::<_, hyper::Error>((status, response.into_body().collect().await?.to_bytes()))
    };
    let (status, bytes) = tokio::select! {
        result = exchange => result?,
        ended = connection => return Err(ended.err().map_or_else(broken, ClientError::Http)),
    };
    if status == StatusCode::OK {
        return Ok(serde_json::from_slice(&bytes)?);
    }
    Err(ClientError::Refused(serde_json::from_slice(&bytes)?))
}

fn broken() -> ClientError {
    let detail = "the connection was closed before the reply was complete".to_owned();
    ClientError::Refused(Problem { status: 502, title: "Bad Gateway".to_owned(), detail })
}
