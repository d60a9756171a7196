//! Clients that stay where they were put.

use crate::support::{Backend, Raw, Tidegate, Web, certificates::Files, client::Response, eventually_is};

const OLD: &str = "a secret that nobody but this test knows";
const NEW: &str = "another one that comes in the place of it";

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

/// A proxy that signs with what stands in the file `secret`.
fn signing(stable: &Backend, canary: &Backend, files: &Files) -> Tidegate {
    let toml = Web::new(stable.address).canary(canary.address).weight(50.0).workers(2);
    let keys = format!("cookie = 'side'\nmax_age = '1h'\nsecret_file = '{}'", files.path("secret").display());
    Tidegate::start(toml.table("sticky", &keys))
}

/// Writes the file anew, and waits until it has been taken up or refused.
fn replace(tidegate: &Tidegate, files: &Files, text: &str, result: &str) {
    let count = || tidegate.scrape().sum("tidegate_tls_reloads_total", &[("result", result)]);
    let before = count();
    files.write("secret", text);
    eventually_is(before + 1.0, count);
}

/// The number in a cookie that is signed.
fn number(cookie: &str) -> &str {
    cookie.strip_prefix("side=").unwrap().split_once('.').unwrap().0
}

#[test]
fn a_client_brings_back_what_it_was_given_and_nothing_of_its_own() {
    let (stable, canary, files) = (Backend::named("v1"), Backend::named("v2"), Files::new());
    files.write("secret", OLD);
    let tidegate = signing(&stable, &canary, &files);
    let mut client = tidegate.client();
    let given: Vec<_> = (0..20).map(|_| cookie(&mut client)).collect();
    let sides: Vec<_> = given.iter().map(|cookie| with_cookie(&mut client, cookie).text()).collect();
    assert!(sides.iter().any(|side| side == "v1") && sides.iter().any(|side| side == "v2"), "{sides:?}");
    for (cookie, side) in given.iter().zip(&sides) {
        let again = with_cookie(&mut tidegate.client(), cookie);
        assert_eq!((&again.text(), again.fields("set-cookie").len()), (side, 0));
        let (one, signature) = cookie.split_once('.').unwrap();
        let other = given.iter().find(|other| *other != cookie).unwrap();
        let last = if cookie.ends_with('0') { "1" } else { "0" };
        for forged in [
            // Not signed; another's signature; a signature that is almost right.
            one.to_owned(),
            format!("side={}.{signature}", number(other)),
            format!("{}{last}", &cookie[..cookie.len() - 1]),
        ] {
            let replaced = with_cookie(&mut client, &forged);
            let set = replaced.fields("set-cookie");
            assert_eq!(set.len(), 1, "{forged}");
            assert_ne!(number(set[0]), number(cookie), "{forged}");
        }
    }
}

#[test]
fn a_secret_is_replaced_and_nobody_moves() {
    let (stable, canary, files) = (Backend::named("v1"), Backend::named("v2"), Files::new());
    files.write("secret", OLD);
    let tidegate = signing(&stable, &canary, &files);
    let mut client = tidegate.client();
    let old: Vec<_> = (0..10).map(|_| cookie(&mut client)).collect();
    let sides: Vec<_> = old.iter().map(|cookie| with_cookie(&mut client, cookie).text()).collect();
    replace(&tidegate, &files, &format!("{NEW}\n{OLD}\n"), "success");
    let mut new = Vec::new();
    for (cookie, side) in old.iter().zip(&sides) {
        let renewed = with_cookie(&mut client, cookie);
        let set = renewed.fields("set-cookie")[0].split(';').next().unwrap().to_owned();
        assert_eq!((&renewed.text(), number(&set)), (side, number(cookie)));
        assert_ne!(set, *cookie);
        new.push(set);
    }
    // What is no good is not taken up, and says so.
    replace(&tidegate, &files, "too short", "failure");
    assert_eq!(with_cookie(&mut client, &new[0]).fields("set-cookie").len(), 0);
    replace(&tidegate, &files, NEW, "success");
    for ((new, old), side) in new.iter().zip(&old).zip(&sides) {
        let kept = with_cookie(&mut client, new);
        assert_eq!((&kept.text(), kept.fields("set-cookie").len()), (side, 0));
        let gone = with_cookie(&mut client, old);
        assert_ne!(number(gone.fields("set-cookie")[0]), number(old), "it has served its time");
    }
}
