//! The machine that moves a service's traffic from stable to canary, or back.
//!
//! Pure: an event and the time come in, the next phase and the effects to carry out go out. Whoever
//! drives it (the controller, a test, a simulation) owns the clock and the effects.
//!
//! ```text
//! idle → preparing → stepping(i) ⇄ paused (by a person, a gate, a hook, a freeze, or without a verdict)
//!             │           └→ promoting → baking → succeeded
//!             └ blue/green ────┘
//! from every phase in between → rolling back → rolled back
//! ```
//!
//! Two rules hold it together. *Retreat needs no permission, advance needs agreement*: a decision
//! to roll back is looked at before anything else. And *what is published never exceeds what is
//! saved*: [`effect::in_safe_order`] alone decides which comes first.

pub mod check;
pub mod effect;
pub mod event;
pub mod forecast;
pub mod freeze;
pub mod machine;
pub mod note;
pub mod phase;
pub mod plan;
pub mod recording;
pub mod refused;
pub mod topic;
pub mod trial;

#[cfg(test)]
mod tests;
