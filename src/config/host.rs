//! Host names, shared by routes and endpoints.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Why a text is not a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct InvalidHost(pub(super) &'static str);

/// Checks a host name, IPv4 address or IPv6 address in brackets, and lowers its case.
pub(super) fn parse(text: &str) -> Result<String, InvalidHost> {
    if text.is_empty() {
        return Err(InvalidHost("the host is missing"));
    }
    if let Some(inner) = text.strip_prefix('[') {
        let address = inner.strip_suffix(']').and_then(|inner| inner.parse::<Ipv6Addr>().ok());
        let address = address.ok_or(InvalidHost("what stands in the brackets is not an IPv6 address"))?;
        return Ok(format!("[{address}]"));
    }
    if !text.is_ascii() {
        return Err(InvalidHost("write a name outside ASCII in its encoded form, `xn--…`"));
    }
    if text.len() > 253 {
        return Err(InvalidHost("a host name has at most 253 characters"));
    }
    if text.ends_with('.') {
        return Err(InvalidHost("write it without the dot at the end"));
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    for label in text.split('.') {
        if label.is_empty() || label.len() > 63 {
            return Err(InvalidHost("each part between dots has 1 to 63 characters"));
        }
        if !label.bytes().all(allowed) || label.starts_with('-') || label.ends_with('-') {
            return Err(InvalidHost("a host name consists of letters, digits, `-` and dots"));
        }
    }
    // A name whose last part is a number would be taken for an IPv4 address by some resolvers.
    let last = text.rsplit('.').next().unwrap_or(text);
    if last.bytes().all(|b| b.is_ascii_digit()) && text.parse::<Ipv4Addr>().is_err() {
        return Err(InvalidHost("an IPv4 address has four numbers from 0 to 255"));
    }
    Ok(text.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_checked_and_lowered() {
        for (text, host) in [
            ("Web.Example", "web.example"),
            ("my_app", "my_app"),
            ("127.0.0.1", "127.0.0.1"),
            ("[0:0::1]", "[::1]"),
        ] {
            assert_eq!(parse(text), Ok(host.to_owned()));
        }
        let long = ["abcdefgh"; 30].join(".");
        for bad in [
            "",
            "a..b",
            "a.example.",
            "-a",
            "a b",
            "127.0.0.256",
            "1",
            "bücher.example",
            "[::g]",
            "[::1",
            &long,
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
