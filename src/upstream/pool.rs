//! What an exchange holds of an endpoint's connections: one of HTTP/1.1 to itself, or a share in one
//! of HTTP/2.
//!
//! The idle connections of HTTP/1.1 are kept by [`super::endpoint`], the shared ones of HTTP/2 here.

pub mod h2;

use std::{rc::Rc, time::Instant};

use crate::net::splice::Ends;

use super::{Payload, connection::Connection, endpoint::Endpoint};

/// What an exchange holds of an endpoint's connections.
#[derive(Debug)]
pub enum Held<B: Payload> {
    /// A connection, which moves only while its holder drives it.
    Http1(Box<Connection<B>>),
    /// A stream of a shared connection, which moves by itself.
    Http2(h2::Lease<B>),
}

impl<B: Payload> Held<B> {
    /// The pipes at its socket, where a body may go through one.
    pub fn ends(&self) -> Option<&Rc<Ends>> {
        match self {
            Self::Http1(connection) => connection.ends(),
            Self::Http2(_) => None,
        }
    }

    /// Gives it back once the response is complete.
    pub fn release(self, endpoint: &Endpoint<B>, now: Instant) {
        match self {
            Self::Http1(connection) => endpoint.put_idle(connection, now),
            Self::Http2(lease) => drop(lease),
        }
    }
}
