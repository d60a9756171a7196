//! What a rollout is judged by, as far as the data plane tells it: what counts as a failure, and of whom.

use bytes::Bytes;
use http::Response;

use crate::{
    rollout::Load,
    support::{
        Backend, H2, HyperBackend, Limits, Tidegate, Web,
        client::{empty, full, h2_request},
        eventually, eventually_is, get, reply, runtime,
    },
};

const FAILURES: &str = "tidegate_request_failures_total";

/// A backend that answers `/…/404` with 404.
fn by_path() -> Backend {
    Backend::answering(|seen| reply(&format!("{} X", seen.target().rsplit('/').next().unwrap()), &[], ""))
}

#[track_caller]
fn expect_failures(tidegate: &Tidegate, wanted: f64) {
    tidegate.wait_until_idle().expect(FAILURES, &[("service", "web")], wanted);
}

#[test]
fn a_service_and_its_routes_say_which_statuses_count() {
    let backend = by_path();
    let strict = "[[routes]]\nservice = 'web'\npath_prefix = '/strict'\n\
                  failures = { statuses = ['4xx', '500'], except = ['429'] }";
    let web = Web::new(backend.address).table("failures", "except = ['503']");
    let tidegate = Tidegate::start(format!("{web}{strict}"));
    let mut client = tidegate.client();
    let mut failures = 0.0;
    for (path, counts) in [
        ("/404", false),
        ("/500", true),
        ("/503", false),
        ("/599", true),
        ("/strict/404", true),
        ("/strict/429", false),
        ("/strict/500", true),
        ("/strict/503", false),
        ("/strict/200", false),
    ] {
        assert_eq!(client.get(path).status.to_string(), path.rsplit('/').next().unwrap());
        failures += f64::from(u8::from(counts));
        expect_failures(&tidegate, failures);
    }
    eventually_is(Some(4), || tidegate.status()["backends"][0]["failures_total"].as_u64());
    // The class of a status is what it is.
    tidegate.scrape().expect("tidegate_requests_total", &[("status", "5xx")], 5.0);
}

#[test]
fn a_broken_connection_counts_whatever_is_written() {
    let backend = Backend::scripted(|mut peer| {
        if peer.request().is_some() {
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab");
        }
    });
    let tidegate = Tidegate::start(Web::new(backend.address).table("failures", "statuses = ['404']"));
    let mut client = tidegate.client();
    client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(client.try_response_to("GET").is_none_or(|response| !response.whole));
    expect_failures(&tidegate, 1.0);
}

#[test]
fn calls_have_failures_of_their_own() {
    let backend = HyperBackend::answering(Limits::default(), |seen| {
        let code = seen.head.uri.path().rsplit('/').next().unwrap().to_owned();
        Response::builder().header("grpc-status", code).body(empty()).unwrap()
    });
    let keys = "statuses = ['2xx']\ngrpc_statuses = ['NOT_FOUND', 'INTERNAL']";
    let tidegate = Tidegate::start(Web::h2c(backend.address).table("failures", keys));
    let client = H2::connect(tidegate.address());
    for (code, failures) in [("0", 0.0), ("5", 1.0), ("13", 2.0), ("14", 2.0), ("99", 3.0)] {
        let call = h2_request("POST", &format!("/{code}")).header("content-type", "application/grpc");
        let response = runtime().block_on(client.send(call.body(full(Bytes::new())).unwrap()));
        assert_eq!(response.unwrap().headers()["grpc-status"], code);
        expect_failures(&tidegate, failures);
    }
}

#[test]
fn users_are_shielded_from_what_counts() {
    let (stable, canary) = (Backend::named("v1"), by_path());
    let web = Web::new(stable.address).canary(canary.address).weight(100.0);
    let web = web.table("retry", "attempts = 0\nshield = true");
    let tidegate = Tidegate::start(web.table("failures", "statuses = ['404', '500']"));
    for (path, status) in [("/404", 200), ("/500", 200), ("/503", 503), ("/403", 403)] {
        assert_eq!(get(tidegate.address(), path).status, status, "{path}");
    }
    tidegate.wait_until_idle().expect(FAILURES, &[("backend", "v2")], 2.0);
}

