//! The document of the admin API says what there is, and what there is keeps to it.

use std::{collections::BTreeSet, process::Command};

use serde_json::Value;

use crate::support::{Backend, Tidegate, Web, eventually, python::python, reply};

/// Where routes are written.
const SOURCES: [&str; 3] = [
    include_str!("../../src/admin/api.rs"),
    include_str!("../../src/admin/history.rs"),
    include_str!("../../src/admin/server.rs"),
];

fn document(tidegate: &Tidegate) -> Value {
    let response = tidegate.ask("GET", "/api/v1/openapi.json", "");
    assert_eq!((response.status, response.fields("content-type")), (200, vec!["application/json"]));
    serde_json::from_slice(&response.body).unwrap()
}

fn start() -> (Backend, Tidegate) {
    let backend = Backend::named("v1");
    let tidegate = Tidegate::start(Web::new(backend.address).canary(backend.address));
    (backend, tidegate)
}

#[test]
fn every_route_is_in_the_document_and_no_other() {
    let (_backend, tidegate) = start();
    let document = document(&tidegate);
    let written: BTreeSet<_> = document["paths"].as_object().unwrap().keys().cloned().collect();
    let routes = SOURCES.iter().flat_map(|source| source.split(".route(\"").skip(1));
    let routes = routes.map(|rest| rest.split('"').next().unwrap());
    let routes: BTreeSet<_> = routes
        .map(|path| if path.starts_with("/services") { format!("/api/v1{path}") } else { path.to_owned() })
        .collect();
    assert_eq!(written, routes);
}

#[test]
fn every_path_has_the_methods_that_the_document_says() {
    let (_backend, tidegate) = start();
    let document = document(&tidegate);
    for (path, operations) in document["paths"].as_object().unwrap() {
        let path = path.replace("{name}", "web");
        let refused = tidegate.ask("PATCH", &path, "");
        assert_eq!(refused.status, 405, "{path}");
        let allowed: BTreeSet<_> = refused.fields("allow")[0].split(',').map(str::to_lowercase).collect();
        let mut written: BTreeSet<_> =
            operations.as_object().unwrap().keys().filter(|key| *key != "parameters").cloned().collect();
        if written.contains("get") {
            written.insert("head".to_owned());
        }
        assert_eq!(allowed, written, "{path}");
    }
}

/// The schemas that a schema stands for: itself, what it refers to, or its alternatives.
fn alternatives<'a>(document: &'a Value, schema: &'a Value) -> Vec<&'a Value> {
    if let Some(place) = schema["$ref"].as_str() {
        return alternatives(document, document.pointer(place.trim_start_matches('#')).expect(place));
    }
    match schema["anyOf"].as_array() {
        Some(any) => any.iter().flat_map(|schema| alternatives(document, schema)).collect(),
        None => vec![schema],
    }
}

/// The keys of a value, at whatever depth, that its schema does not name. Where an object has no properties in the
/// document, all of its keys are fine.
fn unnamed(document: &Value, schema: &Value, value: &Value, at: &str) -> Vec<String> {
    let schemas = alternatives(document, schema);
    match value {
        Value::Object(fields) if schemas.iter().any(|schema| schema["properties"].is_object()) => {
            let look = |(key, value): (&String, &Value)| {
                let at = format!("{at}.{key}");
                match schemas.iter().find_map(|schema| schema["properties"].get(key)) {
                    Some(schema) => unnamed(document, schema, value, &at),
                    None => vec![at],
                }
            };
            fields.iter().flat_map(look).collect()
        }
        Value::Array(items) => {
            let schema = schemas.iter().map(|schema| &schema["items"]).find(|items| !items.is_null());
            let look = |item| schema.map_or_else(Vec::new, |schema| unnamed(document, schema, item, at));
            items.iter().flat_map(look).collect()
        }
        _ => Vec::new(),
    }
}

#[test]
fn every_key_of_a_status_is_in_the_document() {
    let provider = Backend::answering(|_| reply("200 OK", &[], "{\"value\": 5}"));
    let [stable, canary] = ["v1", "v2"].map(Backend::named);
    let plan = "steps = [{ weight = 50, hold = '1h' }]\nbake = '100ms'";
    let web = Web::new(stable.address).canary(canary.address).table("rollout", plan);
    let tidegate = Tidegate::start(format!(
        "{web}[[services.web.rollout.checks]]\nname = 'outside'\ninterval = '20ms'\nkind = 'http'\n\
         url = 'http://{}/'\njson_pointer = '/value'\nmax = 10\n",
        provider.address
    ));
    let document = document(&tidegate);
    let schema = &document["components"]["schemas"]["Service"];
    let idle = tidegate.status();
    tidegate.api("POST", "web/start", "");
    let is_known = |status: &Value| {
        let rollout = &status["rollout"];
        rollout["checks"][0]["standing"] == "passed" && rollout["verdict"]["checks"][0].is_object()
    };
    let stepping = eventually(|| tidegate.status(), is_known);
    let paused = tidegate.api("POST", "web/pause", "{\"reason\": \"to look\"}");
    let back = tidegate.api("POST", "web/rollback", "");
    tidegate.wait_for_phase("rolled_back");
    let preparing = tidegate.api("POST", "web/start", "{\"force\": true}");
    tidegate.wait_for_phase("stepping");
    tidegate.api("POST", "web/promote", "{\"full\": true, \"reason\": \"a hot fix\"}");
    let succeeded = tidegate.wait_for_phase("succeeded");
    // All that a phase has is among them.
    for (status, places) in [
        (&idle, ["/aa/tests", "/backends/0/recent/seconds"]),
        (&preparing, ["/rollout/full", "/rollout/since"]),
        (&stepping, ["/rollout/step", "/rollout/endpoints/0/requests"]),
        (&paused, ["/rollout/reason", "/events/0/what"]),
        (&back, ["/rollout/reason/kind", "/rollout/verdict/decision"]),
        (&succeeded, ["/rollout/at", "/rollout/rollback_until"]),
    ] {
        for place in places {
            assert!(status.pointer(place).is_some_and(|value| !value.is_null()), "{place}: {status}");
        }
        assert_eq!(unnamed(&document, schema, status, "service"), <[String; 0]>::default(), "{status}");
    }
}

#[test]
fn schemathesis_finds_nothing_that_the_document_does_not_say() {
    let Some(python) = python("schemathesis") else { return };
    let backend = Backend::named("v1");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tidegate.toml");
    std::fs::write(&file, Web::new(backend.address).canary(backend.address).to_string()).unwrap();
    let tidegate = Tidegate::start_from(&file, false);
    let output = Command::new(python)
        .args(["-m", "schemathesis.cli", "run", "--no-color", "--max-examples=10", "--seed=1"])
        // A stream has no end.
        .args(["--exclude-path-regex", "events$", "--phases", "examples,coverage,fuzzing"])
        .args(["--checks", CHECKS])
        .arg(format!("http://{}/api/v1/openapi.json", tidegate.admin))
        .env("NO_PROXY", "*")
        .current_dir(folder.path())
        .output()
        .unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

/// What is looked at. That a right request is accepted is not, because whether it makes sense depends on the
/// rollout; and methods are looked at above, because a key that was used already is a fault of its own.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
                      response_headers_conformance,response_schema_conformance";
