//! What a request is hashed on, where its service balances by a key.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, header, request};

use super::client::Client;
use crate::{
    routing::policy::{Algorithm, HashOn, Policy},
    upstream::balance::hash,
};

/// The number of a request's key, where there is one.
#[inline]
pub(super) fn find(policy: &Policy, client: &Client, parts: &request::Parts) -> Option<u64> {
    match &policy.balance.algorithm {
        Algorithm::ConsistentHash(on) => number(on, client, &parts.headers),
        Algorithm::LeastRequest | Algorithm::PeakEwma | Algorithm::RoundRobin => None,
    }
}

fn number(on: &HashOn, client: &Client, headers: &HeaderMap) -> Option<u64> {
    match on {
        HashOn::ClientAddress => Some(match client.address(headers) {
            IpAddr::V4(address) => hash::number(&address.octets()),
            IpAddr::V6(address) => hash::number(&address.octets()),
        }),
        HashOn::Header(name) => value(headers, name).map(hash::number),
        HashOn::Cookie(name) => cookie(headers, name).map(hash::number),
    }
}

/// The first value of a field; an empty one is none.
fn value<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h [u8]> {
    headers.get(name).map(|value| value.as_bytes().trim_ascii()).filter(|value| !value.is_empty())
}

/// The first value of a cookie; an empty one is none.
fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h [u8]> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .flat_map(|cookies| cookies.as_bytes().split(|b| *b == b';'))
        .filter_map(|cookie| cookie.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"="))
        .find(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn cookies_are_found_among_others() {
        let mut headers = HeaderMap::new();
        headers.append(header::COOKIE, HeaderValue::from_static("asid=1; sid=; b=2"));
        headers.append(header::COOKIE, HeaderValue::from_static("x;  sid=me"));
        assert_eq!(cookie(&headers, "sid"), Some(&b"me"[..]));
        assert_eq!(cookie(&headers, "asid"), Some(&b"1"[..]));
        assert_eq!(cookie(&headers, "si"), None);
    }

    #[test]
    fn an_empty_field_is_no_key() {
        let mut headers = HeaderMap::new();
        let name = HeaderName::from_static("x-user");
        assert_eq!(value(&headers, &name), None);
        headers.append(&name, HeaderValue::from_static(" "));
        assert_eq!(value(&headers, &name), None);
        headers.insert(&name, HeaderValue::from_static("a"));
        assert_eq!(value(&headers, &name), Some(&b"a"[..]));
    }
}
