//! What an exchange knows of the client's connection, and the connection of its exchanges.

use std::{
    cell::{Cell, OnceCell, RefCell},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZeroU32,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use http::{HeaderMap, HeaderValue};
use http_body::Body;

use super::{admission::Permit, forwarded::X_FORWARDED_FOR, log_entry::LogEntry, upgrade::Switched};
use crate::{
    net::{identity, proxy_protocol::Origin, splice::Ends, timers::Deadline},
    routing::edge::Edge,
};

/// How long a connection that has just been made may take over its first request when the worker is
/// about to end: the client could not know.
const LAST_CALL: Duration = Duration::from_secs(1);

/// How long a connection has to have been idle to be worth putting to rest. Shorter pauses would cost more
/// in making its buffers anew than they save.
const RESTLESS: Duration = Duration::from_secs(1);

/// How long a client may take over what.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Longest time that a request's head may take.
    pub header: Duration,
    /// Longest time between requests.
    pub idle: Duration,
}

/// What becomes of a connection whose time is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overdue {
    /// It ends.
    End,
    /// It has nothing under way in either direction, and is put to rest for as long as it may still be idle.
    Rest,
    /// The same, but for something that is under way.
    Wait,
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

/// What a response's body answers when it is asked for more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// Here is more. Whoever asked comes back once the client has room for it.
    Gave,
    /// There is nothing, now or ever.
    HadNothing,
}

/// Who is at the other end: of the connection, or of the one that a load balancer passes on.
#[derive(Debug)]
struct Peer {
    /// Its address as `X-Forwarded-For` says it; made once for all requests of the connection.
    forwarded_for: HeaderValue,
    address: IpAddr,
    trusted: bool,
}

impl Peer {
    fn new(address: IpAddr, edge: &Edge) -> Self {
        // An IPv4 client of a dual-stack listener is an IPv4 client.
        let address = address.to_canonical();
        Self {
            forwarded_for: HeaderValue::try_from(address.to_string()).expect("an address is visible ASCII"),
            address,
            trusted: identity::is_trusted(address, &edge.trusted_proxies),
        }
    }
}

/// One connection from a client.
#[derive(Debug)]
pub struct Client {
    peer: RefCell<Peer>,
    /// Its addresses, for backends that are told them.
    origin: OnceCell<Rc<Origin>>,
    secure: Cell<bool>,
    edge: Arc<Edge>,
    requests: Cell<u32>,
    /// Requests after which it is ended.
    most_requests: Cell<u32>,
    unread: Cell<bool>,
    patience: Patience,
    deadline: Deadline,
    exchanges: Cell<u32>,
    fresh: Cell<bool>,
    reading_head: Cell<bool>,
    /// It is idle, and its deadline is the moment at which it is put to rest.
    drowsy: Cell<bool>,
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
    /// What the body that was asked last has come to.
    asked: Cell<Option<Asked>>,
}

impl Client {
    /// A connection that has just been accepted: its first request's head is awaited.
    ///
    /// `pulse` is counted up whenever it gets something done.
    pub fn new(
        address: SocketAddr,
        patience: Patience,
        edge: Arc<Edge>,
        deadline: Deadline,
        pulse: Rc<Cell<u64>>,
    ) -> Self {
        deadline.arm(patience.header);
        // Nobody gets that far without a limit.
        let most_requests = edge.max_requests_per_connection.map_or(u32::MAX, NonZeroU32::get);
        Self {
            peer: RefCell::new(Peer::new(address.ip(), &edge)),
            origin: OnceCell::new(),
            secure: Cell::new(false),
            edge,
            requests: Cell::new(0),
            most_requests: Cell::new(most_requests),
            unread: Cell::new(false),
            patience,
            deadline,
            exchanges: Cell::new(0),
            fresh: Cell::new(true),
            reading_head: Cell::new(true),
            drowsy: Cell::new(false),
            blocked: Cell::new(false),
            multiplexed: Cell::new(false),
            closing: Cell::new(false),
            flush: Cell::default(),
            pulse,
            ends: Rc::default(),
            waker: RefCell::new(None),
            switched: RefCell::default(),
            asked: Cell::default(),
        }
    }

    /// Somebody in front has said what its address is: it is the peer from now on.
    pub fn set_address(&self, address: IpAddr) {
        self.peer.replace(Peer::new(address, &self.edge));
    }

    /// Notes where it came from and where it came to, which only matters if backends are told.
    pub fn came(&self, origin: Origin) {
        // It comes once.
        let _first = self.origin.set(Rc::new(origin));
    }

