//! The admin side's connections: accepted, with TLS where that is wanted, and served one request after the
//! other.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use http_body_util::BodyExt as _;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Notify,
    time::timeout,
};
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::{
    access::Access,
    actor::{Certificate, Peer},
    room::{Place, Room},
};
use crate::tls::server::Published;

/// Connections at a time, of which one address has up to half.
const CONNECTIONS: usize = 256;
/// Longest time that the first head of a connection may take. Who connects has something to ask.
const FIRST: Duration = Duration::from_secs(10);
/// Longest time that a connection may be idle after that, and that a further request's head may take.
const IDLE: Duration = Duration::from_secs(75);
/// Longest time that nothing of an answer is taken, as by a client that has stopped reading: it would keep its place, and
/// one among those that may wait for events.
const UNREAD: Duration = Duration::from_secs(30);
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
pub(super) async fn accept(listener: TcpListener, tls: Option<Tls>, router: Router, access: Access) {
    let room = Room::new(CONNECTIONS);
    loop {
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "the admin side cannot accept a connection");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let place = room.take(address.ip());
        if place.as_ref().is_none_or(|(_, has_left)| *has_left) {
            access.refusals().count("connections");
        }
        let Some((place, _)) = place else {
            tracing::debug!(peer = %address, "too many connections to the admin side");
            continue;
        };
        let (tls, router) = (tls.clone(), router.clone());
        tokio::spawn(async move {
            let place = Arc::new(place);
            let served = tokio::select! {
                served = serve(stream, address, tls, (router, &place)) => served,
                () = place.is_taken() => Err(io::Error::other("it was idle, and there are too many")),
            };
            if let Err(error) = served {
                tracing::debug!(peer = %address, %error, "a connection to the admin side ended");
            }
        });
    }
}

/// Who answers, and the connection's place.
type Within<'a> = (Router, &'a Arc<Place>);

async fn serve(
    stream: TcpStream,
    address: SocketAddr,
    tls: Option<Tls>,
    within: Within<'_>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let Some(Tls { published, timeout: time }) = tls else {
        return exchange(stream, Peer { address, certificate: None }, within).await;
    };
    // A listener for requests also offers HTTP/2, which this side does without.
    let mut config = rustls::ServerConfig::clone(&published.load());
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let stream = timeout(time, TlsAcceptor::from(Arc::new(config)).accept(stream)).await??;
    let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let certificate = shown.and_then(|der| understand(der)).map(Arc::new);
    exchange(stream, Peer { address, certificate }, within).await
}

async fn exchange<S>(stream: S, peer: Peer, (router, place): Within<'_>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(UNREAD));
    let first = Notify::new();
    let service = service_fn(|mut request: http::Request<Incoming>| {
        first.notify_one();
        request.extensions_mut().insert(peer.clone());
        let (busy, answer) = (place.busy(), router.clone().oneshot(request));
        async move {
            let response = answer.await?;
            // Until all of it is written.
            Ok::<_, Infallible>(response.map(|body| {
                body.map_err(move |error| {
                    let _held = &busy;
                    error
                })
            }))
        }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(IDLE);
    let connection = http.serve_connection(TokioIo::new(Box::pin(stream)), service);
    tokio::select! {
        ended = connection => ended.map_err(io::Error::other),
        // Once there is one, the connection alone says when it ends.
        Err(late) = timeout(FIRST, first.notified()) => Err(late.into()),
    }
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

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
        time::Instant,
    };

    use super::*;

    /// Serves a connection on which this is the answer.
    async fn serve_one(server: DuplexStream, answer: String) -> io::Result<()> {
        let place = Arc::new(Room::new(1).take("10.0.0.1".parse().unwrap()).unwrap().0);
        let router = Router::new().route("/", get(async || answer));
        let peer = Peer { address: "10.0.0.1:1".parse().unwrap(), certificate: None };
        exchange(server, peer, (router, &place)).await
    }

    /// How long a connection lasts on which this is sent, and nothing else.
    async fn lasts(sent: &str) -> Duration {
        let (mut client, server) = tokio::io::duplex(1024);
        let began = Instant::now();
        client.write_all(sent.as_bytes()).await.unwrap();
        let (_, read) = tokio::join!(serve_one(server, "ok".to_owned()), async move {
            let mut said = String::new();
            client.read_to_string(&mut said).await.map(|_| said)
        });
        assert_eq!(read.unwrap().starts_with("HTTP/1.1 200 OK"), sent.ends_with("\r\n\r\n"));
        began.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_read_has_to_leave() {
        let (mut client, server) = tokio::io::duplex(1024);
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let began = Instant::now();
        let ended = timeout(UNREAD * 2, serve_one(server, "a".repeat(10_000))).await.unwrap();
        assert_eq!((began.elapsed(), ended.is_err()), (UNREAD, true));
    }

    #[tokio::test(start_paused = true)]
    async fn who_connects_has_to_ask_something_soon() {
        let seconds = async |sent| lasts(sent).await.as_secs();
        assert_eq!(seconds("").await, FIRST.as_secs());
        assert_eq!(seconds("GET / HTTP/1.1\r\nHost: a\r\n").await, FIRST.as_secs());
        assert_eq!(seconds("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await, IDLE.as_secs());
    }
}
