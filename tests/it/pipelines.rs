//! docs/pipelines.md: its commands are run as GitHub and GitLab would run them.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;
use yaml_rust2::{Yaml, YamlLoader};

use crate::{
    rollout::Load,
    support::{Backend, Tidegate, Web, eventually, external::program, reply},
};

const DOCS: &str = include_str!("../../docs/pipelines.md");

/// A plan that is through in no time, and one for which there is never enough to go by.
const QUICK: &str = "steps = [{ weight = 50, hold = '100ms' }]\nbake = '100ms'";
const IN_VAIN: &str = "steps = [{ weight = 20, hold = '10ms' }]\ndeadline = '50ms'";

/// The YAML under a heading.
fn block(heading: &str) -> Yaml {
    let (_, after) = DOCS.split_once(&format!("\n## {heading}\n")).expect("the heading is there");
    let (_, yaml) = after.split_once("\n```yaml\n").expect("a block begins");
    let (yaml, _) = yaml.split_once("\n```\n").expect("the block ends");
    YamlLoader::load_from_str(yaml).unwrap_or_else(|error| panic!("{heading}: {error}")).remove(0)
}

/// A machine on which a pipeline runs.
struct Runner {
    /// Where the admin API is.
    address: SocketAddr,
    folder: tempfile::TempDir,
    /// What was printed.
    log: String,
}

impl Runner {
    fn new(address: SocketAddr) -> Self {
        Self::deploying(address, "")
    }

    /// One where this happens while the new version is deployed.
    fn deploying(address: SocketAddr, meanwhile: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let deploy = folder.path().join("deploy");
        fs::write(&deploy, format!("#!/bin/sh\necho \"$@\" >deployed\n{meanwhile}\n")).unwrap();
        fs::set_permissions(&deploy, fs::Permissions::from_mode(0o755)).unwrap();
        Self { address, folder, log: String::new() }
    }

    /// Runs a script with bash, and says whether it went well.
    fn run(&mut self, script: &str, environment: &[(&str, &str)]) -> bool {
        let tidegate = Path::new(env!("CARGO_BIN_EXE_tidegate")).parent().unwrap();
        let path = format!("{}:{}", tidegate.display(), std::env::var("PATH").unwrap());
        let mut command = Command::new("bash");
        // What GitHub and GitLab have in common.
        command.args(["-e", "-o", "pipefail", "-c", script]).current_dir(self.folder.path());
        command.envs(environment.iter().copied()).env("PATH", path).stdin(Stdio::null());
        for name in ["TIDEGATE_TOKEN", "TIDEGATE_TOKEN_FILE", "RUST_LOG"] {
            command.env_remove(name);
        }
        let address = format!("http://{}", self.address);
        let output = command.env("TIDEGATE_ADDRESS", address).output().unwrap();
        for bytes in [output.stdout, output.stderr] {
            self.log.push_str(&String::from_utf8(bytes).unwrap());
        }
        output.status.success()
    }

    /// Runs the job as GitHub would, and says whether it is green.
    fn github(&mut self) -> bool {
        let workflow = block("GitHub Actions");
        assert!(!workflow["on"].is_badvalue() && !workflow["jobs"]["release"]["runs-on"].is_badvalue());
        let environment = [
            ("GITHUB_REPOSITORY", "shop/web"),
            ("GITHUB_SHA", "0a1b2c3"),
            ("GITHUB_ACTOR", "ada"),
            ("GITHUB_RUN_ID", "17"),
        ];
        let mut fine = true;
        for step in workflow["jobs"]["release"]["steps"].as_vec().expect("steps") {
            let due = match step["if"].as_str() {
                None => fine,
                Some("failure() || cancelled()") => !fine,
                Some(other) => panic!("`if: {other}` is not known here"),
            };
            if let Some(script) = step["run"].as_str().filter(|_| due) {
                fine &= self.run(script, &environment);
            }
        }
        fine
    }

    /// The same as GitLab would.
    fn gitlab(&mut self) -> bool {
        let pipeline = block("GitLab CI/CD");
        let script = |name: &str| {
            let lines = pipeline["release"][name].as_vec().expect("a script");
            lines.iter().map(|line| line.as_str().expect("a command")).collect::<Vec<_>>().join("\n")
        };
        let mut environment = vec![
            ("CI_PROJECT_PATH", "shop/web"),
            ("CI_COMMIT_SHA", "0a1b2c3"),
            ("GITLAB_USER_LOGIN", "ada"),
            ("CI_JOB_ID", "17"),
        ];
        let fine = self.run(&script("script"), &environment);
        environment.push(("CI_JOB_STATUS", if fine { "success" } else { "failed" }));
        assert!(self.run(&script("after_script"), &environment), "{}", self.log);
        fine
    }

