//! Secrets that sign what clients keep for us, so that they bring nothing back that they made themselves.
//!
//! The file has one secret, or two while it is being replaced: the first signs, and what either has signed is
//! believed. Nothing of a secret is ever said, not even in its debug form.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use arc_swap::ArcSwap;
use ring::hmac::{self, HMAC_SHA256, Key};

use super::{
    files::{Fault, Source, read},
    reload::{Kept, Reloads},
};
use crate::model::time::Timestamp;

/// Bytes of what is signed.
pub const LENGTH: usize = 16;

/// Bytes of a signature, which is HMAC-SHA256.
pub const SIGNATURE: usize = 32;

/// Characters that a secret has at least: 128 bits as hexadecimal digits.
const SHORTEST: usize = 32;

/// What is signed begins with this, so that a secret that signs other things elsewhere does no harm.
const CONTEXT: [u8; 16] = *b"tidegate cookie\0";

/// Secrets, by their file: one on a line.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Secrets(pub PathBuf);

impl fmt::Display for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

impl Source for Secrets {
    type Made = Arc<Keys>;

    fn paths(&self) -> Vec<&Path> {
        vec![&self.0]
    }

    fn load(&self) -> Result<Arc<Keys>, Fault> {
        Keys::parse(&read(&self.0)?, &self.0).map(Arc::new)
    }

    fn check(&self, _: &Arc<Keys>, _: Timestamp) -> Result<(), Fault> {
        Ok(())
    }
}

/// What was made of secrets.
#[derive(Debug)]
pub struct Keys {
    current: Key,
    previous: Option<Key>,
}

impl Keys {
    /// Reads secrets, one on a line, as they stand in a file of this name.
    ///
    /// # Errors
    /// When there are none, more than two, or one is too short.
    pub fn parse(text: &[u8], file: &Path) -> Result<Self, Fault> {
        let lines = text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
        let secrets: Vec<_> = lines.zip(1..).filter(|(secret, _)| !secret.is_empty()).collect();
        if let Some((_, line)) = secrets.iter().find(|(secret, _)| secret.len() < SHORTEST) {
            return Err(Fault::ShortSecret { path: file.to_owned(), line: *line });
        }
        let key = |(secret, _): &(&[u8], usize)| Key::new(HMAC_SHA256, secret);
        match secrets.as_slice() {
            [] => Err(Fault::NoSecret(file.to_owned())),
            [current] => Ok(Self { current: key(current), previous: None }),
            [current, previous] => Ok(Self { current: key(current), previous: Some(key(previous)) }),
            _ => Err(Fault::ManySecrets(file.to_owned())),
        }
    }
}

/// By which secret something is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignedBy {
    /// The one that signs.
    Current,
    /// The one that has signed until now: it should be signed anew.
    Previous,
}

/// Signs, and knows what it has signed.
#[derive(Debug)]
pub struct Signer {
    source: Secrets,
    keys: ArcSwap<Keys>,
}

impl Signer {
    /// A signer of these keys.
    pub fn new(source: Secrets, keys: Arc<Keys>) -> Self {
        Self { source, keys: ArcSwap::new(keys) }
    }

    /// Signs something.
    pub fn sign(&self, what: &[u8; LENGTH]) -> [u8; SIGNATURE] {
        let signed = hmac::sign(&self.keys.load().current, &in_context(what));
        signed.as_ref().try_into().expect("it has as many bytes as SHA-256 makes")
    }

    /// By which secret something is signed, if by any. How long it takes says nothing about how much of the
    /// signature is right.
    pub fn verify(&self, what: &[u8; LENGTH], signature: &[u8; SIGNATURE]) -> Option<SignedBy> {
        let (keys, what) = (self.keys.load(), in_context(what));
        let by = |key: &Key| hmac::verify(key, &what, signature).is_ok();
        if by(&keys.current) {
            return Some(SignedBy::Current);
        }
        keys.previous.as_ref().is_some_and(by).then_some(SignedBy::Previous)
    }

    /// Where its secrets are.
    pub fn source(&self) -> &Secrets {
        &self.source
    }
}

fn in_context(what: &[u8; LENGTH]) -> [u8; 32] {
    let mut whole = [0; 32];
    whole[..16].copy_from_slice(&CONTEXT);
    whole[16..].copy_from_slice(what);
    whole
}

