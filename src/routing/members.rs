//! The addresses of a backend: what the data plane chooses among.
//!
//! They are apart from the topology, because they change without the configuration: a name gets
//! other addresses, a workload is scaled. A change replaces the list of one backend and shares all
//! the others.

use std::{net::SocketAddr, sync::Arc};

use super::snapshot::Endpoint;

/// One address that an endpoint of the configuration has.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Member {
    /// The endpoint as it is written: what a `Host` is made of, where a client sent none.
    pub endpoint: Endpoint,
    /// Where to connect to.
    pub address: SocketAddr,
}

/// The addresses of one backend, each once, those of one endpoint side by side.
pub type Members = Arc<[Member]>;

/// The members of endpoints that are addresses themselves; names have none before they are resolved.
pub fn literal(endpoints: &[Endpoint]) -> Members {
    let member = |endpoint: &Endpoint| {
        let address = SocketAddr::new(endpoint.host.parse().ok()?, endpoint.port);
        Some(Member { endpoint: endpoint.clone(), address })
    };
    endpoints.iter().filter_map(member).collect()
}

/// The same members with other addresses for one endpoint; nothing if they are the same. The order of
/// the addresses says nothing: resolvers turn it round as they like.
pub fn with_addresses(
    members: &[Member],
    endpoint: &Endpoint,
    addresses: impl IntoIterator<Item = SocketAddr>,
) -> Option<Members> {
    let mut addresses: Vec<_> = addresses.into_iter().collect();
    addresses.sort_unstable();
    addresses.dedup();
    let new = addresses.into_iter().map(|address| Member { endpoint: endpoint.clone(), address });
    let others = members.iter().filter(|member| member.endpoint != *endpoint).cloned();
    let all: Members = others.chain(new).collect();
    let is_same = all.len() == members.len() && all.iter().all(|member| members.contains(member));
    (!is_same).then_some(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::protocol::Protocol;

    fn endpoint(host: &str) -> Endpoint {
        Endpoint { host: host.to_owned(), port: 80, protocol: Protocol::Http1 }
    }

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, last], 80))
    }

    #[test]
    fn only_addresses_are_members_from_the_start() {
        let members = literal(&[endpoint("10.0.0.1"), endpoint("app.example"), endpoint("::1")]);
        let addresses: Vec<_> = members.iter().map(|member| member.address.to_string()).collect();
        assert_eq!(addresses, ["10.0.0.1:80", "[::1]:80"]);
    }

    #[test]
    fn a_name_has_all_its_addresses_and_the_rest_stays() {
        let members = literal(&[endpoint("10.0.0.9")]);
        let name = endpoint("app.example");
        let two = with_addresses(&members, &name, [address(2), address(1), address(2)]).unwrap();
        let found: Vec<_> = two.iter().map(|member| member.address).collect();
        assert_eq!(found, [address(9), address(1), address(2)]);
        assert_eq!(with_addresses(&two, &name, [address(2), address(1)]), None);
        let one = with_addresses(&two, &name, [address(2)]).unwrap();
        assert_eq!(one.len(), 2);
        assert_eq!(with_addresses(&one, &name, []).unwrap(), members);
    }
}
