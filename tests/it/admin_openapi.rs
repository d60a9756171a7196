//! The document of the admin API says what there is, and what there is keeps to it.

use std::{collections::BTreeSet, process::Command};

use serde_json::Value;

use crate::support::{Backend, Tidegate, Web, python::python};

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
