//! The way to a backend: connections, and who may use one next. Everything here belongs to one
//! worker and never leaves its thread.

pub mod allowance;
pub mod backend;
pub mod balance;
pub mod connect;
pub mod connection;
pub mod endpoint;
pub mod health;
