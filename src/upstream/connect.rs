//! Making a connection to an endpoint. Names have been resolved long before: see
//! `controller::discovery`.

use std::{io, net::SocketAddr, time::Duration};

use tokio::net::TcpStream;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody took the connection.
    #[error("cannot connect")]
    Tcp(#[source] io::Error),
    /// Nobody took it in time.
    #[error("no connection within {}", crate::model::units::format_duration(*.0))]
    TimedOut(Duration),
}

/// Connects to an address.
///
/// # Errors
/// When nobody takes the connection, or not within `timeout`.
pub async fn connect(address: SocketAddr, timeout: Duration) -> Result<TcpStream, ConnectError> {
    let connected = tokio::time::timeout(timeout, TcpStream::connect(address)).await;
    let stream = connected.map_err(|_| ConnectError::TimedOut(timeout))?.map_err(ConnectError::Tcp)?;
    stream.set_nodelay(true).map_err(ConnectError::Tcp)?;
    Ok(stream)
}
