//! A changed configuration while a rollout is on: it goes on as it began, and is about the version that it began with.

use serde_json::Value;

use crate::{
    reload::Filed,
    support::{Backend, Web, get},
};

#[test]
fn a_running_rollout_goes_on_and_is_not_pulled_away() {
    let (one, two) = (Backend::named("v1"), Backend::named("v2"));
    let plan = "steps = [{ weight = 20, hold = '1h' }]";
    let web = || Web::new(one.address).canary(two.address);
    let filed = Filed::start(web().table("rollout", plan));
    filed.tidegate.api("POST", "web/start", "");
    let before = filed.tidegate.wait_for_phase("stepping");
    // Another plan is for the next rollout.
    filed.take_up(web().table("rollout", "steps = [{ weight = 50, hold = '1s' }]"));
    let after = filed.tidegate.status();
    assert_eq!(after["rollout"]["id"], before["rollout"]["id"]);
    assert_eq!(after["rollout"]["steps"], before["rollout"]["steps"]);
    assert_eq!((&after["weight"], &after["rollout"]["phase"]), (&20.0.into(), &"stepping".into()));
    let why = "service `web` has another `stable`, `canary` or `weight`, and a rollout of it is on";
    filed.is_refused(Web::new(one.address), 409, why);
    let gone = web().to_string().replace("services.web", "services.shop").replace("'web'", "'shop'");
    filed.is_refused(gone, 409, "service `web` is gone, and a rollout of it is on");
    assert_eq!(filed.tidegate.status()["weight"], 20.0);
    filed.tidegate.api("POST", "web/rollback", "");
    filed.tidegate.wait_for_phase("rolled_back");
    assert!(filed.take_up(Web::new(one.address)).contains(&"service `web` changed".to_owned()));
    assert_eq!(filed.tidegate.status()["canary"], Value::Null);
}

#[test]
fn another_version_does_not_go_on_with_the_rollout_of_the_one_before() {
    let (one, two, three) = (Backend::named("v1"), Backend::named("v2"), Backend::named("v3"));
    let at = |backend: &Backend, scheme: &str| format!("{scheme}://{}", backend.address);
    let (v2, v3) = (at(&two, "http"), at(&three, "http"));
    let plan = "strategy = 'blue-green'\nbake = '1h'\npromotion_gate = true\n";
    let web = |canaries: &[&String]| {
        let endpoints = format!("endpoints = {canaries:?}");
        Web::new(one.address).keys("canary = 'v2'").table("backends.v2", &endpoints).table("rollout", plan)
    };
    let filed = Filed::start(web(&[&v2]));
    // Nothing is on yet.
    filed.take_up(web(&[&v3]));
    filed.take_up(web(&[&v2]));
    filed.tidegate.api("POST", "web/start", "");
    filed.tidegate.wait_for_phase("paused");
    let gone =
        "backend `v2` of service `web` has none of the endpoints that it had, and a rollout of it is on";
    filed.is_refused(web(&[&v3]), 409, gone);
    filed.is_refused(web(&[&v3]), 409, "end that first (`tidegate rollback web`), or wait for its end");
    let otherwise = "backend `v2` of service `web` has another protocol, `tls` or `send_proxy_protocol`, and";
    filed.is_refused(web(&[&at(&two, "h2c")]), 409, otherwise);
    // Endpoints come and go.
    filed.take_up(web(&[&v2, &v3]));
    filed.take_up(web(&[&v2]));
    assert_eq!(filed.tidegate.status()["rollout"]["phase"], "paused");
    // It is the same version once it is stable, and the other one's endpoints matter to nobody.
    filed.tidegate.api("POST", "web/promote", "");
    filed.tidegate.wait_for_phase("baking");
    filed.is_refused(web(&[&v3]), 409, gone);
    assert_eq!(get(filed.tidegate.address(), "/").text(), "v2");
    filed.tidegate.api("POST", "web/rollback", "");
    filed.tidegate.wait_for_phase("rolled_back");
    filed.take_up(web(&[&v3]));
    filed.tidegate.api("POST", "web/start", "");
    filed.tidegate.wait_for_phase("paused");
}
