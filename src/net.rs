//! Sockets and time, as a worker needs them.

pub mod executor;
pub mod identity;
pub mod listen;
pub mod proxy_protocol;
pub mod socket;
pub mod splice;
pub mod timers;
pub mod tls;
