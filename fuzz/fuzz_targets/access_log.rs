//! Lines of the access log: eight numbers of a byte each, then texts, a line each, which a client or a
//! backend has chosen. What is written is one line of printable ASCII, and JSON where it should be.

#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use tidegate::{
    access_log::{
        format::line,
        record::{LONGEST_TEXT, Record, Text, Texts},
    },
    config::LogFormat,
    model::time::Timestamp,
};

fuzz_target!(|data: &[u8]| {
    let Some((numbers, rest)) = data.split_first_chunk::<8>() else { return };
    let number = u64::from_le_bytes(*numbers);
    let mut texts = Texts::default();
    for (text, bytes) in Text::ALL.into_iter().zip(rest.split(|b| *b == b'\n')) {
        texts.set(text, bytes);
    }
    let path = texts.get(Text::Path).map(|path| String::from_utf8_lossy(path).into_owned());
    assert!(path.as_ref().is_none_or(|path| path.chars().count() <= LONGEST_TEXT));
    let record = Record {
        at: Timestamp::from_millis(number),
        client: numbers[..4].first_chunk::<4>().copied().unwrap_or_default().into(),
        protocol: "HTTP/2",
        status: Some(u16::from(numbers[0])).filter(|status| status & 1 == 0),
        bytes_in: number,
        bytes_out: number.rotate_left(32),
        duration: Duration::from_nanos(number),
        attempts: u32::from(numbers[1]),
        head_after: Some(Duration::from_millis(number)).filter(|_| numbers[0] & 2 == 0),
        role: None,
        assignment: None,
        local_reply: None,
        outcome: None,
        trace_id: Some(u128::from(number)).filter(|_| numbers[0] & 4 == 0),
        texts,
    };
    for format in [LogFormat::Json, LogFormat::Text] {
        let mut written = Vec::new();
        line(format, &record, &mut written);
        let (end, written) = written.split_last().expect("a line has an end");
        assert!(*end == b'\n' && written.iter().all(|b| (b' '..=b'~').contains(b)), "{written:?}");
        if format == LogFormat::Json {
            let read: Value = serde_json::from_slice(written).expect("it is JSON");
            assert_eq!(read["path"].as_str(), path.as_deref());
            assert_eq!(read["bytes_in"].as_u64(), Some(number));
        }
    }
});
