//! Lets in whoever may come in.
//!
//! Everything but what is open needs an actor with at least the scope `read`, and what is not safe at
//! least `operate`: a route that is added is shut until somebody thinks of it.

use std::{net::SocketAddr, sync::Arc};

use arc_swap::ArcSwap;
use axum::{
    extract::{FromRef, FromRequestParts, Request, State},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts};
use subtle::{Choice, ConditionallySelectable as _, ConstantTimeEq as _};
use tokio::sync::Semaphore;

use super::{
    actor::{Actor, Certificate, Peer, Who},
    failures::Failures,
    problem::Problem,
    refusals::Refusals,
    token::Token,
};
use crate::{
    clock,
    config::{Admin, Credential, Proof, Scope},
    tls::server::ClientAuth,
};

/// Who may come in, as it is configured now. Clones are the same.
#[derive(Debug, Clone)]
pub struct Access(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    config: ArcSwap<Admin>,
    failures: Failures,
    refusals: Refusals,
    /// Whoever writes to the audit's file has it: a disk that hangs holds up one thread, not one for each write.
    pen: Arc<Semaphore>,
}

impl Access {
    /// As configured.
    ///
    /// # Errors
    /// When its metrics are registered already.
    pub fn new(config: Admin, registry: &prometheus::Registry) -> prometheus::Result<Self> {
        let refusals = Refusals::register(registry)?;
        let (config, pen) = (ArcSwap::from_pointee(config), Arc::new(Semaphore::new(1)));
        Ok(Self(Arc::new(Shared { config, failures: Failures::default(), refusals, pen })))
    }

    /// From the next request on, as configured anew.
    pub fn take_up(&self, config: Admin) {
        self.0.config.store(Arc::new(config));
    }

    /// As it is configured now.
    pub(super) fn config(&self) -> Arc<Admin> {
        self.0.config.load_full()
    }

    /// What the audit's file is written with, by one at a time.
    pub(super) fn pen(&self) -> &Arc<Semaphore> {
        &self.0.pen
    }

    /// Counts who is turned away.
    pub(super) fn refusals(&self) -> &Refusals {
        &self.0.refusals
    }
}

/// What an actor was recognised by, for what lasts longer than a request.
#[derive(Debug)]
pub(super) struct Shown {
    access: Access,
    actor: Actor,
    peer: Peer,
    headers: HeaderMap,
    /// As it was configured when it was last looked at.
    config: Option<Arc<Admin>>,
}

impl Shown {
    /// Whether the same would be recognised by it now, and may do the same.
    pub(super) fn is_valid(&mut self) -> bool {
        let config = self.access.config();
        if self.config.as_ref().is_some_and(|known| Arc::ptr_eq(known, &config)) {
            return true;
        }
        let is_valid = recognise(&config, &self.peer, &self.headers).is_ok_and(|actor| actor == self.actor);
        self.config = Some(config).filter(|_| is_valid);
        is_valid
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Shown
where
    Access: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let actor = Actor::from_request_parts(parts, state).await?;
        let peer = parts.extensions.get::<Peer>().cloned().ok_or_else(nobody)?;
        // Nothing else of the head is looked at.
        let field = parts.headers.get(header::AUTHORIZATION).cloned();
        let headers = field.map(|field| (header::AUTHORIZATION, field)).into_iter().collect();
        Ok(Self { access: Access::from_ref(state), actor, peer, headers, config: None })
    }
}

/// Why nobody was recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unknown {
    /// Nothing was shown.
    Nothing,
    /// Something was shown that is not known.
    Wrong,
}

/// The middleware that finds out who asks.
pub(super) async fn authenticate(State(access): State<Access>, mut request: Request, next: Next) -> Response {
    let config = access.config();
    if is_open(&config, request.uri().path()) {
        return next.run(request).await;
    }
    let Some(peer) = request.extensions().get::<Peer>().cloned() else {
        return nobody().into_response();
    };
    match recognise(&config, &peer, request.headers()) {
        Ok(actor) => {
            request.extensions_mut().insert(actor);
            next.run(request).await
        }
        Err(unknown) => refuse(&access, peer.address, unknown),
    }
}

/// The middleware that turns away those who may not do what they ask. The audit sees them, too.
pub(super) async fn authorise(request: Request, next: Next) -> Response {
    if let Some(actor) = request.extensions().get::<Actor>() {
        let scope = if request.method().is_safe() { Scope::Read } else { Scope::Operate };
        let metrics = request.uri().path() == "/metrics";
        let may = actor.needs(scope).and_then(|()| if metrics { actor.needs_all_services() } else { Ok(()) });
        if let Err(problem) = may {
            return problem.into_response();
        }
    }
    next.run(request).await
}

fn nobody() -> Problem {
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "it is not known who asks")
}

