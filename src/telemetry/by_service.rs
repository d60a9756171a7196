//! One worker's cells of something that only some services have.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};

use crate::model::name::ServiceName;

/// One worker's cells, by service. Locked when the topology changes, and by a scrape.
#[derive(Debug)]
pub(super) struct ByService<C>(Mutex<BTreeMap<ServiceName, Arc<C>>>);

impl<C> Default for ByService<C> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<C: Default> ByService<C> {
    /// The cells of a service; made when first asked for.
    pub(super) fn of(&self, service: &ServiceName) -> Arc<C> {
        let mut cells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(cells.entry(service.clone()).or_default())
    }

    /// Forgets all services but these.
    pub(super) fn retain(&self, services: &BTreeSet<&ServiceName>) {
        let mut cells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        cells.retain(|service, _| services.contains(service));
    }

    /// Adds all that has been counted to `sums`.
    pub(super) fn sum<T: Default>(&self, sums: &mut BTreeMap<ServiceName, T>, add: impl Fn(&mut T, &C)) {
        let cells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (service, cells) in &*cells {
            add(sums.entry(service.clone()).or_default(), cells);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::cells::Counter, *};

    #[test]
    fn what_is_counted_is_kept_for_as_long_as_the_service_has_it() {
        let (cells, web) = (ByService::<Counter>::default(), "web".parse().unwrap());
        (0..2).for_each(|_| cells.of(&web).add(2));
        let sums = || {
            let mut sums = BTreeMap::new();
            (0..2).for_each(|_| cells.sum(&mut sums, |sum: &mut u64, cells| *sum += cells.get()));
            sums
        };
        assert_eq!(sums(), BTreeMap::from([(web.clone(), 8)]));
        cells.retain(&BTreeSet::from([&web]));
        assert_eq!(cells.of(&web).get(), 4);
        cells.retain(&BTreeSet::new());
        assert_eq!(sums(), BTreeMap::new());
    }
}
