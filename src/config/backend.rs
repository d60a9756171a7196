//! `[services.NAME.backends.NAME]`: sets of endpoints that run one version.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Spanned;

use super::{
    Backend, Endpoint, host,
    report::Report,
    written::{Section, Table, Text, name},
};
use crate::routing::snapshot::Protocol;

/// `[services.NAME.backends.NAME]` as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawBackend {
    endpoints: Option<Spanned<Vec<Text>>>,
}

impl Section for RawBackend {
    const HEADER: &'static str = "[services.NAME.backends.NAME]";
}

/// Backends by the names they are written with.
pub(super) type RawBackends = BTreeMap<Text, Table<RawBackend>>;

/// The backends of one service.
pub(super) fn lower(raw: RawBackends, report: &mut Report<'_>) -> Vec<Backend> {
    raw.into_iter()
        .filter_map(|(written, Table(RawBackend { endpoints }))| {
            let name = name(&written, "backend", report);
            let endpoints = lower_endpoints(&written, endpoints, report);
            Some(Backend { name: name?, endpoints })
        })
        .collect()
}

fn lower_endpoints(
    backend: &Text,
    written: Option<Spanned<Vec<Text>>>,
    report: &mut Report<'_>,
) -> Vec<Endpoint> {
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
    for written in written {
        match parse(written.get_ref()) {
            Err(InvalidEndpoint { problem, remedy }) => {
                report.error(written.span(), problem).help(remedy);
            }
            Ok(endpoint) if endpoints.iter().any(|other| same_place(other, &endpoint)) => {
                let Endpoint { host, port, protocol: _ } = &endpoint;
                let problem = format!("`{host}` with port {port} is in `{}` twice", backend.get_ref());
                report.error(written.span(), problem).help("name each endpoint once; all get the same share");
            }
            Ok(endpoint) => endpoints.push(endpoint),
        }
    }
    endpoints
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

/// Reads `http://HOST:PORT` or `h2c://HOST:PORT`. A path has no place in it: a request goes on with the path it came
/// with.
fn parse(text: &str) -> Result<Endpoint, InvalidEndpoint> {
    let invalid =
        |remedy: String| InvalidEndpoint { problem: format!("`{text}` is not an endpoint"), remedy };
    let Some((scheme, authority)) = text.split_once("://") else {
        let fine = parse(&format!("http://{text}")).is_ok();
        let example = if fine { text } else { "127.0.0.1:9001" };
        return Err(invalid(format!("write it as a URL: `\"http://{example}\"`")));
    };
    let scheme = scheme.to_ascii_lowercase();
    let protocol = match scheme.as_str() {
        "http" => Protocol::Http1,
        "h2c" => Protocol::Http2,
        "grpc" => return Err(invalid(format!("write `\"h2c://{authority}\"`: gRPC is HTTP/2"))),
        "https" | "h2" | "grpcs" => {
            return Err(InvalidEndpoint {
                problem: format!("endpoint `{text}`: `{scheme}://` is not supported yet"),
                remedy: "use an endpoint without TLS: `http://HOST:PORT`, or `h2c://HOST:PORT` for HTTP/2"
                    .to_owned(),
            });
        }
        _ => {
            return Err(invalid("write `http://HOST:PORT`, or `h2c://HOST:PORT` for HTTP/2".to_owned()));
        }
    };
    if authority.contains('@') {
        return Err(invalid("write it without user name and password".to_owned()));
    }
    if let Some(at) = authority.find(['/', '?', '#']) {
        let shorter = &authority[..at];
        return Err(invalid(format!(
            "write only `\"{scheme}://{shorter}\"`: a request keeps the path that it came with"
        )));
    }
    let (host, port) = split_port(authority).map_err(invalid)?;
    let host = host::parse(host).map_err(|fault| invalid(fault.0.to_owned()))?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    Ok(Endpoint { host, port, protocol })
}

/// Host, with brackets if it has them, and port; or what to write instead.
fn split_port(authority: &str) -> Result<(&str, u16), String> {
    let colon = match authority.rfind(']') {
        Some(bracket) => authority[bracket..].find(':').map(|at| bracket + at),
        None => authority.find(':'),
    };
    let Some(colon) = colon else { return Ok((authority, 80)) };
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
    fn endpoints_are_plain_http_urls() {
        for (text, host, port) in [
            ("http://127.0.0.1:9001", "127.0.0.1", 9001),
            ("http://App.example", "app.example", 80),
            ("HTTP://[::1]:9001", "::1", 9001),
            ("http://[0::1]", "::1", 80),
        ] {
            assert_eq!(parse(text).unwrap(), endpoint(host, port));
        }
    }

    #[test]
    fn h2c_is_http_2_without_tls() {
        let h2c = parse("H2C://a:9001").unwrap();
        assert_eq!((h2c.host.as_str(), h2c.port, h2c.protocol), ("a", 9001, Protocol::Http2));
    }

    #[test]
    fn the_remedy_is_what_was_probably_meant() {
        for (text, expected) in [
            ("127.0.0.1:9001", "write it as a URL: `\"http://127.0.0.1:9001\"`"),
            ("", "write it as a URL: `\"http://127.0.0.1:9001\"`"),
            ("https://a", "use an endpoint without TLS: `http://HOST:PORT`, or `h2c://HOST:PORT` for HTTP/2"),
            ("grpc://a:1", "write `\"h2c://a:1\"`: gRPC is HTTP/2"),
            ("h2c://a:80/x", "write only `\"h2c://a:80\"`: a request keeps the path that it came with"),
            ("ftp://a", "write `http://HOST:PORT`, or `h2c://HOST:PORT` for HTTP/2"),
            ("http://a:80/", "write only `\"http://a:80\"`: a request keeps the path that it came with"),
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
    fn every_endpoint_is_checked_and_named_once() {
        let v2 = "[services.web.backends.v2]\nendpoints = ['http://a', 'b', 'h2c://A:80', 'http://c']";
        assert_eq!(errors(v2), ["`b` is not an endpoint", "`a` with port 80 is in `v2` twice"]);
        let none = "backend `v2` has no endpoint, so it could serve nothing";
        assert_eq!(errors("[services.web.backends.v2]\nendpoints = []"), [none]);
        assert_eq!(errors("[services.web.backends.v2]"), [none]);
        assert_eq!(parsed("").services[0].backends[0].endpoints, [endpoint("127.0.0.1", 9001)]);
    }
}
