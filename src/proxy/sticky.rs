//! What a client is recognised by, so that it stays on the side that it was first given: a cookie, or
//! its address.
//!
//! The cookie holds a random number and nothing else: which side that number is on follows from the
//! weight and the rollout's salt, so that no cookie has to be changed or believed when either moves. Where
//! the number is signed, a client cannot make one up, only ask for others.

use std::{fmt::Write, net::IpAddr};

use http::{HeaderMap, HeaderValue};

use crate::{
    routing::{condition::cookies, snapshot::StickyCookie},
    tls::signing::{LENGTH, SIGNATURE, SignedBy, Signer},
};

/// Digits of the number in hexadecimal.
const DIGITS: usize = LENGTH;

/// The same with its signature, in hexadecimal too, behind a dot.
const SIGNED: usize = DIGITS + 1 + 2 * SIGNATURE;

/// Signatures that are looked at: browsers bring few cookies of one name, and each costs a hash or two.
const MOST_TRIED: usize = 4;

/// A cookie that clients are recognised by, and what signs it, if anything does.
#[derive(Clone, Copy)]
pub(super) struct Cookie<'s> {
    pub(super) sticky: &'s StickyCookie,
    pub(super) signer: Option<&'s Signer>,
}

/// A number that we have given a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found<'h> {
    pub(super) key: &'h [u8; DIGITS],
    /// It was signed with a secret that is on its way out.
    pub(super) is_old: bool,
}

impl Cookie<'_> {
    /// The number that the client's cookie holds, if it has one that we have made; where none is signed,
    /// one that we could have made.
    pub(super) fn find<'h>(&self, headers: &'h HeaderMap) -> Option<Found<'h>> {
        let mut values = cookies(headers, &self.sticky.name);
        match self.signer {
            None => values.find_map(number).map(|key| Found { key, is_old: false }),
            Some(signer) => {
                let signed = values.filter_map(split);
                signed.take(MOST_TRIED).find_map(|(key, signature)| {
                    let by = signer.verify(key, &signature)?;
                    Some(Found { key, is_old: by == SignedBy::Previous })
                })
            }
        }
    }

    /// The `Set-Cookie` that gives a client its number.
    pub(super) fn set(&self, key: &[u8; DIGITS]) -> Option<HeaderValue> {
        let StickyCookie { name, max_age } = self.sticky;
        let mut value = String::with_capacity(name.len() + SIGNED + 64);
        write!(value, "{name}={}", std::str::from_utf8(key).ok()?).ok()?;
        if let Some(signer) = self.signer {
            value.push('.');
            for byte in signer.sign(key) {
                write!(value, "{byte:02x}").ok()?;
            }
        }
        write!(value, "; Max-Age={}; Path=/; HttpOnly; SameSite=Lax", max_age.as_secs()).ok()?;
        HeaderValue::try_from(value).ok()
    }
}

/// A value that has the form of a number.
fn number(value: &[u8]) -> Option<&[u8; DIGITS]> {
    let number: &[u8; DIGITS] = value.try_into().ok()?;
    number.iter().all(u8::is_ascii_hexdigit).then_some(number)
}

