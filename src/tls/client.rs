//! The side that backends see: whom we believe, and what we show.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use arc_swap::ArcSwap;
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    sign::SingleCertAndKey,
};

use super::{
    files::{Authorities, Certificate, Fault, Pair},
    provider,
    reload::{Kept, Reloads},
};
use crate::model::protocol::Protocol;

/// How a backend is spoken to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Settings {
    /// Whom its certificate has to come from; nothing means the authorities of this system.
    pub ca: Option<Authorities>,
    /// The name that its certificate has to be for, and that it is asked for; nothing means the
    /// endpoint's host.
    pub server_name: Option<String>,
    /// What we show.
    pub certificate: Option<Pair>,
    /// Its certificate is not looked at.
    pub insecure_skip_verify: bool,
}

/// What a worker takes for its next handshake with a backend.
pub struct Connector {
    settings: Settings,
    server_name: Option<ServerName<'static>>,
    configs: ArcSwap<Configs>,
}

/// What is the same for both protocols but for what is offered. Sessions are not resumed across them.
struct Configs {
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
}

/// What is offered for HTTP/1.1, by the name that ALPN has for it.
const HTTP1: &[u8] = b"http/1.1";
/// The same for HTTP/2.
const HTTP2: &[u8] = b"h2";

impl Connector {
    /// The configuration to use now, with what an endpoint speaks as the only protocol that is offered.
    pub fn config(&self, protocol: Protocol) -> Arc<ClientConfig> {
        let configs = self.configs.load();
        Arc::clone(match protocol {
            Protocol::Http1 => &configs.http1,
            Protocol::Http2 => &configs.http2,
        })
    }

    /// Whether what was agreed on in the handshake is what the endpoint is said to speak. HTTP/1.1 is
    /// spoken where nothing is said; HTTP/2 has to be agreed on (RFC 9113, section 3.2).
    pub fn is_agreed(protocol: Protocol, agreed: Option<&[u8]>) -> bool {
        match protocol {
            Protocol::Http1 => agreed.is_none_or(|agreed| agreed == HTTP1),
            Protocol::Http2 => agreed == Some(HTTP2),
        }
    }

    /// The name that the certificate of an endpoint on `host` has to be for. Nothing, if `host` is no
    /// name, which the configuration does not let in.
    pub fn server_name(&self, host: &str) -> Option<ServerName<'static>> {
        match &self.server_name {
            Some(name) => Some(name.clone()),
            None => ServerName::try_from(host.to_owned()).ok(),
        }
    }

    /// How the backend is spoken to.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// Connections of connectors that are equal may be used for one another.
impl PartialEq for Connector {
    fn eq(&self, other: &Self) -> bool {
        self.settings == other.settings
    }
}

impl Eq for Connector {}

/// A connector, kept fresh.
#[derive(Debug)]
pub struct Client {
    connector: Arc<Connector>,
    authorities: Option<Kept<Authorities>>,
    certificate: Option<Kept<Pair>>,
}

/// Why a backend cannot be spoken to.
#[derive(Debug, thiserror::Error)]
pub enum CannotConnect {
    /// A file is not what it should be.
    #[error(transparent)]
    File(#[from] Fault),
    /// This system names no authority.
    #[error("this system has no certificate authorities ({0})")]
    NoAuthorities(String),
    /// It does not work together.
    #[error("TLS cannot be set up: {0}")]
    Setup(String),
}

impl Client {
    /// Reads the files.
    ///
    /// # Errors
    /// When a file is missing or not what it should be, or the system's authorities are needed and
    /// there are none.
    pub fn new(settings: Settings) -> Result<Self, CannotConnect> {
        let authorities = settings.ca.clone().map(Kept::load).transpose()?;
        let certificate = settings.certificate.clone().map(Kept::load).transpose()?;
        let server_name = settings.server_name.clone().map(ServerName::try_from).transpose();
        let server_name = server_name.map_err(|error| CannotConnect::Setup(error.to_string()))?;
        let configs = build(&settings, authorities.as_ref(), certificate.as_ref())?;
        let connector =
            Arc::new(Connector { settings, server_name, configs: ArcSwap::from_pointee(configs) });
        Ok(Self { connector, authorities, certificate })
    }

    /// What workers use.
    pub fn connector(&self) -> &Arc<Connector> {
        &self.connector
    }

    /// The certificate that we show, if any.
    pub fn certificate(&self) -> Option<(&Pair, &Certificate)> {
        self.certificate.as_ref().map(Kept::made)
    }

    /// Looks at the files, and publishes what has changed for the better.
    pub(super) fn refresh(&mut self, reloads: &mut Reloads) {
        let authorities = self.authorities.as_mut().is_some_and(|kept| kept.refresh(reloads));
        let certificate = self.certificate.as_mut().is_some_and(|kept| kept.refresh(reloads));
        if !authorities && !certificate {
            return;
        }
        let Connector { settings, configs, .. } = &*self.connector;
        match build(settings, self.authorities.as_ref(), self.certificate.as_ref()) {
            Ok(fresh) => configs.store(Arc::new(fresh)),
            Err(error) => tracing::error!(%error, "certificates for backends are not reloaded"),
        }
    }
}

fn build(
    settings: &Settings,
    authorities: Option<&Kept<Authorities>>,
    certificate: Option<&Kept<Pair>>,
) -> Result<Configs, CannotConnect> {
    let setup = |error: rustls::Error| CannotConnect::Setup(error.to_string());
    let provider = provider();
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_safe_default_protocol_versions().map_err(setup)?;
    let builder = if settings.insecure_skip_verify {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Unverified(provider)))
    } else {
        builder.with_root_certificates(match authorities {
            Some(kept) => Arc::clone(kept.made().1),
            None => system_authorities()?,
        })
    };
    let mut config = match certificate {
        None => builder.with_no_client_auth(),
        Some(kept) => {
            let key = Arc::clone(&kept.made().1.key);
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key)))
        }
    };
    config.alpn_protocols = vec![HTTP1.to_vec()];
    let http1 = Arc::new(config.clone());
    config.alpn_protocols = vec![HTTP2.to_vec()];
    config.resumption = Resumption::default();
    Ok(Configs { http1, http2: Arc::new(config) })
}

/// The authorities that this system trusts, read once. Those and not a list that is compiled in: they
/// are what its operator keeps up to date and adds the company's own to.
///
/// # Errors
/// When there are none.
pub fn system_authorities() -> Result<Arc<RootCertStore>, CannotConnect> {
    static READ: OnceLock<(Arc<RootCertStore>, String)> = OnceLock::new();
    let (store, errors) = READ.get_or_init(|| {
        let found = rustls_native_certs::load_native_certs();
        let mut store = RootCertStore::empty();
        // Systems have odd ones among them; the rest will do.
        let (_taken, _ignored) = store.add_parsable_certificates(found.certs);
        let errors: Vec<_> = found.errors.iter().map(ToString::to_string).collect();
        (Arc::new(store), errors.join("; "))
    });
    if !store.is_empty() {
        return Ok(Arc::clone(store));
    }
    let why = if errors.is_empty() { "none were found" } else { errors.as_str() };
    Err(CannotConnect::NoAuthorities(why.to_owned()))
}

/// Believes any certificate, as it was told to; still, whoever shows it has to have its key.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
