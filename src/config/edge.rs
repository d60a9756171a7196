//! The keys of `[[listeners]]` that say what is let in and whose word is taken.

use std::net::IpAddr;

use http::HeaderName;
use ipnet::IpNet;
use serde::Deserialize;
use toml::Spanned;

use super::{
    report::Report,
    suggest::suggest,
    written::{Section, Size, Table, Text, positive, size},
};
use crate::routing::edge::{Edge, Underscores};

/// `request_id` of a listener as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRequestId {
    header: Option<Text>,
}

impl Section for RawRequestId {
    const HEADER: &'static str = "request_id = { header = \"x-request-id\" }";
}

/// These keys as written.
#[derive(Debug)]
pub(super) struct RawEdge {
    pub(super) trusted_proxies: Option<Vec<Text>>,
    pub(super) headers_with_underscores_action: Option<Text>,
    pub(super) request_id: Option<Table<RawRequestId>>,
    pub(super) max_uri_length: Option<Size>,
    pub(super) max_header_bytes: Option<Size>,
    pub(super) max_headers: Option<Spanned<i64>>,
    pub(super) max_connections: Option<Spanned<i64>>,
    pub(super) max_connections_per_client: Option<Spanned<i64>>,
    pub(super) max_requests_per_connection: Option<Spanned<i64>>,
}

/// Connections that a machine can have: a descriptor each, and one more to a backend.
const MAX_CONNECTIONS: u32 = 1_000_000;
/// Fields beyond which a head is an attack, and beyond which parsing them takes longer for everybody.
const MAX_HEADERS: u32 = 1000;

/// What is let in, and whose word is taken.
pub(super) fn lower(raw: RawEdge, report: &mut Report<'_>) -> Edge {
    let RawEdge {
        trusted_proxies,
        headers_with_underscores_action,
        request_id,
        max_uri_length,
        max_header_bytes,
        max_headers,
        max_connections,
        max_connections_per_client,
        max_requests_per_connection,
    } = raw;
    let default = Edge::default();
    let mut bytes = |written: Option<Size>, key, most, default| {
        let size = written.and_then(|written| size(&written, key, 256..=most, report));
        size.and_then(|size| usize::try_from(size).ok()).unwrap_or(default)
    };
    // What one connection may hold of a request is 64 KiB, and hyper's own limit of a target just below.
    let max_uri_length = bytes(max_uri_length, "max_uri_length", 32 << 10, default.max_uri_length);
    let max_header_bytes = bytes(max_header_bytes, "max_header_bytes", 60 << 10, default.max_header_bytes);
    let mut count = |written: Option<Spanned<i64>>, key, most| {
        written.and_then(|written| positive(&written, key, most, report))
    };
    let max_headers = count(max_headers, "max_headers", MAX_HEADERS);
    let max_connections = count(max_connections, "max_connections", MAX_CONNECTIONS);
    let per_client = count(max_connections_per_client, "max_connections_per_client", MAX_CONNECTIONS);
    let requests = count(max_requests_per_connection, "max_requests_per_connection", u32::MAX);
    let trusted = trusted_proxies.unwrap_or_default();
    Edge {
        trusted_proxies: trusted.iter().filter_map(|written| lower_net(written, report)).collect(),
        underscores: headers_with_underscores_action
            .and_then(|written| lower_underscores(&written, report))
            .unwrap_or_default(),
        request_id: request_id.and_then(|raw| lower_request_id(raw.0, report)),
        max_uri_length,
        max_header_bytes,
        max_headers: max_headers.map_or(default.max_headers, |max| max.get() as usize),
        max_connections: max_connections.unwrap_or(default.max_connections),
        max_connections_per_client: per_client,
        max_requests_per_connection: requests,
    }
}

