//! One HTTP/1.1 connection to an endpoint, driven by whoever uses it.
//!
//! hyper splits a client connection into a handle that sends requests and a future that moves
//! bytes, and means the future to be spawned as a task of its own. Here it is polled by the exchange
//! that has the connection instead: when the response arrives, the kernel wakes the one task that
//! also writes to the client, with no second task and no channel crossing between them. It also
//! makes the connection's life plain: an exchange that is dropped drops its connection with it.
//!
//! An idle connection is polled by nobody. That it was closed meanwhile shows when it is taken out
//! again, or in [`Connection::is_alive`], which the worker's sweep asks for now and then.
//!
//! A connection wakes through a waker of its own, behind which stands whoever drives it now, or nobody.
//! Its parts tell each other of every step (the request is queued, the chunk is taken), and with the
//! task's own waker each of these would have the task polled once more, to find nothing to do.

use std::{
    future::poll_fn,
    pin::Pin,
    rc::{Rc, Weak},
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use atomic_waker::AtomicWaker;
use bytes::Bytes;
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1},
};
use hyper_util::rt::TokioIo;

use super::{Payload, allowance::Slot};
use crate::net::{proxy_protocol::Origin, splice::Ends, tls::Transport};

/// Bytes that one connection may hold of a response (its head included), and as many of a request.
/// More would not make large responses cheaper: from 32 to 400 KiB, a megabyte costs the same within
/// a tenth.
const MAX_BUFFER: usize = 64 * 1024;

/// Whoever wants to know when the connection can move on.
#[derive(Debug, Default)]
struct Watcher(AtomicWaker);

impl Wake for Watcher {
    fn wake(self: Arc<Self>) {
        self.0.wake();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.wake();
    }
}

type Driver<B> = http1::Connection<TokioIo<Transport>, B>;

/// A connection, and how it has been used.
#[derive(Debug)]
pub struct Connection<B: Payload> {
    sender: http1::SendRequest<B>,
    /// The pipes at its socket, where what goes through it may go through a pipe.
    ends: Option<Rc<Ends>>,
    /// Gone once it is done, and what it still had to send is given back.
    driver: Option<Driver<B>>,
    /// The driver is kept when it is done, because it has the socket that a tunnel will want.
    keeps: bool,
    /// The driver that was kept.
    kept: Option<Box<Driver<B>>>,
    watcher: Arc<Watcher>,
    /// Wakes the watcher.
    waker: Waker,
    /// Whose it is, if it is one client's alone.
    origin: Option<Weak<Origin>>,
    /// Counts among its backend's connections for as long as it is there.
    _slot: Slot<B>,
    opened: Instant,
    requests: u32,
    /// When it was put back, while it is idle.
    pub(super) idle_since: Option<Instant>,
}

impl<B: Payload> Connection<B> {
    /// Prepares a fresh connection for HTTP/1.1, which has been said to be of `origin` if that was said;
    /// nothing else is sent yet.
    ///
    /// # Errors
    /// Never on a fresh connection; the signature is hyper's.
    pub async fn new(
        transport: Transport,
        origin: Option<&Rc<Origin>>,
        slot: Slot<B>,
        now: Instant,
    ) -> hyper::Result<Self> {
        let ends = transport.ends().cloned();
        let (sender, driver) =
            http1::Builder::new().max_buf_size(MAX_BUFFER).handshake(TokioIo::new(transport)).await?;
        let watcher = Arc::<Watcher>::default();
        let waker = Waker::from(Arc::clone(&watcher));
        let driver = Some(driver);
        Ok(Self {
            sender,
            ends,
            driver,
            keeps: false,
            kept: None,
            watcher,
            waker,
            origin: origin.map(Rc::downgrade),
            _slot: slot,
            opened: now,
            requests: 0,
            idle_since: None,
        })
    }

    /// Sends a request. The returned future moves only while [`Self::poll_drive`] is called.
    pub fn send(
        &mut self,
        request: http::Request<B>,
    ) -> impl Future<Output = Result<http::Response<Incoming>, TrySendError<http::Request<B>>>> + use<B> {
        self.requests = self.requests.saturating_add(1);
        self.sender.try_send_request(request)
    }

    /// Moves bytes. Ready once the connection is over, for good or ill; what went wrong is told to
    /// whoever waits for a response or a body.
    pub fn poll_drive(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.watcher.0.register(cx.waker());
        self.poll_driver()
    }

    /// Whoever drove it last is not woken any more until they drive it again.
    pub fn unwatch(&self) {
        drop(self.watcher.0.take());
    }

    fn poll_driver(&mut self) -> Poll<()> {
        let Some(driver) = &mut self.driver else { return Poll::Ready(()) };
        match Pin::new(driver).poll(&mut Context::from_waker(&self.waker)) {
            Poll::Ready(_) => {
                self.kept = self.driver.take().filter(|_| self.keeps).map(Box::new);
                Poll::Ready(())
            }
            Poll::Pending => Poll::Pending,
        }
    }

    /// The pipes at its socket, where what goes through it may go through a pipe.
    pub fn ends(&self) -> Option<&Rc<Ends>> {
        self.ends.as_ref()
    }

    /// The next request may switch protocols: [`Self::into_socket`] will be asked for.
    pub fn keep_socket(&mut self) {
        self.keeps = true;
    }

    /// The socket, and what has been read from it beyond the response, once that was `101 Switching
    /// Protocols`. Nothing without [`Self::keep_socket`].
    pub async fn into_socket(mut self) -> Option<(Transport, Bytes)> {
        poll_fn(|cx| self.poll_drive(cx)).await;
        let http1::Parts { io, read_buf, .. } = self.kept?.into_parts();
        Some((io.into_inner(), read_buf))
    }

    /// How long it has been idle; zero for one that was never put back.
    pub fn idle_for(&self, now: Instant) -> Duration {
        self.idle_since.map_or(Duration::ZERO, |since| now - since)
    }

    /// Whether it has had fewer than so many requests and is younger than that.
    pub fn has_life(&self, requests: Option<u32>, age: Option<Duration>, now: Instant) -> bool {
        requests.is_none_or(|most| self.requests < most)
            && age.is_none_or(|most| now.saturating_duration_since(self.opened) < most)
    }

    /// Whether it may have a request of this client, where connections are one client's alone.
    pub fn is_of(&self, origin: Option<&Rc<Origin>>) -> bool {
        match (&self.origin, origin) {
            (Some(ours), Some(origin)) => std::ptr::eq(ours.as_ptr(), Rc::as_ptr(origin)),
            (None, None) => true,
            _ => false,
        }
    }

    /// Whether the client whose it is has gone, so that nobody may use it any more.
    pub fn is_orphaned(&self) -> bool {
        self.origin.as_ref().is_some_and(|origin| origin.strong_count() == 0)
    }

    /// Whether it could take a request now.
    pub fn is_ready(&self) -> bool {
        self.driver.is_some() && self.sender.is_ready()
    }

    /// Whether an idle connection is still open.
    pub fn is_alive(&mut self) -> bool {
        self.poll_driver().is_pending() && self.is_ready()
    }
}
