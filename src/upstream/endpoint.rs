//! One worker's view of an endpoint: its idle connections, and how busy it is.

use std::{
    cell::{Cell, RefCell},
    sync::Arc,
    time::{Duration, Instant},
};

use http_body::Body;

use super::connection::Connection;
use crate::{routing::snapshot::Endpoint as Address, tls::client::Connector};

/// Idle connections that one worker keeps to one endpoint.
const MAX_IDLE: usize = 256;

/// Longest time that an idle connection is kept. Shorter than what common servers allow (nginx: 75 s,
/// Node.js: 5 s), so that it is seldom the server that closes first, just as a request is on its way.
pub const MAX_IDLE_TIME: Duration = Duration::from_secs(4);

/// One worker's view of an endpoint.
#[derive(Debug)]
pub struct Endpoint<B: Body + 'static> {
    address: Address,
    tls: Option<Arc<Connector>>,
    /// The last one put back is the first one taken: the rest grow old and are closed.
    #[expect(clippy::vec_box, reason = "connections are large and go in and out with every request")]
    idle: RefCell<Vec<Box<Connection<B>>>>,
    in_flight: Cell<u32>,
    refused: Cell<bool>,
}

impl<B> Endpoint<B>
where
    B: Body + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// An endpoint without connections. They will speak TLS if there is a connector.
    pub fn new(address: Address, tls: Option<Arc<Connector>>) -> Self {
        Self { address, tls, idle: RefCell::default(), in_flight: Cell::new(0), refused: Cell::new(false) }
    }

    /// Where it is.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// How it speaks TLS, if it does.
    pub fn tls(&self) -> Option<&Arc<Connector>> {
        self.tls.as_ref()
    }

    /// Takes an idle connection, if there is one.
    pub fn take_idle(&self) -> Option<Box<Connection<B>>> {
        self.idle.borrow_mut().pop()
    }

    /// Puts a connection back, unless it cannot take another request or there are enough.
    pub fn put_idle(&self, mut connection: Box<Connection<B>>, now: Instant) {
        let mut idle = self.idle.borrow_mut();
        // The end of a message may have been read without the connection noticing yet that it is free.
        if idle.len() < MAX_IDLE && (connection.is_ready() || connection.is_alive()) {
            connection.unwatch();
            connection.idle_since = Some(now);
            idle.push(connection);
        }
    }

    /// Closes idle connections that are too old, or that the other side has closed, and gives an
    /// endpoint that refused one another chance.
    pub fn sweep(&self, now: Instant) {
        self.refused.set(false);
        self.idle
            .borrow_mut()
            .retain_mut(|connection| connection.idle_for(now) < MAX_IDLE_TIME && connection.is_alive());
    }

    /// How little one would want to send it another request: the exchanges that this worker has with
    /// it now, or more than any if it has just refused a connection. One that refuses is always the
    /// least busy, and would otherwise get the most requests.
    pub fn load(&self) -> u32 {
        if self.refused.get() { u32::MAX } else { self.in_flight.get() }
    }

    /// It took no connection.
    pub fn refuse(&self) {
        self.refused.set(true);
    }

    /// An exchange begins.
    pub fn enter(&self) {
        self.in_flight.set(self.in_flight.get() + 1);
    }

    /// An exchange ends.
    pub fn leave(&self) {
        self.in_flight.set(self.in_flight.get() - 1);
    }
}

/// Chooses among endpoints: of two drawn at random the one with fewer exchanges, which is nearly as
/// even as asking all of them (Mitzenmacher 2001) and costs the same however many there are.
///
/// `uniform` is a random number; its halves draw the two. Nothing where there are no endpoints.
pub fn choose<E>(endpoints: &[E], load: impl Fn(&E) -> u32, uniform: u64) -> Option<&E> {
    match endpoints {
        [] => None,
        [only] => Some(only),
        _ => {
            let count = endpoints.len() as u64;
            let first = ((uniform >> 32) * count) >> 32;
            // Among the others, so that the two differ.
            let second = (first + 1 + (((uniform & 0xffff_ffff) * (count - 1)) >> 32)) % count;
            let (first, second) = (&endpoints[first as usize], &endpoints[second as usize]);
            Some(if load(second) < load(first) { second } else { first })
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_is_chosen_from_nothing() {
        assert_eq!(choose::<u32>(&[], |load| *load, 7), None);
    }

    proptest! {
        #[test]
        fn of_two_the_less_loaded_is_chosen(loads in prop::array::uniform2(0u32..5), uniform: u64) {
            let chosen = *choose(&loads, |load| *load, uniform).unwrap();
            prop_assert_eq!(chosen, *loads.iter().min().unwrap());
        }

        #[test]
        fn the_most_loaded_is_never_chosen(n in 2usize..10, uniform: u64) {
            let loads: Vec<u32> = (0..n as u32).collect();
            prop_assert!(*choose(&loads, |load| *load, uniform).unwrap() < n as u32 - 1);
        }
    }
}
