//! What is known of the health of endpoints: the one thing that workers and control both write.
//!
//! A board of a few words for each address. Requests only read it, and what they read changes seldom,
//! so it stays in every worker's cache. It is written when a request fails, when one succeeds after a
//! failure, and when a check changes its mind. All workers see the same: an endpoint that failed for
//! three of them is not given a chance by the fourth.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicBool, AtomicU32, AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    time::{Duration, Instant},
};

use super::ledger::Key;

/// Milliseconds since the board was made. 0 stands for "never", or "always".
pub type Millis = u64;

/// The health of all endpoints of the process.
#[derive(Debug)]
pub struct Board {
    began: Instant,
    // Locked when endpoints change and when it is read out; never for a request.
    backends: Mutex<BTreeMap<Key, Arc<BackendHealth>>>,
    /// How often something under way was told to end.
    cuts: AtomicU64,
}

impl Board {
    /// An empty board; `now` is where its time begins.
    pub fn new(now: Instant) -> Self {
        // A millisecond back, so that 0 has passed.
        let began = now.checked_sub(Duration::from_millis(1)).unwrap_or(now);
        Self { began, backends: Mutex::default(), cuts: AtomicU64::new(0) }
    }

    /// A moment as the board counts it.
    #[inline]
    pub fn millis(&self, now: Instant) -> Millis {
        u64::try_from(now.saturating_duration_since(self.began).as_millis()).unwrap_or(u64::MAX)
    }

    /// What is known of a backend.
    pub fn backend(&self, key: &Key) -> Arc<BackendHealth> {
        let mut backends = locked(&self.backends);
        Arc::clone(backends.entry(key.clone()).or_default())
    }

    /// Whatever has begun at any of a backend's endpoints until then, and is still under way, is to end.
    pub fn cut(&self, key: &Key, until: Millis) {
        self.backend(key).cut(until);
        self.cuts.fetch_add(1, Release);
    }

    /// How often something under way was told to end: whoever sees another number sees what was told, too.
    pub fn cuts(&self) -> u64 {
        self.cuts.load(Acquire)
    }

    /// Forgets all endpoints but these, which are told by backend and as they are written.
    pub fn retain(&self, is_kept: impl Fn(&Key, &str) -> bool) {
        locked(&self.backends).retain(|key, health| {
            let known = &mut *locked(&health.endpoints);
            known.addresses.retain(|(name, _), _| is_kept(key, name));
            known.ejections.retain(|name, _| is_kept(key, name));
            !known.ejections.is_empty()
        });
    }

    /// What is known of all of them.
    pub fn backends(&self) -> Vec<(Key, Arc<BackendHealth>)> {
        let backends = locked(&self.backends);
        backends.iter().map(|(key, health)| (key.clone(), Arc::clone(health))).collect()
    }
}

/// What is known of one backend's endpoints.
#[derive(Debug, Default)]
pub struct BackendHealth {
    /// Counts up whenever one of its endpoints gets well or ill.
    changes: AtomicU64,
    /// Requests that workers may have in flight, of those that are allowed in all.
    leased: AtomicU32,
    /// Held by whoever decides on an ejection, so that no two decide on the last one allowed.
    ejecting: Mutex<()>,
    endpoints: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    addresses: BTreeMap<(Arc<str>, SocketAddr), Arc<EndpointHealth>>,
    /// By the endpoint as it is written, so that they outlive the addresses of a name.
    ejections: BTreeMap<Arc<str>, Arc<AtomicU64>>,
}

impl BackendHealth {
    /// What is known of an address of an endpoint that is written as `name`; `since` is when it became
    /// one, if it is not known yet.
    pub fn endpoint(&self, name: &str, address: SocketAddr, since: Millis) -> Arc<EndpointHealth> {
        let known = &mut *locked(&self.endpoints);
        let name: Arc<str> = name.into();
        let ejections = known.ejections.entry(Arc::clone(&name)).or_default();
        let new = || Arc::new(EndpointHealth::new(since, Arc::clone(ejections)));
        Arc::clone(known.addresses.entry((name, address)).or_insert_with(new))
    }

    /// Forgets all addresses but these.
    pub fn retain(&self, is_kept: impl Fn(&str, SocketAddr) -> bool) {
        locked(&self.endpoints).addresses.retain(|(name, address), _| is_kept(name, *address));
    }

