//! `[listeners.proxy_protocol]`: who in front says whose connections it passes on.

use std::{net::IpAddr, time::Duration};

use ipnet::IpNet;
use serde::Deserialize;
use toml::Spanned;

use super::{
    ProxyProtocol,
    report::Report,
    written::{Section, TIMEOUT, Table, Text, Time, time_or},
};

/// `[listeners.proxy_protocol]` as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawProxyProtocol {
    from: Option<Spanned<Vec<Text>>>,
    timeout: Option<Time>,
}

impl Section for RawProxyProtocol {
    const HEADER: &'static str = "[listeners.proxy_protocol]";
}

/// Who speaks the PROXY protocol to a listener; nothing, and a fault, if nobody does.
pub(super) fn lower(raw: Spanned<Table<RawProxyProtocol>>, report: &mut Report<'_>) -> Option<ProxyProtocol> {
    let header = raw.span();
    let RawProxyProtocol { from, timeout } = raw.into_inner().0;
    let timeout = time_or(Duration::from_secs(5), timeout.as_ref(), "timeout", TIMEOUT, report);
    let place = from.as_ref().map_or(header, Spanned::span);
    let written = from.map(Spanned::into_inner).unwrap_or_default();
    if written.is_empty() {
        report
            .error(place, "nobody is named who may speak the PROXY protocol")
            .help("name the networks of the load balancers in front: `from = [\"10.0.0.0/8\"]`");
        return None;
    }
    let count = written.len();
    let from: Vec<_> = written.iter().filter_map(|written| lower_network(written, report)).collect();
    (from.len() == count).then_some(ProxyProtocol { from, timeout })
}

fn lower_network(written: &Text, report: &mut Report<'_>) -> Option<IpNet> {
    let text = written.get_ref();
    let network = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    if network.is_err() {
        report
            .error(written.span(), format!("`{text}` is not a network"))
            .help("write an IP address, or a network such as `10.0.0.0/8` or `fd00::/8`");
    }
    network.ok()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{MINIMAL, errors_of, parsed};

    fn listener(keys: &str) -> String {
        MINIMAL.replace("[[routes]]", &format!("[listeners.proxy_protocol]\n{keys}\n[[routes]]"))
    }

    #[test]
    fn networks_and_addresses_may_be_named() {
        let more = "[[listeners]]\naddress = '[::]:81'\nproxy_protocol = { from = ['10.0.0.0/8', '::1'] }";
        let proxy_protocol = parsed(more).listeners[1].proxy_protocol.clone().unwrap();
        assert_eq!(proxy_protocol.timeout.as_secs(), 5);
        let from = proxy_protocol.from.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(from, ["10.0.0.0/8", "::1/128"]);
    }

    #[test]
    fn every_fault_is_named() {
        let nobody = "nobody is named who may speak the PROXY protocol";
        assert_eq!(errors_of(&listener("")), [nobody]);
        assert_eq!(errors_of(&listener("from = []")), [nobody]);
        assert_eq!(errors_of(&listener("from = ['10.0.0.0/33']")), ["`10.0.0.0/33` is not a network"]);
        assert_eq!(errors_of(&listener("from = ['::/0']\ntimeout = '0s'")), ["`timeout` of 0s is too short"]);
    }
}