    /// Where it came from and where it came to. What connections to backends are kept by, too, so it lives
    /// as long as the client does and no longer.
    pub(super) fn origin(&self) -> &Rc<Origin> {
        self.origin.get_or_init(|| {
            // It came when no backend was told, so nobody noted the rest.
            let address = self.peer.borrow().address;
            let nowhere = match address {
                IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            let [source, destination] = [address, nowhere].map(|ip| SocketAddr::new(ip, 0));
            Rc::new(Origin { source, destination })
        })
    }

    /// Its address as `X-Forwarded-For` says it.
    pub(super) fn forwarded_for(&self) -> HeaderValue {
        self.peer.borrow().forwarded_for.clone()
    }

    /// The connection speaks TLS.
    pub fn set_secure(&self) {
        self.secure.set(true);
    }

    /// Whether the connection speaks TLS.
    pub fn is_secure(&self) -> bool {
        self.secure.get()
    }

    /// Gives it this long for what stands before its first request, or comes after its last.
    pub fn allow(&self, time: Duration) {
        self.arm(if self.is_closing() { time.min(LAST_CALL) } else { time });
    }

    /// What stands before its first request is over: that request's head is awaited.
    pub fn expect_head(&self) {
        self.allow(self.patience.header);
    }

    /// What its listener lets in.
    pub fn edge(&self) -> &Edge {
        &self.edge
    }

    /// Whether it is a proxy that may say who the client is.
    pub(super) fn is_trusted(&self) -> bool {
        self.peer.borrow().trusted
    }

    /// Who sent a request with these fields.
    pub(super) fn address(&self, headers: &HeaderMap) -> IpAddr {
        let peer = self.peer.borrow();
        if !peer.trusted {
            return peer.address;
        }
        let fields = headers.get_all(X_FORWARDED_FOR).iter().map(HeaderValue::as_bytes);
        identity::client(peer.address, fields, &self.edge.trusted_proxies)
    }

    /// Whether it has had as many requests as a connection may have.
    pub(super) fn is_used_up(&self) -> bool {
        self.requests.get() >= self.most_requests.get()
    }

    /// Asks the client to go: with the next response, or at once if it speaks HTTP/2, where nothing that
    /// is on its way is lost by that.
    pub fn use_up(&self) {
        self.most_requests.set(0);
        if self.multiplexed.get() {
            self.close();
        }
    }

    /// Its request has a body that may not have been read to its end when the response is.
    pub(super) fn set_unread(&self, unread: bool) {
        self.unread.set(unread);
    }

    /// Whether bytes may lie ready that nobody will read: a socket that is closed then is reset, and
    /// the client may lose what it was told.
    pub fn may_be_sending(&self) -> bool {
        self.unread.get() || self.reading_head.get()
    }

    /// The connection speaks HTTP/2, where bytes may come that belong to no request.
    pub fn set_multiplexed(&self) {
        self.multiplexed.set(true);
    }

    /// The pipes at its socket.
    pub fn ends(&self) -> &Rc<Ends> {
        &self.ends
    }

    /// Whether a body may go to its socket as it is: HTTP/2 puts it into frames, TLS into records.
    pub(super) fn takes_pipes(&self) -> bool {
        !self.multiplexed.get() && !self.secure.get()
    }

    /// Whether it has all that it will be given of a body, which may not have ended yet: of one whose
    /// length was said, HTTP/1.1 takes no more than that, so nobody asks for the trailers behind it.
    pub(super) fn has_all(&self, body: &impl Body) -> bool {
        !self.multiplexed.get() && body.size_hint().exact() == Some(0)
    }

    /// Whether the connection speaks HTTP/2.
    pub fn is_multiplexed(&self) -> bool {
        self.multiplexed.get()
    }

    /// Gives the client a last moment to read what it was told.
    pub fn wait_for_farewell(&self) {
        self.arm(self.patience.header);
    }

    /// An exchange begins; it lasts until the returned guard is dropped.
    pub(super) fn begin(self: &Rc<Self>) -> Busy {
        self.requests.set(self.requests.get().saturating_add(1));
        self.go_on()
    }

    /// The same for what an exchange has become.
    pub(super) fn go_on(self: &Rc<Self>) -> Busy {
        self.exchanges.set(self.exchanges.get() + 1);
        self.fresh.set(false);
        self.reading_head.set(false);
        self.drowsy.set(false);
        self.blocked.set(false);
        self.deadline.disarm();
        Busy { client: Rc::clone(self), permit: None, entry: None }
    }

    /// Bytes have come. If no exchange is on, they begin a head, which may not take for ever.
    #[inline]
    pub fn bytes_read(&self) {
        self.beat();
        if self.exchanges.get() == 0 && !self.reading_head.get() && !self.multiplexed.get() {
            self.reading_head.set(true);
            self.arm(self.patience.header);
        }
    }

    /// It takes no more bytes for now; if that lasts for as long as it may be idle, it is overdue. Nobody
    /// else would notice: a backend that waits for it is waited for by nobody.
    pub fn write_blocked(&self) {
        if !self.blocked.replace(true) && !self.is_idle() {
            self.arm(self.patience.idle);
        }
    }

    /// It has taken bytes.
    #[inline]
    pub fn written(&self) {
        if self.blocked.replace(false) && !self.is_idle() {
            self.deadline.disarm();
        }
    }

    /// A response's body has been asked for more.
    pub(super) fn note_asked(&self, asked: Asked) {
        self.asked.set(Some(asked));
    }

    /// What the body that was asked last, if one was since the last call, has come to.
    pub fn take_asked(&self) -> Option<Asked> {
        self.asked.take()
    }

    /// How long it may take nothing of what it has asked for.
    pub fn idle_timeout(&self) -> Duration {
        self.patience.idle
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

    /// Its time is over: what now?
    pub fn overdue(&self) -> Overdue {
        if !self.drowsy.take() {
            return Overdue::End;
        }
        self.deadline.arm(self.patience.idle - RESTLESS);
        let awake = self.may_be_sending() || self.blocked.get() || self.is_closing();
        if awake { Overdue::Wait } else { Overdue::Rest }
    }

    /// Gives it this long from now.
    fn arm(&self, time: Duration) {
        self.drowsy.set(false);
        self.deadline.arm(time);
    }

    /// Gives it as long as it may be idle: first until it is put to rest, if that is to be.
    fn arm_idle(&self) {
        let idle = self.patience.idle;
        let rests = !self.is_multiplexed() && idle > RESTLESS;
        self.arm(if rests { RESTLESS } else { idle });
        self.drowsy.set(rests);
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
            self.arm(self.patience.header.min(LAST_CALL));
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
    /// Its place among those that the service has at a time.
    permit: Option<Permit>,
    /// What the exchange has to say to the access log and to tracing, if it is logged or sampled.
    entry: Option<Rc<LogEntry>>,
}

impl Busy {
    /// The same for an exchange that is logged or sampled, if there is an entry.
    pub(super) fn logged(mut self, entry: Option<Rc<LogEntry>>) -> Self {
        self.entry = entry;
        self
    }

    /// Keeps a place until the exchange is over.
    pub(super) fn keep(&mut self, permit: Option<Permit>) {
        self.permit = permit;
    }

    /// Its place, for whoever goes on with it.
    pub(super) fn take_permit(&mut self) -> Option<Permit> {
        self.permit.take()
    }

    /// The connection.
    pub(super) fn client(&self) -> &Rc<Client> {
        &self.client
    }

    /// What the exchange has to say to the access log and to tracing, if it is logged or sampled.
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
            client.arm_idle();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::timers::{TICK, Timers};

    /// A client that may be idle for so long, after one exchange with something in between.
    fn idle(time: Duration, meanwhile: impl FnOnce(&Client)) -> (Rc<Timers>, Rc<Client>) {
        let timers = Rc::<Timers>::default();
        let patience = Patience { header: Duration::from_secs(5), idle: time };
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let client = Client::new(address, patience, Arc::default(), timers.deadline(), Rc::default());
        let client = Rc::new(client);
        let busy = client.begin();
        meanwhile(&client);
        drop(busy);
        (timers, client)
    }

    /// What becomes of it next, and how long that took.
    fn next(timers: &Timers, client: &Client) -> (Overdue, Duration) {
        let mut waited = Duration::ZERO;
        while client.poll_overdue(&Context::from_waker(Waker::noop())).is_pending() {
            timers.tick();
            waited += TICK;
        }
        (client.overdue(), waited - TICK)
    }

    #[test]
    fn who_is_idle_rests_and_ends_at_the_same_time_as_ever() {
        let (timers, client) = idle(Duration::from_secs(75), |_| ());
        assert_eq!(next(&timers, &client), (Overdue::Rest, RESTLESS));
        assert_eq!(next(&timers, &client), (Overdue::End, Duration::from_secs(74)));
    }

    #[test]
    fn who_has_not_read_its_answer_stays_awake_and_is_given_as_long() {
        let (timers, client) = idle(Duration::from_secs(75), Client::write_blocked);
        assert_eq!(next(&timers, &client), (Overdue::Wait, RESTLESS));
        assert_eq!(next(&timers, &client), (Overdue::End, Duration::from_secs(74)));
        let (timers, client) = idle(Duration::from_secs(75), |client| client.set_unread(true));
        assert_eq!(next(&timers, &client), (Overdue::Wait, RESTLESS));
    }

    #[test]
    fn nobody_rests_whose_time_is_shorter_or_who_speaks_http_2() {
        let (timers, client) = idle(RESTLESS, |_| ());
        assert_eq!(next(&timers, &client), (Overdue::End, RESTLESS));
        let (timers, client) = idle(Duration::from_secs(75), Client::set_multiplexed);
        assert_eq!(next(&timers, &client), (Overdue::End, Duration::from_secs(75)));
    }

    #[test]
    fn a_head_that_begins_has_its_own_time() {
        let (timers, client) = idle(Duration::from_secs(75), |_| ());
        client.bytes_read();
        assert_eq!(next(&timers, &client), (Overdue::End, Duration::from_secs(5)));
    }
}
