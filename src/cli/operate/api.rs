//! Calls to the admin API.

use std::{fs, net::SocketAddr, sync::Arc, time::Duration};

use http::{HeaderName, Method, Uri};
use rustls::pki_types::ServerName;
use serde::Deserialize as _;
use serde_json::Value;
use tokio::time;

use super::{options::Access, seen::Services};
use crate::{
    admin::{
        client::{self, ClientError},
        idempotency::UNDER_WAY,
    },
    model::{name::ServiceName, protocol::Protocol},
    tls::{
        client::{Client, Connector, Settings},
        files::{Authorities, Pair},
    },
};

/// How long an answer may take. The API gives up after 10 s by itself, and says so.
const PATIENCE: Duration = Duration::from_secs(15);

/// Why a call came to nothing.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum Failure {
    /// Nobody answers there.
    #[error("{0}")]
    Unreachable(String),
    /// It was understood and not done.
    #[error("{detail}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// Why, in a sentence.
        detail: String,
    },
    /// It was not even asked.
    #[error("{0}")]
    Usage(String),
    /// It broke on the way.
    #[error("{0}")]
    Broken(String),
}

impl Failure {
    pub(super) fn not_understood(error: serde_json::Error) -> Self {
        Self::Broken(format!("the answer is not what this version of tidegate knows: {error}"))
    }

    /// Whether it is an answer to a write that has changed nothing. One in between that has lost the answer says 502 or
    /// 504, and so does the API of what it is still busy with.
    pub(super) fn says_that_nothing_was_done(&self) -> bool {
        match self {
            Self::Refused { status, detail } => !matches!(status, 502 | 504) && detail != UNDER_WAY,
            Self::Usage(_) => true,
            Self::Unreachable(_) | Self::Broken(_) => false,
        }
    }
}

/// A call that came to nothing.
pub(super) struct Unanswered {
    pub(super) failure: Failure,
    pub(super) why: Why,
}

/// Whether the same call may do better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// It would not.
    Final,
    /// Nobody listens, or not in TLS.
    Absent,
    /// The connection broke, or whoever answered is in trouble for now.
    Passing,
}

impl Why {
    fn of(error: &ClientError) -> Self {
        match error {
            ClientError::Connect { .. } | ClientError::Tls { .. } => Self::Absent,
            ClientError::Http(_) => Self::Passing,
            ClientError::Refused(problem) if matches!(problem.status, 502 | 503) => Self::Passing,
            ClientError::Refused(problem) if problem.detail == UNDER_WAY => Self::Passing,
            ClientError::Refused(_) | ClientError::Json(_) | ClientError::Parts(_) => Self::Final,
        }
    }
}

/// Whom to ask.
#[derive(Debug)]
pub(in crate::cli) struct Api {
    authority: String,
    address: SocketAddr,
    token: Option<String>,
    tls: Option<(Arc<Connector>, ServerName<'static>)>,
}

impl Api {
    pub(in crate::cli) fn new(access: &Access) -> Result<Self, Failure> {
        let written = &access.address;
        let usage = |why: &str| {
            Failure::Usage(format!(
                "`{written}` is not the address of an admin API: {why}, such as http://127.0.0.1:9090"
            ))
        };
        let uri: Uri = written.parse().map_err(|_| usage("write a URL"))?;
        let (is_tls, usual) = match (uri.scheme_str(), uri.path()) {
            (Some("http"), "/" | "") => (false, 80),
            (Some("https"), "/" | "") => (true, 443),
            (Some("http" | "https"), _) => return Err(usage("write it without a path")),
            _ => return Err(usage("write an http:// or https:// URL")),
        };
        let authority = uri.authority().ok_or_else(|| usage("name a host"))?;
        let (host, port) = (authority.host(), authority.port_u16().unwrap_or(usual));
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let found = std::net::ToSocketAddrs::to_socket_addrs(&(host, port));
        let mut found = found.map_err(|error| {
            Failure::Unreachable(format!("there is no host `{host}` ({error}): say where the admin API is with --address or TIDEGATE_ADDRESS"))
        })?;
        let address = found.next().ok_or_else(|| Failure::Unreachable(format!("`{host}` has no address")))?;
        let tls = if is_tls { Some(tls(access, host)?) } else { None };
        Ok(Self { authority: authority.to_string(), address, token: token(access)?, tls })
    }

