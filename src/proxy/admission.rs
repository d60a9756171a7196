//! Whether a service, and a route to it, take one more request: limits at a time and over time.
//!
//! They hold for the process. Workers share nothing else, but a limit of which each worker had a part
//! would be reached by a client whose connections happen to be on one of them. So a service or route
//! that has a limit costs each of its requests one or two atomic operations, and one that has none costs
//! it a look at a pointer.
//!
//! All that there are have to admit a request. The route is asked first: what is refused there does not
//! touch what the routes of a service share. What is refused by one is given back to those before it.

use std::{
    collections::HashMap,
    net::IpAddr,
    rc::Rc,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Instant,
};

use super::{
    error::ProxyError,
    rate::{Clients, Holder, Rates},
};
use crate::{
    clock,
    model::name::ServiceName,
    routing::{
        filter::{End, Route},
        limits::{Limits, RouteRates},
        snapshot::{Service, Topology},
    },
    telemetry::in_flight::{self, InFlight},
};

/// The gates of all services and routes, where every worker finds the same ones.
#[derive(Debug)]
pub(super) struct Gates {
    /// Times are counted from here.
    start: Instant,
    open: Mutex<Open>,
}

/// Those that somebody uses. Others go when a worker takes up a topology.
#[derive(Debug, Default)]
struct Open {
    services: HashMap<ServiceName, Arc<Gate>>,
    routes: HashMap<(ServiceName, Arc<str>), Arc<RouteGate>>,
    /// The clients of a service's routes, of all in one table: there may be many routes.
    clients: HashMap<ServiceName, Weak<Clients>>,
}

/// What a limited service has let in.
#[derive(Debug)]
pub(super) struct Gate {
    limits: Limits,
    /// How many there may be at a time, and how many there are.
    most: Option<Arc<InFlight>>,
    in_flight: AtomicU32,
    rates: Rates,
}

/// What a limited route has let in.
#[derive(Debug)]
pub(super) struct RouteGate {
    limits: RouteRates,
    rates: Rates,
}

/// A place among the requests that a service has at a time, until it is dropped.
#[derive(Debug)]
pub(super) struct Permit(Arc<Gate>);

impl Default for Gates {
    fn default() -> Self {
        Self { start: clock::monotonic(), open: Mutex::default() }
    }
}

impl Gates {
    /// The gate of a service, if its requests are limited. The same one as before if its limits are.
    ///
    /// Locked when a worker takes up a topology, never for a request.
    pub(super) fn of(&self, service: &Service, limits: &in_flight::Limits) -> Option<Arc<Gate>> {
        let Limits { in_flight, rate, client_rate, max_body_size: _, min_body_rate: _, body_timeout: _ } =
            service.limits;
        let gates = &mut self.open().services;
        if in_flight.is_none() && rate.is_none() && client_rate.is_none() {
            gates.remove(&service.name);
            return None;
        }
        let known = gates.get(&service.name).filter(|gate| gate.limits == service.limits);
        let new = || {
            let most = in_flight.map(|in_flight| limits.open(&service.name, in_flight.bounds()));
            Arc::new(Gate::new(service.limits, most, self.start))
        };
        let gate = known.cloned().unwrap_or_else(new);
        // Those of services that are not there any more go with their last request.
        gates.retain(|_, gate| Arc::strong_count(gate) > 1);
        gates.insert(service.name.clone(), Arc::clone(&gate));
        Some(gate)
    }

    /// The gates of those of a topology's routes whose requests are limited, in the order of their ids;
    /// nothing at all if none is. The same ones as before where service, name and limits are.
    ///
    /// Locked like [`Self::of`].
    pub(super) fn of_routes(&self, topology: &Topology) -> Rc<[Option<Arc<RouteGate>>]> {
        let mut open = self.open();
        let mut one = |route: &Route| match route.end {
            End::Service(id) if route.limits.rates != RouteRates::default() => {
                Some(open.route(&topology.service(id).name, route, self.start))
            }
            _ => None,
        };
        let gates: Rc<[_]> = topology.routes().iter().map(&mut one).collect();
        open.routes.retain(|_, gate| Arc::strong_count(gate) > 1);
        open.clients.retain(|_, clients| clients.strong_count() > 0);
        if gates.iter().all(Option::is_none) { Rc::default() } else { gates }
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn route(&mut self, service: &ServiceName, route: &Route, start: Instant) -> Arc<RouteGate> {
        let limits = route.limits.rates;
        let key = (service.clone(), Arc::clone(&route.name));
        if let Some(known) = self.routes.get(&key).filter(|gate| gate.limits == limits) {
            return Arc::clone(known);
        }
        let each = limits.client_rate.map(|rate| {
            let clients = self.clients.get(service).and_then(Weak::upgrade).unwrap_or_else(|| {
                let clients = Arc::new(Clients::new());
                self.clients.insert(service.clone(), Arc::downgrade(&clients));
                clients
            });
            (rate, clients.holder((&route.name, rate)), clients)
        });
        let gate = Arc::new(RouteGate { limits, rates: Rates::new(start, limits.rate, each) });
        self.routes.insert(key, Arc::clone(&gate));
        gate
    }
}

/// Lets a request in, or says why not; `client` is asked only if it matters.
///
/// # Errors
/// When there are too many, of this client or in all, over time or at a time.
pub(super) fn admit(
    route: Option<&RouteGate>,
    service: Option<&Arc<Gate>>,
    client: impl Fn() -> IpAddr,
    now: Instant,
) -> Result<Option<Permit>, ProxyError> {
    let taken = route.map(|route| route.rates.admit(&client, now)).transpose().map_err(wait)?;
    let admitted = service.map_or(Ok(None), |service| service.admit(&client, now));
    if let (Err(_), Some(taken)) = (&admitted, taken) {
        taken.give_back();
    }
    admitted
}

impl Gate {
    fn new(limits: Limits, most: Option<Arc<InFlight>>, start: Instant) -> Self {
        let each = limits.client_rate.map(|rate| (rate, Holder::default(), Arc::new(Clients::new())));
        let rates = Rates::new(start, limits.rate, each);
        Self { limits, most, in_flight: AtomicU32::new(0), rates }
    }

