//! What a disk does to a store, and what the store makes of it.

use std::{fs, os::unix::fs::symlink, path::Path, time::Duration};

use serde_json::Value;

use super::*;
use crate::{
    analysis::{Analysis, attribution::Suspect, error_rate::Sample, settings::Settings},
    model::{role::Roles, time::Timestamp, weight::Weight},
    rollout::{
        phase::Phase,
        plan::{Draft, Plan},
        trial,
    },
    store::record::{Endpoints, Kind, Position, Rollout},
};

const MAX: u64 = 1 << 20;

fn web() -> ServiceName {
    "web".parse().unwrap()
}

fn position(percent: f64) -> Position {
    let roles = Roles::new("v1".parse().unwrap(), Some("v2".parse().unwrap())).unwrap();
    Position { roles, weight: Weight::from_percent(percent).unwrap() }
}

/// A rollout in its first step, with the canary at this weight.
fn record(percent: f64) -> Record {
    let plan = Plan::new(Draft::default()).unwrap();
    let since = Timestamp::from_millis(1_000);
    let analysis: Analysis = trial::begin(&Settings::default(), &plan, Duration::from_secs(1));
    let roles = position(0.0).roles;
    let phase = Phase::Stepping { step: 0, since };
    Record {
        saved: since,
        configured: position(0.0),
        position: position(percent),
        salt: u64::MAX,
        rollout: Some(Rollout {
            id: "web-1000".into(),
            started: since,
            plan,
            roles,
            phase,
            wanted_until: Some(since),
            guards_only: true,
        }),
        analysis: Some(analysis),
        endpoints: Endpoints {
            counted: [("[::1]:80".parse().unwrap(), Sample { requests: 3, failures: 1 })].into(),
            suspect: Suspect::default(),
        },
    }
}

fn entry(what: &str, percent: f64) -> Entry {
    Entry {
        at: Timestamp::from_millis(2_000),
        kind: Kind::Weight,
        what: what.to_owned(),
        rollout: None,
        note: None,
        phase: None,
        position: position(percent),
        by: None,
        reason: None,
        verdict: None,
    }
}

fn open(path: &Path) -> (Directory, Found) {
    let (directory, mut found) = Directory::open(path, MAX).unwrap();
    (directory, found.remove(&web()).unwrap_or_default())
}

fn save(directory: &mut Directory, percent: f64, entries: &[&str]) -> Result<Saved, StoreError> {
    let entries: Vec<_> = entries.iter().map(|what| entry(what, percent)).collect();
    directory.save(&web(), &record(percent), &entries)
}

/// The history as it stands in files, the oldest first.
fn history(path: &Path) -> Vec<(u64, String)> {
    let lines = history::read(&path.join("web"), u64::MAX, usize::MAX).unwrap();
    lines.into_iter().rev().map(|line| (line.brief.seq, line.brief.what)).collect()
}

fn numbered(what: &[&str]) -> Vec<(u64, String)> {
    (1..).zip(what.iter().map(ToString::to_string)).collect()
}

/// A directory with two saves, of 5 % and of 10 %.
fn two_saves() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let (mut directory, _) = open(folder.path());
    save(&mut directory, 5.0, &["one", "two"]).unwrap();
    save(&mut directory, 10.0, &["three"]).unwrap();
    folder
}

fn files_of(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let read =
        |entry: fs::DirEntry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap());
    entries.map(read).collect()
}

#[test]
fn what_is_saved_is_found_again() {
    let folder = two_saves();
    let (_held, found) = open(folder.path());
    assert_eq!(found.record.as_deref(), Some(&record(10.0)));
    let told: Vec<_> = found.recent.iter().map(|brief| brief.what.as_str()).collect();
    assert_eq!(told, ["one", "two", "three"]);
    assert_eq!((found.newer, found.problems), (None, vec![]));
    assert_eq!(history(folder.path()), numbered(&["one", "two", "three"]));
}

