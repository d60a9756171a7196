//! `[services.NAME.backends.NAME.tls]`: how a backend with `https://` or `h2://` endpoints is spoken to.

use serde::Deserialize;
use toml::Spanned;

use super::{
    files::Noted,
    host,
    report::Report,
    tls::{authorities, pair},
    written::{Section, Table, Text},
};
use crate::tls::client::Settings;

/// `[services.NAME.backends.NAME.tls]` as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawBackendTls {
    ca: Option<Text>,
    server_name: Option<Text>,
    certificate: Option<Text>,
    key: Option<Text>,
    insecure_skip_verify: Option<Spanned<bool>>,
}

impl Section for RawBackendTls {
    const HEADER: &'static str = "[services.NAME.backends.NAME.tls]";
}

/// How a backend is spoken to. `https` is the place of its first endpoint that wants it, if one does.
pub(super) fn lower(
    raw: Option<Spanned<Table<RawBackendTls>>>,
    https: Option<std::ops::Range<usize>>,
    report: &mut Report<'_>,
) -> Option<Settings> {
    let header = raw.as_ref().map(Spanned::span);
    let Some(endpoint) = https else {
        if let Some(place) = header {
            report
                .error(place, "there is `tls` here, but no endpoint begins with `https://` or `h2://`")
                .help("write the endpoints as `https://HOST:PORT` or `h2://HOST:PORT`, or remove `tls`");
        }
        return None;
    };
    let raw = raw.map(|raw| raw.into_inner().0).unwrap_or_default();
    let RawBackendTls { ca, server_name, certificate, key, insecure_skip_verify } = raw;
    let certificate = match (&certificate, &key) {
        (None, None) => None,
        _ => pair(certificate, key, header.unwrap_or_default(), report),
    };
    let skips = insecure_skip_verify.as_ref().is_some_and(|skip| *skip.get_ref());
    if let Some(place) = insecure_skip_verify.map(|skip| skip.span()).filter(|_| skips) {
        report
            .warning(place, "whoever stands between here and this backend can read and change everything")
            .help("name the authority that its certificate comes from instead: `ca = \"ca.pem\"`");
    }
    let ca = match ca {
        Some(ca) if skips => {
            report
                .error(ca.span(), "`ca` has no effect beside `insecure_skip_verify = true`")
                .help("remove `insecure_skip_verify`, so that the certificate is verified");
            None
        }
        Some(ca) => Some(authorities(&ca, report)),
        None => {
            if !skips {
                report.note(Noted::System(endpoint));
            }
            None
        }
    };
    let server_name = server_name.and_then(|written| lower_name(&written, report));
    Some(Settings { ca, server_name, certificate, insecure_skip_verify: skips })
}

fn lower_name(written: &Text, report: &mut Report<'_>) -> Option<String> {
    match host::parse(written.get_ref()) {
        Ok(name) => Some(name.trim_start_matches('[').trim_end_matches(']').to_owned()),
        Err(fault) => {
            let problem = format!("`{}` is not a name that a certificate can be for", written.get_ref());
            report.error(written.span(), problem).help(fault.0);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{errors, parsed, warnings},
        *,
    };

    fn backend(keys: &str) -> String {
        format!(
            "[services.web.backends.v2]\nendpoints = ['https://a']\n[services.web.backends.v2.tls]\n{keys}"
        )
    }

    fn settings(keys: &str) -> Settings {
        parsed(&backend(keys)).services[0].backends[1].tls.clone().unwrap()
    }

    #[test]
    fn certificates_are_verified_unless_said_otherwise() {
        assert_eq!(settings(""), Settings::default());
        assert_eq!(parsed("").services[0].backends[0].tls, None);
        assert!(settings("insecure_skip_verify = true").insecure_skip_verify);
        let warned = warnings(&backend("insecure_skip_verify = true"));
        assert!(warned.iter().any(|warning| warning.starts_with("whoever stands between")), "{warned:?}");
        assert_eq!(settings("server_name = 'App.test'").server_name.as_deref(), Some("app.test"));
    }

    #[test]
    fn every_fault_is_named() {
        for (keys, problem) in [
            ("key = 'a.key'", "there is a `key` here but no `certificate`"),
            ("server_name = 'a b'", "`a b` is not a name that a certificate can be for"),
            (
                "ca = 'a.pem'\ninsecure_skip_verify = true",
                "`ca` has no effect beside `insecure_skip_verify = true`",
            ),
        ] {
            assert_eq!(errors(&backend(keys)), [problem]);
        }
        let plain = backend("").replace("https", "http");
        assert_eq!(
            errors(&plain),
            ["there is `tls` here, but no endpoint begins with `https://` or `h2://`"]
        );
    }
}
