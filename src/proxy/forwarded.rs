//! What a backend is told of where a request came from: our own word, or that of a trusted proxy in
//! front with ours behind it. And the request's id.

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{self, Entry},
};

use super::client::Client;

pub(super) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const HTTP: HeaderValue = HeaderValue::from_static("http");
const HTTPS: HeaderValue = HeaderValue::from_static("https");

/// Bytes of an id that is taken from a proxy in front.
const LONGEST_ID: usize = 128;

/// Says where a request came from.
pub(super) fn say(headers: &mut HeaderMap, client: &Client) {
    let host = headers.get(header::HOST).cloned();
    if client.is_trusted() {
        extend(headers, client, host);
        return;
    }
    headers.insert(X_FORWARDED_FOR, client.forwarded_for());
    headers.insert(X_FORWARDED_PROTO, proto(client));
    if let Some(host) = host {
        headers.insert(X_FORWARDED_HOST, host);
    }
}

fn proto(client: &Client) -> HeaderValue {
    if client.is_secure() { HTTPS } else { HTTP }
}

/// Keeps what the proxy in front says and adds what it cannot: its own address.
fn extend(headers: &mut HeaderMap, client: &Client, host: Option<HeaderValue>) {
    // One field, since some applications read the first one only and others the last one.
    let mut chain = Vec::with_capacity(64);
    for field in headers.get_all(X_FORWARDED_FOR) {
        chain.extend_from_slice(field.as_bytes());
        chain.extend_from_slice(b", ");
    }
    chain.extend_from_slice(client.forwarded_for().as_bytes());
    if let Ok(chain) = HeaderValue::from_bytes(&chain) {
        headers.insert(X_FORWARDED_FOR, chain);
    }
    if let Entry::Vacant(entry) = headers.entry(X_FORWARDED_PROTO) {
        entry.insert(proto(client));
    }
    if let Some(host) = host
        && let Entry::Vacant(entry) = headers.entry(X_FORWARDED_HOST)
    {
        entry.insert(host);
    }
}

/// Gives a request its id, if the listener gives ids: the one that a trusted proxy gave it, else a
/// new one of `random`.
pub(super) fn identify(headers: &mut HeaderMap, client: &Client, random: impl FnOnce() -> u128) {
    let Some(name) = &client.edge().request_id else { return };
    if client.is_trusted() {
        let mut given = headers.get_all(name).iter();
        if given.next().is_some_and(is_id) && given.next().is_none() {
            return;
        }
    }
    if let Ok(id) = HeaderValue::from_bytes(&uuid(random())) {
        headers.insert(name, id);
    }
}

fn is_id(value: &HeaderValue) -> bool {
    let value = value.as_bytes();
    !value.is_empty() && value.len() <= LONGEST_ID && value.iter().all(u8::is_ascii_graphic)
}

/// A random UUID (RFC 9562, version 4) as text.
fn uuid(random: u128) -> [u8; 36] {
    let random = random & !(0xf << 76) & !(0b11 << 62) | 4 << 76 | 0b10 << 62;
    let mut text = [b'-'; 36];
    let places = (0..36).filter(|place| !matches!(place, 8 | 13 | 18 | 23));
    for (place, digit) in places.zip((0..32).rev()) {
        text[place] = b"0123456789abcdef"[(random >> (4 * digit)) as usize & 15];
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_uuids() {
        assert_eq!(&uuid(0), b"00000000-0000-4000-8000-000000000000");
        assert_eq!(&uuid(u128::MAX), b"ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(&uuid(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef), b"01234567-89ab-4def-8123-456789abcdef");
    }

    #[test]
    fn an_id_is_short_and_visible() {
        for (value, taken) in [("abc-1", true), ("", false), ("a b", false), (&"x".repeat(129), false)] {
            assert_eq!(is_id(&HeaderValue::from_str(value).unwrap()), taken, "{value}");
        }
    }
}
