//! How often something may happen, decided in one word of memory: the generic cell rate algorithm
//! (ITU-T I.371), which is a token bucket that need not be filled.
//!
//! The word is the time at which the bucket would be full again. It moves by one interval with each
//! request, and a request for which it is too far ahead has to wait.

use std::{
    hash::{BuildHasher, Hash, RandomState},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use crate::{net::identity, routing::limits::Rate};

/// Clients that one table remembers: 1 MiB.
const CLIENTS: usize = 1 << 16;
/// Places in which one client may be remembered.
const WAYS: usize = 8;

/// A rate in nanoseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    interval: u64,
    /// How far ahead the word may be: what a burst takes.
    tolerance: u64,
}

impl Pace {
    pub(super) fn new(rate: Rate) -> Self {
        // Rounded up: rather a little less than was asked for than more.
        let interval = 1_000_000_000u64.div_ceil(u64::from(rate.per_second.get()));
        Self { interval, tolerance: interval * u64::from(rate.burst.get() - 1) }
    }

    /// The next word if a request may pass at `now`, else the nanoseconds that it has to wait.
    fn admit(self, word: u64, now: u64) -> Result<u64, u64> {
        let ahead = word.saturating_sub(now);
        if ahead > self.tolerance { Err(ahead - self.tolerance) } else { Ok(now + ahead + self.interval) }
    }

    /// The same on a word that others change, too.
    pub(super) fn admit_shared(self, word: &AtomicU64, now: u64) -> Result<(), u64> {
        let mut wait = 0;
        let step = |word| self.admit(word, now).inspect_err(|nanos| wait = *nanos).ok();
        word.fetch_update(Relaxed, Relaxed, step).map(drop).map_err(|_| wait)
    }

    /// As if the last request that was let pass had not come.
    fn give_back(self, word: &AtomicU64) {
        // A word that is in the past is as good as one that is now, so nobody gets more than that one.
        let step = |word: u64| Some(word.saturating_sub(self.interval));
        let _before = word.fetch_update(Relaxed, Relaxed, step);
    }
}

/// How often requests may pass: of all clients, and of each one.
#[derive(Debug)]
pub(super) struct Rates {
    /// Times are counted from here; those of a table that is shared, from the same.
    start: Instant,
    all: Option<(Pace, AtomicU64)>,
    each: Option<(Pace, Holder, Arc<Clients>)>,
}

/// What a request has taken from rates.
#[derive(Debug, Default)]
pub(super) struct Taken<'r> {
    all: Option<(Pace, &'r AtomicU64)>,
    client: Option<(Pace, Place<'r>)>,
}

impl Rates {
    /// Rates that nothing has been taken from; the one of each client is kept in a table.
    pub(super) fn new(start: Instant, all: Option<Rate>, each: Option<(Rate, Holder, Arc<Clients>)>) -> Self {
        let all = all.map(|rate| (Pace::new(rate), AtomicU64::new(0)));
        let each = each.map(|(rate, holder, clients)| (Pace::new(rate), holder, clients));
        Self { start, all, each }
    }

    /// Lets a request pass, or says how many nanoseconds it has to wait. `client` is asked only if it matters.
    ///
    /// A client that has used up its own rate takes nothing from the rate of all, nor the other way round.
    pub(super) fn admit(&self, client: impl Fn() -> IpAddr, now: Instant) -> Result<Taken<'_>, u64> {
        let now = now.saturating_duration_since(self.start).as_nanos();
        let now = u64::try_from(now).unwrap_or(u64::MAX / 2);
        let mut taken = Taken::default();
        if let Some((pace, holder, clients)) = &self.each {
            taken.client = Some((*pace, clients.admit(*pace, (*holder, client()), now)?));
        }
        if let Some((pace, word)) = &self.all {
            if let Err(wait) = pace.admit_shared(word, now) {
                taken.give_back();
                return Err(wait);
            }
            taken.all = Some((*pace, word));
        }
        Ok(taken)
    }
}

