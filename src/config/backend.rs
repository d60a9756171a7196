//! `[services.NAME.backends.NAME]`: sets of endpoints that run one version.

use std::{collections::BTreeMap, ops::Range};

use serde::Deserialize;
use toml::Spanned;

use super::{
    Backend, Endpoint,
    backend_tls::{self, RawBackendTls},
    host,
    report::Report,
    written::{Section, Table, Text, name},
};
use crate::model::protocol::{Protocol, ProxyProtocol};

/// `[services.NAME.backends.NAME]` as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawBackend {
    endpoints: Option<Spanned<Vec<Text>>>,
    tls: Option<Spanned<Table<RawBackendTls>>>,
    send_proxy_protocol: Option<Text>,
}

impl Section for RawBackend {
    const HEADER: &'static str = "[services.NAME.backends.NAME]";
}

/// Backends by the names they are written with.
pub(super) type RawBackends = BTreeMap<Text, Table<RawBackend>>;

/// The backends of one service.
pub(super) fn lower(raw: RawBackends, report: &mut Report<'_>) -> Vec<Backend> {
    raw.into_iter()
        .filter_map(|(written, Table(RawBackend { endpoints, tls, send_proxy_protocol }))| {
            let name = name(&written, "backend", report);
            let (endpoints, https) = lower_endpoints(&written, endpoints, report);
            let tls = backend_tls::lower(tls, https, report);
            let send_proxy_protocol =
                send_proxy_protocol.and_then(|version| lower_proxy_protocol(&version, &endpoints, report));
            Some(Backend { name: name?, endpoints, tls, send_proxy_protocol })
        })
        .collect()
}

/// The version of the PROXY protocol that endpoints are sent.
fn lower_proxy_protocol(
    written: &Text,
    endpoints: &[Endpoint],
    report: &mut Report<'_>,
) -> Option<ProxyProtocol> {
    let version = match written.get_ref().as_str() {
        "v1" => ProxyProtocol::V1,
        "v2" => ProxyProtocol::V2,
        other => {
            report
                .error(written.span(), format!("`{other}` is not a version of the PROXY protocol"))
                .help("write `\"v1\"` or `\"v2\"`");
            return None;
        }
    };
    if endpoints.iter().any(|endpoint| endpoint.protocol == Protocol::Http2) {
        report
            .error(written.span(), "a connection of HTTP/2 has the requests of many clients, and one PROXY header")
            .help("write the endpoints as `http://HOST:PORT` or `https://HOST:PORT`, or remove `send_proxy_protocol`: `X-Forwarded-For` names each request's client");
    }
    Some(version)
}

/// The endpoints, and where the first one stands that speaks TLS.
fn lower_endpoints(
    backend: &Text,
    written: Option<Spanned<Vec<Text>>>,
    report: &mut Report<'_>,
) -> (Vec<Endpoint>, Option<Range<usize>>) {
    let place = written.as_ref().map_or_else(|| backend.span(), Spanned::span);
    let written = written.map(Spanned::into_inner).unwrap_or_default();
    if written.is_empty() {
        report
            .error(
                place,
                format!("backend `{}` has no endpoint, so it could serve nothing", backend.get_ref()),
            )
            .help("write at least one: `endpoints = [\"http://127.0.0.1:9001\"]`");
    }
    let mut endpoints = Vec::with_capacity(written.len());
    let (mut https, mut http) = (None, None);
    for written in written {
        match parse(written.get_ref()) {
            Err(InvalidEndpoint { problem, remedy }) => {
                report.error(written.span(), problem).help(remedy);
            }
            Ok((endpoint, _)) if endpoints.iter().any(|other| same_place(other, &endpoint)) => {
                let Endpoint { host, port, protocol: _ } = &endpoint;
                let problem = format!("`{host}` with port {port} is in `{}` twice", backend.get_ref());
                report.error(written.span(), problem).help("name each endpoint once; all get the same share");
            }
            Ok((endpoint, scheme)) => {
                endpoints.push(endpoint);
                let first = if scheme == Scheme::Https { &mut https } else { &mut http };
                first.get_or_insert(written.span());
            }
        }
    }
    if let (Some(https), Some(http)) = (&https, http) {
        let later = if https.start > http.start { https.clone() } else { http };
        report
            .error(later, format!("backend `{}` has endpoints with TLS and without", backend.get_ref()))
            .help("its endpoints run one version of one application: write all of them in the same way");
    }
    (endpoints, https)
}

