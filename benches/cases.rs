//! What is measured, in wall time and in instructions alike: the pure parts that every request or
//! every tick goes through.
//!
//! A case is set up once and then repeats its operation over inputs that are made beforehand, so
//! that neither their making nor a branch predictor that knows them by heart is measured.

use std::{hint::black_box, num::NonZeroUsize, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use tidegate::{
    analysis::{
        Analysis, ArmTick, Tick,
        error_rate::Sample,
        settings::Settings,
        users::{Firsts, Seen, Users},
        verdict::Arms,
    },
    model::{
        histogram::{self, Histogram},
        outcome::Outcome,
        role::Role,
        weight::Weight,
    },
    rollout::plan::{Draft, Plan},
    routing::{
        condition::{Conditions, Head, HeaderTest, PairTest, Test},
        force::{By, Force, Networks, Overrides},
        path::PathRules,
        pattern::Pattern,
        snapshot::{BackendId, ServiceId},
        split::Split,
        table::{PathMatch, Rule, Table, Target},
    },
    simulate::{self, Setup, scenario::Scenario},
    telemetry::{
        ledger::{Entry, Hub, Key, Part},
        reader::{self, Rules, Totals},
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
    each("route/10/host", || route(10, &[HOSTS, PREFIXES], by_host)),
    each("route/10/prefix", || route(10, &[HOSTS, PREFIXES], by_prefix)),
    each("route/10/miss", || route(10, &[HOSTS, PREFIXES], by_nothing)),
    each("route/10000/host", || route(10_000, &[HOSTS, PREFIXES], by_host)),
    each("route/10000/prefix", || route(10_000, &[HOSTS, PREFIXES], by_prefix)),
    each("route/10000/miss", || route(10_000, &[HOSTS, PREFIXES], by_nothing)),
    each("route/10/exact", || route(10, &[HOSTS, PREFIXES, WILDCARDS, EXACT], by_exact)),
    each("route/10000/exact", || route(10_000, &[HOSTS, PREFIXES, WILDCARDS, EXACT], by_exact)),
    each("route/10/wildcard", || route(10, &[HOSTS, PREFIXES, WILDCARDS, EXACT], by_wildcard)),
    each("route/10000/wildcard", || route(10_000, &[HOSTS, PREFIXES, WILDCARDS, EXACT], by_wildcard)),
    each("route/conditions", route_by_conditions),
    each("route/regex", route_by_regex),
    each("path/plain", || path(|i| format!("/api/v2/tenants/{i}/orders/17/lines"))),
    each("path/odd", || path(|i| format!("/api/./v2/%74enants/{i}//orders/17/lines"))),
    each("assign/force", assign_by_force),
    each("assign/chance", assign_by_chance),
    each("assign/key", assign_by_key),
    each("telemetry/record", record),
    each("telemetry/record/user", record_user),
    each("histogram/index", index),
    each("histogram/quantile", quantile),
    Case { name: "tick/observe", repetitions: 100, set_up: observe },
    Case { name: "tick/observe/routes", repetitions: 100, set_up: observe_routes },
    Case { name: "tick/observe/users", repetitions: 100, set_up: observe_users },
    Case { name: "tick/read/100x2", repetitions: 10, set_up: read },
    Case { name: "tick/read/users", repetitions: 10, set_up: read_users },
    Case { name: "tick/whole/100x2", repetitions: 10, set_up: || whole_tick(latency) },
    Case { name: "tick/whole/100x2/wide", repetitions: 10, set_up: || whole_tick(wide_latency) },
    Case { name: "simulate/500", repetitions: 10, set_up: || simulate("same-0.1") },
    Case { name: "simulate/500/latency", repetitions: 10, set_up: || simulate("same-latency") },
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

/// What a request says beside host and path.
struct Sent {
    method: Method,
    headers: HeaderMap,
}

impl Sent {
    /// As a browser sends it: a dozen fields.
    fn new() -> Self {
        let names = ["accept", "accept-language", "accept-encoding", "user-agent", "referer", "origin"];
        let mut headers: HeaderMap = names
            .map(|name| (HeaderName::from_static(name), HeaderValue::from_static("some value")))
            .into_iter()
            .collect();
        headers.insert(header::COOKIE, HeaderValue::from_static("a=b; session=0123456789; side=canary"));
        headers.insert("x-version", HeaderValue::from_static("17"));
        Self { method: Method::GET, headers }
    }

    fn head<'a>(&'a self, authority: &'a str, path: &'a str) -> Head<'a> {
        Head { authority, path, query: Some("page=3&lang=en"), method: &self.method, headers: &self.headers }
    }
}

fn rule(host: Option<String>, path: PathMatch, conditions: Conditions, service: u32) -> Rule {
    Rule { host, path, conditions, target: Target::Service(ServiceId(service)) }
}

/// What routes of each kind match on.
type Kind = fn(u64) -> (Option<String>, PathMatch);

const HOSTS: Kind = |i| (Some(host(i)), PathMatch::Prefix("/".to_owned()));
const PREFIXES: Kind = |i| (None, PathMatch::Prefix(prefix(i)));
const WILDCARDS: Kind = |i| (Some(format!("*.{}", host(i))), PathMatch::Prefix("/".to_owned()));
const EXACT: Kind = |i| (None, PathMatch::Exact(format!("{}/about", prefix(i))));

/// `routes` of these kinds in equal parts; a request asks for one of them.
fn route(routes: u64, kinds: &[Kind], request: fn(u64) -> (String, String)) -> Run {
    let of_each = routes.div_ceil(kinds.len() as u64);
    let matches = kinds.iter().flat_map(|kind| (0..of_each).map(kind));
    let rules = matches.zip(0..);
    let rules = rules.map(|((host, path), service)| rule(host, path, Conditions::default(), service));
    let table = black_box(Table::new(rules));
    let requests = inputs(|n| request(mixed(n) % of_each));
    let sent = black_box(Sent::new());
    repeat(move |i| {
        let (authority, path) = &requests[i];
        table.find(&sent.head(authority, path))
    })
}

fn by_exact(i: u64) -> (String, String) {
    ("www.shop.example".to_owned(), format!("{}/about", prefix(i)))
}

fn by_wildcard(i: u64) -> (String, String) {
    (format!("www.{}:8443", host(i)), "/cart/items/17".to_owned())
}

/// Four routes of one path, of which the last one holds: a method, two headers, a query parameter.
fn route_by_conditions() -> Run {
    let header = |name, test| HeaderTest { name: HeaderName::from_static(name), test };
    let version = |value: &str| header("x-version", Test::Exact(value.into()));
    let conditions = |methods: &[Method], headers: Vec<HeaderTest>, query: Vec<PairTest>| Conditions {
        methods: methods.into(),
        headers: headers.into(),
        query: query.into(),
    };
    let english = PairTest { name: "lang".into(), test: Test::Exact("en".into()) };
    let root = || PathMatch::Prefix("/".to_owned());
    let table = Table::new([
        rule(None, root(), conditions(&[Method::POST], vec![], vec![]), 0),
        rule(None, root(), conditions(&[], vec![version("18"), header("accept", Test::Present)], vec![]), 1),
        rule(None, root(), conditions(&[], vec![version("18")], vec![]), 2),
        rule(None, root(), conditions(&[], vec![], vec![english]), 3),
    ]);
    let (table, sent) = (black_box(table), black_box(Sent::new()));
    repeat(move |_| table.find(&sent.head("www.shop.example", "/cart/items/17")))
}

/// One expression over a path of 38 characters.
fn route_by_regex() -> Run {
    let pattern = Pattern::new("/api/v[0-9]+/tenants/[0-9]+/orders(/.*)?").expect("this is an expression");
    let table = black_box(Table::new([rule(None, PathMatch::Regex(pattern), Conditions::default(), 0)]));
    let paths = inputs(|n| format!("/api/v2/tenants/{:05}/orders/17/lines/1", mixed(n) % 100_000));
    let sent = black_box(Sent::new());
    repeat(move |i| table.find(&sent.head("www.shop.example", &paths[i])))
}

fn path(make: fn(u64) -> String) -> Run {
    let (rules, paths) = (black_box(PathRules::default()), inputs(|n| make(mixed(n) % 100_000)));
    repeat(move |i| rules.apply(&paths[i]).is_ok())
}

/// Three rules, of which the last one holds.
fn assign_by_force() -> Run {
    let test = |value: &str| Test::Exact(value.into());
    let side = |value: &str| PairTest { name: "side".into(), test: test(value) };
    let force = |by| Force { role: Role::Canary, by, from: Networks::default() };
    let header = HeaderTest { name: HeaderName::from_static("x-version"), test: test("18") };
    let rules =
        vec![force(By::Header(header)), force(By::Cookie(side("stable"))), force(By::Cookie(side("canary")))];
    let (overrides, sent) = (black_box(Overrides::new(None, rules)), black_box(Sent::new()));
    let client = std::net::IpAddr::from([192, 0, 2, 1]);
    repeat(move |_| overrides.decide(&sent.head("www.shop.example", "/"), client))
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
    black_box(Split {
        stable: BackendId(0),
        canary: Some(BackendId(1)),
        weight,
        salt: 7,
        copies: Weight::ZERO,
        halves: None,
    })
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
    let writer = hub.open_ledger(0, entries(1)).writer(0, Role::Stable, Part::Rest);
    let latencies = inputs(latency);
    repeat(move |i| {
        writer.begin();
        writer.end(Outcome::Success, false, Some(latencies[i]));
    })
}

/// The same of a pinned client, where users are counted.
fn record_user() -> Run {
    let (hub, entries) = (Hub::new(1), counting_users(1));
    let writer = hub.open_ledger(0, entries).writer(0, Role::Stable, Part::Rest);
    let (latencies, slots) = (inputs(latency), inputs(slot));
    repeat(move |i| {
        writer.begin();
        writer.end_pinned(Some(slots[i]), Outcome::Success, false, Some(latencies[i]));
    })
}

/// Of clients who make as many requests each.
fn slot(n: u64) -> u16 {
    Weight::slot(mixed(!n))
}

/// From 1 to 64 ms, evenly spread in the logarithm.
fn latency(n: u64) -> Duration {
    let doublings = mixed(n) as f64 / u64::MAX as f64 * 6.0;
    Duration::from_secs_f64(0.001 * doublings.exp2())
}

/// From 1 µs to 71 minutes, likewise: as wide as the buckets are.
fn wide_latency(n: u64) -> Duration {
    let doublings = mixed(n) as f64 / u64::MAX as f64 * 32.0;
    Duration::from_secs_f64(1e-6 * doublings.exp2())
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
            stable: tick((900, 9), &stable),
            canary: tick((100, 1), &canary),
            routes: &[],
            users: None,
        }));
        analysis.verdict()
    })
}

