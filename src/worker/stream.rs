//! A client's connection as bytes, including those that were read to see what it speaks.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::{Buf, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::flush::Flusher;
use crate::{
    clock,
    net::{socket::Socket, tls::Transport},
    proxy::client::Client,
};

/// What every HTTP/2 connection begins with (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes that are read before the protocol is known: a usual head, so that it is read once.
const FIRST_READ: usize = 2048;

/// Bytes that an HTTP/2 connection gathers at most before it sends them.
pub(super) const OUTBOX: usize = 32 * 1024;

/// Bytes of memory that it keeps between times.
const KEPT: usize = 4 * 1024;

/// How long a client that has had its answer may go on sending, and how long it may pause: what it sends
/// is read and forgotten (nginx's `lingering_time` and `lingering_timeout`).
const LINGER: Duration = Duration::from_secs(30);
const LINGER_IDLE: Duration = Duration::from_secs(5);

/// Bytes that are forgotten at a time.
const FORGET: usize = 16 * 1024;

/// What a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

/// A client's connection.
#[derive(Debug)]
pub(super) struct Stream {
    socket: Transport,
    /// Read already, and not yet handed on.
    read: Bytes,
    /// Written by HTTP/2 and not yet sent; the first `sent` bytes are.
    outbox: Vec<u8>,
    sent: usize,
    /// Since when we have said our last.
    lingers: Option<Instant>,
    client: Rc<Client>,
    flusher: Rc<Flusher>,
}

impl Stream {
    /// In a box, because what serves a connection hands it on from one future to the next, and each of these
    /// has room for it twice.
    pub(super) fn new(socket: TcpStream, client: Rc<Client>, flusher: Rc<Flusher>) -> Box<Self> {
        let socket = Socket::new(socket, Rc::clone(client.ends()));
        Self::over(Transport::Plain(socket), client, flusher)
    }

    /// The same over what has been made of a socket.
    pub(super) fn over(socket: Transport, client: Rc<Client>, flusher: Rc<Flusher>) -> Box<Self> {
        Box::new(Self {
            socket,
            read: Bytes::new(),
            outbox: Vec::new(),
            sent: 0,
            lingers: None,
            client,
            flusher,
        })
    }

    /// What it is over, and what has been read from that beyond `before`.
    pub(super) fn into_transport(self, before: Bytes) -> (Transport, Bytes) {
        let Self { socket, read, .. } = self;
        let read = if read.is_empty() { before } else { [&before[..], &read].concat().into() };
        (socket, read)
    }

