//! Whether a service takes one more request: limits at a time and over time.
//!
//! They hold for the process. Workers share nothing else, but a limit of which each worker had a part
//! would be reached by a client whose connections happen to be on one of them. So a service that has
//! a limit costs each of its requests one or two atomic operations, and one that has none costs it a
//! look at a pointer.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use super::{
    error::ProxyError,
    rate::{Clients, Pace},
};
use crate::{
    clock,
    model::name::ServiceName,
    routing::{limits::Limits, snapshot::Service},
    telemetry::in_flight::{self, InFlight},
};

/// The gates of all services, where every worker finds the same ones.
#[derive(Debug, Default)]
pub(super) struct Gates(Mutex<HashMap<ServiceName, Arc<Gate>>>);

/// What a limited service has let in.
#[derive(Debug)]
pub(super) struct Gate {
    limits: Limits,
    /// Times are counted from here.
    start: Instant,
    /// How many there may be at a time, and how many there are.
    most: Option<Arc<InFlight>>,
    in_flight: AtomicU32,
    rate: Option<(Pace, AtomicU64)>,
    clients: Option<(Pace, Clients)>,
}

/// A place among the requests that a service has at a time, until it is dropped.
#[derive(Debug)]
pub(super) struct Permit(Arc<Gate>);

impl Gates {
    /// The gate of a service, if its requests are limited. The same one as before if its limits are.
    ///
    /// Locked when a worker takes up a topology, never for a request.
    pub(super) fn of(&self, service: &Service, limits: &in_flight::Limits) -> Option<Arc<Gate>> {
        let Limits { in_flight, rate, client_rate, max_body_size: _, min_body_rate: _, body_timeout: _ } =
            service.limits;
        let mut gates = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if in_flight.is_none() && rate.is_none() && client_rate.is_none() {
            gates.remove(&service.name);
            return None;
        }
        let known = gates.get(&service.name).filter(|gate| gate.limits == service.limits);
        let new = || {
            let most = in_flight.map(|in_flight| limits.open(&service.name, in_flight.bounds()));
            Arc::new(Gate::new(service.limits, most))
        };
        let gate = known.cloned().unwrap_or_else(new);
        // Those of services that are not there any more go with their last request.
        gates.retain(|_, gate| Arc::strong_count(gate) > 1);
        gates.insert(service.name.clone(), Arc::clone(&gate));
        Some(gate)
    }
}

impl Gate {
    fn new(limits: Limits, most: Option<Arc<InFlight>>) -> Self {
        Self {
            limits,
            most,
            start: clock::monotonic(),
            in_flight: AtomicU32::new(0),
            rate: limits.rate.map(|rate| (Pace::new(rate), AtomicU64::new(0))),
            clients: limits.client_rate.map(|rate| (Pace::new(rate), Clients::new())),
        }
    }

