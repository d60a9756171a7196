//! `tidegate plan`, told how much traffic there is, or asking who knows.

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use serde_json::Value;

use crate::support::{Backend, Tidegate, Web, eventually, external::program, reply};

const CONFIG: &str = "config/canary.toml";

fn plan(arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.args(["plan", "--config", CONFIG]).args(arguments).env_remove("TIDEGATE_CONFIG");
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn answer(arguments: &[&str]) -> String {
    let (code, answer, complaints) = plan(arguments);
    assert_eq!(code, Some(0), "{complaints}");
    answer
}

fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&answer(&[arguments, &["--output", "json"]].concat())).unwrap()
}

#[test]
fn it_says_what_each_step_sees_and_finds_and_costs() {
    let said = answer(&["--rate", "500"]);
    let wanted = "\
web: 500 requests a second, of which stable fails 0.1 %

step  weight  lasts  canary requests  finds failures of  finds slow requests of
   1     1 %  5m                1500        1 % or more           2.9 % or more
   2    10 %  5m               15000     0.34 % or more           1.5 % or more
   3    50 %  10m             150000     0.21 % or more           1.2 % or more
";
    assert!(said.starts_with(wanted), "{said}");
    for part in [
        "        5 %  rolled back",
        "\nA canary like stable is promoted after 20m; for that it needs 11 requests",
    ] {
        assert!(said.contains(part), "no `{part}` in\n{said}");
    }
}

#[test]
fn it_says_that_a_plan_cannot_reach_a_verdict() {
    let said = answer(&["--rate", "0.5"]);
    assert!(
        said.contains(
            "This plan cannot reach a verdict: in step 1 a canary like stable lacks 100 canary requests when \
             hold and deadline are over, and it pauses; it needs 11 requests a second."
        ),
        "{said}"
    );
    let forecast = json(&["--rate", "0.5"]);
    assert_eq!(forecast["reaches_a_verdict"], false);
    assert_eq!(forecast["steps"][0]["waits_for"], "requests");
}

#[test]
fn it_says_with_which_weight_a_budget_lets_the_canary_begin() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tidegate.toml");
    let nobody = SocketAddr::from(([127, 0, 0, 1], 9));
    let web = Web::new(nobody).canary(nobody).table("rollout", "steps = [{ weight = 10, hold = '10m' }]");
    fs::write(&file, web.table("rollout.analysis", "max_harm = 20").to_string()).unwrap();
    for (rate, wanted) in [("1000", "lower than that: at first to 1 %.\n"), ("10", "lower than that.\n")] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        let output = command.args(["plan", "--rate", rate, "--config"]).arg(&file).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.ends_with(&format!(" `max_harm` may keep weights {wanted}")), "{said}");
    }
}

#[test]
fn a_running_instance_knows_its_traffic() {
    let stable = Backend::named("v1");
    let tidegate = Tidegate::start(Web::new(stable.address).canary(stable.address));
    let mut client = tidegate.client();
    let admin = format!("http://{}", tidegate.admin);
    let forecast = eventually(
        || {
            (0..20).for_each(|_| assert_eq!(client.get("/").status, 200));
            plan(&["--address", &admin, "--output", "json"])
        },
        |(code, ..)| *code == Some(0),
    );
    let forecast: Value = serde_json::from_str(&forecast.1).unwrap();
    assert!(forecast["traffic"]["requests_per_second"].as_f64().unwrap() > 0.0, "{forecast}");
    assert_eq!(forecast["traffic"]["failing"], 0.0);
}

/// A Prometheus that scrapes an admin side, or nothing, which is enough to be asked.
struct Prometheus {
    child: Child,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    fn start(prometheus: &Path, scraped: Option<SocketAddr>) -> Self {
        // Free a moment ago; Prometheus does not say which port it got.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("prometheus.yml");
        let scrape = scraped.map(|admin| {
            format!("scrape_configs: [{{job_name: a, static_configs: [{{targets: ['{admin}']}}]}}]\n")
        });
        let often = "global: {scrape_interval: 100ms, scrape_timeout: 100ms}\n";
        fs::write(&config, often.to_owned() + &scrape.unwrap_or_default()).unwrap();
        let child = Command::new(prometheus)
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        eventually(|| TcpStream::connect(address).map_err(|e| e.kind()).err(), Option::is_none);
        Self { child, address, _folder: folder }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _waited = self.child.wait();
    }
}

