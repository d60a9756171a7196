//! Sockets and time, as a worker needs them.

pub mod executor;
pub mod listen;
pub mod socket;
pub mod splice;
pub mod timers;
