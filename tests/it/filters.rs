//! What a route changes on the way: header fields, host and path, or where the client goes.

use crate::support::{
    Backend, H2, Tidegate,
    client::{Response, empty, h2_request},
    exchange, reply, runtime,
};

/// A configuration with these routes to a service `web` with one backend.
fn with_routes(backend: &Backend, routes: &str) -> Tidegate {
    let address = backend.address;
    Tidegate::start(format!(
        "workers = 1
         [[listeners]]
         address = '127.0.0.1:0'
         [admin]
         address = '127.0.0.1:0'
         {routes}
         [services.web]
         stable = 'v1'
         [services.web.backends.v1]
         endpoints = ['http://{address}']"
    ))
}

fn get(tidegate: &Tidegate, target: &str, fields: &str) -> Response {
    exchange(tidegate.address(), format!("GET {target} HTTP/1.1\r\nHost: web.test:81\r\n{fields}\r\n"))
}

#[test]
fn header_fields_change_in_both_directions() {
    let backend = Backend::answering(|_| {
        reply("200 OK", &[("Server", "app/1.2"), ("X-Old", "1"), ("Set-Cookie", "a=b"), ("X-Tag", "app")], "")
    });
    let tidegate = with_routes(
        &backend,
        "[[routes]]
         service = 'web'
         [routes.request_header_modifier]
         set = [{ name = 'X-Env', value = 'canary' }, { name = 'x-new', value = '1' }]
         add = [{ name = 'x-tag', value = 'a' }, { name = 'x-tag', value = 'b' }]
         remove = ['x-secret', 'cookie']
         [routes.response_header_modifier]
         set = [{ name = 'x-frame-options', value = 'DENY' }]
         add = [{ name = 'x-tag', value = 'proxy' }]
         remove = ['server', 'x-old', 'x-never-there']",
    );
    let fields = "X-Env: a\r\nX-Env: b\r\nx-tag: sent\r\nX-Secret: s\r\nCookie: c=d\r\n";
    let response = get(&tidegate, "/", fields);
    let seen = backend.only_request();
    assert_eq!(seen.fields("x-env"), ["canary"]);
    assert_eq!(seen.fields("x-new"), ["1"]);
    assert_eq!(seen.fields("x-tag"), ["sent", "a", "b"]);
    assert!(seen.fields("x-secret").is_empty() && seen.fields("cookie").is_empty());
    assert_eq!(seen.fields("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(response.fields("x-frame-options"), ["DENY"]);
    assert_eq!(response.fields("x-tag"), ["app", "proxy"]);
    assert_eq!(response.fields("set-cookie"), ["a=b"]);
    assert!(response.fields("server").is_empty() && response.fields("x-old").is_empty());
}

#[test]
fn host_and_path_are_rewritten_and_the_old_host_is_told() {
    let backend = Backend::named("v1");
    let tidegate = with_routes(
        &backend,
        "[[routes]]
         path_prefix = '/api/v1'
         service = 'web'
         [routes.url_rewrite]
         hostname = 'api.internal'
         replace_prefix_match = '/v1'
         [[routes]]
         path_regex = '/users/[0-9]+'
         service = 'web'
         [routes.url_rewrite]
         replace_full_path = '/user'
         [[routes]]
         path_prefix = '/strip'
         service = 'web'
         [routes.url_rewrite]
         replace_prefix_match = '/'",
    );
    for (target, expected, host) in [
        ("/api/v1/a/b?c=d", "/v1/a/b?c=d", "api.internal"),
        ("/api/v1", "/v1", "api.internal"),
        ("/users/17?x", "/user?x", "web.test:81"),
        ("/strip", "/", "web.test:81"),
        ("/strip/../api/v1//x", "/v1/x", "api.internal"),
        ("/strip/x?/strip", "/x?/strip", "web.test:81"),
    ] {
        assert_eq!(get(&tidegate, target, "").status, 200, "{target}");
        let seen = backend.requests().pop().unwrap();
        assert_eq!((seen.target(), seen.fields("host")), (expected, vec![host]), "{target}");
        assert_eq!(seen.fields("x-forwarded-host"), ["web.test:81"]);
    }
    assert_eq!(get(&tidegate, "/users/x", "").status, 404);
}

#[test]
fn a_redirect_is_ours_and_no_backend_is_asked() {
    let backend = Backend::named("v1");
    let tidegate = with_routes(
        &backend,
        "[[routes]]
         service = 'web'
         [[routes]]
         path_prefix = '/secure'
         request_redirect = { scheme = 'https', status_code = 301 }
         [[routes]]
         path_prefix = '/old'
         request_redirect = { replace_prefix_match = '/new', status_code = 308 }
         [[routes]]
         path = '/moved'
         request_redirect = { hostname = 'other.test', replace_full_path = '/here', status_code = 307 }
         [[routes]]
         path = '/port'
         request_redirect = { scheme = 'https', port = 8443 }",
    );
    for (target, status, location) in [
        ("/secure/x?y=z", 301, "https://web.test/secure/x?y=z"),
        ("/old/a?b", 308, "/new/a?b"),
        ("/old//evil.test", 308, "/new/evil.test"),
        ("/moved?q", 307, "//other.test:81/here?q"),
        ("/port", 302, "https://web.test:8443/port"),
    ] {
        let response = get(&tidegate, target, "");
        assert_eq!(response.status, status, "{target}");
        assert_eq!(response.fields("location"), [location]);
        assert_eq!(response.fields("proxy-status"), ["tidegate; details=\"redirect\""]);
    }
    assert_eq!(backend.count(), 0);
    tidegate.scrape().expect("tidegate_local_replies_total", &[("reason", "redirect")], 5.0);
    // The connection goes on: nothing was wrong with it.
    let mut client = tidegate.client();
    for _ in 0..2 {
        assert_eq!(client.get("/port").status, 302);
    }
    assert_eq!(client.get("/").text(), "v1");
}

#[test]
fn filters_work_the_same_over_http2() {
    let backend = Backend::named("v1");
    let tidegate = with_routes(
        &backend,
        "[[routes]]
         path_prefix = '/a'
         service = 'web'
         url_rewrite = { hostname = 'inner.test', replace_prefix_match = '/b' }
         response_header_modifier = { set = [{ name = 'x-h2', value = 'yes' }] }
         [[routes]]
         path = '/go'
         request_redirect = { scheme = 'https' }",
    );
    let client = H2::connect(tidegate.address());
    runtime().block_on(async {
        let response = client.send(h2_request("GET", "/a/./x?y").body(empty()).unwrap()).await.unwrap();
        assert_eq!((response.status().as_u16(), &response.headers()["x-h2"]), (200, &"yes".parse().unwrap()));
        let response = client.send(h2_request("GET", "/go").body(empty()).unwrap()).await.unwrap();
        assert_eq!(response.headers()["location"], "https://web.test/go");
    });
    let seen = backend.only_request();
    assert_eq!((seen.target(), seen.fields("host")), ("/b/x?y", vec!["inner.test"]));
}

#[test]
fn a_route_may_be_less_patient_than_its_service() {
    // Answers nothing but `/fast`.
    let backend = Backend::scripted(|mut peer| {
        while let Some(seen) = peer.request() {
            if seen.target() == "/fast" {
                peer.send(reply("200 OK", &[], "fast"));
            }
        }
    });
    let tidegate = with_routes(
        &backend,
        "[[routes]]
         service = 'web'
         [[routes]]
         path = '/slow'
         service = 'web'
         timeouts = { response = '50ms' }",
    );
    assert_eq!(get(&tidegate, "/fast", "").text(), "fast");
    let response = get(&tidegate, "/slow", "");
    assert_eq!(response.status, 504);
    assert_eq!(response.fields("proxy-status"), ["tidegate; error=http_response_timeout"]);
}
