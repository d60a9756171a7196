//! Listening sockets, bound before anything is started so that a port that is taken stops the
//! start and not the third request.

use std::{
    io,
    net::{SocketAddr, TcpListener},
};

use socket2::{Domain, Protocol, Socket, Type};

/// Connections that the kernel may hold until a worker accepts them (capped by `somaxconn`).
const BACKLOG: i32 = 4096;

/// Binds one socket for each of `workers` to the same address.
///
/// The kernel spreads connections over them (`SO_REUSEPORT`), so that workers share nothing, not
/// even an accept queue. Port 0 gets a free port, the same for all.
///
/// # Errors
/// When the address cannot be bound: in use by another process, not ours, or not permitted.
pub fn bind(address: SocketAddr, workers: usize) -> io::Result<Vec<TcpListener>> {
    // Another process of ours could share a port by accident: SO_REUSEPORT lets any process of the
    // same user in. A first bind without it proves that nobody else listens here.
    let address = match address.port() {
        0 => address,
        _ => {
            drop(socket(address, false)?);
            address
        }
    };
    let first = socket(address, true)?;
    let address = first.local_addr()?.as_socket().unwrap_or(address);
    let mut sockets = vec![first];
    for _ in 1..workers {
        sockets.push(socket(address, true)?);
    }
    sockets
        .into_iter()
        .map(|socket| {
            socket.listen(BACKLOG)?;
            Ok(socket.into())
        })
        .collect()
}

fn socket(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    // Connections of an earlier process that linger in TIME_WAIT must not keep the port.
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    // Accepted sockets inherit it, which saves a system call on each.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Lets the kernel queue (almost) no further connection, so that what is queued can be accepted to
/// the last before the socket is closed: closing it resets what is still in the queue.
///
/// # Errors
/// When the kernel refuses, which it does not for a listening socket.
pub fn stop_queueing(listener: &impl std::os::fd::AsFd) -> io::Result<()> {
    socket2::SockRef::from(listener).listen(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_share_a_port_and_a_taken_one_is_an_error() {
        let sockets = bind("127.0.0.1:0".parse().unwrap(), 3).unwrap();
        let address = sockets[0].local_addr().unwrap();
        assert!(sockets.iter().all(|s| s.local_addr().unwrap() == address));
        assert_eq!(bind(address, 1).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}
