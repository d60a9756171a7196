//! How many connections a listener has room for: in all, and for one client address.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
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
    /// Set where the connections of an address are limited.
    visitors: Option<Arc<Visitors>>,
}

impl Room {
    /// The workers' rooms.
    pub(super) fn split(edge: Edge, workers: usize) -> impl Iterator<Item = Self> {
        let share = (edge.max_connections.get() as usize).div_ceil(workers.max(1));
        let most = edge.max_connections_per_client;
        let visitors = most.map(|most| Arc::new(Visitors { most, open: Mutex::default() }));
        let edge = Arc::new(edge);
        (0..workers).map(move |_| Self {
            edge: Arc::clone(&edge),
            places: Arc::new(Semaphore::new(share)),
            visitors: visitors.clone(),
        })
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
        let Some(visitors) = &self.visitors else { return Some(Visit(None)) };
        let address = address.ip().to_canonical();
        if identity::is_trusted(address, &self.edge.trusted_proxies) {
            return Some(Visit(None));
        }
        let address = identity::household(address);
        let mut open = visitors.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(address).or_insert(0);
        if *count >= visitors.most.get() {
            return None;
        }
        *count += 1;
        Some(Visit(Some((Arc::clone(visitors), address))))
    }
}

/// Addresses that have connections open; locked once when one begins and once when it ends.
#[derive(Debug)]
struct Visitors {
    most: NonZeroU32,
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
}
