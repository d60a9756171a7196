//! `[admin]`: where people, pipelines and Prometheus come in, and who may.

use std::{net::SocketAddr, path::PathBuf};

use serde::Deserialize;
use toml::Spanned;

use super::{
    Admin, Credentials, Listener, ListenerTls, OpenPaths, address, host,
    report::Report,
    suggest::suggest,
    tls::{self, RawTls},
    written::{Section, Table, Text},
};
use crate::tls::server::ClientAuth;

/// `[admin]` as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAdmin {
    address: Option<Text>,
    tls: Option<Spanned<Table<RawTls>>>,
    credentials: Option<Text>,
    anyone_may_move_traffic: Option<Spanned<bool>>,
    hosts: Option<Vec<Text>>,
    open: Option<Vec<Text>>,
    audit_log: Option<Text>,
}

impl Section for RawAdmin {
    const HEADER: &'static str = "[admin]";
}

const PATHS: [&str; 3] = ["/livez", "/readyz", "/metrics"];

/// The default: reachable from this machine only.
fn default_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 9090))
}

/// The admin side, which may not stand in the way of a listener.
pub(super) fn lower(
    raw: Spanned<Table<RawAdmin>>,
    listeners: &[Spanned<Listener>],
    report: &mut Report<'_>,
) -> Option<Admin> {
    let header = raw.span();
    let RawAdmin { address, tls, credentials, anyone_may_move_traffic, hosts, open, audit_log } =
        raw.into_inner().0;
    let (place, address) = match address {
        None => (header, default_address()),
        Some(written) => (written.span(), address::parse(&written, &default_address(), report)?),
    };
    if let Some(other) = listeners.iter().find(|other| address::collide(other.get_ref().address, address)) {
        let line = report.line_number(&other.span());
        let other = other.get_ref().address;
        let problem =
            format!("the admin address `{address}` is taken by the listener `{other}` on line {line}");
        report.error(place.clone(), problem).help("give the admin side a port of its own");
    }
    let has_tls = tls.is_some();
    let tls = tls.and_then(|raw| tls::lower(raw, report));
    let asks = credentials.is_some() || tls.as_ref().is_some_and(asks_for_certificates);
    let anyone = anyone_may_move_traffic.as_ref().is_some_and(|anyone| *anyone.get_ref());
    match anyone_may_move_traffic {
        Some(anyone) if *anyone.get_ref() && asks => {
            report
                .error(
                    anyone.span(),
                    "clients of the admin side have to say who they are, so not anyone may move traffic",
                )
                .help("remove this line");
        }
        // Where TLS is wrong, that is the fault to report.
        _ if !address.ip().is_loopback() && !asks && !anyone && (tls.is_some() || !has_tls) => {
            let local = SocketAddr::from(([127, 0, 0, 1], address.port()));
            let problem = format!("the admin side on `{address}` lets anyone who reaches it move traffic");
            report.error(place, problem).help(format!(
                "listen on `\"{local}\"`, or name those who may: `credentials = \"./credentials.toml\"` (see `tidegate token new`); if anyone may indeed, write `anyone_may_move_traffic = true`"
            ));
        }
        _ => {}
    }
    Some(Admin {
        address,
        tls,
        credentials: credentials.map(|file| Credentials { file: file.into_inner().into(), list: Vec::new() }),
        hosts: hosts.unwrap_or_default().iter().filter_map(|written| lower_host(written, report)).collect(),
        audit_log: audit_log.and_then(|written| lower_audit_log(&written, report)),
        open: match open {
            None => OpenPaths { livez: true, readyz: true, metrics: address.ip().is_loopback() },
            Some(written) => lower_open(&written, report),
        },
    })
}

fn asks_for_certificates(tls: &ListenerTls) -> bool {
    matches!(tls.settings.client_auth, ClientAuth::Required(_))
}

fn lower_host(written: &Text, report: &mut Report<'_>) -> Option<String> {
    let parsed = host::parse(written.get_ref());
    if let Err(why) = &parsed {
        let problem = format!("`{}` is not a host name: {}", written.get_ref(), why.0);
        report
            .error(written.span(), problem)
            .help("write it as clients do, without a port: `\"tidegate.example.com\"`");
    }
    parsed.ok()
}

