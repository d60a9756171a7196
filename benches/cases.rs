//! What is measured, in wall time and in instructions alike: the pure parts that every request or
//! every tick goes through.
//!
//! A case is set up once and then repeats its operation over inputs that are made beforehand, so
//! that neither their making nor a branch predictor that knows them by heart is measured.

use std::{hint::black_box, sync::Arc, time::Duration};

use tidegate::{
    analysis::{Analysis, ArmTick, Tick, settings::Settings},
    model::{
        histogram::{self, Histogram},
        outcome::Outcome,
        role::Role,
        weight::Weight,
    },
    routing::{
        snapshot::{BackendId, ServiceId},
        split::Split,
        table::{Rule, Table},
    },
    telemetry::{
        ledger::{Hub, Key},
        reader::{self, Totals},
    },
};

/// Repeats an operation so many times.
pub(crate) type Run = Box<dyn FnMut(u64)>;

/// One measurement.
pub(crate) struct Case {
    /// What it is called; `cargo bench` takes a part of it as a filter.
    pub(crate) name: &'static str,
    /// Repetitions over which instructions are averaged: few where valgrind would take seconds.
    #[allow(dead_code, reason = "criterion chooses for itself")]
    pub(crate) repetitions: u64,
    /// Makes the inputs.
    pub(crate) set_up: fn() -> Run,
}

/// Every case, in the order of a request's way and then of a tick's.
pub(crate) const ALL: &[Case] = &[
    each("route/10/host", || route(10, by_host)),
    each("route/10/prefix", || route(10, by_prefix)),
    each("route/10/miss", || route(10, by_nothing)),
    each("route/10000/host", || route(10_000, by_host)),
    each("route/10000/prefix", || route(10_000, by_prefix)),
    each("route/10000/miss", || route(10_000, by_nothing)),
    each("assign/chance", assign_by_chance),
    each("assign/key", assign_by_key),
    each("telemetry/record", record),
    each("histogram/index", index),
    each("histogram/quantile", quantile),
    Case { name: "tick/observe", repetitions: 100, set_up: observe },
    Case { name: "tick/read/100x2", repetitions: 10, set_up: read },
    Case { name: "tick/whole/100x2", repetitions: 10, set_up: whole_tick },
];

/// A case that takes nanoseconds.
const fn each(name: &'static str, set_up: fn() -> Run) -> Case {
    Case { name, repetitions: INPUTS as u64, set_up }
}

/// Inputs that a case goes through in turn. A power of two, so that taking one costs a mask.
const INPUTS: usize = 1 << 10;

fn repeat<T>(mut operation: impl FnMut(usize) -> T + 'static) -> Run {
    Box::new(move |times| {
        for i in 0..times {
            black_box(operation(i as usize % INPUTS));
        }
    })
}

fn inputs<T>(make: impl FnMut(u64) -> T) -> Box<[T]> {
    black_box((0..INPUTS as u64).map(make).collect())
}

