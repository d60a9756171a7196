//! How many connections a listener has room for: in all, and for one client address.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{net::identity, routing::edge::Edge};

/// One worker's room behind one listener.
///
/// Each worker has its part of the places, so that one becomes free where somebody waits for it.
/// Connections of one address are counted over all workers: they are few, and spread by chance.
#[derive(Debug)]
pub(super) struct Room {
    edge: Arc<Edge>,
    places: Arc<Semaphore>,
    /// How many places there are, taken ones included.
    share: usize,
    /// Set where the connections of an address are limited.
    visitors: Option<Arc<Visitors>>,
}

impl Room {
    /// The workers' rooms.
    pub(super) fn split(edge: Edge, workers: usize) -> impl Iterator<Item = Self> {
        let share = (edge.max_connections.get() as usize).div_ceil(workers.max(1));
        let most = edge.max_connections_per_client;
        let visitors = most.map(|_| Arc::<Visitors>::default());
        let edge = Arc::new(edge);
        (0..workers).map(move |_| Self {
            edge: Arc::clone(&edge),
            places: Arc::new(Semaphore::new(share)),
            share,
            visitors: visitors.clone(),
        })
    }

    /// The same room in the place of `before`: whoever is there already is counted on. If there are more
    /// than may be, nobody has to go, and nobody is let in until there are fewer.
    #[must_use]
    pub(super) fn in_place_of(self, before: &Self) -> Self {
        let Self { edge, places: _, share, visitors } = self;
        let places = Arc::clone(&before.places);
        if let Some(more) = share.checked_sub(before.share) {
            places.add_permits(more);
        } else {
            let fewer = u32::try_from(before.share - share).unwrap_or(u32::MAX);
            let places = Arc::clone(&places);
            tokio::task::spawn_local(async move {
                if let Ok(gone) = places.acquire_many_owned(fewer).await {
                    gone.forget();
                }
            });
        }
        let visitors = visitors.map(|new| before.visitors.clone().unwrap_or(new));
        Self { edge, places, share, visitors }
    }

    pub(super) fn edge(&self) -> &Arc<Edge> {
        &self.edge
    }

    /// Waits until there is room for one more connection; it is taken until the permit is dropped.
    ///
    /// Until then the kernel keeps who comes, and those whom it cannot keep go to other workers or try
    /// again: better than to be let in and thrown out.
    pub(super) async fn place(&self) -> Option<OwnedSemaphorePermit> {
        // Never closed, so there is always one in the end.
        Arc::clone(&self.places).acquire_owned().await.ok()
    }

    /// Lets a client in, unless its address has as many connections as it may. A trusted proxy may have
    /// any number: it has many clients.
    pub(super) fn visit(&self, address: SocketAddr) -> Option<Visit> {
        let (Some(visitors), Some(most)) = (&self.visitors, self.edge.max_connections_per_client) else {
            return Some(Visit(None));
        };
        let address = address.ip().to_canonical();
        if identity::is_trusted(address, &self.edge.trusted_proxies) {
            return Some(Visit(None));
        }
        let address = identity::household(address);
        let mut open = visitors.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(address).or_insert(0);
        if *count >= most.get() {
            return None;
        }
        *count += 1;
        Some(Visit(Some((Arc::clone(visitors), address))))
    }
}

/// Addresses that have connections open; locked once when one begins and once when it ends.
#[derive(Debug, Default)]
struct Visitors {
    open: Mutex<HashMap<IpAddr, u32>>,
}

/// A client is there while this lives; one that is not counted, by default.
#[derive(Debug, Default)]
pub(super) struct Visit(Option<(Arc<Visitors>, IpAddr)>);

impl Drop for Visit {
    fn drop(&mut self) {
        let Some((visitors, address)) = &self.0 else { return };
        let mut open = visitors.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(address) {
            *count -= 1;
            if *count == 0 {
                open.remove(address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use tokio::runtime::{Builder, LocalRuntime};

    use super::*;

    fn address(text: &str) -> SocketAddr {
        format!("{text}:4711").parse().unwrap()
    }

    #[test]
    fn an_address_has_its_connections_over_all_workers() {
        let edge = Edge { max_connections_per_client: NonZeroU32::new(2), ..Edge::default() };
        let edge = Edge { trusted_proxies: vec!["10.0.0.0/8".parse().unwrap()], ..edge };
        let rooms: Vec<_> = Room::split(edge, 2).collect();
        let visits: Vec<_> = rooms.iter().map(|room| room.visit(address("192.0.2.1")).unwrap()).collect();
        assert!(rooms[0].visit(address("192.0.2.1")).is_none());
        assert!(rooms[0].visit(address("192.0.2.2")).is_some());
        let proxy: Vec<_> = (0..5).map(|_| rooms[0].visit(address("10.0.0.1")).unwrap()).collect();
        drop(visits);
        assert!(rooms[1].visit(address("192.0.2.1")).is_some());
        drop(proxy);
        assert!(rooms[0].visitors.as_ref().unwrap().open.lock().unwrap().is_empty());
    }

    #[test]
    fn places_are_shared_out() {
        let edge = Edge { max_connections: NonZeroU32::new(3).unwrap(), ..Edge::default() };
        let places: Vec<_> = Room::split(edge, 2).map(|room| room.places.available_permits()).collect();
        assert_eq!(places, [2, 2]);
    }

    #[test]
    fn a_room_can_be_made_larger_and_smaller_with_people_in_it() {
        let runtime: LocalRuntime = Builder::new_current_thread().build_local(Default::default()).unwrap();
        runtime.block_on(async {
            let room = |most: u32| {
                let edge = Edge { max_connections: NonZeroU32::new(most).unwrap(), ..Edge::default() };
                Room::split(edge, 1).next().unwrap()
            };
            let two = room(2);
            let taken = [two.place().await, two.place().await];
            let three = room(3).in_place_of(&two);
            assert_eq!(three.places.available_permits(), 1);
            let one = room(1).in_place_of(&three);
            tokio::task::yield_now().await;
            assert_eq!(one.places.available_permits(), 0);
            drop(taken);
            tokio::task::yield_now().await;
            assert_eq!(one.places.available_permits(), 1);
        });
    }

    #[test]
    fn who_was_counted_before_is_counted_on() {
        let limited = |most| Edge { max_connections_per_client: NonZeroU32::new(most), ..Edge::default() };
        let room = |most| Room::split(limited(most), 1).next().unwrap();
        let two = room(2);
        let visits = [two.visit(address("192.0.2.1")), two.visit(address("192.0.2.1"))];
        let three = room(3).in_place_of(&two);
        let third = three.visit(address("192.0.2.1"));
        assert!(third.is_some());
        assert!(three.visit(address("192.0.2.1")).is_none());
        drop((visits, third));
        assert!(three.visitors.unwrap().open.lock().unwrap().is_empty());
    }
}