/// A file that can be appended to, as far as its name says.
fn lower_audit_log(written: &Text, report: &mut Report<'_>) -> Option<PathBuf> {
    let path = written.get_ref();
    if path.is_empty() || path.ends_with('/') || path.contains('\0') {
        report
            .error(written.span(), format!("`{path}` is not the path of a file"))
            .help("write a path such as `\"/var/log/tidegate/audit.log\"`");
        return None;
    }
    Some(path.into())
}

fn lower_open(written: &[Text], report: &mut Report<'_>) -> OpenPaths {
    for path in written.iter().filter(|path| !PATHS.contains(&path.get_ref().as_str())) {
        let problem = format!("`{}` cannot be open to anyone", path.get_ref());
        report.error(path.span(), problem).help_if(suggest(path.get_ref(), &PATHS, "paths"));
    }
    let has = |path: &str| written.iter().any(|written| written.get_ref() == path);
    OpenPaths { livez: has("/livez"), readyz: has("/readyz"), metrics: has("/metrics") }
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{errors, parsed},
        *,
    };

    fn admin(keys: &str) -> Admin {
        parsed(&format!("[admin]\n{keys}")).admin.unwrap()
    }

    #[test]
    fn the_admin_side_is_off_unless_asked_for_and_then_local() {
        assert_eq!(parsed("").admin, None);
        let default = Admin {
            address: default_address(),
            tls: None,
            credentials: None,
            hosts: Vec::new(),
            audit_log: None,
            open: OpenPaths { livez: true, readyz: true, metrics: true },
        };
        assert_eq!(admin(""), default);
        assert_eq!(admin("open = ['/livez', '/readyz', '/metrics']\nhosts = []"), default);
    }

    #[test]
    fn the_admin_side_may_not_take_the_place_of_a_listener() {
        let taken = "the admin address `127.0.0.1:8080` is taken by the listener `0.0.0.0:8080` on line 2";
        assert_eq!(errors("[admin]\naddress = '127.0.0.1:8080'"), [taken]);
    }

    #[test]
    fn nobody_opens_the_admin_side_to_everybody_by_mistake() {
        let open = "the admin side on `0.0.0.0:9090` lets anyone who reaches it move traffic";
        let tls = "tls = { certificates = [{ certificate = 'a.pem', key = 'a.key' }]";
        for (more, fault) in [
            ("", Some(open)),
            ("anyone_may_move_traffic = false", Some(open)),
            ("anyone_may_move_traffic = true", None),
            ("credentials = './who.toml'", None),
            (&format!("{tls} }}"), Some(open)),
            (&format!("{tls}, client_auth = 'optional', client_ca = 'ca.pem' }}"), Some(open)),
            (&format!("{tls}, client_auth = 'required', client_ca = 'ca.pem' }}"), None),
        ] {
            let said = errors(&format!("[admin]\naddress = '0.0.0.0:9090'\n{more}"));
            assert_eq!(said, Vec::from_iter(fault), "{more}");
        }
        assert_eq!(errors("[admin]\naddress = '[::1]:9090'"), [""; 0]);
    }

    #[test]
    fn metrics_are_open_where_only_this_machine_sees_them() {
        let far = admin("address = '0.0.0.0:9090'\ncredentials = './who.toml'");
        assert_eq!(far.open, OpenPaths { livez: true, readyz: true, metrics: false });
        let shut = admin("open = []");
        assert_eq!(shut.open, OpenPaths::default());
    }

    #[test]
    fn every_mistake_is_named() {
        for (keys, problem) in [
            (
                "hosts = ['a:80']",
                "`a:80` is not a host name: a host name consists of letters, digits, `-` and dots",
            ),
            ("audit_log = '/var/log/'", "`/var/log/` is not the path of a file"),
            ("audit_log = ''", "`` is not the path of a file"),
            ("open = ['/metrix']", "`/metrix` cannot be open to anyone"),
            ("open = ['/api/v1/services']", "`/api/v1/services` cannot be open to anyone"),
            (
                "credentials = './who.toml'\nanyone_may_move_traffic = true",
                "clients of the admin side have to say who they are, so not anyone may move traffic",
            ),
        ] {
            assert_eq!(errors(&format!("[admin]\n{keys}")), [problem]);
        }
    }
}
