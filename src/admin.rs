//! Where people, pipelines and Prometheus come in: JSON over HTTP on a listener of its own.
//!
//! `/api/v1` reads services and moves their traffic, `/metrics` is for Prometheus, `/livez` and
//! `/readyz` are for whoever runs the process. There is no authentication yet, which is why the
//! configuration warns about an address that is not loopback; and why a write that a browser sends on
//! behalf of a web page is refused.

mod api;
pub mod client;
#[cfg(fuzzing)]
pub mod fuzzing;
mod guard;
pub mod problem;
pub mod readiness;
pub mod reload;
pub mod server;
