//! Making a connection to an endpoint.

use std::{io, net::IpAddr, time::Duration};

use tokio::net::TcpStream;

use crate::routing::snapshot::Endpoint;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The host's name has no address.
    #[error("no address for `{host}`")]
    Resolve {
        /// The name.
        host: String,
        /// What the resolver said.
        #[source]
        source: io::Error,
    },
    /// Nobody took the connection.
    #[error("cannot connect")]
    Tcp(#[source] io::Error),
    /// Nobody took it in time.
    #[error("no connection within {}", crate::model::units::format_duration(*.0))]
    TimedOut(Duration),
}

/// Connects to an endpoint; a name is resolved anew each time.
///
/// # Errors
/// When the name has no address, nobody takes the connection, or not within `timeout`.
pub async fn connect(endpoint: &Endpoint, timeout: Duration) -> Result<TcpStream, ConnectError> {
    let stream = tokio::time::timeout(timeout, dial(endpoint)).await;
    let stream = stream.unwrap_or(Err(ConnectError::TimedOut(timeout)))?;
    stream.set_nodelay(true).map_err(ConnectError::Tcp)?;
    Ok(stream)
}

async fn dial(endpoint: &Endpoint) -> Result<TcpStream, ConnectError> {
    let Endpoint { host, port, protocol: _ } = endpoint;
    if let Ok(ip) = host.parse::<IpAddr>() {
        return TcpStream::connect((ip, *port)).await.map_err(ConnectError::Tcp);
    }
    let unresolved = |source| ConnectError::Resolve { host: host.clone(), source };
    let addresses = tokio::net::lookup_host((host.as_str(), *port)).await.map_err(unresolved)?;
    let mut last = unresolved(io::ErrorKind::NotFound.into());
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = ConnectError::Tcp(error),
        }
    }
    Err(last)
}
