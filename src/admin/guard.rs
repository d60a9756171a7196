//! Keeps web pages from using a browser to see or move traffic.
//!
//! A page that somebody opens can make their browser send requests to addresses that only they can reach.
//! Browsers put `Origin` on every request of a page that may change something, and people's tools do not;
//! so a write that has one is refused, whatever it says. A page can also have its own name lead to such an
//! address, and read the answers as its own (DNS rebinding); so names are refused that nobody uses for
//! this process. And whatever is answered is nothing to be shown, embedded or kept.

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderName, HeaderValue, StatusCode, header, uri::Authority};

use super::{access::Access, problem::Problem};
use crate::config::Admin;

/// Fields of every answer. There is nothing in one that a browser would have to load or run.
const FIELDS: [(HeaderName, &str); 6] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; sandbox",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

pub(super) async fn refuse_browsers(State(access): State<Access>, request: Request, next: Next) -> Response {
    if !request.method().is_safe() && request.headers().contains_key(header::ORIGIN) {
        access.refusals().count("browser");
        let detail =
            "this request comes from a web page (it has an `Origin`); only tools may change anything";
        return Problem::new(StatusCode::FORBIDDEN, detail).into_response();
    }
    next.run(request).await
}

pub(super) async fn refuse_other_names(
    State(access): State<Access>,
    request: Request,
    next: Next,
) -> Response {
    let config = access.config();
    let is_known = |authority: &str| {
        authority.parse::<Authority>().is_ok_and(|authority| is_for_this(&config, authority.host()))
    };
    // Each that there is: with an absolute target there are two, and nobody says which one others go by.
    // No browser leaves it out.
    let fields = request.headers().get_all(header::HOST).iter().map(|host| host.to_str().unwrap_or_default());
    if request.uri().authority().map(Authority::as_str).into_iter().chain(fields).all(is_known) {
        return next.run(request).await;
    }
    access.refusals().count("host");
    let detail = "this process is not known by the name in `Host`: use its address or `localhost`, or write the name in `hosts` under `[admin]`";
    Problem::new(StatusCode::MISDIRECTED_REQUEST, detail).into_response()
}

/// An address leads here without anybody's name server. On an address that others reach, every name is
/// taken until some are written.
fn is_for_this(config: &Admin, host: &str) -> bool {
    let is_address = host.parse::<std::net::Ipv4Addr>().is_ok() || host.starts_with('[');
    let anywhere = config.hosts.is_empty() && !config.address.ip().is_loopback();
    is_address
        || anywhere
        || host.eq_ignore_ascii_case("localhost")
        || config.hosts.iter().any(|known| known.eq_ignore_ascii_case(host))
}

pub(super) async fn harden(mut response: Response) -> Response {
    for (name, value) in FIELDS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::OpenPaths;

    fn admin(address: &str, hosts: &[&str]) -> Admin {
        let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
        let address = address.parse().unwrap();
        Admin { address, tls: None, credentials: None, hosts, audit_log: None, open: OpenPaths::default() }
    }

    #[test]
    fn a_loopback_address_is_known_by_few_names() {
        let local = admin("127.0.0.1:9090", &[]);
        for host in ["127.0.0.1", "[::1]", "localhost", "LOCALHOST", "10.0.0.7"] {
            assert!(is_for_this(&local, host), "{host}");
        }
        for host in ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "2130706433"] {
            assert!(!is_for_this(&local, host), "{host}");
        }
        assert!(is_for_this(&admin("127.0.0.1:9090", &["tidegate.example"]), "Tidegate.example"));
    }

    #[test]
    fn others_by_any_until_some_are_written() {
        assert!(is_for_this(&admin("0.0.0.0:9090", &[]), "anything.example"));
        let some = admin("0.0.0.0:9090", &["tidegate.example"]);
        assert!(is_for_this(&some, "tidegate.example") && is_for_this(&some, "10.0.0.7"));
        assert!(!is_for_this(&some, "anything.example"));
    }
}
