//! The way to a backend: connections, and who may use one next. Everything here belongs to one
//! worker and never leaves its thread.

pub mod allowance;
pub mod backend;
pub mod balance;
pub mod connect;
pub mod connection;
pub mod endpoint;
pub mod health;
pub mod pool;

use http_body::Body;

/// A request's body as connections need it. `Into` is what hyper asks for.
pub trait Payload:
    Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Unpin + 'static
{
}

impl<B> Payload for B where
    B: Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Unpin + 'static
{
}
