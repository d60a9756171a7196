//! Who asks, and what they may.

use std::{fmt, net::SocketAddr, sync::Arc};

use axum::extract::{FromRequestParts, Path};
use http::{StatusCode, request::Parts};

use super::problem::Problem;
use crate::{
    config::{Credential, Scope},
    model::name::ServiceName,
};

/// The other end of a connection.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    /// Its address.
    pub(super) address: SocketAddr,
    /// The certificate that it has shown, which is valid.
    pub(super) certificate: Option<Arc<Certificate>>,
}

/// What a client's certificate says about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Certificate {
    /// Its subject, as `CN=…, O=…`.
    pub(super) subject: String,
    /// Its common name, and its DNS and URI names.
    pub(super) names: Vec<String>,
}

/// Whoever sent a request, with what they may do. It is in the extensions of each request that was let in
/// by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Actor(Arc<Inner>);

#[derive(Debug, PartialEq, Eq)]
struct Inner {
    who: Who,
    scope: Scope,
    services: Option<Vec<ServiceName>>,
}

/// How it is known who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Who {
    /// By a token or certificate of this name among the credentials.
    Named(String),
    /// By a certificate with this subject.
    Subject(String),
    /// Not at all, but for where they are.
    Peer(SocketAddr),
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => write!(f, "`{name}`"),
            Self::Subject(subject) => write!(f, "the certificate of `{subject}`"),
            Self::Peer(address) => write!(f, "{address}"),
        }
    }
}

impl Actor {
    pub(super) fn of(credential: &Credential) -> Self {
        let who = Who::Named(credential.name.clone());
        Self(Arc::new(Inner { who, scope: credential.scope, services: credential.services.clone() }))
    }

    /// Somebody who may do everything.
    pub(super) fn with_all(who: Who) -> Self {
        Self(Arc::new(Inner { who, scope: Scope::Admin, services: None }))
    }

    /// What tells them from others, over all their connections.
    pub(super) fn identity(&self) -> String {
        match &self.0.who {
            Who::Named(name) | Who::Subject(name) => name.clone(),
            Who::Peer(address) => address.ip().to_string(),
        }
    }

    /// What the audit and events call them.
    pub(super) fn name(&self) -> String {
        match &self.0.who {
            Who::Named(name) | Who::Subject(name) => name.clone(),
            Who::Peer(address) => address.to_string(),
        }
    }

    /// How it is known who it is.
    pub(super) fn kind(&self) -> &'static str {
        match &self.0.who {
            Who::Named(_) => "credential",
            Who::Subject(_) => "certificate",
            Who::Peer(_) => "address",
        }
    }

    /// Whether they may do what needs this scope.
    pub(super) fn needs(&self, scope: Scope) -> Result<(), Problem> {
        if self.0.scope >= scope {
            return Ok(());
        }
        let Inner { who, scope: has, .. } = &*self.0;
        let detail = format!("{who} has the scope `{}`, and this needs `{}`", has.name(), scope.name());
        Err(Problem::new(StatusCode::FORBIDDEN, detail))
    }

    /// Whether they may see what is about all services.
    pub(super) fn needs_all_services(&self) -> Result<(), Problem> {
        if self.0.services.is_none() {
            return Ok(());
        }
        let detail = format!("{} is for some services, and this is about all of them", self.0.who);
        Err(Problem::new(StatusCode::FORBIDDEN, detail))
    }

    /// Whether they may have to do with a service.
    pub(super) fn may_touch(&self, service: &str) -> bool {
        self.0.services.as_ref().is_none_or(|services| services.iter().any(|s| s.as_str() == service))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Actor {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        // There is one, unless the path is open to anyone; what asks for one is not.
        parts.extensions.get::<Self>().cloned().ok_or_else(|| {
            Problem::new(StatusCode::UNAUTHORIZED, "say who you are: `Authorization: Bearer TOKEN`")
        })
    }
}

/// The service that a path names, which the actor may have to do with. Whether there is one is another
/// question: who may not know gets the same answer either way.
pub(super) struct Named(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let actor = Actor::from_request_parts(parts, state).await?;
        let name = Path::<String>::from_request_parts(parts, state).await;
        let Path(name) = name.map_err(|error| Problem::new(error.status(), "the path is malformed"))?;
        if !actor.may_touch(&name) {
            let detail = format!("{} may have nothing to do with service `{name}`", actor.0.who);
            return Err(Problem::new(StatusCode::FORBIDDEN, detail));
        }
        Ok(Self(name))
    }
}
