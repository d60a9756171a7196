//! Who decides which version a request gets: rules before stickiness before the weight.

use crate::support::{Backend, Raw, Tidegate, Web, client::Response};

const RULES: &str = "
    force = [
      { role = 'canary', query = { name = 'side', value = 'canary' } },
      { role = 'canary', cookie = { name = 'side', value = 'canary' } },
      { role = 'stable', cookie = { name = 'side', value = 'stable' } },
      { role = 'canary', header = { name = 'x-side', value = 'canary' } },
      { role = 'stable', header = { name = 'x-side', regex = 'st.*' } },
    ]";

fn web(stable: &Backend, canary: &Backend, keys: &str) -> String {
    let toml = Web::new(stable.address).canary(canary.address).weight(0.0).to_string();
    toml.replace("[services.web]\n", &format!("[services.web]\n{keys}\n"))
}

fn ask(client: &mut Raw, target: &str, fields: &str) -> Response {
    client.send(format!("GET {target} HTTP/1.1\r\nHost: web.test\r\n{fields}\r\n"));
    client.response()
}

#[test]
fn a_header_is_heard_before_a_cookie_and_that_before_the_query_and_the_weight() {
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    let tidegate = Tidegate::start(web(&stable, &canary, RULES));
    let mut client = tidegate.client();
    for percent in [0.0, 100.0] {
        tidegate.set_weight(percent);
        let by_weight = if percent == 0.0 { "v1" } else { "v2" };
        for (target, fields, expected) in [
            ("/", "", by_weight),
            ("/?side=canary", "", "v2"),
            ("/?side=other", "", by_weight),
            ("/", "Cookie: a=b; side=canary\r\n", "v2"),
            ("/?side=canary", "Cookie: side=stable\r\n", "v1"),
            ("/", "Cookie: side=stable\r\nX-Side: canary\r\n", "v2"),
            ("/?side=canary", "Cookie: side=canary\r\nX-Side: stable\r\n", "v1"),
        ] {
            assert_eq!(ask(&mut client, target, fields).text(), expected, "{percent} % {target} {fields}");
        }
    }
}

#[test]
fn testers_stay_where_they_are_forced_and_get_no_sticky_cookie() {
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    let toml = web(&stable, &canary, RULES) + "\n[services.web.sticky]\ncookie = 'seat'";
    let tidegate = Tidegate::start(toml);
    let mut client = tidegate.client();
    tidegate.set_weight(100.0);
    let user = client.get("/");
    assert_eq!(user.text(), "v2");
    let seat = user.fields("set-cookie")[0].split(';').next().unwrap().to_owned();
    let tester = ask(&mut client, "/", "X-Side: canary\r\n");
    assert_eq!((tester.text().as_str(), tester.fields("set-cookie").len()), ("v2", 0));
    // What a rollback does to the weight.
    tidegate.set_weight(0.0);
    assert_eq!(ask(&mut client, "/", &format!("Cookie: {seat}\r\n")).text(), "v1", "evicted");
    assert_eq!(ask(&mut client, "/", &format!("Cookie: {seat}\r\nX-Side: canary\r\n")).text(), "v2");
    assert_eq!(ask(&mut client, "/", &format!("Cookie: {seat}; side=canary\r\n")).text(), "v2");
}

#[test]
fn a_role_that_nobody_holds_is_not_forced() {
    let backend = Backend::named("v1");
    let toml = Web::new(backend.address).to_string();
    let tidegate = Tidegate::start(toml.replace("[services.web]\n", &format!("[services.web]\n{RULES}\n")));
    assert_eq!(ask(&mut tidegate.client(), "/?side=canary", "X-Side: canary\r\n").text(), "v1");
}

#[test]
fn strangers_force_nothing() {
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    for (from, expected) in [("10.0.0.0/8', '::/0", "v1"), ("10.0.0.0/8', '127.0.0.0/8", "v2")] {
        let rule = format!(
            "force = [{{ role = 'canary', header = {{ name = 'x-side', present = true }}, from = ['{from}'] }}]
             preview = {{ hostnames = ['preview.test'], from = ['{from}'] }}"
        );
        let tidegate = Tidegate::start(web(&stable, &canary, &rule));
        assert_eq!(ask(&mut tidegate.client(), "/", "X-Side: 1\r\n").text(), expected, "{from}");
        let mut client = tidegate.client();
        client.send("GET / HTTP/1.1\r\nHost: preview.test\r\n\r\n");
        assert_eq!(client.response().text(), expected, "{from}");
    }
}

#[test]
fn a_preview_shows_the_idle_version_or_nothing() {
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    let preview = "preview = { hostnames = ['preview.test'], header = { name = 'x-preview', value = '1' } }";
    let tidegate = Tidegate::start(web(&stable, &canary, preview));
    let mut client = tidegate.client();
    assert_eq!(client.get("/").text(), "v1");
    assert_eq!(ask(&mut client, "/", "X-Preview: 1\r\n").text(), "v2");
    for host in ["preview.test", "PREVIEW.test:8080"] {
        client.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert_eq!(client.response().text(), "v2");
    }

    let alone = Web::new(stable.address).to_string();
    let alone = alone.replace("[services.web]\n", &format!("[services.web]\n{preview}\n"));
    let tidegate = Tidegate::start(alone);
    let mut client = tidegate.client();
    let response = ask(&mut client, "/", "X-Preview: 1\r\n");
    assert_eq!(response.status, 503);
    assert_eq!(
        response.fields("proxy-status"),
        ["tidegate; error=destination_unavailable; details=\"no canary\""]
    );
    tidegate.scrape().expect("tidegate_local_replies_total", &[("reason", "no_canary")], 1.0);
    assert_eq!(client.get("/").text(), "v1");
}

#[test]
fn the_backend_is_named_where_it_is_asked_for() {
    let named =
        |name| Backend::answering(move |_| crate::support::reply("200 OK", &[("X-Backend", "liar")], name));
    let (stable, canary) = (named("v1"), named("v2"));
    let tidegate = Tidegate::start(web(&stable, &canary, "backend_header = 'x-backend'"));
    let mut client = tidegate.client();
    for (percent, backend) in [(0.0, "v1"), (100.0, "v2")] {
        tidegate.set_weight(percent);
        assert_eq!(client.get("/").fields("x-backend"), [backend]);
    }
    let tidegate = Tidegate::start(web(&stable, &canary, ""));
    assert_eq!(tidegate.client().get("/").fields("x-backend"), ["liar"], "off unless asked for");
}
