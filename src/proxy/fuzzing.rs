//! The door for `fuzz/`: what parses a client's bytes here is nobody else's business, so it is open
//! only to a build with `--cfg fuzzing`. Calls, and nothing else: what must hold is said there.

use http::{HeaderMap, HeaderValue, request, response};

use super::{client::Client, error::ProxyError, headers, names, sticky};
use crate::routing::{
    edge::Edge,
    snapshot::{Endpoint, StickyCookie},
};

/// What an exchange asks of a request's head before it is routed: the authority to route by.
///
/// # Errors
/// For a head that is refused.
pub fn accept<'p>(parts: &'p mut request::Parts, edge: &Edge) -> Result<&'p str, ProxyError> {
    headers::check(parts, edge)?;
    names::screen(&mut parts.headers, edge)?;
    headers::authority(parts)
}

/// Makes a request ready for a backend.
pub fn prepare_request(parts: &mut request::Parts, client: &Client, endpoint: &Endpoint) {
    let _upgrade = headers::prepare_request(parts, client, endpoint);
}

/// Makes a response ready for the client.
pub fn prepare_response(head: &mut response::Parts) {
    headers::prepare_response(head);
}

/// The number that the client's cookie holds.
pub fn find_key<'h>(headers: &'h HeaderMap, sticky: &StickyCookie) -> Option<&'h [u8]> {
    sticky::find(headers, sticky)
}

/// The `Set-Cookie` for a number.
pub fn set_cookie(random: u64, sticky: &StickyCookie) -> Option<HeaderValue> {
    sticky::set_cookie(sticky::key(random), sticky)
}
