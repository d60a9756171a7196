//! `tidegate simulate` and `tidegate replay`, as people start them.

use std::{fs, process::Command};

use serde_json::Value;

const CONFIG: &str = "config/canary.toml";

fn tidegate(arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    let output = command.args(arguments).env_remove("TIDEGATE_CONFIG").output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// What it says to these arguments, which must suit it.
pub fn answer(arguments: &[&str]) -> String {
    let (code, answer, complaints) = tidegate(arguments);
    assert_eq!(code, Some(0), "{complaints}");
    answer
}

fn complaint(arguments: &[&str]) -> String {
    let (code, answer, complaints) = tidegate(arguments);
    assert_ne!(code, Some(0), "{answer}");
    complaints
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn simulate_says_what_a_plan_would_come_to() {
    let asked = ["simulate", "--scenario", "same-0.1", "--fails", "0.1,5", "--rate", "200", "--runs", "20"];
    let table = answer(&asked);
    assert_eq!(table, answer(&[&asked[..], &["--threads", "3"]].concat()), "one seed is one result");
    for word in ["rolled back", "same-0.1", "0.1-to-5", "tidegate", "flagger", "argo", "kayenta", "Promised"]
    {
        assert!(table.contains(word), "no `{word}` in\n{table}");
    }
    let rows = answer(&[&asked[..], &["--against", "none", "--output", "json", "--config", CONFIG]].concat());
    let rows: Vec<Value> = serde_json::from_str(&rows).unwrap();
    assert_eq!(rows.len(), 2);
    assert_eq!((&rows[1]["scenario"], &rows[1]["rule"]), (&"0.1-to-5".into(), &"tidegate".into()));
    assert_eq!((&rows[1]["bad"], &rows[1]["rolled_back"]), (&true.into(), &20.into()));
}

#[test]
fn simulate_says_that_it_leaves_out_dark_steps() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("dark.toml");
    let config = fs::read_to_string(CONFIG).unwrap();
    let dark = config.replacen("steps = [", "steps = [\n  { mirror = 10, hold = \"30s\" },", 1);
    assert_ne!(dark, config);
    fs::write(&file, dark).unwrap();
    let asked = ["simulate", "--scenario", "same-0.1", "--rate", "200", "--runs", "2", "--config"];
    let notes = |config: &str| {
        let (code, _, said) = tidegate(&[&asked[..], &[config]].concat());
        assert_eq!(code, Some(0), "{said}");
        said
    };
    assert!(!notes(CONFIG).contains("dark"));
    let said = notes(file.to_str().unwrap());
    assert!(said.contains("note: dark steps are left out: each rollout begins"), "{said}");
}

#[test]
fn simulate_draws_what_it_found() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("plot.svg");
    let file = file.to_str().unwrap();
    answer(&["simulate", "--fails", "0.1,50", "--runs", "3", "--plot", file]);
    let svg = fs::read_to_string(file).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("0.1-to-50, 500 requests a second"));
}

#[test]
fn simulate_says_what_it_does_not_know() {
    assert!(answer(&["simulate", "--list"]).contains("\nincident      both fail 10 %"));
    for (arguments, problem) in [
        (&["--scenario", "storm"][..], "there is no scenario `storm`"),
        (&["--against", "spinnaker"], "nobody's rules are called `spinnaker`"),
        (&["--rate", "0"], "a rate is over 0"),
        (&["--fails", "1"], "write two percentages"),
        (&["--config", "config/blue-green.toml"], "a blue-green rollout has no steps to simulate"),
        (&["--config", CONFIG, "--service", "api"], "there is no service `api`"),
        (&["--history", CONFIG], "line 1 of config/canary.toml is not a tick"),
    ] {
        let said = complaint(&[&["simulate"], arguments].concat());
        assert!(said.contains(problem), "{said}");
    }
}

#[test]
fn a_recording_replays_to_the_same_verdicts_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("recording.jsonl");
    let file = file.to_str().unwrap();
    let simulated = ["simulate", "--config", CONFIG, "--fails", "0.1,1", "--rate", "500", "--runs", "1"];
    let record = ["--record", file, "--against", "none", "--output", "json"];
    let rows: Value = serde_json::from_str(&answer(&[&simulated[..], &record].concat())).unwrap();
    let replayed = answer(&["replay", file, "--config", CONFIG, "--against", "flagger,argo"]);
    assert_eq!(replayed, answer(&["replay", file, "--config", CONFIG, "--against", "flagger,argo"]));

    let answers = lines(&replayed);
    let [ticks @ .., flagger, argo] = &answers[..] else { panic!("{replayed}") };
    assert_eq!(ticks[0]["verdict"], Value::Null, "nothing is concluded before the first step");
    // What the simulation decided tick by tick, the replay concludes again: it ends with the rollback.
    let decisions: Vec<_> = ticks.iter().filter_map(|tick| tick["verdict"]["decision"].as_str()).collect();
    assert_eq!(decisions.iter().position(|decision| *decision == "roll_back"), Some(decisions.len() - 1));
    assert_eq!(rows[0]["delay_seconds"][0].as_f64(), Some(decisions.len() as f64));
    let last = &ticks[ticks.len() - 1];
    assert!(last["explanation"].as_str().unwrap().contains("rolling back"), "{last}");
    let check = &last["verdict"]["checks"][0];
    for number in ["stable", "canary", "evidence", "threshold", "requests"] {
        assert!(check[number].is_number(), "no {number} in {check}");
    }
    assert!(check["interval"]["low"].as_f64().unwrap() > 0.0, "{check}");
    assert_eq!(flagger["against"]["rule"], "flagger");
    assert!(argo["against"]["more_failed"].as_f64().unwrap() > 100.0, "{argo}");

    // The same happens again as a scenario, and would not if the canary were like stable.
    let again = ["simulate", "--history", file, "--runs", "10", "--against", "none", "--output", "json"];
    let rows: Value = serde_json::from_str(&answer(&again)).unwrap();
    assert_eq!((&rows[0]["scenario"], &rows[0]["bad"]), (&"recorded".into(), &true.into()));
    assert_eq!((&rows[1]["scenario"], &rows[1]["bad"]), (&"recorded-same".into(), &false.into()));
}

#[test]
fn a_line_that_is_no_tick_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("recording.jsonl");
    let good = r#"{"at":1,"phase":"stepping","step":0,"stable":{"requests":9,"failures":0}}"#;
    fs::write(&file, format!("{good}\n\n{{\"at\":2}}\n")).unwrap();
    let file = file.to_str().unwrap();
    let said = complaint(&["replay", file, "--config", CONFIG]);
    assert!(said.contains("line 3") && said.contains("missing field `phase`"), "{said}");
    fs::write(file, "").unwrap();
    let said = complaint(&["replay", file, "--config", CONFIG, "--against", "argo"]);
    assert!(said.contains("has no tick of a rollout"), "{said}");
}
