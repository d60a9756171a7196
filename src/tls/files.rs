//! What stands in the files: certificates with their keys, authorities, and secrets. A fault says which file
//! it is in and what to do about it, at the start and on a reload alike.

use std::{
    fmt, fs,
    hash::{DefaultHasher, Hash, Hasher},
    io::Read as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::provider;
use crate::model::time::Timestamp;

/// Largest file that is read: the authorities of a whole operating system are a quarter of it.
const MAX_FILE: u64 = 1024 * 1024;

/// A certificate and its key, by their files.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Pair {
    /// The certificate, followed by those between it and the authority, as PEM.
    pub certificate: PathBuf,
    /// Its private key, as PEM (PKCS#8, PKCS#1 or SEC1).
    pub key: PathBuf,
}

/// Authorities, by their file: certificates as PEM.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Authorities(pub PathBuf);

/// A certificate that can be used.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// Certificate, chain and key.
    pub key: Arc<CertifiedKey>,
    /// The host names that it is for, wildcards included.
    pub names: Vec<String>,
    /// When it ends.
    pub not_after: Timestamp,
}

/// What is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It cannot be read.
    #[error("`{}` cannot be read: {why}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        why: String,
    },
    /// There is no certificate in it.
    #[error("there is no certificate in `{}`", .0.display())]
    NoCertificate(PathBuf),
    /// There is no private key in it.
    #[error("there is no private key in `{}`", .0.display())]
    NoKey(PathBuf),
    /// The private key in it is encrypted.
    #[error("the private key in `{}` is encrypted", .0.display())]
    EncryptedKey(PathBuf),
    /// What is in it is not what it should be.
    #[error("`{}` is malformed: {why}", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// The private key in it is of a kind that is not supported.
    #[error("the private key in `{}` is of a kind that is not supported", .0.display())]
    UnsupportedKey(PathBuf),
    /// Certificate and key do not belong together.
    #[error("the key in `{}` does not belong to the certificate in `{}`", .0.key.display(), .0.certificate.display())]
    Mismatch(Pair),
    /// The certificate is not valid any more.
    #[error("the certificate in `{}` has expired", .0.display())]
    Expired(PathBuf),
    /// There is no secret in it.
    #[error("there is no secret in `{}`", .0.display())]
    NoSecret(PathBuf),
    /// A secret in it can be guessed.
    #[error("the secret in line {line} of `{}` is shorter than 32 characters", .path.display())]
    ShortSecret {
        /// The file.
        path: PathBuf,
        /// Where it stands.
        line: usize,
    },
    /// There are more secrets in it than two.
    #[error("there are more than two secrets in `{}`", .0.display())]
    ManySecrets(PathBuf),
}

impl Fault {
    /// What would be right.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => {
                "name an existing file that the proxy's user may read; a relative path begins at the working directory"
            }
            Self::NoCertificate(_) => "it has to hold PEM, with `-----BEGIN CERTIFICATE-----`",
            Self::NoKey(_) => "it has to hold PEM, with `-----BEGIN PRIVATE KEY-----`",
            Self::EncryptedKey(_) => {
                "decrypt it (`openssl pkey -in KEY -out PLAIN`), and let only the proxy's user read it"
            }
            Self::Malformed { .. } => "write the file anew, as PEM",
            Self::UnsupportedKey(_) => {
                "use an ECDSA key (P-256 or P-384), Ed25519, or RSA of 2048 to 8192 bits"
            }
            Self::Mismatch(_) => "name the key that the certificate was made with",
            Self::Expired(_) => "renew it",
            Self::NoSecret(_) | Self::ShortSecret { .. } => {
                "write one that nobody can guess, such as `openssl rand -hex 32` makes, and let only the proxy's user read it"
            }
            Self::ManySecrets(_) => {
                "leave the one that is to sign and, below it, the one that has signed until now"
            }
        }
    }
}

/// Something that is made of files.
pub trait Source {
    /// What is made of them.
    type Made;

    /// The files.
    fn paths(&self) -> Vec<&Path>;

    /// Reads the files.
    ///
    /// # Errors
    /// When a file cannot be read, or is not what it should be.
    fn load(&self) -> Result<Self::Made, Fault>;

    /// Whether what was made may take the place of what works.
    ///
    /// # Errors
    /// When it would not work.
    fn check(&self, made: &Self::Made, now: Timestamp) -> Result<(), Fault>;

    /// A number that changes with the files, however they are changed: in place, by renaming, or by a
    /// link that leads elsewhere. What cannot be read has one too.
    fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for path in self.paths() {
            match read(path) {
                Ok(bytes) => bytes.hash(&mut hasher),
                Err(fault) => fault.to_string().hash(&mut hasher),
            }
        }
        hasher.finish()
    }
}

