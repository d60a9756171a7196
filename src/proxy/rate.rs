//! How often something may happen, decided in one word of memory: the generic cell rate algorithm
//! (ITU-T I.371), which is a token bucket that need not be filled.
//!
//! The word is the time at which the bucket would be full again. It moves by one interval with each
//! request, and a request for which it is too far ahead has to wait.

use std::{
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use crate::{net::identity, routing::limits::Rate};

/// Clients that one service remembers: 1 MiB.
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
}

/// One word for each client, for as many clients as there is room: fixed memory, no lock.
///
/// A client has [`WAYS`] places. Where all are taken, the one is given up whose bucket is fullest: it
/// loses the least. Two workers may do that at once; then a client may have a request more.
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

    /// Lets a request of a client pass at `now`, or says how many nanoseconds it has to wait.
    pub(super) fn admit(&self, pace: Pace, client: IpAddr, now: u64) -> Result<(), u64> {
        let hash = self.hasher.hash_one(identity::household(client)) | 1;
        let set = (hash >> 32) as usize % (CLIENTS / WAYS) * WAYS;
        let set = &self.slots[set..set + WAYS];
        let own = set.iter().find(|slot| slot.client.load(Relaxed) == hash);
        let slot = own.unwrap_or_else(|| {
            let fullest = set.iter().min_by_key(|slot| slot.word.load(Relaxed)).expect("there are some");
            fullest.client.store(hash, Relaxed);
            fullest.word.store(0, Relaxed);
            fullest
        });
        pace.admit_shared(&slot.word, now)
    }
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
        let admit = |client: &str| clients.admit(pace, client.parse().unwrap(), 7_000_000_000).is_ok();
        assert!(admit("192.0.2.1") && admit("192.0.2.2") && admit("2001:db8::1") && admit("2001:db8:0:1::1"));
        assert!(!admit("192.0.2.1") && !admit("2001:db8::2"));
    }

    #[test]
    fn more_clients_than_there_is_room_for_are_no_more_memory() {
        let (clients, pace) = (Clients::new(), Pace::new(rate(1, 1)));
        for n in 0..200_000u32 {
            let _admitted = clients.admit(pace, IpAddr::from(n.to_be_bytes()), u64::from(n));
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
