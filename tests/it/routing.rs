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

/// Services `a`, `b`, … behind these routes, each answering with its name.
fn services(routes: &str, backends: &[(&str, &Backend)]) -> Tidegate {
    let mut toml = format!(
        "workers = 1\n[[listeners]]\naddress = '127.0.0.1:0'\n[admin]\naddress = '127.0.0.1:0'\n{routes}\n"
    );
    for (name, backend) in backends {
        toml += &format!(
            "[services.{name}]\nstable = 'v1'\n[services.{name}.backends.v1]\nendpoints = ['http://{}']\n",
            backend.address
        );
    }
    Tidegate::start(toml)
}

#[test]
fn the_most_specific_route_wins_whatever_the_order_in_the_file() {
    let [a, b, c, d, e] = ["a", "b", "c", "d", "e"].map(Backend::named);
    let routes = "
        [[routes]]
        service = 'a'
        [[routes]]
        hostnames = ['*.test']
        path_regex = '/(items|users)/[0-9]+'
        service = 'b'
        [[routes]]
        hostnames = ['*.shop.test']
        service = 'c'
        [[routes]]
        hostnames = ['*.test']
        path_prefix = '/users'
        service = 'd'
        [[routes]]
        hostnames = ['*.test']
        path = '/users/1'
        service = 'e'";
    let tidegate = services(routes, &[("a", &a), ("b", &b), ("c", &c), ("d", &d), ("e", &e)]);
    for (host, target, expected) in [
        ("other", "/", "a"),
        ("test", "/users/1", "a"),
        ("x.test", "/", "a"),
        ("x.test", "/items/17?q", "b"),
        ("x.y.test:80", "/items/17", "b"),
        ("x.test", "/items/17/more", "a"),
        ("x.test", "/users/17", "d"),
        ("x.test", "/users/1", "e"),
        ("x.test", "/users/1/", "d"),
        ("a.shop.test", "/users/1", "c"),
        ("shop.test", "/users/1", "e"),
    ] {
        let reply = exchange(tidegate.address(), format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert_eq!(reply.text(), expected, "{host}{target}");
    }
}

#[test]
fn methods_headers_and_the_query_tell_routes_apart() {
    let [a, b, c, d] = ["a", "b", "c", "d"].map(Backend::named);
    let routes = "
        [[routes]]
        service = 'a'
        [[routes]]
        query = [{ name = 'v', value = '2' }]
        service = 'b'
        [[routes]]
        headers = [{ name = 'X-Beta', regex = 'y(es)?' }]
        service = 'c'
        [[routes]]
        methods = ['POST', 'PUT']
        service = 'd'";
    let tidegate = services(routes, &[("a", &a), ("b", &b), ("c", &c), ("d", &d)]);
    for (method, target, fields, expected) in [
        ("GET", "/", "", "a"),
        ("GET", "/x?a=b&v=2", "", "b"),
        ("GET", "/?%76=%32", "", "b"),
        ("GET", "/?v=3&v=2", "", "a"),
        ("GET", "/?v=2", "x-beta: yes\r\n", "c"),
        ("GET", "/", "x-beta: yess\r\n", "a"),
        ("GET", "/", "x-beta: no\r\nx-beta: y\r\n", "c"),
        ("PUT", "/?v=2", "x-beta: yes\r\nContent-Length: 0\r\n", "d"),
        ("DELETE", "/", "", "a"),
    ] {
        let request = format!("{method} {target} HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
        assert_eq!(exchange(tidegate.address(), request).text(), expected, "{method} {target} {fields}");
    }
}

#[test]
fn a_route_is_chosen_by_what_the_backend_sees() {
    let (open, closed) = (Backend::named("open"), Backend::named("closed"));
    let routes = "[[routes]]\nservice = 'open'\n[[routes]]\npath_prefix = '/admin'\nservice = 'closed'";
    let tidegate = services(routes, &[("open", &open), ("closed", &closed)]);
    for (target, seen) in [
        ("/admin", "/admin"),
        ("/x/../admin/y?q=/../", "/admin/y?q=/../"),
        ("//admin", "/admin"),
        ("/./admin/.", "/admin/"),
        ("/x/%2e%2E/admin", "/admin"),
        ("/%61dmin", "/admin"),
        ("http://web.test/x/../admin", "/admin"),
    ] {
        let reply = exchange(tidegate.address(), format!("GET {target} HTTP/1.1\r\nHost: web.test\r\n\r\n"));
        assert_eq!(reply.text(), "closed", "{target}");
        assert_eq!(closed.requests().pop().unwrap().target(), seen, "{target}");
    }
    for target in
        ["/x/..%2fadmin", "/x/..;/admin", "/x%5c..%5cadmin", "/x\\..\\admin", "/admin%00", "/%zz", "/%"]
    {
        let reply = exchange(tidegate.address(), format!("GET {target} HTTP/1.1\r\nHost: web.test\r\n\r\n"));
        assert_eq!(reply.status, 400, "{target}");
        assert_eq!(reply.fields("proxy-status"), ["tidegate; error=http_request_error; details=\"path\""]);
    }
    assert_eq!(open.count(), 0);
}

#[test]
fn escaped_slashes_can_be_kept_or_undone() {
    let backend = Backend::named("web");
    let with = |action: &str| {
        let paths =
            format!("[paths]\npath_with_escaped_slashes_action = '{action}'\n[[routes]]\nservice = 'web'");
        services(&paths, &[("web", &backend)])
    };
    let kept = with("keep_unchanged");
    assert_eq!(kept.client().get("/@scope%2fname?a%2fb").status, 200);
    assert_eq!(backend.requests().pop().unwrap().target(), "/@scope%2Fname?a%2fb");
    assert_eq!(kept.client().get("/a/..%2fb").status, 400);
    let undone = with("unescape_and_forward");
    assert_eq!(undone.client().get("/a%2f..%5Cb").status, 200);
    assert_eq!(backend.requests().pop().unwrap().target(), "/b");
    let told = with("unescape_and_redirect");
    let reply = told.client().get("/%2fevil.test%2f..%2fx?a%2fb");
    assert_eq!((reply.status, reply.fields("location")), (307, vec!["/x?a%2fb"]));
    assert_eq!(backend.count(), 2);
}

#[test]
fn a_path_goes_on_as_it_came_where_that_is_asked_for() {
    let backend = Backend::named("web");
    let off = "[paths]
        normalize_path = false
        merge_slashes = false
        path_with_escaped_slashes_action = 'keep_unchanged'
        [[routes]]
        service = 'web'";
    let tidegate = services(off, &[("web", &backend)]);
    for target in ["/a//../%2e%2e/%61", "/%zz", "/..;/x%2f\\"] {
        assert_eq!(tidegate.client().get(target).status, 200, "{target}");
        assert_eq!(backend.requests().pop().unwrap().target(), target);
    }
}
