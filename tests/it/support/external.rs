//! Programs that a test needs and a machine may lack.

use std::{env, path::PathBuf};

/// Where a program is. Where it is missing, the test is skipped at a desk and fails in CI.
///
/// # Panics
/// When it is missing and `CI` is set.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    // Debian has daemons in a directory that only root looks in.
    let folders = env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    let found = folders.map(|folder| folder.join(name)).find(|file| file.is_file());
    if found.is_none() {
        missing(name);
    }
    found
}

/// Says that a test is skipped.
///
/// # Panics
/// When `CI` is set.
#[expect(clippy::print_stderr, reason = "a skipped test must be seen to be skipped")]
pub fn missing(name: &str) {
    assert!(env::var_os("CI").is_none(), "{name} is missing, and CI has to have it");
    eprintln!("SKIPPED: {name} is not installed");
}
