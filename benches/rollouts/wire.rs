//! HTTP/1.1 as far as backends and clients of a bench need it.

use std::{io, net::SocketAddr, sync::Arc, thread};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// A connection.
pub(crate) struct Wire {
    stream: TcpStream,
    unused: Vec<u8>,
}

/// A response.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Wire {
    pub(crate) async fn connect(address: SocketAddr) -> io::Result<Self> {
        Self::new(TcpStream::connect(address).await?)
    }

    fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self { stream, unused: Vec::new() })
    }

    /// Sends a request without a body, or with one that is part of it, and reads the response.
    pub(crate) async fn ask(&mut self, request: &str) -> io::Result<Reply> {
        self.stream.write_all(request.as_bytes()).await?;
        let head = self.head().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.ok_or(io::ErrorKind::InvalidData)?;
        let body = self.body(&head).await?;
        Ok(Reply { status, head, body })
    }

    /// The body that belongs to a head.
    async fn body(&mut self, head: &str) -> io::Result<Vec<u8>> {
        let length = field(head, "content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        while self.unused.len() < length {
            if self.stream.read_buf(&mut self.unused).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(self.unused.drain(..length).collect())
    }

    /// A head with its empty line; nothing at the end of the connection.
    async fn head(&mut self) -> io::Result<Option<String>> {
        loop {
            if let Some(end) = self.unused.windows(4).position(|window| window == b"\r\n\r\n") {
                let head: Vec<u8> = self.unused.drain(..end + 4).collect();
                return Ok(Some(String::from_utf8_lossy(&head).into_owned()));
            }
            match self.stream.read_buf(&mut self.unused).await? {
                0 if self.unused.is_empty() => return Ok(None),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                _ => {}
            }
        }
    }
}

/// The value of a field of a head.
pub(crate) fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let fields = head.lines().filter_map(|line| line.split_once(':'));
    fields.filter(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).next()
}

/// Asks the admin API, whose answers are JSON: the status and what it says.
pub(crate) async fn api(admin: SocketAddr, method: &str, path: &str, body: &str) -> io::Result<(u16, Value)> {
    let length = body.len();
    let mut wire = Wire::connect(admin).await?;
    let reply = wire
        .ask(&format!(
            "{method} /api/v1/services{path} HTTP/1.1\r\nHost: {admin}\r\nContent-Length: {length}\r\n\r\n{body}"
        ))
        .await?;
    Ok((reply.status, serde_json::from_slice(&reply.body)?))
}

/// What a backend does with the head of a request: whether all is well with it.
pub(crate) type Handler = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// Serves backends by their names, on a thread of their own, for as long as the process lives. A response is
/// 200, or 500 where not all is well, and says in `x-backend` whose it is. Its body is a number, for whoever
/// measures.
pub(crate) fn serve(backends: Vec<(String, Handler)>) -> io::Result<Vec<SocketAddr>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut addresses = Vec::new();
    for (name, handler) in backends {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        addresses.push(listener.local_addr()?);
        let listener = {
            let _within = runtime.enter();
            TcpListener::from_std(listener)?
        };
        runtime.spawn(async move {
            loop {
                // An error is of that one connection, which its client notices.
                let Ok((stream, _)) = listener.accept().await else { continue };
                tokio::spawn(answer(stream, name.clone(), Arc::clone(&handler)));
            }
        });
    }
    thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
    Ok(addresses)
}

async fn answer(stream: TcpStream, name: String, handler: Handler) -> io::Result<()> {
    let mut wire = Wire::new(stream)?;
    while let Some(head) = wire.head().await? {
        wire.body(&head).await?;
        let status = if handler(&head) { "200 OK" } else { "500 Internal Server Error" };
        let reply = format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\nx-backend: {name}\r\n\r\n10");
        wire.stream.write_all(reply.as_bytes()).await?;
    }
    Ok(())
}
