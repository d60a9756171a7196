//! Who may use the admin API: a file of its own, so that it can be kept, and changed, apart from the
//! configuration. It has no secret, only what proves one; but somebody may put a secret in by mistake, so
//! nothing that stands in it is ever quoted.

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use toml::Spanned;

use super::{
    Config,
    diagnostic::{Diagnostic, Severity},
    report::Report,
    structure,
    written::{Section, Table, Text},
};
use crate::model::name::ServiceName;

/// Largest file that is read.
const MAX_FILE: u64 = 1024 * 1024;
/// Most characters of a name.
const MAX_NAME: usize = 128;
/// How a token begins, so that people and scanners know one when they see it.
pub const TOKEN_PREFIX: &str = "tidegate_";

/// Those who may use the admin API, and the file that says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The file.
    pub file: PathBuf,
    /// What it says; nobody, where only the text of the configuration was read.
    pub list: Vec<Credential>,
}

/// Somebody who may use the admin API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// What they are called in the audit.
    pub name: String,
    /// What shows that it is them.
    pub proof: Proof,
    /// What they may do.
    pub scope: Scope,
    /// The services that they may do it to, if not all.
    pub services: Option<Vec<ServiceName>>,
}

/// What shows that somebody is who they say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    /// A token whose SHA-256 is this.
    Token([u8; 32]),
    /// A client certificate that has this name: as its common name, or among its DNS or URI names.
    Certificate(String),
}

/// What somebody may do. Each includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Look.
    Read,
    /// Move traffic: weights, rollouts, flips.
    Operate,
    /// Everything, as reading the configuration anew.
    Admin,
}

impl Scope {
    /// Every scope.
    pub const ALL: [Self; 3] = [Self::Read, Self::Operate, Self::Admin];

    /// How it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Operate => "operate",
            Self::Admin => "admin",
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCredentials {
    credentials: Option<Vec<Spanned<Table<RawCredential>>>>,
}

/// One of them as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCredential {
    name: Option<Text>,
    token_sha256: Option<Text>,
    certificate: Option<Text>,
    scope: Option<Text>,
    services: Option<Vec<Text>>,
}

impl Section for RawCredential {
    const HEADER: &'static str = "[[credentials]]";
}

/// Reads the file that a configuration names, if it names one.
pub(super) fn read(mut config: Config, mut warnings: Vec<Diagnostic>) -> super::load::Loaded {
    let Some(credentials) = config.admin.as_mut().and_then(|admin| admin.credentials.as_mut()) else {
        return Ok((config, warnings));
    };
    let name = credentials.file.display().to_string();
    let text = match text(&credentials.file) {
        Ok(text) => text,
        Err(why) => {
            let mut report = Report::secret(&name, "");
            report.error_in_file(format!("the credentials of the admin side cannot be read: {why}")).help(
                "name an existing file under `[admin]` that the proxy's user may read; a relative path begins at the working directory",
            );
            return Err(report.into_sorted(Severity::Error));
        }
    };
    let mut report = Report::secret(&name, &text);
    let list = lower(&text, &mut report);
    let known: Vec<_> = config.services.iter().map(|service| &service.name).collect();
    for (credential, place) in &list {
        for service in credential.services.iter().flatten().filter(|service| !known.contains(service)) {
            report
                .warning(place.clone(), format!("there is no service `{service}`"))
                .help("name a service of the configuration, or remove it here");
        }
    }
    if report.has_errors() {
        return Err(report.into_sorted(Severity::Error));
    }
    credentials.list = list.into_iter().map(|(credential, _)| credential).collect();
    warnings.extend(report.into_sorted(Severity::Warning));
    Ok((config, warnings))
}

fn text(path: &Path) -> Result<String, String> {
    let open = || {
        let file = fs::File::open(path)?;
        let mut bytes = Vec::new();
        if !file.metadata()?.is_file() {
            return Err(std::io::Error::other("it is not a regular file"));
        }
        file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = open().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    })?;
    if bytes.len() as u64 > MAX_FILE {
        return Err("it is larger than 1 MiB".to_owned());
    }
    String::from_utf8(bytes).map_err(|_| "it is not UTF-8 text".to_owned())
}

type Placed = (Credential, std::ops::Range<usize>);

