//! The two messages of `grpc.health.v1.Health/Check`, written by hand: a library that compiles
//! Protocol Buffers would be larger than all that is checked with it.
//!
//! `HealthCheckRequest { string service = 1; }`, `HealthCheckResponse { ServingStatus status = 1; }`,
//! each after gRPC's prefix: one byte that says "not compressed", and the length in four.

/// The status that passes.
pub(super) const SERVING: u64 = 1;

const PREFIX: usize = 5;
/// Field 1, wire type 2: text with its length before it.
const SERVICE: u8 = 1 << 3 | 2;

/// The request for one service, or for the server as a whole where it is empty.
pub(super) fn request(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(SERVICE);
        put_varint(&mut message, service.len() as u64);
        message.extend_from_slice(service.as_bytes());
    }
    let mut framed = vec![0];
    framed.extend_from_slice(&(message.len() as u32).to_be_bytes());
    framed.append(&mut message);
    framed
}

/// The status in a response; nothing if it is no such response. Without the field it is 0, `UNKNOWN`.
pub(super) fn serving_status(framed: &[u8]) -> Option<u64> {
    let (prefix, mut message) = framed.split_at_checked(PREFIX)?;
    let length = u32::from_be_bytes(prefix[1..].try_into().ok()?);
    if prefix[0] != 0 || message.len() != length as usize {
        return None;
    }
    let mut status = 0;
    while !message.is_empty() {
        let tag = take_varint(&mut message)?;
        match (tag >> 3, tag & 7) {
            (1, 0) => status = take_varint(&mut message)?,
            (_, 0) => _ = take_varint(&mut message)?,
            (_, 1) => message = message.get(8..)?,
            (_, 2) => {
                let length = usize::try_from(take_varint(&mut message)?).ok()?;
                message = message.get(length..)?;
            }
            (_, 5) => message = message.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

fn put_varint(into: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        into.push(number as u8 | 0x80);
        number >>= 7;
    }
    into.push(number as u8);
}

fn take_varint(from: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = from.split_first()?;
        *from = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_are_as_protobuf_has_them() {
        assert_eq!(request(""), [0, 0, 0, 0, 0]);
        assert_eq!(request("a.B"), [0, 0, 0, 0, 5, 0x0a, 3, b'a', b'.', b'B']);
        assert_eq!(request(&"x".repeat(200))[..8], [0, 0, 0, 0, 203, 0x0a, 0xc8, 1]);
    }

    #[test]
    fn a_status_is_found_among_other_fields() {
        assert_eq!(serving_status(&[0, 0, 0, 0, 2, 0x08, 1]), Some(SERVING));
        assert_eq!(serving_status(&[0, 0, 0, 0, 2, 0x08, 2]), Some(2));
        assert_eq!(serving_status(&[0, 0, 0, 0, 0]), Some(0));
        let with_text = [0, 0, 0, 0, 6, 0x12, 2, b'h', b'i', 0x08, 1];
        assert_eq!(serving_status(&with_text), Some(SERVING));
    }

    #[test]
    fn what_is_no_response_is_none() {
        for wrong in [&b""[..], &[0, 0, 0, 0, 2, 8], &[1, 0, 0, 0, 2, 8, 1], &[0, 0, 0, 0, 2, 0x12, 9]] {
            assert_eq!(serving_status(wrong), None, "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _any = serving_status(&bytes);
            let mut framed = vec![0];
            framed.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
            framed.extend_from_slice(&bytes);
            let _any = serving_status(&framed);
        }
    }
}
