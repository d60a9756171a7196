//! The sticky cookie: whatever else a client sends, what is found has the shape of what we set, and what
//! we set is found; where it is signed, nothing else is. One `Cookie` field to a line.

#![no_main]

use std::{
    path::Path,
    sync::{Arc, LazyLock},
    time::Duration,
};

use http::{HeaderMap, HeaderValue, header::COOKIE};
use libfuzzer_sys::fuzz_target;
use tidegate::{
    proxy::fuzzing,
    routing::snapshot::StickyCookie,
    tls::signing::{Keys, Secrets, Signer},
};

const NUMBER: u64 = 0x0123_4567_89ab_cdef;

/// Nobody who does not know its secret can sign; what a corpus holds was signed with another.
static SIGNER: LazyLock<Signer> = LazyLock::new(|| {
    let secrets = b"the first of two secrets for fuzzing\nthe second of two secrets for fuzzing";
    let keys = Keys::parse(secrets, Path::new("secrets")).expect("they are long enough");
    Signer::new(Secrets("secrets".into()), Arc::new(keys))
});

fuzz_target!(|data: &[u8]| {
    let sticky = StickyCookie { name: "tidegate".to_owned(), max_age: Duration::from_secs(60) };
    let sent = || data.split(|b| *b == b'\n').filter_map(|line| HeaderValue::from_bytes(line).ok());
    let headers: HeaderMap = sent().map(|value| (COOKIE, value)).collect();
    if let Some(key) = fuzzing::find_key(&headers, &sticky, None) {
        assert!(key.len() == 16 && key.iter().all(u8::is_ascii_hexdigit));
    }
    assert_eq!(fuzzing::find_key(&headers, &sticky, Some(&SIGNER)), None);
    for signer in [None, Some(&*SIGNER)] {
        let set = fuzzing::set_cookie(NUMBER, &sticky, signer).expect("it is visible ASCII");
        let set = set.to_str().expect("it is visible ASCII");
        let (ours, _) = set.split_once(';').expect("it has attributes");
        let ours = HeaderValue::from_str(ours).expect("it was one");
        let headers: HeaderMap = [ours].into_iter().chain(sent()).map(|value| (COOKIE, value)).collect();
        assert_eq!(fuzzing::find_key(&headers, &sticky, signer), Some(&b"0123456789abcdef"[..]));
    }
});
