//! What a client is recognised by, so that it stays on the side that it was first given: a cookie, or
//! its address.
//!
//! The cookie holds a random number and nothing else: which side that number is on follows from the
//! weight and the rollout's salt, so that no cookie has to be changed or believed when either moves.

use std::{fmt::Write, net::IpAddr};

use http::{HeaderMap, HeaderValue};

use crate::routing::{condition::cookies, snapshot::StickyCookie};

/// Digits of the number in hexadecimal.
const DIGITS: usize = 16;

/// The number that the client's cookie holds, if it has one that we could have made.
pub(super) fn find<'h>(headers: &'h HeaderMap, sticky: &StickyCookie) -> Option<&'h [u8]> {
    let is_ours = |value: &&[u8]| value.len() == DIGITS && value.iter().all(u8::is_ascii_hexdigit);
    cookies(headers, &sticky.name).find(is_ours)
}

/// What a client is recognised by if it is by its address: an IPv4 address, or the network of an IPv6
/// address, because devices change the rest of theirs.
pub(super) fn address_key(address: IpAddr) -> [u8; 8] {
    let mut key = [0; 8];
    match address {
        IpAddr::V4(address) => key[..4].copy_from_slice(&address.octets()),
        IpAddr::V6(address) => key.copy_from_slice(&address.octets()[..8]),
    }
    key
}

/// A new number as the cookie holds it.
pub(super) fn key(random: u64) -> [u8; DIGITS] {
    let mut key = [0; DIGITS];
    for (i, digit) in key.iter_mut().enumerate() {
        *digit = b"0123456789abcdef"[(random >> (60 - 4 * i)) as usize & 15];
    }
    key
}

/// The `Set-Cookie` that gives a client its number.
pub(super) fn set_cookie(key: [u8; DIGITS], sticky: &StickyCookie) -> Option<HeaderValue> {
    let mut value = String::with_capacity(sticky.name.len() + 80);
    let key = std::str::from_utf8(&key).ok()?;
    let seconds = sticky.max_age.as_secs();
    write!(value, "{}={key}; Max-Age={seconds}; Path=/; HttpOnly; SameSite=Lax", sticky.name).ok()?;
    HeaderValue::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::header;

    use super::*;

    fn sticky() -> StickyCookie {
        StickyCookie { name: "tidegate".to_owned(), max_age: Duration::from_secs(86_400) }
    }

    fn found(cookies: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for cookie in cookies {
            headers.append(header::COOKIE, HeaderValue::from_str(cookie).unwrap());
        }
        find(&headers, &sticky()).map(|key| String::from_utf8(key.to_vec()).unwrap())
    }

    #[test]
    fn what_is_set_is_found_again() {
        let value = set_cookie(key(0x0123_4567_89ab_cdef), &sticky()).unwrap();
        assert_eq!(value, "tidegate=0123456789abcdef; Max-Age=86400; Path=/; HttpOnly; SameSite=Lax");
        assert_eq!(found(&["a=b; tidegate=0123456789abcdef;c=d"]).as_deref(), Some("0123456789abcdef"));
        assert_eq!(found(&["a=b", "tidegate=0123456789abcdef"]).as_deref(), Some("0123456789abcdef"));
    }

    #[test]
    fn an_address_is_known_by_its_network() {
        let key = |text: &str| address_key(text.parse().unwrap());
        assert_eq!(key("2001:db8::1"), key("2001:db8::ffff:0:0:2"));
        assert_ne!(key("2001:db8::1"), key("2001:db8:0:1::1"));
        assert_ne!(key("192.0.2.1"), key("192.0.2.2"));
    }

    #[test]
    fn what_we_did_not_make_is_not_a_key() {
        for cookie in [
            "tidegate=",
            "tidegate=0123",
            "xtidegate=0123456789abcdef",
            "tidegate=0123456789abcdeg",
            "tidegatex=0123456789abcdef",
        ] {
            assert_eq!(found(&[cookie]), None, "{cookie}");
        }
    }
}
