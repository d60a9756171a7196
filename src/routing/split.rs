//! The split of one service: which backend gets a request, and why.

use std::hash::Hasher;

use siphasher::sip::SipHasher13;

use super::snapshot::BackendId;
use crate::model::{role::Role, weight::Weight};

/// How a service's requests are shared between its backends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// The backend that users have today.
    pub stable: BackendId,
    /// The backend on trial, if there is one.
    pub canary: Option<BackendId>,
    /// The canary's share of requests.
    pub weight: Weight,
    /// The share of stable's requests that the canary gets copies of for its rollout; zero where the
    /// service's own mirror says.
    pub copies: Weight,
    /// Changes with each rollout, so that it is not always the same users who go first.
    pub salt: u64,
    /// While stable is split against itself, the salt by which its clients are, another for each test. Only
    /// while it gets everything and no rollout runs, so that nobody's place depends on it.
    pub halves: Option<u64>,
}

/// Why a request went where it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// By the weight and chance.
    Weight,
    /// By the weight and a key that the client brought: the same key goes the same way again.
    Sticky,
    /// A rule on a header.
    Header,
    /// A rule on a cookie.
    Cookie,
    /// A rule on a query parameter.
    Query,
    /// It asked for the preview.
    Preview,
    /// The canary failed it, and stable shields its users from that.
    Shield,
}

impl Reason {
    /// The reason in a word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Weight => "weight",
            Self::Sticky => "sticky",
            Self::Header => "header",
            Self::Cookie => "cookie",
            Self::Query => "query",
            Self::Preview => "preview",
            Self::Shield => "shield",
        }
    }

    /// Whether the role was drawn for the request or, once, for its client. Only then do both roles get the
    /// same kind of requests, and only such are compared.
    #[inline]
    pub const fn is_drawn(self) -> bool {
        matches!(self, Self::Weight | Self::Sticky)
    }
}

/// The choice of a backend for one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Assignment {
    /// The backend.
    pub backend: BackendId,
    /// The role that it holds.
    pub role: Role,
    /// Why it was chosen.
    pub reason: Reason,
    /// While stable is split against itself, the half of its requests that this one is in: a hidden split, by
    /// the same kind of numbers that would decide between it and a canary.
    pub half: Option<bool>,
    /// Where the client is pinned: its slot, which is the canary's if it is below the weight's hundredths of
    /// a percent.
    pub slot: Option<u16>,
}

impl Split {
    /// Assigns a request that carries no key, from a uniformly distributed number.
    #[inline]
    pub fn by_chance(&self, uniform: u64) -> Assignment {
        self.assign(uniform, Reason::Weight)
    }

    /// Assigns a request by a key, so that a client stays where it is while the weight stands, moves
    /// only from stable to canary while it rises, and moves back at once when it falls to 0.
    pub fn by_key(&self, key: &[u8]) -> Assignment {
        // SipHash-1-3 (Aumasson & Bernstein 2012), keyed by the salt: clients cannot aim at the
        // canary without knowing it, and replicas with the same salt agree.
        let salt = self.halves.unwrap_or(self.salt);
        let mut hasher = SipHasher13::new_with_keys(salt, !salt);
        hasher.write(key);
        self.assign(hasher.finish(), Reason::Sticky)
    }

    /// Assigns a request to a role, whatever the weight. Nothing, if no backend holds the role.
    pub fn by_role(&self, role: Role, reason: Reason) -> Option<Assignment> {
        let backend = match role {
            Role::Stable => self.stable,
            Role::Canary => self.canary?,
        };
        Some(Assignment { backend, role, reason, half: None, slot: None })
    }

