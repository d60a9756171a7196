//! A wall clock that goes ahead: the machine slept, or somebody set it.
//!
//! How long a phase lasts is told by the wall clock, so that it outlives the process. What nobody watched counts for
//! none of it, as after a restart.

use std::time::{Duration, Instant};

use super::service::ServiceTask;
use crate::{
    clock,
    model::{time::Timestamp, units::format_duration},
    store::record::Kind,
};

/// What is less is a clock that is put right gently, or what passes between reading the one and the other.
const LEAST: Duration = Duration::from_secs(1);

/// The clock on the wall, and one that stands still while the machine sleeps and that nobody sets.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clocks {
    wall: Timestamp,
    steady: Instant,
}

impl Clocks {
    pub(super) fn read() -> Self {
        Self { wall: clock::now(), steady: clock::monotonic() }
    }

    /// How much more has passed on the wall since an earlier look, if that is worth a word.
    fn ahead_since(self, earlier: Self) -> Option<Duration> {
        let passed = self.steady.saturating_duration_since(earlier.steady);
        let ahead = self.wall.since(earlier.wall).saturating_sub(passed);
        (ahead >= LEAST).then_some(ahead)
    }
}

impl ServiceTask {
    /// A tick: if the wall clock has gone ahead, what is measured by it began so much later.
    pub(super) fn look_at_the_clock(&mut self) {
        let now = Clocks::read();
        let Some(ahead) = now.ahead_since(std::mem::replace(&mut self.clocks, now)) else { return };
        let phases = self.record.as_mut().map(|record| &mut record.phase).into_iter();
        let mut has_moved = false;
        for phase in phases.chain(self.journal.advances_to()) {
            has_moved |= phase.later(ahead, now.wall);
        }
        if has_moved {
            // To the nearest second: the wall clock is read in whole milliseconds.
            let seconds = (ahead + Duration::from_millis(500)).as_secs();
            let ahead = format_duration(Duration::from_secs(seconds));
            let what = format!("the clock went ahead by {ahead}, which counts for no hold and no bake");
            self.note(Kind::Transition, what);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_steady_clock_does_not_know_of_is_ahead() {
        let before = Clocks { wall: Timestamp::from_millis(1_000_000), steady: clock::monotonic() };
        let ahead = |wall: i64, steady: u64| {
            let wall = Timestamp::from_millis(1_000_000_u64.saturating_add_signed(wall));
            Clocks { wall, steady: before.steady + Duration::from_millis(steady) }.ahead_since(before)
        };
        assert_eq!(ahead(3_601_000, 1000), Some(Duration::from_secs(3600)));
        assert_eq!(ahead(3_600_000, 3_600_000), None, "a tick that was late");
        assert_eq!(ahead(1_500, 1_000), None, "put right gently");
        assert_eq!(ahead(-5_000, 1_000), None, "back");
    }
}
