//! The only reader of the operating system's clocks, so that everything else takes time as an
//! argument and can be tested, simulated and replayed.

#[cfg(feature = "failpoints")]
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::model::time::Timestamp;

/// The wall clock, as milliseconds since the Unix epoch.
///
/// A clock that stands before 1970 reads as the epoch itself.
pub fn now() -> Timestamp {
    Timestamp::from_millis(u64::try_from(wall().as_millis()).unwrap_or(u64::MAX))
}

/// The wall clock, as nanoseconds since the Unix epoch.
pub fn nanos() -> u64 {
    u64::try_from(wall().as_nanos()).unwrap_or(u64::MAX)
}

#[inline]
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
fn wall() -> Duration {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    #[cfg(feature = "failpoints")]
    let since = since + Duration::from_millis(AHEAD.load(Ordering::Relaxed));
    since
}

/// By how many milliseconds a test has put the wall clock ahead.
#[cfg(feature = "failpoints")]
static AHEAD: AtomicU64 = AtomicU64::new(0);

/// Puts the wall clock of this process ahead, as if the machine had slept; only for tests, as all that
/// `failpoints` brings.
#[cfg(feature = "failpoints")]
pub fn put_ahead(by: Duration) {
    AHEAD.fetch_add(u64::try_from(by.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
}

/// The monotonic clock, for measuring how long something took.
#[inline]
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub fn monotonic() -> Instant {
    Instant::now()
}
