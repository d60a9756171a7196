//! `[listeners.tls]`: how clients are spoken to. The certificates and keys themselves are
//! `super::files`' business.

use std::{ops::Range, path::PathBuf, time::Duration};

use serde::Deserialize;
use toml::Spanned;

use super::{
    ListenerTls,
    files::Noted,
    report::Report,
    written::{Section, TIMEOUT, Table, Text, Time, time_or},
};
use crate::tls::{
    files::{Authorities, Pair},
    server::{ClientAuth, Settings, Version},
};

/// `[listeners.tls]` as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTls {
    certificates: Option<Spanned<Vec<Spanned<Table<RawPair>>>>>,
    min_version: Option<Text>,
    client_auth: Option<Text>,
    client_ca: Option<Text>,
    handshake_timeout: Option<Time>,
}

impl Section for RawTls {
    // It stands below a listener and below `[admin]`.
    const HEADER: &'static str = "{ certificates = […] }";
}

/// One of its certificates as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPair {
    certificate: Option<Text>,
    key: Option<Text>,
}

impl Section for RawPair {
    const HEADER: &'static str = "{ certificate = \"…\", key = \"…\" }";
}

/// How a listener speaks TLS; nothing, and a fault, if there is no certificate.
pub(super) fn lower(raw: Spanned<Table<RawTls>>, report: &mut Report<'_>) -> Option<ListenerTls> {
    let header = raw.span();
    let RawTls { certificates, min_version, client_auth, client_ca, handshake_timeout } = raw.into_inner().0;
    let place = certificates.as_ref().map_or(header, Spanned::span);
    let written = certificates.map(Spanned::into_inner).unwrap_or_default();
    if written.is_empty() {
        report
            .error(place, "this listener has `tls` but no certificate")
            .help("write at least one: `certificates = [{ certificate = \"web.pem\", key = \"web.key\" }]`");
        return None;
    }
    let count = written.len();
    let certificates: Vec<_> = written
        .into_iter()
        .filter_map(|raw| {
            let place = raw.span();
            let RawPair { certificate, key } = raw.into_inner().0;
            pair(certificate, key, place, report)
        })
        .collect();
    let min_version = min_version.and_then(|written| lower_version(&written, report)).unwrap_or_default();
    let client_auth = lower_client_auth(client_auth, client_ca, report)?;
    let timeout =
        time_or(Duration::from_secs(10), handshake_timeout.as_ref(), "handshake_timeout", TIMEOUT, report);
    let settings = Settings { certificates, min_version, client_auth };
    (settings.certificates.len() == count).then_some(ListenerTls { settings, handshake_timeout: timeout })
}

/// A certificate and its key, noted to be read; nothing, and a fault, if one of them is missing.
pub(super) fn pair(
    certificate: Option<Text>,
    key: Option<Text>,
    place: Range<usize>,
    report: &mut Report<'_>,
) -> Option<Pair> {
    let (Some(certificate), Some(key)) = (&certificate, &key) else {
        let (has, lacks) = if key.is_some() { ("key", "certificate") } else { ("certificate", "key") };
        let problem = match certificate.is_none() && key.is_none() {
            true => "there is neither `certificate` nor `key` here".to_owned(),
            false => format!("there is a `{has}` here but no `{lacks}`"),
        };
        report
            .error(place, problem)
            .help("name both files: `certificate = \"web.pem\"`, `key = \"web.key\"`");
        return None;
    };
    let pair = Pair { certificate: path(certificate), key: path(key) };
    report.note(Noted::Pair { pair: pair.clone(), certificate: certificate.span(), key: key.span() });
    Some(pair)
}

/// Authorities, noted to be read.
pub(super) fn authorities(written: &Text, report: &mut Report<'_>) -> Authorities {
    let authorities = Authorities(path(written));
    report.note(Noted::Authorities(authorities.clone(), written.span()));
    authorities
}

fn path(written: &Text) -> PathBuf {
    PathBuf::from(written.get_ref())
}

