//! A client's connection as bytes, including those that were read to see what it speaks.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use crate::{net::socket::Socket, proxy::client::Client};

/// What every HTTP/2 connection begins with (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes that are read before the protocol is known: a usual head, so that it is read once.
const FIRST_READ: usize = 2048;

/// What a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

/// A client's connection.
#[derive(Debug)]
pub(super) struct Stream {
    socket: Socket,
    /// Read already, and not yet handed on.
    read: Bytes,
    client: Rc<Client>,
}

impl Stream {
    pub(super) fn new(socket: TcpStream, client: Rc<Client>) -> Self {
        Self { socket: Socket::new(socket), read: Bytes::new(), client }
    }

    /// Reads as much as it takes to see what the client speaks. Nothing, if it says nothing in time.
    pub(super) async fn detect(&mut self) -> Option<Protocol> {
        poll_fn(|cx| {
            loop {
                let mut space = [0; FIRST_READ];
                let mut buf = ReadBuf::new(&mut space);
                match Pin::new(&mut self.socket).poll_read(cx, &mut buf) {
                    Poll::Ready(Ok(())) if !buf.filled().is_empty() => {}
                    Poll::Ready(_) => return Poll::Ready(None),
                    Poll::Pending => return self.client.poll_overdue(cx).map(|()| None),
                }
                self.read = match self.read.is_empty() {
                    true => Bytes::copy_from_slice(buf.filled()),
                    false => [&self.read, buf.filled()].concat().into(),
                };
                let compared = self.read.len().min(PREFACE.len());
                if self.read[..compared] != PREFACE[..compared] {
                    return Poll::Ready(Some(Protocol::Http1));
                }
                if compared == PREFACE.len() {
                    return Poll::Ready(Some(Protocol::Http2));
                }
            }
        })
        .await
    }

    fn note_write<T>(&self, polled: &Poll<T>) {
        match polled {
            Poll::Ready(_) => self.client.written(),
            Poll::Pending => self.client.write_blocked(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.read.is_empty() {
            let n = this.read.len().min(buf.remaining());
            buf.put_slice(&this.read[..n]);
            this.read.advance(n);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.socket).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            this.client.bytes_read();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.socket).poll_write(cx, buf);
        self.note_write(&polled);
        polled
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.socket).poll_write_vectored(cx, bufs);
        self.note_write(&polled);
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
