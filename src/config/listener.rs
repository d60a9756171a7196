//! `[[listeners]]`: where requests come in.

use std::{net::SocketAddr, num::NonZeroU16, time::Duration};

use serde::Deserialize;
use toml::Spanned;

use super::{
    Listener, address,
    edge::{self, RawEdge, RawRequestId},
    proxy_protocol::{self, RawProxyProtocol},
    report::Report,
    tls::{self, RawTls},
    written::{Section, Size, TIMEOUT, Table, Text, Time, time_or},
};

/// `[[listeners]]` as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawListener {
    address: Option<Text>,
    header_timeout: Option<Time>,
    idle_timeout: Option<Time>,
    trusted_proxies: Option<Vec<Text>>,
    headers_with_underscores_action: Option<Text>,
    request_id: Option<Table<RawRequestId>>,
    max_uri_length: Option<Size>,
    max_header_bytes: Option<Size>,
    max_headers: Option<Spanned<i64>>,
    max_connections: Option<Spanned<i64>>,
    max_connections_per_client: Option<Spanned<i64>>,
    max_requests_per_connection: Option<Spanned<i64>>,
    tls: Option<Spanned<Table<RawTls>>>,
    proxy_protocol: Option<Spanned<Table<RawProxyProtocol>>>,
    redirect_to_https: Option<Spanned<bool>>,
    https_port: Option<Spanned<i64>>,
}

impl Section for RawListener {
    const HEADER: &'static str = "[[listeners]]";
}

/// An address that makes a good example, and the usual one behind a load balancer.
pub(super) fn example() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], 8080))
}

/// The listeners, each with the place of its address.
pub(super) fn lower(
    raw: Vec<Spanned<Table<RawListener>>>,
    report: &mut Report<'_>,
) -> Vec<Spanned<Listener>> {
    if raw.is_empty() {
        report
            .error_in_file("there is no listener, so no request could come in")
            .help(format!("add `[[listeners]]` with `address = \"{}\"`", example()));
    }
    let mut listeners: Vec<Spanned<Listener>> = Vec::new();
    for raw in raw {
        let Some(listener) = lower_one(raw, report) else { continue };
        let address = listener.get_ref().address;
        let other = listeners.iter().find(|other| address::collide(other.get_ref().address, address));
        if let Some(other) = other {
            let line = report.line_number(&other.span());
            let problem =
                format!("`{address}` is taken by the listener `{}` on line {line}", other.get_ref().address);
            report.error(listener.span(), problem).help("give each listener a port of its own");
        }
        listeners.push(listener);
    }
    listeners
}

fn lower_one(raw: Spanned<Table<RawListener>>, report: &mut Report<'_>) -> Option<Spanned<Listener>> {
    let header = raw.span();
    let RawListener {
        address,
        header_timeout,
        idle_timeout,
        tls,
        proxy_protocol,
        redirect_to_https,
        https_port,
        trusted_proxies,
        headers_with_underscores_action,
        request_id,
        max_uri_length,
        max_header_bytes,
        max_headers,
        max_connections,
        max_connections_per_client,
        max_requests_per_connection,
    } = raw.into_inner().0;
    let edge = RawEdge {
        trusted_proxies,
        headers_with_underscores_action,
        request_id,
        max_uri_length,
        max_header_bytes,
        max_headers,
        max_connections,
        max_connections_per_client,
        max_requests_per_connection,
    };
    let edge = edge::lower(edge, report);
    let second = Duration::from_secs(1);
    let header_timeout = time_or(10 * second, header_timeout.as_ref(), "header_timeout", TIMEOUT, report);
    let idle_timeout = time_or(75 * second, idle_timeout.as_ref(), "idle_timeout", TIMEOUT, report);
    let redirect_to_https = lower_redirect(redirect_to_https, https_port, tls.is_some(), report);
    let tls = tls.and_then(|raw| tls::lower(raw, report));
    let proxy_protocol = proxy_protocol.and_then(|raw| proxy_protocol::lower(raw, report));
    let Some(written) = address else {
        report
            .error(header, "this listener has no `address`")
            .help(format!("say where it listens, such as `address = \"{}\"`", example()));
        return None;
    };
    let address = address::parse(&written, &example(), report)?;
    let listener =
        Listener { address, header_timeout, idle_timeout, edge, tls, proxy_protocol, redirect_to_https };
    Some(Spanned::new(written.span(), listener))
}

/// The port that clients are sent to, if the listener does nothing else.
fn lower_redirect(
    written: Option<Spanned<bool>>,
    port: Option<Spanned<i64>>,
    has_tls: bool,
    report: &mut Report<'_>,
) -> Option<NonZeroU16> {
    let written = written.filter(|written| *written.get_ref());
    if let (Some(written), true) = (&written, has_tls) {
        report
            .error(
                written.span(),
                "this listener speaks HTTPS itself, so it would send clients round in circles",
            )
            .help("redirect on a listener of its own without `tls`, such as one on port 80");
    }
    let Some(port) = port else { return written.and(NonZeroU16::new(443)) };
    let number = u16::try_from(*port.get_ref()).ok().and_then(NonZeroU16::new);
    if number.is_none() {
        report
            .error(port.span(), format!("{} is not a port", port.get_ref()))
            .help("a port is a number from 1 to 65535");
    } else if written.is_none() {
        report
            .error(port.span(), "`https_port` is only for a listener that redirects")
            .help("add `redirect_to_https = true`, or remove `https_port`");
    }
    written.and(number)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{errors, parsed};

    #[test]
    fn a_listener_needs_only_an_address() {
        let listener = parsed("").listeners.remove(0);
        assert_eq!(listener.address, super::example());
        assert_eq!(listener.header_timeout.as_secs(), 10);
        assert_eq!(listener.idle_timeout.as_secs(), 75);
    }

    #[test]
    fn a_listener_may_only_redirect() {
        let listener = |keys: &str| format!("[[listeners]]\naddress = '0.0.0.0:80'\n{keys}");
        let port = |keys: &str| parsed(&listener(keys)).listeners[1].redirect_to_https.map(u16::from);
        assert_eq!(port(""), None);
        assert_eq!(port("redirect_to_https = false"), None);
        assert_eq!(port("redirect_to_https = true"), Some(443));
        assert_eq!(port("redirect_to_https = true\nhttps_port = 8443"), Some(8443));
        let alone = "`https_port` is only for a listener that redirects";
        assert_eq!(errors(&listener("https_port = 8443")), [alone]);
        assert_eq!(errors(&listener("redirect_to_https = true\nhttps_port = 0")), ["0 is not a port"]);
        let pair = "tls = { certificates = [{ certificate = 'a', key = 'b' }] }";
        let circle = errors(&listener(&format!("redirect_to_https = true\n{pair}")));
        assert!(circle[0].starts_with("this listener speaks HTTPS itself"), "{circle:?}");
    }

    #[test]
    fn every_fault_of_every_listener_is_named() {
        let more = "[[listeners]]\nheader_timeout = '0s'\n[[listeners]]\naddress = '127.0.0.1:8080'";
        assert_eq!(
            errors(more),
            [
                "this listener has no `address`",
                "`header_timeout` of 0s is too short",
                "`127.0.0.1:8080` is taken by the listener `0.0.0.0:8080` on line 2"
            ]
        );
    }
}
