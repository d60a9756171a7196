//! Who the client is, where proxies stand in front: pure, since it decides whom others believe.
//!
//! Each proxy adds the address of its peer at the end of `X-Forwarded-For`. So the chain is read from
//! the right, and believed only as far as whoever wrote it is trusted: the first address that is not
//! a trusted proxy's is the client's, and what stands left of it is the client's own invention.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

/// Whether an address is one of a trusted proxy.
pub fn is_trusted(address: IpAddr, trusted: &[IpNet]) -> bool {
    trusted.iter().any(|net| net.contains(&address))
}

/// The client's address: `peer`'s own, or what the chain of `X-Forwarded-For` fields says, as far as
/// it can be believed. `fields` are the fields in their order.
///
/// An entry that is no address ends the chain: nobody knows who wrote what stands left of it.
pub fn client<'h>(
    peer: IpAddr,
    fields: impl DoubleEndedIterator<Item = &'h [u8]>,
    trusted: &[IpNet],
) -> IpAddr {
    let mut client = peer;
    let mut chain = fields.rev().flat_map(|field| field.rsplit(|b| *b == b','));
    while is_trusted(client, trusted)
        && let Some(address) = chain.next().and_then(address)
    {
        client = address;
    }
    client
}

/// An address as limits count it: an IPv6 client has a whole /64 to itself, and could be as many
/// addresses as it likes.
pub fn household(client: IpAddr) -> IpAddr {
    match client {
        IpAddr::V4(_) => client,
        IpAddr::V6(address) => {
            IpAddr::from(u128::from(address).wrapping_shr(64).wrapping_shl(64).to_be_bytes())
        }
    }
}

/// The address that one entry of a chain holds; some proxies write its port, too.
fn address(entry: &[u8]) -> Option<IpAddr> {
    let text = str::from_utf8(entry.trim_ascii()).ok()?;
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).filter(|t| t.contains(':'));
    let address = bare.unwrap_or(text).parse().ok();
    // An IPv4 client of a dual-stack listener is an IPv4 client.
    address.or_else(|| text.parse().ok().map(|s: SocketAddr| s.ip())).map(|a: IpAddr| a.to_canonical())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nets(nets: &[&str]) -> Vec<IpNet> {
        nets.iter().map(|net| net.parse().unwrap()).collect()
    }

    #[track_caller]
    fn check(peer: &str, fields: &[&str], expected: &str) {
        let trusted = nets(&["10.0.0.0/8", "fd00::/8"]);
        let fields = fields.iter().map(|field| field.as_bytes());
        let found = client(peer.parse().unwrap(), fields, &trusted);
        assert_eq!(found, expected.parse::<IpAddr>().unwrap());
    }

    #[test]
    fn a_stranger_is_the_client_whatever_it_says() {
        check("192.0.2.1", &["10.0.0.9, 198.51.100.7"], "192.0.2.1");
        check("192.0.2.1", &[], "192.0.2.1");
    }

    #[test]
    fn the_chain_is_read_from_the_right_past_trusted_proxies() {
        check("10.0.0.1", &["198.51.100.7"], "198.51.100.7");
        check("10.0.0.1", &["6.6.6.6, 198.51.100.7"], "198.51.100.7");
        check("10.0.0.1", &["6.6.6.6, 198.51.100.7, 10.0.0.2,10.0.0.3"], "198.51.100.7");
        check("10.0.0.1", &["6.6.6.6", "198.51.100.7", "10.0.0.2"], "198.51.100.7");
        check("fd00::1", &["2001:db8::7 , [fd00::2]:8080"], "2001:db8::7");
        check("10.0.0.1", &["198.51.100.7:4711"], "198.51.100.7");
        check("10.0.0.1", &["::ffff:198.51.100.7"], "198.51.100.7");
    }

    #[test]
    fn where_all_are_trusted_the_first_of_them_is_the_client() {
        check("10.0.0.1", &[], "10.0.0.1");
        check("10.0.0.1", &["10.0.0.3, 10.0.0.2"], "10.0.0.3");
    }

    #[test]
    fn an_entry_that_is_no_address_ends_the_chain() {
        for bad in
            ["unknown", "", "_hidden", "198.51.100.7.", "198.51.100.7:x", "[198.51.100.7]", "fe80::1%eth0"]
        {
            check("10.0.0.1", &[&format!("6.6.6.6, {bad}, 10.0.0.2")], "10.0.0.2");
        }
    }

    proptest! {
        #[test]
        fn nothing_that_a_client_writes_changes_who_it_is(
            written in prop::collection::vec("\\PC{0,40}", 0..4),
            behind in prop::collection::vec(0u8..=255, 0..4),
        ) {
            let trusted = nets(&["10.0.0.0/8"]);
            let ours: Vec<_> = std::iter::once("198.51.100.7".to_owned())
                .chain(behind.iter().map(|n| format!("10.0.0.{n}")))
                .collect();
            let ours = ours.join(", ");
            let fields = written.iter().map(String::as_bytes).chain([ours.as_bytes()]);
            let fields: Vec<_> = fields.collect();
            let found = client("10.1.1.1".parse().unwrap(), fields.into_iter(), &trusted);
            prop_assert_eq!(found, "198.51.100.7".parse::<IpAddr>().unwrap());
        }

        #[test]
        fn the_answer_is_the_peer_or_stands_in_the_chain(field in "[0-9a-f.:,\\[\\] ]{0,60}") {
            let trusted = nets(&["0.0.0.0/0", "::/0"]);
            let peer: IpAddr = "10.1.1.1".parse().unwrap();
            let found = client(peer, [field.as_bytes()].into_iter(), &trusted);
            let entries: Vec<_> = field.split(',').filter_map(|e| address(e.as_bytes())).collect();
            prop_assert!(found == peer || entries.contains(&found));
        }
    }
}