    /// Each endpoint as it is written: its addresses, those of them that are well, and how often one was
    /// ejected.
    pub fn summary(&self, now: Millis) -> BTreeMap<Arc<str>, Summary> {
        let known = locked(&self.endpoints);
        let ejections = known.ejections.iter();
        let mut summary: BTreeMap<_, _> = ejections
            .map(|(name, count)| {
                let ejections = count.load(Relaxed);
                (Arc::clone(name), Summary { ejections, ..Summary::default() })
            })
            .collect();
        for ((name, _), health) in &known.addresses {
            let entry = summary.entry(Arc::clone(name)).or_default();
            entry.addresses += 1;
            entry.healthy += u64::from(health.is_usable(now));
        }
        summary
    }

    /// How often an endpoint of it has got well or ill so far.
    #[inline]
    pub fn changes(&self) -> u64 {
        self.changes.load(Relaxed)
    }

    /// How many requests workers have been allowed to have in flight, where that is limited.
    pub fn leased(&self) -> &AtomicU32 {
        &self.leased
    }

    /// One of its endpoints has got well or ill.
    pub fn changed(&self) {
        self.changes.fetch_add(1, Relaxed);
    }

    fn cut(&self, until: Millis) {
        let known = locked(&self.endpoints);
        // 0 means never.
        known.addresses.values().for_each(|endpoint| endpoint.cut.store(until.max(1), Relaxed));
    }

    /// What its endpoints have served is long ago: they are to warm up anew.
    pub fn cool(&self) {
        let known = locked(&self.endpoints);
        known.addresses.values().for_each(|endpoint| endpoint.serving.store(0, Relaxed));
    }

    /// Passes an address over until then, and says whether it was not already.
    pub fn eject(&self, address: SocketAddr, now: Millis, until: Millis) -> bool {
        let known = locked(&self.endpoints);
        let of_address = known.addresses.iter().filter(|((_, known), _)| *known == address);
        let mut is_new = false;
        for (_, endpoint) in of_address.filter(|(_, endpoint)| endpoint.ejection().0 <= now) {
            endpoint.eject(until, 1);
            self.changed();
            is_new = true;
        }
        is_new
    }

    /// The right to decide on an ejection; nothing if somebody else has it just now.
    pub fn try_begin_ejecting(&self) -> Option<MutexGuard<'_, ()>> {
        self.ejecting.try_lock().ok()
    }
}

/// One endpoint as it is written, summed over its addresses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Its addresses.
    pub addresses: u64,
    /// Those that are well.
    pub healthy: u64,
    /// How often one of them was ejected, over the life of the process.
    pub ejections: u64,
}

/// What is known of one address.
#[derive(Debug)]
pub struct EndpointHealth {
    /// Failed requests since the last one that succeeded.
    failures: AtomicU32,
    /// Passed over until then.
    ejected_until: AtomicU64,
    /// How many times the base time the last ejection lasted.
    ejection: AtomicU32,
    /// It fails the checks.
    failing: AtomicBool,
    /// Since when it has been an endpoint, or has passed the checks again.
    since: AtomicU64,
    /// Since when it has served requests; 0 if it has not.
    serving: AtomicU64,
    /// When all that was under way at it was told to end; 0 if it never was.
    cut: AtomicU64,
    ejections: Arc<AtomicU64>,
}

impl EndpointHealth {
    fn new(since: Millis, ejections: Arc<AtomicU64>) -> Self {
        Self {
            failures: AtomicU32::new(0),
            ejected_until: AtomicU64::new(0),
            ejection: AtomicU32::new(0),
            failing: AtomicBool::new(false),
            since: AtomicU64::new(since),
            serving: AtomicU64::new(0),
            cut: AtomicU64::new(0),
            ejections,
        }
    }

    /// When all that was under way at it was told to end, if it ever was.
    #[inline]
    pub fn cut(&self) -> Option<Millis> {
        let cut = self.cut.load(Relaxed);
        (cut > 0).then_some(cut)
    }

    /// A request failed; returns how many have in a row.
    pub fn failed(&self) -> u32 {
        self.failures.fetch_add(1, Relaxed).saturating_add(1)
    }

    /// A request succeeded.
    #[inline]
    pub fn succeeded(&self) {
        // Nothing is written where nothing changes, so that the line stays in all caches.
        if self.failures.load(Relaxed) != 0 {
            self.failures.store(0, Relaxed);
        }
    }

    /// Until when it is passed over, and for how many times the base time; 0 if it never was.
    pub fn ejection(&self) -> (Millis, u32) {
        (self.ejected_until.load(Relaxed), self.ejection.load(Relaxed))
    }