    /// Reads as much as it takes to see what the client speaks. Nothing, if it says nothing in time.
    pub(super) async fn detect(&mut self) -> Option<Protocol> {
        poll_fn(|cx| {
            loop {
                match self.poll_first(cx) {
                    Poll::Ready(true) => {}
                    Poll::Ready(false) => return Poll::Ready(None),
                    Poll::Pending => return self.client.poll_overdue(cx).map(|()| None),
                }
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

    /// Waits for an idle client to say something, with no memory set aside for it. `before` has been read
    /// already. False once nothing more will come, or shall.
    pub(super) async fn rest(&mut self, before: Bytes) -> bool {
        // A copy, because even an empty part of a buffer keeps all of it.
        self.read = Bytes::copy_from_slice(&before);
        drop(before);
        let goes_on = poll_fn(|cx| match self.poll_first(cx) {
            Poll::Ready(more) => Poll::Ready(Some(more)),
            // Only after a look at what has come: a request in the socket would be lost.
            Poll::Pending if self.client.is_closing() => Poll::Ready(Some(false)),
            Poll::Pending => self.client.poll_overdue(cx).map(|()| None),
        });
        match goes_on.await {
            Some(true) => {
                self.client.bytes_read();
                true
            }
            Some(false) => {
                poll_fn(|cx| match Pin::new(&mut *self).poll_shutdown(cx) {
                    Poll::Ready(_) => Poll::Ready(()),
                    Poll::Pending => self.client.poll_overdue(cx),
                })
                .await;
                false
            }
            None => false,
        }
    }

    /// Reads what comes before there is a buffer for it. False once nothing more will come.
    fn poll_first(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let mut space = [0; FIRST_READ];
        let mut buf = ReadBuf::new(&mut space);
        if ready!(Pin::new(&mut self.socket).poll_read(cx, &mut buf)).is_err() || buf.filled().is_empty() {
            return Poll::Ready(false);
        }
        self.read = match self.read.is_empty() {
            true => Bytes::copy_from_slice(buf.filled()),
            false => [&self.read, buf.filled()].concat().into(),
        };
        Poll::Ready(true)
    }

    fn note_write<T>(&self, polled: &Poll<T>) {
        match polled {
            Poll::Ready(_) => self.client.written(),
            Poll::Pending => self.client.write_blocked(),
        }
    }

    /// Says that no more will come, and reads and forgets what the client still sends, until it has
    /// closed, too, or has been waited for long enough.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let since = match self.lingers {
            Some(since) => since,
            None => {
                ready!(Pin::new(&mut self.socket).poll_shutdown(cx))?;
                let now = clock::monotonic();
                self.client.allow(LINGER_IDLE);
                *self.lingers.insert(now)
            }
        };
        let mut space = [0; FORGET];
        loop {
            let mut buf = ReadBuf::new(&mut space);
            let read = ready!(Pin::new(&mut self.socket).poll_read(cx, &mut buf));
            if read.is_err() || buf.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            let left = LINGER.saturating_sub(since.elapsed());
            if left.is_zero() {
                return Poll::Ready(Ok(()));
            }
            self.client.allow(left.min(LINGER_IDLE));
        }
    }

    /// Sends what is gathered, all of it.
    fn poll_outbox(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.outbox.len() {
            let polled = Pin::new(&mut self.socket).poll_write(cx, &self.outbox[self.sent..]);
            self.note_write(&polled);
            let n = ready!(polled)?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += n;
        }
        self.sent = 0;
        self.outbox.clear();
        // One large moment must not cost memory for the rest of the connection's life.
        self.outbox.shrink_to(KEPT);
        self.client.end_flush();
        self.poll_records(cx)
    }

    /// Sends what TLS has taken and not sent.
    fn poll_records(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.socket.is_tls() {
            return Poll::Ready(Ok(()));
        }
        let polled = Pin::new(&mut self.socket).poll_flush(cx);
        self.note_write(&polled);
        polled
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
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.client.is_multiplexed() {
            let total: usize = bufs.iter().map(|buf| buf.len()).sum();
            if self.outbox.len() + total <= OUTBOX {
                bufs.iter().for_each(|buf| self.outbox.extend_from_slice(buf));
                return Poll::Ready(Ok(total));
            }
            ready!(self.poll_outbox(cx))?;
        }
        let polled = Pin::new(&mut self.socket).poll_write_vectored(cx, bufs);
        self.note_write(&polled);
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.outbox.is_empty() {
            return self.poll_records(cx);
        }
        if self.client.is_flush_due() {
            return self.poll_outbox(cx);
        }
        if self.client.begin_flush() {
            self.flusher.add(&self.client);
        }
        // Not true yet, and soon: whoever asked has nothing else to wait for.
        Poll::Ready(Ok(()))
    }

    /// Sends what is gathered. The socket is closed right afterwards, which tells the other side the
    /// same as a shutdown would, for one system call less; but a client that is still sending is
    /// waited for, since closing with bytes unread resets the connection, and with it goes what the
    /// client has been told and not read yet. TLS has a farewell of its own, without which the other
    /// side could not tell an end from a cut.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_outbox(cx))?;
        if !self.client.is_multiplexed() && self.client.may_be_sending() {
            return self.poll_linger(cx);
        }
        if self.socket.is_tls() { Pin::new(&mut self.socket).poll_shutdown(cx) } else { Poll::Ready(Ok(())) }
    }
}
