//! How many requests at a time each limited service may have, and how many were turned away.
//!
//! The limit goes from whoever sets it to whoever admits: where it is adaptive, control measures and
//! sets it, and the data plane reads it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
};

use crate::model::name::ServiceName;

/// How many requests a service may have at a time.
#[derive(Debug)]
pub struct InFlight {
    /// Between what the limit may move, if it does.
    bounds: Option<(u32, u32)>,
    limit: AtomicU32,
    rejected: AtomicU64,
}

impl InFlight {
    /// From `bounds.0` to `bounds.1`; one that is the same does not move. What `before` has counted and come
    /// to is kept, as far as it is within.
    fn new(bounds: (u32, u32), before: Option<&Self>) -> Self {
        let (least, most) = bounds;
        let limit = before.map_or(least, Self::limit).clamp(least, most);
        Self {
            bounds: (least < most).then_some(bounds),
            limit: AtomicU32::new(limit),
            rejected: AtomicU64::new(before.map_or(0, Self::rejected)),
        }
    }

    /// Between what it may move, if it does.
    pub fn bounds(&self) -> Option<(u32, u32)> {
        self.bounds
    }

    /// How many there may be now.
    #[inline]
    pub fn limit(&self) -> u32 {
        self.limit.load(Relaxed)
    }

    /// From now on there may be so many.
    pub fn set_limit(&self, limit: u32) {
        self.limit.store(limit, Relaxed);
    }

    /// How many requests were turned away because of it.
    pub fn rejected(&self) -> u64 {
        self.rejected.load(Relaxed)
    }

    /// One more is turned away.
    pub fn reject(&self) {
        self.rejected.fetch_add(1, Relaxed);
    }
}

/// The limits of all services that have one, for as long as whoever admits holds them.
#[derive(Debug, Default)]
pub struct Limits(Mutex<BTreeMap<ServiceName, Weak<InFlight>>>);

impl Limits {
    /// A service's limit from now on, between these bounds.
    pub fn open(&self, service: &ServiceName, bounds: (u32, u32)) -> Arc<InFlight> {
        let mut limits = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = limits.get(service).and_then(Weak::upgrade);
        let limit = Arc::new(InFlight::new(bounds, before.as_deref()));
        limits.insert(service.clone(), Arc::downgrade(&limit));
        limit
    }

    /// Those that there are.
    pub fn all(&self) -> Vec<(ServiceName, Arc<InFlight>)> {
        let mut limits = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        limits.retain(|_, limit| limit.strong_count() > 0);
        limits.iter().filter_map(|(service, limit)| Some((service.clone(), limit.upgrade()?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_lasts_as_long_as_somebody_admits_by_it_and_outlives_a_change() {
        let (limits, web) = (Limits::default(), "web".parse().unwrap());
        let first = limits.open(&web, (10, 100));
        assert_eq!((first.limit(), first.bounds()), (10, Some((10, 100))));
        first.set_limit(70);
        first.reject();
        let second = limits.open(&web, (10, 50));
        assert_eq!((second.limit(), second.rejected()), (50, 1));
        let fixed = limits.open(&web, (7, 7));
        drop((first, second));
        let all: Vec<_> =
            limits.all().into_iter().map(|(_, limit)| (limit.limit(), limit.bounds())).collect();
        assert_eq!(all, [(7, None)]);
        drop(fixed);
        assert!(limits.all().is_empty());
    }
}
