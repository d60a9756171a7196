//! Making a connection to an endpoint, with TLS where it wants that. Names have been resolved long
//! before: see `controller::discovery`.

use std::{io, rc::Rc, time::Duration};

use rustls::{AlertDescription, PeerMisbehaved, pki_types::ServerName};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};
use tokio_rustls::TlsConnector;

use crate::{
    model::protocol::Protocol,
    net::{socket::Socket, tls::Transport},
    routing::{members::Member, snapshot::Endpoint},
    tls::client::Connector,
};

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody took the connection.
    #[error("cannot connect")]
    Tcp(#[source] io::Error),
    /// Nobody took it in time.
    #[error("no connection within {}", crate::model::units::format_duration(*.0))]
    TimedOut(Duration),
    /// It speaks no TLS that we do.
    #[error("no TLS")]
    Tls(#[source] io::Error),
    /// It speaks TLS, and in it another protocol than the one that it is written with.
    #[error("it does not agree on {0}")]
    Alpn(Protocol),
    /// Its certificate is not to be believed.
    #[error("the certificate is not valid")]
    Certificate(#[source] io::Error),
}

impl ConnectError {
    /// Whether somebody has to change something for it to go away.
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Tcp(_) | Self::TimedOut(_) => false,
            Self::Tls(_) | Self::Alpn(_) | Self::Certificate(_) => true,
        }
    }
}

/// Connects to an address of an endpoint, with TLS if there is a connector for it. `header` is said before
/// anything else.
///
/// # Errors
/// When nobody takes the connection, the handshake fails, or all of it takes longer than `timeout`.
pub async fn connect(
    member: &Member,
    tls: Option<&Connector>,
    header: Option<Vec<u8>>,
    timeout: Duration,
) -> Result<Transport, ConnectError> {
    let connected = tokio::time::timeout(timeout, async {
        let mut stream = TcpStream::connect(member.address).await.map_err(ConnectError::Tcp)?;
        stream.set_nodelay(true).map_err(ConnectError::Tcp)?;
        if let Some(header) = header {
            stream.write_all(&header).await.map_err(ConnectError::Tcp)?;
        }
        let socket = Socket::new(stream, Rc::default());
        match tls {
            None => Ok(Transport::Plain(socket)),
            Some(connector) => shake_hands(connector, &member.endpoint, socket).await,
        }
    });
    connected.await.unwrap_or(Err(ConnectError::TimedOut(timeout)))
}

async fn shake_hands(
    connector: &Connector,
    endpoint: &Endpoint,
    socket: Socket,
) -> Result<Transport, ConnectError> {
    let name: Option<ServerName<'static>> = connector.server_name(&endpoint.host);
    let name = name.ok_or_else(|| ConnectError::Tls(io::ErrorKind::InvalidInput.into()))?;
    let handshake = TlsConnector::from(connector.config(endpoint.protocol)).connect(name, socket);
    match handshake.await {
        Ok(stream) if Connector::is_agreed(endpoint.protocol, stream.get_ref().1.alpn_protocol()) => {
            Ok(Transport::tls(stream))
        }
        Ok(_) => Err(ConnectError::Alpn(endpoint.protocol)),
        Err(error) => Err(reason(error, endpoint.protocol)),
    }
}

/// Why a handshake failed.
fn reason(error: io::Error, protocol: Protocol) -> ConnectError {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(_)) => ConnectError::Certificate(error),
        Some(
            rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol)
            | rustls::Error::PeerMisbehaved(PeerMisbehaved::SelectedUnofferedApplicationProtocol),
        ) => ConnectError::Alpn(protocol),
        _ => ConnectError::Tls(error),
    }
}