#[test]
fn a_canary_that_finds_nothing_is_rolled_back_where_that_counts() {
    let (stable, canary) = (Backend::named("v1"), Backend::answering(|_| reply("404 Not Found", &[], "")));
    let web = Web::new(stable.address).canary(canary.address).table("failures", "statuses = ['4xx', '5xx']");
    let web = web.table("rollout", "steps = [{ weight = 20, hold = '1h' }]");
    let tidegate = Tidegate::start(web.table("rollout.analysis", "latency_margin = false"));
    let load = Load::on(&tidegate);
    tidegate.api("POST", "web/start", "");
    let status = tidegate.wait_for_phase("rolled_back");
    drop(load);
    assert_eq!(status["rollout"]["reason"]["kind"], "verdict");
}

/// A canary with these endpoints.
fn with_endpoints(web: Web, endpoints: &[&Backend]) -> Web {
    let urls: Vec<_> = endpoints.iter().map(|backend| format!("http://{}", backend.address)).collect();
    web.keys("canary = 'v2'").table("backends.v2", &format!("endpoints = {urls:?}"))
}

/// A rollout whose first step lasts, without a look at latency: on a busy machine it says nothing.
fn one_long_step(web: Web) -> Web {
    let web = web.table("rollout", "steps = [{ weight = 30, hold = '1h' }]\nwarmup = '0s'");
    web.table("rollout.analysis", "latency_margin = false")
}

#[test]
fn a_failure_on_a_rare_route_is_not_averaged_away() {
    let stable = Backend::named("v1");
    let canary = Backend::answering(|seen| match seen.target() {
        "/rare" => reply("500 Internal Server Error", &[], ""),
        _ => reply("200 OK", &[], ""),
    });
    let rare = "[[routes]]\nservice = 'web'\npath_prefix = '/rare'";
    let web = one_long_step(Web::new(stable.address).canary(canary.address));
    // As little as that is no harm for the service.
    let web = format!("{web}absolute_tolerance = 0.02\n{rare}");
    let tidegate = Tidegate::start(web);
    tidegate.api("POST", "web/start", "");
    tidegate.wait_for_phase("stepping");
    let mut targets = ["/"; 100];
    targets[50] = "/rare";
    let load = Load::of(&tidegate, &targets, |_| {});
    let status = tidegate.wait_for_phase("rolled_back");
    drop(load);
    let verdict = &status["rollout"]["verdict"];
    assert_eq!(verdict["reason"]["kind"], "worse");
    assert_eq!(
        (&verdict["reason"]["check"], &verdict["reason"]["route"]),
        (&"route_error_rate".into(), &"/rare".into())
    );
    let of_rare = |report: &&serde_json::Value| report["route"] == "/rare";
    let rare = verdict["routes"].as_array().unwrap().iter().find(of_rare).unwrap();
    for number in ["canary", "evidence", "threshold", "interval"] {
        assert_eq!(rare[number], verdict["reason"][number], "{number}");
    }
    assert!(rare["interval"].is_object(), "{rare}");
    let why = status["rollout"]["explanation"].as_str().unwrap();
    assert!(why.starts_with("canary fails 100 % of requests on route /rare, stable 0 %"), "{why}");
    // The whole counts what its routes do.
    let scrape = tidegate.wait_until_idle();
    let all = (stable.count() + canary.count()) as f64;
    scrape.expect("tidegate_requests_total", &[("status", "2xx")], all - scrape.sum(FAILURES, &[]));
}

