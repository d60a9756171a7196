//! Names of endpoints, and endpoints that come and go without a change of the configuration.

use std::net::TcpListener;

use crate::support::{Backend, Raw, Tidegate, Web, bare::Bare, get, reply};

/// A backend on an address of this machine that is not 127.0.0.1; nothing where there is none.
fn on(address: &str, name: &'static str) -> Option<Backend> {
    let listener = TcpListener::bind(address).ok()?;
    Some(Backend::on(listener, crate::support::backend::serve(move |_| reply("200 OK", &[], name))))
}

#[test]
fn a_name_is_resolved_and_each_of_its_addresses_is_an_endpoint() {
    let v4 = Backend::named("4");
    let port = v4.address.port();
    let tidegate = Tidegate::start(
        Web::at(&[&format!("http://localhost:{port}")]).table("balance", "algorithm = 'round-robin'"),
    );
    let endpoint = format!("localhost:{port}");
    let addresses = tidegate.scrape().sum("tidegate_endpoint_addresses", &[("endpoint", &endpoint)]);
    let v6 = on(&format!("[::1]:{port}"), "6");
    let mut client = tidegate.client();
    let names: String = (0..4).map(|_| client.get("/").text()).collect();
    // Some machines have no ::1, and some do not call it localhost.
    match (addresses, v6) {
        (1.0, _) => assert_eq!(names, "4444"),
        (2.0, Some(_)) => assert!("464646".contains(&names), "{names}"),
        (2.0, None) => assert!(names.contains('4'), "{names}"),
        (other, _) => panic!("{other} addresses"),
    }
    // Where the client has sent none, `Host` is what stands in the configuration.
    crate::support::exchange(tidegate.address(), "GET / HTTP/1.0\r\n\r\n");
    assert!(v4.requests().iter().any(|seen| seen.fields("host") == ["web.test"]));
}

#[test]
fn a_name_that_does_not_exist_has_no_endpoint_and_is_nobodys_failure() {
    // Reserved for this (RFC 6761).
    let tidegate = Tidegate::start(Web::at(&["http://nowhere.invalid:1"]));
    let response = get(tidegate.address(), "/");
    assert_eq!(response.status, 503);
    assert_eq!(response.fields("proxy-status"), ["tidegate; error=destination_unavailable"]);
    let scrape = tidegate.scrape();
    scrape.expect("tidegate_local_replies_total", &[("reason", "no_endpoint")], 1.0);
    scrape.expect("tidegate_requests_total", &[], 0.0);
}

#[test]
fn addresses_come_and_go_and_those_that_stay_keep_their_connections() {
    let backends = [Backend::named("a"), Backend::named("b"), Backend::named("c")];
    let [a, b, c] = [backends[0].address, backends[1].address, backends[2].address];
    let bare = Bare::start("algorithm = 'round-robin'");
    let mut client = Raw::connect(bare.address);
    assert_eq!(client.get("/").status, 503, "not resolved yet");
    let mut six = || -> String {
        let mut names: Vec<_> = (0..6).map(|_| client.get("/").text()).collect();
        names.sort();
        names.concat()
    };
    assert!(bare.set(&[b, a]));
    assert_eq!(six(), "aaabbb");
    assert!(!bare.set(&[a, b, a]), "the order of addresses says nothing");
    assert!(bare.set(&[b, c]));
    assert_eq!(six(), "bbbccc");
    assert!(bare.set(&[c]));
    assert_eq!(six(), "cccccc");
    let connections: Vec<_> = backends.iter().map(Backend::connections).collect();
    assert_eq!(connections, [1, 1, 1]);
    assert!(bare.set(&[]));
    assert_eq!(Raw::connect(bare.address).get("/").status, 503);
}

#[test]
fn a_new_endpoint_starts_slowly() {
    let backends = [Backend::named("a"), Backend::named("b")];
    let bare = Bare::start("algorithm = 'round-robin'\nslow_start = '1h'");
    let mut client = Raw::connect(bare.address);
    bare.set(&[backends[0].address]);
    assert_eq!(client.get("/").text(), "a");
    bare.set(&[backends[0].address, backends[1].address]);
    let new = (0..400).filter(|_| client.get("/").text() == "b").count();
    // Every second request is its turn, and it takes a tenth of those: 20 are expected, with a standard
    // deviation of 4.2; six of them to either side, but at least one.
    assert!((1..=46).contains(&new), "{new}");
}
