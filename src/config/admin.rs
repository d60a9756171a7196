//! `[admin]`: where people, pipelines and Prometheus come in.

use std::net::SocketAddr;

use serde::Deserialize;
use toml::Spanned;

use super::{
    Admin, Listener, address,
    report::Report,
    written::{Section, Table, Text},
};

/// `[admin]` as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAdmin {
    address: Option<Text>,
}

impl Section for RawAdmin {
    const HEADER: &'static str = "[admin]";
}

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
    let RawAdmin { address } = raw.into_inner().0;
    let (place, address) = match address {
        None => (header, default_address()),
        Some(written) => (written.span(), address::parse(&written, &default_address(), report)?),
    };
    if let Some(other) = listeners.iter().find(|other| address::collide(other.get_ref().address, address)) {
        let line = report.line_number(&other.span());
        let other = other.get_ref().address;
        let problem =
            format!("the admin address `{address}` is taken by the listener `{other}` on line {line}");
        report.error(place, problem).help("give the admin side a port of its own");
    } else if !address.ip().is_loopback() {
        let problem = format!(
            "the admin side on `{address}` has no authentication yet: anyone who reaches it can move traffic"
        );
        let local = SocketAddr::from(([127, 0, 0, 1], address.port()));
        report.warning(place, problem).help(format!(
            "listen on `\"{local}\"`, or let only those reach the port who may operate the proxy"
        ));
    }
    Some(Admin { address })
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{errors, parsed, warnings},
        *,
    };

    #[test]
    fn the_admin_side_is_off_unless_asked_for_and_then_local() {
        assert_eq!(parsed("").admin, None);
        assert_eq!(parsed("[admin]").admin, Some(Admin { address: default_address() }));
    }

    #[test]
    fn the_admin_side_may_not_take_the_place_of_a_listener() {
        let taken = "the admin address `127.0.0.1:8080` is taken by the listener `0.0.0.0:8080` on line 2";
        assert_eq!(errors("[admin]\naddress = '127.0.0.1:8080'"), [taken]);
    }

    #[test]
    fn an_open_admin_side_is_warned_about() {
        assert_eq!(warnings("[admin]\naddress = '[::1]:9090'").len(), 0);
        assert_eq!(warnings("[admin]\naddress = '0.0.0.0:9090'").len(), 1);
    }
}
