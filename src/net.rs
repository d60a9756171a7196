//! Sockets and time, as a worker needs them.

pub mod listen;
pub mod socket;
pub mod splice;
pub mod timers;
