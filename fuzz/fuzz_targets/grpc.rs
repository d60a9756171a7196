//! What a gRPC client and a gRPC server write into fields: a timeout on the first line, a status on
//! the second. A timeout that is read is at least what is told to the backend, and close to it; a
//! status is a success only if it is one of those that are answers.

#![no_main]

use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;
use tidegate::{model::outcome::Outcome, proxy::fuzzing};

const ANSWERS: [u8; 11] = [0, 1, 3, 5, 6, 7, 8, 9, 10, 11, 16];

fuzz_target!(|data: &[u8]| {
    let mut lines = data.splitn(2, |b| *b == b'\n');
    let (timeout, status) = (lines.next().unwrap_or_default(), lines.next());
    if let Some(asked) = fuzzing::grpc_timeout(timeout) {
        assert!(timeout.len() <= 9 && asked <= Duration::from_secs(99_999_999 * 3600));
        let told = fuzzing::grpc_timeout_field(asked);
        let told = fuzzing::grpc_timeout(told.as_bytes()).expect("what we write can be read");
        assert!(told <= asked && asked - told <= asked / 10_000, "{asked:?} became {told:?}");
    }
    let mut fields = HeaderMap::new();
    if let Some(status) = status.and_then(|status| HeaderValue::from_bytes(status).ok()) {
        let answers = ANSWERS.iter().any(|answer| status == answer.to_string());
        fields.insert("grpc-status", status);
        assert_eq!(fuzzing::grpc_outcome(&fields) == Outcome::Success, answers);
    } else {
        assert_eq!(fuzzing::grpc_outcome(&fields), Outcome::GrpcFailure);
    }
});
