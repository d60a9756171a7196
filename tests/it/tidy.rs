//! The rules of the source that a compiler does not check: who may use whom, and what a file looks
//! like.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// For each top-level module, those that it may use. A module that is not here is an error, so that
/// a new one has to find its place.
const MAY_USE: &[(&str, &[&str])] = &[
    // Words.
    ("model", &[]),
    ("clock", &["model"]),
    // Nothing, but where a test kills the process.
    ("failpoint", &[]),
    // Certificates, which both halves need: one to use them, the other to keep them fresh.
    ("tls", &["model", "clock"]),
    // Decisions: pure.
    ("routing", &["model", "tls"]),
    ("analysis", &["model"]),
    ("rollout", &["model", "analysis"]),
    // What outlives the process.
    ("store", &["model", "failpoint", "analysis", "rollout"]),
    ("config", &["model", "clock", "tls", "routing", "rollout", "analysis"]),
    // The data plane, which knows nothing of control.
    ("telemetry", &["model", "clock"]),
    ("access_log", &["model", "config"]),
    // What an exchange was, on its way from the data plane to whoever sends it.
    ("spans", &["model", "routing", "access_log"]),
    ("net", &["model", "config"]),
    ("upstream", &["model", "clock", "tls", "routing", "telemetry", "net"]),
    ("proxy", &["model", "clock", "tls", "routing", "telemetry", "access_log", "spans", "net", "upstream"]),
    ("worker", &["model", "clock", "tls", "routing", "telemetry", "net", "upstream", "proxy"]),
    // Control, which knows of the data plane only its counts and the snapshot that it reads.
    (
        "controller",
        &[
            "model",
            "clock",
            "failpoint",
            "tls",
            "config",
            "analysis",
            "rollout",
            "store",
            "routing",
            "telemetry",
            "spans",
        ],
    ),
    ("admin", &["model", "clock", "tls", "config", "rollout", "store", "controller"]),
    // The front.
    (
        "app",
        &[
            "model",
            "clock",
            "tls",
            "config",
            "routing",
            "analysis",
            "rollout",
            "store",
            "telemetry",
            "access_log",
            "spans",
            "net",
            "upstream",
            "proxy",
            "worker",
            "controller",
            "admin",
        ],
    ),
    ("demo", &["model", "clock", "config", "analysis", "rollout", "app", "admin", "controller"]),
    // On the pure part alone.
    ("simulate", &["model", "analysis", "rollout"]),
    (
        "cli",
        &[
            "model",
            "clock",
            "tls",
            "config",
            "analysis",
            "rollout",
            "access_log",
            "app",
            "admin",
            "controller",
            "demo",
            "simulate",
        ],
    ),
];

/// What control may know of `telemetry`: whoever writes counts is none of its business.
const COUNTS: [&str; 4] = ["reader", "ledger", "health", "in_flight"];

/// Modules that only turn values into values.
const PURE: [&str; 4] = ["model", "routing", "analysis", "rollout"];

/// What a pure module does without.
const IMPURE: [&str; 16] = [
    "async ",
    ".await",
    "tokio",
    "hyper",
    "tracing",
    "std::fs",
    "std::net",
    "std::thread",
    "std::env",
    "Instant",
    "SystemTime",
    "rand::rng",
    "seed_from_u64",
    "from_os_rng",
    "println!",
    "clock::",
];

/// Pure all the same: names of addresses are values.
const ADDRESSES: [&str; 4] =
    ["std::net::IpAddr", "std::net::Ipv4Addr", "std::net::Ipv6Addr", "std::net::SocketAddr"];

/// Lines of code that a file may have, tests not counted.
const LONGEST: usize = 400;

/// Files that may have more, and why.
const LONGER: &[(&str, &str)] = &[];

/// A file of the library.
struct File {
    path: PathBuf,
    /// Without comments, and without the tests at its end.
    code: String,
    text: String,
}

impl File {
    fn read(path: PathBuf) -> Self {
        let text = fs::read_to_string(&path).unwrap();
        let before_tests = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        let lines = before_tests.lines().filter(|line| !line.trim_start().starts_with("//"));
        let code = lines.map(|line| format!("{}\n", line.split(" // ").next().unwrap())).collect();
        Self { code, text, path }
    }

    /// The top-level module that it belongs to.
    fn module(&self) -> &str {
        let first = self.path.components().nth(1).unwrap().as_os_str().to_str().unwrap();
        first.trim_end_matches(".rs")
    }

    fn name(&self) -> std::path::Display<'_> {
        self.path.display()
    }

    /// The paths that begin at the crate's root, each as far as a module within a module.
    fn uses(&self) -> BTreeSet<(String, String)> {
        let mut uses = BTreeSet::new();
        let flat = self.code.split_whitespace().collect::<String>();
        for rest in flat.split("crate::").skip(1) {
            if let Some(group) = rest.strip_prefix('{') {
                for item in top_level_items(group) {
                    uses.extend(expand(item));
                }
            } else {
                uses.extend(expand(rest));
            }
        }
        uses
    }
}

