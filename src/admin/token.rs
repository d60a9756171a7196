//! Tokens: 256 bits of chance that their owner keeps, and a SHA-256 of them that the proxy knows.
//!
//! A hash made for passwords (slow, salted) would protect secrets that can be guessed; these cannot be,
//! and nothing that is not of their form is taken for one.

use std::fmt;

use rand::{TryRng as _, rngs::SysRng};
use ring::digest::{SHA256, digest};

use crate::config::TOKEN_PREFIX;

/// Bytes of chance in a token.
const BYTES: usize = 32;

/// A token. Its text is a secret, so it is not shown by accident.
pub struct Token(String);

impl Token {
    /// A new one, of the system's randomness.
    ///
    /// # Errors
    /// When the system has none.
    pub fn new() -> Result<Self, impl std::error::Error + Send + Sync + 'static> {
        let mut bytes = [0; BYTES];
        SysRng.try_fill_bytes(&mut bytes).map(|()| Self(format!("{TOKEN_PREFIX}{}", Hex(&bytes))))
    }

    /// What somebody says is one; nothing if it has not the form of a token.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix(TOKEN_PREFIX)?;
        let is_hex = |b: u8| b.is_ascii_digit() || matches!(b, b'a'..=b'f');
        (digits.len() == 2 * BYTES && digits.bytes().all(is_hex)).then(|| Self(text.to_owned()))
    }

    /// The secret itself, for its owner.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// What the proxy knows of it.
    pub fn sha256(&self) -> [u8; 32] {
        digest(&SHA256, self.0.as_bytes()).as_ref().try_into().expect("a SHA-256 has 32 bytes")
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Bytes as hexadecimal digits.
#[derive(Debug, Clone, Copy)]
pub struct Hex<'b>(pub &'b [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_token_has_the_form_of_one_and_is_no_other() {
        let (one, two) = (Token::new().unwrap(), Token::new().unwrap());
        assert_ne!(one.reveal(), two.reveal());
        assert_eq!(Token::parse(one.reveal()).unwrap().sha256(), one.sha256());
        assert_ne!(one.sha256(), two.sha256());
        assert!(!format!("{one:?}").contains(&one.reveal()[20..]));
    }

    #[test]
    fn the_hash_is_what_sha256sum_says() {
        let token = Token::parse(&format!("{TOKEN_PREFIX}{}", "0".repeat(64))).unwrap();
        let expected = "607950dab48ae533285855d8f0e8eb23c7bf6ecc04db6729d4d74f85f27a80ab";
        assert_eq!(Hex(&token.sha256()).to_string(), expected);
    }

    #[test]
    fn what_could_be_guessed_is_no_token() {
        let right = format!("{TOKEN_PREFIX}{}", "a".repeat(64));
        assert!(Token::parse(&right).is_some());
        for wrong in ["", "secret", &right[1..], &right[..72], &format!("{right}a"), &right.to_uppercase()] {
            assert!(Token::parse(wrong).is_none(), "{wrong}");
        }
    }
}