    fn assign(&self, uniform: u64, reason: Reason) -> Assignment {
        let slot = (reason == Reason::Sticky).then(|| Weight::slot(uniform));
        match self.canary {
            Some(backend) if self.weight.admits(uniform) => {
                Assignment { backend, role: Role::Canary, reason, half: None, slot }
            }
            _ => {
                // A slot as a whole, as it would be in a rollout.
                let odd = slot.map_or(uniform, u64::from) & 1 == 1;
                let half = self.halves.map(|_| odd);
                Assignment { backend: self.stable, role: Role::Stable, reason, half, slot }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(percent: f64, salt: u64) -> Split {
        let weight = Weight::from_percent(percent).unwrap();
        let (stable, canary) = (BackendId(0), Some(BackendId(1)));
        Split { stable, canary, weight, copies: Weight::ZERO, salt, halves: None }
    }

    #[test]
    fn a_service_without_canary_is_all_stable() {
        let split = Split { canary: None, ..split(100.0, 0) };
        assert_eq!(split.by_chance(0).backend, BackendId(0));
    }

    #[test]
    fn a_forced_role_needs_no_weight_and_a_backend() {
        let forced = |split: &Split, role| split.by_role(role, Reason::Header).map(|a| (a.backend, a.role));
        let split = split(0.0, 0);
        assert_eq!(forced(&split, Role::Canary), Some((BackendId(1), Role::Canary)));
        assert_eq!(forced(&split, Role::Stable), Some((BackendId(0), Role::Stable)));
        assert_eq!(forced(&Split { canary: None, ..split }, Role::Canary), None);
    }

    #[test]
    fn the_share_of_keys_is_the_weight() {
        let split = split(10.0, 7);
        let canaries =
            (0..100_000u32).filter(|i| split.by_key(&i.to_le_bytes()).role == Role::Canary).count();
        // 100,000 independent draws at 10 %: standard deviation 95; five of them.
        assert!((9_525..=10_475).contains(&canaries), "{canaries}");
    }

    #[test]
    fn stable_is_split_against_itself_where_it_is_to_be() {
        let halves = |halves| {
            let split = Split { halves, ..split(0.0, 3) };
            let halves = (0..10_000u32).map(|i| split.by_key(&i.to_le_bytes()).half);
            halves.fold([0, 0, 0], |mut sums, half| {
                sums[half.map_or(2, usize::from)] += 1;
                sums
            })
        };
        let [one, other, neither] = halves(Some(5));
        // 10,000 independent draws of a half: standard deviation 50; five of them.
        assert!((4_750..=5_250).contains(&one) && one + other == 10_000 && neither == 0, "{one} {other}");
        assert_eq!(halves(None)[2], 10_000);
        let halved = Split { halves: Some(5), ..split(0.0, 3) };
        assert_eq!(halved.by_role(Role::Stable, Reason::Header).unwrap().half, None);
    }

    #[test]
    fn each_test_has_other_halves() {
        let half = |salt, key: u32| {
            Split { halves: Some(salt), ..split(0.0, 3) }.by_key(&key.to_le_bytes()).half.unwrap()
        };
        let same = (0..10_000u32).filter(|i| half(1, *i) == half(2, *i)).count();
        // Independent halves agree half the time: standard deviation 50; five of them.
        assert!((4_750..=5_250).contains(&same), "{same}");
    }

    #[test]
    fn another_salt_reshuffles() {
        let side = |salt, key: u32| split(50.0, salt).by_key(&key.to_le_bytes()).role;
        let same = (0..10_000u32).filter(|i| side(1, *i) == side(2, *i)).count();
        // Independent halves agree half the time: standard deviation 50; five of them.
        assert!((4_750..=5_250).contains(&same), "{same}");
    }

    proptest! {
        #[test]
        fn raising_the_weight_moves_nobody_back(key: [u8; 16], salt: u64, a in 0u16..=10_000, b in 0u16..=10_000) {
            let at = |w: u16| Split { weight: Weight::from_hundredths(w).unwrap(), ..split(0.0, salt) }.by_key(&key);
            prop_assert!(at(a.min(b)).role == Role::Stable || at(a.max(b)).role == Role::Canary);
        }
    }
}
