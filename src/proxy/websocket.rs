//! The key that a WebSocket's client sends over HTTP/1.1, and the server's answer (RFC 6455, section
//! 4): needed where one side speaks HTTP/2, which has neither.

use http::HeaderValue;
use sha1::{Digest, Sha1};

/// What a server appends to the key, to show that it means WebSocket.
const SUFFIX: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// A key of random bytes.
pub(super) fn key(random: u128) -> HeaderValue {
    value(&random.to_ne_bytes())
}

/// The answer to a key.
pub(super) fn accept(key: &HeaderValue) -> HeaderValue {
    value(&Sha1::new().chain_update(key.as_bytes()).chain_update(SUFFIX).finalize())
}

fn value(bytes: &[u8]) -> HeaderValue {
    HeaderValue::try_from(base64(bytes)).expect("base64 is visible ASCII")
}

fn base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group =
            chunk.iter().fold(0, |group, byte| group << 8 | usize::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let digit = ALPHABET[group >> (18 - 6 * place) & 63];
            text.push(if place <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_rfc_4648() {
        let vectors = ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"];
        for (length, expected) in vectors.into_iter().enumerate() {
            assert_eq!(base64(&b"foobar"[..length]), expected);
        }
    }

    #[test]
    fn the_answer_is_that_of_rfc_6455() {
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(accept(&key), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