impl Taken<'_> {
    /// The request is refused by something else, and is as if it had not come.
    pub(super) fn give_back(self) {
        if let Some((pace, word)) = self.all {
            pace.give_back(word);
        }
        if let Some((pace, Place { slot, hash })) = self.client
            // Else it has been given to another client.
            && slot.client.load(Relaxed) == hash
        {
            pace.give_back(&slot.word);
        }
    }
}

/// By whom a client is limited, of those that share a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Holder(u64);

/// One word for each client, for as many clients as there is room: fixed memory, no lock.
///
/// A client has [`WAYS`] places, for each holder others. Where all are taken, the one is given up whose
/// bucket is full first: it loses the least. Two workers may do that at once; then a client may have a
/// request more.
#[derive(Debug)]
pub(super) struct Clients {
    hasher: RandomState,
    slots: Box<[Slot]>,
}

#[derive(Debug, Default)]
struct Slot {
    /// The client's hash; 0 is nobody.
    client: AtomicU64,
    word: AtomicU64,
}

impl Clients {
    pub(super) fn new() -> Self {
        Self { hasher: RandomState::new(), slots: (0..CLIENTS).map(|_| Slot::default()).collect() }
    }

    /// The holder that this describes: for as long as there is the table, the same one.
    pub(super) fn holder(&self, described: impl Hash) -> Holder {
        Holder(self.hasher.hash_one(described))
    }

    /// Lets a request of a client pass at `now`, or says how many nanoseconds it has to wait.
    fn admit(&self, pace: Pace, (holder, client): (Holder, IpAddr), now: u64) -> Result<Place<'_>, u64> {
        let hash = self.hasher.hash_one((holder, identity::household(client))) | 1;
        let set = (hash >> 32) as usize % (CLIENTS / WAYS) * WAYS;
        let set = &self.slots[set..set + WAYS];
        let own = set.iter().find(|slot| slot.client.load(Relaxed) == hash);
        let slot = own.unwrap_or_else(|| {
            let fullest = set.iter().min_by_key(|slot| slot.word.load(Relaxed)).expect("there are some");
            fullest.client.store(hash, Relaxed);
            fullest.word.store(0, Relaxed);
            fullest
        });
        pace.admit_shared(&slot.word, now)?;
        Ok(Place { slot, hash })
    }
}

