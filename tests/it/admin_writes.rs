//! Writes through the admin API: who did what is recorded, nobody changes what they have not seen, nothing is
//! done twice, and whoever waits for a change is told.

use std::{
    fs::File,
    net::Shutdown,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tidegate::admin::token::{Hex, Token};

use crate::{
    admin_api::problem,
    restart::{BY_HAND, Site},
    support::{Backend, Raw, Tidegate, Web, client::Response, eventually},
};

const WEB: &str = "/api/v1/services/web";

pub struct Setup {
    _backend: Backend,
    folder: TempDir,
    pub tidegate: Tidegate,
}

impl Setup {
    pub fn new() -> Self {
        Self::with("")
    }

    fn with(admin: &str) -> Self {
        let (backend, folder) = (Backend::named("v1"), tempfile::tempdir().unwrap());
        let audit = folder.path().join("audit.log");
        let web = Web::new(backend.address).canary(backend.address);
        let web = web.admin(&format!("audit_log = '{}'\n{admin}", audit.display()));
        let file = folder.path().join("tidegate.toml");
        std::fs::write(&file, web.to_string()).unwrap();
        Self { tidegate: Tidegate::start_from(&file, false), _backend: backend, folder }
    }

    fn audit_log(&self) -> PathBuf {
        self.folder.path().join("audit.log")
    }

    fn records(&self) -> Vec<Value> {
        records(&self.audit_log())
    }

    fn tag(&self) -> String {
        self.tidegate.ask("GET", WEB, "").fields("etag")[0].to_owned()
    }

    pub fn flip_with(&self, fields: &str) -> Response {
        self.tidegate.ask_with(fields, "POST", &format!("{WEB}/flip"), "")
    }
}

/// What stands in an audit.
fn records(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn json_of(response: &Response) -> Value {
    serde_json::from_slice(&response.body).unwrap()
}

#[test]
fn each_write_is_recorded_with_who_what_and_why() {
    let token = Token::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let credentials = folder.path().join("credentials.toml");
    let hash = Hex(&token.sha256()).to_string();
    let who = format!("[[credentials]]\nname = 'ci'\ntoken_sha256 = '{hash}'\nscope = 'operate'\n");
    std::fs::write(&credentials, who).unwrap();
    let setup = Setup::with(&format!("credentials = '{}'", credentials.display()));
    let bearer = format!("Authorization: Bearer {}\r\n", token.reveal());
    let ask = |method: &str, path: &str, body: &str| setup.tidegate.ask_with(&bearer, method, path, body);
    ask("GET", WEB, "");
    let put = ask("PUT", &format!("{WEB}/weight"), r#"{"canary": 12.5, "reason": "try it"}"#);
    let status = json_of(&put);
    let event = status["events"].as_array().unwrap().last().unwrap();
    assert_eq!(
        (&event["what"], &event["by"], &event["reason"]),
        (&"weight set to 12.5 %".into(), &"ci".into(), &"try it".into())
    );
    problem(&ask("POST", &format!("{WEB}/promote"), r#"{"reason": "too early"}"#), 409);
    problem(&ask("POST", "/api/v1/reload", ""), 403);
    let records = setup.records();
    assert_eq!(records.len(), 3, "{records:?}");
    let [weight, promote, reload] = [&records[0], &records[1], &records[2]];
    for record in &records {
        assert_eq!((&record["actor"], &record["by"]), (&"ci".into(), &"credential".into()));
        assert!(record["peer"].as_str().unwrap().starts_with("127.0.0.1:"));
        assert!(record["at"].as_u64().unwrap() > 1_700_000_000_000);
    }
    assert_eq!(
        (&weight["verb"], &weight["service"], &weight["reason"]),
        (&"weight".into(), &"web".into(), &"try it".into())
    );
    assert_eq!((&weight["before"]["weight"], &weight["after"]["weight"]), (&json!(0.0), &json!(12.5)));
    assert_eq!((&weight["status"], &weight["problem"]), (&json!(200), &Value::Null));
    assert_eq!(
        (&promote["verb"], &promote["status"], &promote["reason"]),
        (&"promote".into(), &json!(409), &"too early".into())
    );
    assert!(promote["problem"].as_str().unwrap().starts_with("cannot `promote`"));
    assert_eq!(promote["before"], promote["after"]);
    assert_eq!(
        (&reload["verb"], &reload["service"], &reload["status"]),
        (&"reload".into(), &Value::Null, &json!(403))
    );
    assert!(!std::fs::read_to_string(setup.audit_log()).unwrap().contains(token.reveal()));
}

#[test]
fn a_service_is_recorded_however_its_name_is_encoded() {
    let setup = Setup::new();
    let path = "/api/v1/services/%77eb/weight";
    assert_eq!(setup.tidegate.ask("PUT", path, r#"{"canary": 1}"#).status, 200);
    let record = &setup.records()[0];
    assert_eq!((&record["service"], &record["verb"]), (&"web".into(), &"weight".into()));
    assert_eq!((&record["before"]["weight"], &record["after"]["weight"]), (&json!(0.0), &json!(1.0)));
}

#[test]
fn a_reload_is_recorded_with_what_it_changed() {
    let setup = Setup::new();
    let file = setup.folder.path().join("tidegate.toml");
    let toml = std::fs::read_to_string(&file).unwrap();
    let reload = || setup.tidegate.ask("POST", "/api/v1/reload", r#"{"reason": "half"}"#).status;
    std::fs::write(&file, toml.replace("canary = 'v2'", "canary = 'v2'\nweight = 50.0")).unwrap();
    assert_eq!(reload(), 200);
    std::fs::write(&file, "x = 1").unwrap();
    assert_eq!(reload(), 422);
    let [done, refused] = <[Value; 2]>::try_from(setup.records()).unwrap();
    assert_eq!((&done["verb"], &done["changes"]), (&"reload".into(), &json!(["service `web` changed"])));
    assert_eq!((&refused["status"], &refused["changes"]), (&json!(422), &Value::Null));
    let status = eventually(|| setup.tidegate.status(), |status| status["weight"] == 50.0);
    let event = status["events"].as_array().unwrap().last().unwrap();
    assert_eq!((&event["by"], &event["reason"]), (&done["actor"], &"half".into()));
}

#[test]
fn a_reload_that_nobody_asked_for_is_recorded_too() {
    let (backend, folder) = (Backend::named("v1"), tempfile::tempdir().unwrap());
    let [audit, file] = ["audit.log", "tidegate.toml"].map(|name| folder.path().join(name));
    let web = |weight| {
        let web = Web::new(backend.address).canary(backend.address).weight(weight);
        web.admin(&format!("audit_log = '{}'", audit.display())).to_string()
    };
    std::fs::write(&file, web(0.0)).unwrap();
    let tidegate = Tidegate::start_from(&file, true);
    std::fs::write(&file, web(50.0)).unwrap();
    let record = eventually(|| records(&audit).pop(), Option::is_some).unwrap();
    assert_eq!((&record["actor"], &record["by"]), (&"file".into(), &"process".into()));
    assert_eq!((&record["verb"], &record["status"]), (&"reload".into(), &json!(200)));
    assert_eq!(record["changes"], json!(["service `web` changed"]));
    let status = eventually(|| tidegate.status(), |status| status["weight"] == 50.0);
    assert_eq!(status["events"].as_array().unwrap().last().unwrap()["by"], "file");
}

#[test]
fn who_is_gone_before_the_answer_is_recorded_all_the_same() {
    let site = Site::new();
    let audit = site.folder.path().join("audit.log");
    let web = site.web(BY_HAND).admin(&format!("audit_log = '{}'", audit.display()));
    let tidegate = Tidegate::start(site.toml(&web));
    tidegate.api("POST", "web/start", "");
    tidegate.wait_for_phase("stepping");
    let still = StandingStill::new(&site);
    let mut client = Raw::connect(tidegate.admin);
    client.send(format!("POST {WEB}/rollback HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"));
    tidegate.wait_for_phase("rolled_back");
    client.wire.socket().shutdown(Shutdown::Write).unwrap();
    client.expect_end();
    assert_eq!(records(&audit).len(), 1, "the disk has not answered");
    still.go_on();
    let records = eventually(|| records(&audit), |records| records.len() == 2);
    assert_eq!((&records[1]["verb"], &records[1]["status"]), (&"rollback".into(), &json!(200)));
}

#[test]
fn what_is_held_while_the_disk_stands_still_is_not_done_when_nobody_waits_for_it_any_more() {
    let site = Site::new();
    let audit = site.folder.path().join("audit.log");
    let web = site.web(BY_HAND).admin(&format!("audit_log = '{}'", audit.display()));
    let tidegate = Tidegate::start(site.toml(&web));
    tidegate.set_weight(1.0);
    let still = StandingStill::new(&site);
    let put = |fields: &str, percent: &str| {
        let body = format!("{{\"canary\": {percent}}}");
        let mut client = Raw::connect(tidegate.admin);
        client.send(format!(
            "PUT {WEB}/weight HTTP/1.1\r\nHost: localhost\r\n{fields}Content-Length: {}\r\n\r\n{body}",
            body.len()
        ));
        client
    };
    let key = "Idempotency-Key: first\r\n";
    let mut first = put(key, "10");
    // It is in the queue as soon as its key is known.
    let again = || put(key, "11").response_to("PUT").status;
    eventually(again, |status| *status == 422);
    let mut gone = put("", "20");
    gone.wire.socket().shutdown(Shutdown::Write).unwrap();
    gone.expect_end();
    still.go_on();
    let refused = first.response_to("PUT");
    assert_eq!(refused.status, 503, "{}", refused.text());
    let recorded = |problem: &str| records(&audit).into_iter().find(|record| record["problem"] == problem);
    let nobody = "nobody waited for this any more when what was before it had been saved, so it was not done";
    let record = eventually(|| recorded(nobody), Option::is_some).unwrap();
    assert_eq!((&record["verb"], &record["status"]), (&"weight".into(), &json!(503)));
    assert_eq!(tidegate.status()["weight"], 1.0);
    // Nor has the first been done, so its key is for it once more.
    assert_eq!(put(key, "10").response_to("PUT").status, 200);
}

/// A disk that stands still: a pipe, for which a write waits until somebody reads.
struct StandingStill(PathBuf);

impl StandingStill {
    fn new(site: &Site) -> Self {
        let pipe = site.file("state.json.next");
        let made = || Command::new("mkfifo").arg(&pipe).stderr(Stdio::null()).status().unwrap().success();
        eventually(made, |made| *made);
        Self(pipe)
    }

    /// What waits for it fails, because a pipe cannot be synced, and what comes after that succeeds.
    fn go_on(self) {
        std::io::copy(&mut File::open(self.0).unwrap(), &mut std::io::sink()).unwrap();
    }
}

#[test]
fn an_audit_that_cannot_be_written_stops_nobody_and_can_be_moved_away() {
    let setup = Setup::new();
    std::fs::create_dir(setup.audit_log()).unwrap();
    assert_eq!(setup.flip_with("").status, 200);
    assert_eq!(setup.tidegate.scrape().sum("tidegate_admin_audit_write_errors_total", &[]), 1.0);
    std::fs::remove_dir(setup.audit_log()).unwrap();
    assert_eq!(setup.flip_with("").status, 200);
    assert_eq!(setup.records().len(), 1);
    std::fs::rename(setup.audit_log(), setup.folder.path().join("old.log")).unwrap();
    assert_eq!(setup.flip_with("").status, 200);
    let record = &setup.records()[0];
    assert_eq!(record["by"], "address");
    assert_eq!(record["actor"], record["peer"]);
}

#[test]
fn a_reason_is_a_line_of_text() {
    let setup = Setup::new();
    let long = format!("{{\"reason\": \"{}\"}}", "x".repeat(501));
    for body in [r#"{"reason": "a\nb"}"#, &long] {
        problem(&setup.tidegate.ask("POST", &format!("{WEB}/flip"), body), 422);
    }
    problem(&setup.tidegate.ask("POST", &format!("{WEB}/flip"), r#"{"reasons": "x"}"#), 400);
    assert_eq!(setup.tidegate.status()["stable"], "v1");
}

#[test]
fn nobody_changes_what_they_have_not_seen() {
    let setup = Setup::new();
    let seen = setup.tag();
    assert_eq!(setup.tidegate.status()["revision"].to_string(), seen.trim_matches('"'));
    let flipped = setup.flip_with(&format!("If-Match: {seen}\r\n"));
    assert_eq!(flipped.status, 200);
    assert_ne!(flipped.fields("etag"), std::slice::from_ref(&seen));
    let late = setup.flip_with(&format!("If-Match: {seen}\r\n"));
    assert_eq!(problem(&late, 412), "service `web` has changed since: look again");
    assert_eq!(late.fields("etag"), flipped.fields("etag"));
    assert_eq!(json_of(&late)["current"]["stable"], "v2");
    assert_eq!(setup.tidegate.status()["stable"], "v2");
    problem(&setup.flip_with("If-Match: W/\"1\", \"x\"\r\n"), 412);
    let either = format!("If-Match: \"1\", {}\r\n", setup.tag());
    assert_eq!(setup.flip_with(&either).status, 200);
    assert_eq!(setup.flip_with("If-Match: *\r\n").status, 200);
    // A reload is of no service, and so of no revision.
    let reload = |fields: &str| setup.tidegate.ask_with(fields, "POST", "/api/v1/reload", "");
    let said = problem(&reload(&format!("If-Match: {}\r\n", setup.tag())), 412);
    assert!(said.ends_with("a reload is of none: ask without it"), "{said}");
    assert_eq!(reload("If-Match: *\r\n").status, 200);
    // Counts are none of it.
    let before = setup.tag();
    setup.tidegate.client().get("/");
    setup.tidegate.wait_until_idle();
    assert_eq!(setup.tag(), before);
}

#[test]
fn what_was_done_is_not_done_again() {
    let setup = Setup::new();
    let key = "Idempotency-Key: 7f3a\r\n";
    let first = setup.flip_with(key);
    let again = setup.flip_with(key);
    assert_eq!((first.status, again.status), (200, 200));
    assert_eq!(first.body, again.body);
    assert_eq!(first.fields("etag"), again.fields("etag"));
    assert_eq!(
        (first.fields("idempotent-replayed"), again.fields("idempotent-replayed")),
        (vec![], vec!["true"])
    );
    assert_eq!(setup.tidegate.status()["stable"], "v2");
    // It has been done once, and is recorded once.
    assert_eq!(setup.records().len(), 1);
    let body = r#"{"canary": 1}"#;
    problem(&setup.tidegate.ask_with(key, "PUT", &format!("{WEB}/weight"), body), 422);
    // What was refused has changed nothing, and may be asked again.
    let promote = || setup.tidegate.ask_with("Idempotency-Key: p\r\n", "POST", &format!("{WEB}/promote"), "");
    problem(&promote(), 409);
    assert_eq!(problem(&promote(), 409), problem(&promote(), 409));
    problem(&setup.flip_with("Idempotency-Key: \r\n"), 400);
    problem(&setup.flip_with(&format!("Idempotency-Key: {}\r\n", "k".repeat(256))), 400);
}

#[test]
fn who_waits_is_answered_by_the_change() {
    let setup = Setup::new();
    let seen = format!("If-None-Match: {}\r\n", setup.tag());
    let ask = |query: &str| setup.tidegate.ask_with(&seen, "GET", &format!("{WEB}{query}"), "");
    let known = ask("");
    assert_eq!((known.status, known.body.len()), (304, 0));
    assert_eq!(ask("?wait=20ms").status, 304);
    for wrong in ["?wait=soon", "?wait=2m", "?wait="] {
        problem(&ask(wrong), 400);
    }
    thread::scope(|scope| {
        let waiting = scope.spawn(|| ask("?wait=60s"));
        // It is there once it holds a place of its connection, which cannot be seen; a flip before that is
        // answered all the same.
        assert_eq!(setup.flip_with("").status, 200);
        let told = waiting.join().unwrap();
        assert_eq!((told.status, &json_of(&told)["stable"]), (200, &"v2".into()));
    });
    let any = setup.tidegate.ask_with("If-None-Match: *\r\n", "GET", &format!("{WEB}?wait=60s"), "");
    assert_eq!(any.status, 304, "there is none that it does not stand for");
    let fresh = setup.tidegate.ask("GET", &format!("{WEB}?wait=60s"), "");
    assert_eq!(fresh.status, 200, "who has seen nothing has nothing to wait for");
}

#[test]
fn whether_a_rollout_is_judged_by_guards_alone_is_part_of_its_revision() {
    let site = Site::new();
    let tidegate = site.stepping();
    let seen = tidegate.ask("GET", WEB, "").fields("etag")[0].to_owned();
    let switched = tidegate.ask("POST", &format!("{WEB}/guards-only"), r#"{"reason": "v1 is down"}"#);
    assert_eq!(switched.status, 200);
    let waited =
        tidegate.ask_with(&format!("If-None-Match: {seen}\r\n"), "GET", &format!("{WEB}?wait=60s"), "");
    assert_eq!((waited.status, &json_of(&waited)["rollout"]["guards_only"]), (200, &json!(true)));
    let fields = format!("If-Match: {seen}\r\n");
    problem(&tidegate.ask_with(&fields, "POST", &format!("{WEB}/promote"), ""), 412);
}
