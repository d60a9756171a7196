//! The admin side's connections: accepted, with TLS where that is wanted, and served one request after the
//! other.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::actor::{Certificate, Peer};
use crate::tls::server::Published;

/// Connections at a time; more wait in the system's queue.
const CONNECTIONS: usize = 256;
/// Longest time that a connection may be idle, and that a request's head may take.
const IDLE: Duration = Duration::from_secs(75);
/// How long nothing is accepted after the system could not, most often for want of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// How the admin side speaks TLS.
#[derive(Clone)]
pub struct Tls {
    /// What it takes for the next handshake.
    pub published: Published,
    /// Longest time that a handshake may take.
    pub timeout: Duration,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

/// Accepts and serves connections for as long as it is polled.
pub(super) async fn accept(listener: TcpListener, tls: Option<Tls>, router: Router) {
    let free = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let slot = Arc::clone(&free).acquire_owned().await.expect("nobody closes it");
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "the admin side cannot accept a connection");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let (tls, router) = (tls.clone(), router.clone());
        tokio::spawn(async move {
            let _slot = slot;
            if let Err(error) = serve(stream, address, tls, router).await {
                tracing::debug!(peer = %address, %error, "a connection to the admin side ended");
            }
        });
    }
}

async fn serve(stream: TcpStream, address: SocketAddr, tls: Option<Tls>, router: Router) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let Some(Tls { published, timeout: time }) = tls else {
        return exchange(stream, Peer { address, certificate: None }, router).await;
    };
    // A listener for requests also offers HTTP/2, which this side does without.
    let mut config = rustls::ServerConfig::clone(&published.load());
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let stream = timeout(time, TlsAcceptor::from(Arc::new(config)).accept(stream)).await??;
    let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let certificate = shown.and_then(|der| understand(der)).map(Arc::new);
    exchange(stream, Peer { address, certificate }, router).await
}

async fn exchange<S>(stream: S, peer: Peer, router: Router) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |mut request: http::Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        router.clone().oneshot(request)
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(IDLE);
    http.serve_connection(TokioIo::new(stream), service).await.map_err(io::Error::other)
}

/// What a certificate says. It has been verified, so it is one; a name of a kind that nobody can write in
/// the credentials is passed over.
fn understand(der: &[u8]) -> Option<Certificate> {
    let (_, parsed) = X509Certificate::from_der(der).ok()?;
    let common = parsed.subject().iter_common_name().filter_map(|name| name.as_str().ok());
    let alternative = parsed.subject_alternative_name().ok().flatten();
    let alternative = alternative.iter().flat_map(|extension| &extension.value.general_names);
    let alternative = alternative.filter_map(|name| match name {
        GeneralName::DNSName(name) | GeneralName::URI(name) => Some(*name),
        _ => None,
    });
    let names = common.chain(alternative).map(str::to_owned).collect();
    Some(Certificate { subject: parsed.subject().to_string(), names })
}
