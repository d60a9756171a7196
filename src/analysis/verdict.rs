//! What analysis concludes: a decision, and the numbers that it rests on.

use serde::Serialize;

/// What the evidence of a tick calls for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// Go on as before: nothing is wrong, and not enough is known to go further.
    Continue,
    /// Enough is known to leave the step as soon as its hold is over.
    Advance,
    /// The canary is worse than it may be.
    RollBack,
    /// Nothing can be concluded now: no traffic, or both arms in trouble. Spends nothing.
    Hold,
}