/// The same with ten routes, each of which has had a tenth, and one failure of each arm.
fn observe_routes() -> Run {
    let (stable, canary) = (latencies(900), latencies(100));
    let settings = Settings::default();
    let names = (0..10).map(|n| format!("/{n}").into());
    let mut analysis = analysis().with_routes(&settings, names);
    let sample = |requests| Sample { requests, failures: 1 };
    let routes = [Arms { stable: sample(90), canary: sample(10) }; 10];
    repeat(move |_| {
        analysis.observe(black_box(&Tick {
            stable: tick((900, 10), &stable),
            canary: tick((100, 10), &canary),
            routes: &routes,
            users: None,
        }));
        analysis.verdict()
    })
}

/// The same where users are compared, and workers are told what is slow.
fn observe_users() -> Run {
    let (stable, canary) = (latencies(900), latencies(100));
    let mut analysis = analysis();
    let free = Arms { stable: 8_000, canary: 900 };
    let firsts = |stable, canary| Firsts { free, first: Arms { stable, canary }, ..Firsts::default() };
    let seen = |slots, of| Seen { slots, of };
    let users = Users {
        failed: firsts(9, 1),
        slow: [firsts(450, 50), firsts(9, 1)],
        seen: Arms { stable: seen(4_500, 9_000), canary: seen(500, 1_000) },
        ..Users::default()
    };
    repeat(move |_| {
        analysis.observe(black_box(&Tick {
            stable: tick((900, 9), &stable),
            canary: tick((100, 1), &canary),
            routes: &[],
            users: Some(&users),
        }));
        (analysis.slow_above(), analysis.verdict())
    })
}

