//! When a request that has failed at a backend is tried again: settings as values, and the rules.
//!
//! A request is tried again only where that cannot do anything twice: it is idempotent, or the backend
//! has not seen it. Whether there is another endpoint, and whether the budget allows it, is not known
//! here.

use std::time::Duration;

use http::Method;

/// When a request that has failed is tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    /// Tries beyond the first (default 1).
    pub attempts: u32,
    /// Which failures are tried again.
    pub on: Conditions,
    /// Whether a request that the canary fails goes to stable (default: it does not).
    pub shield: bool,
    /// Longest time that the head of a response may take of one try (default: as long as of all).
    pub per_try_timeout: Option<Duration>,
    /// How long is waited before a try.
    pub backoff: Backoff,
    /// How many tries there may be in all.
    pub budget: Budget,
    /// Bytes of a request's body that are kept to be sent again (default 64 KiB).
    pub max_body: usize,
}

/// Which failures are tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conditions {
    /// No connection could be made.
    pub connect_failure: bool,
    /// The backend has not looked at the request, and says so.
    pub refused_stream: bool,
    /// The connection broke, or nothing came in time, before the response's head.
    pub reset: bool,
    /// A gRPC call was answered with UNAVAILABLE (default: not tried again, since no call is known to be
    /// idempotent).
    pub unavailable: bool,
    /// Statuses of responses.
    pub statuses: Vec<u16>,
}

/// How long is waited before a try: any time up to one that doubles with each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// Longest wait before the first (default 25 ms).
    pub base: Duration,
    /// Longest wait (default 250 ms).
    pub max: Duration,
}

/// How many tries there may be, so that retries do not bring down what is only slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Percentage of the requests of the last 10 s (default 20).
    pub percent: u8,
    /// Tries a second that there may be however few requests come (default 10), of the whole process.
    pub min_per_second: u32,
}

/// How a try has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// No connection could be made.
    Connect,
    /// The backend has not looked at the request.
    Unseen,
    /// The connection broke, or nothing came in time.
    Reset,
    /// A response with a status of 500 or more.
    Status(u16),
    /// A gRPC call was answered with UNAVAILABLE.
    Unavailable,
    /// A gRPC call was answered with something else that is the server's fault.
    Call,
}

impl Retry {
    /// Whether such a failure of a request with this method is tried again.
    pub fn covers(&self, failure: Failure, method: &Method) -> bool {
        let on = &self.on;
        let wanted = match failure {
            Failure::Connect => on.connect_failure,
            Failure::Unseen => on.refused_stream,
            Failure::Reset => on.reset,
            Failure::Status(status) => on.statuses.contains(&status),
            Failure::Unavailable => on.unavailable,
            Failure::Call => false,
        };
        wanted && self.is_safe(failure, method)
    }

    /// Whether such a failure of the canary's is one that its users need not see. Whatever counts against
    /// the canary is, where it cannot do anything twice.
    pub fn shields(&self, failure: Failure, method: &Method) -> bool {
        self.shield && self.is_safe(failure, method)
    }

    /// How long the head of a response may take of one try, where all of them have so long.
    pub fn for_one_try(&self, left: Duration) -> Duration {
        self.per_try_timeout.map_or(left, |time| time.min(left))
    }

    /// Whether a request may be sent again after such a failure. Who has UNAVAILABLE tried again says that
    /// calls may be.
    fn is_safe(&self, failure: Failure, method: &Method) -> bool {
        match failure {
            Failure::Connect | Failure::Unseen => true,
            Failure::Unavailable if self.on.unavailable => true,
            Failure::Reset | Failure::Status(_) | Failure::Unavailable | Failure::Call => {
                method.is_idempotent()
            }
        }
    }
}

