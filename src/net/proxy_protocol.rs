//! The PROXY protocol, versions 1 and 2 (HAProxy's specification of 2020): what a load balancer says
//! about a connection before it passes it on.
//!
//! Deliberately absent: what is appended to version 2 (TLVs) is skipped, its checksum included, because
//! nothing here needs it; and the addresses of datagrams and local sockets are refused, because no
//! request can come by them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// What version 2 begins with.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Bytes of version 2 before the addresses.
const FIXED: usize = 16;

/// Longest header of version 1, its end of line included.
const LONGEST_V1: usize = 107;

/// Longest header that is taken: room for the addresses and what load balancers append to them.
pub const LONGEST: usize = 4096;

/// What has been found at the beginning of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// The header may go on; every byte so far belongs to it.
    Incomplete,
    /// The whole header.
    Complete {
        /// Whose connection it is; nothing, if it is that of the sender itself (a health check), or
        /// unknown.
        source: Option<SocketAddr>,
        /// The header's length in bytes; what follows is the connection's own.
        length: usize,
    },
}

/// Why bytes are no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// They begin in another way.
    #[error("no PROXY header where there has to be one")]
    Missing,
    /// They begin as a header, and do not go on as one.
    #[error("malformed PROXY header")]
    Malformed,
    /// The header is too long.
    #[error("PROXY header of more than {LONGEST} bytes")]
    TooLong,
}

/// Reads the header at the beginning of `bytes`.
///
/// # Errors
/// When it cannot become one, whatever follows.
pub fn parse(bytes: &[u8]) -> Result<Parsed, Invalid> {
    let begins = |with: &[u8]| {
        let n = bytes.len().min(with.len());
        bytes[..n] == with[..n]
    };
    match bytes.first() {
        None => Ok(Parsed::Incomplete),
        Some(b'P') if begins(b"PROXY ") => version_1(bytes),
        Some(b'\r') if begins(SIGNATURE) => version_2(bytes),
        Some(_) => Err(Invalid::Missing),
    }
}

fn version_1(bytes: &[u8]) -> Result<Parsed, Invalid> {
    let searched = &bytes[..bytes.len().min(LONGEST_V1)];
    let Some(end) = searched.windows(2).position(|pair| pair == b"\r\n") else {
        return if bytes.len() < LONGEST_V1 { Ok(Parsed::Incomplete) } else { Err(Invalid::Malformed) };
    };
    let line = str::from_utf8(&bytes[..end]).map_err(|_| Invalid::Malformed)?;
    let mut words = line.split(' ').skip(1);
    let source = match words.next() {
        // Whatever follows is not to be looked at.
        Some("UNKNOWN") => None,
        Some("TCP4") => Some(line_source::<Ipv4Addr>(words)?),
        Some("TCP6") => Some(line_source::<Ipv6Addr>(words)?),
        _ => return Err(Invalid::Malformed),
    };
    Ok(Parsed::Complete { source, length: end + 2 })
}

/// The source of `SOURCE DESTINATION SOURCE-PORT DESTINATION-PORT`.
fn line_source<'w, A>(mut words: impl Iterator<Item = &'w str>) -> Result<SocketAddr, Invalid>
where
    A: std::str::FromStr + Into<IpAddr>,
{
    let mut address = || words.next()?.parse::<A>().ok();
    let (source, destination) = (address(), address());
    let mut port = || words.next().filter(|word| is_port(word))?.parse::<u16>().ok();
    let (source_port, destination_port) = (port(), port());
    match (source, destination, source_port, destination_port, words.next()) {
        (Some(source), Some(_), Some(port), Some(_), None) => Ok(SocketAddr::new(source.into(), port)),
        _ => Err(Invalid::Malformed),
    }
}

/// Digits alone; `parse` would take a sign.
fn is_port(word: &str) -> bool {
    word.bytes().all(|b| b.is_ascii_digit()) && (word == "0" || !word.starts_with('0'))
}