/// The items of a group up to its closing brace, nested groups whole.
fn top_level_items(group: &str) -> Vec<&str> {
    let (mut depth, mut start, mut items) = (0, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                items.push(&group[start..at]);
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                items.push(&group[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    items.retain(|item| !item.is_empty());
    items
}

/// `a::b::…` and `a::{b, c::d}` as pairs of module and what is used of it.
fn expand(path: &str) -> Vec<(String, String)> {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let module = word(path);
    let Some(rest) = path[module.len()..].strip_prefix("::") else { return vec![(module, String::new())] };
    let Some(group) = rest.strip_prefix('{') else { return vec![(module, word(rest))] };
    top_level_items(group).into_iter().map(|item| (module.clone(), word(item))).collect()
}

fn files_under(folder: &str) -> Vec<File> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in folder.read_dir().unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(Path::new(folder), &mut found);
    found.sort();
    found.into_iter().map(File::read).collect()
}

fn is_test(file: &File) -> bool {
    file.path.components().any(|part| part.as_os_str() == "tests")
        || file.path.ends_with("tests.rs")
        || file.path.ends_with("testing.rs")
}

#[test]
fn a_module_uses_only_those_that_it_may() {
    let mut wrong = Vec::new();
    for file in files_under("src").iter().filter(|file| !["main", "lib"].contains(&file.module())) {
        let module = file.module();
        let allowed = MAY_USE.iter().find(|(name, _)| *name == module);
        let Some((_, allowed)) = allowed else {
            wrong.push(format!("{}: `{module}` has no place in the order", file.name()));
            continue;
        };
        for (used, part) in file.uses().into_iter().filter(|(used, _)| used != module) {
            if !allowed.contains(&used.as_str()) {
                wrong.push(format!("{}: `{module}` may not use `{used}`", file.name()));
            }
            let control = ["controller", "admin"].contains(&module);
            if control && used == "telemetry" && !COUNTS.contains(&part.as_str()) {
                wrong.push(format!("{}: control may read counts, not `telemetry::{part}`", file.name()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_order_has_no_circles_and_the_halves_do_not_meet() {
    for (at, (module, uses)) in MAY_USE.iter().enumerate() {
        for used in *uses {
            let place = MAY_USE.iter().position(|(name, _)| name == used);
            assert!(place.is_some_and(|place| place < at), "`{module}` uses `{used}`, which is not above it");
        }
    }
    let (data, control) = (["access_log", "net", "upstream", "proxy", "worker"], ["controller", "admin"]);
    for (module, uses) in MAY_USE {
        let others: &[&str] = match module {
            _ if data.contains(module) || *module == "telemetry" => &control,
            _ if control.contains(module) => &data,
            _ => &[],
        };
        assert!(!uses.iter().any(|used| others.contains(used)), "`{module}` reaches over the seam");
    }
}

#[test]
fn the_modules_of_the_library_stand_in_that_order() {
    let lib = fs::read_to_string("src/lib.rs").unwrap();
    let listed: BTreeSet<_> =
        lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    let placed: BTreeSet<_> = MAY_USE.iter().map(|(module, _)| *module).collect();
    assert_eq!(listed, placed);
}

#[test]
fn pure_modules_have_no_clock_no_chance_and_no_world() {
    let mut wrong = Vec::new();
    for file in files_under("src").iter().filter(|file| PURE.contains(&file.module()) && !is_test(file)) {
        let code = ADDRESSES.iter().fold(file.code.clone(), |code, address| code.replace(address, ""));
        for impure in IMPURE.iter().filter(|impure| code.contains(**impure)) {
            wrong.push(format!("{}: `{impure}`", file.name()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_file_begins_with_what_it_is_for() {
    for file in files_under("src").iter().chain(&files_under("tests")) {
        assert!(file.text.starts_with("//! "), "{} does not", file.name());
    }
}

#[test]
fn nothing_is_left_to_be_done_later() {
    // Spelt so that this file is not found.
    let marks = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X"), concat!("todo", "!(")];
    for file in files_under("src").iter().chain(&files_under("tests")) {
        for mark in marks {
            assert!(!file.text.contains(mark), "{} has a {mark}", file.name());
        }
    }
}

#[test]
fn no_file_is_too_long() {
    for file in files_under("src").iter().chain(&files_under("tests")) {
        let lines = file.code.lines().filter(|line| !line.trim().is_empty()).count();
        let excused = LONGER.iter().any(|(path, reason)| file.path.ends_with(path) && !reason.is_empty());
        assert!(excused || lines <= LONGEST, "{} has {lines} lines of code", file.name());
    }
}

#[test]
fn a_module_is_a_file_of_its_name() {
    for file in files_under("src").iter().chain(&files_under("tests")) {
        assert!(!file.path.ends_with("mod.rs"), "{}", file.name());
        let name = file.path.file_stem().unwrap().to_str().unwrap();
        for vague in ["utils", "util", "common", "helpers", "types", "manager", "misc"] {
            assert!(name != vague, "{} says nothing", file.name());
        }
    }
}

#[test]
fn paths_are_found_in_every_form() {
    let code = "use crate::{a, b::{c::D, e}, f::g};\nuse crate::h::I;\nlet x = crate::j::k::l();".to_owned();
    let file = File { path: "src/x.rs".into(), text: String::new(), code };
    let found: Vec<_> = file.uses().into_iter().map(|(module, part)| format!("{module}.{part}")).collect();
    assert_eq!(found, ["a.", "b.c", "b.e", "f.g", "h.I", "j.k"]);
}