fn lower(text: &str, report: &mut Report<'_>) -> Vec<Placed> {
    let Some(raw) = structure::read::<RawCredentials>(text, report) else { return Vec::new() };
    let mut list: Vec<Placed> = Vec::new();
    for raw in raw.credentials.unwrap_or_default() {
        let place = raw.span();
        let Some(credential) = lower_one(raw, report) else { continue };
        match list.iter().find(|(other, _)| other.proof == credential.proof) {
            Some((_, first)) => {
                let line = report.line_number(first);
                report
                    .error(place, format!("this is the same token or certificate as on line {line}"))
                    .help("write it once: it can only be one of the two");
            }
            None => list.push((credential, place)),
        }
    }
    list
}

fn lower_one(raw: Spanned<Table<RawCredential>>, report: &mut Report<'_>) -> Option<Credential> {
    let header = raw.span();
    let RawCredential { name, token_sha256, certificate, scope, services } = raw.into_inner().0;
    let name = match &name {
        Some(written) => lower_name(written, report),
        None => {
            report
                .error(header.clone(), "this credential has no `name`")
                .help("name whoever has it, as the audit is to have it: `name = \"ci\"`");
            None
        }
    };
    let proof = match (token_sha256, certificate) {
        (Some(hash), None) => lower_hash(&hash, report).map(Proof::Token),
        (None, Some(certificate)) => lower_certificate(&certificate, report).map(Proof::Certificate),
        (hash, _) => {
            let (place, problem) = match hash {
                Some(hash) => (hash.span(), "a credential is a token or a certificate, not both"),
                None => (header.clone(), "this credential proves nothing"),
            };
            report.error(place, problem).help(
                "write `token_sha256 = \"…\"` as `tidegate token new` prints it, or `certificate = \"…\"` with a name in the client's certificate",
            );
            None
        }
    };
    let scope = lower_scope(scope.as_ref(), header, report);
    let services = services.map(|written| {
        written.iter().filter_map(|written| lower_service(written, report)).collect::<Vec<_>>()
    });
    Some(Credential { name: name?, proof: proof?, scope: scope?, services })
}

fn lower_name(written: &Text, report: &mut Report<'_>) -> Option<String> {
    let name = written.get_ref();
    let fine =
        (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic() && b != b'"');
    if !fine || name.starts_with(TOKEN_PREFIX) {
        report
            .error(written.span(), "this cannot be the name of a credential")
            .help("a name has up to 128 letters, digits and signs without spaces, such as `ci` or `anna@example.com`");
        return None;
    }
    Some(name.clone())
}

fn lower_hash(written: &Text, report: &mut Report<'_>) -> Option<[u8; 32]> {
    let text = written.get_ref();
    if text.starts_with(TOKEN_PREFIX) {
        report.error(written.span(), "this is a token itself, not its SHA-256").help(
            "make a new one with `tidegate token new`, since this one is no secret any more, and write the `token_sha256` that it prints",
        );
        return None;
    }
    let mut hash = [0; 32];
    let is_hex = text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
    if !is_hex {
        report
            .error(written.span(), "this is not a SHA-256: it has 64 hexadecimal digits")
            .help("write the `token_sha256` that `tidegate token new` prints");
        return None;
    }
    for (byte, at) in hash.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
    }
    Some(hash)
}

fn lower_certificate(written: &Text, report: &mut Report<'_>) -> Option<String> {
    let name = written.get_ref();
    if name.is_empty() || name.starts_with("-----") {
        report.error(written.span(), "this is not a name in a certificate").help(
            "write its common name, or one of its DNS or URI names, such as `spiffe://example.com/ci`; whose word is taken for it says `client_ca` under `[admin.tls]`",
        );
        return None;
    }
    Some(name.clone())
}

fn lower_scope(
    written: Option<&Text>,
    header: std::ops::Range<usize>,
    report: &mut Report<'_>,
) -> Option<Scope> {
    let scope = written.and_then(|written| Scope::ALL.into_iter().find(|s| s.name() == written.get_ref()));
    if scope.is_none() {
        let (place, problem) = match written {
            Some(written) => (written.span(), "this is no scope"),
            None => (header, "this credential has no `scope`"),
        };
        report.error(place, problem).help("write `scope = \"read\"`, `\"operate\"` or `\"admin\"`");
    }
    scope
}

fn lower_service(written: &Text, report: &mut Report<'_>) -> Option<ServiceName> {
    let name = written.get_ref().parse().ok();
    if name.is_none() {
        report.error(written.span(), "this cannot name a service").help("write the name under `[services]`");
    }
    name
}

#[cfg(test)]
mod tests;
