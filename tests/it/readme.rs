//! What README.md tells people to copy has to work, and the names that it lists have to exist.

use std::{collections::BTreeSet, fs, path::Path};

use tidegate::config::{diagnostic::render, load::parse};

const README: &str = include_str!("../../README.md");
/// Where the names of metrics are written.
const METRICS: &[&str] = &[
    include_str!("../../src/access_log.rs"),
    include_str!("../../src/admin/refusals.rs"),
    include_str!("../../src/app.rs"),
    include_str!("../../src/app/reload.rs"),
    include_str!("../../src/controller/metrics.rs"),
    include_str!("../../src/controller/notify.rs"),
    include_str!("../../src/spans.rs"),
    include_str!("../../src/telemetry/exposition.rs"),
    include_str!("../../src/telemetry/health_exposition.rs"),
    include_str!("../../src/telemetry/in_flight_exposition.rs"),
    include_str!("../../src/telemetry/mirror_exposition.rs"),
    include_str!("../../src/tls/reload.rs"),
];

/// The insides of all fenced blocks of a language.
fn blocks(language: &str) -> Vec<&'static str> {
    let inside = |block: &'static str| block.split_once("\n```").expect("the block is closed").0;
    README.split(&format!("\n```{language}\n")).skip(1).map(inside).collect()
}

/// The names of metrics among the pieces between two `quote`s.
fn metrics(text: &str, quote: char) -> BTreeSet<&str> {
    let is_name = |piece: &&str| {
        piece.starts_with("tidegate_") && piece.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
    };
    text.split(quote).filter(is_name).collect()
}

#[test]
fn the_two_commands_are_there() {
    let commands: Vec<_> = blocks("sh").into_iter().flat_map(str::lines).collect();
    for command in ["cargo run --release -- demo", "cargo test"] {
        assert!(commands.contains(&command), "`{command}` is not in a block of its own");
    }
}

#[test]
fn every_configuration_is_a_file_in_config_and_free_of_errors_and_warnings() {
    let entries = Path::new("config").read_dir().unwrap().map(|entry| entry.unwrap().path());
    let files: Vec<_> = entries.map(|path| fs::read_to_string(path).unwrap()).collect();
    let blocks = blocks("toml");
    assert!(!blocks.is_empty());
    for block in blocks {
        match parse("README.md", block) {
            Ok((_, warnings)) => assert!(warnings.is_empty(), "{}", render(&warnings)),
            Err(errors) => panic!("{}", render(&errors)),
        }
        assert!(files.iter().any(|file| file.trim_end() == block), "this is no file in config/:\n{block}");
    }
}

#[test]
fn the_metrics_are_those_that_there_are() {
    let there_are: BTreeSet<_> = METRICS.iter().flat_map(|source| metrics(source, '"')).collect();
    assert_eq!(metrics(README, '`'), there_are);
}