    fn admit(
        self: &Arc<Self>,
        client: impl Fn() -> IpAddr,
        now: Instant,
    ) -> Result<Option<Permit>, ProxyError> {
        let taken = self.rates.admit(client, now).map_err(wait)?;
        let Some(most) = &self.most else { return Ok(None) };
        let permit = Permit(Arc::clone(self));
        // Undone by the permit's end if it was one too many.
        if self.in_flight.fetch_add(1, Relaxed) < most.limit() {
            return Ok(Some(permit));
        }
        most.reject();
        taken.give_back();
        Err(ProxyError::Overloaded)
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
        filter::{HeaderModifier, RouteTimeouts},
        limits::{Adaptive, InFlight as Kind, Rate, RouteLimits},
        path::PathRules,
        policy::Policy,
        snapshot::{ServiceId, Timeouts},
    };

    fn service(limits: Limits) -> Service {
        Service {
            name: "web".parse().unwrap(),
            routes: Arc::new([]),
            counts_users: false,
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

    fn rate(per_second: u32, burst: u32) -> Option<Rate> {
        Some(Rate { per_second: per_second.try_into().unwrap(), burst: burst.try_into().unwrap() })
    }

    fn topology(routes: &[(&str, RouteRates)]) -> Topology {
        let route = |(name, rates): &(&str, RouteRates)| Route {
            name: (*name).into(),
            end: End::Service(ServiceId(0)),
            request: HeaderModifier::default(),
            response: HeaderModifier::default(),
            hostname: None,
            path: None,
            timeouts: RouteTimeouts::default(),
            limits: RouteLimits { max_body_size: Some(1), rates: *rates },
            failures: None,
            counted: None,
            label: None,
        };
        let routes = (Vec::new(), routes.iter().map(route).collect());
        Topology::new(PathRules::default(), routes, vec![service(Limits::default())], Vec::new())
    }

    #[test]
    fn routes_without_rates_have_no_gates() {
        let gates = Gates::default().of_routes(&topology(&[("/a", RouteRates::default())]));
        assert!(gates.is_empty());
    }

    #[test]
    fn a_route_keeps_its_gate_while_its_rates_stay_and_routes_of_a_service_share_a_table() {
        let gates = Gates::default();
        let of = |per_second| RouteRates { rate: rate(1, 1), client_rate: rate(per_second, 1) };
        let before = gates.of_routes(&topology(&[("/a", of(1)), ("/b", of(1))]));
        let after = gates.of_routes(&topology(&[("/", RouteRates::default()), ("/a", of(1)), ("/b", of(2))]));
        let gate =
            |gates: &[Option<Arc<RouteGate>>], place: usize| Arc::clone(gates[place].as_ref().unwrap());
        assert!(after[0].is_none());
        assert!(Arc::ptr_eq(&gate(&before, 0), &gate(&after, 1)));
        assert!(!Arc::ptr_eq(&gate(&before, 1), &gate(&after, 2)));
        assert_eq!(gates.open().clients.values().map(Weak::strong_count).collect::<Vec<_>>(), [3]);
        drop((before, after));
        assert!(gates.of_routes(&topology(&[])).is_empty());
        let open = gates.open();
        assert!(open.routes.is_empty() && open.clients.is_empty(), "{open:?}");
    }

    #[test]
    fn a_route_and_its_service_both_admit_and_neither_pays_for_the_other() {
        let gates = Gates::default();
        let rates = RouteRates { rate: rate(1, 3), client_rate: rate(1, 3) };
        let routes = gates.of_routes(&topology(&[("/a", rates)]));
        let route = routes[0].as_deref();
        let service = gate(&gates, Limits { rate: rate(1, 5), ..at_a_time(1) }).unwrap();
        let now = clock::monotonic();
        let enter = |route| admit(route, Some(&service), nobody, now);
        let permit = enter(route).unwrap();
        for _ in 0..9 {
            assert_eq!(enter(route).err(), Some(ProxyError::Overloaded));
        }
        drop(permit);
        assert!(enter(route).is_ok() && enter(route).is_ok(), "what was refused has taken nothing");
        for _ in 0..9 {
            assert_eq!(enter(route).err(), Some(ProxyError::RateLimited { retry_after: 1 }));
        }
        assert!(enter(None).is_ok() && enter(None).is_ok(), "nor from the service");
        assert!(enter(None).is_err());
    }
}
