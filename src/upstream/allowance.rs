//! How much one worker may ask of a backend: requests in flight, connections, and requests that wait
//! for one, or for a stream of one.
//!
//! Connections belong to a worker and cannot be lent, so each has its share of them, and its own queue
//! for it. Requests come to whichever worker the kernel chose, and refusing one while another worker is
//! idle would be wrong: they are leased, a few at a time, from what the whole process may have. A worker
//! that stays within its lease touches nothing shared.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::{Rc, Weak},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Waker},
    time::Instant,
};

use super::{Payload, connection::Connection, endpoint::Endpoint};
use crate::{
    net::proxy_protocol::Origin,
    routing::policy::Pool,
    telemetry::{
        health::{BackendHealth, EndpointHealth, Millis},
        ledger::Hub,
    },
};

/// Into how many leases a worker's share of requests is divided: what lies unused at other workers when
/// the limit is reached is less than two of them each, and is given back within a second.
const LEASES: u32 = 16;

/// How much one worker may ask of a backend.
#[derive(Debug)]
pub(super) struct Allowance<B: Payload> {
    pub(super) pool: Pool,
    hub: Arc<Hub>,
    health: Arc<BackendHealth>,
    requests: Option<Leases>,
    /// Connections that it may have, where that is limited.
    connections: Option<u32>,
    open: Cell<u32>,
    most_pending: usize,
    queue: RefCell<VecDeque<Rc<Ticket>>>,
    /// Requests that wait for a stream, at any endpoint.
    for_streams: Cell<usize>,
    /// The endpoints that share all this.
    endpoints: RefCell<Vec<Weak<Endpoint<B>>>>,
}

impl<B: Payload> Allowance<B> {
    /// One worker's share of what a backend may be asked.
    pub(super) fn new(pool: Pool, hub: &Arc<Hub>, health: Arc<BackendHealth>) -> Self {
        let workers = u32::try_from(hub.worker_count()).unwrap_or(u32::MAX).max(1);
        let most_pending = pool.max_pending_requests.div_ceil(workers) as usize;
        Self {
            requests: pool.max_requests.map(|limit| Leases::new(limit, workers)),
            connections: pool.max_connections.map(|limit| (limit / workers).max(1)),
            open: Cell::new(0),
            most_pending,
            queue: RefCell::default(),
            for_streams: Cell::new(0),
            endpoints: RefCell::default(),
            hub: Arc::clone(hub),
            health,
            pool,
        }
    }

    /// From now on, these share it.
    pub(super) fn share_among(&self, endpoints: &[Rc<Endpoint<B>>]) {
        *self.endpoints.borrow_mut() = endpoints.iter().map(Rc::downgrade).collect();
    }

    /// What is known of the backend's health.
    pub(super) fn health(&self) -> &BackendHealth {
        &self.health
    }

    /// What is known of the health of all its endpoints.
    pub(super) fn healths(&self) -> Vec<Arc<EndpointHealth>> {
        let endpoints = self.endpoints.borrow();
        endpoints.iter().filter_map(Weak::upgrade).map(|endpoint| endpoint.shared_health()).collect()
    }

    /// A moment as healths count it.
    pub(super) fn millis(&self, now: Instant) -> Millis {
        self.hub.health().millis(now)
    }

    /// A request may begin; it must [`Self::leave`] then.
    #[inline]
    pub(super) fn enter(&self) -> bool {
        self.requests.as_ref().is_none_or(|leases| leases.take(self.health.leased()))
    }

    /// A request has ended.
    #[inline]
    pub(super) fn leave(&self) {
        if let Some(leases) = &self.requests {
            leases.give_back(self.health.leased());
        }
    }

    /// Gives back what is not used.
    pub(super) fn settle(&self) {
        if let Some(leases) = &self.requests {
            leases.settle(self.health.leased());
        }
    }

    /// Whether requests wait, so that those who come now have to wait behind them.
    #[inline]
    pub(super) fn has_queue(&self) -> bool {
        self.connections.is_some() && !self.queue.borrow().is_empty()
    }

