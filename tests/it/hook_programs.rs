//! Programs in the place of hooks' URLs.

use std::{fs, os::unix::fs::PermissionsExt as _};

use serde_json::Value;

use crate::{
    hooks::Setup,
    support::{Tidegate, certificates::Files, eventually},
};

/// A program with this text.
fn program(files: &Files, name: &str, text: &str) -> String {
    let path = files.write(name, &format!("#!/bin/sh\n{text}\n"));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

fn exec(setup: &Setup, program: &str, keys: &str) -> Tidegate {
    let hook =
        format!("[[services.web.rollout.hooks]]\nat = 'pre-rollout'\nexec = ['{program}', 'x y']\n{keys}");
    let tidegate = Tidegate::start(format!("{}\n[hooks]\nallow_exec = true\n", setup.web(&hook)));
    tidegate.api("POST", "web/start", "");
    tidegate
}

#[test]
fn a_program_is_told_and_its_status_is_the_answer() {
    let (setup, files) = (Setup::new(), Files::new());
    let out = files.path("out").display().to_string();
    let yes = format!("echo \"$1 $TIDEGATE_AT $TIDEGATE_SERVICE $TIDEGATE_CANARY\" > {out}; cat >> {out}");
    exec(&setup, &program(&files, "yes", &yes), "").wait_for_phase("stepping");
    let told = fs::read_to_string(&out).unwrap();
    let (line, payload) = told.split_once('\n').unwrap();
    assert_eq!(line, "x y pre-rollout web v2");
    let payload: Value = serde_json::from_str(payload).unwrap();
    assert_eq!((&payload["at"], &payload["phase"]), (&"pre-rollout".into(), &"preparing".into()));

    let no = program(&files, "no", "echo 'not today' >&2; exit 3");
    let status = exec(&setup, &no, "").wait_for_phase("rolled_back");
    assert_eq!(status["rollout"]["reason"]["why"], format!("the hook `{no}`: exit status: 3: not today"));
}

#[test]
fn a_program_may_say_more_than_anybody_looks_at() {
    let (setup, files) = (Setup::new(), Files::new());
    // Many times as much as a pipe holds.
    let yes = program(&files, "yes", "head -c 1000000 /dev/zero >&2");
    exec(&setup, &yes, "").wait_for_phase("stepping");
}

#[test]
fn what_a_program_answers_is_not_asked_for_again() {
    let (setup, files) = (Setup::new(), Files::new());
    let runs = files.path("runs");
    // A second run would say yes.
    let text = format!("echo run >> {0}; test $(wc -l < {0}) -gt 1", runs.display());
    let flaky = program(&files, "flaky", &text);
    let status = exec(&setup, &flaky, "retries = 3").wait_for_phase("rolled_back");
    assert_eq!(status["rollout"]["reason"]["why"], format!("the hook `{flaky}`: exit status: 1"));
    assert_eq!(fs::read_to_string(runs).unwrap(), "run\n");

    let missing = files.path("missing").display().to_string();
    let status = exec(&setup, &missing, "retries = 1").wait_for_phase("rolled_back");
    let why = status["rollout"]["reason"]["why"].as_str().unwrap();
    assert!(why.starts_with(&format!("the hook `{missing}` (try 2): cannot run ")), "{why}");
}

#[test]
fn a_program_that_takes_too_long_ends_with_all_that_it_has_started() {
    let (setup, files) = (Setup::new(), Files::new());
    let pid = files.path("pid");
    let slow = program(&files, "slow", &format!("sleep 1000 & echo $! > {}; wait", pid.display()));
    let status = exec(&setup, &slow, "timeout = '500ms'").wait_for_phase("rolled_back");
    let why = format!("the hook `{slow}`: no answer within 500ms");
    assert_eq!(status["rollout"]["reason"]["why"], why);
    let pid = fs::read_to_string(pid).unwrap();
    // Its parent is gone, so whoever cleans up after it may take a moment.
    let state = || fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    eventually(state, |stat| stat.is_empty() || stat.contains(") Z "));
}
