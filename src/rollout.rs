//! The machine that moves a service's traffic from stable to canary, or back.
//!
//! Pure: an event and the time come in, the next phase and the effects to carry out go out. Whoever
//! drives it (the controller, a test, a simulation) owns the clock and the effects.

pub mod plan;
