//! What stands before the first request on listeners that want it: who the client is, said by a load
//! balancer (PROXY protocol), and TLS. A listener that wants neither has nothing to do with it.

use std::{
    future::poll_fn, io, net::SocketAddr, num::NonZeroU16, pin::pin, rc::Rc, task::Poll, time::Duration,
};

use ipnet::IpNet;
use rustls::{AlertDescription, PeerIncompatible};
use tokio::{io::AsyncReadExt as _, net::TcpStream};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{
    connection,
    drain::Registered,
    flush::Flusher,
    room::{Room, Visit},
    stream::{Protocol, Stream},
};
use crate::{
    net::{
        identity,
        proxy_protocol::{self, Invalid, Origin, Parsed},
        socket::Socket,
        tls::Transport,
    },
    proxy::{
        client::{Client, Patience},
        context::Context,
    },
    telemetry::ledger::HandshakeFailure,
    tls::server::Published,
};

/// What a listener wants before the first request.
#[derive(Debug, Clone, Default)]
pub struct Entrance {
    /// That load balancers say whose connection it is.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// TLS.
    pub tls: Option<Tls>,
    /// That clients are only sent to HTTPS, on this port. It stands in the place of every request.
    pub redirect_to_https: Option<NonZeroU16>,
}

/// Who says whose connections it passes on.
#[derive(Debug, Clone)]
pub struct ProxyProtocol {
    /// Those who must say it.
    pub from: Vec<IpNet>,
    /// Longest time that they may take over it.
    pub timeout: Duration,
}

/// How a listener speaks TLS.
#[derive(Debug, Clone)]
pub struct Tls {
    /// What is in force now.
    pub published: Published,
    /// Longest time that a handshake may take.
    pub timeout: Duration,
}

impl Entrance {
    /// What a peer has to say first, if it is one that passes on other people's connections.
    fn balancer(&self, peer: SocketAddr) -> Option<&ProxyProtocol> {
        // An IPv4 balancer of a dual-stack listener is in an IPv4 network.
        let peer = peer.ip().to_canonical();
        self.proxy_protocol.as_ref().filter(|settings| identity::is_trusted(peer, &settings.from))
    }

    /// Whether nothing stands before the first request.
    pub(super) fn is_open(&self) -> bool {
        self.proxy_protocol.is_none() && self.tls.is_none() && self.redirect_to_https.is_none()
    }
}

/// One worker's side of a listener.
#[derive(Debug)]
pub(super) struct Door {
    pub(super) patience: Patience,
    pub(super) entrance: Entrance,
    pub(super) room: Room,
}

impl Door {
    /// Lets a client in, unless its address has as many connections as it may. A balancer's client is
    /// counted as soon as it has been named.
    pub(super) fn enter(&self, peer: SocketAddr) -> Option<Visit> {
        match self.entrance.balancer(peer) {
            Some(_) => Some(Visit::default()),
            None => self.room.visit(peer),
        }
    }
}

/// A connection that has just been accepted.
pub(super) struct Accepted {
    pub(super) socket: TcpStream,
    pub(super) address: SocketAddr,
    pub(super) client: Rc<Client>,
    pub(super) registered: Registered,
    pub(super) visit: Visit,
}

/// Does what the listener wants before the first request, then serves the connection.
pub(super) async fn serve(door: Rc<Door>, context: Rc<Context>, flusher: Rc<Flusher>, accepted: Accepted) {
    let Accepted { mut socket, address, client, registered, visit } = accepted;
    let mut named = None;
    let mut _until_it_ends = visit;
    let entrance = &door.entrance;
    if let Some(settings) = entrance.balancer(address) {
        match learn(settings, &mut socket, address, &client).await {
            Err(failure) => return context.cells().handshake_failed(failure),
            // The balancer's own, or one that it knows nothing of: a balancer may have any number.
            Ok(None) => {}
            Ok(Some(origin)) => match door.room.visit(origin.source) {
                Some(visit) => {
                    client.set_address(origin.source.ip());
                    named = Some(origin);
                    _until_it_ends = visit;
                }
                None => return context.cells().connections_refused.add(1),
            },
        }
    }
    introduce(&context, &client, || named.map_or_else(|| observe(address, &socket), Ok));
    let Some(tls) = &entrance.tls else {
        let stream = Stream::new(socket, Rc::clone(&client), flusher);
        return match entrance.redirect_to_https {
            Some(port) => connection::redirect(context, client, registered, stream, port).await,
            None => connection::serve(None, context, client, registered, stream).await,
        };
    };
    // Boxed: the state of a handshake is large, and the connection lives on after it.
    match Box::pin(shake_hands(tls, socket, &client)).await {
        Err(failure) => context.cells().handshake_failed(failure),
        Ok(stream) => {
            let protocol = match stream.get_ref().1.alpn_protocol() {
                Some(b"h2") => Some(Protocol::Http2),
                Some(_) => Some(Protocol::Http1),
                None => None,
            };
            client.set_secure();
            client.expect_head();
            let stream = Stream::over(Transport::tls(stream), Rc::clone(&client), flusher);
            connection::serve(protocol, context, client, registered, stream).await;
        }
    }
}