    /// Passes it over until then, for `times` times the base time.
    pub fn eject(&self, until: Millis, times: u32) {
        self.failures.store(0, Relaxed);
        self.ejection.store(times, Relaxed);
        self.ejected_until.store(until, Relaxed);
        self.ejections.fetch_add(1, Relaxed);
    }

    /// It has failed or passed its checks.
    pub fn checked(&self, passes: bool, now: Millis) {
        if passes {
            self.since.store(now, Relaxed);
        }
        self.failing.store(!passes, Relaxed);
    }

    /// Whether it fails its checks.
    pub fn is_failing(&self) -> bool {
        self.failing.load(Relaxed)
    }

    /// Whether requests may go to it.
    pub fn is_usable(&self, now: Millis) -> bool {
        !self.is_failing() && self.ejected_until.load(Relaxed) <= now
    }

    /// Since when it has been at work: it serves requests, and nothing was the matter with it. From now on,
    /// if it has not served any.
    pub fn working_since(&self, now: Millis) -> Millis {
        let mut serving = self.serving.load(Relaxed);
        if serving == 0 {
            self.serving.store(now, Relaxed);
            serving = now;
        }
        serving.max(self.usable_since())
    }

    /// Since when requests may go to it, where they may.
    pub fn usable_since(&self) -> Millis {
        self.since.load(Relaxed).max(self.ejected_until.load(Relaxed))
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[test]
    fn an_address_is_one_and_the_same_for_all_who_ask() {
        let board = Board::new(clock::monotonic());
        let key = Key { service: "web".parse().unwrap(), backend: "v1".parse().unwrap() };
        let one = board.backend(&key).endpoint("a:1", address(1), 0);
        let other = board.backend(&key).endpoint("a:1", address(1), 7);
        assert!(Arc::ptr_eq(&one, &other));
        assert!(board.millis(clock::monotonic()) > 0);
    }

    #[test]
    fn ejections_are_counted_beyond_the_life_of_an_address() {
        let backend = BackendHealth::default();
        let endpoint = backend.endpoint("name:1", address(1), 0);
        backend.endpoint("name:1", address(2), 0);
        endpoint.eject(10, 1);
        let name: Arc<str> = "name:1".into();
        assert_eq!(backend.summary(9)[&name], Summary { addresses: 2, healthy: 1, ejections: 1 });
        assert_eq!(backend.summary(10)[&name], Summary { addresses: 2, healthy: 2, ejections: 1 });
        backend.retain(|_, at| at == address(2));
        assert_eq!(backend.summary(9)[&name], Summary { addresses: 1, healthy: 1, ejections: 1 });
    }

    #[test]
    fn an_endpoint_works_from_its_first_request_on() {
        let backend = BackendHealth::default();
        let endpoint = backend.endpoint("a:1", address(1), 5);
        assert_eq!((endpoint.working_since(8), endpoint.working_since(9)), (8, 8));
        backend.cool();
        assert_eq!(endpoint.working_since(10), 10);
        assert!(!backend.eject(address(2), 10, 20));
        assert!(endpoint.is_usable(10));
        assert!(backend.eject(address(1), 10, 20));
        assert_eq!((endpoint.is_usable(10), endpoint.working_since(21)), (false, 20));
        // It is not for longer by being said twice.
        assert!(!backend.eject(address(1), 11, 30));
        assert!(endpoint.is_usable(20) && backend.changes() == 1);
    }

    #[test]
    fn failures_are_counted_until_a_success() {
        let endpoint = EndpointHealth::new(0, Arc::default());
        assert_eq!((endpoint.failed(), endpoint.failed()), (1, 2));
        endpoint.succeeded();
        assert_eq!(endpoint.failed(), 1);
    }

    #[test]
    fn an_endpoint_is_fresh_again_after_an_ejection_and_after_failed_checks() {
        let endpoint = EndpointHealth::new(5, Arc::default());
        assert_eq!((endpoint.usable_since(), endpoint.is_usable(5)), (5, true));
        endpoint.checked(false, 8);
        assert!(!endpoint.is_usable(9));
        endpoint.checked(true, 10);
        assert_eq!((endpoint.usable_since(), endpoint.is_usable(10)), (10, true));
        endpoint.eject(20, 1);
        assert_eq!((endpoint.usable_since(), endpoint.is_usable(19)), (20, false));
    }
}
