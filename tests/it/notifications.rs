//! People are told what happens to rollouts, and nobody waits for it.

use serde_json::Value;

use crate::support::{
    Backend, Tidegate, Web, backend::Seen, certificates::Files, eventually, eventually_is, reply,
};

const STEPS: &str = "steps = [{ weight = 10, hold = '1h' }]\nbake = '1h'\n";

fn start(stable: &Backend, canary: &Backend, notifications: &str) -> Tidegate {
    let web = Web::new(stable.address).canary(canary.address).table("rollout", STEPS);
    Tidegate::start(format!("{web}\n{notifications}"))
}

fn receiver(status: &'static str) -> Backend {
    Backend::answering(move |_| reply(status, &[], "no such channel"))
}

fn notification(kind: &str, receiver: &Backend, keys: &str) -> String {
    format!("[[notifications]]\nkind = '{kind}'\nurl = 'http://{}/T0/secret'\n{keys}\n", receiver.address)
}

fn json(seen: &Seen) -> Value {
    serde_json::from_slice(&seen.body).unwrap()
}

/// A rollout that is started, and rolled back in its first step.
#[track_caller]
fn roll_back(tidegate: &Tidegate) {
    tidegate.api("POST", "web/start", "");
    tidegate.wait_for_phase("stepping");
    tidegate.api("POST", "web/rollback", "");
    tidegate.wait_for_phase("rolled_back");
}

#[test]
fn each_kind_gets_what_it_understands() {
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    let receivers: Vec<_> = (0..4).map(|_| receiver("200 OK")).collect();
    let kinds = ["slack", "teams", "webhook", "cloudevents"];
    let of = |(kind, receiver): (&&str, &Backend)| notification(kind, receiver, "events = ['stepped']");
    let notifications: String = kinds.iter().zip(&receivers).map(of).collect();
    let tidegate = start(&stable, &canary, &notifications);
    roll_back(&tidegate);
    for receiver in &receivers {
        eventually_is(1, || receiver.count());
        assert_eq!(receiver.only_request().target(), "/T0/secret");
    }
    let [slack, teams, webhook, event] = [0, 1, 2, 3].map(|at: usize| json(&receivers[at].only_request()));
    let said = "step 1 began: the canary gets 10 % (it is ready)";
    assert_eq!(slack["text"], format!("*web*: {said}"));
    assert_eq!(teams["type"], "message");
    let card = &teams["attachments"][0];
    assert_eq!(card["contentType"], "application/vnd.microsoft.card.adaptive");
    assert_eq!(card["content"]["type"], "AdaptiveCard");
    assert_eq!(card["content"]["body"][0]["text"], format!("**web**: {said}"));
    assert_eq!((&webhook["event"], &webhook["message"]), (&"stepped".into(), &said.into()));
    assert_eq!((&webhook["text"], &webhook["left_out"]), (&format!("web: {said}").into(), &0.into()));
    assert_eq!((&event["specversion"], &event["type"]), (&"1.0".into(), &"tidegate.rollout.stepped".into()));
    assert_eq!(event["source"], "/tidegate/services/web");
    let mut data = webhook;
    for key in ["text", "left_out"] {
        data.as_object_mut().unwrap().remove(key);
    }
    assert_eq!(event["data"], data);
    for required in ["id", "source", "specversion", "type", "time", "subject"] {
        assert!(event[required].is_string(), "{required}");
    }
    let seen = receivers[3].only_request();
    assert_eq!(seen.fields("content-type"), ["application/cloudevents+json; charset=utf-8"]);
    let scrape = tidegate.scrape();
    for kind in kinds {
        scrape.expect("tidegate_notifications_total", &[("kind", kind), ("result", "success")], 1.0);
    }
}

#[test]
fn everybody_hears_of_what_they_want_in_words_of_their_own() {
    let (stable, canary, files) = (Backend::named("v1"), Backend::named("v2"), Files::new());
    let (all, none, some) = (receiver("200 OK"), receiver("200 OK"), receiver("200 OK"));
    let url = files.write("url", &format!("http://{}/T0/secret\n", some.address));
    let template = "template = '<!here> {{ event }}: {{ stable }} > {{canary}} {{ step }}/{{ steps }}'";
    let notifications = notification("slack", &all, "")
        + &notification("slack", &none, "services = []")
        + &format!(
            "[[notifications]]\nkind = 'slack'\nurl_file = '{}'\nservices = ['web']\n
             events = ['stepped', 'rolled_back']\n{template}\n",
            url.display()
        );
    let tidegate = start(&stable, &canary, &notifications);
    roll_back(&tidegate);
    eventually_is(2, || some.count());
    let texts: Vec<_> = some.requests().iter().map(|seen| json(seen)["text"].to_string()).collect();
    assert_eq!(texts, ["\"<!here> stepped: v1 > v2 1/1\"", "\"<!here> rolled_back: v1 > v2 /1\""]);
    // Began, step, going back, gone back.
    eventually_is(4, || all.count());
    assert_eq!(none.count(), 0);
}