impl Backoff {
    /// How long is waited before the `n`-th retry, from 1 on; `uniform` is a uniformly distributed number.
    pub fn wait(&self, n: u32, uniform: u32) -> Duration {
        let doubled = 2u32.saturating_pow(n.saturating_sub(1));
        let longest = self.base.saturating_mul(doubled).min(self.max);
        longest.mul_f64(f64::from(uniform) / f64::from(u32::MAX))
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 1,
            on: Conditions::default(),
            shield: false,
            per_try_timeout: None,
            backoff: Backoff::default(),
            budget: Budget::default(),
            max_body: 64 * 1024,
        }
    }
}

impl Default for Conditions {
    fn default() -> Self {
        Self {
            connect_failure: true,
            refused_stream: true,
            reset: true,
            unavailable: false,
            statuses: vec![502, 503, 504],
        }
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self { base: Duration::from_millis(25), max: Duration::from_millis(250) }
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self { percent: 20, min_per_second: 10 }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const IDEMPOTENT: [Method; 6] =
        [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE, Method::PUT, Method::DELETE];
    const OTHERS: [Method; 3] = [Method::POST, Method::PATCH, Method::CONNECT];

    const SENT: [Failure; 3] = [Failure::Reset, Failure::Status(503), Failure::Call];

    #[test]
    fn what_may_have_been_done_is_not_done_twice() {
        let all = Retry { shield: true, ..Retry::default() };
        for failure in SENT {
            assert!(IDEMPOTENT.iter().all(|method| all.shields(failure, method)), "{failure:?}");
            assert!(!OTHERS.iter().any(|m| all.covers(failure, m) || all.shields(failure, m)), "{failure:?}");
        }
    }

    #[test]
    fn what_was_not_seen_may_be_sent_again_whatever_it_is() {
        let all = Retry { shield: true, ..Retry::default() };
        for failure in [Failure::Connect, Failure::Unseen] {
            let mut methods = IDEMPOTENT.iter().chain(&OTHERS);
            assert!(methods.all(|m| all.covers(failure, m) && all.shields(failure, m)), "{failure:?}");
        }
    }

    #[test]
    fn calls_are_made_again_only_if_somebody_says_that_they_may() {
        let default = Retry { shield: true, ..Retry::default() };
        assert!(!default.covers(Failure::Unavailable, &Method::POST));
        assert!(!default.shields(Failure::Unavailable, &Method::POST));
        let on = Conditions { unavailable: true, ..Conditions::default() };
        let named = Retry { on, ..default };
        assert!(named.covers(Failure::Unavailable, &Method::POST));
        assert!(named.shields(Failure::Unavailable, &Method::POST));
        assert!(!named.shields(Failure::Call, &Method::POST));
    }

    #[test]
    fn each_condition_is_about_its_failure() {
        let failures = [Failure::Connect, Failure::Unseen, Failure::Reset, Failure::Status(503)];
        let none = Conditions {
            connect_failure: false,
            refused_stream: false,
            reset: false,
            unavailable: false,
            statuses: vec![],
        };
        let conditions = [
            Conditions { connect_failure: true, ..none.clone() },
            Conditions { refused_stream: true, ..none.clone() },
            Conditions { reset: true, ..none.clone() },
            Conditions { statuses: vec![503], ..none },
        ];
        for (i, on) in conditions.into_iter().enumerate() {
            let retry = Retry { on, ..Retry::default() };
            let covered = failures.map(|failure| retry.covers(failure, &Method::GET));
            assert_eq!(covered, std::array::from_fn(|j| i == j), "{retry:?}");
        }
        assert!(!Retry::default().covers(Failure::Status(500), &Method::GET));
    }

    #[test]
    fn nothing_is_shielded_unless_asked_for() {
        assert!(!Retry::default().shields(Failure::Connect, &Method::GET));
    }

    proptest! {
        #[test]
        fn waits_double_up_to_the_longest(n in 1u32..40, uniform: u32) {
            let backoff = Backoff::default();
            let longest = (25u64 << (n - 1).min(20)).min(250);
            prop_assert!(backoff.wait(n, uniform) <= Duration::from_millis(longest));
            prop_assert_eq!(backoff.wait(n, u32::MAX), Duration::from_millis(longest));
            prop_assert_eq!(backoff.wait(n, 0), Duration::ZERO);
        }
    }
}
