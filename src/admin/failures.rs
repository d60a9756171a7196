//! How often an address has failed to say who it is. What that costs the process is bounded: lines of the
//! log by a rate for each address, and memory by a number of addresses.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Failures that an address may have at once.
const BURST: u32 = 10;
/// How long it takes until it may have one more.
const REFILL: Duration = Duration::from_secs(6);
/// Addresses that are remembered; those beyond share one account.
const MOST: usize = 1024;

/// Failures by address.
#[derive(Debug, Default)]
pub(super) struct Failures(Mutex<HashMap<IpAddr, Instant>>);

impl Failures {
    /// Counts a failure; if there were too many, says for how long the next is one too many, too.
    ///
    /// An account is the moment at which it will be empty again (a leaky bucket as a clock).
    pub(super) fn count(&self, address: IpAddr, now: Instant) -> Result<(), Duration> {
        let mut accounts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut address = network(address);
        if accounts.len() >= MOST && !accounts.contains_key(&address) {
            accounts.retain(|_, empty| *empty > now);
            if accounts.len() >= MOST {
                address = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
            }
        }
        let empty = accounts.entry(address).or_insert(now);
        let after = (*empty).max(now) + REFILL;
        let too_far = after.saturating_duration_since(now + REFILL * BURST);
        if too_far > Duration::ZERO {
            return Err(too_far);
        }
        *empty = after;
        Ok(())
    }
}

/// What one client can come from at will is one account: of IPv6, a /64.
pub(super) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn an_address_has_a_burst_and_then_a_rate_of_its_own() {
        let (failures, now) = (Failures::default(), clock::monotonic());
        let (one, other) = (IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)));
        assert!((0..BURST).all(|_| failures.count(one, now).is_ok()));
        assert_eq!(failures.count(one, now), Err(REFILL));
        assert_eq!(failures.count(other, now), Ok(()));
        assert_eq!(failures.count(one, now + REFILL / 2), Err(REFILL / 2));
        assert_eq!(failures.count(one, now + REFILL), Ok(()));
        assert_eq!(failures.count(one, now + REFILL), Err(REFILL));
        assert!((0..BURST).all(|_| failures.count(one, now + REFILL * 2 * BURST).is_ok()));
    }

    #[test]
    fn memory_is_bounded_and_those_beyond_share_an_account() {
        let (failures, now) = (Failures::default(), clock::monotonic());
        let address = |n: u32| IpAddr::V4(Ipv4Addr::from_bits(n));
        let counted = (0..5000).filter(|n| failures.count(address(*n), now).is_ok()).count();
        assert_eq!(counted, MOST + BURST as usize);
        let remembered = || failures.0.lock().unwrap().len();
        assert_eq!(remembered(), MOST + 1);
        assert_eq!(failures.count(address(9999), now + REFILL * BURST), Ok(()));
        assert_eq!(remembered(), 1);
    }

    #[test]
    fn an_ipv6_network_is_one_client() {
        let [a, b, c] =
            ["2001:db8::1", "2001:db8::2:1", "2001:db8:0:1::1"].map(|a| network(a.parse().unwrap()));
        assert!(a == b && b != c);
        assert_eq!(network("::ffff:10.0.0.1".parse().unwrap()), network("10.0.0.1".parse().unwrap()));
    }

    use crate::clock;
}
