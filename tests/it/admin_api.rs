//! The admin API: every route, and every way to be told off by it.

use serde_json::Value;

use crate::support::{Backend, Tidegate, Web, client::Response};

const WEB: &str = "/api/v1/services/web";

fn two_versions() -> (Backend, Backend, Tidegate) {
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    let tidegate = Tidegate::start(Web::new(stable.address).canary(canary.address));
    (stable, canary, tidegate)
}

/// Checks that it is a problem document, and returns its detail.
#[track_caller]
pub fn problem(response: &Response, status: u16) -> String {
    assert_eq!(response.status, status, "{}", response.text());
    assert_eq!(response.fields("content-type"), ["application/problem+json"], "{}", response.head);
    let problem: Value = serde_json::from_slice(&response.body).unwrap();
    assert_eq!(problem["status"], status);
    assert!(problem["title"].is_string());
    problem["detail"].as_str().unwrap().to_owned()
}

#[test]
fn services_are_listed_and_shown() {
    let (stable, _canary, tidegate) = two_versions();
    let list = tidegate.ask("GET", "/api/v1/services", "");
    assert_eq!((list.status, list.fields("content-type")), (200, vec!["application/json"]));
    let list: Value = serde_json::from_slice(&list.body).unwrap();
    assert_eq!(list["services"].as_array().unwrap().len(), 1);
    assert_eq!(list["services"][0]["name"], "web");
    let status = tidegate.status();
    assert_eq!((&status["stable"], &status["canary"]), (&"v1".into(), &"v2".into()));
    assert_eq!(status["rollout"], Value::Null);
    assert_eq!(status["backends"][0]["endpoints"][0], stable.address.to_string());
    assert_eq!(status["backends"][0]["role"], "stable");
}

