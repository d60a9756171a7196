//! One request's way through a worker: route, assign, forward, record. Begin with
//! [`exchange::exchange`], which reads from top to bottom as a request goes.

mod admission;
mod assign;
pub mod attempt;
pub mod body;
mod budget;
pub mod client;
pub mod context;
pub mod error;
pub mod exchange;
mod forwarded;
#[cfg(fuzzing)]
pub mod fuzzing;
mod grpc;
pub mod hash_key;
pub mod headers;
mod kept;
mod log_entry;
mod mirror;
mod names;
mod over_h2;
mod pair;
mod rate;
pub mod redirect;
pub mod reply;
mod retry;
mod slow;
pub mod sticky;
mod trace;
mod tunnel;
pub mod upgrade;
mod upload;
mod way;
mod websocket;
