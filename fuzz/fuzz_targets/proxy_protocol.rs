//! The PROXY header: any bytes have an answer, more bytes never change a whole header, and a part of one
//! is never taken for a whole.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate::net::proxy_protocol::{LONGEST, Parsed, parse};

fuzz_target!(|data: &[u8]| {
    let Ok(Parsed::Complete { source, length }) = parse(data) else { return };
    assert!(length <= data.len() && length <= LONGEST);
    assert_eq!(parse(&data[..length]), Ok(Parsed::Complete { source, length }));
    for cut in 0..length.min(256) {
        assert_eq!(parse(&data[..cut]), Ok(Parsed::Incomplete));
    }
});