#[test]
fn one_sick_endpoint_is_passed_over_and_the_version_is_not_blamed() {
    let (stable, well, fine) = (Backend::named("v1"), Backend::named("v2"), Backend::named("v2"));
    let sick = Backend::answering(|_| reply("500 Internal Server Error", &[], ""));
    let web = one_long_step(with_endpoints(Web::new(stable.address), &[&well, &sick, &fine]));
    let tidegate = Tidegate::start(web);
    let load = Load::on(&tidegate);
    tidegate.api("POST", "web/start", "");
    let held = |status: &serde_json::Value| status["rollout"]["verdict"]["reason"]["kind"] == "one_endpoint";
    let status = eventually(|| tidegate.status(), held);
    let more = |requests| {
        let wanted = stable.count() + requests;
        eventually(|| stable.count(), |count| *count > wanted);
    };
    more(200);
    let so_far = sick.count();
    more(1_000);
    let verdict = &status["rollout"]["verdict"];
    assert_eq!(
        (&verdict["decision"], &verdict["reason"]["endpoint"]),
        (&"hold".into(), &sick.address.to_string().into())
    );
    let status = tidegate.status();
    drop(load);
    assert_eq!((&status["rollout"]["phase"], so_far), (&"stepping".into(), sick.count()));
    let endpoints = status["rollout"]["endpoints"].as_array().unwrap();
    let of =
        |backend: &Backend| endpoints.iter().find(|e| e["endpoint"] == backend.address.to_string()).unwrap();
    assert_eq!((&of(&sick)["error_rate"], &of(&well)["error_rate"]), (&1.0.into(), &0.0.into()));
    assert_eq!(of(&sick)["failures"], so_far);
    let events = status["events"].as_array().unwrap().iter().map(|event| event["what"].as_str().unwrap());
    let passed_over = format!("endpoint {} of v2 is passed over", sick.address);
    assert_eq!(events.filter(|what| what.starts_with(&passed_over)).count(), 1);
    let labels = [("backend", "v2"), ("endpoint", &*sick.address.to_string())];
    tidegate.scrape().expect("tidegate_endpoint_ejections_total", &labels, 1.0);
}

#[test]
fn a_version_that_is_sick_on_all_its_endpoints_is_rolled_back() {
    let sick = || Backend::answering(|_| reply("500 Internal Server Error", &[], ""));
    let (stable, one, other) = (Backend::named("v1"), sick(), sick());
    let tidegate = Tidegate::start(one_long_step(with_endpoints(Web::new(stable.address), &[&one, &other])));
    let load = Load::on(&tidegate);
    tidegate.api("POST", "web/start", "");
    let status = tidegate.wait_for_phase("rolled_back");
    drop(load);
    assert_eq!(status["rollout"]["verdict"]["reason"]["kind"], "worse");
}

#[test]
fn what_a_cold_endpoint_does_is_left_out() {
    let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
    let web = Web::new(stable.address).canary(canary.address);
    let web = web.table("rollout", "steps = [{ weight = 30, hold = '1h' }]\nwarmup = '1h'");
    let tidegate = Tidegate::start(web);
    let load = Load::on(&tidegate);
    tidegate.api("POST", "web/start", "");
    let warm = |status: &serde_json::Value| {
        status["rollout"]["verdict"]["warming"]["canary"]["requests"].as_u64() > Some(100)
    };
    let status = eventually(|| tidegate.status(), warm);
    drop(load);
    let verdict = &status["rollout"]["verdict"];
    assert_eq!(
        (&verdict["rollout"]["canary"]["requests"], &verdict["latency"]["canary"]["p50_seconds"]),
        (&0.into(), &serde_json::Value::Null)
    );
    // Everything else counts it.
    let scrape = tidegate.wait_until_idle();
    scrape.expect("tidegate_requests_total", &[("role", "canary")], canary.count() as f64);
    scrape.expect("tidegate_request_duration_seconds_count", &[("role", "canary")], canary.count() as f64);
}

#[test]
fn stable_is_tested_against_itself_while_no_rollout_runs() {
    let stable = Backend::answering(|seen| match seen.target() {
        "/bad" => reply("500 Internal Server Error", &[], ""),
        _ => reply("200 OK", &[], "v1"),
    });
    let canary = Backend::named("v2");
    let plan = "steps = [{ weight = 50, hold = '1h' }]";
    let start = |keys: &str| {
        let web = Web::new(stable.address).canary(canary.address).table("rollout", keys);
        Tidegate::start(web.table("rollout.analysis", "latency_margin = false"))
    };
    // As long as twenty ticks, however short the steps.
    let tidegate = start("steps = [{ weight = 50, hold = '0s' }]");
    let mut targets = ["/"; 20];
    targets[10] = "/bad";
    let outcomes = || {
        let scrape = tidegate.scrape();
        let tests = scrape.series().into_iter().filter(|(name, _)| *name == "tidegate_aa_tests_total");
        tests.map(|(_, labels)| labels[0].1.clone()).collect::<Vec<_>>()
    };
    // Before anything has come.
    eventually(outcomes, |outcomes| *outcomes == ["false_alarm", "passed"]);
    let load = Load::of(&tidegate, &targets, |_| {});
    let tests =
        || tidegate.scrape().sum("tidegate_aa_tests_total", &[("service", "web"), ("outcome", "passed")]);
    eventually(tests, |tests| *tests >= 1.0);
    drop(load);
    let aa = tidegate.status()["aa"].clone();
    assert!(aa["tests"].as_u64() >= Some(1) && aa["false_alarm_rate"].is_number(), "{aa}");
    // What the halves count, the whole counts once.
    let scrape = tidegate.wait_until_idle();
    scrape.expect("tidegate_requests_total", &[("role", "stable")], stable.count() as f64);
    assert!(tidegate.status()["aa"]["tests"].is_number());
    let off = start(&format!("{plan}\naa_test = false"));
    assert!(off.status()["aa"].is_null());
}