impl fmt::Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.certificate.display().fmt(f)
    }
}

impl fmt::Display for Authorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

impl Source for Pair {
    type Made = Certificate;

    fn paths(&self) -> Vec<&Path> {
        vec![&self.certificate, &self.key]
    }

    fn load(&self) -> Result<Certificate, Fault> {
        let chain = certificates(&self.certificate)?;
        let key = private_key(&self.key)?;
        let leaf = chain.first().ok_or_else(|| Fault::NoCertificate(self.certificate.clone()))?;
        let (names, not_after) = facts(leaf, &self.certificate)?;
        let key = CertifiedKey::from_der(chain, key, &provider()).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => Fault::Mismatch(self.clone()),
            rustls::Error::InvalidCertificate(why) => malformed(&self.certificate, why),
            _ => Fault::UnsupportedKey(self.key.clone()),
        })?;
        Ok(Certificate { key: Arc::new(key), names, not_after })
    }

    fn check(&self, made: &Certificate, now: Timestamp) -> Result<(), Fault> {
        if made.not_after <= now { Err(Fault::Expired(self.certificate.clone())) } else { Ok(()) }
    }
}

impl Source for Authorities {
    type Made = Arc<RootCertStore>;

    fn paths(&self) -> Vec<&Path> {
        vec![&self.0]
    }

    fn load(&self) -> Result<Arc<RootCertStore>, Fault> {
        let mut store = RootCertStore::empty();
        for certificate in certificates(&self.0)? {
            store.add(certificate).map_err(|why| malformed(&self.0, why))?;
        }
        Ok(Arc::new(store))
    }

    fn check(&self, _: &Arc<RootCertStore>, _: Timestamp) -> Result<(), Fault> {
        Ok(())
    }
}

/// The certificates in a file; at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let pem = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let found = found.map_err(|why| malformed(path, why))?;
    if found.is_empty() { Err(Fault::NoCertificate(path.to_owned())) } else { Ok(found) }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Fault> {
    let pem = read(path)?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|error| match error {
        rustls::pki_types::pem::Error::NoItemsFound => {
            let encrypted = pem.windows(21).any(|part| part == b"ENCRYPTED PRIVATE KEY");
            let path = path.to_owned();
            if encrypted { Fault::EncryptedKey(path) } else { Fault::NoKey(path) }
        }
        why => malformed(path, why),
    })
}

/// The host names in a certificate and the end of its life.
fn facts(leaf: &CertificateDer<'_>, path: &Path) -> Result<(Vec<String>, Timestamp), Fault> {
    let (_, parsed) = X509Certificate::from_der(leaf).map_err(|why| malformed(path, why))?;
    let alternative = parsed.subject_alternative_name().map_err(|why| malformed(path, why))?;
    let names = alternative.iter().flat_map(|extension| &extension.value.general_names);
    let names = names.filter_map(|name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    });
    let seconds = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
    Ok((names.collect(), Timestamp::from_millis(seconds.saturating_mul(1000))))
}

fn malformed(path: &Path, why: impl fmt::Display) -> Fault {
    Fault::Malformed { path: path.to_owned(), why: why.to_string() }
}

/// A file's bytes. Only regular files: a pipe would be waited for, and a device has no end.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, Fault> {
    let unreadable = |why: String| Fault::Unreadable { path: path.to_owned(), why };
    let metadata = fs::metadata(path).map_err(|error| unreadable(reason(&error)))?;
    if !metadata.is_file() {
        return Err(unreadable("it is not a regular file".to_owned()));
    }
    if metadata.len() > MAX_FILE {
        return Err(unreadable("it is larger than 1 MiB".to_owned()));
    }
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(|error| unreadable(reason(&error)))?;
    file.take(MAX_FILE).read_to_end(&mut bytes).map_err(|error| unreadable(reason(&error)))?;
    Ok(bytes)
}

/// The text in a file that is small and not empty, without the space around it.
///
/// # Errors
/// When it cannot be read, or there is none.
pub fn read_text(path: &Path) -> Result<String, Fault> {
    let unreadable = |why: &str| Fault::Unreadable { path: path.to_owned(), why: why.to_owned() };
    let text = String::from_utf8(read(path)?).map_err(|_| unreadable("it is not UTF-8 text"))?;
    let text = text.trim();
    if text.is_empty() { Err(unreadable("it is empty")) } else { Ok(text.to_owned()) }
}

/// What the system said, in the words that are used elsewhere for the usual cases.
fn reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests;
