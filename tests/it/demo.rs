//! The demo, as somebody sees it who tries the program for the first time.

use std::process::{Command, Stdio};

#[test]
fn the_demo_promotes_the_good_and_rolls_back_the_bad() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    let output = command.args(["demo", "--plain"]).stdin(Stdio::null()).output().unwrap();
    let (said, complaints) =
        (String::from_utf8_lossy(&output.stdout).into_owned(), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{said}\n{complaints}", output.status);
    let summary = said.to_lowercase();
    for outcome in ["promoted", "rolled back"] {
        assert!(summary.contains(outcome), "`{outcome}` is not in\n{said}");
    }
}