/// Notes a client's addresses where backends are told them.
pub(super) fn introduce(context: &Context, client: &Client, origin: impl FnOnce() -> io::Result<Origin>) {
    if context.introduces_clients()
        && let Ok(origin) = origin()
    {
        client.came(origin);
    }
}

/// The addresses of a connection that nobody has passed on.
pub(super) fn observe(source: SocketAddr, socket: &TcpStream) -> io::Result<Origin> {
    Ok(Origin { source, destination: socket.local_addr()? })
}

/// Learns from a load balancer whose connection it is, if it says. Who is not one is a client of its
/// own and is not asked, and a header from it is a bad request: its word about addresses is worth nothing.
async fn learn(
    settings: &ProxyProtocol,
    socket: &mut TcpStream,
    peer: SocketAddr,
    client: &Client,
) -> Result<Option<Origin>, HandshakeFailure> {
    let read = in_time(client, settings.timeout, read_header(socket)).await;
    match read.unwrap_or(Err(HandshakeFailure::ProxyTimeout)) {
        Ok(origin) => {
            client.expect_head();
            Ok(origin)
        }
        Err(failure) => {
            tracing::debug!(%peer, reason = failure.label(), "connection refused");
            Err(failure)
        }
    }
}

/// Reads a PROXY header and not a byte more.
async fn read_header(socket: &mut TcpStream) -> Result<Option<Origin>, HandshakeFailure> {
    let mut header = Vec::new();
    loop {
        let known = header.len();
        header.resize(proxy_protocol::LONGEST, 0);
        let peeked = socket.peek(&mut header[known..]).await.map_err(|_| HandshakeFailure::Closed)?;
        if peeked == 0 {
            return Err(HandshakeFailure::Closed);
        }
        header.truncate(known + peeked);
        let parsed = proxy_protocol::parse(&header);
        let end = match parsed {
            Ok(Parsed::Complete { length, .. }) => length,
            // All of it belongs to the header, so it is taken, and the wait is for more.
            Ok(Parsed::Incomplete) => header.len(),
            Err(Invalid::Missing) => return Err(HandshakeFailure::ProxyMissing),
            Err(Invalid::Malformed | Invalid::TooLong) => return Err(HandshakeFailure::ProxyMalformed),
        };
        let taken = socket.read_exact(&mut header[known..end]).await;
        taken.map_err(|_| HandshakeFailure::Closed)?;
        if let Ok(Parsed::Complete { origin, .. }) = parsed {
            return Ok(origin);
        }
    }
}

async fn shake_hands(
    tls: &Tls,
    socket: TcpStream,
    client: &Client,
) -> Result<TlsStream<Socket>, HandshakeFailure> {
    let acceptor = TlsAcceptor::from(tls.published.load_full());
    match in_time(client, tls.timeout, acceptor.accept(Socket::new(socket, Rc::default()))).await {
        None => Err(HandshakeFailure::Timeout),
        Some(Ok(stream)) => Ok(stream),
        Some(Err(error)) => {
            let failure = reason(&error);
            tracing::debug!(%error, reason = failure.label(), "TLS handshake failed");
            Err(failure)
        }
    }
}

/// What a future comes to, if it does in time.
async fn in_time<F: Future>(client: &Client, timeout: Duration, future: F) -> Option<F::Output> {
    client.allow(timeout);
    let mut future = pin!(future);
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => client.poll_overdue(cx).map(|()| None),
    })
    .await
}

/// Why a handshake failed, in one of a few words.
fn reason(error: &io::Error) -> HandshakeFailure {
    use rustls::{Error, InvalidMessage};
    let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) else {
        return HandshakeFailure::Closed;
    };
    match error {
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => HandshakeFailure::NotTls,
        Error::PeerIncompatible(
            PeerIncompatible::NoCipherSuitesInCommon
            | PeerIncompatible::NoKxGroupsInCommon
            | PeerIncompatible::NoSignatureSchemesInCommon,
        ) => HandshakeFailure::NoSharedCipher,
        Error::PeerIncompatible(
            PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::Tls13RequiredForQuic,
        ) => HandshakeFailure::Version,
        Error::NoApplicationProtocol => HandshakeFailure::Alpn,
        Error::NoCertificatesPresented => HandshakeFailure::ClientCertificateMissing,
        Error::InvalidCertificate(_) => HandshakeFailure::ClientCertificateInvalid,
        Error::AlertReceived(
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateRevoked
            | AlertDescription::UnsupportedCertificate,
        ) => HandshakeFailure::CertificateRejected,
        Error::AlertReceived(_) => HandshakeFailure::Alert,
        _ => HandshakeFailure::Protocol,
    }
}
