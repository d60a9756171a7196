//! What the command line says of itself: help in docs/cli.md, completions, manual pages.

use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    process::{Command, Stdio},
};

use clap::CommandFactory as _;
use tidegate::cli::Args;

use crate::support::external::program;

const FILE: &str = "docs/cli.md";
/// What stands below is written by a test.
const MARK: &str = "<!-- Below is what --help says, written by tests/it/manual.rs. -->";
/// The heading of options that all verbs have.
const COMMON: &str = "Connection and output";

fn output(arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    let output = command.args(arguments).stdin(Stdio::null()).output().unwrap();
    let [said, complaints] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    (output.status.code(), said, complaints)
}

/// All commands that `--help` shows.
fn commands() -> Vec<clap::Command> {
    let mut all = Args::command().disable_help_subcommand(true);
    all.build();
    all.get_subcommands().filter(|command| !command.is_hide_set()).cloned().collect()
}

/// The help of a command, whatever the terminal and the environment.
fn help(command: clap::Command) -> String {
    let mut command = command.term_width(100).mut_args(|arg| arg.hide_env_values(true));
    let help = command.render_help().to_string();
    help.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

fn reference() -> String {
    let is_common = |arg: &clap::Arg| arg.get_help_heading() == Some(COMMON);
    let mut text = format!("{MARK}\n\n## Commands\n\n```text\n{}```\n", help(Args::command()));
    for command in commands() {
        let bare = command.clone().mut_args(|arg| {
            let common = is_common(&arg);
            arg.hide(common)
        });
        let _infallible = write!(text, "\n### {}\n\n```text\n{}```\n", command.get_name(), help(bare));
        if command.get_arguments().any(is_common) {
            text.push_str("\nAlso the [options of all verbs](#connection-and-output).\n");
        }
    }
    let commands = commands();
    let verb = commands.iter().find(|command| command.get_name() == "reload").expect("there is such a verb");
    let all = help(verb.clone());
    let (_, common) = all.split_once(&format!("{COMMON}:\n")).expect("it has these options");
    let _infallible = write!(text, "\n### {COMMON}\n\n```text\n{common}```\n");
    text
}

#[test]
fn the_reference_in_docs_is_what_help_says() {
    let text = fs::read_to_string(FILE).unwrap();
    let (by_hand, _) = text.split_once(MARK).expect("the mark is there");
    let wanted = format!("{by_hand}{}", reference());
    if text != wanted {
        fs::write(FILE, wanted).unwrap();
        panic!("{FILE} was not what --help says; it is now: look at the difference, and commit it");
    }
}

#[test]
fn the_exit_codes_are_the_same_in_docs_and_in_help() {
    let text = fs::read_to_string(FILE).unwrap();
    let (_, section) = text.split_once("\n## Exit codes\n").expect("there is a section");
    let section = section.split("\n## ").next().unwrap();
    let docs: Vec<&str> =
        section.lines().filter_map(|line| line.strip_prefix("| ")?.split(' ').next()).skip(2).collect();
    let (_, help) = output(&["--help"])
        .1
        .split_once("\nExit codes:\n")
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .unwrap();
    let said: Vec<&str> =
        help.lines().filter_map(|line| line.strip_prefix("  ")?.split(' ').next()).collect();
    assert_eq!(docs, said);
}

#[test]
fn bash_completes_verbs_and_options() {
    let (code, script, _) = output(&["completions", "bash"]);
    assert_eq!(code, Some(0));
    let ask = |words: &str, count: usize| {
        let mut bash = Command::new("bash").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let ask = format!(
            "{script}\nCOMP_WORDS=({words})\nCOMP_CWORD={count}\n_tidegate tidegate \"${{COMP_WORDS[{count}]}}\" \"${{COMP_WORDS[{}]}}\"\necho \"${{COMPREPLY[@]}}\"\n",
            count - 1
        );
        bash.stdin.take().unwrap().write_all(ask.as_bytes()).unwrap();
        String::from_utf8(bash.wait_with_output().unwrap().stdout).unwrap()
    };
    assert_eq!(ask("tidegate stat", 1), "status\n");
    assert_eq!(ask("tidegate start --time", 2), "--timeout\n");
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        let (code, script, _) = output(&["completions", shell]);
        assert!(code == Some(0) && script.contains("rollback"), "{shell}: {script}");
    }
}

#[test]
fn manual_pages_are_there_for_each_command() {
    let (code, page, _) = output(&["man"]);
    assert_eq!(code, Some(0));
    assert!(page.contains(".TH tidegate 1"), "{page}");
    let (code, page, _) = output(&["man", "start"]);
    assert_eq!(code, Some(0));
    assert!(page.contains(".TH tidegate-start 1") && page.contains("\\-\\-timeout"), "{page}");
    let (code, _, said) = output(&["man", "strat"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("there is no command `strat`, but run, "), "{said}");

    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("man1");
    let (code, _, said) = output(&["man", "--directory", pages.to_str().unwrap()]);
    assert_eq!(code, Some(0), "{said}");
    let names = commands().into_iter().map(|command| format!("tidegate-{}.1", command.get_name()));
    for name in names.chain(["tidegate.1".to_owned()]) {
        let page = fs::read(pages.join(&name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        // Those who have groff learn of wrong macros, too.
        let Some(groff) = program("groff") else { continue };
        let mut groff = Command::new(groff)
            .args(["-man", "-Tascii", "-ww", "-z"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        groff.stdin.take().unwrap().write_all(&page).unwrap();
        let said = groff.wait_with_output().unwrap().stderr;
        assert!(said.is_empty(), "{name}: {}", String::from_utf8_lossy(&said));
    }
}
