//! `X-Forwarded-For` fields, one to a line, from a trusted proxy. Whatever a client has written into
//! them stands left of what the proxies wrote, and must not decide who the client is.

#![no_main]

use std::net::IpAddr;

use ipnet::IpNet;
use libfuzzer_sys::fuzz_target;
use tidegate::net::identity::{client, household, is_trusted};

fuzz_target!(|data: &[u8]| {
    let trusted: [IpNet; 2] = ["10.0.0.0/8", "fd00::/8"].map(|net| net.parse().expect("a range"));
    let peer = IpAddr::from([10, 0, 0, 1]);
    let found = client(peer, data.split(|b| *b == b'\n'), &trusted);
    let written = String::from_utf8_lossy(data).contains(['.', ':']);
    assert!(found == peer || written, "{found} was written nowhere");
    assert_eq!(household(household(found)), household(found));

    let stranger = IpAddr::from([198, 51, 100, 7]);
    assert_eq!(client(stranger, data.split(|b| *b == b'\n'), &trusted), stranger);
    let behind = [data, b"\n198.51.100.7, 10.0.0.2"].concat();
    assert_eq!(client(peer, behind.split(|b| *b == b'\n'), &trusted), stranger);
    assert!(!is_trusted(stranger, &trusted));
});
