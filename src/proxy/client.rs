//! What an exchange knows of the client's connection, and the connection of its exchanges.

use std::{
    cell::{Cell, RefCell},
    net::{IpAddr, SocketAddr},
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use http::HeaderValue;

use super::{log_entry::LogEntry, upgrade::Switched};
use crate::net::{splice::Ends, timers::Deadline};

/// How long a connection that has just been made may take over its first request when the worker is
/// about to end: the client could not know.
const LAST_CALL: Duration = Duration::from_secs(1);

/// How long a client may take over what.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Longest time that a request's head may take.
    pub header: Duration,
    /// Longest time between requests.
    pub idle: Duration,
}

/// Whether bytes are gathered to be sent together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Flush {
    /// None are.
    #[default]
    Nothing,
    /// Some are, and wait for more.
    Waiting,
    /// They shall be sent.
    Due,
}

/// One connection from a client.
#[derive(Debug)]
pub struct Client {
    /// Its address as `X-Forwarded-For` says it; made once for all requests of the connection.
    pub(super) forwarded_for: HeaderValue,
    /// The same as an address.
    pub(super) address: IpAddr,
    patience: Patience,
    deadline: Deadline,
    exchanges: Cell<u32>,
    fresh: Cell<bool>,
    reading_head: Cell<bool>,
    /// It takes no more bytes for now.
    blocked: Cell<bool>,
    multiplexed: Cell<bool>,
    closing: Cell<bool>,
    flush: Cell<Flush>,
    pulse: Rc<Cell<u64>>,
    ends: Rc<Ends>,
    waker: RefCell<Option<Waker>>,
    /// What the connection becomes once its last response is written.
    switched: RefCell<Option<Box<Switched>>>,
}

impl Client {
    /// A connection that has just been accepted: its first request's head is awaited.
    ///
    /// `pulse` is counted up whenever it gets something done.
    pub fn new(address: SocketAddr, patience: Patience, deadline: Deadline, pulse: Rc<Cell<u64>>) -> Self {
        deadline.arm(patience.header);
        // An IPv4 client of a dual-stack listener is an IPv4 client.
        let address = address.ip().to_canonical();
        let text = address.to_string();
        Self {
            forwarded_for: HeaderValue::try_from(text).expect("an address is visible ASCII"),
            address,
            patience,
            deadline,
            exchanges: Cell::new(0),
            fresh: Cell::new(true),
            reading_head: Cell::new(true),
            blocked: Cell::new(false),
            multiplexed: Cell::new(false),
            closing: Cell::new(false),
            flush: Cell::default(),
            pulse,
            ends: Rc::default(),
            waker: RefCell::new(None),
            switched: RefCell::default(),
        }
    }

    /// The connection speaks HTTP/2, where bytes may come that belong to no request.
    pub fn set_multiplexed(&self) {
        self.multiplexed.set(true);
    }

    /// The pipes at its socket.
    pub fn ends(&self) -> &Rc<Ends> {
        &self.ends
    }

    /// Whether a body may go to its socket as it is: HTTP/2 puts it into frames.
    pub(super) fn takes_pipes(&self) -> bool {
        !self.multiplexed.get()
    }

    /// Whether the connection speaks HTTP/2.
    pub fn is_multiplexed(&self) -> bool {
        self.multiplexed.get()
    }

    /// Gives the client a last moment to read what it was told.
    pub fn wait_for_farewell(&self) {
        self.deadline.arm(self.patience.header);
    }

    /// An exchange begins; it lasts until the returned guard is dropped.
    pub(super) fn begin(self: &Rc<Self>) -> Busy {
        self.exchanges.set(self.exchanges.get() + 1);
        self.fresh.set(false);
        self.reading_head.set(false);
        self.blocked.set(false);
        self.deadline.disarm();
        Busy { client: Rc::clone(self), entry: None }
    }

