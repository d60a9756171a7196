//! HTTP/2 connections to one endpoint, each shared by many exchanges.
//!
//! A connection is driven by a task of its own on the worker's thread. An exchange leases a stream: of
//! the first connection that has one left, so that connections that are needed no more run empty and
//! are closed. How many a connection has is what the other side says
//! (`SETTINGS_MAX_CONCURRENT_STREAMS`), and at most `max_concurrent_streams`. When all are taken, one exchange
//! makes another connection and the others wait for it. Until a new connection's settings have come, only
//! the exchange that made it uses it: more could be more than it may have, and would wait there for each
//! other instead of going elsewhere. Where there may be no other connection, exchanges wait in a line for a
//! stream, and whoever comes later stands behind them.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    pin::{Pin, pin},
    rc::Rc,
    task::{Poll, Waker},
    time::{Duration, Instant},
};

use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http2},
    rt::Executor,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Notify;

use crate::{
    clock,
    net::{executor::LocalExecutor, tls::Transport},
    upstream::{
        Payload,
        allowance::{Allowance, ForStream, Slot},
        connect::ConnectError,
    },
};

/// Streams that a connection has before the other side has said how many.
const FIRST_STREAMS: usize = 1;
/// Connections that one worker has to one endpoint, however many there may be in all. Beyond, requests wait
/// for a stream.
const MAX_CONNECTIONS: usize = 16;
/// Longest time that a connection is kept without a stream.
const MAX_IDLE_TIME: Duration = Duration::from_secs(60);
/// Bytes that a backend may send on one stream before the client has taken them.
const STREAM_WINDOW: u32 = 256 * 1024;
/// The same for a connection; four times the stream's, since equal ones can lock each other out.
const CONNECTION_WINDOW: u32 = 4 * STREAM_WINDOW;
/// Bytes that one stream may hold for a backend that does not read.
const MAX_SEND_BUFFER: usize = 64 * 1024;
/// Bytes of a response's fields.
const MAX_HEADER_LIST: u32 = 64 * 1024;
/// How long a connection with streams may be silent before it is asked whether it is alive, and how
/// long it may take to say so.
const PING: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));
/// How often one looks whether a connection's settings have come.
const SETTINGS_LOOK: Duration = Duration::from_millis(5);

type Driver<B> = http2::Connection<TokioIo<Transport>, B, Attentive>;

/// Whether the other side's settings have come, of one connection.
#[derive(Debug)]
struct Settling {
    settled: Cell<bool>,
    /// Of the connection's task, which sees whether they have.
    waker: RefCell<Option<Waker>>,
    /// Told when they have, or when they will not.
    changed: Rc<Notify>,
    line: Rc<Line>,
}

impl Settling {
    fn end(&self) {
        if !self.settled.replace(true) {
            self.changed.notify_waiters();
            self.line.wake();
        }
    }
}

/// Spawns what hyper wants spawned. Until the settings have come, the connection's task looks for them
/// whenever some of it has moved, because it is not what reads them, and hyper does not tell.
#[derive(Debug, Clone)]
struct Attentive(Rc<Settling>);

impl<F: Future<Output = ()> + 'static> Executor<F> for Attentive {
    fn execute(&self, future: F) {
        if self.0.settled.get() {
            return LocalExecutor.execute(future);
        }
        let settling = Rc::clone(&self.0);
        LocalExecutor.execute(async move {
            let mut future = pin!(future);
            poll_fn(|cx| {
                let polled = future.as_mut().poll(cx);
                if let Some(waker) = settling.waker.take() {
                    waker.wake();
                }
                polled
            })
            .await;
        });
    }
}

/// One connection.
#[derive(Debug)]
struct Shared<B: Payload> {
    sender: RefCell<http2::SendRequest<B>>,
    /// Run by its own task; asked here for what the other side allows. Gone once it is done, and what
    /// it still had to send is given back.
    driver: Rc<RefCell<Option<Driver<B>>>>,
    streams: Cell<u32>,
    idle_since: Cell<Instant>,
    /// The other side takes no more requests here.
    retired: Cell<bool>,
    settling: Rc<Settling>,
    _slot: Slot<B>,
}

