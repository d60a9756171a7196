//! The verbs of the command line: what they ask, what they say, and the exit codes that pipelines go by.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    process::{Command, Output, Stdio},
    sync::{
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc::{Receiver, channel},
    },
    thread,
};

use serde_json::Value;

use crate::{
    rollout::Load,
    support::{
        Backend, Raw, Refusing, Tidegate, Web,
        certificates::{Authority, Files},
        external::program,
        patience, reply,
    },
};

/// What came of a call: its exit code, and what it said to programs and to people.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

pub fn call_at(address: &str, arguments: &[&str]) -> Said {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    for name in ["TIDEGATE_TOKEN", "TIDEGATE_TOKEN_FILE", "NO_COLOR", "RUST_LOG"] {
        command.env_remove(name);
    }
    command.args(arguments).env("TIDEGATE_ADDRESS", address).stdin(Stdio::null());
    let Output { status, stdout, stderr } = command.output().unwrap();
    let [out, err] = [stdout, stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    Said { code: status.code().unwrap(), out, err }
}

fn call(tidegate: &Tidegate, arguments: &[&str]) -> Said {
    call_at(&format!("http://{}", tidegate.admin), arguments)
}

#[track_caller]
fn fine(tidegate: &Tidegate, arguments: &[&str]) -> String {
    let Said { code, out, err } = call(tidegate, arguments);
    assert_eq!((code, err.as_str()), (0, ""), "{arguments:?}: {out}");
    out
}

pub fn start(canary: &Backend, rollout: &str) -> (Backend, Tidegate) {
    let stable = Backend::named("v1");
    let web = Web::new(stable.address).canary(canary.address).workers(2).table("rollout", rollout);
    let analysis = "minimum_requests = 50\npromotion_margin = 0.05\nlatency_margin = false";
    (stable, Tidegate::start(web.table("rollout.analysis", analysis)))
}

const QUICK: &str = "steps = [{ weight = 50, hold = '100ms' }]\nbake = '100ms'";
pub const BY_HAND: &str = "steps = [{ weight = 20, hold = '1h' }, { weight = 50, hold = '1h' }]\nbake = '1h'";

#[test]
fn people_see_how_services_stand() {
    let canary = Backend::named("v2");
    let (_stable, tidegate) = start(&canary, BY_HAND);
    let all = fine(&tidegate, &["status"]);
    assert_eq!(all, "SERVICE  STABLE  CANARY  WEIGHT  ROLLOUT\nweb      v1      v2         0 %  -\n");
    let changed = fine(&tidegate, &["weight", "web", "12.5"]);
    assert_eq!(changed, "web: v1 is stable, v2 gets 12.5 %\n");
    let one = fine(&tidegate, &["status", "web"]);
    assert!(one.starts_with("web: v1 is stable, v2 gets 12.5 %\n\nBACKEND  ROLE "), "{one}");
    assert!(
        one.contains(&format!("{}\n", canary.address)) && one.contains(" weight set to 12.5 %\n"),
        "{one}"
    );
    let json: Value = serde_json::from_str(&fine(&tidegate, &["status", "web", "--output", "json"])).unwrap();
    assert_eq!((&json["weight"], &json["canary"]), (&12.5.into(), &"v2".into()));
    let colourful = fine(&tidegate, &["status", "--color", "always"]);
    assert!(colourful.contains('\x1b'), "{colourful}");
}

#[test]
fn verbs_move_a_rollout_by_hand() {
    let canary = Backend::named("v2");
    let (_stable, tidegate) = start(&canary, BY_HAND);
    // The only service need not be named, and Argo's words are understood.
    assert!(fine(&tidegate, &["rollout", "retry"]).contains(": preparing"));
    tidegate.wait_for_phase("stepping");
    assert!(fine(&tidegate, &["pause"]).contains("paused at step 1 of 2, by a person: `resume`"));
    assert!(fine(&tidegate, &["resume", "web"]).contains(": step 1 of 2"));
    let promoted = fine(&tidegate, &["promote"]);
    assert!(promoted.starts_with("web: v1 is stable, v2 gets 50 %\n"), "{promoted}");
    let back = fine(&tidegate, &["abort"]);
    assert!(back.starts_with("web: v1 is stable, v2 gets 0 %\n"), "{back}");
    tidegate.wait_for_phase("rolled_back");
    assert!(fine(&tidegate, &["undo"]).starts_with("web: v2 is stable, v1 gets 0 %\n"));
    let history = fine(&tidegate, &["history"]);
    let whats: Vec<_> =
        history.lines().filter_map(|line| line.split_once("Z ")).map(|(_, what)| what).collect();
    assert!(whats.first().is_some_and(|what| what.starts_with("the rollout began")), "{history}");
    assert!(whats.last().is_some_and(|what| what.starts_with("flipped")), "{history}");
    assert_eq!(fine(&tidegate, &["history", "--events", "1"]).lines().count(), 1);
}

#[test]
fn waiting_ends_with_0_when_the_canary_was_promoted() {
    let canary = Backend::named("v2");
    let (_stable, tidegate) = start(&canary, QUICK);
    let load = Load::on(&tidegate);
    let Said { code, out, err } = call(&tidegate, &["rollout", "start", "--wait", "--timeout", "1m"]);
    drop(load);
    assert_eq!((code, out.as_str()), (0, ""), "{err}");
    assert!(err.contains(" step 1 began") && err.trim_end().ends_with(" the rollout succeeded"), "{err}");
}

#[test]
fn waiting_ends_with_1_when_it_was_rolled_back() {
    let canary = Backend::answering(|_| reply("500 Internal Server Error", &[], "bad"));
    let (_stable, tidegate) = start(&canary, QUICK);
    let load = Load::on(&tidegate);
    let Said { code, out, err } = call(&tidegate, &["start", "web", "--wait", "--output", "json"]);
    drop(load);
    assert_eq!(code, 1, "{err}");
    let mut documents = serde_json::Deserializer::from_str(&out).into_iter::<Value>().map(Result::unwrap);
    assert_eq!(documents.next().unwrap()["rollout"]["phase"], "rolled_back");
    assert_eq!(documents.next().unwrap()["error"], "rolled_back");
}

#[test]
fn waiting_ends_with_2_when_nobody_can_tell_or_time_runs_out() {
    let canary = Backend::named("v2");
    let plan = "steps = [{ weight = 20, hold = '10ms' }]\ndeadline = '50ms'";
    let (_stable, tidegate) = start(&canary, plan);
    let Said { code, err, .. } = call(&tidegate, &["start", "--wait"]);
    assert_eq!(code, 2, "{err}");
    assert!(
        err.contains("error: paused at step 1: the step reached its deadline without a verdict"),
        "{err}"
    );
    let Said { code, err, .. } = call(&tidegate, &["status", "--wait", "--timeout", "10ms"]);
    assert_eq!(code, 2, "{err}");
    tidegate.api("POST", "web/rollback", "");
    let refusing = Refusing::new();
    let waiting = Web::new(_stable.address).canary(refusing.address);
    let other = Tidegate::start(waiting);
    let Said { code, err, .. } = call(&other, &["start", "--wait", "--timeout", "1s"]);
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("error: not over after 1s: preparing"), "{err}");
}

