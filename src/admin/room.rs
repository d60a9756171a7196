//! Room for connections: bounded, and none that only wait can keep others out.
//!
//! An address may have as many connections as are free, so that however many one has, or two, there is as much room
//! for others (the thresholds by which switches share a buffer: A. K. Choudhury and E. L. Hahne, Dynamic queue length
//! thresholds for shared-memory packet switches, IEEE/ACM Transactions on Networking 6(2), 1998). One that comes
//! beyond that takes the place of the one of its address that has been idle for longest: behind a forwarded port or a
//! sidecar everybody has one address, and somebody among them may have to roll back.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use super::failures::network;

/// Room for connections. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Room(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    most: usize,
    seats: Mutex<Seats>,
}

#[derive(Debug, Default)]
struct Seats {
    /// Raised by whatever happens.
    clock: u64,
    taken: BTreeMap<u64, Seat>,
}

#[derive(Debug)]
struct Seat {
    address: IpAddr,
    /// Since when it waits for a request; nothing while one is being answered.
    idle: Option<u64>,
    leave: Arc<Notify>,
}

/// A connection's place, which is free again once this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    room: Room,
    number: u64,
    leave: Arc<Notify>,
}

/// A request is being answered until this is dropped.
#[derive(Debug)]
pub(super) struct Busy(Arc<Place>);

impl Seats {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// The number of the one that has been idle for longest, of an address or of all.
    fn idlest(&self, address: Option<IpAddr>) -> Option<u64> {
        let theirs = self.taken.iter().filter(|(_, seat)| address.is_none_or(|it| it == seat.address));
        let idle = theirs.filter_map(|(number, seat)| Some((seat.idle?, *number)));
        idle.min().map(|(_, number)| number)
    }
}

impl Room {
    /// For so many.
    pub(super) fn new(most: usize) -> Self {
        Self(Arc::new(Shared { most, seats: Mutex::default() }))
    }

    fn seats(&self) -> MutexGuard<'_, Seats> {
        self.0.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a connection from an address, and whether another has to leave for it; nothing if all are busy.
    pub(super) fn take(&self, address: IpAddr) -> Option<(Place, bool)> {
        let address = network(address);
        let mut seats = self.seats();
        let theirs = seats.taken.values().filter(|seat| seat.address == address).count();
        let has_left = theirs >= self.0.most - seats.taken.len();
        if has_left {
            let idlest = seats.idlest((theirs > 0).then_some(address))?;
            if let Some(seat) = seats.taken.remove(&idlest) {
                seat.leave.notify_one();
            }
        }
        let (number, leave) = (seats.tick(), Arc::new(Notify::new()));
        seats.taken.insert(number, Seat { address, idle: Some(number), leave: Arc::clone(&leave) });
        drop(seats);
        Some((Place { room: self.clone(), number, leave }, has_left))
    }
}

impl Place {
    /// Waits until somebody else has it.
    pub(super) async fn is_taken(&self) {
        self.leave.notified().await;
    }

    /// A request is being answered.
    pub(super) fn busy(self: &Arc<Self>) -> Busy {
        self.set(|_| None);
        Busy(Arc::clone(self))
    }

    fn set(&self, idle: impl FnOnce(&mut Seats) -> Option<u64>) {
        let mut seats = self.room.seats();
        let idle = idle(&mut seats);
        if let Some(seat) = seats.taken.get_mut(&self.number) {
            seat.idle = idle;
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.set(|seats| Some(seats.tick()));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.room.seats().taken.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn address(number: u8) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, 0, 0, number))
    }

    /// As many busy connections as an address gets.
    fn all(room: &Room, number: u8) -> Vec<Busy> {
        std::iter::from_fn(|| room.take(address(number)).map(|(place, _)| Arc::new(place).busy())).collect()
    }

    #[test]
    fn an_address_may_have_as_many_as_are_free() {
        let room = Room::new(12);
        let one = all(&room, 1);
        assert_eq!(one.len(), 6);
        let two = all(&room, 2);
        assert_eq!((two.len(), all(&room, 3).len()), (3, 2));
        drop(one);
        assert_eq!(all(&room, 3).len(), 5);
        drop(two);
        assert!(room.seats().taken.is_empty());
    }

    #[test]
    fn beyond_that_the_one_that_has_been_idle_for_longest_leaves() {
        let room = Room::new(6);
        let mut places: Vec<_> = (0..3).map(|_| Arc::new(room.take(address(1)).unwrap().0)).collect();
        let has_left = |place: &Place| !room.seats().taken.contains_key(&place.number);
        drop(places[0].busy());
        let busy = places[1].busy();
        let (place, left) = room.take(address(1)).unwrap();
        assert!(left && has_left(&places[2]) && !has_left(&places[0]));
        // Its place is somebody else's by now.
        drop(places.pop());
        assert_eq!(room.seats().taken.len(), 3);
        let (_other, left) = room.take(address(2)).unwrap();
        assert!(!left);
        let next = room.take(address(1)).unwrap();
        assert!(next.1 && has_left(&places[0]));
        drop((busy, place));
    }

    #[test]
    fn when_all_are_taken_whoever_is_new_takes_the_place_of_the_idlest_of_all() {
        let room = Room::new(4);
        let places: Vec<_> = (1..=4).map(|number| room.take(address(number)).unwrap().0).collect();
        let (_new, left) = room.take(address(5)).unwrap();
        assert!(left && !room.seats().taken.contains_key(&places[0].number));
        assert_eq!(room.seats().taken.len(), 4);
    }

    #[tokio::test]
    async fn whoever_has_to_leave_is_told() {
        let room = Room::new(2);
        let (place, _) = room.take(address(1)).unwrap();
        let _next = room.take(address(1)).unwrap();
        place.is_taken().await;
    }
}