/// A rollout whose step lasts, with a rule that sends to the canary.
fn with_a_rule(stable: &Backend, canary: &Backend, rollout: &str, analysis: &str) -> Web {
    let web = Web::new(stable.address).canary(canary.address).table("rollout", rollout);
    let web = web.keys("force = [{ role = 'canary', query = { name = 'side', value = 'canary' } }]");
    web.table("rollout.analysis", &format!("latency_margin = false\n{analysis}"))
}

/// A canary that fails what has `/bad` in its path.
fn partly_bad() -> Backend {
    Backend::answering(|seen| {
        let bad = seen.target().starts_with("/bad");
        if bad { reply("500 Internal Server Error", &[], "") } else { reply("200 OK", &[], "v2") }
    })
}

fn requests(verdict: &serde_json::Value, of: &str, role: &str) -> [u64; 2] {
    ["requests", "failures"].map(|count| verdict[of][role][count].as_u64().unwrap_or_default())
}

#[test]
fn who_is_sent_by_a_rule_is_not_compared_but_limits_hold() {
    let (stable, canary) = (Backend::named("v1"), partly_bad());
    let step = "steps = [{ weight = 30, hold = '1h' }]";
    let mut targets = ["/"; 20];
    targets[5] = "/bad?side=canary";
    targets[15] = "/?side=canary";
    let tidegate = Tidegate::start(with_a_rule(&stable, &canary, step, ""));
    tidegate.api("POST", "web/start", "");
    tidegate.wait_for_phase("stepping");
    let load = Load::of(&tidegate, &targets, |_| {});
    let enough = |status: &serde_json::Value| {
        let verdict = &status["rollout"]["verdict"];
        requests(verdict, "sent", "canary")[1] > 100 && requests(verdict, "rollout", "canary")[0] > 500
    };
    let status = eventually(|| tidegate.status(), enough);
    drop(load);
    let verdict = &status["rollout"]["verdict"];
    assert_eq!(status["rollout"]["phase"], "stepping");
    assert_eq!(requests(verdict, "rollout", "canary")[1], 0);
    assert_eq!(requests(verdict, "sent", "stable"), [0, 0]);
    // Everything else counts them.
    let scrape = tidegate.wait_until_idle();
    scrape.expect("tidegate_requests_total", &[("role", "canary")], canary.count() as f64);

    let tidegate = Tidegate::start(with_a_rule(&stable, &canary, step, "max_error_rate = 0.02"));
    tidegate.api("POST", "web/start", "");
    tidegate.wait_for_phase("stepping");
    let load = Load::of(&tidegate, &targets, |_| {});
    let status = tidegate.wait_for_phase("rolled_back");
    drop(load);
    let reason = &status["rollout"]["verdict"]["reason"];
    assert_eq!((&reason["kind"], &reason["check"]), (&"worse".into(), &"max_error_rate".into()));
    assert!(reason["canary"].as_f64() > Some(0.02), "{reason}");
}

#[test]
fn in_a_step_without_weight_those_who_are_sent_are_the_evidence() {
    let (stable, canary) = (Backend::named("v1"), partly_bad());
    let steps = "steps = [{ weight = 0, hold = '1h' }, { weight = 50 }]";
    let tidegate = Tidegate::start(with_a_rule(&stable, &canary, steps, ""));
    tidegate.api("POST", "web/start", "");
    tidegate.wait_for_phase("stepping");
    let load = Load::of(&tidegate, &["/", "/?side=canary", "/bad?side=canary", "/"], |_| {});
    let status = tidegate.wait_for_phase("rolled_back");
    drop(load);
    let verdict = &status["rollout"]["verdict"];
    assert_eq!(
        (&verdict["reason"]["kind"], &verdict["reason"]["check"]),
        (&"worse".into(), &"error_rate".into())
    );
    assert_eq!(requests(verdict, "sent", "canary"), [0, 0]);
}

