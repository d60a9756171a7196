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
    /// Changes with each rollout, so that it is not always the same users who go first.
    pub salt: u64,
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
        let mut hasher = SipHasher13::new_with_keys(self.salt, !self.salt);
        hasher.write(key);
        self.assign(hasher.finish(), Reason::Sticky)
    }

    /// Assigns a request to a role, whatever the weight. Nothing, if no backend holds the role.
    pub fn by_role(&self, role: Role, reason: Reason) -> Option<Assignment> {
        let backend = match role {
            Role::Stable => self.stable,
            Role::Canary => self.canary?,
        };
        Some(Assignment { backend, role, reason })
    }

    fn assign(&self, uniform: u64, reason: Reason) -> Assignment {
        match self.canary {
            Some(backend) if self.weight.admits(uniform) => {
                Assignment { backend, role: Role::Canary, reason }
            }
            _ => Assignment { backend: self.stable, role: Role::Stable, reason },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(percent: f64, salt: u64) -> Split {
        let weight = Weight::from_percent(percent).unwrap();
        Split { stable: BackendId(0), canary: Some(BackendId(1)), weight, salt }
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
    fn another_salt_reshuffles() {
        let same = (0..10_000u32)
            .filter(|i| split(50.0, 1).by_key(&i.to_le_bytes()) == split(50.0, 2).by_key(&i.to_le_bytes()))
            .count();
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