    /// Bytes have come. If no exchange is on, they begin a head, which may not take for ever.
    #[inline]
    pub fn bytes_read(&self) {
        self.beat();
        if self.exchanges.get() == 0 && !self.reading_head.get() && !self.multiplexed.get() {
            self.reading_head.set(true);
            self.deadline.arm(self.patience.header);
        }
    }

    /// It takes no more bytes for now; if that lasts for as long as it may be idle, it is overdue. Nobody
    /// else would notice: a backend that waits for it is waited for by nobody.
    pub fn write_blocked(&self) {
        if !self.blocked.replace(true) && !self.is_idle() {
            self.deadline.arm(self.patience.idle);
        }
    }

    /// It has taken bytes.
    #[inline]
    pub fn written(&self) {
        if self.blocked.replace(false) && !self.is_idle() {
            self.deadline.disarm();
        }
    }

    /// Gathered bytes begin to wait; false if some waited already.
    pub fn begin_flush(&self) -> bool {
        let begins = self.flush.get() == Flush::Nothing;
        if begins {
            self.flush.set(Flush::Waiting);
        }
        begins
    }

    /// The wait is over: the connection's task sends what it has gathered.
    pub fn flush_now(&self) {
        self.flush.set(Flush::Due);
        self.wake();
    }

    /// Whether what was gathered shall be sent.
    pub fn is_flush_due(&self) -> bool {
        self.flush.get() == Flush::Due
    }

    /// What was gathered has been sent.
    pub fn end_flush(&self) {
        self.flush.set(Flush::Nothing);
    }

    fn beat(&self) {
        self.pulse.set(self.pulse.get().wrapping_add(1));
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// Whether it has been idle, or busy with a head, for too long.
    pub fn poll_overdue(&self, cx: &Context<'_>) -> Poll<()> {
        self.deadline.poll_expired(cx)
    }

    /// Whether no exchange is on.
    pub fn is_idle(&self) -> bool {
        self.exchanges.get() == 0
    }

    /// Remembers the task that drives the connection, for [`Self::close`] to wake.
    pub fn register(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if waker.is_none() {
            *waker = Some(cx.waker().clone());
        }
    }

    /// Whether its first request is still awaited.
    pub fn is_fresh(&self) -> bool {
        self.fresh.get() && !self.multiplexed.get()
    }

    /// Asks for the connection to end after the exchanges that are on; or after its first, if that is
    /// not long in coming.
    pub fn close(&self) {
        self.closing.set(true);
        if self.is_fresh() {
            self.deadline.arm(self.patience.header.min(LAST_CALL));
        }
        self.wake();
    }

    /// Once the response that is under way is written, the connection speaks HTTP no more. Whoever
    /// serves it has to call [`Self::take_switched`] at its end.
    pub(super) fn switch_to(&self, switched: Box<Switched>) {
        self.switched.replace(Some(switched));
    }

    /// What the connection has become, if it has.
    pub fn take_switched(&self) -> Option<Box<Switched>> {
        self.switched.take()
    }

    /// Whether the connection shall end after the exchanges that are on.
    pub fn is_closing(&self) -> bool {
        self.closing.get()
    }
}

/// An exchange is on while this lives.
#[derive(Debug)]
pub struct Busy {
    client: Rc<Client>,
    /// What the exchange has to say to the access log, if it is logged.
    entry: Option<Rc<LogEntry>>,
}

impl Busy {
    /// The same for an exchange that is logged, if there is an entry.
    pub(super) fn logged(mut self, entry: Option<Rc<LogEntry>>) -> Self {
        self.entry = entry;
        self
    }

    /// The connection.
    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// What the exchange has to say to the access log, if it is logged.
    pub(super) fn entry(&self) -> Option<&Rc<LogEntry>> {
        self.entry.as_ref()
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let client = &self.client;
        client.beat();
        client.exchanges.set(client.exchanges.get() - 1);
        if client.is_idle() {
            client.deadline.arm(client.patience.idle);
        }
    }
}
