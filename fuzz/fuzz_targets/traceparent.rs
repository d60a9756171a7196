//! `traceparent`: what is read is written so that it reads the same again, and a text of version 00 that is
//! read is the one that is written but for flags that mean nothing here.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate::spans::context::TraceContext;

fuzz_target!(|data: &[u8]| {
    let Some(context) = TraceContext::parse(data) else { return };
    assert!(context.trace_id != 0 && context.span_id != 0);
    let written = context.to_bytes();
    assert_eq!(TraceContext::parse(&written), Some(context));
    if data.starts_with(b"00") {
        assert_eq!(data.len(), written.len());
        assert_eq!(data[..53], written[..53]);
    }
});
