//! How much of a service's backends may be asked for: settings as values, no decisions.

use std::{
    num::{NonZeroU32, NonZeroU64},
    time::Duration,
};

/// How often something may happen: on average `per_second`, and up to `burst` at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rate {
    /// Requests for each second, in the long run.
    pub per_second: NonZeroU32,
    /// Requests that may come at once (default: as many as for one second).
    pub burst: NonZeroU32,
}

/// Between how many requests at a time the limit is that follows from how long they take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Adaptive {
    /// There may always be so many (default 20). It begins with them.
    pub min: NonZeroU32,
    /// There may never be more (default 1000).
    pub max: NonZeroU32,
}

impl Default for Adaptive {
    fn default() -> Self {
        let number = |n: u32| NonZeroU32::new(n).expect("it is not zero");
        Self { min: number(20), max: number(1000) }
    }
}

/// How many requests there may be at a time, over all workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InFlight {
    /// Always so many.
    Fixed(NonZeroU32),
    /// As many as the backends carry.
    Adaptive(Adaptive),
}

impl InFlight {
    /// Between what the limit may move.
    pub fn bounds(self) -> (u32, u32) {
        match self {
            Self::Fixed(limit) => (limit.get(), limit.get()),
            Self::Adaptive(Adaptive { min, max }) => (min.get(), max.get()),
        }
    }
}

/// How much of a service's backends may be asked for. By default nothing is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Bytes of a request's body.
    pub max_body_size: Option<u64>,
    /// Bytes for each second that a client has to send of a body, on average, once its first seconds
    /// are over.
    pub min_body_rate: Option<NonZeroU64>,
    /// Longest time that a request's body may take to arrive.
    pub body_timeout: Option<Duration>,
    /// Requests at a time, over all workers.
    pub in_flight: Option<InFlight>,
    /// Requests over time, of all clients and over all workers.
    pub rate: Option<Rate>,
    /// Requests over time of one client address, over all workers.
    pub client_rate: Option<Rate>,
}

/// How much of a service may be asked for by one route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RouteLimits {
    /// Bytes of a request's body; it takes the place of the service's.
    pub max_body_size: Option<u64>,
    /// How often requests may take the route, beside what the service allows.
    pub rates: RouteRates,
}

/// How often requests may take a route, over all workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct RouteRates {
    /// Of all clients.
    pub rate: Option<Rate>,
    /// Of one client address.
    pub client_rate: Option<Rate>,
}

impl RouteLimits {
    /// The service's limits with these in their place, as far as they do not hold beside them.
    pub fn over(&self, service: Limits) -> Limits {
        Limits { max_body_size: self.max_body_size.or(service.max_body_size), ..service }
    }
}
