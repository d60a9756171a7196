//! Certificates, keys, authorities and secrets that a configuration names: noted while it is lowered, and read
//! only when a file of configuration is loaded. Text from anywhere else is only understood, because it
//! could name any file.

use std::{ops::Range, path::PathBuf};

use super::report::Report;
use crate::{
    clock,
    tls::{
        client::system_authorities,
        files::{Authorities, Fault, Pair, Source as _, read_text},
        signing::Secrets,
    },
};

/// Something that a configuration needs from outside, and where it says so.
#[derive(Debug)]
pub(super) enum Noted {
    /// A certificate and its key.
    Pair { pair: Pair, certificate: Range<usize>, key: Range<usize> },
    /// Authorities.
    Authorities(Authorities, Range<usize>),
    /// The authorities of this system.
    System(Range<usize>),
    /// Secrets.
    Secrets(Secrets, Range<usize>),
    /// A text that is read anew whenever it is needed.
    Text(PathBuf, Range<usize>),
}

/// Reads what was noted, and reports what is wrong with it.
pub(super) fn check(report: &mut Report<'_>) {
    for noted in report.take_noted() {
        match noted {
            Noted::Pair { pair, certificate, key } => match pair.load() {
                Err(fault) => fail(&fault, if is_about(&fault, &pair) { key } else { certificate }, report),
                Ok(made) => {
                    // No error: whoever restarts a proxy with ten certificates is better off with nine.
                    if let Err(expired) = pair.check(&made, clock::now()) {
                        report.warning(certificate, expired.to_string()).help(expired.remedy());
                    }
                }
            },
            Noted::Authorities(authorities, place) => {
                if let Err(fault) = authorities.load() {
                    fail(&fault, place, report);
                }
            }
            Noted::Secrets(secrets, place) => {
                if let Err(fault) = secrets.load() {
                    fail(&fault, place, report);
                }
            }
            Noted::Text(path, place) => {
                if let Err(fault) = read_text(&path) {
                    fail(&fault, place, report);
                }
            }
            Noted::System(place) => {
                if let Err(fault) = system_authorities() {
                    report.error(place, fault.to_string()).help(
                        "install them (in most systems the package `ca-certificates`), or name your own: `tls = { ca = \"ca.pem\" }`",
                    );
                }
            }
        }
    }
}

/// Whether a fault is in the key.
fn is_about(fault: &Fault, pair: &Pair) -> bool {
    match fault {
        Fault::Unreadable { path, .. } | Fault::Malformed { path, .. } => *path == pair.key,
        Fault::NoKey(_) | Fault::EncryptedKey(_) | Fault::UnsupportedKey(_) | Fault::Mismatch(_) => true,
        Fault::NoCertificate(_) | Fault::Expired(_) => false,
        Fault::NoSecret(_) | Fault::ShortSecret { .. } | Fault::ManySecrets(_) => false,
    }
}

fn fail(fault: &Fault, place: Range<usize>, report: &mut Report<'_>) {
    report.error(place, fault.to_string()).help(fault.remedy());
}