/// Exchanges that wait for a stream.
#[derive(Debug, Default)]
struct Line {
    waiting: Cell<u32>,
    freed: Notify,
}

impl Line {
    /// Tells the first one that there may be a stream.
    fn wake(&self) {
        if self.waiting.get() > 0 {
            self.freed.notify_one();
        }
    }
}

impl<B: Payload> Shared<B> {
    fn new(
        (sender, driver): (http2::SendRequest<B>, Driver<B>),
        settling: Rc<Settling>,
        slot: Slot<B>,
    ) -> Self {
        let driver = Rc::new(RefCell::new(Some(driver)));
        let (driven, watched) = (Rc::clone(&driver), Rc::clone(&settling));
        tokio::task::spawn_local(async move {
            let drive = poll_fn(|cx| {
                let Some(driver) = &mut *driven.borrow_mut() else { return Poll::Ready(Ok(())) };
                let polled = Pin::new(&mut *driver).poll(cx);
                if driver.current_max_send_streams() != FIRST_STREAMS {
                    watched.end();
                } else if !watched.settled.get() {
                    *watched.waker.borrow_mut() = Some(cx.waker().clone());
                }
                polled
            });
            if let Err(error) = drive.await {
                tracing::debug!(%error, "a connection to a backend ended");
            }
            let over = driven.borrow_mut().take();
            drop(over);
            watched.end();
        });
        Self {
            sender: RefCell::new(sender),
            driver,
            streams: Cell::new(0),
            idle_since: Cell::new(clock::monotonic()),
            retired: Cell::new(false),
            settling,
            _slot: slot,
        }
    }

    fn is_open(&self) -> bool {
        !self.retired.get() && !self.sender.borrow().is_closed()
    }

    /// Whether it has a stream left, of `most` or of those that the other side allows.
    fn has_room(&self, most: u32) -> bool {
        let driver = self.driver.borrow();
        let allowed = driver.as_ref().map_or(0, http2::Connection::current_max_send_streams);
        self.is_open() && self.streams.get() < most.min(u32::try_from(allowed).unwrap_or(u32::MAX))
    }
}

/// One worker's connections to one endpoint.
#[derive(Debug)]
pub struct Pool<B: Payload> {
    allowance: Rc<Allowance<B>>,
    connections: RefCell<Vec<Rc<Shared<B>>>>,
    connecting: Cell<bool>,
    /// Why the last connection could not be made, and how many could not.
    failed: RefCell<(u64, Option<Rc<ConnectError>>)>,
    changed: Rc<Notify>,
    line: Rc<Line>,
}

/// Why there is no stream.
#[derive(Debug)]
pub enum NoStream {
    /// There is no connection.
    Unconnected {
        /// Why not.
        error: Rc<ConnectError>,
        /// Whether it was this caller who tried to make it.
        tried: bool,
    },
    /// All are taken, and there can be no other connection: one has to wait in the line.
    Full,
}

/// A place in the line for a stream. Dropping it leaves the line.
#[derive(Debug)]
pub struct Place<'p, B: Payload> {
    pool: &'p Pool<B>,
    _right: ForStream<B>,
}

impl<B: Payload> Place<'_, B> {
    /// Waits until it is this one's turn to look for a stream again.
    pub async fn turn(&self) {
        self.pool.line.freed.notified().await;
    }
}

impl<B: Payload> Drop for Place<'_, B> {
    fn drop(&mut self) {
        let line = &self.pool.line;
        line.waiting.set(line.waiting.get() - 1);
        // There may be enough for the next one too. If not, it would be woken for nothing and stand last.
        if self.pool.has_way() {
            line.wake();
        }
    }
}

impl<B: Payload> Pool<B> {
    /// No connection yet.
    pub(in crate::upstream) fn new(allowance: Rc<Allowance<B>>) -> Self {
        Self {
            allowance,
            connections: RefCell::default(),
            connecting: Cell::new(false),
            failed: RefCell::default(),
            changed: Rc::default(),
            line: Rc::default(),
        }
    }

    /// A stream, if a connection has one left and nobody waits for it.
    pub fn take(&self) -> Option<Lease<B>> {
        if self.line.waiting.get() > 0 { None } else { self.find() }
    }