#[test]
fn in_a_step_without_weight_routes_are_compared_too() {
    let (stable, canary) = (Backend::named("v1"), partly_bad());
    let steps = "steps = [{ weight = 0, hold = '1h' }, { weight = 50 }]";
    // As little as one in a hundred is no harm for the service.
    let web = with_a_rule(&stable, &canary, steps, "absolute_tolerance = 0.02");
    let tidegate = Tidegate::start(format!("{web}\n[[routes]]\nservice = 'web'\npath_prefix = '/bad'"));
    tidegate.api("POST", "web/start", "");
    tidegate.wait_for_phase("stepping");
    let mut targets = ["/?side=canary"; 100];
    (targets[30], targets[60]) = ("/bad", "/bad?side=canary");
    let load = Load::of(&tidegate, &targets, |_| {});
    let status = tidegate.wait_for_phase("rolled_back");
    drop(load);
    let reason = &status["rollout"]["verdict"]["reason"];
    assert_eq!(
        (&reason["check"], &reason["route"]),
        (&"route_error_rate".into(), &"/bad".into()),
        "{reason}"
    );
}

#[test]
fn what_stable_answers_in_the_canarys_place_is_not_compared() {
    let (stable, canary) = (Backend::named("v1"), partly_bad());
    let step = "steps = [{ weight = 30, hold = '1h' }]";
    let web = with_a_rule(&stable, &canary, step, "absolute_tolerance = 0.5");
    let tidegate = Tidegate::start(web.table("retry", "attempts = 0\nshield = true"));
    tidegate.api("POST", "web/start", "");
    tidegate.wait_for_phase("stepping");
    let mut targets = ["/"; 20];
    targets[10] = "/bad";
    let load = Load::of(&tidegate, &targets, |_| {});
    let verdict = || tidegate.status()["rollout"]["verdict"].clone();
    eventually(verdict, |verdict| requests(verdict, "sent", "stable")[0] > 20);
    drop(load);
    tidegate.wait_until_idle();
    let [all_stable, all_canary] = [&stable, &canary].map(|backend| backend.count() as u64);
    let whole = |verdict: &serde_json::Value| {
        let of_stable = ["rollout", "sent"].map(|of| requests(verdict, of, "stable")[0]);
        of_stable.iter().sum::<u64>() == all_stable && requests(verdict, "rollout", "canary")[0] == all_canary
    };
    let verdict = eventually(verdict, whole);
    let [_, failed] = requests(&verdict, "rollout", "canary");
    assert_eq!(requests(&verdict, "sent", "stable"), [failed, 0]);
    assert_eq!(tidegate.status()["rollout"]["phase"], "stepping");
}

#[test]
fn what_a_shield_spares_users_is_no_harm() {
    let (stable, canary) = (Backend::named("v1"), partly_bad());
    let step = "steps = [{ weight = 30, hold = '1h' }]";
    let mut targets = ["/"; 20];
    targets[10] = "/bad";
    let web = with_a_rule(&stable, &canary, step, "absolute_tolerance = 0.5\nmax_harm = 50");
    let start = |web: Web| {
        let tidegate = Tidegate::start(web);
        tidegate.api("POST", "web/start", "");
        tidegate.wait_for_phase("stepping");
        tidegate
    };
    let all = "attempts = 0\nshield = true\nbudget = { percent = 100 }";
    let tidegate = start(web.clone().table("retry", all));
    let load = Load::of(&tidegate, &targets, |_| {});
    let verdict = || tidegate.status()["rollout"]["verdict"].clone();
    let failed = eventually(verdict, |verdict| requests(verdict, "rollout", "canary")[1] > 150);
    drop(load);
    assert!(failed["decision"] != "roll_back" && failed["harm"]["spent"].as_f64() < Some(50.0), "{failed}");

    let tidegate = start(web);
    let load = Load::of(&tidegate, &targets, |_| {});
    let status = tidegate.wait_for_phase("rolled_back");
    drop(load);
    assert_eq!(status["rollout"]["verdict"]["reason"]["kind"], "harm_spent");
}