/// The number and the signature of a value that has the form of both.
fn split(value: &[u8]) -> Option<(&[u8; DIGITS], [u8; SIGNATURE])> {
    let (key, rest) = value.split_first_chunk::<DIGITS>()?;
    let digits: &[u8; 2 * SIGNATURE] = rest.strip_prefix(b".")?.try_into().ok()?;
    let digit = |digit: u8| Some(char::from(digit).to_digit(16)? as u8);
    let mut signature = [0; SIGNATURE];
    for (byte, pair) in signature.iter_mut().zip(digits.as_chunks::<2>().0) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some((number(key)?, signature))
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

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use http::header;
    use proptest::prelude::*;

    use super::*;
    use crate::tls::signing::{Keys, Secrets};

    const OLD: &str = "an old secret that nobody can guess";
    const NEW: &str = "a newer secret that nobody can guess";

    fn sticky() -> StickyCookie {
        StickyCookie { name: "tidegate".to_owned(), max_age: Duration::from_secs(86_400) }
    }

    fn signer(secrets: &[&str]) -> Signer {
        let source = Secrets("secret".into());
        let keys = Keys::parse(secrets.join("\n").as_bytes(), &source.0).unwrap();
        Signer::new(source, Arc::new(keys))
    }

    /// What is found in these fields: the number, and whether it is old.
    fn find(signer: Option<&Signer>, cookies: &[&str]) -> Option<(String, bool)> {
        let mut headers = HeaderMap::new();
        for cookie in cookies {
            headers.append(header::COOKIE, HeaderValue::from_str(cookie).unwrap());
        }
        let found = Cookie { sticky: &sticky(), signer }.find(&headers)?;
        Some((String::from_utf8(found.key.to_vec()).unwrap(), found.is_old))
    }

    /// A number as a client will bring it.
    fn given(signer: Option<&Signer>, random: u64) -> String {
        let set = Cookie { sticky: &sticky(), signer }.set(&key(random)).unwrap();
        set.to_str().unwrap().split(';').next().unwrap().to_owned()
    }

    #[test]
    fn what_is_set_is_found_again() {
        let cookie = Cookie { sticky: &sticky(), signer: None };
        let value = cookie.set(&key(0x0123_4567_89ab_cdef)).unwrap();
        assert_eq!(value, "tidegate=0123456789abcdef; Max-Age=86400; Path=/; HttpOnly; SameSite=Lax");
        let ours = Some(("0123456789abcdef".to_owned(), false));
        assert_eq!(find(None, &["a=b; tidegate=0123456789abcdef;c=d"]), ours);
        assert_eq!(find(None, &["a=b", "tidegate=0123456789abcdef"]), ours);
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
            assert_eq!(find(None, &[cookie]), None, "{cookie}");
        }
    }

    #[test]
    fn the_old_secret_is_believed_and_the_new_one_signs() {
        let (before, both, after) = (signer(&[OLD]), signer(&[NEW, OLD]), signer(&[NEW]));
        let number = "00000000000000ff".to_owned();
        let old = given(Some(&before), 255);
        assert_eq!(find(Some(&both), &[&old]), Some((number.clone(), true)));
        assert_eq!(find(Some(&after), &[&old]), None);
        assert_eq!(find(Some(&after), &[&given(Some(&both), 255)]), Some((number, false)));
    }

    #[test]
    fn ours_is_found_behind_a_few_that_are_not() {
        let signer = signer(&[NEW]);
        let forged = format!("tidegate=0123456789abcdef.{}", "0".repeat(64));
        let ours = given(Some(&signer), 1);
        let behind = |count: usize| [vec![forged.as_str(); count], vec![ours.as_str()]].concat().join("; ");
        assert!(find(Some(&signer), &[&behind(3)]).is_some());
        assert_eq!(find(Some(&signer), &[&behind(4)]), None, "hashing has an end");
    }

    proptest! {
        #[test]
        fn a_signed_number_is_found_and_nothing_that_differs_from_it(random: u64, at: prop::sample::Index, to: u8) {
            let signer = signer(&[NEW, OLD]);
            let ours = given(Some(&signer), random);
            prop_assert_eq!(ours.len(), "tidegate=".len() + SIGNED);
            prop_assert_eq!(find(Some(&signer), &[&ours]), Some((format!("{random:016x}"), false)));
            prop_assert_eq!(find(None, &[&ours]), None);
            prop_assert_eq!(find(Some(&signer), &[&given(None, random)]), None);
            let mut forged = ours.clone().into_bytes();
            let at = at.index(forged.len());
            forged[at] = 0x20 + to % 0x5f;
            let forged = String::from_utf8(forged).unwrap();
            // Digits of a signature are the same in upper case.
            if forged.to_lowercase() != ours {
                prop_assert_eq!(find(Some(&signer), &[&forged]), None);
            }
        }

        #[test]
        fn nothing_is_found_in_what_others_write(value in "[0-9a-f.]{0,99}|[0-9a-f]{16}\\.[0-9a-f]{64}") {
            prop_assert_eq!(find(Some(&signer(&[NEW, OLD])), &[&format!("tidegate={value}")]), None);
        }
    }
}
