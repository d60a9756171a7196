//! Counts that the data plane writes and the control half reads.
//!
//! Every counter has one writer, the worker that owns it, so counting is a plain load and store:
//! no lock, no read-modify-write, no cache line that two workers write. The control half reads the
//! same memory whenever it likes and sums over the workers; a scrape never stops one. The exception is
//! [`health`], which all write, but seldom.

mod by_service;
pub mod cells;
pub mod endpoints;
pub mod exposition;
pub mod health;
pub mod health_exposition;
pub mod in_flight;
pub mod in_flight_exposition;
pub mod ledger;
pub mod local_reason;
pub mod mirror;
pub mod mirror_exposition;
pub mod reader;
pub mod retries;
pub mod users;