fn version_2(bytes: &[u8]) -> Result<Parsed, Invalid> {
    let Some((fixed, rest)) = bytes.split_at_checked(FIXED) else { return Ok(Parsed::Incomplete) };
    let length = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    let is_local = match fixed[12] {
        0x20 => true,
        0x21 => false,
        _ => return Err(Invalid::Malformed),
    };
    if FIXED + length > LONGEST {
        return Err(Invalid::TooLong);
    }
    let Some(rest) = rest.get(..length) else { return Ok(Parsed::Incomplete) };
    let source = match fixed[13] {
        _ if is_local => None,
        // Unspecified: the sender does not know.
        0x00 => None,
        0x11 => Some(block_source::<4>(rest)?),
        0x21 => Some(block_source::<16>(rest)?),
        _ => return Err(Invalid::Malformed),
    };
    Ok(Parsed::Complete { source, length: FIXED + length })
}

/// The source of two addresses of `N` bytes and two ports.
fn block_source<const N: usize>(block: &[u8]) -> Result<SocketAddr, Invalid>
where
    IpAddr: From<[u8; N]>,
{
    let address = block.first_chunk::<N>().copied().map(IpAddr::from);
    let ports = block.get(2 * N..2 * N + 4);
    match (address, ports) {
        (Some(address), Some(ports)) => {
            Ok(SocketAddr::new(address, u16::from_be_bytes([ports[0], ports[1]])))
        }
        _ => Err(Invalid::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn complete(source: Option<&str>, length: usize) -> Result<Parsed, Invalid> {
        Ok(Parsed::Complete { source: source.map(|source| source.parse().unwrap()), length })
    }

    fn v2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let length = (block.len() as u16).to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, block].concat()
    }

    #[test]
    fn lines_of_version_1() {
        for (line, expected) in [
            ("PROXY TCP4 192.0.2.1 192.0.2.2 1234 80\r\nGET", complete(Some("192.0.2.1:1234"), 40)),
            ("PROXY TCP6 2001:db8::1 ::1 1234 80\r\n", complete(Some("[2001:db8::1]:1234"), 36)),
            ("PROXY UNKNOWN\r\n", complete(None, 15)),
            ("PROXY UNKNOWN ff 1 what ever\r\n", complete(None, 30)),
            ("PROXY TCP4 192.0.2.1", Ok(Parsed::Incomplete)),
            ("P", Ok(Parsed::Incomplete)),
            ("", Ok(Parsed::Incomplete)),
            ("PROXY TCP4 192.0.2.1 192.0.2.2 1234 80 x\r\n", Err(Invalid::Malformed)),
            ("PROXY TCP4 192.0.2.1 192.0.2.2 1234\r\n", Err(Invalid::Malformed)),
            ("PROXY TCP4 192.0.2.1 192.0.2.2 +1234 80\r\n", Err(Invalid::Malformed)),
            ("PROXY TCP4 192.0.2.1 192.0.2.2 65536 80\r\n", Err(Invalid::Malformed)),
            ("PROXY TCP4 ::1 ::1 1 2\r\n", Err(Invalid::Malformed)),
            ("PROXY TCP4  192.0.2.1 192.0.2.2 1234 80\r\n", Err(Invalid::Malformed)),
            ("PROXY UDP4 192.0.2.1 192.0.2.2 1234 80\r\n", Err(Invalid::Malformed)),
            ("PROXY\r\n", Err(Invalid::Missing)),
            ("PUT / HTTP/1.1\r\n", Err(Invalid::Missing)),
            ("GET / HTTP/1.1\r\n", Err(Invalid::Missing)),
        ] {
            assert_eq!(parse(line.as_bytes()), expected, "{line:?}");
        }
        let endless = format!("PROXY UNKNOWN {}", "x".repeat(LONGEST_V1));
        assert_eq!(parse(endless.as_bytes()), Err(Invalid::Malformed));
    }

    #[test]
    fn blocks_of_version_2() {
        let tcp4 = [192, 0, 2, 1, 192, 0, 2, 2, 4, 210, 0, 80];
        let mut tcp6 = [0; 36];
        (tcp6[15], tcp6[33]) = (1, 80);
        assert_eq!(parse(&v2(0x21, 0x11, &tcp4)), complete(Some("192.0.2.1:1234"), 28));
        assert_eq!(parse(&v2(0x21, 0x21, &tcp6)), complete(Some("[::1]:80"), 52));
        // What is appended is skipped.
        assert_eq!(
            parse(&v2(0x21, 0x11, &[&tcp4[..], &[3, 0, 1, 9]].concat())),
            complete(Some("192.0.2.1:1234"), 32)
        );
        // A health check of the balancer itself, whatever it says.
        assert_eq!(parse(&v2(0x20, 0x11, &tcp4)), complete(None, 28));
        assert_eq!(parse(&v2(0x20, 0x00, &[])), complete(None, 16));
        assert_eq!(parse(&v2(0x21, 0x00, &[1, 2])), complete(None, 18));
        for (command, family, block) in [
            (0x21, 0x11, &tcp4[..11]),
            (0x22, 0x11, &tcp4),
            (0x11, 0x11, &tcp4),
            (0x21, 0x12, &tcp4),
            (0x21, 0x31, &[0; 216]),
        ] {
            assert_eq!(parse(&v2(command, family, block)), Err(Invalid::Malformed), "{command:x} {family:x}");
        }
        assert_eq!(parse(&v2(0x21, 0x11, &[0; LONGEST])), Err(Invalid::TooLong));
    }

    fn header() -> impl Strategy<Value = (Vec<u8>, SocketAddr)> {
        (any::<SocketAddr>(), any::<SocketAddr>(), any::<bool>(), prop::collection::vec(any::<u8>(), 0..64))
            .prop_map(|(source, destination, line, appended)| {
                let (ip, port) = (source.ip(), source.port());
                let other: IpAddr = match (ip, destination.ip()) {
                    (IpAddr::V4(_), IpAddr::V6(_)) => Ipv4Addr::LOCALHOST.into(),
                    (IpAddr::V6(_), IpAddr::V4(_)) => Ipv6Addr::LOCALHOST.into(),
                    (_, other) => other,
                };
                let bytes = match (line, ip, other) {
                    (true, ip, other) => {
                        let family = if ip.is_ipv4() { "TCP4" } else { "TCP6" };
                        format!("PROXY {family} {ip} {other} {port} {}\r\n", destination.port()).into_bytes()
                    }
                    (false, IpAddr::V4(a), IpAddr::V4(b)) => {
                        let ports = [port.to_be_bytes(), destination.port().to_be_bytes()].concat();
                        v2(0x21, 0x11, &[&a.octets()[..], &b.octets(), &ports, &appended].concat())
                    }
                    (false, a, b) => {
                        let octets = |ip| match ip {
                            IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                            IpAddr::V6(ip) => ip.octets(),
                        };
                        let ports = [port.to_be_bytes(), destination.port().to_be_bytes()].concat();
                        v2(0x21, 0x21, &[&octets(a)[..], &octets(b), &ports, &appended].concat())
                    }
                };
                (bytes, SocketAddr::new(ip, port))
            })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read((bytes, source) in header(), rest: Vec<u8>) {
            let whole = [&bytes[..], &rest].concat();
            prop_assert_eq!(parse(&whole), Ok(Parsed::Complete { source: Some(source), length: bytes.len() }));
        }

        #[test]
        fn a_part_of_a_header_is_never_taken_for_a_whole((bytes, _) in header(), cut: prop::sample::Index) {
            prop_assert_eq!(parse(&bytes[..cut.index(bytes.len())]), Ok(Parsed::Incomplete));
        }

        #[test]
        fn any_bytes_have_an_answer(start in prop::sample::select(vec![&b""[..], b"PROXY ", SIGNATURE]), rest: Vec<u8>) {
            let bytes = [start, &rest].concat();
            if let Ok(Parsed::Complete { length, .. }) = parse(&bytes) {
                prop_assert!(length <= bytes.len().min(LONGEST));
            }
        }
    }
}
