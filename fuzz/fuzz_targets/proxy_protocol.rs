//! The PROXY header: any bytes have an answer, more bytes never change a whole header, a part of one is
//! never taken for a whole, and what is read is written so that it reads the same again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate::{
    model::protocol::ProxyProtocol,
    net::proxy_protocol::{LONGEST, Origin, Parsed, header, parse},
};

fuzz_target!(|data: &[u8]| {
    let Ok(Parsed::Complete { origin, length }) = parse(data) else { return };
    assert!(length <= data.len() && length <= LONGEST);
    assert_eq!(parse(&data[..length]), Ok(Parsed::Complete { origin, length }));
    for cut in 0..length.min(256) {
        assert_eq!(parse(&data[..cut]), Ok(Parsed::Incomplete));
    }
    for version in [ProxyProtocol::V1, ProxyProtocol::V2] {
        let written = header(version, origin.as_ref());
        let Ok(Parsed::Complete { origin: read, length }) = parse(&written) else { panic!("{written:?}") };
        assert_eq!(length, written.len());
        // An address of IPv4 in one of IPv6 is what it is.
        assert_eq!(read.map(canonical), origin.map(canonical));
    }
});

fn canonical(Origin { source, destination }: Origin) -> [(std::net::IpAddr, u16); 2] {
    [source, destination].map(|address| (address.ip().to_canonical(), address.port()))
}
