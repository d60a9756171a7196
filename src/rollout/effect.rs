//! What the driver has to carry out, in order, and the one rule of that order: a crash between two
//! effects leaves the canary less traffic than recorded, never more.
//!
//! An effect that fails stops the ones after it when advancing; when retreating, the driver goes on
//! and retries the save. Telling people is no effect: that is the transition's note.

use std::cmp::Ordering;

use super::phase::Exposure;

/// Something to carry out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Save the transition's phase, and return only when it would survive a crash.
    Save,
    /// Let the data plane split traffic like this.
    Publish(Exposure),
}

/// The effects of going from one exposure to another: advancing saves first and publishes after,
/// retreating publishes first and saves after; without a change there is nothing to publish.
pub fn in_safe_order(from: Exposure, to: Exposure) -> Vec<Effect> {
    match to.cmp(&from) {
        Ordering::Greater => vec![Effect::Save, Effect::Publish(to)],
        Ordering::Less => vec![Effect::Publish(to), Effect::Save],
        Ordering::Equal => vec![Effect::Save],
    }
}
