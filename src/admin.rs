//! Where people, pipelines and Prometheus come in: JSON over HTTP on a listener of its own.
//!
//! `/api/v1` reads services and moves their traffic, `/metrics` is for Prometheus, `/livez` and
//! `/readyz` are for whoever runs the process. `guard` keeps web pages out, `access` finds out who asks,
//! and each handler says what that needs.

pub mod access;
mod actor;
mod api;
pub mod audit;
pub mod client;
pub mod connection;
mod failures;
mod finish;
#[cfg(fuzzing)]
pub mod fuzzing;
mod guard;
mod history;
pub(crate) mod idempotency;
pub mod problem;
pub mod readiness;
mod refusals;
pub mod reload;
mod revision;
mod room;
pub mod server;
pub mod token;
mod watch;
