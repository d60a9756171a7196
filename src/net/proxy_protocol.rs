//! The PROXY protocol, versions 1 and 2 (HAProxy's specification of 2020): what a load balancer says
//! about a connection before it passes it on. It is read from those in front of us, and written to backends
//! that want it.
//!
//! Deliberately absent: what is appended to version 2 (TLVs) is skipped, its checksum included, because
//! nothing here needs it; and the addresses of datagrams and local sockets are refused, because no
//! request can come by them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::model::protocol::{ProxyProtocol, V2_SIGNATURE as SIGNATURE};

/// Bytes of version 2 before the addresses.
const FIXED: usize = 16;

/// Addresses of IPv4, or of IPv6, in version 2.
const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;

/// Longest header of version 1, its end of line included.
const LONGEST_V1: usize = 107;

/// Longest header that is taken: room for the addresses and what load balancers append to them.
pub const LONGEST: usize = 4096;

/// Whose a connection is, and where they made it to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// The client's address.
    pub source: SocketAddr,
    /// The address that it connected to.
    pub destination: SocketAddr,
}

/// What has been found at the beginning of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// The header may go on; every byte so far belongs to it.
    Incomplete,
    /// The whole header.
    Complete {
        /// Whose connection it is; nothing, if it is that of the sender itself (a health check), or
        /// unknown.
        origin: Option<Origin>,
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
        Some(b'\r') if begins(&SIGNATURE) => version_2(bytes),
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
    let origin = match words.next() {
        // Whatever follows is not to be looked at.
        Some("UNKNOWN") => None,
        Some("TCP4") => Some(line_origin::<Ipv4Addr>(words)?),
        Some("TCP6") => Some(line_origin::<Ipv6Addr>(words)?),
        _ => return Err(Invalid::Malformed),
    };
    Ok(Parsed::Complete { origin, length: end + 2 })
}

