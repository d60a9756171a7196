//! Evidence in, verdict out: is the canary worse than stable, and how sure is that?
//!
//! Pure: counts come in as arguments, once a tick, and a [`verdict::Verdict`] with its numbers goes
//! out. No clock, no I/O, no randomness, so that a decision can be tested, simulated, replayed and
//! explained.

pub mod settings;
pub mod verdict;
