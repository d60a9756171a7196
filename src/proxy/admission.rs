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
    pub(super) fn of(&self, service: &Service) -> Option<Arc<Gate>> {
        let Limits { max_in_flight, rate, client_rate, max_body_size: _, min_body_rate: _, body_timeout: _ } =
            service.limits;
        if max_in_flight.is_none() && rate.is_none() && client_rate.is_none() {
            return None;
        }
        let mut gates = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = gates.get(&service.name).filter(|gate| gate.limits == service.limits);
        let gate = known.cloned().unwrap_or_else(|| Arc::new(Gate::new(service.limits)));
        // Those of services that are not there any more go with their last request.
        gates.retain(|_, gate| Arc::strong_count(gate) > 1);
        gates.insert(service.name.clone(), Arc::clone(&gate));
        Some(gate)
    }
}

impl Gate {
    fn new(limits: Limits) -> Self {
        Self {
            limits,
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
        let Some(most) = self.limits.max_in_flight else { return Ok(None) };
        let permit = Permit(Arc::clone(self));
        // Undone by the permit's end if it was one too many.
        if self.in_flight.fetch_add(1, Relaxed) < most.get() {
            Ok(Some(permit))
        } else {
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
    use crate::routing::{limits::Rate, policy::Policy, snapshot::Timeouts};

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

    fn nobody() -> IpAddr {
        IpAddr::from([192, 0, 2, 1])
    }

    #[test]
    fn a_service_without_limits_has_no_gate() {
        assert!(Gates::default().of(&service(Limits::default())).is_none());
    }

    #[test]
    fn every_worker_finds_the_same_gate_until_the_limits_change() {
        let gates = Gates::default();
        let limited = |n: u32| Limits { max_in_flight: n.try_into().ok(), ..Limits::default() };
        let (one, two) = (gates.of(&service(limited(1))).unwrap(), gates.of(&service(limited(1))).unwrap());
        assert!(Arc::ptr_eq(&one, &two));
        assert!(!Arc::ptr_eq(&one, &gates.of(&service(limited(2))).unwrap()));
    }

    #[test]
    fn a_place_is_free_again_when_its_permit_is_gone() {
        let limits = Limits { max_in_flight: 1.try_into().ok(), ..Limits::default() };
        let gate = Gates::default().of(&service(limits)).unwrap();
        let now = clock::monotonic();
        let permit = gate.admit(nobody, now).unwrap();
        for _ in 0..3 {
            assert_eq!(gate.admit(nobody, now).err(), Some(ProxyError::Overloaded));
        }
        drop(permit);
        assert!(gate.admit(nobody, now).is_ok());
    }

    #[test]
    fn who_has_to_wait_is_told_how_long() {
        let rate = Some(Rate { per_second: 1.try_into().unwrap(), burst: 1.try_into().unwrap() });
        let gate = Gates::default().of(&service(Limits { rate, ..Limits::default() })).unwrap();
        let now = clock::monotonic();
        assert!(gate.admit(nobody, now).is_ok());
        assert_eq!(gate.admit(nobody, now).err(), Some(ProxyError::RateLimited { retry_after: 1 }));
    }
}
