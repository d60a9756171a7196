//! One request's way through a worker: route, assign, forward, record. Begin with
//! [`exchange::exchange`], which reads from top to bottom as a request goes.

pub mod attempt;
pub mod body;
pub mod client;
pub mod context;
pub mod error;
pub mod exchange;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod headers;
pub mod redirect;
pub mod reply;
pub mod sticky;