    fn find(&self) -> Option<Lease<B>> {
        let most = self.allowance.pool.max_concurrent_streams;
        let connections = self.connections.borrow();
        connections.iter().find(|connection| connection.has_room(most)).map(Lease::new)
    }

    /// Whether somebody would find a stream, or has to make the first connection.
    fn has_way(&self) -> bool {
        let most = self.allowance.pool.max_concurrent_streams;
        let connections = self.connections.borrow();
        let mut open = connections.iter().filter(|connection| connection.is_open()).peekable();
        open.peek().is_none() || open.any(|connection| connection.has_room(most))
    }

    /// A place in the line for a stream; nothing if as many wait as may.
    pub(in crate::upstream) fn queue(&self) -> Option<Place<'_, B>> {
        let right = self.allowance.wait_for_stream()?;
        self.line.waiting.set(self.line.waiting.get() + 1);
        Some(Place { pool: self, _right: right })
    }

    /// The same as [`Self::take`], waiting for a connection where need be; `connect` makes one, and `late` is
    /// ready when what another exchange makes has been waited for long enough. With the `place` that has had
    /// its turn, if there is one.
    ///
    /// # Errors
    /// When there is no connection in time, and none can be made, or none may.
    pub async fn lease<C>(
        &self,
        place: Option<&Place<'_, B>>,
        connect: impl Fn() -> C,
        late: impl Future<Output = ConnectError>,
    ) -> Result<Lease<B>, NoStream>
    where
        C: Future<Output = Result<Transport, ConnectError>>,
    {
        let mut late = pin!(late);
        let failures = self.failed.borrow().0;
        loop {
            // Before looking, so that what changes in between is not missed.
            let changed = self.changed.notified();
            if let Some(lease) = if place.is_some() { self.find() } else { self.take() } {
                return Ok(lease);
            }
            if !self.connecting.get() && !self.is_unsettled() {
                let slot = self.reserve().ok_or(NoStream::Full)?;
                return self.open(slot, connect).await;
            }
            tokio::select! {
                () = changed => {}
                error = &mut late => {
                    return Err(NoStream::Unconnected { error: Rc::new(error), tried: false });
                }
            }
            let (now, error) = &*self.failed.borrow();
            if let (true, Some(error)) = (*now != failures, error) {
                return Err(self.without_another(error, false));
            }
        }
    }

    /// Whether a connection has yet to hear how many streams it may have.
    fn is_unsettled(&self) -> bool {
        let connections = self.connections.borrow();
        connections.iter().any(|connection| connection.is_open() && !connection.settling.settled.get())
    }

    /// The right to open a connection.
    fn reserve(&self) -> Option<Slot<B>> {
        self.connections.borrow_mut().retain(|connection| connection.is_open());
        let open = self.connections.borrow().len();
        (open < MAX_CONNECTIONS).then(|| self.allowance.reserve_shared(open == 0)).flatten()
    }

    async fn open<C>(&self, slot: Slot<B>, connect: impl Fn() -> C) -> Result<Lease<B>, NoStream>
    where
        C: Future<Output = Result<Transport, ConnectError>>,
    {
        let _connecting = Connecting::begin(self);
        let settling = Rc::new(Settling {
            settled: Cell::new(false),
            waker: RefCell::default(),
            changed: Rc::clone(&self.changed),
            line: Rc::clone(&self.line),
        });
        let attentive = Attentive(Rc::clone(&settling));
        let connected = async { handshake(connect().await?, attentive).await.map_err(ConnectError::Tcp) };
        match connected.await {
            Ok(connection) => {
                let shared = Rc::new(Shared::new(connection, settling, slot));
                let lease = Lease::new(&shared);
                self.connections.borrow_mut().push(shared);
                Ok(lease)
            }
            Err(error) => {
                let error = Rc::new(error);
                let mut failed = self.failed.borrow_mut();
                *failed = (failed.0 + 1, Some(Rc::clone(&error)));
                drop(failed);
                Err(self.without_another(&error, true))
            }
        }
    }

    /// Another connection could not be made: one waits for those that there are, if there are any.
    fn without_another(&self, error: &Rc<ConnectError>, tried: bool) -> NoStream {
        match self.connections.borrow().iter().any(|connection| connection.is_open()) {
            true => NoStream::Full,
            false => NoStream::Unconnected { error: Rc::clone(error), tried },
        }
    }

    /// Closes a connection that has no stream, to make room for one to another endpoint; whether there was one.
    pub(in crate::upstream) fn close_idle(&self) -> bool {
        let mut connections = self.connections.borrow_mut();
        let idle = connections.iter().position(|connection| connection.streams.get() == 0);
        let closed = idle.map(|idle| connections.remove(idle));
        drop(connections);
        closed.is_some()
    }

    /// Closes connections that have been without a stream for too long, and forgets those that are
    /// closed. One that is not closed yet ends with its last stream.
    pub fn sweep(&self, now: Instant) {
        self.connections.borrow_mut().retain(|connection| {
            let idle = connection.streams.get() == 0
                && now.saturating_duration_since(connection.idle_since.get()) >= MAX_IDLE_TIME;
            connection.is_open() && !idle
        });
    }
}

