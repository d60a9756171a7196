//! Which backend of a service gets a request, and what its client is to remember.

use http::HeaderValue;

use super::{
    client::Client,
    context::{Context, View},
    error::ProxyError,
    sticky::{self, Cookie, Found},
};
use crate::routing::{
    condition::Head,
    snapshot::{ServiceId, Sticky},
    split::{Assignment, Reason, Split},
};

/// Chooses the backend: by what forces a role, else by what the client is recognised by, else by
/// chance. A client that should have a cookie and has none gets one.
///
/// A forced role that nobody holds is as good as none: a tester must not lose the service because a
/// rollout is over. The preview is different: whoever asks for the new version must not be shown the
/// old one in its place.
pub(super) fn assign(
    context: &Context,
    client: &Client,
    view: &View,
    service: ServiceId,
    head: &Head<'_>,
) -> Result<(Assignment, Option<HeaderValue>), ProxyError> {
    let split = view.snapshot.split(service);
    let service = view.snapshot.topology().service(service);
    if let Some(overrides) = &service.overrides
        && let Some((role, reason)) = overrides.decide(head, client.address(head.headers))
    {
        match split.by_role(role, reason) {
            Some(assignment) => return Ok((assignment, None)),
            None if reason == Reason::Preview => return Err(ProxyError::NoCanary),
            None => {}
        }
    }
    let by_chance = || split.by_chance(context.random());
    let assignment = match &service.sticky {
        None => by_chance(),
        Some(Sticky::Cookie(cookie)) => {
            let cookie = Cookie { sticky: cookie, signer: service.cookie_signer.as_deref() };
            return Ok(by_cookie(context, split, cookie, head));
        }
        Some(Sticky::Header(name)) => match head.headers.get(name) {
            Some(key) if !key.is_empty() => split.by_key(key.as_bytes()),
            _ => by_chance(),
        },
        Some(Sticky::ClientAddress) => split.by_key(&sticky::address_key(client.address(head.headers))),
    };
    Ok((assignment, None))
}

fn by_cookie(
    context: &Context,
    split: &Split,
    cookie: Cookie<'_>,
    head: &Head<'_>,
) -> (Assignment, Option<HeaderValue>) {
    match cookie.find(head.headers) {
        Some(Found { key, is_old: false }) => (split.by_key(key), None),
        Some(Found { key, is_old: true }) => (split.by_key(key), cookie.set(key)),
        None => {
            let key = sticky::key(context.random());
            (split.by_key(&key), cookie.set(&key))
        }
    }
}