    /// Calls the API: `path` under `/api/v1`.
    pub(in crate::cli) async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, Failure> {
        self.call_with(&[], method, path, body).await.map_err(|unanswered| unanswered.failure)
    }

    /// The same with more fields, once.
    pub(super) async fn call_with(
        &self,
        fields: &[(HeaderName, String)],
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, Unanswered> {
        let tls = self.tls.as_ref();
        let tls = tls.map(|(connector, name)| (connector.config(Protocol::Http1), name.clone()));
        let token = self.token.as_deref();
        let call = client::Call { host: &self.authority, token, tls, method, path, body, fields };
        let Ok(answer) = time::timeout(PATIENCE, client::call_as(self.address, call)).await else {
            let seconds = PATIENCE.as_secs();
            let failure = Failure::Unreachable(format!(
                "no answer from {} within {seconds} s; --address or TIDEGATE_ADDRESS says where the admin API is",
                self.authority
            ));
            return Err(Unanswered { failure, why: Why::Final });
        };
        answer.map_err(|error| Unanswered { why: Why::of(&error), failure: self.failure(error) })
    }

    fn failure(&self, error: ClientError) -> Failure {
        match error {
            ClientError::Connect { source, .. } => Failure::Unreachable(format!(
                "nobody answers at {} ({source}): is tidegate running there? --address or TIDEGATE_ADDRESS says where its admin API is",
                self.authority
            )),
            ClientError::Tls { source, .. } => Failure::Unreachable(format!(
                "no TLS with {} ({source}): --ca says whom its certificate has to come from, --certificate what to show",
                self.authority
            )),
            ClientError::Refused(problem) => {
                Failure::Refused { status: problem.status, detail: problem.detail }
            }
            ClientError::Parts(_) => Failure::Usage(error.to_string()),
            ClientError::Http(_) | ClientError::Json(_) => {
                Failure::Broken(format!("{error}; is {} an admin API?", self.authority))
            }
        }
    }

    /// The service that is meant: the one that is named, or the only one that has a canary.
    pub(super) async fn service(&self, named: Option<&str>) -> Result<String, Failure> {
        if let Some(named) = named {
            return named
                .parse::<ServiceName>()
                .map(|name| name.to_string())
                .map_err(|error| Failure::Usage(format!("`{named}` is not the name of a service: {error}")));
        }
        let all = self.call(Method::GET, "/services", None).await?;
        let Services { services } = Services::deserialize(&all).map_err(Failure::not_understood)?;
        let mut names =
            services.iter().filter(|service| service.canary.is_some()).map(|service| &service.name);
        match (names.next(), names.next()) {
            (Some(only), None) => Ok(only.clone()),
            (None, _) => Err(Failure::Usage("no service has a canary".to_owned())),
            (Some(_), Some(_)) => {
                let all: Vec<_> = services.iter().map(|service| service.name.as_str()).collect();
                Err(Failure::Usage(format!("say which service: {}", all.join(", "))))
            }
        }
    }
}

/// The token to show. Not an argument: whoever may list processes would see it.
fn token(access: &Access) -> Result<Option<String>, Failure> {
    let Some(file) = &access.token_file else {
        return Ok(std::env::var("TIDEGATE_TOKEN").ok().filter(|token| !token.is_empty()));
    };
    let token = fs::read_to_string(file);
    let token = token.map_err(|error| Failure::Usage(format!("cannot read {}: {error}", file.display())))?;
    Ok(Some(token.trim().to_owned()))
}

/// How TLS is spoken with a host.
fn tls(access: &Access, host: &str) -> Result<(Arc<Connector>, ServerName<'static>), Failure> {
    let pair = access.certificate.clone().zip(access.key.clone());
    let settings = Settings {
        ca: access.ca.clone().map(Authorities),
        certificate: pair.map(|(certificate, key)| Pair { certificate, key }),
        ..Settings::default()
    };
    let client = Client::new(settings).map_err(|error| Failure::Usage(error.to_string()))?;
    let connector = Arc::clone(client.connector());
    let name = connector.server_name(host);
    let name = name.ok_or_else(|| Failure::Usage(format!("no certificate can be for `{host}`")))?;
    Ok((connector, name))
}