/// A range of addresses. Bits beyond the prefix are refused: whoever writes `10.1.2.3/8` means one
/// address or a range, and only they know which.
fn lower_net(written: &Text, report: &mut Report<'_>) -> Option<IpNet> {
    let text = written.get_ref();
    let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    match net {
        Ok(net) if net.trunc() == net => Some(net),
        Ok(net) => {
            report.error(written.span(), format!("`{text}` has bits set beyond its prefix")).help(format!(
                "write `\"{}\"` for the range, or `\"{}\"` for the address",
                net.trunc(),
                net.addr()
            ));
            None
        }
        Err(_) => {
            report
                .error(written.span(), format!("`{text}` is not a range of addresses"))
                .help("write an address with a prefix length, such as `10.0.0.0/8` or `fd00::/8`");
            None
        }
    }
}

const ACTIONS: [(&str, Underscores); 4] = [
    ("drop_aliases", Underscores::DropAliases),
    ("drop_header", Underscores::DropHeader),
    ("reject_request", Underscores::RejectRequest),
    ("allow", Underscores::Allow),
];

fn lower_underscores(written: &Text, report: &mut Report<'_>) -> Option<Underscores> {
    let text = written.get_ref();
    let found = ACTIONS.iter().find(|(name, _)| name == text);
    if found.is_none() {
        let names = ACTIONS.map(|(name, _)| name);
        report
            .error(written.span(), format!("there is no action `{text}`"))
            .help_if(suggest(text, &names, "actions"));
    }
    found.map(|(_, action)| *action)
}

fn lower_request_id(raw: RawRequestId, report: &mut Report<'_>) -> Option<HeaderName> {
    let Some(written) = raw.header else { return Some(HeaderName::from_static("x-request-id")) };
    let text = written.get_ref();
    let name = HeaderName::from_bytes(text.as_bytes()).ok();
    // A field that HTTP gives a meaning to cannot carry an id as well.
    let name = name.filter(|name| name.as_str().starts_with("x-") || name.as_str().ends_with("-id"));
    if name.is_none() {
        report
            .error(written.span(), format!("`{text}` cannot be the header that carries a request's id"))
            .help("use a name that begins with `x-` or ends in `-id`, such as `\"x-request-id\"`");
    }
    name
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{MINIMAL, errors_of},
        *,
    };
    use crate::config::load::parse;

    /// The minimal configuration with more keys of its listener.
    fn listener(keys: &str) -> String {
        MINIMAL.replace("[[routes]]", &format!("{keys}\n[[routes]]"))
    }

    fn edge(keys: &str) -> Edge {
        parse("x.toml", &listener(keys)).unwrap().0.listeners.remove(0).edge
    }

    #[test]
    fn nobody_is_trusted_by_default() {
        assert_eq!(edge(""), Edge::default());
        assert!(edge("").trusted_proxies.is_empty());
    }

    #[test]
    fn what_is_written_is_meant() {
        let edge = edge(
            "trusted_proxies = ['10.0.0.0/8', '::1']\nheaders_with_underscores_action = 'reject_request'\n\
             request_id = {}\nmax_uri_length = '2KiB'\nmax_headers = 50\nmax_connections = 10",
        );
        assert_eq!(edge.trusted_proxies, ["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()]);
        assert_eq!(edge.underscores, Underscores::RejectRequest);
        assert_eq!(edge.request_id, Some(HeaderName::from_static("x-request-id")));
        assert_eq!((edge.max_uri_length, edge.max_headers, edge.max_connections.get()), (2048, 50, 10));
    }

    #[test]
    fn what_cannot_be_meant_is_a_fault() {
        for (bad, problem) in [
            ("trusted_proxies = ['10.1.2.3/8']", "`10.1.2.3/8` has bits set beyond its prefix"),
            ("trusted_proxies = ['internal']", "`internal` is not a range of addresses"),
            ("headers_with_underscores_action = 'drop'", "there is no action `drop`"),
            ("request_id = { header = 'host' }", "`host` cannot be the header that carries a request's id"),
            ("max_uri_length = '1MiB'", "`max_uri_length` of 1MiB is too large"),
            ("max_header_bytes = '16'", "`16` is not a size"),
            ("max_connections = 0", "`max_connections` must be from 1 to 1000000, not 0"),
        ] {
            assert_eq!(errors_of(&listener(bad)), [problem], "{bad}");
        }
    }
}