    /// The right to open a connection, if need be in the place of one that is idle.
    pub(super) fn reserve(self: &Rc<Self>) -> Option<Slot<B>> {
        let Some(most) = self.connections else { return Some(Slot(None)) };
        if self.open.get() >= most {
            let endpoints = self.endpoints.borrow();
            let mut idle = endpoints.iter().filter_map(Weak::upgrade);
            // Gives its slot back.
            let _evicted = idle.any(|endpoint| endpoint.close_oldest_idle());
        }
        (self.open.get() < most).then(|| self.open_one())
    }

    /// The right to open a connection that several share. An endpoint that has none cannot do without: there
    /// is no telling when the streams of another one end. So it gets its first in any case.
    pub(super) fn reserve_shared(self: &Rc<Self>, is_first: bool) -> Option<Slot<B>> {
        self.reserve().or_else(|| is_first.then(|| self.open_one()))
    }

    fn open_one(self: &Rc<Self>) -> Slot<B> {
        self.open.set(self.open.get() + 1);
        Slot(Some(Rc::clone(self)))
    }

    /// A place in the queue; nothing if it is full.
    pub(super) fn queue(self: &Rc<Self>) -> Option<Place<B>> {
        self.has_place().then(|| {
            let ticket = Rc::<Ticket>::default();
            self.queue.borrow_mut().push_back(Rc::clone(&ticket));
            Place { allowance: Rc::clone(self), ticket }
        })
    }

    /// The right to wait for a stream; nothing if as many wait as may.
    pub(super) fn wait_for_stream(self: &Rc<Self>) -> Option<ForStream<B>> {
        self.has_place().then(|| {
            self.for_streams.set(self.for_streams.get() + 1);
            ForStream(Rc::clone(self))
        })
    }

    fn has_place(&self) -> bool {
        self.queue.borrow().len() + self.for_streams.get() < self.most_pending
    }

    /// A connection is free, or may be opened: whoever waits longest looks again.
    pub(super) fn notify(&self) {
        if self.connections.is_some()
            && let Some(first) = self.queue.borrow().front()
            && let Some(waker) = first.0.borrow_mut().take()
        {
            waker.wake();
        }
    }
}

impl<B: Payload> Drop for Allowance<B> {
    fn drop(&mut self) {
        self.settle();
    }
}

/// The right to have a connection open, for as long as this lives.
#[derive(Debug)]
pub struct Slot<B: Payload>(Option<Rc<Allowance<B>>>);

impl<B: Payload> Slot<B> {
    /// The right to a connection that nobody counts.
    pub const fn unlimited() -> Self {
        Self(None)
    }
}

impl<B: Payload> Drop for Slot<B> {
    fn drop(&mut self) {
        if let Some(allowance) = &self.0 {
            allowance.open.set(allowance.open.get() - 1);
            allowance.notify();
        }
    }
}

/// The right to wait for a stream, for as long as this lives.
#[derive(Debug)]
pub(super) struct ForStream<B: Payload>(Rc<Allowance<B>>);

impl<B: Payload> Drop for ForStream<B> {
    fn drop(&mut self) {
        self.0.for_streams.set(self.0.for_streams.get() - 1);
    }
}

/// How a request gets to an endpoint.
#[derive(Debug)]
pub enum Turn<B: Payload> {
    /// On a connection that was idle.
    Idle(Box<Connection<B>>),
    /// On a new one.
    Open(Slot<B>),
}

/// Who to wake.
#[derive(Debug, Default)]
struct Ticket(RefCell<Option<Waker>>);

/// A place in the queue for a connection. Dropping it leaves the queue.
#[derive(Debug)]
pub struct Place<B: Payload> {
    allowance: Rc<Allowance<B>>,
    ticket: Rc<Ticket>,
}