#[test]
fn waiting_ends_in_time_where_nobody_answers() {
    let silent = Backend::scripted(|mut peer| peer.wait_for_end());
    let address = format!("http://{}", silent.address);
    let Said { code, err, .. } = call_at(&address, &["start", "web", "--wait", "--timeout", "100ms"]);
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("error: not over after 100ms: nobody has answered"), "{err}");

    let canary = Backend::named("v2");
    let (_stable, tidegate) = start(&canary, BY_HAND);
    tidegate.api("POST", "web/start", "");
    tidegate.wait_for_phase("stepping");
    let (admin, requests) = (tidegate.admin, AtomicUsize::new(0));
    let silent_later = Backend::scripted(move |mut peer| {
        let Some(seen) = peer.request() else { return };
        if requests.fetch_add(1, SeqCst) > 0 {
            return peer.wait_for_end();
        }
        let mut client = Raw::connect(admin);
        client.send(format!("{}\r\n\r\n", seen.head));
        peer.send(reply("200 OK", &[], client.response_to("GET").text()));
    });
    let address = format!("http://{}", silent_later.address);
    let Said { code, err, .. } = call_at(&address, &["status", "web", "--wait", "--timeout", "1s"]);
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("error: not over after 1s: step 1 of 2"), "{err}");
}