    fn deployed(&self) -> String {
        fs::read_to_string(self.folder.path().join("deployed")).unwrap_or_default()
    }
}

/// Runs the pipeline of each system with this canary and plan: whether it is green, its log, and what has become of
/// the service.
fn each(canary: impl Fn() -> Backend, plan: &str, is_busy: bool, check: impl Fn(bool, &str, &Value)) {
    if program("jq").is_none() {
        return;
    }
    for job in [Runner::github, Runner::gitlab] {
        let (stable, canary) = (Backend::named("v1"), canary());
        let web = Web::new(stable.address).canary(canary.address).workers(2).table("rollout", plan);
        let analysis = "minimum_requests = 50\npromotion_margin = 0.05\nlatency_margin = false";
        let tidegate = Tidegate::start(web.table("rollout.analysis", analysis));
        let load = is_busy.then(|| Load::on(&tidegate));
        let mut runner = Runner::new(tidegate.admin);
        let green = job(&mut runner);
        drop(load);
        assert_eq!(runner.deployed(), "v2\n", "{}", runner.log);
        let has_ended =
            |web: &Value| ["succeeded", "rolled_back"].iter().any(|end| web["rollout"]["phase"] == *end);
        check(green, &runner.log, &eventually(|| tidegate.status(), has_ended));
    }
}

#[test]
fn a_pipeline_is_green_when_the_canary_was_promoted() {
    each(
        || Backend::named("v2"),
        QUICK,
        true,
        |green, log, web| {
            assert!(green, "{log}");
            assert_eq!(web["stable"], "v2", "{log}");
            assert!(log.contains(" the rollout succeeded"), "{log}");
        },
    );
}

#[test]
fn a_pipeline_is_red_when_it_was_rolled_back() {
    let failing = || Backend::answering(|_| reply("500 Internal Server Error", &[], "bad"));
    each(failing, QUICK, true, |green, log, web| {
        assert!(!green, "{log}");
        assert_eq!((&web["stable"], &web["weight"]), (&"v1".into(), &0.0.into()), "{log}");
        // There was nothing left to do by hand, and the history says who began.
        assert!(
            log.contains("cannot `rollback` while rolled_back") || log.contains("cannot `rollback`"),
            "{log}"
        );
    });
}

#[test]
fn a_pipeline_goes_back_when_nobody_can_tell() {
    each(
        || Backend::named("v2"),
        IN_VAIN,
        false,
        |green, log, web| {
            assert!(!green, "{log}");
            assert_eq!((&web["stable"], &web["weight"]), (&"v1".into(), &0.0.into()), "{log}");
            assert_eq!(web["rollout"]["phase"], "rolled_back", "{log}");
        },
    );
}

#[test]
fn somebody_elses_rollout_is_left_alone() {
    if program("jq").is_none() {
        return;
    }
    for job in [Runner::github, Runner::gitlab] {
        let (stable, canary) = (Backend::named("v1"), Backend::named("v2"));
        let plan = "steps = [{ weight = 20, hold = '1h' }]";
        let web = Web::new(stable.address).canary(canary.address).table("rollout", plan);
        let start = |meanwhile| {
            let tidegate = Tidegate::start(&web);
            let runner = Runner::deploying(tidegate.admin, meanwhile);
            (tidegate, runner)
        };

        let (tidegate, mut runner) = start("");
        tidegate.api("POST", "web/start", "");
        assert!(!job(&mut runner), "{}", runner.log);
        assert_eq!(runner.deployed(), "", "{}", runner.log);
        assert!(runner.log.contains(" is on"), "{}", runner.log);
        tidegate.wait_for_phase("stepping");

        // One that begins just before the job's own would.
        let (tidegate, mut runner) = start("tidegate start web");
        assert!(!job(&mut runner), "{}", runner.log);
        assert!(runner.log.contains("cannot `start` while"), "{}", runner.log);
        tidegate.wait_for_phase("stepping");
    }
}
