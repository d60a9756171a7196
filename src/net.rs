//! Sockets and time, as a worker needs them.

pub mod identity;
pub mod listen;
pub mod proxy_protocol;
pub mod socket;
pub mod timers;
pub mod tls;