#[test]
fn what_cannot_be_done_says_what_can() {
    let canary = Backend::named("v2");
    let (_stable, tidegate) = start(&canary, BY_HAND);
    for (arguments, code, wanted) in [
        (&["pause"][..], 3, "cannot `pause` while idle: no rollout has been started"),
        (&["pause", "wep"], 64, "there is no service `wep`"),
        (&["pause", "a/b"], 64, "`a/b` is not the name of a service"),
        (&["weight", "web", "101"], 64, "101"),
        (&["weight", "web", "much"], 64, "much"),
        (&["status", "--wait"], 3, "no rollout of service `web` has been started"),
        (&["status", "--timeout", "1s"], 64, "--wait"),
        (&["status", "--address", "localhost:1"], 64, "write an http:// or https:// URL"),
        (&["status", "--address", "http://127.0.0.1:1"], 69, "nobody answers at 127.0.0.1:1"),
        (&["status", "--token-file", "/nowhere/token"], 64, "cannot read /nowhere/token"),
    ] {
        let said = call(&tidegate, arguments);
        assert_eq!(said.code, code, "{arguments:?}: {said:?}");
        assert!(said.err.contains(wanted), "{arguments:?}: {said:?}");
    }
    // Somebody else's server.
    let said = call_at(&format!("http://{}", canary.address), &["status"]);
    assert_eq!(said.code, 70, "{said:?}");
}

