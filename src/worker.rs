//! The data plane's threads. A worker is an OS thread with a single-threaded runtime: it accepts its
//! own connections, keeps its own pools and counts in its own cells. Workers share nothing but the
//! snapshot that they read, and what TLS needs in a handshake (certificates, the keys of tickets), so no
//! request ever waits for, or wakes, another thread.

pub mod accept;
pub mod connection;
pub mod drain;
mod flush;
pub mod handle;
pub mod handshake;
mod listeners;
mod room;
mod spread;
mod stalled;
pub mod stream;
