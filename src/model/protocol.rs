//! What is spoken to an endpoint.

/// What is spoken to an endpoint, with or without TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Protocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2: agreed on in the handshake where there is TLS (`h2`), else known to be spoken beforehand
    /// (`h2c`).
    Http2,
}
