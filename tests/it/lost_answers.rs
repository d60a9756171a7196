//! Verbs of the command line whose answers are lost, or that are refused for now.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
};

use crate::{
    operate::{BY_HAND, Said, call_at, start},
    support::{Backend, Raw, Refusing, reply},
};

/// Stands between a program and a Tidegate; `what` says what becomes of each write, by its number. Once one is refused or
/// lost, the last of those it leads `to` is there instead of the first.
fn pipe(to: Vec<SocketAddr>, what: fn(usize) -> Passing) -> Backend {
    let (writes, at) = (AtomicUsize::new(0), AtomicUsize::new(0));
    Backend::scripted(move |mut peer| {
        let Some(seen) = peer.request() else { return };
        let number = if seen.method() == "GET" { None } else { Some(writes.fetch_add(1, SeqCst)) };
        let passing = number.map_or(Passing::Through, what);
        if passing == Passing::Busy {
            let body = r#"{"status":503,"title":"Service Unavailable","detail":"busy"}"#;
            at.store(to.len() - 1, SeqCst);
            peer.send(reply("503 Service Unavailable", &[], body));
            return;
        }
        let mut client = Raw::connect(to[at.load(SeqCst)]);
        client.send([seen.head.as_bytes(), b"\r\n\r\n", &seen.body].concat());
        let response = client.response_to(seen.method());
        match passing {
            Passing::Through => {
                peer.send(reply(&response.status.to_string(), &[], response.text()));
            }
            _ => {
                assert_eq!(response.status, 200, "{}", response.text());
                at.store(to.len() - 1, SeqCst);
                peer.reset();
            }
        }
    })
}

/// What becomes of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Passing {
    Through,
    /// It is answered with 503, and does not get there.
    Busy,
    /// It is done, and the connection breaks before the answer.
    Lost,
}

/// The fields of this name that the writes had.
fn fields(pipe: &Backend, name: &str) -> Vec<String> {
    let writes = pipe.requests().into_iter().filter(|seen| seen.method() != "GET");
    writes.map(|seen| seen.fields(name).join(",")).collect()
}

#[test]
fn a_write_whose_answer_is_lost_is_asked_for_again_and_done_once() {
    let canary = Backend::named("v2");
    let steps =
        "steps = [{ weight = 10, hold = '1h' }, { weight = 20, hold = '1h' }, { weight = 30, hold = '1h' }]";
    let (_stable, tidegate) = start(&canary, steps);
    tidegate.api("POST", "web/start", "");
    tidegate.wait_for_phase("stepping");
    let pipe = pipe(vec![tidegate.admin], |number| [Passing::Busy, Passing::Lost, Passing::Through][number]);
    let Said { code, out, err } = call_at(&format!("http://{}", pipe.address), &["promote", "web"]);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains(": step 2 of 3"), "{out}");
    assert_eq!(err.lines().count(), 2, "{err}");
    assert!(
        err.starts_with("busy; trying again (1 of 4)\n") && err.ends_with("trying again (2 of 4)\n"),
        "{err}"
    );
    assert_eq!(tidegate.status()["rollout"]["step"], 1, "not twice");
    let keys = fields(&pipe, "idempotency-key");
    assert!(keys.len() == 3 && keys[0].len() > 32 && keys.iter().all(|key| *key == keys[0]), "{keys:?}");
    let tags = fields(&pipe, "if-match");
    assert!(tags[0].is_empty() && tags[1..].iter().all(|tag| tag.starts_with('"')), "{tags:?}");
}

#[test]
fn what_may_have_been_done_by_a_process_that_is_gone_is_not_done_again() {
    let canary = Backend::named("v2");
    let [(_s1, before), (_s2, after)] = [start(&canary, BY_HAND), start(&canary, BY_HAND)];
    for tidegate in [&before, &after] {
        tidegate.api("POST", "web/start", "");
        tidegate.wait_for_phase("stepping");
    }
    let lost_first = |number| if number == 0 { Passing::Lost } else { Passing::Through };
    let pipe_to_both = pipe(vec![before.admin, after.admin], lost_first);
    let Said { code, err, .. } = call_at(&format!("http://{}", pipe_to_both.address), &["promote", "web"]);
    assert_eq!((code, &after.status()["rollout"]["step"]), (70, &0.into()), "{err}");
    assert!(
        err.contains("the answer was lost, and it may have been done or not: service `web` has changed"),
        "{err}"
    );
    // What was plainly refused has not been done, whatever came of another try.
    let refused_first = |number| if number == 0 { Passing::Busy } else { Passing::Through };
    let pipe_to_both = pipe(vec![before.admin, after.admin], refused_first);
    let Said { code, err, .. } = call_at(&format!("http://{}", pipe_to_both.address), &["promote", "web"]);
    assert_eq!((code, &after.status()["rollout"]["step"]), (3, &0.into()), "{err}");
    assert!(err.contains("error: service `web` has changed") && !err.contains("lost"), "{err}");
    // A rollback comes to the same when it is done twice.
    let pipe_to_both = pipe(vec![before.admin, after.admin], lost_first);
    let Said { code, err, .. } = call_at(&format!("http://{}", pipe_to_both.address), &["rollback", "web"]);
    assert_eq!((code, &after.status()["weight"]), (0, &0.0.into()), "{err}");
}

#[test]
fn nobody_who_was_never_there_is_asked_again() {
    let refusing = Refusing::new();
    let Said { code, err, .. } = call_at(&format!("http://{}", refusing.address), &["rollback", "web"]);
    assert!(code == 69 && !err.contains("trying again"), "{err}");
}
