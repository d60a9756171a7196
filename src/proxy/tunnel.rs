//! A tunnel: bytes both ways between a client and a backend that have agreed on something else than
//! HTTP. Each direction has one small buffer, so the slower side sets the pace.

use std::{
    cell::Cell,
    future::poll_fn,
    io,
    ops::DerefMut,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context as Task, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes};

use super::{attempt::Attempt, context::Context, log_entry::LogEntry, upload::RequestBody};
use crate::{model::outcome::Outcome, net::tls::Transport, upstream::pool::h2::Lease};

/// Bytes that each direction may hold.
const BUFFER: usize = 16 * 1024;

/// The backend's end.
#[derive(Debug)]
pub(super) enum Upstream {
    /// A socket, and what has been read from it already.
    Http1(Transport, Bytes),
    /// A stream of a shared connection, and the right to it.
    Http2(Box<TokioIo<Upgraded>>, Lease<RequestBody>),
}

/// A tunnel that is ready to begin.
#[derive(Debug)]
pub(super) struct Tunnel {
    upstream: Upstream,
    attempt: Attempt,
    open: Open,
    idle_timeout: Duration,
}

impl Tunnel {
    pub(super) fn new(
        upstream: Upstream,
        attempt: Attempt,
        context: Rc<Context>,
        idle_timeout: Duration,
    ) -> Self {
        let open = Open::new(context);
        Self { upstream, attempt, open, idle_timeout }
    }

    /// Moves bytes until both sides have ended, one has broken, neither has said anything for too long, or
    /// it is told to end. `early` is what has been read from the client already.
    pub(super) async fn run(self, client: impl AsyncRead + AsyncWrite, early: Bytes) {
        let Self { upstream, mut attempt, open, idle_timeout } = self;
        let moved = Rc::new(Cell::new(true));
        let entry = attempt.entry().cloned();
        let up = Counted { entry: entry.clone(), add: LogEntry::add_in };
        let down = Counted { entry, add: LogEntry::add_out };
        let client = Side { io: pin!(client), early, moved: Rc::clone(&moved), counted: up };
        let copied = match upstream {
            Upstream::Http1(socket, early) => {
                let io = Box::pin(socket);
                let backend = Side { io, early, moved: Rc::clone(&moved), counted: down };
                copy(client, backend, &moved, (&open, &attempt), idle_timeout).await
            }
            Upstream::Http2(io, lease) => {
                let (io, early) = (Pin::new(io), Bytes::new());
                let backend = Side { io, early, moved: Rc::clone(&moved), counted: down };
                let copied = copy(client, backend, &moved, (&open, &attempt), idle_timeout).await;
                drop(lease);
                copied
            }
        };
        if let Err(error) = copied {
            tracing::debug!(%error, "a tunnel ended");
        }
        // However it ended: what was asked of the backend over HTTP, it has done.
        attempt.end(Outcome::Informational);
    }
}

/// A tunnel is open while this lives.
#[derive(Debug)]
struct Open(Rc<Context>);

impl Open {
    fn new(context: Rc<Context>) -> Self {
        context.cells().tunnels_open.add(1);
        Self(context)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.cells().tunnels_open.sub_one();
    }
}

async fn copy(
    mut client: impl AsyncRead + AsyncWrite + Unpin,
    mut backend: impl AsyncRead + AsyncWrite + Unpin,
    moved: &Cell<bool>,
    (open, attempt): (&Open, &Attempt),
    idle_timeout: Duration,
) -> io::Result<()> {
    let deadline = open.0.timers().looking_deadline();
    let mut copying = pin!(copy_bidirectional_with_sizes(&mut client, &mut backend, BUFFER, BUFFER));
    poll_fn(|task| {
        let polled = copying.as_mut().poll(task);
        if polled.is_ready() {
            return polled.map_ok(|_| ());
        }
        if attempt.is_cut() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        if moved.replace(false) {
            deadline.arm(idle_timeout);
        }
        deadline.poll_expired(task).map(|()| Err(io::ErrorKind::TimedOut.into()))
    })
    .await
}

/// One end, which notes that something has moved.
#[derive(Debug)]
struct Side<I> {
    io: Pin<I>,
    early: Bytes,
    moved: Rc<Cell<bool>>,
    counted: Counted,
}

/// Where the access log counts what is read from one end, if the tunnel is logged.
#[derive(Debug)]
struct Counted {
    entry: Option<Rc<LogEntry>>,
    add: fn(&LogEntry, usize),
}

impl Counted {
    fn add(&self, bytes: usize) {
        if let Some(entry) = &self.entry {
            (self.add)(entry, bytes);
        }
    }
}

impl<I: DerefMut<Target: AsyncRead> + Unpin> AsyncRead for Side<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        task: &mut Task<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.early.is_empty() {
            let n = self.early.len().min(buf.remaining());
            buf.put_slice(&self.early[..n]);
            self.early.advance(n);
            self.counted.add(n);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(self.io.as_mut().poll_read(task, buf))?;
        self.counted.add(buf.filled().len() - before);
        self.moved.set(true);
        Poll::Ready(Ok(()))
    }
}

impl<I: DerefMut<Target: AsyncWrite> + Unpin> AsyncWrite for Side<I> {
    fn poll_write(mut self: Pin<&mut Self>, task: &mut Task<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(self.io.as_mut().poll_write(task, buf))?;
        self.moved.set(true);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<io::Result<()>> {
        self.io.as_mut().poll_flush(task)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<io::Result<()>> {
        self.io.as_mut().poll_shutdown(task)
    }
}
