//! Places at which a test may stop the process and kill it.
//!
//! One stands before and after whatever a restart has to make sense of: each write, sync and rename of the
//! store, each effect of a rollout, each answer. They are there with the feature `failpoints` alone, which tests
//! and benches turn on (`[dev-dependencies]` of Cargo.toml) and a program that is built to be used never has:
//! without it the functions here are empty. `tests/it/injection.rs` kills a process at each of these places.
//!
//! Not the `fail` crate, which gives each place a script of its own: here a test sees all of them, in the order in
//! which they are come to, through one function.

use std::path::Path;
#[cfg(feature = "failpoints")]
use std::sync::OnceLock;

/// Where a process has come to.
#[cfg(feature = "failpoints")]
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// What has just been done, or is about to be.
    pub name: &'static str,
    /// A file of which everything from a byte on has been written and not synced: if the machine went down now,
    /// any part of that could be missing.
    pub unsynced: Option<(&'a Path, u64)>,
}

/// What is called at each place.
#[cfg(feature = "failpoints")]
type Watch = Box<dyn Fn(Place<'_>) + Send + Sync>;

#[cfg(feature = "failpoints")]
static WATCH: OnceLock<Watch> = OnceLock::new();

/// Has each place of this process call `watch` from now on, in whichever thread comes there. It goes on when that
/// returns.
///
/// # Panics
/// When somebody watches already.
#[cfg(feature = "failpoints")]
pub fn watch(watch: impl Fn(Place<'_>) + Send + Sync + 'static) {
    assert!(WATCH.set(Box::new(watch)).is_ok(), "somebody watches already");
}

/// The process comes to a place.
#[inline]
pub(crate) fn pass(name: &'static str) {
    come_to(name, None);
}

/// The same where a file has been written from a byte on, and not synced.
#[inline]
pub(crate) fn pass_unsynced(name: &'static str, file: &Path, from: u64) {
    come_to(name, Some((file, from)));
}

#[cfg(feature = "failpoints")]
fn come_to(name: &'static str, unsynced: Option<(&Path, u64)>) {
    if let Some(watch) = WATCH.get() {
        watch(Place { name, unsynced });
    }
}

#[cfg(not(feature = "failpoints"))]
#[inline]
fn come_to(_: &'static str, _: Option<(&Path, u64)>) {}