/// What an endpoint speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scheme {
    Http,
    Https,
}

/// Whether two endpoints are one, whatever is spoken there.
fn same_place(a: &Endpoint, b: &Endpoint) -> bool {
    (&a.host, a.port) == (&b.host, b.port)
}

/// Why a text is not an endpoint.
#[derive(Debug)]
struct InvalidEndpoint {
    problem: String,
    remedy: String,
}

/// Reads `http://HOST:PORT` or `https://HOST:PORT` for HTTP/1.1, `h2c://HOST:PORT` or `h2://HOST:PORT` for
/// HTTP/2. A path has no place in it: a request goes on with the path it came with.
fn parse(text: &str) -> Result<(Endpoint, Scheme), InvalidEndpoint> {
    let invalid =
        |remedy: String| InvalidEndpoint { problem: format!("`{text}` is not an endpoint"), remedy };
    let Some((scheme, authority)) = text.split_once("://") else {
        let fine = parse(&format!("http://{text}")).is_ok();
        let example = if fine { text } else { "127.0.0.1:9001" };
        return Err(invalid(format!("write it as a URL: `\"http://{example}\"`")));
    };
    let (scheme, protocol, port) = match scheme.to_ascii_lowercase().as_str() {
        "http" => (Scheme::Http, Protocol::Http1, 80),
        "h2c" => (Scheme::Http, Protocol::Http2, 80),
        "https" => (Scheme::Https, Protocol::Http1, 443),
        "h2" => (Scheme::Https, Protocol::Http2, 443),
        "grpc" => return Err(invalid(format!("write `\"h2c://{authority}\"`: gRPC is HTTP/2"))),
        "grpcs" => return Err(invalid(format!("write `\"h2://{authority}\"`: gRPC is HTTP/2"))),
        _ => {
            let remedy = "write `http://HOST:PORT` or, with TLS, `https://HOST:PORT`; for HTTP/2 `h2c://HOST:PORT` or, with TLS, `h2://HOST:PORT`";
            return Err(invalid(remedy.to_owned()));
        }
    };
    if authority.contains('@') {
        return Err(invalid("write it without user name and password".to_owned()));
    }
    if let Some(at) = authority.find(['/', '?', '#']) {
        let shorter = &authority[..at];
        return Err(invalid(format!(
            "write only `\"{}{shorter}\"`: a request keeps the path that it came with",
            &text[..text.len() - authority.len()],
        )));
    }
    let (host, port) = split_port(authority, port).map_err(invalid)?;
    let host = host::parse(host).map_err(|fault| invalid(fault.0.to_owned()))?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    Ok((Endpoint { host, port, protocol }, scheme))
}