fn lower_version(written: &Text, report: &mut Report<'_>) -> Option<Version> {
    match written.get_ref().as_str() {
        "1.2" => Some(Version::V1_2),
        "1.3" => Some(Version::V1_3),
        other => {
            report
                .error(written.span(), format!("`{other}` is not a version of TLS that is spoken"))
                .help("write `\"1.2\"` or `\"1.3\"`");
            None
        }
    }
}

fn lower_client_auth(written: Option<Text>, ca: Option<Text>, report: &mut Report<'_>) -> Option<ClientAuth> {
    let wanted = written.as_ref().map_or("off", |written| written.get_ref().as_str());
    let ca = ca.map(|ca| (authorities(&ca, report).0, ca.span()));
    match (wanted, ca, written.as_ref()) {
        ("off", None, _) => Some(ClientAuth::Off),
        ("optional", Some((ca, _)), _) => Some(ClientAuth::Optional(ca)),
        ("required", Some((ca, _)), _) => Some(ClientAuth::Required(ca)),
        ("off", Some((_, place)), _) => {
            report
                .error(place, "there is a `client_ca`, but clients are not asked for a certificate")
                .help("add `client_auth = \"required\"` or `\"optional\"`, or remove `client_ca`");
            None
        }
        ("optional" | "required", None, Some(written)) => {
            report
                .error(
                    written.span(),
                    "clients are asked for a certificate, but not whom it has to come from",
                )
                .help("add `client_ca = \"clients-ca.pem\"`");
            None
        }
        (other, _, written) => {
            report
                .error(
                    written.map(Spanned::span).unwrap_or_default(),
                    format!("`{other}` is not a kind of client authentication"),
                )
                .help("write `\"off\"`, `\"optional\"` or `\"required\"`");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{errors_of, parsed},
        *,
    };

    const ONE: &str = "certificates = [{ certificate = 'a.pem', key = 'a.key' }]\n";

    fn listener(keys: &str) -> String {
        let minimal = super::super::testing::MINIMAL;
        minimal.replace("[[routes]]", &format!("[listeners.tls]\n{keys}\n[[routes]]"))
    }

    #[test]
    fn a_certificate_is_all_it_takes() {
        assert_eq!(parsed("").listeners[0].tls, None);
        let more = format!("[[listeners]]\naddress = '0.0.0.0:8443'\n[listeners.tls]\n{ONE}");
        let tls = parsed(&more).listeners[1].tls.clone().unwrap();
        assert_eq!(tls.handshake_timeout.as_secs(), 10);
        let pair = Pair { certificate: "a.pem".into(), key: "a.key".into() };
        let settings =
            Settings { certificates: vec![pair], min_version: Version::V1_2, client_auth: ClientAuth::Off };
        assert_eq!(tls.settings, settings);
    }

    #[test]
    fn every_fault_is_named() {
        for (keys, problem) in [
            ("", "this listener has `tls` but no certificate"),
            ("certificates = []", "this listener has `tls` but no certificate"),
            ("certificates = [{ key = 'a' }]", "there is a `key` here but no `certificate`"),
            ("certificates = [{}]", "there is neither `certificate` nor `key` here"),
            (&format!("{ONE}min_version = '1.1'"), "`1.1` is not a version of TLS that is spoken"),
            (&format!("{ONE}client_auth = 'maybe'"), "`maybe` is not a kind of client authentication"),
            (
                &format!("{ONE}client_auth = 'required'"),
                "clients are asked for a certificate, but not whom it has to come from",
            ),
            (
                &format!("{ONE}client_ca = 'ca.pem'"),
                "there is a `client_ca`, but clients are not asked for a certificate",
            ),
            (&format!("{ONE}handshake_timeout = '0s'"), "`handshake_timeout` of 0s is too short"),
        ] {
            assert_eq!(errors_of(&listener(keys)), [problem], "{keys}");
        }
    }
}