#[test]
fn a_crash_at_any_point_leaves_one_of_the_two_states_and_a_whole_history() {
    let folder = two_saves();
    let web = folder.path().join("web");
    let before = files_of(&web);
    let (mut directory, _) = open(folder.path());
    save(&mut directory, 25.0, &["four"]).unwrap();
    drop(directory);
    let after: BTreeMap<_, _> = files_of(&web).into_iter().collect();
    let (newest, last) = (&after["state.json"], &after["state.json.last"]);
    let log = "history-000000000001.jsonl";
    let grown = &after[log];
    let old_log = before.iter().find(|(name, _)| name == log).unwrap().1.len();
    let check = |changes: &dyn Fn(&Path), percent: f64, wanted: &[&str], note: &str| {
        let crashed = tempfile::tempdir().unwrap();
        let at = crashed.path().join("web");
        fs::create_dir(&at).unwrap();
        before.iter().for_each(|(name, bytes)| fs::write(at.join(name), bytes).unwrap());
        changes(&at);
        let (mut directory, found) = open(crashed.path());
        assert_eq!(found.record.as_deref(), Some(&record(percent)), "{note}");
        assert_eq!((found.newer, history(crashed.path())), (None, numbered(wanted)), "{note}");
        // And it goes on from there.
        save(&mut directory, 50.0, &["next"]).unwrap();
        drop(directory);
        let (_, found) = open(crashed.path());
        assert_eq!((found.record.as_deref(), found.problems), (Some(&record(50.0)), vec![]), "{note}");
        assert_eq!(history(crashed.path()), numbered(&[wanted, &["next"]].concat()), "{note}");
    };
    // While the state is written beside.
    for written in (0..=newest.len()).step_by(97).chain([newest.len()]) {
        let next = |at: &Path| fs::write(at.join("state.json.next"), &newest[..written]).unwrap();
        check(&next, 10.0, &["one", "two", "three"], "writing the state");
    }
    let between = |at: &Path| {
        fs::write(at.join("state.json.next"), newest).unwrap();
        fs::rename(at.join("state.json"), at.join("state.json.last")).unwrap();
    };
    check(&between, 10.0, &["one", "two", "three"], "between the renames");
    // From here on the save counts.
    for written in old_log..=grown.len() {
        let renamed = |at: &Path| {
            fs::write(at.join("state.json.last"), last).unwrap();
            fs::write(at.join("state.json"), newest).unwrap();
            fs::write(at.join(log), &grown[..written]).unwrap();
        };
        check(&renamed, 25.0, &["one", "two", "three", "four"], "adding to the history");
    }
}

#[test]
fn a_corrupt_record_gives_way_to_the_one_before() {
    let folder = two_saves();
    let (mut directory, _) = open(folder.path());
    // Evidence alone: nothing has happened since.
    save(&mut directory, 10.0, &[]).unwrap();
    drop(directory);
    let file = folder.path().join("web/state.json");
    let whole = fs::read(&file).unwrap();
    for at in (0..whole.len() - 1).step_by(211) {
        let mut changed = whole.clone();
        changed[at] ^= 4;
        fs::write(&file, changed).unwrap();
        let (_, found) = open(folder.path());
        assert_eq!((found.record.as_deref(), found.newer), (Some(&record(10.0)), None));
        assert!(matches!(&found.problems[..], [StoreError::Corrupt { file: named, .. }] if *named == file));
    }
}

#[test]
fn a_corrupt_record_never_takes_the_place_of_the_good_one() {
    let folder = two_saves();
    let web = folder.path().join("web");
    fs::write(web.join("state.json"), "{").unwrap();
    let (mut directory, _) = open(folder.path());
    save(&mut directory, 50.0, &["next"]).unwrap();
    drop(directory);
    assert_eq!(fs::read(web.join("state.json.corrupt")).unwrap(), b"{");
    // As after a crash between the two renames of that save.
    fs::remove_file(web.join("state.json")).unwrap();
    assert_eq!(open(folder.path()).1.record.as_deref(), Some(&record(5.0)));
}

#[test]
fn what_has_happened_since_the_older_record_is_known_from_the_history() {
    let folder = two_saves();
    let (mut directory, _) = open(folder.path());
    save(&mut directory, 0.0, &["rolled back"]).unwrap();
    drop(directory);
    fs::write(folder.path().join("web/state.json"), "{").unwrap();
    let (directory, found) = open(folder.path());
    assert_eq!(found.record.as_deref(), Some(&record(10.0)));
    assert_eq!(found.newer.map(|brief| brief.position()), Some(position(0.0)));
    drop(directory);
    fs::write(folder.path().join("web/state.json.last"), "").unwrap();
    let (mut directory, found) = open(folder.path());
    assert_eq!((found.record, found.newer.map(|brief| brief.position())), (None, Some(position(0.0))));
    assert_eq!(found.problems.len(), 1, "the other has been put aside");
    // Numbers go on.
    save(&mut directory, 0.0, &["next"]).unwrap();
    assert_eq!(history(folder.path()), numbered(&["one", "two", "three", "rolled back", "next"]));
}

#[test]
fn a_line_that_is_corrupt_costs_itself_alone() {
    let folder = two_saves();
    let log = folder.path().join("web/history-000000000001.jsonl");
    let text = fs::read_to_string(&log).unwrap();
    fs::write(&log, text.replace("\"two\"", "\"tww\"")).unwrap();
    let (mut directory, found) = open(folder.path());
    assert_eq!(found.problems.len(), 1);
    save(&mut directory, 1.0, &["four"]).unwrap();
    let left = [(1, "one".to_owned()), (3, "three".to_owned()), (4, "four".to_owned())];
    assert_eq!(history(folder.path()), left);
}

