//! A connection's bytes, with or without TLS.
//!
//! Without it, a branch is all that this costs.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsStream;

use super::{socket::Socket, splice::Ends};

/// A connection's bytes, with or without TLS.
#[derive(Debug)]
pub enum Transport {
    /// As they are on the wire.
    Plain(Socket),
    /// What is inside.
    Tls(Box<TlsStream<Socket>>),
}

impl Transport {
    /// With TLS, after the handshake.
    pub fn tls(stream: impl Into<TlsStream<Socket>>) -> Self {
        Self::Tls(Box::new(stream.into()))
    }

    /// The pipes at its socket; nothing where only TLS may touch it.
    pub fn ends(&self) -> Option<&Rc<Ends>> {
        match self {
            Self::Plain(socket) => Some(socket.ends()),
            Self::Tls(_) => None,
        }
    }

    /// Whether it speaks TLS, and so may hold bytes that it has been given and not sent.
    pub fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }
}

/// Calls a method of what is inside, whichever it is.
macro_rules! inside {
    ($self:ident, $transport:ident => $call:expr) => {
        match $self.get_mut() {
            Transport::Plain(socket) => {
                let $transport = Pin::new(socket);
                $call
            }
            Transport::Tls(stream) => {
                let $transport = Pin::new(&mut **stream);
                $call
            }
        }
    };
}

impl AsyncRead for Transport {
    #[inline]
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        inside!(self, transport => transport.poll_read(cx, buf))
    }
}

impl AsyncWrite for Transport {
    #[inline]
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        inside!(self, transport => transport.poll_write(cx, buf))
    }

    #[inline]
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        inside!(self, transport => transport.poll_write_vectored(cx, bufs))
    }

    /// Both take several slices: the one makes one write of them, the other one record.
    fn is_write_vectored(&self) -> bool {
        true
    }

    #[inline]
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        inside!(self, transport => transport.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        inside!(self, transport => transport.poll_shutdown(cx))
    }
}