fn is_open(config: &Admin, path: &str) -> bool {
    match path {
        "/livez" => config.open.livez,
        "/readyz" => config.open.readyz,
        "/metrics" => config.open.metrics,
        _ => false,
    }
}

/// Whoever it is.
fn recognise(config: &Admin, peer: &Peer, headers: &HeaderMap) -> Result<Actor, Unknown> {
    let certificate = peer.certificate.as_deref();
    let Some(credentials) = &config.credentials else {
        // Whom the listener's authorities know may come in; where nobody is asked, anybody may.
        let asks = config.tls.as_ref().is_some_and(|tls| tls.settings.client_auth != ClientAuth::Off);
        return match certificate {
            Some(certificate) => Ok(Actor::with_all(Who::Subject(certificate.subject.clone()))),
            None if asks && !config.address.ip().is_loopback() => Err(Unknown::Nothing),
            None => Ok(Actor::with_all(Who::Peer(peer.address))),
        };
    };
    let found = match headers.get(header::AUTHORIZATION) {
        // Also where there is a certificate: who shows a token means to be known by it.
        Some(field) => {
            let token = bearer(field).and_then(Token::parse).ok_or(Unknown::Wrong)?;
            by_token(&credentials.list, &token)
        }
        None => by_certificate(&credentials.list, certificate.ok_or(Unknown::Nothing)?),
    };
    found.map(Actor::of).ok_or(Unknown::Wrong)
}

/// The token of `Authorization: Bearer TOKEN`.
fn bearer(field: &HeaderValue) -> Option<&str> {
    let (scheme, token) = field.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// All are compared, each to the end, so that the time says nothing of which are nearly right.
fn by_token<'c>(list: &'c [Credential], token: &Token) -> Option<&'c Credential> {
    let digest = token.sha256();
    let (mut found, mut at) = (Choice::from(0), 0);
    for (index, credential) in (0u64..).zip(list) {
        let Proof::Token(known) = &credential.proof else { continue };
        let same = known.ct_eq(&digest);
        at.conditional_assign(&index, same);
        found |= same;
    }
    let index = usize::try_from(at).ok().filter(|_| bool::from(found));
    index.and_then(|index| list.get(index))
}

fn by_certificate<'c>(list: &'c [Credential], certificate: &Certificate) -> Option<&'c Credential> {
    list.iter().find(|credential| match &credential.proof {
        Proof::Certificate(name) => certificate.names.contains(name),
        Proof::Token(_) => false,
    })
}

/// Says no, more and more seldom in words: what is logged and looked at is bounded for each address. The
/// right token is always heard, because a rollback may not have to wait for somebody else's failures.
fn refuse(access: &Access, address: SocketAddr, unknown: Unknown) -> Response {
    if let Err(wait) = access.0.failures.count(address.ip(), clock::monotonic()) {
        access.0.refusals.count("too_many_failures");
        let detail = "too many requests from this address did not say who they come from";
        let mut response = Problem::new(StatusCode::TOO_MANY_REQUESTS, detail).into_response();
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs() + 1));
        return response;
    }
    let (reason, detail, challenge) = match unknown {
        Unknown::Nothing => (
            "no_credentials",
            "say who you are: `Authorization: Bearer TOKEN`, or a client certificate",
            "Bearer realm=\"tidegate\"",
        ),
        Unknown::Wrong => (
            "wrong_credentials",
            "this token or certificate is not known here",
            "Bearer realm=\"tidegate\", error=\"invalid_token\"",
        ),
    };
    access.0.refusals.count(reason);
    tracing::warn!(target: "audit", peer = %address, reason, "a request to the admin side was refused");
    let mut response = Problem::new(StatusCode::UNAUTHORIZED, detail).into_response();
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_found_wherever_it_stands() {
        let tokens: Vec<_> = (0..5).map(|_| Token::new().unwrap()).collect();
        let credential = |(index, token): (usize, &Token)| Credential {
            name: index.to_string(),
            proof: Proof::Token(token.sha256()),
            scope: Scope::Read,
            services: None,
        };
        let list: Vec<_> = tokens.iter().enumerate().map(credential).collect();
        for (index, token) in tokens.iter().enumerate() {
            assert_eq!(by_token(&list, token).unwrap().name, index.to_string());
        }
        assert_eq!(by_token(&list, &Token::new().unwrap()), None);
        assert_eq!(by_token(&[], &tokens[0]), None);
    }

    #[test]
    fn the_scheme_has_any_case_and_there_is_no_other() {
        let token = |text: &'static str| bearer(&HeaderValue::from_static(text)).map(str::to_owned);
        assert_eq!(token("Bearer abc").as_deref(), Some("abc"));
        assert_eq!(token("bearer  abc ").as_deref(), Some("abc"));
        assert_eq!(token("Basic abc"), None);
        assert_eq!(token("Bearer"), None);
    }
}
