//! The demo, as somebody sees it who tries the program for the first time.
//!
//! In a binary of its own, so that no other test runs meanwhile: the demo judges by what it measures, and on two cores
//! beside 500 tests it measures them.

use std::process::{Command, Stdio};

#[test]
fn the_demo_promotes_the_good_and_rolls_back_the_bad() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    let output = command.args(["demo", "--plain"]).stdin(Stdio::null()).output().unwrap();
    let (said, complaints) =
        (String::from_utf8_lossy(&output.stdout).into_owned(), String::from_utf8_lossy(&output.stderr));
    // What it came to goes before what led there, which is long, and may be cut where somebody else shows it.
    let ending = said.rsplit("\n\n").take(4).collect::<Vec<_>>();
    assert!(output.status.success(), "{}\n{ending:#?}\n{said}\n{complaints}", output.status);
    let summary = said.to_lowercase();
    for outcome in ["promoted", "rolled back"] {
        assert!(summary.contains(outcome), "`{outcome}` is not in\n{said}");
    }
}
