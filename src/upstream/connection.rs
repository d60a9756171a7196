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
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use atomic_waker::AtomicWaker;
use http_body::Body;
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1},
};
use hyper_util::rt::TokioIo;

use crate::net::tls::Transport;

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

/// A connection, and how it has been used.
#[derive(Debug)]
pub struct Connection<B: Body + 'static> {
    sender: http1::SendRequest<B>,
    driver: Option<http1::Connection<TokioIo<Transport>, B>>,
    watcher: Arc<Watcher>,
    /// Wakes the watcher.
    waker: Waker,
    /// When it was put back, while it is idle.
    pub(super) idle_since: Option<Instant>,
}

impl<B> Connection<B>
where
    B: Body + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// Prepares a fresh connection for HTTP/1.1; nothing is sent yet.
    ///
    /// # Errors
    /// Never on a fresh connection; the signature is hyper's.
    pub async fn new(transport: Transport) -> hyper::Result<Self> {
        let (sender, driver) =
            http1::Builder::new().max_buf_size(MAX_BUFFER).handshake(TokioIo::new(transport)).await?;
        let watcher = Arc::<Watcher>::default();
        let waker = Waker::from(Arc::clone(&watcher));
        Ok(Self { sender, driver: Some(driver), watcher, waker, idle_since: None })
    }

    /// Sends a request. The returned future moves only while [`Self::poll_drive`] is called.
    pub fn send(
        &mut self,
        request: http::Request<B>,
    ) -> impl Future<Output = Result<http::Response<Incoming>, TrySendError<http::Request<B>>>> + use<B> {
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
                self.driver = None;
                Poll::Ready(())
            }
            Poll::Pending => Poll::Pending,
        }
    }

    /// How long it has been idle; zero for one that was never put back.
    pub fn idle_for(&self, now: Instant) -> Duration {
        self.idle_since.map_or(Duration::ZERO, |since| now - since)
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