/// Where a client is remembered, and its hash.
#[derive(Debug)]
struct Place<'c> {
    slot: &'c Slot,
    hash: u64,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rate(per_second: u32, burst: u32) -> Rate {
        Rate { per_second: per_second.try_into().unwrap(), burst: burst.try_into().unwrap() }
    }

    #[test]
    fn a_burst_passes_at_once_and_then_one_for_each_interval() {
        let (pace, word) = (Pace::new(rate(10, 3)), AtomicU64::new(0));
        let now = 5_000_000_000;
        let passed = (0..5).filter(|_| pace.admit_shared(&word, now).is_ok()).count();
        assert_eq!(passed, 3);
        assert_eq!(pace.admit_shared(&word, now), Err(100_000_000));
        assert_eq!(pace.admit_shared(&word, now + 99_999_999), Err(1));
        assert_eq!(pace.admit_shared(&word, now + 100_000_000), Ok(()));
        assert_eq!(pace.admit_shared(&word, now + 100_000_000), Err(100_000_000));
    }

    #[test]
    fn clients_have_a_bucket_each_and_an_ipv6_household_has_one() {
        let (clients, pace) = (Clients::new(), Pace::new(rate(1, 1)));
        let holder = Holder::default();
        let admit =
            |client: &str| clients.admit(pace, (holder, client.parse().unwrap()), 7_000_000_000).is_ok();
        assert!(admit("192.0.2.1") && admit("192.0.2.2") && admit("2001:db8::1") && admit("2001:db8:0:1::1"));
        assert!(!admit("192.0.2.1") && !admit("2001:db8::2"));
    }

    #[test]
    fn holders_of_one_table_do_not_share_their_clients() {
        let (clients, pace) = (Clients::new(), Pace::new(rate(1, 1)));
        let [one, other] = ["/a", "/b"].map(|name| clients.holder(name));
        let admit =
            |holder| clients.admit(pace, (holder, IpAddr::from([192, 0, 2, 1])), 7_000_000_000).is_ok();
        assert!(admit(one) && admit(other));
        assert!(!admit(one) && !admit(clients.holder("/b")));
    }

    #[test]
    fn who_is_refused_by_one_rate_takes_nothing_from_the_other() {
        let start = crate::clock::monotonic();
        let clients = Arc::new(Clients::new());
        let rates =
            |all, each| Rates::new(start, Some(all), Some((each, Holder::default(), Arc::clone(&clients))));
        let now = start + std::time::Duration::from_secs(7);
        let from = |last: u8| move || IpAddr::from([192, 0, 2, last]);
        let by_all = rates(rate(1, 1), rate(1, 2));
        assert!(by_all.admit(from(1), now).is_ok());
        assert!((0..5).all(|_| by_all.admit(from(1), now).is_err()), "the rate of all is used up");
        let by_client = rates(rate(1, 2), rate(1, 2));
        assert!(by_client.admit(from(1), now).is_ok(), "the second of two");
        assert!((0..5).all(|_| by_client.admit(from(1), now).is_err()));
        assert!(by_client.admit(from(2), now).is_ok(), "the rate of all has one left");
    }

    #[test]
    fn what_is_given_back_can_be_taken_once_more() {
        let start = crate::clock::monotonic();
        let clients = Arc::new(Clients::new());
        let each = Some((rate(1, 2), Holder::default(), Arc::clone(&clients)));
        let rates = Rates::new(start, Some(rate(1, 2)), each);
        let now = start + std::time::Duration::from_secs(7);
        let admit = || rates.admit(|| IpAddr::from([192, 0, 2, 1]), now);
        for _ in 0..5 {
            admit().unwrap().give_back();
        }
        let (one, two) = (admit().unwrap(), admit().unwrap());
        assert!(admit().is_err());
        one.give_back();
        assert!(admit().is_ok() && admit().is_err());
        // A place that is another client's by now stays as it is.
        let Some((_, Place { slot, .. })) = &two.client else { panic!("{two:?}") };
        slot.client.store(2, Relaxed);
        let word = slot.word.load(Relaxed);
        let slot = *slot;
        two.give_back();
        assert_eq!(slot.word.load(Relaxed), word);
    }

    #[test]
    fn more_clients_than_there_is_room_for_are_no_more_memory() {
        let (clients, pace) = (Clients::new(), Pace::new(rate(1, 1)));
        for n in 0..200_000u32 {
            let client = (Holder::default(), IpAddr::from(n.to_be_bytes()));
            let _admitted = clients.admit(pace, client, u64::from(n));
        }
        assert_eq!(clients.slots.len(), CLIENTS);
    }

    proptest! {
        #[test]
        fn no_window_lets_more_pass_than_its_length_and_a_burst(
            per_second in 1u32..5000,
            burst in 1u32..50,
            gaps in prop::collection::vec(0u64..20_000_000, 1..300),
        ) {
            let (pace, word) = (Pace::new(rate(per_second, burst)), AtomicU64::new(0));
            let mut now = 1_000_000_000;
            let mut passed = Vec::new();
            for gap in gaps {
                now += gap;
                if pace.admit_shared(&word, now).is_ok() {
                    passed.push(now);
                }
            }
            for (i, first) in passed.iter().enumerate() {
                for (j, last) in passed.iter().enumerate().skip(i) {
                    let allowed = u64::from(burst) + (last - first) / pace.interval;
                    prop_assert!((j - i + 1) as u64 <= allowed);
                }
            }
        }
    }
}
