//! What is counted of each endpoint: enough to tell one that is sick from a version that is.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{cells::Counter, ledger::Key};

/// What one worker counts of one endpoint.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct EndpointCells {
    requests: Counter,
    failures: Counter,
}

impl EndpointCells {
    /// Counts an attempt that ended and says something. Only for the worker that owns the cells.
    #[inline]
    pub fn count(&self, failed: bool) {
        self.requests.add(1);
        if failed {
            self.failures.add(1);
        }
    }
}

/// Attempts that ended, and those of them that count against whom they were made at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// Attempts that ended and say something about it.
    pub requests: u64,
    /// Those of them that count against it.
    pub failures: u64,
}

impl Counted {
    /// What came in since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(earlier.requests),
            failures: self.failures.saturating_sub(earlier.failures),
        }
    }

    /// Counts `other` in.
    pub fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.failures += other.failures;
    }
}

/// The endpoints of each backend, by their addresses.
pub type Endpoints<T> = BTreeMap<Key, BTreeMap<SocketAddr, T>>;

/// One worker's cells. Locked when endpoints change, and when they are read out.
#[derive(Debug, Default)]
pub struct ByEndpoint(Mutex<Endpoints<Arc<EndpointCells>>>);

impl ByEndpoint {
    /// The cells of an endpoint; made when first asked for.
    pub fn of(&self, backend: &Key, address: SocketAddr) -> Arc<EndpointCells> {
        let mut backends = self.locked();
        let endpoints = backends.entry(backend.clone()).or_default();
        Arc::clone(endpoints.entry(address).or_default())
    }

    /// Forgets all endpoints but these.
    pub fn retain(&self, is_kept: impl Fn(&Key, SocketAddr) -> bool) {
        self.locked().retain(|backend, endpoints| {
            endpoints.retain(|address, _| is_kept(backend, *address));
            !endpoints.is_empty()
        });
    }

    /// Adds all that has been counted to `sums`.
    pub(super) fn sum(&self, sums: &mut Endpoints<Counted>) {
        for (backend, endpoints) in &*self.locked() {
            let sums = sums.entry(backend.clone()).or_default();
            for (address, cells) in endpoints {
                let (requests, failures) = (cells.requests.get(), cells.failures.get());
                sums.entry(*address).or_default().add(Counted { requests, failures });
            }
        }
    }

    fn locked(&self) -> MutexGuard<'_, Endpoints<Arc<EndpointCells>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_kept_for_as_long_as_there_is_the_endpoint() {
        let key = Key { service: "web".parse().unwrap(), backend: "v1".parse().unwrap() };
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let cells = ByEndpoint::default();
        for failed in [true, false] {
            cells.of(&key, address(1)).count(failed);
            cells.of(&key, address(2)).count(false);
        }
        cells.retain(|_, at| at == address(1));
        let mut sums = Endpoints::default();
        (0..2).for_each(|_| cells.sum(&mut sums));
        assert_eq!(sums[&key], BTreeMap::from([(address(1), Counted { requests: 4, failures: 2 })]));
    }
}
