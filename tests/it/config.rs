//! What a user is told about each mistake in a configuration.
//!
//! Each `tests/it/config/*.toml` holds one mistake, and the `.txt` beside it exactly what is said
//! about it. After a change, run with `UPDATE_EXPECTED=1`: the texts are written anew, the test
//! fails, and the difference is there to be read.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use proptest::{prelude::*, sample::Index};
use tidegate::config::{
    diagnostic::render,
    load::{Loaded, load, parse},
};

const MISTAKES: &str = "tests/it/config";
const FULL: &str = include_str!("../../config/full.toml");

/// Everything that is said, whether the configuration can be used or not.
fn said(loaded: &Loaded) -> String {
    match loaded {
        Ok((_, warnings)) => render(warnings),
        Err(errors) => render(errors),
    }
}

/// Files in the folder of mistakes that end like this, in order.
fn files(extension: &str) -> Vec<PathBuf> {
    let entries = Path::new(MISTAKES).read_dir().expect("tests run at the root of the package");
    let paths = entries.map(|entry| entry.expect("the folder can be listed").path());
    let mut files: Vec<_> = paths.filter(|path| path.extension().is_some_and(|e| e == extension)).collect();
    files.sort();
    files
}

/// Compares what is said with the text in a file, or writes it there if asked to.
fn compare(said: &str, file: &Path) -> Result<(), String> {
    if fs::read_to_string(file).is_ok_and(|expected| expected == said) {
        return Ok(());
    }
    let file = file.display();
    if env::var_os("UPDATE_EXPECTED").is_none() {
        return Err(format!("{file} differs from what is said (UPDATE_EXPECTED=1 rewrites it):\n{said}"));
    }
    fs::write(file.to_string(), said).expect("the folder can be written");
    Err(format!("{file} was rewritten: read it, then run again without UPDATE_EXPECTED"))
}

#[test]
fn every_mistake_is_explained() {
    let mistakes = files("toml");
    assert!(!mistakes.is_empty());
    let compared = mistakes.iter().map(|mistake| {
        let text = said(&load(mistake));
        assert!(!text.is_empty(), "{} has no mistake", mistake.display());
        compare(&text, &mistake.with_extension("txt"))
    });
    let wrong: Vec<_> = compared.filter_map(Result::err).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_that_cannot_be_read_are_explained() {
    let folder = Path::new(MISTAKES);
    let not_text = tempfile::tempdir().unwrap();
    let file = not_text.path().join("latin1.toml");
    fs::write(&file, b"workers = 2\n# caf\xe9\n").unwrap();
    let place = not_text.path().display().to_string() + "/";
    let compared = [
        (folder.join("absent.toml"), "unreadable/absent.txt"),
        (folder.join("unreadable"), "unreadable/directory.txt"),
        (file, "unreadable/latin1.txt"),
    ]
    .map(|(path, expected)| compare(&said(&load(&path)).replace(&place, ""), &folder.join(expected)));
    let wrong: Vec<_> = compared.into_iter().filter_map(Result::err).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_text_belongs_to_a_mistake() {
    let mistakes = files("toml");
    for text in files("txt") {
        assert!(mistakes.contains(&text.with_extension("toml")), "{} is left over", text.display());
    }
}

#[test]
fn every_fault_of_meaning_is_said_at_once() {
    let loaded = load(&Path::new(MISTAKES).join("many-at-once.toml"));
    assert!(loaded.unwrap_err().len() >= 5);
}

/// A way to spoil a text.
#[derive(Debug, Clone)]
enum Spoil {
    /// Leave out some characters.
    Remove(Index, usize),
    /// Put something in.
    Insert(Index, String),
    /// Copy a line to another place.
    Copy(Index, Index),
    /// Put a value in the place of another.
    Replace(Index, String),
}

impl Spoil {
    fn apply(&self, text: &str) -> String {
        let lines: Vec<&str> = text.lines().collect();
        let place = |index: &Index| text.floor_char_boundary(index.index(text.len() + 1));
        match self {
            _ if lines.is_empty() => text.to_owned(),
            Self::Remove(at, length) => {
                let start = place(at);
                let end = text.floor_char_boundary((start + length).min(text.len()));
                format!("{}{}", &text[..start], &text[end..])
            }
            Self::Insert(at, what) => {
                let at = place(at);
                format!("{}{what}{}", &text[..at], &text[at..])
            }
            Self::Copy(from, to) => {
                let mut spoilt = lines.clone();
                spoilt.insert(to.index(lines.len()), lines[from.index(lines.len())]);
                spoilt.join("\n")
            }
            Self::Replace(at, value) => {
                let at = at.index(lines.len());
                let line = lines[at].split('=').next().unwrap_or_default();
                let replaced = format!("{line}= {value}");
                let mut spoilt = lines.clone();
                spoilt[at] = &replaced;
                spoilt.join("\n")
            }
        }
    }
}

fn spoil() -> impl Strategy<Value = Spoil> {
    let odd = prop::sample::select(vec![
        "\"",
        "'",
        "'''",
        "[",
        "]",
        "[[",
        "]]",
        "{",
        "}",
        "=",
        ".",
        ",",
        "\n",
        "\r",
        "\t",
        "\u{feff}",
        "\u{0}",
        "é",
        "🌊",
        "#",
        "x = 1\n",
        "[services.web]\n",
        "\\u001b",
        "-",
        "*",
        ":",
        "/",
    ]);
    let value = prop::sample::select(vec![
        "-1",
        "0",
        "9223372036854775808",
        "1e400",
        "nan",
        "inf",
        "-inf",
        "true",
        "false",
        "\"\"",
        "\"\\u001b[0m\"",
        "\"99999999999999999999y\"",
        "\"18446744073709551615s\"",
        "[]",
        "{}",
        "[[]]",
        "1979-05-27",
        "\"[::1]\"",
        "[\"http://[\"]",
        "[\"://\"]",
        "\"🌊\"",
        "[1, \"5m\"]",
        "[{ weight = 0 }, {}]",
        "\"http://\"",
        "\":\"",
    ]);
    prop_oneof![
        (any::<Index>(), 1usize..40).prop_map(|(at, length)| Spoil::Remove(at, length)),
        (any::<Index>(), odd).prop_map(|(at, what)| Spoil::Insert(at, what.to_owned())),
        (any::<Index>(), any::<char>()).prop_map(|(at, what)| Spoil::Insert(at, what.to_string())),
        (any::<Index>(), any::<Index>()).prop_map(|(from, to)| Spoil::Copy(from, to)),
        (any::<Index>(), value).prop_map(|(at, value)| Spoil::Replace(at, value.to_owned())),
    ]
}

/// The reference without its comments, so that every change hits something.
fn bare() -> String {
    let lines = FULL.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    lines.map(|line| format!("{line}\n")).collect()
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(spoils in prop::collection::vec(spoil(), 1..4)) {
        let text = spoils.iter().fold(bare(), |text, spoil| spoil.apply(&text));
        let loaded = parse("spoilt.toml", &text);
        let said = said(&loaded);
        prop_assert!(loaded.is_ok() || !said.is_empty());
        prop_assert!(!said.chars().any(|c| c.is_control() && c != '\n' && c != '\t'), "{said:?}");
    }
}
