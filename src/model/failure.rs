//! Which whole answers count against a backend. What is no whole answer (no connection, a timeout, a broken
//! connection) always does.

use std::ops::RangeInclusive;

/// Which answers count against a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failures {
    /// HTTP statuses (default 500 and more).
    pub statuses: Statuses,
    /// How gRPC calls end that were answered with 200.
    pub grpc: GrpcStatuses,
}

impl Default for Failures {
    fn default() -> Self {
        let mut statuses = Statuses::default();
        statuses.insert(Statuses::CLASS_5XX);
        Self { statuses, grpc: GrpcStatuses::default() }
    }
}

/// A set of HTTP statuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Statuses([u64; 16]);

impl Statuses {
    /// The server's failures, and whatever comes after them.
    pub const CLASS_5XX: RangeInclusive<u16> = 500..=999;

    /// Adds some.
    pub fn insert(&mut self, statuses: RangeInclusive<u16>) {
        statuses.for_each(|status| self.0[Self::word(status)] |= Self::bit(status));
    }

    /// Takes some away, and says whether any of them was there.
    pub fn remove(&mut self, statuses: RangeInclusive<u16>) -> bool {
        let before = *self;
        statuses.for_each(|status| self.0[Self::word(status)] &= !Self::bit(status));
        *self != before
    }

    /// Whether a status is among them.
    pub fn contains(&self, status: u16) -> bool {
        self.0[Self::word(status)] & Self::bit(status) != 0
    }

    /// A status has three digits, so each has a word.
    fn word(status: u16) -> usize {
        usize::from(status) / 64 % 16
    }

    fn bit(status: u16) -> u64 {
        1 << (status % 64)
    }
}

/// A set of gRPC statuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GrpcStatuses(u32);

impl GrpcStatuses {
    /// The names of all statuses; the code is the place.
    pub const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];

    /// None of them.
    pub const NONE: Self = Self(0);

    /// UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE and DATA_LOSS, as OpenTelemetry has
    /// it for servers. The others are answers: the client asked for what is not there (NOT_FOUND), not
    /// allowed (PERMISSION_DENIED), or too much (RESOURCE_EXHAUSTED, gRPC's 429).
    pub const SERVERS_FAULT: Self = Self(1 << 2 | 1 << 4 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 15);

    /// Adds the status with this code.
    pub fn insert(&mut self, code: usize) {
        self.0 |= 1 << code;
    }

    /// Whether a status is among them, as a response says it. What is not a status is: a server that answers
    /// so does not do what it should.
    pub fn contains(self, code: &[u8]) -> bool {
        let code = match code {
            [digit @ b'0'..=b'9'] => digit - b'0',
            [b'1', digit @ b'0'..=b'6'] => 10 + digit - b'0',
            _ => return true,
        };
        self.0 & (1 << code) != 0
    }
}

impl Default for GrpcStatuses {
    fn default() -> Self {
        Self::SERVERS_FAULT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_told_apart() {
        let mut statuses = Failures::default().statuses;
        let all = |statuses: &Statuses| (100..=999).filter(|s| statuses.contains(*s)).collect::<Vec<_>>();
        assert_eq!(all(&statuses), (500..=999).collect::<Vec<_>>());
        statuses.insert(404..=404);
        assert!(statuses.remove(501..=999) && !statuses.remove(501..=501));
        assert_eq!(all(&statuses), [404, 500]);
    }

    #[test]
    fn what_the_server_is_to_blame_for_is_a_failure() {
        for (code, name) in GrpcStatuses::NAMES.into_iter().enumerate() {
            let servers = matches!(code, 2 | 4 | 12 | 13 | 14 | 15);
            assert_eq!(GrpcStatuses::default().contains(code.to_string().as_bytes()), servers, "{name}");
            let mut only = GrpcStatuses::NONE;
            only.insert(code);
            let named = (0..17usize).filter(|other| only.contains(other.to_string().as_bytes()));
            assert_eq!(named.collect::<Vec<_>>(), [code]);
        }
        for odd in ["", "17", "00", "01", "-1", "ok", "100"] {
            assert!(GrpcStatuses::NONE.contains(odd.as_bytes()), "{odd}");
        }
    }
}
