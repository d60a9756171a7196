//! A wall clock that goes ahead under a rollout, as when the machine slept.

use std::{fs, time::Duration};

use serde_json::Value;

use crate::{
    injection::process::Process,
    killing::ask,
    support::{Backend, Web, eventually, metrics::Scrape},
};

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn a_clock_that_goes_ahead_counts_for_no_hold_and_no_bake() {
    let backends = ["v1", "v2"].map(Backend::named);
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("tidegate.toml");
    let plan = "steps = [{ weight = 20, hold = '1h' }]\nbake = '1h'\ndeadline = '1h'\ndrain = '1h'";
    let web = Web::new(backends[0].address).canary(backends[1].address).table("rollout", plan);
    fs::write(&config, web.to_string()).unwrap();
    let mut process = Process::start(&config);
    let admin = process.admin();
    let status = || ask(admin, "GET", "", "").unwrap().1;
    let ticks = || Scrape::of(admin).sum("tidegate_tick_seconds_count", &[]);
    let full = "{\"full\": true, \"reason\": \"a test\"}";
    let said = |status: &Value| {
        let wanted = "the clock went ahead by 5h, which counts for no hold and no bake";
        status["events"].as_array().unwrap().iter().filter(|event| event["what"] == wanted).count()
    };
    for (path, body, phase, times) in [("/start", "", "stepping", 1), ("/promote", full, "baking", 2)] {
        assert_eq!(ask(admin, "POST", path, body).unwrap().0, 200);
        let before = eventually(status, |status| status["rollout"]["phase"] == phase);
        process.put_ahead(5 * HOUR);
        let after = eventually(status, |status| said(status) == times);
        let since = |status: &Value| status["rollout"]["since"].as_u64().unwrap();
        let moved = Duration::from_millis(since(&after) - since(&before));
        assert!((5 * HOUR - HOUR / 60..=5 * HOUR).contains(&moved), "{moved:?}");
        let begun = ticks();
        eventually(ticks, |now| *now >= begun + 3.0);
        assert_eq!(status()["rollout"]["phase"], phase);
    }
}
