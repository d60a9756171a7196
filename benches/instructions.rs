//! The pure parts in instructions, which do not depend on who else uses the machine: two builds can
//! be compared anywhere.
//!
//! Each case runs in a process of its own under valgrind's callgrind, which counts only inside
//! [`counted_by_callgrind`]. Needs `valgrind` and nothing else. A dependency that did this would
//! bring a runner that has to be installed in the same version; this is a page.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "figures are what a bench is for")]

mod cases;

use std::{
    env,
    io::{self, ErrorKind},
    process::{Command, ExitCode},
};

use cases::{Case, Run};

/// The argument by which this program, inside valgrind, knows the case that it is to run.
const RUN: &str = "--run-case";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let [RUN, name] = &*arguments.iter().map(String::as_str).collect::<Vec<_>>() {
        let case =
            cases::ALL.iter().find(|case| case.name == *name).expect("the parent asks for what there is");
        run(case);
        return ExitCode::SUCCESS;
    }
    let filters: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let wanted =
        |case: &&Case| filters.is_empty() || filters.iter().any(|filter| case.name.contains(filter.as_str()));
    let mut wanted = cases::ALL.iter().filter(wanted);
    // `cargo bench` says so; without it (`cargo test --benches`) it is enough that every case runs.
    if !arguments.iter().any(|argument| argument == "--bench") {
        wanted.for_each(run);
        return ExitCode::SUCCESS;
    }
    match wanted.try_for_each(report) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == ErrorKind::NotFound => missing(),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Says that nothing was measured; a failure only where somebody relies on it.
fn missing() -> ExitCode {
    eprintln!("SKIPPED: there is no `valgrind`, so no instruction was counted; `apt install valgrind`");
    if env::var_os("CI").is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn run(case: &Case) {
    let mut operation = (case.set_up)();
    // What is made at first use is made before anything is counted.
    operation(1);
    counted_by_callgrind(&mut operation, case.repetitions);
}

/// Callgrind counts from entry to exit, and knows the function by its name.
#[inline(never)]
fn counted_by_callgrind(operation: &mut Run, times: u64) {
    operation(times);
}

fn report(case: &Case) -> io::Result<()> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .args(["--collect-atstart=no", "--toggle-collect=*counted_by_callgrind*"])
        .arg(env::current_exe()?)
        .args([RUN, case.name])
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    let collected =
        said.lines().find_map(|line| line.split_once("Collected :")?.1.trim().parse::<u64>().ok());
    match collected {
        Some(instructions) if output.status.success() && instructions > 0 => {
            let each = instructions / case.repetitions;
            println!("{:24} {each:>12} instructions", case.name);
            Ok(())
        }
        _ => Err(io::Error::other(format!("{}: valgrind counted nothing:\n{said}", case.name))),
    }
}