const SERVICES: usize = 100;
const WORKERS: usize = 2;

fn entries(services: usize) -> Arc<[Entry]> {
    let key = |service: usize, backend: &str| Key {
        service: format!("service-{service}").parse().expect("this is a name"),
        backend: backend.parse().expect("this is a name"),
    };
    (0..services).flat_map(|service| ["v1", "v2"].map(|backend| key(service, backend).into())).collect()
}

/// The same where users are counted, and about half of all requests are slow by one edge, one in a hundred by the
/// other.
fn counting_users(services: usize) -> Arc<[Entry]> {
    let rules = Arc::new(Rules::default());
    let edges = [8, 62].map(|millis| Some(histogram::index(Duration::from_millis(millis))));
    Role::ALL.into_iter().for_each(|role| rules.set_edges(role, edges));
    let counting = |entry: &Entry| Entry { users: Some(Arc::clone(&rules)), ..entry.clone() };
    entries(services).iter().map(counting).collect()
}

/// Has every backend of every service serve `requests` on each worker; every hundredth one fails.
fn serve(hub: &Hub, entries: &Arc<[Entry]>, requests: u64, latency: fn(u64) -> Duration) {
    for worker in 0..WORKERS {
        let ledger = hub.open_ledger(worker, Arc::clone(entries));
        for service in 0..SERVICES {
            for role in Role::ALL {
                let writer = ledger.writer(2 * service + role.index(), role, Part::Rest);
                for n in 0..requests {
                    let outcome = if n % 100 == 99 { Outcome::ServerError } else { Outcome::Success };
                    writer.begin();
                    writer.end_pinned(Some(slot(n)), outcome, outcome.is_failure(), Some(latency(n)));
                }
            }
        }
    }
}

