//! A backend's answer to a gRPC health check: any bytes have an answer, and a field that a newer
//! backend adds changes nothing.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate::controller::discovery::serving_status;

fuzz_target!(|data: &[u8]| {
    let _any = serving_status(data);
    let Some(status) = serving_status(&framed(data)) else { return };
    // Field 15, a text; and the field that counts, once more: the last one does.
    assert_eq!(serving_status(&framed(&[data, &[15 << 3 | 2, 2, b'h', b'i']].concat())), Some(status));
    assert_eq!(serving_status(&framed(&[data, &[1 << 3, 1]].concat())), Some(1));
});

fn framed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).expect("it fits into memory").to_be_bytes();
    [&[0], &length[..], message].concat()
}
