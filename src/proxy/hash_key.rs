//! What a request is hashed on, where its service balances by a key.

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
        Algorithm::ConsistentHash(on) => bytes(on, client, &parts.headers).map(hash::number),
        Algorithm::LeastRequest | Algorithm::PeakEwma | Algorithm::RoundRobin => None,
    }
}

fn bytes<'r>(on: &HashOn, client: &'r Client, headers: &'r HeaderMap) -> Option<&'r [u8]> {
    match on {
        HashOn::ClientAddress => Some(client.forwarded_for.as_bytes()),
        HashOn::Header(name) => value(headers, name),
        HashOn::Cookie(name) => cookie(headers, name),
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
