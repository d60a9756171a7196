//! Clients that stay where they were put.

use crate::support::{Backend, Raw, Tidegate, Web, client::Response};

fn sticky(stable: &Backend, canary: &Backend) -> Tidegate {
    let toml = Web::new(stable.address).canary(canary.address).weight(50.0).workers(2);
    Tidegate::start(toml.table("sticky", "cookie = 'side'\nmax_age = '1h'"))
}

fn with_cookie(client: &mut Raw, cookie: &str) -> Response {
    client.send(format!("GET / HTTP/1.1\r\nHost: x\r\nCookie: a=b; {cookie}; c=d\r\n\r\n"));
    client.response()
}

/// The cookie that a client without one is given.
fn cookie(client: &mut Raw) -> String {
    let response = client.get("/");
    let set = response.fields("set-cookie");
    assert_eq!(set.len(), 1, "{}", response.head);
    let (cookie, attributes) = set[0].split_once("; ").unwrap();
    assert_eq!(attributes, "Max-Age=3600; Path=/; HttpOnly; SameSite=Lax");
    cookie.to_owned()
}

#[test]
fn a_cookie_is_given_once_and_leads_to_the_same_side() {
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    let tidegate = sticky(&stable, &canary);
    for _ in 0..20 {
        let mut client = tidegate.client();
        let first = client.get("/");
        let cookie = first.fields("set-cookie")[0].split(';').next().unwrap().to_owned();
        for _ in 0..5 {
            // On another connection, and so perhaps on another worker.
            let again = with_cookie(&mut tidegate.client(), &cookie);
            assert_eq!(again.text(), first.text());
            assert_eq!(again.fields("set-cookie").len(), 0);
        }
    }
    assert!(stable.requests().iter().all(|seen| seen.fields("cookie").len() <= 1));
}

#[test]
fn a_rising_weight_moves_nobody_back() {
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    let tidegate = sticky(&stable, &canary);
    let mut client = tidegate.client();
    let cookies: Vec<_> = (0..100).map(|_| cookie(&mut client)).collect();
    let mut on_canary = vec![false; cookies.len()];
    let mut before = 0;
    for percent in [0.0, 1.0, 10.0, 50.0, 90.0, 100.0] {
        tidegate.set_weight(percent);
        for (cookie, was) in cookies.iter().zip(&mut on_canary) {
            let is = with_cookie(&mut client, cookie).text() == "v2";
            assert!(is || !*was, "{cookie} was moved back at {percent} %");
            *was = is;
        }
        let now = on_canary.iter().filter(|is| **is).count();
        assert!(now >= before);
        before = now;
    }
    assert_eq!(before, cookies.len(), "at 100 % everybody is there");
    tidegate.set_weight(0.0);
    for cookie in &cookies {
        assert_eq!(with_cookie(&mut client, cookie).text(), "v1", "weight 0 evicts everybody");
    }
}

#[test]
fn a_cookie_that_is_not_ours_is_replaced() {
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    let tidegate = sticky(&stable, &canary);
    let mut client = tidegate.client();
    for bad in ["side=", "side=canary", "side=0123", "xside=0123456789abcdef"] {
        assert_eq!(with_cookie(&mut client, bad).fields("set-cookie").len(), 1, "{bad}");
    }
}

#[test]
fn a_service_without_stickiness_sets_no_cookie() {
    let backend = Backend::named("v1");
    let tidegate = Tidegate::start(Web::new(backend.address));
    assert_eq!(tidegate.client().get("/").fields("set-cookie").len(), 0);
}

#[test]
fn users_may_be_recognised_by_a_header_of_their_own() {
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    let toml = Web::new(stable.address).canary(canary.address).weight(50.0).workers(2);
    let tidegate = Tidegate::start(toml.table("sticky", "header = 'x-user-id'"));
    let ask = |user: &str| {
        let mut client = tidegate.client();
        client.send(format!("GET / HTTP/1.1\r\nHost: x\r\nX-User-Id: {user}\r\n\r\n"));
        client.response()
    };
    let first: Vec<_> = (0..40).map(|user| ask(&user.to_string()).text()).collect();
    for (user, first) in first.iter().enumerate() {
        let again = ask(&user.to_string());
        assert_eq!((&again.text(), again.fields("set-cookie").len()), (first, 0));
    }
    // Which side a number is on follows from the service's name, so this is the same in every run.
    assert!(first.iter().any(|side| side == "v1") && first.iter().any(|side| side == "v2"));
    tidegate.set_weight(100.0);
    assert!((0..40).all(|user| ask(&user.to_string()).text() == "v2"));
    tidegate.set_weight(0.0);
    assert!((0..40).all(|user| ask(&user.to_string()).text() == "v1"), "weight 0 evicts everybody");
}

#[test]
fn users_may_be_recognised_by_their_address() {
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    let toml = Web::new(stable.address).canary(canary.address).weight(50.0).workers(2);
    let tidegate = Tidegate::start(toml.table("sticky", "client_address = true"));
    let first = tidegate.client().get("/").text();
    for _ in 0..40 {
        assert_eq!(tidegate.client().get("/").text(), first);
    }
}