async fn handshake<B: Payload>(
    transport: Transport,
    executor: Attentive,
) -> io::Result<(http2::SendRequest<B>, Driver<B>)> {
    let io = TokioIo::new(transport);
    let made = http2::Builder::new(executor)
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(MAX_SEND_BUFFER)
        .max_header_list_size(MAX_HEADER_LIST)
        .initial_max_send_streams(FIRST_STREAMS)
        .keep_alive_interval(PING.0)
        .keep_alive_timeout(PING.1)
        .handshake(io);
    made.await.map_err(io::Error::other)
}

/// A connection is being made while this lives; its end is told to those who wait.
struct Connecting<'p>(&'p Cell<bool>, &'p Notify);

impl<'p> Connecting<'p> {
    fn begin<B: Payload>(pool: &'p Pool<B>) -> Self {
        pool.connecting.set(true);
        Self(&pool.connecting, &pool.changed)
    }
}

impl Drop for Connecting<'_> {
    fn drop(&mut self) {
        self.0.set(false);
        self.1.notify_waiters();
    }
}

/// A stream of a connection, free again when this is dropped.
#[derive(Debug)]
pub struct Lease<B: Payload>(Rc<Shared<B>>);

impl<B: Payload> Lease<B> {
    fn new(shared: &Rc<Shared<B>>) -> Self {
        shared.streams.set(shared.streams.get() + 1);
        Self(Rc::clone(shared))
    }

    /// Sends a request.
    pub fn send(
        &self,
        request: http::Request<B>,
    ) -> impl Future<Output = Result<http::Response<Incoming>, TrySendError<http::Request<B>>>> + use<B> {
        self.0.sender.borrow_mut().try_send_request(request)
    }

    /// The other side takes no more requests on this connection.
    pub fn retire(&self) {
        self.0.retired.set(true);
        self.0.settling.end();
    }

    /// A response has not come in time. If the other side's settings have not, either, nothing will.
    pub fn give_up(&self) {
        if !self.0.settling.settled.get() {
            self.retire();
        }
    }

    /// A response has come, and so have the other side's settings.
    pub fn settle(&self) {
        self.0.settling.end();
    }

    /// Whether the other side takes extended CONNECT (RFC 8441), which it says with its settings. On a
    /// new connection they may still be on their way, and are waited for.
    pub async fn takes_extended_connect(&self, timeout: Duration) -> bool {
        let driver = &self.0.driver;
        let takes = || driver.borrow().as_ref().is_some_and(|d| d.is_extended_connect_protocol_enabled());
        let look = async {
            while !takes() && !self.0.settling.settled.get() && self.0.is_open() {
                tokio::time::sleep(SETTINGS_LOOK).await;
            }
        };
        let _in_time = tokio::time::timeout(timeout, look).await;
        takes()
    }
}

impl<B: Payload> Drop for Lease<B> {
    fn drop(&mut self) {
        let streams = self.0.streams.get() - 1;
        self.0.streams.set(streams);
        if streams == 0 {
            self.0.idle_since.set(clock::monotonic());
        }
        self.0.settling.line.wake();
    }
}