#[test]
fn each_refusal_has_its_exit_code() {
    for (status, verb, code) in [
        ("409 Conflict", "status", 3),
        ("412 Precondition Failed", "status", 3),
        ("404 Not Found", "status", 64),
        ("422 Unprocessable Content", "status", 64),
        ("421 Misdirected Request", "status", 69),
        ("500 Internal Server Error", "status", 70),
        ("403 Forbidden", "status", 77),
        ("422 Unprocessable Content", "reload", 78),
    ] {
        let body = format!(r#"{{"status":{},"title":"","detail":"no"}}"#, &status[..3]);
        let api = Backend::answering(move |_| reply(status, &[], &body));
        let said = call_at(&format!("http://{}", api.address), &[verb]);
        assert_eq!((said.code, said.err.as_str()), (code, "error: no\n"), "{status} {verb}");
    }
}

/// The lines that `watch` prints, until its end.
fn lines(out: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (say, said) = channel();
    thread::spawn(move || {
        BufReader::new(out).lines().map_while(Result::ok).try_for_each(|line| say.send(line))
    });
    said
}

#[test]
fn watching_without_a_terminal_is_a_line_for_each_event() {
    let canary = Backend::named("v2");
    let (_stable, tidegate) = start(&canary, BY_HAND);
    for output in ["table", "json"] {
        tidegate.set_weight(5.0);
        let mut watch = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        watch.args(["watch", "web", "--output", output]).stdin(Stdio::null()).stdout(Stdio::piped());
        watch.env("TIDEGATE_ADDRESS", format!("http://{}", tidegate.admin));
        let mut watch = watch.spawn().unwrap();
        let said = lines(watch.stdout.take().unwrap());
        for percent in [5.0, 6.0] {
            tidegate.set_weight(percent);
            let line = said.recv_timeout(patience()).unwrap();
            assert!(line.contains("weight set to"), "{line}");
            if output == "json" {
                let event: Value = serde_json::from_str(&line).unwrap();
                let status = tidegate.status();
                let known = status["events"].as_array().unwrap();
                let mut known = known.iter().find(|known| known["id"] == event["id"]).unwrap().clone();
                known["service"] = "web".into();
                assert!(event == known && event["by"].is_string(), "{line}");
            }
        }
        watch.kill().unwrap();
        watch.wait().unwrap();
    }
}

#[test]
fn watching_on_a_terminal_draws_until_q_is_pressed() {
    let Some(script) = program("script") else { return };
    let canary = Backend::named("v2");
    let (_stable, tidegate) = start(&canary, BY_HAND);
    let watch = format!("stty rows 20 cols 70; {} watch", env!("CARGO_BIN_EXE_tidegate"));
    let mut script = Command::new(script);
    script.args(["-qefc", &watch, "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    script.env("TIDEGATE_ADDRESS", format!("http://{}", tidegate.admin)).env("TERM", "xterm");
    let mut script = script.spawn().unwrap();
    let mut out = script.stdout.take().unwrap();
    let mut drawn = String::new();
    let mut until = |wanted: &str| {
        let mut bytes = [0; 4096];
        while !drawn.contains(wanted) {
            let read = out.read(&mut bytes).unwrap();
            assert!(read > 0, "`{wanted}` is not in {drawn:?}");
            drawn.push_str(&String::from_utf8_lossy(&bytes[..read]));
        }
    };
    until("v2 gets 0 %");
    until("ends this");
    tidegate.set_weight(5.0);
    until("v2 gets 5 %");
    script.stdin.as_mut().unwrap().write_all(b"q").unwrap();
    // The terminal is given back, and what was seen last stays.
    until("\x1b[?1049l");
    assert!(script.wait().unwrap().success());
}

#[test]
fn a_reason_stands_in_the_history() {
    let canary = Backend::named("v2");
    let (_stable, tidegate) = start(&canary, BY_HAND);
    fine(&tidegate, &["start", "--reason", "release 17"]);
    fine(&tidegate, &["rollback", "--reason", "it is Friday"]);
    let history = fine(&tidegate, &["history"]);
    for reason in [": release 17)\n", ": it is Friday)\n"] {
        assert!(history.contains(reason), "{history}");
    }
    let said = call(&tidegate, &["start", "--reason", "\x1b[2J"]);
    assert!(said.code == 64 && said.err.contains("a reason has up to"), "{said:?}");
}

#[test]
fn a_history_is_read_as_far_back_as_is_wanted() {
    let canary = Backend::named("v2");
    let (_stable, tidegate) = start(&canary, BY_HAND);
    // More than a page has, and more than the service's status has.
    let weights = 1..=250;
    weights.clone().for_each(|weight| tidegate.set_weight(f64::from(weight) / 10.0));
    let whats: Vec<_> =
        weights.map(|weight| format!("weight set to {} %", f64::from(weight) / 10.0)).collect();
    let read = |events: &str| fine(&tidegate, &["history", "web", "--events", events]);
    let lines = read("230");
    let said: Vec<_> = lines.lines().filter_map(|line| line.split_once("Z ")).map(|(_, what)| what).collect();
    assert_eq!(said, whats[20..]);
    assert_eq!((read("0"), read("1000").matches("weight set").count()), (String::new(), 250));
    let json = fine(&tidegate, &["history", "web", "--events", "201", "--output", "json"]);
    let entries: Vec<Value> = serde_json::from_str(&json).unwrap();
    assert!(entries.iter().map(|entry| &entry["what"]).eq(&whats[49..]), "{json}");
    assert!(entries.is_sorted_by_key(|entry| entry["seq"].as_u64()) && entries[0]["kind"] == "weight");
    assert_eq!(call(&tidegate, &["history", "nobody", "--events", "0"]).code, 64);
}

#[test]
fn an_address_with_https_is_spoken_to_in_tls() {
    let (servers, operators) = (Authority::new("servers"), Authority::new("operators"));
    let (files, backend) = (Files::new(), Backend::named("v1"));
    let pair = files.pair("admin", &servers.issue(&["127.0.0.1"]));
    let [trusted, known] = [("servers.pem", &servers), ("operators.pem", &operators)]
        .map(|(name, ca)| files.write(name, &ca.pem));
    let tls = format!(
        "tls = {{ certificates = [{{ {pair} }}], client_auth = 'required', client_ca = '{}' }}",
        known.display()
    );
    let web = Web::new(backend.address).canary(backend.address).admin(&tls);
    // A file, as the paths of its certificates are absolute.
    let tidegate = Tidegate::start_from(&files.write("tidegate.toml", &web.to_string()), false);
    files.pair("anna", &operators.issue(&["anna"]));
    let (certificate, key) = (files.path("anna.pem"), files.path("anna.key"));
    let [trusted, certificate, key] = [&trusted, &certificate, &key].map(|path| path.to_str().unwrap());
    let address = format!("https://{}", tidegate.admin);
    let said = call_at(&address, &["status", "--ca", trusted, "--certificate", certificate, "--key", key]);
    assert!(said.code == 0 && said.out.contains("web "), "{said:?}");
    let said = call_at(&address, &["status", "--certificate", certificate, "--key", key]);
    assert!(said.code == 69 && said.err.contains("--ca says whom"), "{said:?}");
    let said = call_at(&address, &["status", "--ca", "/nowhere/ca.pem"]);
    assert!(said.code == 64 && said.err.contains("`/nowhere/ca.pem` cannot be read"), "{said:?}");
    // A certificate is asked for; and plain HTTP is nothing to it.
    assert_ne!(call_at(&address, &["status", "--ca", trusted]).code, 0);
    assert_eq!(call(&tidegate, &["status"]).code, 70);
}
