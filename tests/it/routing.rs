//! Which service a request gets to, and what is said where there is none.

use crate::support::{Backend, Tidegate, exchange};

fn two_services(a: &Backend, b: &Backend) -> String {
    let (a, b) = (a.address, b.address);
    format!(
        "workers = 1
         [[listeners]]
         address = '127.0.0.1:0'
         [[listeners]]
         address = '127.0.0.1:0'
         [admin]
         address = '127.0.0.1:0'
         [[routes]]
         hostnames = ['a.test', 'www.a.test']
         service = 'a'
         [[routes]]
         hostnames = ['a.test']
         path_prefix = '/b'
         service = 'b'
         [[routes]]
         hostnames = ['b.test']
         path_prefix = '/only'
         service = 'b'
         [services.a]
         stable = 'v1'
         [services.a.backends.v1]
         endpoints = ['http://{a}']
         [services.b]
         stable = 'v1'
         [services.b.backends.v1]
         endpoints = ['http://{b}']"
    )
}

#[test]
fn host_and_path_decide_on_every_listener() {
    let (a, b) = (Backend::named("a"), Backend::named("b"));
    let tidegate = Tidegate::start(two_services(&a, &b));
    assert_eq!(tidegate.listeners.len(), 2);
    for address in &tidegate.listeners {
        for (host, path, expected) in [
            ("a.test", "/", "a"),
            ("A.TEST:8080", "/x?y", "a"),
            ("www.a.test", "/b", "a"),
            ("a.test", "/b", "b"),
            ("a.test", "/b/c?d=e", "b"),
            ("a.test", "/bc", "a"),
            ("b.test", "/only/this", "b"),
        ] {
            let reply = exchange(*address, format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
            assert_eq!((reply.status, reply.text()), (200, expected.to_owned()), "{host}{path}");
        }
    }
    let targets: Vec<_> = b.requests().iter().map(|seen| seen.target().to_owned()).collect();
    assert_eq!(targets[..3], ["/b", "/b/c?d=e", "/only/this"], "the target goes on as it came");
}

#[test]
fn where_no_route_leads_the_reply_says_that_it_is_ours() {
    let (a, b) = (Backend::named("a"), Backend::named("b"));
    let tidegate = Tidegate::start(two_services(&a, &b));
    for (host, path) in [("b.test", "/"), ("b.test", "/onlyx"), ("other.test", "/"), ("[::1]", "/")] {
        let reply = exchange(tidegate.address(), format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert_eq!(reply.status, 404, "{host}{path}");
        assert_eq!(reply.fields("proxy-status"), ["tidegate; error=destination_not_found"]);
        assert_eq!(reply.fields("content-type"), ["text/plain; charset=utf-8"]);
    }
    tidegate.scrape().expect("tidegate_local_replies_total", &[("reason", "no_route")], 4.0);
    assert_eq!((a.count(), b.count()), (0, 0));
}

#[test]
fn a_connection_is_bound_to_no_service() {
    let (a, b) = (Backend::named("a"), Backend::named("b"));
    let tidegate = Tidegate::start(two_services(&a, &b));
    let mut client = tidegate.client();
    for (path, status) in [("/", 200), ("/b", 200), ("/", 200)] {
        client.send(format!("GET {path} HTTP/1.1\r\nHost: a.test\r\n\r\n"));
        assert_eq!(client.response().status, status);
    }
    client.send("GET / HTTP/1.1\r\nHost: nobody.test\r\n\r\n");
    assert_eq!(client.response().status, 404);
    client.send("GET /b HTTP/1.1\r\nHost: a.test\r\n\r\n");
    assert_eq!(client.response().text(), "b");
}

#[test]
fn a_backend_of_several_endpoints_uses_them_all() {
    let (one, two) = (Backend::named("one"), Backend::named("two"));
    let toml = crate::support::Web::new(one.address).to_string().replace(
        &format!("'http://{}'", one.address),
        &format!("'http://{}', 'http://{}'", one.address, two.address),
    );
    let tidegate = Tidegate::start(toml);
    let mut client = tidegate.client();
    for _ in 0..100 {
        assert_eq!(client.get("/").status, 200);
    }
    // 100 even draws: a standard deviation of 5; six of them.
    assert!((20..=80).contains(&one.count()), "{}", one.count());
    assert_eq!(one.count() + two.count(), 100);
}