/// Well mixed bits of `n`, the same in every run (SplitMix64, Steele, Lea & Flood 2014).
fn mixed(n: u64) -> u64 {
    let n = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

// ── a request ───────────────────────────────────────────────────────────────────────────────

/// Half of `routes` by host, half by a path of four segments; a request asks for one of them.
fn route(routes: u64, request: fn(u64) -> (String, String)) -> Run {
    let half = routes / 2;
    let hosts = (0..half).map(|i| (Some(host(i)), "/".to_owned()));
    let prefixes = (0..half).map(|i| (None, prefix(i)));
    let rules = hosts.chain(prefixes).zip(0..).map(|((host, path_prefix), service)| Rule {
        host,
        path_prefix,
        service: ServiceId(service),
    });
    let table = black_box(Table::new(rules));
    let requests = inputs(|n| request(mixed(n) % half));
    repeat(move |i| {
        let (authority, path) = &requests[i];
        table.find(authority, path)
    })
}

fn host(i: u64) -> String {
    format!("tenant-{i}.shop.example")
}

fn prefix(i: u64) -> String {
    format!("/api/v2/tenants/{i}")
}

fn by_host(i: u64) -> (String, String) {
    (format!("{}:8443", host(i)), "/cart/items/17".to_owned())
}

fn by_prefix(i: u64) -> (String, String) {
    ("www.shop.example".to_owned(), format!("{}/orders/17/lines", prefix(i)))
}

fn by_nothing(i: u64) -> (String, String) {
    ("www.shop.example".to_owned(), format!("/api/v3/tenants/{i}/orders/17/lines"))
}

fn split() -> Split {
    let weight = Weight::from_hundredths(1_000).expect("10 % is a weight");
    black_box(Split { stable: BackendId(0), canary: Some(BackendId(1)), weight, salt: 7 })
}

fn assign_by_chance() -> Run {
    let (split, numbers) = (split(), inputs(mixed));
    repeat(move |i| split.by_chance(numbers[i]))
}

fn assign_by_key() -> Run {
    // What a sticky cookie holds: 16 hexadecimal digits.
    let (split, keys) = (split(), inputs(|n| format!("{:016x}", mixed(n))));
    repeat(move |i| split.by_key(keys[i].as_bytes()))
}

fn record() -> Run {
    let hub = Hub::new(1);
    let writer = hub.open_ledger(0, keys(1)).writer(0, Role::Stable);
    let latencies = inputs(latency);
    repeat(move |i| {
        writer.begin();
        writer.end(Outcome::Success, Some(latencies[i]));
    })
}

/// From 1 to 64 ms, evenly spread in the logarithm.
fn latency(n: u64) -> Duration {
    let doublings = mixed(n) as f64 / u64::MAX as f64 * 6.0;
    Duration::from_secs_f64(0.001 * doublings.exp2())
}

// ── a tick ──────────────────────────────────────────────────────────────────────────────────

fn index() -> Run {
    let latencies = inputs(latency);
    repeat(move |i| histogram::index(latencies[i]))
}

fn latencies(requests: u64) -> Histogram {
    let mut histogram = Histogram::default();
    for n in 0..requests {
        histogram.record(latency(n));
    }
    histogram
}

fn quantile() -> Run {
    let histogram = black_box(latencies(10_000));
    repeat(move |_| black_box(&histogram).quantile(0.99))
}

/// Every check that there is.
fn analysis() -> Analysis {
    let limits =
        Settings { max_error_rate: Some(0.05), max_p99: Some(Duration::from_secs(1)), ..Settings::default() };
    Analysis::new(&limits, 300)
}

fn observe() -> Run {
    let (stable, canary) = (latencies(900), latencies(100));
    let mut analysis = analysis();
    repeat(move |_| {
        analysis.observe(black_box(&Tick {
            stable: ArmTick { requests: 900, failures: 9, latency: &stable },
            canary: ArmTick { requests: 100, failures: 1, latency: &canary },
        }))
    })
}

const SERVICES: usize = 100;
const WORKERS: usize = 2;

fn keys(services: usize) -> Arc<[Key]> {
    let key = |service: usize, backend: &str| Key {
        service: format!("service-{service}").parse().expect("this is a name"),
        backend: backend.parse().expect("this is a name"),
    };
    (0..services).flat_map(|service| ["v1", "v2"].map(|backend| key(service, backend))).collect()
}

/// Has every backend of every service serve `requests` on each worker; every hundredth one fails.
fn serve(hub: &Hub, requests: u64) {
    for worker in 0..WORKERS {
        let ledger = hub.open_ledger(worker, keys(SERVICES));
        for service in 0..SERVICES {
            for role in Role::ALL {
                let writer = ledger.writer(2 * service + role.index(), role);
                for n in 0..requests {
                    let outcome = if n % 100 == 99 { Outcome::ServerError } else { Outcome::Success };
                    writer.begin();
                    writer.end(outcome, Some(latency(n)));
                }
            }
        }
    }
}

fn read() -> Run {
    let hub = Hub::new(WORKERS);
    serve(&hub, 1_000);
    repeat(move |_| reader::read(black_box(&hub)))
}

/// What the controller does in a tick with every service in a rollout: read the counts, take the
/// last reading off and observe the rest. The counts stand still meanwhile, so the same 200
/// requests of each backend come in with every tick.
fn whole_tick() -> Run {
    let hub = Hub::new(WORKERS);
    serve(&hub, 1_000);
    let before = reader::read(&hub);
    serve(&hub, 100);
    let mut analyses = vec![analysis(); SERVICES];
    repeat(move |_| {
        let now = reader::read(black_box(&hub));
        let gained = now.iter().zip(&before).map(|((_, now), (_, before))| now.since(before));
        let gained: Vec<Totals> = gained.collect();
        for (analysis, arms) in analyses.iter_mut().zip(gained.chunks_exact(2)) {
            black_box(analysis.observe(&Tick { stable: arm(&arms[0]), canary: arm(&arms[1]) }));
        }
    })
}

fn arm(gained: &Totals) -> ArmTick<'_> {
    ArmTick { requests: gained.requests(), failures: gained.failures(), latency: &gained.latency }
}