fn read() -> Run {
    let hub = Hub::new(WORKERS);
    serve(&hub, &entries(SERVICES), 1_000, latency);
    repeat(move |_| reader::read(black_box(&hub)))
}

/// What is read besides where users are counted, of a thousand users on each worker.
fn read_users() -> Run {
    let hub = Hub::new(WORKERS);
    serve(&hub, &counting_users(SERVICES), 1_000, latency);
    repeat(move |_| reader::read_users(black_box(&hub)))
}

/// What the controller does in a tick with every service in a rollout: read the counts, take the
/// last reading off and observe the rest. The counts stand still meanwhile, so the same 200
/// requests of each backend come in with every tick.
fn whole_tick(latency: fn(u64) -> Duration) -> Run {
    let (hub, entries) = (Hub::new(WORKERS), entries(SERVICES));
    // So many that no bucket is left empty that can be used.
    serve(&hub, &entries, 20_000, latency);
    let before = reader::read(&hub);
    serve(&hub, &entries, 100, latency);
    let mut analyses = vec![analysis(); SERVICES];
    repeat(move |_| {
        let now = reader::read(black_box(&hub));
        let mut gained = now.values().zip(before.values()).map(|(now, before)| now.since(before));
        for analysis in &mut analyses {
            let mut next = || gained.next().expect("there are two for each service");
            let (stable, canary) = (next(), next());
            analysis.observe(&Tick { stable: arm(&stable), canary: arm(&canary), routes: &[], users: None });
            black_box(analysis.verdict());
        }
    })
}

fn arm(gained: &Totals) -> ArmTick<'_> {
    tick((gained.requests(), gained.failures), &gained.latency)
}

fn tick((requests, failures): (u64, u64), latency: &Histogram) -> ArmTick<'_> {
    ArmTick::new(requests, failures, latency)
}

// ── a simulated rollout ─────────────────────────────────────────────────────────────────────

/// [`ROLLOUTS`] of the default plan at 500 requests a second, from two minutes before the first step to the
/// end of baking, each time with other seeds.
fn simulate(scenario: &'static str) -> Run {
    let mut scenarios = Scenario::all();
    scenarios.retain(|any| any.name == scenario);
    assert_eq!(scenarios.len(), 1, "there is a scenario {scenario}");
    let mut setup = Setup {
        plan: Plan::new(Draft::default()).expect("the default is a plan"),
        settings: Settings::default(),
        routes: Arc::new([]),
        tick: Duration::from_secs(1),
        scenarios,
        rates: vec![500.0],
        rivals: Vec::new(),
        runs: ROLLOUTS,
        seed: 0,
        horizon: Duration::from_secs(3_600),
        threads: NonZeroUsize::MIN,
    };
    repeat(move |_| {
        setup.seed += 1;
        simulate::simulate(&setup, |_| ())
    })
}

/// So many that what is made once for all of them does not count.
const ROLLOUTS: u32 = 10;