#[test]
fn nothing_is_half_saved_where_no_space_is_left() {
    let folder = two_saves();
    let web = folder.path().join("web");
    let (mut directory, _) = open(folder.path());
    symlink("/dev/full", web.join("state.json.next")).unwrap();
    let full = save(&mut directory, 50.0, &["lost"]).unwrap_err();
    assert_eq!(full, StoreError::Full { file: web.join("state.json.next") });
    assert_eq!(history(folder.path()), numbered(&["one", "two", "three"]));
    // Space for the record, and none for the history: it follows as soon as there is.
    let log = web.join("history-000000000001.jsonl");
    let moved = web.join("moved");
    fs::rename(&log, &moved).unwrap();
    symlink("/dev/full", &log).unwrap();
    let saved = save(&mut directory, 50.0, &["four"]).unwrap();
    assert!(saved.history.is_some());
    fs::rename(&moved, &log).unwrap();
    assert_eq!(save(&mut directory, 60.0, &["five"]).unwrap(), Saved { history: None });
    assert_eq!(history(folder.path()), numbered(&["one", "two", "three", "four", "five"]));
}

#[test]
fn entries_that_the_history_lacks_survive_in_the_record() {
    let folder = two_saves();
    let log = folder.path().join("web/history-000000000001.jsonl");
    let (mut directory, _) = open(folder.path());
    let text = fs::read(&log).unwrap();
    fs::remove_file(&log).unwrap();
    symlink("/dev/full", &log).unwrap();
    save(&mut directory, 50.0, &["four"]).unwrap();
    save(&mut directory, 60.0, &["five"]).unwrap();
    drop(directory);
    fs::remove_file(&log).unwrap();
    fs::write(&log, text).unwrap();
    let (_, found) = open(folder.path());
    assert_eq!(found.recent.last().unwrap().what, "five");
    assert_eq!(history(folder.path()), numbered(&["one", "two", "three", "four", "five"]));
}

#[test]
fn a_directory_belongs_to_one_process() {
    let folder = two_saves();
    let (held, _) = open(folder.path());
    let locked = Directory::open(folder.path(), MAX).unwrap_err();
    let process = format!("number {}", std::process::id());
    assert_eq!(locked, StoreError::Locked { directory: folder.path().to_owned(), process });
    drop(held);
    open(folder.path());
}

#[test]
fn a_newer_schema_is_not_thrown_away() {
    let folder = two_saves();
    let file = folder.path().join("web/state.json");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replacen("\"schema\":1", "\"schema\":2", 1)).unwrap();
    let newer = Directory::open(folder.path(), MAX).unwrap_err();
    assert_eq!(newer, StoreError::NewerSchema { file, schema: 2 });
}

#[test]
fn a_history_has_a_largest_size_and_is_read_in_pages() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), 16 * 1024).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut seen = Vec::new();
    for number in 1..=200 {
        let entries = vec![entry(&format!("entry {number}"), 1.0)];
        let mut small = record(1.0);
        (small.rollout, small.analysis) = (None, None);
        store.save(&web(), small, entries).blocking_recv().unwrap().unwrap();
    }
    let size: usize = files_of(&folder.path().join("web")).iter().map(|(_, bytes)| bytes.len()).sum();
    assert!((8 * 1024..20 * 1024).contains(&size), "{size} bytes");
    let mut before = None;
    loop {
        let page = runtime.block_on(store.history(&web(), before, 7)).unwrap();
        assert!(page.entries.len() == 7 || page.next.is_none());
        seen.extend(page.entries.iter().map(|line| line.brief.seq));
        before = page.next;
        if before.is_none() {
            break;
        }
    }
    let newest_first: Vec<u64> = (*seen.last().unwrap()..=200).rev().collect();
    assert_eq!(seen, newest_first);
    assert!(seen.len() > 30, "{} of 200 are left", seen.len());
    let (mut chapters, mut before) = (Vec::new(), None);
    loop {
        let chapter = runtime.block_on(store.chapter(&web(), before)).unwrap();
        let Some(oldest) = chapter.last() else { break };
        before = Some(oldest.brief.seq);
        chapters.push(chapter);
    }
    let all: Vec<_> = chapters.iter().flatten().map(|line| line.brief.seq).collect();
    assert_eq!((chapters.len() > 2, all), (true, newest_first));
    // The rest of an entry is passed on as it was.
    let page = runtime.block_on(store.history(&web(), Some(200), 1)).unwrap();
    let body: Value = serde_json::from_str(page.entries[0].body.get()).unwrap();
    assert_eq!(
        (&body["kind"], &body["stable"], &body["weight"]),
        (&"weight".into(), &"v1".into(), &1.0.into())
    );
}