impl<B: Payload> Place<B> {
    /// The way to `endpoint`, if it is this one's turn and there is one; else the task is woken when
    /// that may have changed. `origin` is as in [`Endpoint::turn`].
    pub fn poll_turn(
        &self,
        endpoint: &Endpoint<B>,
        origin: Option<&Rc<Origin>>,
        cx: &Context<'_>,
    ) -> Option<Turn<B>> {
        let is_first = self.allowance.queue.borrow().front().is_some_and(|f| Rc::ptr_eq(f, &self.ticket));
        if is_first {
            if let Some(idle) = endpoint.take_newest_idle(origin) {
                return Some(Turn::Idle(idle));
            }
            if let Some(slot) = self.allowance.reserve() {
                return Some(Turn::Open(slot));
            }
        }
        *self.ticket.0.borrow_mut() = Some(cx.waker().clone());
        None
    }
}

impl<B: Payload> Drop for Place<B> {
    fn drop(&mut self) {
        self.allowance.queue.borrow_mut().retain(|ticket| !Rc::ptr_eq(ticket, &self.ticket));
        // There may be enough for the next one too.
        self.allowance.notify();
    }
}

/// One worker's part of what the whole process may have.
#[derive(Debug)]
struct Leases {
    limit: u32,
    /// How much is leased at a time.
    lease: u32,
    held: Cell<u32>,
    used: Cell<u32>,
}

impl Leases {
    fn new(limit: u32, workers: u32) -> Self {
        let lease = (limit / workers.saturating_mul(LEASES)).max(1);
        Self { limit, lease, held: Cell::new(0), used: Cell::new(0) }
    }

    /// Takes one; false if all are taken.
    fn take(&self, leased: &AtomicU32) -> bool {
        if self.used.get() == self.held.get() {
            let granted = |all: u32| self.lease.min(self.limit.saturating_sub(all));
            let more = |all: u32| (granted(all) > 0).then(|| all + granted(all));
            let Ok(before) = leased.fetch_update(Relaxed, Relaxed, more) else { return false };
            self.held.set(self.held.get() + granted(before));
        }
        self.used.set(self.used.get() + 1);
        true
    }

    fn give_back(&self, leased: &AtomicU32) {
        self.used.set(self.used.get() - 1);
        // One lease is kept, or a worker at the edge of it would ask for each request.
        let most = if self.lease == 1 { 0 } else { 2 * self.lease - 1 };
        if self.held.get() - self.used.get() > most {
            self.return_spare(leased, self.lease);
        }
    }

    fn settle(&self, leased: &AtomicU32) {
        self.return_spare(leased, u32::MAX);
    }

    fn return_spare(&self, leased: &AtomicU32, most: u32) {
        let spare = (self.held.get() - self.used.get()).min(most);
        if spare > 0 {
            self.held.set(self.held.get() - spare);
            leased.fetch_sub(spare, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_more_are_taken_than_there_are(limit in 1u32..200, workers in 1usize..5, steps: Vec<(u8, bool)>) {
            let leased = AtomicU32::new(0);
            let all: Vec<_> = (0..workers).map(|_| Leases::new(limit, workers as u32)).collect();
            for (worker, takes) in steps {
                let leases = &all[usize::from(worker) % workers];
                match takes {
                    true => { leases.take(&leased); }
                    false if leases.used.get() > 0 => leases.give_back(&leased),
                    false => {}
                }
                let used: u32 = all.iter().map(|leases| leases.used.get()).sum();
                let held: u32 = all.iter().map(|leases| leases.held.get()).sum();
                prop_assert!(used <= held && held <= limit && held == leased.load(Relaxed));
            }
            all.iter().for_each(|leases| leases.settle(&leased));
            let used: u32 = all.iter().map(|leases| leases.used.get()).sum();
            prop_assert_eq!(leased.load(Relaxed), used);
        }
    }

    #[test]
    fn one_worker_can_have_all_and_leaves_nothing_behind() {
        let (leased, busy, other) = (AtomicU32::new(0), Leases::new(2, 8), Leases::new(2, 8));
        assert!(busy.take(&leased) && busy.take(&leased) && !busy.take(&leased) && !other.take(&leased));
        busy.give_back(&leased);
        assert!(other.take(&leased) && !busy.take(&leased));
    }
}
