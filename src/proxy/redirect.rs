//! The answer of a listener that only sends clients to HTTPS.

use std::{convert::Infallible, future::ready, num::NonZeroU16, rc::Rc};

use http::{HeaderValue, Request, Response, StatusCode, header, request};
use hyper::body::{Body as _, Incoming};

use super::{
    body::ResponseBody,
    client::Client,
    context::Context,
    error::ProxyError,
    headers::{ask_to_close, authority, check},
    log_entry::LogEntry,
    reply::Local,
};
use crate::telemetry::local_reason::LocalReason;

/// The port that a client looks for HTTPS at.
const HTTPS: u16 = 443;

/// Answers one request: it may be had by HTTPS, on this port. The request is not looked at further,
/// and its method stays the same (308).
pub fn redirect(
    context: &Context,
    client: &Rc<Client>,
    request: Request<Incoming>,
    port: NonZeroU16,
) -> impl Future<Output = Result<Response<ResponseBody>, Infallible>> + use<> {
    let busy = client.begin().logged(LogEntry::begin(context, client, &request));
    client.set_unread(!request.body().is_end_stream());
    let (parts, _body) = request.into_parts();
    let target = check(&parts, client.edge()).and_then(|()| location(&parts, port));
    let reason = target.as_ref().map_or_else(|error| error.reason(), |_| LocalReason::RedirectToHttps);
    context.cells().replied(reason);
    if let Some(entry) = busy.entry() {
        entry.replied(reason);
    }
    let mut response = match target {
        Ok(location) => {
            let mut response = Response::new(ResponseBody::local("308: this is to be had by HTTPS\n", busy));
            *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
            response.headers_mut().insert(header::LOCATION, location);
            response
        }
        Err(error) => Local::from(error).into_response(false, busy),
    };
    if let Some(entry) = response.body().entry() {
        entry.answered(response.status());
    }
    // Nobody has a second question.
    if parts.version != http::Version::HTTP_2 {
        ask_to_close(response.headers_mut());
    } else if client.is_used_up() {
        client.close();
    }
    ready(Ok(response))
}

/// The same target by HTTPS.
pub(super) fn location(parts: &request::Parts, port: NonZeroU16) -> Result<HeaderValue, ProxyError> {
    if parts.method == http::Method::CONNECT {
        return Err(ProxyError::ConnectMethod);
    }
    let authority = authority(parts)?;
    let host = match authority.rfind(']') {
        Some(bracket) => &authority[..=bracket],
        None => authority.split(':').next().unwrap_or(authority),
    };
    if host.is_empty() {
        return Err(ProxyError::BadHost);
    }
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    // `OPTIONS *` is about the server.
    let target = if target == "*" { "/" } else { target };
    let location = match port.get() {
        HTTPS => format!("https://{host}{target}"),
        port => format!("https://{host}:{port}{target}"),
    };
    HeaderValue::try_from(location).map_err(|_| ProxyError::BadHost)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(target: &str, host: &str, port: u16) -> Result<String, ProxyError> {
        let request = Request::builder().uri(target).header("host", host).body(()).unwrap();
        let port = NonZeroU16::new(port).unwrap();
        location(&request.into_parts().0, port).map(|location| location.to_str().unwrap().to_owned())
    }

    #[test]
    fn host_path_and_query_stay() {
        for (target, host, port, expected) in [
            ("/a?b=c", "web.test", 443, "https://web.test/a?b=c"),
            ("/", "web.test:80", 8443, "https://web.test:8443/"),
            ("/", "[::1]:80", 443, "https://[::1]/"),
            ("/", "[::1]", 443, "https://[::1]/"),
            ("http://web.test:8080/x", "web.test:8080", 443, "https://web.test/x"),
            ("*", "web.test", 443, "https://web.test/"),
            ("//evil.test/", "web.test", 443, "https://web.test//evil.test/"),
        ] {
            assert_eq!(to(target, host, port).as_deref(), Ok(expected));
        }
        assert_eq!(to("/", ":80", 443), Err(ProxyError::BadHost));
        assert_eq!(to("/", "a@b", 443), Err(ProxyError::BadHost));
    }
}