#[test]
fn the_weight_is_set_and_answered_with_the_new_status() {
    let (_stable, _canary, tidegate) = two_versions();
    let status = tidegate.api("PUT", "web/weight", r#"{"canary": 12.5}"#);
    assert_eq!(status["weight"], 12.5);
    assert_eq!(status["events"].as_array().unwrap().last().unwrap()["what"], "weight set to 12.5 %");
    for fine in ["0", "100", "0.01", "99.99", "1e1"] {
        tidegate.api("PUT", "web/weight", &format!("{{\"canary\": {fine}}}"));
    }
}

#[test]
fn a_flip_swaps_the_roles() {
    let (_stable, _canary, tidegate) = two_versions();
    let status = tidegate.api("POST", "web/flip", "");
    assert_eq!((&status["stable"], &status["canary"]), (&"v2".into(), &"v1".into()));
    assert_eq!(status["weight"], 0.0);
    assert_eq!(tidegate.client().get("/").text(), "v2");
    tidegate.api("POST", "web/flip", "");
    assert_eq!(tidegate.client().get("/").text(), "v1");
}

#[test]
fn what_is_not_there_is_a_404() {
    let (_stable, _canary, tidegate) = two_versions();
    for (method, path) in [
        ("GET", "/api/v1/services/nobody"),
        ("PUT", "/api/v1/services/nobody/weight"),
        ("POST", "/api/v1/services/nobody/start"),
        ("POST", "/api/v1/services/nobody/flip"),
        ("GET", "/api/v1/"),
        ("GET", "/api/v1/service"),
        ("POST", "/api/v1/services/web/starts"),
        ("GET", "/"),
        ("GET", "/api"),
        ("GET", "/nothing"),
    ] {
        let body = if method == "PUT" { r#"{"canary": 1}"# } else { "" };
        problem(&tidegate.ask(method, path, body), 404);
    }
    let detail = problem(&tidegate.ask("GET", "/api/v1/services/nobody", ""), 404);
    assert_eq!(detail, "there is no service `nobody`");
}

#[test]
fn a_weight_that_is_none_is_refused_and_nothing_changes() {
    let (_stable, _canary, tidegate) = two_versions();
    let put = |body: &str| tidegate.ask("PUT", &format!("{WEB}/weight"), body);
    for body in [
        "",
        "{",
        "10",
        "[10]",
        "{}",
        r#"{"canary": "ten"}"#,
        r#"{"canary": null}"#,
        r#"{"canary": NaN}"#,
        r#"{"canary": 10, "stable": 90}"#,
        r#"{"canary": 10} x"#,
    ] {
        let detail = problem(&put(body), 400);
        assert!(detail.starts_with("the body is not right: "), "{detail}");
    }
    for number in ["-0.01", "100.01", "0.001", "1e9"] {
        problem(&put(&format!("{{\"canary\": {number}}}")), 422);
    }
    assert_eq!(tidegate.status()["weight"], 0.0);
}

#[test]
fn a_body_that_is_too_large_is_a_413() {
    let (_stable, _canary, tidegate) = two_versions();
    let body = format!("{{\"canary\": {}1}}", " ".repeat(70_000));
    problem(&tidegate.ask("PUT", &format!("{WEB}/weight"), &body), 413);
    problem(&tidegate.ask("POST", &format!("{WEB}/promote"), &body), 413);
}

#[test]
fn a_method_that_a_path_does_not_know_is_a_405() {
    let (_stable, _canary, tidegate) = two_versions();
    for (method, path, allowed) in [
        ("POST", "/api/v1/services", "GET,HEAD"),
        ("DELETE", WEB, "GET,HEAD"),
        ("POST", "/api/v1/services/web/weight", "PUT"),
        ("GET", "/api/v1/services/web/start", "POST"),
        ("GET", "/api/v1/services/web/flip", "POST"),
        ("POST", "/metrics", "GET,HEAD"),
        ("POST", "/livez", "GET,HEAD"),
        ("DELETE", "/readyz", "GET,HEAD"),
    ] {
        let response = tidegate.ask(method, path, "");
        problem(&response, 405);
        assert_eq!(response.fields("allow"), [allowed], "{method} {path}");
    }
}

#[test]
fn commands_that_make_no_sense_now_are_a_409() {
    let (_stable, _canary, tidegate) = two_versions();
    for command in ["promote", "rollback", "pause", "resume"] {
        let detail = problem(&tidegate.ask("POST", &format!("{WEB}/{command}"), ""), 409);
        assert!(detail.contains("no rollout has been started; allowed now: `start`"), "{detail}");
    }
    problem(&tidegate.ask("POST", &format!("{WEB}/promote"), "{"), 400);
    problem(&tidegate.ask("POST", &format!("{WEB}/promote"), r#"{"fully": true}"#), 400);
    for body in [r#"{"full": true}"#, r#"{"full": true, "reason": " "}"#] {
        let detail = problem(&tidegate.ask("POST", &format!("{WEB}/promote"), body), 422);
        assert!(detail.starts_with("`full` needs a `reason`"), "{detail}");
    }
    let body = r#"{"full": true, "reason": "a hot fix"}"#;
    let detail = problem(&tidegate.ask("POST", &format!("{WEB}/promote"), body), 409);
    assert!(detail.starts_with("cannot `promote --full` while idle"), "{detail}");
}

#[test]
fn a_service_without_canary_has_nothing_to_move() {
    let backend = Backend::named("v1");
    let tidegate = Tidegate::start(Web::new(backend.address));
    for (method, path, body) in [
        ("PUT", "weight", r#"{"canary": 1}"#),
        ("POST", "start", ""),
        ("POST", "flip", ""),
        ("POST", "promote", ""),
    ] {
        let detail = problem(&tidegate.ask(method, &format!("{WEB}/{path}"), body), 409);
        assert!(detail.contains("has no canary"), "{detail}");
    }
}

#[test]
fn a_write_that_a_browser_sends_for_a_page_is_refused() {
    let (_stable, _canary, tidegate) = two_versions();
    let ask =
        |method: &str, path: &str, body: &str| tidegate.ask_with("Origin: null\r\n", method, path, body);
    problem(&ask("PUT", &format!("{WEB}/weight"), r#"{"canary": 100}"#), 403);
    problem(&ask("POST", &format!("{WEB}/flip"), ""), 403);
    assert_eq!(ask("GET", WEB, "").status, 200);
    assert_eq!(tidegate.status()["weight"], 0.0);
    assert_eq!(tidegate.status()["stable"], "v1");
}

#[test]
fn the_process_says_that_it_is_alive_and_ready() {
    let (_stable, _canary, tidegate) = two_versions();
    for path in ["/livez", "/readyz"] {
        let response = tidegate.ask("GET", path, "");
        assert_eq!((response.status, response.text().as_str()), (200, "ok\n"), "{path}");
    }
    let metrics = tidegate.ask("GET", "/metrics", "");
    assert_eq!(metrics.fields("content-type"), ["text/plain; version=0.0.4"]);
}