/// What one of them has signed, the other believes.
impl PartialEq for Signer {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl Eq for Signer {}

/// A signer, kept fresh.
#[derive(Debug)]
pub(super) struct KeptSigner {
    signer: Arc<Signer>,
    kept: Kept<Secrets>,
}

impl KeptSigner {
    /// Reads the file.
    pub(super) fn new(source: Secrets) -> Result<Self, Fault> {
        let kept = Kept::load(source.clone())?;
        let signer = Arc::new(Signer::new(source, Arc::clone(kept.made().1)));
        Ok(Self { signer, kept })
    }

    /// What workers use.
    pub(super) fn signer(&self) -> &Arc<Signer> {
        &self.signer
    }

    /// Looks at the file, and publishes what has changed for the better.
    pub(super) fn refresh(&mut self, reloads: &mut Reloads) {
        if self.kept.refresh(reloads) {
            self.signer.keys.store(Arc::clone(self.kept.made().1));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NEW: &str = "0123456789abcdef0123456789abcdef";
    const WHAT: [u8; LENGTH] = *b"0000000000000001";
    const OLD: &str = "a secret of words that nobody knows";

    fn keys(text: &str) -> Result<Keys, Fault> {
        Keys::parse(text.as_bytes(), Path::new("secret"))
    }

    fn signer(text: &str) -> Signer {
        Signer::new(Secrets("secret".into()), Arc::new(keys(text).unwrap()))
    }

    #[test]
    fn it_is_hmac_sha256_of_the_context_and_what_is_signed() {
        // printf 'tidegate cookie\\0fedcba9876543210' | openssl dgst -sha256 -hmac 0123456789abcdef0123456789abcdef
        let signature: String =
            signer(NEW).sign(b"fedcba9876543210").iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(signature, "d7844b746610afc539188e0ad46b1591e9076b19d78471ff6d02101b6efc9716");
    }

    #[test]
    fn one_secret_or_two_may_stand_in_a_file() {
        for fine in [NEW.to_owned(), format!("{NEW}\n"), format!("\r\n{NEW}\r\n\n{OLD}\r\n")] {
            assert!(keys(&fine).is_ok(), "{fine:?}");
        }
        let path = PathBuf::from("secret");
        for none in ["", "\n \n"] {
            assert_eq!(keys(none).unwrap_err(), Fault::NoSecret(path.clone()));
        }
        let short = format!("{NEW}\n\n{}\n", &NEW[1..]);
        assert_eq!(keys(&short).unwrap_err(), Fault::ShortSecret { path: path.clone(), line: 3 });
        assert_eq!(keys(&format!("{NEW}\n{OLD}\n{NEW}")).unwrap_err(), Fault::ManySecrets(path));
    }

    #[test]
    fn both_are_believed_and_the_first_signs() {
        let (before, both, after) = (signer(OLD), signer(&format!("{NEW}\n{OLD}")), signer(NEW));
        let (old, new) = (before.sign(&WHAT), both.sign(&WHAT));
        assert_eq!(both.verify(&WHAT, &old), Some(SignedBy::Previous));
        assert_eq!(both.verify(&WHAT, &new), Some(SignedBy::Current));
        assert_eq!((after.verify(&WHAT, &old), after.verify(&WHAT, &new)), (None, Some(SignedBy::Current)));
    }

    #[test]
    fn nothing_is_said_of_a_secret() {
        let said = format!("{:?}", signer(NEW));
        assert!(!said.contains("01234") && !said.contains("48, 49"), "{said}");
        assert!(!keys(&NEW[1..]).unwrap_err().to_string().contains("1234"));
    }

    proptest! {
        #[test]
        fn what_is_changed_is_not_believed(what: [u8; 16], at in 0usize..48, bit in 0u32..8) {
            let signer = signer(&format!("{NEW}\n{OLD}"));
            let signature = signer.sign(&what);
            prop_assert_eq!(signer.verify(&what, &signature), Some(SignedBy::Current));
            let (mut what, mut signature) = (what, signature);
            match at.checked_sub(16) {
                None => what[at] ^= 1 << bit,
                Some(at) => signature[at] ^= 1 << bit,
            }
            prop_assert_eq!(signer.verify(&what, &signature), None);
        }

        #[test]
        fn nobody_else_signs(secret in "[!-~]{32,80}", what: [u8; 16]) {
            prop_assume!(secret != NEW);
            prop_assert_eq!(signer(NEW).verify(&what, &signer(&secret).sign(&what)), None);
        }
    }
}
