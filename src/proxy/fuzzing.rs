//! The door for `fuzz/`: what parses a client's bytes here is nobody else's business, so it is open
//! only to a build with `--cfg fuzzing`. Calls, and nothing else: what must hold is said there.

use std::{num::NonZeroU16, time::Duration};

use http::{HeaderMap, HeaderValue, request, response};

use super::{
    client::Client,
    error::ProxyError,
    forwarded, grpc, headers, names, redirect,
    sticky::{self, Cookie},
};
use crate::{
    model::{failure::GrpcStatuses, outcome::Outcome},
    routing::{
        edge::Edge,
        snapshot::{Endpoint, StickyCookie},
    },
    tls::signing::Signer,
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

/// Gives a request its id.
pub fn identify(headers: &mut HeaderMap, client: &Client, random: u128) {
    forwarded::identify(headers, client, || random);
}

/// Makes a request ready for a backend.
pub fn prepare_request(parts: &mut request::Parts, client: &Client, endpoint: &Endpoint) {
    let _upgrade = headers::prepare_request(parts, client, endpoint);
}

/// Makes a response ready for the client.
pub fn prepare_response(head: &mut response::Parts) {
    headers::prepare_response(head);
}

/// Makes trailers ready to be passed on.
pub fn prepare_trailers(trailers: &mut HeaderMap) {
    headers::prepare_trailers(trailers);
}

/// Where a listener sends a request that only sends clients to HTTPS.
///
/// # Errors
/// For a request that is refused.
pub fn to_https(parts: &request::Parts, port: NonZeroU16) -> Result<HeaderValue, ProxyError> {
    redirect::location(parts, port)
}

/// What `grpc-timeout` asks for.
pub fn grpc_timeout(value: &[u8]) -> Option<Duration> {
    grpc::parse_timeout(value)
}

/// The `grpc-timeout` for a time that is left.
pub fn grpc_timeout_field(left: Duration) -> HeaderValue {
    grpc::format_timeout(left)
}

/// How a call ended, as its fields say, where nobody has named other statuses.
pub fn grpc_outcome(fields: &HeaderMap) -> Outcome {
    grpc::outcome(fields, GrpcStatuses::default())
}

/// The number that the client's cookie holds, signed if there is a signer.
pub fn find_key<'h>(
    headers: &'h HeaderMap,
    sticky: &StickyCookie,
    signer: Option<&Signer>,
) -> Option<&'h [u8]> {
    Cookie { sticky, signer }.find(headers).map(|found| &found.key[..])
}

/// The `Set-Cookie` for a number, likewise.
pub fn set_cookie(random: u64, sticky: &StickyCookie, signer: Option<&Signer>) -> Option<HeaderValue> {
    Cookie { sticky, signer }.set(&sticky::key(random))
}