#[test]
fn people_are_told_of_a_flip_and_who_wanted_it_and_why() {
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    let (usual, own) = (receiver("200 OK"), receiver("200 OK"));
    let notifications = notification("slack", &usual, "")
        + &notification("webhook", &own, "template = '{{ event }} as {{ reason }}'");
    let tidegate = start(&stable, &canary, &notifications);
    tidegate.api("POST", "web/flip", r#"{"reason": "prices & taxes"}"#);
    eventually_is(1, || own.count());
    assert_eq!(json(&own.only_request())["text"], "flipped as prices & taxes");
    eventually_is(1, || usual.count());
    let text = json(&usual.only_request())["text"].as_str().unwrap().to_owned();
    assert!(text.starts_with("*web*: flipped: v2 is stable and has all requests (127.0.0.1"), "{text}");
    assert!(text.ends_with(": prices &amp; taxes)"), "{text}");
}

#[test]
fn what_is_too_much_is_left_out_but_for_the_last_word() {
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    let receiver = receiver("200 OK");
    let tidegate = start(&stable, &canary, &notification("slack", &receiver, "max_per_minute = 1"));
    roll_back(&tidegate);
    eventually_is(1, || receiver.count());
    assert!(json(&receiver.only_request())["text"].as_str().unwrap().contains("the rollout began"));
    // Of step, going back and gone back, the last waits.
    let left_out = [("kind", "slack"), ("result", "left_out")];
    eventually_is(2.0, || tidegate.scrape().sum("tidegate_notifications_total", &left_out));
}

#[test]
fn whoever_does_not_take_it_holds_up_nobody() {
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    let silent = Backend::scripted(|mut peer| peer.wait_for_end());
    let (gone, good) = (receiver("404 Not Found"), receiver("200 OK"));
    let notifications = notification("webhook", &silent, "")
        + &notification("teams", &gone, "")
        + &notification("slack", &good, "");
    let tidegate = start(&stable, &canary, &notifications);
    roll_back(&tidegate);
    eventually_is(4, || good.count());
    assert_eq!(silent.connections(), 1);
    let failed = [("kind", "teams"), ("result", "failure")];
    let scrape = eventually(|| tidegate.scrape(), |s| s.sum("tidegate_notifications_total", &failed) == 4.0);
    assert_eq!(gone.count(), 4, "what is refused is not said again");
    scrape.expect("tidegate_notifications_total", &[("kind", "slack"), ("result", "success")], 4.0);
}

#[test]
fn hooks_that_are_only_told_hear_what_the_log_says_and_who_wanted_it() {
    let (stable, canary, receiver) = (Backend::named("v1"), Backend::named("v2"), receiver("200 OK"));
    let hook = |at: &str, keys: &str| {
        let url = format!("url = 'http://{}/'", receiver.address);
        format!("[[services.web.rollout.hooks]]\nat = '{at}'\n{url}\n{keys}\n")
    };
    let asked = ["pre-rollout", "step", "pre-promotion"].map(|at| hook(at, "blocking = false"));
    let told = ["post-promotion", "rollback"].map(|at| hook(at, ""));
    let steps =
        "steps = [{ weight = 10, hold = '1h' }, { weight = 50, hold = '1h' }]\nbake = '1h'\n".to_owned();
    let plan = steps + &asked.concat() + &told.concat();
    let tidegate = Tidegate::start(Web::new(stable.address).canary(canary.address).table("rollout", &plan));
    tidegate.api("POST", "web/start", "");
    tidegate.wait_for_phase("stepping");
    tidegate.api("POST", "web/promote", r#"{"reason": "looks good"}"#);
    tidegate.api("POST", "web/promote", r#"{"reason": "looks better"}"#);
    tidegate.wait_for_phase("baking");
    tidegate.api("POST", "web/rollback", r#"{"reason": "wrong prices"}"#);
    let seen = eventually(|| receiver.requests(), |seen| seen.len() == 5);
    let everything = "the canary became stable and gets all traffic (somebody asked for it)";
    let wanted = [
        ("pre-rollout", "step 1 began: the canary gets 10 % (it is ready)", None),
        ("step", "step 2 began: the canary gets 50 % (somebody asked for it)", Some("looks good")),
        ("pre-promotion", everything, Some("looks better")),
        ("post-promotion", everything, Some("looks better")),
        ("rollback", "rolling back: somebody asked for it", Some("wrong prices")),
    ];
    for (at, message, reason) in wanted {
        let call = seen.iter().map(json).find(|call| call["at"] == at).unwrap();
        assert_eq!((call["message"].as_str(), call["reason"].as_str()), (Some(message), reason), "{at}");
        assert_eq!(call["by"].is_string(), reason.is_some(), "{at}: {call}");
    }
}
