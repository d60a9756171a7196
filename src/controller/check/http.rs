//! A GET, and a number in the JSON that it answers.

use std::sync::Arc;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::Full;
use serde_json::Value;

use crate::{
    controller::{
        client::{self, Answer},
        hook::shown,
    },
    model::protocol::Protocol,
    tls::client::{Client as Tls, Connector, Settings},
};

const USER_AGENT: HeaderValue = HeaderValue::from_static("tidegate-check");
/// Bytes that an answer may have.
const MAX_ANSWER: usize = 1024 * 1024;

/// Who asks.
#[derive(Debug)]
pub(super) struct Client {
    tls: Option<Arc<Connector>>,
}

impl Client {
    /// One that speaks TLS so, if it is to.
    ///
    /// # Errors
    /// When it cannot, and why.
    pub(super) fn new(tls: &Settings, is_https: bool) -> Result<Self, String> {
        let tls = is_https.then(|| Tls::new(tls.clone())).transpose();
        let tls = tls.map_err(|error| error.to_string())?;
        Ok(Self { tls: tls.map(|tls| Arc::clone(tls.connector())) })
    }

    /// The number at a place in the JSON that a URL answers; nothing if there is none.
    ///
    /// # Errors
    /// When there is no answer, it is not a success, or there is something else in its place.
    pub(super) async fn number(&self, url: &str, pointer: &str) -> anyhow::Result<Option<f64>> {
        let (status, body) = self.get(url).await?;
        if !status.is_success() {
            bail!("status {}", status.as_u16());
        }
        number(&serde_json::from_slice(&body).context("the answer is not JSON")?, pointer)
    }

    /// Asks once, on a connection of its own.
    ///
    /// # Errors
    /// When there is no whole answer.
    pub(super) async fn get(&self, url: &str) -> anyhow::Result<(StatusCode, Bytes)> {
        let uri: Uri = url.parse().with_context(|| format!("`{url}` is not a URL"))?;
        let authority = uri.authority().context("the URL has no host")?;
        let request = Request::get(uri.path_and_query().map_or("/", |target| target.as_str()))
            .header(header::HOST, authority.as_str())
            .header(header::USER_AGENT, USER_AGENT)
            .header(header::ACCEPT, "application/json")
            .header(header::CONNECTION, "close")
            .body(Full::default())?;
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let port = uri.port_u16().unwrap_or_else(|| if self.tls.is_some() { 443 } else { 80 });
        let stream = client::connect_to((host, port), self.tls.as_deref(), Protocol::Http1).await?;
        let Answer { status, body } = client::ask(stream, Protocol::Http1, request, MAX_ANSWER).await?;
        Ok((StatusCode::from_u16(status)?, body))
    }
}

/// The number at a place; also one in quotes, as many write it so that no digit is lost.
fn number(value: &Value, pointer: &str) -> anyhow::Result<Option<f64>> {
    match value.pointer(pointer) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Number(number)) => Ok(number.as_f64()),
        Some(Value::String(text)) => match text.parse::<f64>() {
            Ok(number) => Ok((!number.is_nan()).then_some(number)),
            Err(_) => bail!("`{}` is no number", shown(text.as_bytes())),
        },
        Some(_) => bail!("there is no number at `{pointer}`, but something else"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_number_is_found_where_it_is_said_to_be() {
        let answer =
            json!({ "a": [{ "b/c": 1.5 }, "2e3", "NaN"], "d": null, "e": "much", "f": "\u{1b}[31mmuch" });
        let at = |pointer| number(&answer, pointer).map_err(|error| error.to_string());
        assert_eq!((at("/a/0/b~1c"), at("/a/1")), (Ok(Some(1.5)), Ok(Some(2000.0))));
        for none in ["/a/2", "/d", "/x", "/a/9"] {
            assert_eq!(at(none), Ok(None), "{none}");
        }
        assert_eq!(at("/e"), Err("`much` is no number".to_owned()));
        assert_eq!(at("/f"), Err("`[31mmuch` is no number".to_owned()));
        assert!(at("/a").is_err() && at("").is_err());
        assert_eq!(number(&json!(7), "").unwrap(), Some(7.0));
    }
}
