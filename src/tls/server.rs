//! The side that clients see: which certificate they get, and what they have to show.

use std::{path::PathBuf, sync::Arc};

use arc_swap::ArcSwap;
use rustls::{
    RootCertStore, ServerConfig,
    server::{
        ClientHello, NoServerSessionStorage, ProducesTickets, ResolvesServerCert, WebPkiClientVerifier,
        danger::ClientCertVerifier,
    },
    sign::CertifiedKey,
};

use super::{
    files::{Authorities, Certificate, Fault, Pair},
    names::ByName,
    provider,
    reload::{Kept, Reloads},
};

/// How a listener speaks TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// At least one; a client gets the one for the name that it asks for, or the first.
    pub certificates: Vec<Pair>,
    /// The oldest version that is spoken (default 1.2).
    pub min_version: Version,
    /// What clients have to show (default nothing).
    pub client_auth: ClientAuth,
}

/// A version of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Version {
    /// TLS 1.2.
    #[default]
    V1_2,
    /// TLS 1.3.
    V1_3,
}

/// What clients have to show. The path is that of the authorities that their certificates come from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ClientAuth {
    /// Nothing.
    #[default]
    Off,
    /// A valid certificate, or none.
    Optional(PathBuf),
    /// A valid certificate.
    Required(PathBuf),
}

/// What a worker takes for its next handshake.
pub type Published = Arc<ArcSwap<ServerConfig>>;

/// One listener's side of TLS, kept fresh.
pub struct Server {
    settings: Settings,
    published: Published,
    certificates: Vec<Kept<Pair>>,
    authorities: Option<Kept<Authorities>>,
    tickets: Arc<dyn ProducesTickets>,
}

/// Why a listener cannot speak TLS.
#[derive(Debug, thiserror::Error)]
pub enum CannotServe {
    /// A file is not what it should be.
    #[error(transparent)]
    File(#[from] Fault),
    /// It does not work together.
    #[error("TLS cannot be set up: {0}")]
    Setup(String),
}

impl Server {
    /// Reads the files. A certificate that has expired will do: whoever restarts a proxy with ten
    /// certificates is better off with nine.
    ///
    /// # Errors
    /// When a file is missing or not what it should be.
    pub fn new(settings: Settings) -> Result<Self, CannotServe> {
        let certificates = settings.certificates.iter().cloned().map(Kept::load);
        let certificates = certificates.collect::<Result<Vec<_>, _>>()?;
        let authorities = match &settings.client_auth {
            ClientAuth::Off => None,
            ClientAuth::Optional(path) | ClientAuth::Required(path) => {
                Some(Kept::load(Authorities(path.clone()))?)
            }
        };
        let tickets = new_tickets()?;
        let config = build(&settings, &certificates, authorities.as_ref(), &tickets)?;
        let published = Arc::new(ArcSwap::from_pointee(config));
        Ok(Self { settings, published, certificates, authorities, tickets })
    }

    /// What workers take for their next handshake.
    pub fn published(&self) -> &Published {
        &self.published
    }

    /// The certificates that are in use.
    pub fn certificates(&self) -> impl Iterator<Item = (&Pair, &Certificate)> {
        self.certificates.iter().map(Kept::made)
    }

    /// Looks at the files, and publishes what has changed for the better.
    pub(super) fn refresh(&mut self, reloads: &mut Reloads) {
        let mut changed = false;
        for certificate in &mut self.certificates {
            changed |= certificate.refresh(reloads);
        }
        if let Some(authorities) = &mut self.authorities
            && authorities.refresh(reloads)
        {
            // A ticket would let in again whom the new authorities do not know.
            match new_tickets() {
                Ok(tickets) => self.tickets = tickets,
                Err(error) => return tracing::error!(%error, "client authorities are not reloaded"),
            }
            changed = true;
        }
        if !changed {
            return;
        }
        match build(&self.settings, &self.certificates, self.authorities.as_ref(), &self.tickets) {
            Ok(config) => self.published.store(Arc::new(config)),
            Err(error) => tracing::error!(%error, "certificates are not reloaded"),
        }
    }
}

/// Keys for session tickets: shared by all workers, so that a client may come back to another one;
/// changed every six hours, and never those of another listener, which may ask for other
/// certificates.
fn new_tickets() -> Result<Arc<dyn ProducesTickets>, CannotServe> {
    rustls::crypto::ring::Ticketer::new().map_err(setup)
}

fn setup(error: impl std::fmt::Display) -> CannotServe {
    CannotServe::Setup(error.to_string())
}

fn build(
    settings: &Settings,
    certificates: &[Kept<Pair>],
    authorities: Option<&Kept<Authorities>>,
    tickets: &Arc<dyn ProducesTickets>,
) -> Result<ServerConfig, CannotServe> {
    let versions: &[&rustls::SupportedProtocolVersion] = match settings.min_version {
        Version::V1_2 => &[&rustls::version::TLS12, &rustls::version::TLS13],
        Version::V1_3 => &[&rustls::version::TLS13],
    };
    let builder = ServerConfig::builder_with_provider(provider());
    let builder = builder.with_protocol_versions(versions).map_err(setup)?;
    let builder = match authorities {
        None => builder.with_no_client_auth(),
        Some(authorities) => {
            let roots = Arc::clone(authorities.made().1);
            builder.with_client_cert_verifier(verifier(roots, &settings.client_auth)?)
        }
    };
    let chosen = Chosen::new(certificates.iter().map(|kept| kept.made().1));
    let mut config = builder.with_cert_resolver(Arc::new(chosen));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ticketer = Arc::clone(tickets);
    // A store of sessions would be a lock between workers; tickets do the same for any client.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}

fn verifier(
    roots: Arc<RootCertStore>,
    client_auth: &ClientAuth,
) -> Result<Arc<dyn ClientCertVerifier>, CannotServe> {
    let builder = WebPkiClientVerifier::builder_with_provider(roots, provider());
    let builder = match client_auth {
        ClientAuth::Optional(_) => builder.allow_unauthenticated(),
        ClientAuth::Off | ClientAuth::Required(_) => builder,
    };
    builder.build().map_err(setup)
}

/// Chooses a certificate by the name that a client asks for.
#[derive(Debug)]
struct Chosen {
    by_name: ByName<Arc<CertifiedKey>>,
    default: Option<Arc<CertifiedKey>>,
}

impl Chosen {
    fn new<'c>(certificates: impl Iterator<Item = &'c Certificate>) -> Self {
        let mut chosen = Self { by_name: ByName::default(), default: None };
        for certificate in certificates {
            chosen.default.get_or_insert_with(|| Arc::clone(&certificate.key));
            for name in &certificate.names {
                chosen.by_name.add(name, Arc::clone(&certificate.key));
            }
        }
        chosen
    }
}

impl ResolvesServerCert for Chosen {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let by_name = hello.server_name().and_then(|name| self.by_name.find(name));
        by_name.or(self.default.as_ref()).map(Arc::clone)
    }
}