#[test]
fn no_file_of_a_large_history_is_too_large_to_be_read_for_a_page() {
    let folder = tempfile::tempdir().unwrap();
    let (mut directory, _) = Directory::open(folder.path(), 1 << 30).unwrap();
    for _ in 0..6 {
        save(&mut directory, 1.0, &["x".repeat(1 << 20).as_str()]).unwrap();
    }
    let files = files_of(&folder.path().join("web"));
    let sizes =
        files.iter().filter(|(name, _)| name.starts_with("history")).map(|(_, bytes)| bytes.len() >> 20);
    assert_eq!(sizes.collect::<std::collections::BTreeSet<_>>(), [4, 2].into());
}

#[test]
fn without_a_directory_the_same_lasts_as_long_as_the_process() {
    let store = Store::in_memory();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for number in 1..=1100 {
        let entries = vec![entry(&format!("entry {number}"), 1.0)];
        store.save(&web(), record(1.0), entries).blocking_recv().unwrap().unwrap();
    }
    assert_eq!(store.found(&web()).record.as_deref(), Some(&record(1.0)));
    let page = runtime.block_on(store.history(&web(), None, 10)).unwrap();
    assert_eq!((page.entries[0].brief.seq, page.next), (1100, Some(1091)));
    let chapter = |before| runtime.block_on(store.chapter(&web(), before)).unwrap().len();
    assert_eq!((chapter(None), chapter(Some(101))), (1000, 0));
    assert_eq!(runtime.block_on(store.history(&web(), Some(102), 10)).unwrap().entries.len(), 1);
}

#[test]
fn evidence_that_cannot_be_read_costs_itself_alone() {
    let mut body = serde_json::to_value(record(5.0)).unwrap();
    body["analysis"]["tally"] = Value::Null;
    let read: Record = serde_json::from_value(body).unwrap();
    assert_eq!(read, Record { analysis: None, ..record(5.0) });
}

fn services() -> Vec<ServiceName> {
    (0..2 * LANES + 3).map(|number| format!("s{number}").parse().unwrap()).collect()
}

#[test]
fn saves_of_one_service_keep_their_order_whichever_thread_makes_them() {
    let folder = tempfile::tempdir().unwrap();
    let what = |number: u64| vec![entry(&format!("entry {number}"), 1.0)];
    let store = Store::open(folder.path(), MAX).unwrap();
    let each = (1..=5).flat_map(|number| services().into_iter().map(move |service| (number, service)));
    let saves = each.map(|(number, service)| store.save(&service, record(1.0), what(number)));
    for saving in saves.collect::<Vec<_>>() {
        saving.blocking_recv().unwrap().unwrap();
    }
    drop(store);
    // Found again, they are shared out anew, and their numbers go on.
    let store = Store::open(folder.path(), MAX).unwrap();
    for service in services() {
        store.save(&service, record(2.0), what(6)).blocking_recv().unwrap().unwrap();
        let lines = history::read(&folder.path().join(service.as_str()), u64::MAX, usize::MAX).unwrap();
        let told: Vec<_> = lines.into_iter().rev().map(|line| (line.brief.seq, line.brief.what)).collect();
        let wanted: Vec<_> = (1..=6).map(|number| (number, format!("entry {number}"))).collect();
        assert_eq!(told, wanted, "{service}");
    }
}

#[test]
fn a_save_that_hangs_holds_up_only_those_of_its_own_thread() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), MAX).unwrap();
    let saves = |services: &[ServiceName]| -> Vec<Saving> {
        services.iter().map(|service| store.save(service, record(1.0), vec![])).collect()
    };
    let services = &services()[..LANES];
    saves(services).into_iter().for_each(|saving| saving.blocking_recv().unwrap().unwrap());
    // Whoever opens it to write waits for somebody who reads.
    let pipe = folder.path().join(services[0].as_str()).join("state.json.next");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let mut hanging = saves(&services[..1]).remove(0);
    saves(&services[1..]).into_iter().for_each(|saving| saving.blocking_recv().unwrap().unwrap());
    assert!(matches!(hanging.try_recv(), Err(oneshot::error::TryRecvError::Empty)));
    // A pipe is no file, and cannot be synced.
    fs::read(&pipe).unwrap();
    hanging.blocking_recv().unwrap().unwrap_err();
    saves(services).into_iter().for_each(|saving| saving.blocking_recv().unwrap().unwrap());
}
