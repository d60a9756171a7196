//! Waiting for something that will happen, without guessing when.

use std::{env, fmt::Debug, thread, time::Duration};

use tidegate::clock;

/// How long a test waits for what must happen: 10 s, or `TIDEGATE_TEST_PATIENCE` seconds on a slow
/// machine. Only a test that fails ever waits so long.
pub fn patience() -> Duration {
    let seconds = env::var("TIDEGATE_TEST_PATIENCE").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(10))
}

/// Looks again and again until what it sees will do, and returns that.
///
/// # Panics
/// When patience is at its end; says what was seen last.
#[track_caller]
pub fn eventually<T: Debug>(mut look: impl FnMut() -> T, will_do: impl Fn(&T) -> bool) -> T {
    let begin = clock::monotonic();
    loop {
        let seen = look();
        if will_do(&seen) {
            return seen;
        }
        assert!(begin.elapsed() < patience(), "it did not happen; last seen: {seen:#?}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// The same for a single value that is awaited.
#[track_caller]
pub fn eventually_is<T: Debug + PartialEq>(wanted: T, look: impl FnMut() -> T) {
    eventually(look, |seen| *seen == wanted);
}
