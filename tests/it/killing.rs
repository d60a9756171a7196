//! The process is killed at any instant, and goes on where it was. `benches/rollouts` does this a thousand times,
//! with rollouts that move by themselves, and looks at every request.

use std::{
    collections::BTreeSet,
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::Value;

use crate::{
    cli::Program,
    support::{Backend, Web, eventually, patience, wire::Wire},
};

/// What the admin side answers of `web`, for as long as there is one.
pub fn ask(admin: SocketAddr, method: &str, path: &str, body: &str) -> Option<(u16, Value)> {
    ask_for(admin, method, &format!("/services/web{path}"), body)
}

/// The same for any path of the API.
pub fn ask_for(admin: SocketAddr, method: &str, path: &str, body: &str) -> Option<(u16, Value)> {
    let mut wire = Wire::new(TcpStream::connect(admin).ok()?);
    let length = body.len();
    let path = format!("/api/v1{path}");
    if !wire.send(format!(
        "{method} {path} HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )) {
        return None;
    }
    let head = wire.read_head()?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let length = crate::support::wire::fields(&head, "content-length").first()?.parse().ok()?;
    Some((status, serde_json::from_slice(&wire.read_length(length)).ok()?))
}

/// What was seen in one life of the process.
#[derive(Default)]
struct Seen {
    /// Events that somebody was told of.
    events: BTreeSet<(u64, String)>,
    /// How traffic stood: who was stable, and the canary's weight in hundredths.
    positions: BTreeSet<(String, u64)>,
}

impl Seen {
    /// A command was answered, and so is saved with all that came before it. What time alone brings is
    /// told at once, and may come after it.
    fn answered(&mut self, status: &Value) {
        let events = status["events"].as_array().unwrap().iter().map(event);
        let by_time =
            |what: &str| ["the new stable is watched", "rolled back"].iter().any(|b| what.starts_with(b));
        self.events.extend(events.filter(|(_, what)| !by_time(what)));
    }
}

/// When something happened, and what.
pub fn event(value: &Value) -> (u64, String) {
    (value["at"].as_u64().unwrap(), value["what"].as_str().unwrap().to_owned())
}

pub fn position(value: &Value) -> (String, u64) {
    (value["stable"].as_str().unwrap().to_owned(), (value["weight"].as_f64().unwrap() * 100.0) as u64)
}

/// Does what people do, until nobody answers.
fn operate(admin: SocketAddr, mut random: StdRng, asked: &AtomicUsize) -> Seen {
    let mut seen = Seen::default();
    let Some((_, mut status)) = ask(admin, "GET", "", "") else { return seen };
    loop {
        seen.positions.insert(position(&status));
        let dice = random.random_range(0..10);
        let weight = format!("{{\"canary\": {}}}", random.random_range(1..100));
        let (method, path, body) = match (status["rollout"]["phase"].as_str(), dice) {
            (Some("stepping"), 0..6) => ("POST", "/promote", ""),
            (Some("stepping"), 6) => ("POST", "/promote", "{\"full\": true, \"reason\": \"a dice\"}"),
            (Some("stepping"), 7) => ("POST", "/pause", ""),
            (Some("stepping" | "paused"), 8) | (Some("baking"), 3..9) => ("POST", "/rollback", ""),
            (Some("paused"), 0..8) => ("POST", "/resume", ""),
            (None | Some("succeeded" | "rolled_back"), 0..6) => ("POST", "/start", "{\"force\": true}"),
            (None | Some("succeeded" | "rolled_back"), 6) => ("POST", "/flip", ""),
            (None | Some("succeeded" | "rolled_back"), 7) => ("PUT", "/weight", weight.as_str()),
            _ => ("GET", "", ""),
        };
        asked.fetch_add(1, SeqCst);
        let Some((code, answer)) = ask(admin, method, path, body) else { return seen };
        assert!([200, 409].contains(&code), "{method} {path}: {code} {answer}");
        if code == 200 {
            if method != "GET" {
                seen.answered(&answer);
            }
            status = answer;
        } else if let Some((_, now)) = ask(admin, "GET", "", "") {
            status = now;
        }
    }
}

/// Sends requests for as long as there is somebody to send them to. Returns how many were answered.
fn send(address: SocketAddr) -> usize {
    let mut answered = 0;
    while let Ok(stream) = TcpStream::connect(address) {
        let mut wire = Wire::new(stream);
        while wire.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n") {
            let Some(head) = wire.read_head() else { break };
            assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
            wire.read_length(2);
            answered += 1;
        }
    }
    answered
}

/// All of the history, the newest first.
pub fn history(admin: SocketAddr) -> Vec<Value> {
    let (mut entries, mut before) = (Vec::new(), String::new());
    loop {
        let (code, page) = ask(admin, "GET", &format!("/history?limit=1000{before}"), "").unwrap();
        assert_eq!(code, 200, "{page}");
        entries.extend(page["entries"].as_array().unwrap().iter().cloned());
        match page["next"].as_u64() {
            Some(next) => before = format!("&before={next}"),
            None => return entries,
        }
    }
}

/// What must hold after a life that was seen like this, once the next one has begun.
fn check(seen: &Seen, admin: SocketAddr, life: usize) {
    // What is told without having been asked for is saved a moment later.
    let stand = || (ask(admin, "GET", "", "").expect("it answers").1, history(admin));
    let is_recorded = |(status, history): &(Value, Vec<Value>)| {
        let last = status["events"].as_array().unwrap().last().map(event);
        last.is_none_or(|last| history.iter().any(|entry| event(entry) == last))
    };
    let (status, history) = eventually(stand, is_recorded);
    // Nothing is lost, and nothing is there twice.
    let numbers: Vec<_> = history.iter().map(|entry| entry["seq"].as_u64().unwrap()).collect();
    let all: Vec<_> = (1..=history.len() as u64).rev().collect();
    assert_eq!(numbers, all, "life {life}");
    let told: Vec<_> = history.iter().map(event).collect();
    let once: BTreeSet<_> = told.iter().cloned().collect();
    assert_eq!(once.len(), told.len(), "life {life}: something is there twice");
    for event in &seen.events {
        assert!(once.contains(event), "life {life}: {event:?} was told, and is lost");
    }
    // Nobody has had more than is recorded.
    let recorded: BTreeSet<_> = history.iter().map(position).collect();
    for (stable, weight) in &seen.positions {
        let is_recorded = recorded.iter().any(|(s, w)| s == stable && w >= weight);
        assert!(*weight == 0 || is_recorded, "life {life}: {weight} beside {stable} is not recorded");
    }
    // It goes on as the history says.
    if let Some(last) = status["events"].as_array().unwrap().last().map(event) {
        let recorded = history.iter().find(|entry| event(entry) == last).map(position);
        assert_eq!(recorded, Some(position(&status)), "life {life}: {last:?}");
    }
    assert!(status["unsaved"].is_null(), "life {life}: {status:#}");
}

/// Kills it so many times.
fn kill(times: usize, seed: u64) {
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    let folder = tempfile::tempdir().unwrap();
    let steps = [1, 5, 10, 25, 50].map(|weight| format!("{{ weight = {weight}, hold = '1h' }}"));
    let web = Web::new(stable.address)
        .canary(canary.address)
        .table("rollout", &format!("steps = [{}]\nbake = '1h'\ndeadline = '1h'", steps.join(", ")));
    let config = folder.path().join("tidegate.toml");
    let store = folder.path().join("state");
    std::fs::write(&config, format!("{web}[store]\npath = '{}'\n", store.display())).unwrap();
    let mut random = StdRng::seed_from_u64(seed);
    let mut answered = 0;
    let mut program = Program::of(config.to_str().unwrap());
    for life in 0..times {
        let (admin, address) = (program.admin.unwrap(), program.listener);
        let asked = Arc::new(AtomicUsize::new(0));
        let operator = {
            let (asked, random) = (Arc::clone(&asked), StdRng::seed_from_u64(random.random()));
            thread::spawn(move || operate(admin, random, &asked))
        };
        let clients = [(); 2].map(|()| thread::spawn(move || send(address)));
        // The instant: within one of the first few things that are asked for, at its beginning, its end
        // or anywhere between.
        let things = random.random_range(1..12);
        let begin = tidegate::clock::monotonic();
        while asked.load(SeqCst) < things {
            assert!(begin.elapsed() < patience(), "nothing is asked for");
            thread::yield_now();
        }
        thread::sleep(Duration::from_micros(random.random_range(0..4000)));
        program.child.kill().unwrap();
        program.child.wait().unwrap();
        let seen = operator.join().unwrap();
        answered += clients.map(|client| client.join().unwrap()).iter().sum::<usize>();
        program = Program::of(config.to_str().unwrap());
        check(&seen, program.admin.unwrap(), life);
    }
    assert!(answered > times, "{answered} requests in {times} lives");
}

#[test]
fn whatever_was_told_is_there_after_any_kill() {
    kill(20, 5);
}
