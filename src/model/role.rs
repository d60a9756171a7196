//! Which backend of a service is trusted, and which one is on trial.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::name::BackendName;

/// The part that a backend plays in its service. In blue/green the same two: live and idle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The version that users have today.
    Stable,
    /// The version on trial.
    Canary,
}

impl Role {
    /// Every role, in the order of its index.
    pub const ALL: [Self; 2] = [Self::Stable, Self::Canary];

    /// A dense number for tables: 0 for stable, 1 for canary.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The word used in configuration, API and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stable => "stable",
            Self::Canary => "canary",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which backend holds which role in one service; never the same one twice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Roles {
    stable: BackendName,
    canary: Option<BackendName>,
}

/// One backend was named for both roles.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("backend `{0}` cannot be stable and canary at once")]
pub struct SameBackend(pub BackendName);

impl Roles {
    /// Roles for a service, which may have no canary.
    ///
    /// # Errors
    /// When both name the same backend.
    pub fn new(stable: BackendName, canary: Option<BackendName>) -> Result<Self, SameBackend> {
        if canary.as_ref() == Some(&stable) {
            return Err(SameBackend(stable));
        }
        Ok(Self { stable, canary })
    }

    /// The backend that users have today.
    pub fn stable(&self) -> &BackendName {
        &self.stable
    }

    /// The backend on trial, if the service has one.
    pub fn canary(&self) -> Option<&BackendName> {
        self.canary.as_ref()
    }

    /// The role that `backend` holds, if any.
    pub fn role_of(&self, backend: &BackendName) -> Option<Role> {
        if *backend == self.stable {
            Some(Role::Stable)
        } else if self.canary.as_ref() == Some(backend) {
            Some(Role::Canary)
        } else {
            None
        }
    }

    /// Stable becomes canary and canary stable; unchanged where there is no canary.
    #[must_use]
    pub fn swapped(self) -> Self {
        match self.canary {
            Some(canary) => Self { stable: canary, canary: Some(self.stable) },
            None => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(s: &str) -> BackendName {
        s.parse().unwrap()
    }

    #[test]
    fn one_backend_cannot_hold_both_roles() {
        assert_eq!(Roles::new(name("v1"), Some(name("v1"))), Err(SameBackend(name("v1"))));
    }

    #[test]
    fn swapping_twice_is_nothing() {
        let roles = Roles::new(name("v1"), Some(name("v2"))).unwrap();
        let swapped = roles.clone().swapped();
        assert_eq!(swapped.role_of(&name("v2")), Some(Role::Stable));
        assert_eq!(swapped.role_of(&name("v1")), Some(Role::Canary));
        assert_eq!(swapped.swapped(), roles);
    }
}