    /// Lets a request in, or says why not. `client` is asked only if it matters.
    ///
    /// # Errors
    /// When there are too many, of this client or in all, over time or at a time.
    pub(super) fn admit(
        self: &Arc<Self>,
        client: impl FnOnce() -> IpAddr,
        now: Instant,
    ) -> Result<Option<Permit>, ProxyError> {
        let nanos =
            u64::try_from(now.saturating_duration_since(self.start).as_nanos()).unwrap_or(u64::MAX / 2);
        if let Some((pace, clients)) = &self.clients {
            clients.admit(*pace, client(), nanos).map_err(wait)?;
        }
        if let Some((pace, word)) = &self.rate {
            pace.admit_shared(word, nanos).map_err(wait)?;
        }
        let Some(most) = &self.most else { return Ok(None) };
        let permit = Permit(Arc::clone(self));
        // Undone by the permit's end if it was one too many.
        if self.in_flight.fetch_add(1, Relaxed) < most.limit() {
            Ok(Some(permit))
        } else {
            most.reject();
            Err(ProxyError::Overloaded)
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}

fn wait(nanos: u64) -> ProxyError {
    let seconds = nanos.div_ceil(1_000_000_000).max(1);
    ProxyError::RateLimited { retry_after: u16::try_from(seconds).unwrap_or(u16::MAX) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::{
        limits::{Adaptive, InFlight as Kind, Rate},
        policy::Policy,
        snapshot::Timeouts,
    };

    fn service(limits: Limits) -> Service {
        Service {
            name: "web".parse().unwrap(),
            routes: Arc::new([]),
            aa_test: false,
            sticky: None,
            cookie_signer: None,
            overrides: None,
            backend_header: None,
            timeouts: Timeouts::default(),
            upgrades: Vec::new(),
            failures: None,
            policy: Policy::default(),
            limits,
            retry: None,
            mirror: None,
        }
    }

    fn gate(gates: &Gates, limits: Limits) -> Option<Arc<Gate>> {
        gates.of(&service(limits), &in_flight::Limits::default())
    }

    fn at_a_time(most: u32) -> Limits {
        Limits { in_flight: most.try_into().ok().map(Kind::Fixed), ..Limits::default() }
    }

    fn nobody() -> IpAddr {
        IpAddr::from([192, 0, 2, 1])
    }

    #[test]
    fn a_service_without_limits_has_no_gate() {
        assert!(gate(&Gates::default(), Limits::default()).is_none());
    }

    #[test]
    fn every_worker_finds_the_same_gate_until_the_limits_change() {
        let gates = Gates::default();
        let (one, two) = (gate(&gates, at_a_time(1)).unwrap(), gate(&gates, at_a_time(1)).unwrap());
        assert!(Arc::ptr_eq(&one, &two));
        assert!(!Arc::ptr_eq(&one, &gate(&gates, at_a_time(2)).unwrap()));
    }

    #[test]
    fn a_place_is_free_again_when_its_permit_is_gone() {
        let gate = gate(&Gates::default(), at_a_time(1)).unwrap();
        let now = clock::monotonic();
        let permit = gate.admit(nobody, now).unwrap();
        for _ in 0..3 {
            assert_eq!(gate.admit(nobody, now).err(), Some(ProxyError::Overloaded));
        }
        drop(permit);
        assert!(gate.admit(nobody, now).is_ok());
    }

    #[test]
    fn a_limit_that_moves_is_heeded_at_once_and_goes_with_its_gate() {
        let (gates, limits) = (Gates::default(), in_flight::Limits::default());
        let bounds = Adaptive { min: 1.try_into().unwrap(), max: 9.try_into().unwrap() };
        let adaptive = Limits { in_flight: Some(Kind::Adaptive(bounds)), ..Limits::default() };
        let gate = gates.of(&service(adaptive), &limits).unwrap();
        let now = clock::monotonic();
        let one = gate.admit(nobody, now).unwrap();
        assert_eq!(gate.admit(nobody, now).err(), Some(ProxyError::Overloaded));
        let (_, limit) = limits.all().pop().unwrap();
        limit.set_limit(2);
        let two = gate.admit(nobody, now).unwrap();
        assert_eq!(gate.admit(nobody, now).err(), Some(ProxyError::Overloaded));
        assert_eq!(limit.rejected(), 2);
        drop((one, two, gate, limit));
        assert!(gates.of(&service(Limits::default()), &limits).is_none());
        assert!(limits.all().is_empty(), "nobody admits by it any more");
    }

    #[test]
    fn who_has_to_wait_is_told_how_long() {
        let rate = Some(Rate { per_second: 1.try_into().unwrap(), burst: 1.try_into().unwrap() });
        let gate = gate(&Gates::default(), Limits { rate, ..Limits::default() }).unwrap();
        let now = clock::monotonic();
        assert!(gate.admit(nobody, now).is_ok());
        assert_eq!(gate.admit(nobody, now).err(), Some(ProxyError::RateLimited { retry_after: 1 }));
    }
}
