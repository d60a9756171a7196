//! What one listener lets in, and whose word it takes: settings as values, no decisions.

use std::num::NonZeroU32;

use http::HeaderName;
use ipnet::IpNet;

/// What becomes of header names with an underscore.
///
/// CGI and its heirs (WSGI, PHP, Rack) give an application `X_Forwarded_For` and `X-Forwarded-For`
/// under one name, so that a client could write what only a proxy may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Underscores {
    /// Those that an application could take for a field that a proxy sets or that frames the message
    /// are dropped; others pass.
    #[default]
    DropAliases,
    /// All are dropped, as nginx does.
    DropHeader,
    /// A request that has one is refused.
    RejectRequest,
    /// All pass.
    Allow,
}

/// What one listener lets in, and whose word it takes.
#[derive(Debug, Clone, PartialEq)]
pub struct Edge {
    /// Peers that may say who the client is (default none).
    pub trusted_proxies: Vec<IpNet>,
    /// What becomes of header names with an underscore (default: aliases are dropped).
    pub underscores: Underscores,
    /// The field that carries each request's id, if requests get one (default no).
    pub request_id: Option<HeaderName>,
    /// Bytes of a request's target (default 16 KiB).
    pub max_uri_length: usize,
    /// Bytes of a request's head (default 32 KiB).
    pub max_header_bytes: usize,
    /// Fields of a request's head (default 100).
    pub max_headers: usize,
    /// Connections open at a time, over all workers (default 50,000).
    pub max_connections: NonZeroU32,
    /// Connections that one client address may have open at a time (default no limit).
    pub max_connections_per_client: Option<NonZeroU32>,
    /// Requests after which a connection is ended (default no limit).
    pub max_requests_per_connection: Option<NonZeroU32>,
}

impl Default for Edge {
    fn default() -> Self {
        Self {
            trusted_proxies: Vec::new(),
            underscores: Underscores::default(),
            request_id: None,
            max_uri_length: 16 * 1024,
            max_header_bytes: 32 * 1024,
            max_headers: 100,
            max_connections: NonZeroU32::new(50_000).expect("it is not zero"),
            max_connections_per_client: None,
            max_requests_per_connection: None,
        }
    }
}