/// What `SOURCE DESTINATION SOURCE-PORT DESTINATION-PORT` says.
fn line_origin<'w, A>(mut words: impl Iterator<Item = &'w str>) -> Result<Origin, Invalid>
where
    A: std::str::FromStr + Into<IpAddr>,
{
    let mut address = || words.next()?.parse::<A>().ok();
    let (source, destination) = (address(), address());
    let mut port = || words.next().filter(|word| is_port(word))?.parse::<u16>().ok();
    let (source_port, destination_port) = (port(), port());
    match (source, destination, source_port, destination_port, words.next()) {
        (Some(source), Some(destination), Some(source_port), Some(destination_port), None) => Ok(Origin {
            source: SocketAddr::new(source.into(), source_port),
            destination: SocketAddr::new(destination.into(), destination_port),
        }),
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
    let origin = match fixed[13] {
        _ if is_local => None,
        // Unspecified: the sender does not know.
        0x00 => None,
        TCP4 => Some(block_origin::<4>(rest).ok_or(Invalid::Malformed)?),
        TCP6 => Some(block_origin::<16>(rest).ok_or(Invalid::Malformed)?),
        _ => return Err(Invalid::Malformed),
    };
    Ok(Parsed::Complete { origin, length: FIXED + length })
}

/// What two addresses of `N` bytes and two ports say.
fn block_origin<const N: usize>(block: &[u8]) -> Option<Origin>
where
    IpAddr: From<[u8; N]>,
{
    let (source, block) = block.split_first_chunk::<N>()?;
    let (destination, block) = block.split_first_chunk::<N>()?;
    let (source_port, block) = block.split_first_chunk()?;
    let (destination_port, _appended) = block.split_first_chunk()?;
    Some(Origin {
        source: SocketAddr::new((*source).into(), u16::from_be_bytes(*source_port)),
        destination: SocketAddr::new((*destination).into(), u16::from_be_bytes(*destination_port)),
    })
}

/// The header of a connection that is a client's, or our own if it is nobody's.
pub fn header(version: ProxyProtocol, origin: Option<&Origin>) -> Vec<u8> {
    let Some(Origin { source, destination }) = origin else { return version.own().to_vec() };
    let (from, to) = (source.ip().to_canonical(), destination.ip().to_canonical());
    let (from, to) = match (from, to) {
        (IpAddr::V4(_), IpAddr::V4(_)) | (IpAddr::V6(_), IpAddr::V6(_)) => (from, to),
        // A header has one kind of addresses.
        _ => (mapped(from), mapped(to)),
    };
    match version {
        ProxyProtocol::V1 => {
            let family = if from.is_ipv4() { "TCP4" } else { "TCP6" };
            let (source_port, destination_port) = (source.port(), destination.port());
            format!("PROXY {family} {from} {to} {source_port} {destination_port}\r\n").into_bytes()
        }
        ProxyProtocol::V2 => {
            let mut block = Vec::with_capacity(36);
            let mut family = TCP4;
            for address in [from, to] {
                match address {
                    IpAddr::V4(address) => block.extend_from_slice(&address.octets()),
                    IpAddr::V6(address) => {
                        family = TCP6;
                        block.extend_from_slice(&address.octets());
                    }
                }
            }
            for port in [source.port(), destination.port()] {
                block.extend_from_slice(&port.to_be_bytes());
            }
            let length = (block.len() as u16).to_be_bytes();
            [&SIGNATURE[..], &[0x21, family], &length, &block].concat()
        }
    }
}

/// An address as one of IPv6.
fn mapped(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().into(),
        IpAddr::V6(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const V4: (&str, &str) = ("192.0.2.1:1234", "192.0.2.2:80");
    const V6: (&str, &str) = ("[::1]:80", "[::2]:90");

    fn complete(origin: Option<(&str, &str)>, length: usize) -> Result<Parsed, Invalid> {
        Ok(Parsed::Complete { origin: origin.map(origin_of), length })
    }

    fn origin_of((source, destination): (&str, &str)) -> Origin {
        Origin { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    fn v2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let length = (block.len() as u16).to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, block].concat()
    }

    #[test]
    fn lines_of_version_1() {
        for (line, expected) in [
            ("PROXY TCP4 192.0.2.1 192.0.2.2 1234 80\r\nGET", complete(Some(V4), 40)),
            (
                "PROXY TCP6 2001:db8::1 ::1 1234 80\r\n",
                complete(Some(("[2001:db8::1]:1234", "[::1]:80")), 36),
            ),
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
        (tcp6[15], tcp6[31], tcp6[33], tcp6[35]) = (1, 2, 80, 90);
        assert_eq!(parse(&v2(0x21, 0x11, &tcp4)), complete(Some(V4), 28));
        assert_eq!(parse(&v2(0x21, 0x21, &tcp6)), complete(Some(V6), 52));
        // What is appended is skipped.
        assert_eq!(parse(&v2(0x21, 0x11, &[&tcp4[..], &[3, 0, 1, 9]].concat())), complete(Some(V4), 32));
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

    #[test]
    fn headers_are_as_the_specification_has_them() {
        let tcp4 = [192, 0, 2, 1, 192, 0, 2, 2, 4, 210, 0, 80];
        let line = b"PROXY TCP4 192.0.2.1 192.0.2.2 1234 80\r\n";
        assert_eq!(header(ProxyProtocol::V1, Some(&origin_of(V4))), line);
        assert_eq!(header(ProxyProtocol::V2, Some(&origin_of(V4))), v2(0x21, 0x11, &tcp4));
        assert_eq!(header(ProxyProtocol::V1, Some(&origin_of(V6))), b"PROXY TCP6 ::1 ::2 80 90\r\n");
        assert_eq!(header(ProxyProtocol::V1, None), b"PROXY UNKNOWN\r\n");
        assert_eq!(header(ProxyProtocol::V2, None), v2(0x20, 0x00, &[]));
        // A client of a dual-stack listener is what it is; one whose balancer speaks another family is written
        // as the larger of the two.
        let dual = origin_of(("[::ffff:192.0.2.1]:1234", "[::ffff:192.0.2.2]:80"));
        assert_eq!(header(ProxyProtocol::V1, Some(&dual)), line);
        let mixed = origin_of(("[::1]:1", "192.0.2.2:80"));
        let line = b"PROXY TCP6 ::1 ::ffff:192.0.2.2 1 80\r\n";
        assert_eq!(header(ProxyProtocol::V1, Some(&mixed)), line);
    }

    fn origin() -> impl Strategy<Value = Origin> {
        any::<(SocketAddr, SocketAddr)>().prop_map(|(source, destination)| Origin { source, destination })
    }

    /// What of two addresses a header says: those of IPv4 are what they are.
    fn said(Origin { source, destination }: Origin) -> [(IpAddr, u16); 2] {
        [source, destination].map(|address| (address.ip().to_canonical(), address.port()))
    }

    /// A header with something appended, where that may be, and what it says.
    fn header_of() -> impl Strategy<Value = (Vec<u8>, Origin)> {
        let version = prop::sample::select(vec![ProxyProtocol::V1, ProxyProtocol::V2]);
        let appended = prop::collection::vec(any::<u8>(), 0..64);
        (version, origin(), appended).prop_map(|(version, origin, appended)| {
            let mut bytes = header(version, Some(&origin));
            if version == ProxyProtocol::V2 {
                bytes[15] += appended.len() as u8;
                bytes.extend_from_slice(&appended);
            }
            (bytes, origin)
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read((bytes, origin) in header_of(), rest: Vec<u8>) {
            let whole = [&bytes[..], &rest].concat();
            let parsed = parse(&whole);
            let Ok(Parsed::Complete { origin: Some(read), length }) = parsed else { panic!("{parsed:?}") };
            prop_assert_eq!((said(read), length), (said(origin), bytes.len()));
        }

        #[test]
        fn a_part_of_a_header_is_never_taken_for_a_whole((bytes, _) in header_of(), cut: prop::sample::Index) {
            prop_assert_eq!(parse(&bytes[..cut.index(bytes.len())]), Ok(Parsed::Incomplete));
        }

        #[test]
        fn any_bytes_have_an_answer(start in prop::sample::select(vec![&b""[..], b"PROXY ", &SIGNATURE]), rest: Vec<u8>) {
            let bytes = [start, &rest].concat();
            if let Ok(Parsed::Complete { length, .. }) = parse(&bytes) {
                prop_assert!(length <= bytes.len().min(LONGEST));
            }
        }
    }
}