/// Host, with brackets if it has them, and port; or what to write instead.
fn split_port(authority: &str, default: u16) -> Result<(&str, u16), String> {
    let colon = match authority.rfind(']') {
        Some(bracket) => authority[bracket..].find(':').map(|at| bracket + at),
        None => authority.find(':'),
    };
    let Some(colon) = colon else { return Ok((authority, default)) };
    if authority[colon + 1..].contains(':') {
        return Err(format!("write an IPv6 address in brackets: `\"http://[{authority}]\"`"));
    }
    match authority[colon + 1..].parse() {
        Ok(0) | Err(_) => Err("a port is a number from 1 to 65535".to_owned()),
        Ok(port) => Ok((&authority[..colon], port)),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{errors, parsed},
        *,
    };

    fn endpoint(host: &str, port: u16) -> Endpoint {
        Endpoint { host: host.to_owned(), port, protocol: Protocol::Http1 }
    }

    #[test]
    fn endpoints_are_urls() {
        for (text, host, port) in [
            ("http://127.0.0.1:9001", "127.0.0.1", 9001),
            ("http://App.example", "app.example", 80),
            ("HTTP://[::1]:9001", "::1", 9001),
            ("http://[0::1]", "::1", 80),
            ("https://app", "app", 443),
        ] {
            let scheme = if port == 443 { Scheme::Https } else { Scheme::Http };
            assert_eq!(parse(text).unwrap(), (endpoint(host, port), scheme));
        }
    }

    #[test]
    fn h2c_is_http_2_without_tls_and_h2_with() {
        let http_2 = |port| Endpoint { protocol: Protocol::Http2, ..endpoint("a", port) };
        assert_eq!(parse("H2C://a:9001").unwrap(), (http_2(9001), Scheme::Http));
        assert_eq!(parse("h2://a").unwrap(), (http_2(443), Scheme::Https));
    }

    #[test]
    fn the_remedy_is_what_was_probably_meant() {
        for (text, expected) in [
            ("127.0.0.1:9001", "write it as a URL: `\"http://127.0.0.1:9001\"`"),
            ("", "write it as a URL: `\"http://127.0.0.1:9001\"`"),
            ("grpcs://a", "write `\"h2://a\"`: gRPC is HTTP/2"),
            ("grpc://a:1", "write `\"h2c://a:1\"`: gRPC is HTTP/2"),
            ("h2c://a:80/x", "write only `\"h2c://a:80\"`: a request keeps the path that it came with"),
            (
                "ftp://a",
                "write `http://HOST:PORT` or, with TLS, `https://HOST:PORT`; for HTTP/2 `h2c://HOST:PORT` or, with TLS, `h2://HOST:PORT`",
            ),
            ("http://a:80/", "write only `\"http://a:80\"`: a request keeps the path that it came with"),
            ("https://a/b", "write only `\"https://a\"`: a request keeps the path that it came with"),
            ("http://me:secret@a", "write it without user name and password"),
            ("http://::1", "write an IPv6 address in brackets: `\"http://[::1]\"`"),
            ("http://a:0", "a port is a number from 1 to 65535"),
            ("http://a:", "a port is a number from 1 to 65535"),
            ("http://a:70000", "a port is a number from 1 to 65535"),
            ("http://", "the host is missing"),
            ("http://:80", "the host is missing"),
            ("http://[::1]x", "what stands in the brackets is not an IPv6 address"),
        ] {
            assert_eq!(parse(text).unwrap_err().remedy, expected, "{text}");
        }
    }

    #[test]
    fn the_proxy_protocol_is_for_connections_of_one_client() {
        let of = |backend: &str| format!("[services.web.backends.v2]\n{backend}");
        let v2 = |text: &str| parsed(&of(text)).services[0].backends[1].send_proxy_protocol;
        assert_eq!(v2("endpoints = ['http://a']"), None);
        let sent = "endpoints = ['http://a']\nsend_proxy_protocol = ";
        assert_eq!(v2(&format!("{sent}'v1'")), Some(ProxyProtocol::V1));
        assert_eq!(v2(&format!("{sent}'v2'")), Some(ProxyProtocol::V2));
        assert_eq!(errors(&of(&format!("{sent}'2'"))), ["`2` is not a version of the PROXY protocol"]);
        let shared = "endpoints = ['http://a', 'h2c://b']\nsend_proxy_protocol = 'v2'";
        let many = "a connection of HTTP/2 has the requests of many clients, and one PROXY header";
        assert_eq!(errors(&of(shared)), [many]);
    }

    #[test]
    fn every_endpoint_is_checked_and_named_once() {
        let v2 = "[services.web.backends.v2]\nendpoints = ['http://a', 'b', 'h2c://A:80', 'http://c']";
        assert_eq!(errors(v2), ["`b` is not an endpoint", "`a` with port 80 is in `v2` twice"]);
        let mixed = "[services.web.backends.v2]\nendpoints = ['http://a', 'https://b', 'https://c']";
        assert_eq!(errors(mixed), ["backend `v2` has endpoints with TLS and without"]);
        let none = "backend `v2` has no endpoint, so it could serve nothing";
        assert_eq!(errors("[services.web.backends.v2]\nendpoints = []"), [none]);
        assert_eq!(errors("[services.web.backends.v2]"), [none]);
        assert_eq!(parsed("").services[0].backends[0].endpoints, [endpoint("127.0.0.1", 9001)]);
    }
}
