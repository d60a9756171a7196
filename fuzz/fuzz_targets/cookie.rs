//! The sticky cookie: whatever else a client sends, what is found has the shape of what we set, and
//! what we set is found. One `Cookie` field to a line.

#![no_main]

use std::time::Duration;

use http::{HeaderMap, HeaderValue, header::COOKIE};
use libfuzzer_sys::fuzz_target;
use tidegate::{proxy::fuzzing, routing::snapshot::StickyCookie};

fuzz_target!(|data: &[u8]| {
    let sticky = StickyCookie { name: "tidegate".to_owned(), max_age: Duration::from_secs(60) };
    let sent = || data.split(|b| *b == b'\n').filter_map(|line| HeaderValue::from_bytes(line).ok());
    let headers: HeaderMap = sent().map(|value| (COOKIE, value)).collect();
    if let Some(key) = fuzzing::find_key(&headers, &sticky) {
        assert!(key.len() == 16 && key.iter().all(u8::is_ascii_hexdigit));
    }
    let set = fuzzing::set_cookie(0x0123_4567_89ab_cdef, &sticky).expect("it is visible ASCII");
    let (ours, _) = set.to_str().expect("it is visible ASCII").split_once(';').expect("it has attributes");
    let ours = HeaderValue::from_str(ours).expect("it was one");
    let headers: HeaderMap = [ours].into_iter().chain(sent()).map(|value| (COOKIE, value)).collect();
    assert_eq!(fuzzing::find_key(&headers, &sticky), Some(&b"0123456789abcdef"[..]));
});