#[test]
fn prometheus_knows_what_stable_has_failed_by_the_rules_of_its_service() {
    let Some(prometheus) = program("prometheus") else { return };
    let count = AtomicU64::new(0);
    let stable = Backend::answering(move |_| match count.fetch_add(1, Relaxed) % 4 {
        0 => reply("404 Not Found", &[], ""),
        _ => reply("200 OK", &[], ""),
    });
    let web = Web::new(stable.address).canary(stable.address).table("failures", "statuses = ['404']");
    let tidegate = Tidegate::start(web);
    let mut client = tidegate.client();
    let prometheus = Prometheus::start(&prometheus, Some(tidegate.admin));
    let url = format!("http://{}", prometheus.address);
    let forecast = eventually(
        || {
            (0..20).for_each(|_| _ = client.get("/"));
            plan(&["--prometheus", &url, "--output", "json"])
        },
        |(code, ..)| *code == Some(0),
    );
    let forecast: Value = serde_json::from_str(&forecast.1).unwrap();
    let failing = forecast["traffic"]["failing"].as_f64().unwrap();
    assert!((0.2..0.3).contains(&failing), "{forecast:#}");
}

#[test]
fn prometheus_knows_what_it_is_asked() {
    let Some(prometheus) = program("prometheus") else { return };
    let prometheus = Prometheus::start(&prometheus, None);
    let url = format!("http://{}", prometheus.address);
    let ask = |query: &str| {
        eventually(
            || plan(&["--prometheus", &url, "--query", query, "--output", "json"]),
            // It answers 503 while it starts.
            |(_, _, complaints)| !complaints.contains("status 503"),
        )
    };
    let (_, forecast, complaints) = ask("sum(vector(40)) + 2");
    let forecast: Value = serde_json::from_str(&forecast).unwrap_or_else(|_| panic!("{complaints}"));
    assert_eq!(forecast["traffic"]["requests_per_second"], 42.0);
    let forecast: Value = serde_json::from_str(&ask("scalar(vector(7))").1).unwrap();
    assert_eq!(forecast["traffic"]["requests_per_second"], 7.0);
    assert!(ask("no_such_metric").2.contains("Prometheus knows nothing of `no_such_metric`"));
    assert!(ask("sum(").2.contains("has no answer to `sum(`"));
    let (_, _, complaints) = plan(&["--prometheus", &url]);
    assert!(
        complaints.contains("knows nothing of `sum(rate(tidegate_requests_total{service=\"web\"}[1h]))`")
    );
}

#[test]
fn it_says_what_it_lacks() {
    for (arguments, problem) in [
        (&["--rate", "5", "--prometheus", "http://127.0.0.1:1"][..], "cannot be used with"),
        (&["--rate", "0"], "has 0 requests a second"),
        (&["--rate", "5", "--service", "api"], "there is no service `api`"),
        (&["--address", "http://127.0.0.1:1"], "say how much traffic there is with --rate"),
        (&["--address", "http://127.0.0.1:1"], "nobody answers at 127.0.0.1:1"),
        (&["--prometheus", "127.0.0.1:1"], "write Prometheus as a URL such as"),
        (&["--prometheus", "http://127.0.0.1:1"], "no connection"),
        (&["--rate", "5", "--query", "x"], "cannot be used with"),
        (&["--query", "x"], "required arguments were not provided"),
    ] {
        let (code, said, complaints) = plan(arguments);
        assert_ne!(code, Some(0), "{said}");
        assert!(complaints.contains(problem), "no `{problem}` in {complaints}");
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    let output =
        command.args(["plan", "--config", "config/blue-green.toml", "--rate", "5"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("a blue-green rollout has no steps"));
}
