//! A proxy with rollouts under load is killed again and again, at instants drawn by chance, and has to go on
//! each time as if nothing had been. `ledger.rs` says what that means.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fmt::Write as _,
    io,
    net::SocketAddr,
    ops::Range,
    path::{Path, PathBuf},
    rc::Rc,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, bail, ensure};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::Value;
use tidegate::clock;
use tokio::{
    sync::Notify,
    task::LocalSet,
    time::{sleep, timeout, timeout_at},
};

use crate::{
    ledger::{Arrival, Command, Ledger},
    proxy::{Proxy, TICK, free_ports, head},
    wire::{Handler, Reply, Wire, api, field, serve},
};

/// The rollouts of the services: by evidence, by hand, all at once, by budget, with gates, with copies first, with
/// hooks, with a check. Those from [`FROZEN`] on are now and then frozen.
const ROLLOUTS: [&str; 9] = [
    "steps = [{ weight = 10, hold = '50ms' }, { weight = 40, hold = '100ms' }, { weight = 60, hold = '50ms' }]\nwhen_inconclusive = 'roll_back'",
    "steps = [{ weight = 5, hold = '1h' }, { weight = 20, hold = '1h' }, { weight = 50, hold = '1h' }, { weight = 80, hold = '1h' }]",
    "strategy = 'blue-green'\npromotion_gate = true",
    "schedule = { kind = 'evidence', from = 10, by = 2 }\nwhen_inconclusive = 'hold'",
    "steps = [{ weight = 20, hold = '50ms', gate = true }, { weight = 50, hold = '50ms', gate = true }]",
    "schedule = { kind = 'linear', from = 20, by = 20, to = 80, hold = '20ms' }",
    "steps = [{ mirror = 50, hold = '50ms' }, { mirror = 100, hold = '50ms' }, { weight = 20, hold = '50ms' }, { weight = 60, hold = '50ms' }]\nwhen_inconclusive = 'hold'",
    "steps = [{ weight = 20, hold = '50ms' }, { weight = 50, hold = '50ms' }]\nwhen_inconclusive = 'hold'\nhooks = [HOOKS]",
    "steps = [{ weight = 20, hold = '50ms' }, { weight = 50, hold = '50ms' }]\nwhen_inconclusive = 'hold'\nchecks = [CHECK]",
];

/// The first of the services that are now and then frozen.
const FROZEN: usize = 5;

/// What is watched: little, so that a second suffices. Only the fourth service has a budget.
const ANALYSIS: &str =
    "minimum_requests = 5\nlatency_margin = false\npromotion_margin = 0.9\npromotion_alpha = 0.5";

/// Clients, each with a connection that asks any of the services, and their pause between two requests.
const CLIENTS: usize = 16;
const PAUSE: Duration = Duration::from_millis(4);

/// Longest time for anything that is asked of a proxy that lives.
const PATIENCE: Duration = Duration::from_secs(20);

/// One service, and what its backends do.
struct Service {
    name: String,
    arrivals: Arc<Mutex<Vec<Arrival>>>,
    /// Whether `v1`, `v2` fail.
    failing: [Arc<AtomicBool>; 2],
    ledger: RefCell<Ledger>,
}

impl Service {
    fn new(number: usize) -> Self {
        let name = format!("s{number}");
        Self { name, arrivals: Arc::default(), failing: Default::default(), ledger: RefCell::default() }
    }

    /// What one of its backends does with a request.
    fn backend(&self, version: usize) -> (String, Handler) {
        let (arrivals, failing) = (Arc::clone(&self.arrivals), Arc::clone(&self.failing[version - 1]));
        let handler = move |head: &str| {
            // A copy is nobody's request, and its canary may have any number of them.
            if field(head, "x-tidegate-mirrored").is_some() {
                return !failing.load(Relaxed);
            }
            // Whoever says nothing of it is no client but a probe, and finds nothing wrong.
            let Some(sent) = field(head, "x-sent").and_then(|sent| sent.parse().ok()) else { return true };
            let arrival = Arrival { sent, arrived: clock::now().as_millis(), version };
            arrivals.lock().unwrap_or_else(PoisonError::into_inner).push(arrival);
            !failing.load(Relaxed)
        };
        (format!("v{version}"), Arc::new(handler))
    }
}

/// A request that was not answered as it should have been.
struct Failure {
    begun: Instant,
    ended: Instant,
    what: String,
}

/// Everything that the tasks share.
struct World {
    services: Vec<Service>,
    address: SocketAddr,
    admin: SocketAddr,
    /// How often the process was started.
    life: Cell<u64>,
    is_over: Cell<bool>,
    /// Told when a command is sent.
    sent: Notify,
    requests: Cell<u64>,
    /// Commands that were acknowledged and found.
    acknowledged: Cell<usize>,
    /// Entries that were shown.
    shown: Cell<usize>,
    /// Requests that failed with the process.
    excused: Cell<usize>,
    failures: RefCell<Vec<Failure>>,
    /// How often it was frozen.
    freezes: Cell<u64>,
    /// What an operator was answered that nobody should be.
    odd: RefCell<Option<String>>,
}

/// Kills it so many times.
pub(crate) fn run(kills: u64, seed: u64) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let folder = tempfile::tempdir()?;
    let outcome = LocalSet::new().block_on(&runtime, begin(kills, seed, folder.path()));
    if outcome.is_err() {
        println!("what was saved is in {}", folder.keep().display());
    }
    outcome
}

async fn begin(kills: u64, seed: u64, folder: &Path) -> anyhow::Result<()> {
    let mut random = StdRng::seed_from_u64(seed);
    let services: Vec<_> = (0..ROLLOUTS.len()).map(Service::new).collect();
    let versions = services.iter().flat_map(|service| [1, 2].map(|version| service.backend(version)));
    let others = [("hook".to_owned(), now_and_then(6)), ("check".to_owned(), now_and_then(4))];
    let backends = serve(versions.chain(others).collect())?;
    let [address, admin] = free_ports(&mut random)?;
    let config = folder.join("tidegate.toml");
    let written = configuration(address, admin, &backends, folder)?;
    std::fs::write(&config, &written)?;
    let world = Rc::new(World {
        services,
        address,
        admin,
        life: Cell::new(0),
        is_over: Cell::new(false),
        sent: Notify::new(),
        requests: Cell::new(0),
        acknowledged: Cell::new(0),
        shown: Cell::new(0),
        excused: Cell::new(0),
        freezes: Cell::new(0),
        failures: RefCell::default(),
        odd: RefCell::default(),
    });
    let mut tasks = Vec::new();
    for _ in 0..CLIENTS {
        let random = StdRng::seed_from_u64(random.random());
        tasks.push(tokio::task::spawn_local(visit(Rc::clone(&world), random)));
    }
    for number in 0..world.services.len() {
        let random = StdRng::seed_from_u64(random.random());
        tasks.push(tokio::task::spawn_local(operate(Rc::clone(&world), random, number)));
    }
    let calendar =
        freeze(Rc::clone(&world), StdRng::seed_from_u64(random.random()), (config.clone(), written));
    tasks.push(tokio::task::spawn_local(calendar));
    let began = clock::monotonic();
    let mut lives =
        Lives { config, down: clock::monotonic(), downs: Vec::new(), kills: Vec::new(), starts: Vec::new() };
    for kill in 0..kills {
        let proxy = lives.live(&world, &mut random).await?;
        lives.kill(proxy).await.with_context(|| format!("in life {}", world.life.get()))?;
        if kill % 100 == 99 {
            println!("{:5} kills after {} s", kill + 1, began.elapsed().as_secs());
        }
    }
    let proxy = lives.start(&world).await?;
    world.is_over.set(true);
    for task in tasks {
        timeout(PATIENCE, task).await.context("it does not answer any more")??;
    }
    world.life.set(world.life.get() + 1);
    lives.check(&world).await?;
    if let Some(failure) = world.failures.take().first() {
        bail!("in the last life a request failed: {}", failure.what);
    }
    proxy.kill().await?;
    report(&world, &lives, began.elapsed())
}

/// The process's lives and deaths.
struct Lives {
    config: PathBuf,
    /// Since when it has been dead, if it is.
    down: Instant,
    downs: Vec<Range<Instant>>,
    /// Wall clock, in milliseconds.
    kills: Vec<u64>,
    /// How long each start took.
    starts: Vec<Duration>,
}

impl Lives {
    /// Lets it live until it is to die.
    async fn live(&mut self, world: &World, random: &mut StdRng) -> anyhow::Result<Proxy> {
        // One in ten dies before it serves.
        if random.random_range(0..10) == 0 {
            world.life.set(world.life.get() + 1);
            let proxy = Proxy::spawn(&self.config, TICK)?;
            sleep(Duration::from_millis(random.random_range(0..60))).await;
            return Ok(proxy);
        }
        let proxy = self.start(world).await?;
        let end = tokio::time::Instant::now() + Duration::from_millis(random.random_range(0..700));
        // What is cut off by its death is checked in the next life.
        if let Ok(checked) = timeout_at(end, self.check(world)).await {
            checked?;
        }
        tokio::time::sleep_until(end).await;
        if random.random_range(0..3) == 0 {
            // One in three dies while it does what somebody has just asked for.
            let _slow = timeout(Duration::from_millis(100), world.sent.notified()).await;
        }
        // Timers tell milliseconds apart, and a save has many instants in each.
        let more = Duration::from_micros(random.random_range(0..3000));
        tokio::task::spawn_blocking(move || std::thread::sleep(more)).await?;
        self.down = clock::monotonic();
        Ok(proxy)
    }

    async fn start(&mut self, world: &World) -> anyhow::Result<Proxy> {
        world.life.set(world.life.get() + 1);
        let spawned = clock::monotonic();
        let mut proxy = Proxy::spawn(&self.config, TICK)?;
        proxy.ready().await?;
        self.starts.push(spawned.elapsed());
        self.downs.push(self.down..clock::monotonic());
        Ok(proxy)
    }

    async fn kill(&mut self, proxy: Proxy) -> anyhow::Result<()> {
        proxy.kill().await?;
        // Once it is gone: nothing that it did is later.
        self.kills.push(clock::now().as_millis());
        Ok(())
    }

    /// What must hold in a life, of all lives before it.
    async fn check(&self, world: &World) -> anyhow::Result<()> {
        let life = world.life.get();
        let last = self.downs.last().context("it has not begun")?;
        // Those of this life may yet turn out to be of its end.
        let failures = world.failures.take();
        let (now, before): (Vec<_>, _) = failures.into_iter().partition(|failure| failure.begun > last.end);
        world.failures.replace(now);
        let is_of_a_kill = |failure: &Failure| {
            let mut downs = self.downs.iter().rev().take(100);
            downs.any(|down| failure.begun <= down.end && failure.ended >= down.start)
        };
        if let Some(failure) = before.iter().find(|failure| !is_of_a_kill(failure)) {
            bail!("life {life}: a request failed: {}", failure.what);
        }
        world.excused.set(world.excused.get() + before.len());
        if let Some(odd) = world.odd.take() {
            bail!("life {life}: {odd}");
        }
        // A kill cuts this off: each is to be the first in turn, lest one is never looked at before its oldest entries
        // are gone.
        let services = &world.services;
        let first = life as usize % services.len();
        for service in services[first..].iter().chain(&services[..first]) {
            let newest = newest(world.admin, service).await?;
            let mut ledger = service.ledger.borrow_mut();
            let checked = ledger.take_up(newest, &self.kills).and_then(|()| ledger.look_for(life));
            let acknowledged =
                checked.map_err(|broken| anyhow!("life {life}: {}: {broken}", service.name))?;
            world.acknowledged.set(world.acknowledged.get() + acknowledged);
        }
        Ok(())
    }
}

/// The newest entries of a service's history, down to one that is known.
async fn newest(admin: SocketAddr, service: &Service) -> anyhow::Result<Vec<Value>> {
    let known = service.ledger.borrow().entries.len() as u64;
    let (mut entries, mut before) = (Vec::new(), String::new());
    loop {
        let path = format!("/{}/history?limit=50{before}", service.name);
        let (status, page) = api(admin, "GET", &path, "").await?;
        ensure!(status == 200, "GET {path}: {status} {page}");
        entries.extend(page["entries"].as_array().context("no entries")?.iter().cloned());
        let is_known = entries.last().is_some_and(|entry| entry["seq"].as_u64() <= Some(known));
        match page["next"].as_u64() {
            Some(next) if !is_known => before = format!("&before={next}"),
            _ => return Ok(entries),
        }
    }
}

/// A client: asks any of the services, again and again.
async fn visit(world: Rc<World>, mut random: StdRng) {
    while !world.is_over.get() {
        let mut begun = clock::monotonic();
        let mut connected = Wire::connect(world.address).await;
        let failed = loop {
            let wire = match &mut connected {
                Ok(wire) => wire,
                Err(error) => break error.to_string(),
            };
            begun = clock::monotonic();
            let service = &world.services[random.random_range(0..world.services.len())].name;
            let (user, sent): (u64, _) = (random.random(), clock::now().as_millis());
            let request =
                format!("GET /{service} HTTP/1.1\r\nHost: x\r\nx-user: {user}\r\nx-sent: {sent}\r\n\r\n");
            match timeout(PATIENCE, wire.ask(&request)).await {
                // A canary that fails says so itself.
                Ok(Ok(reply)) if field(&reply.head, "x-backend").is_some() => {
                    world.requests.set(world.requests.get() + 1);
                }
                Ok(Ok(reply)) => break reply.head,
                Ok(Err(error)) => break error.to_string(),
                Err(_) => break "no answer in time".to_owned(),
            }
            if world.is_over.get() {
                return;
            }
            sleep(PAUSE).await;
        };
        world.failures.borrow_mut().push(Failure { begun, ended: clock::monotonic(), what: failed });
        sleep(PAUSE).await;
    }
}

/// Whoever operates a service: looks at it, and now and then wants something of it.
async fn operate(world: Rc<World>, mut random: StdRng, number: usize) {
    let service = &world.services[number];
    while !world.is_over.get() {
        // It fails when the process dies, and there is nobody to be told.
        let _died = act(&world, service, &mut random).await;
        sleep(Duration::from_millis(random.random_range(5..40))).await;
    }
}

/// Whoever keeps the calendar: now and then writes that some services are frozen, and soon that they are not.
async fn freeze(world: Rc<World>, mut random: StdRng, (config, written): (PathBuf, String)) {
    let services: Vec<_> = world.services[FROZEN..].iter().map(|service| &service.name).collect();
    let frozen =
        format!("{written}[[freeze]]\nfrom = '2000-01-01'\nto = '2100-01-01'\nservices = {services:?}\n");
    let mut is_frozen = false;
    // Not frozen at the end.
    while !world.is_over.get() || is_frozen {
        is_frozen = !is_frozen && !world.is_over.get();
        let text = if is_frozen { &frozen } else { &written };
        // In one piece: a start may be reading it.
        let beside = config.with_extension("next");
        if let Err(error) = std::fs::write(&beside, text).and_then(|()| std::fs::rename(&beside, &config)) {
            world.odd.replace(Some(format!("the configuration cannot be written: {error}")));
        }
        // It fails when the process is dead, and then the next one reads it.
        let _dead = reload(world.admin).await;
        world.freezes.set(world.freezes.get() + u64::from(is_frozen));
        let pause = if is_frozen { 200..1000 } else { 1000..4000 };
        sleep(Duration::from_millis(random.random_range(pause))).await;
    }
}

async fn reload(admin: SocketAddr) -> io::Result<Reply> {
    let mut wire = Wire::connect(admin).await?;
    wire.ask(&format!("POST /api/v1/reload HTTP/1.1\r\nHost: {admin}\r\nContent-Length: 0\r\n\r\n")).await
}

/// Somebody else's server, which is in trouble every so many times.
fn now_and_then(times: u64) -> Handler {
    let asked = AtomicU64::new(0);
    Arc::new(move |_| asked.fetch_add(1, Relaxed) % times != times - 1)
}

async fn act(world: &World, service: &Service, random: &mut StdRng) -> io::Result<()> {
    let path = |verb: &str| format!("/{}{verb}", service.name);
    let (_, status) = api(world.admin, "GET", &path(""), "").await?;
    let (_, page) = api(world.admin, "GET", &path("/history?limit=20"), "").await?;
    for entry in page["entries"].as_array().into_iter().flatten() {
        let mut ledger = service.ledger.borrow_mut();
        let seq = entry["seq"].as_u64().unwrap_or_default();
        let is_new = seq > ledger.entries.len() as u64 && !ledger.seen.contains_key(&seq);
        world.shown.set(world.shown.get() + usize::from(is_new));
        ledger.seen.insert(seq, entry.clone());
    }
    let weight = format!("\"canary\": {}, ", random.random_range(0..60));
    let phase = status["rollout"]["phase"].as_str().unwrap_or("succeeded");
    let (method, verb, more) = match (phase, random.random_range(0..100)) {
        ("stepping", 0..10) => ("POST", "/promote", ""),
        ("stepping", 10..13) => ("POST", "/promote", "\"full\": true, "),
        ("stepping", 13..18) => ("POST", "/pause", ""),
        ("paused", 0..20) => ("POST", "/promote", ""),
        ("paused", 20..40) => ("POST", "/resume", ""),
        ("stepping" | "paused" | "baking", 95..100) => ("POST", "/rollback", ""),
        ("succeeded" | "rolled_back", 0..70) => {
            // Whatever failed has been mended; and one in three is to fail.
            let canary = usize::from(status["canary"] == "v2");
            let fails = random.random_range(0..3) == 0;
            service.failing[1 - canary].store(false, Relaxed);
            service.failing[canary].store(fails, Relaxed);
            // In a freeze with force, or not at all.
            ("POST", "/start", if random.random_range(0..3) == 0 { "\"force\": true, " } else { "" })
        }
        ("succeeded" | "rolled_back", 70..75) => ("POST", "/flip", ""),
        ("succeeded" | "rolled_back", 75..85) => ("PUT", "/weight", weight.as_str()),
        _ => return Ok(()),
    };
    let token = format!("{}-{}", service.name, random.random::<u64>());
    let body = format!("{{{more}\"reason\": \"{token}\"}}");
    world.sent.notify_waiters();
    let command = Command { token, life: world.life.get(), acknowledged: false };
    let answer = api(world.admin, method, &path(verb), &body).await;
    let acknowledged = matches!(answer, Ok((200, _)));
    service.ledger.borrow_mut().commands.push(Command { acknowledged, ..command });
    let (status, answer) = answer?;
    if ![200, 409].contains(&status) {
        world.odd.replace(Some(format!("{method} {}: {status} {answer}", path(verb))));
    }
    Ok(())
}

/// Services `s0` and so on, each below a path of its own, with a store. After their backends come who is asked by
/// hooks and who is measured by checks.
fn configuration(
    address: SocketAddr,
    admin: SocketAddr,
    backends: &[SocketAddr],
    folder: &Path,
) -> anyhow::Result<String> {
    let mut toml = head(address, admin, Some(folder)) + "max_history = '1MiB'\n";
    let (versions, others) = backends.split_at(2 * ROLLOUTS.len());
    let hook = |at: &str| format!("{{ at = '{at}', url = 'http://{}/' }}", others[0]);
    let hooks =
        ["pre-rollout", "step", "pre-promotion", "post-promotion", "rollback", "drained", "event"].map(hook);
    let check = format!(
        "{{ name = 'orders', kind = 'http', url = 'http://{}/', json_pointer = '', min = 1, interval = '50ms' }}",
        others[1]
    );
    for ((number, rollout), backends) in ROLLOUTS.iter().enumerate().zip(versions.chunks(2)) {
        let rollout = rollout.replace("HOOKS", &hooks.join(", ")).replace("CHECK", &check);
        let name = format!("s{number}");
        // Users keep to their version in every other one.
        let sticky = if number % 2 == 1 { "header = 'x-user'" } else { "cookie = 'version'" };
        let harm = if rollout.contains("'evidence'") { "\nmax_harm = 20.0" } else { "" };
        write!(
            toml,
            "[[routes]]\npath_prefix = '/{name}'\nservice = '{name}'\n\
             [services.{name}]\nstable = 'v1'\ncanary = 'v2'\n\
             [services.{name}.backends]\nv1 = {{ endpoints = ['http://{}'] }}\nv2 = {{ endpoints = ['http://{}'] }}\n\
             [services.{name}.sticky]\n{sticky}\n\
             [services.{name}.rollout]\n{rollout}\nbake = '150ms'\ndeadline = '2s'\ndrain = '100ms'\nprobes = [{{ path = '/' }}]\n\
             [services.{name}.rollout.analysis]\n{ANALYSIS}{harm}\n",
            backends[0], backends[1]
        )?;
    }
    Ok(toml)
}

/// Says what there was, if all was as it has to be.
fn report(world: &World, lives: &Lives, took: Duration) -> anyhow::Result<()> {
    let mut phases: BTreeMap<String, usize> = BTreeMap::new();
    let (mut entries, mut succeeded, mut rolled_back, mut on_trial) = (0, 0, 0, 0);
    let mut each = Vec::new();
    for service in &world.services {
        let ledger = service.ledger.borrow();
        let arrivals = service.arrivals.lock().unwrap_or_else(PoisonError::into_inner);
        let exposed = ledger.exposed(&arrivals).map_err(|broken| anyhow!("{}: {broken}", service.name))?;
        for kill in &lives.kills {
            *phases.entry(ledger.phase_at(*kill).to_owned()).or_default() += 1;
        }
        entries += ledger.entries.len();
        on_trial += exposed;
        let ended = ["succeeded", "rolled_back"].map(|phase| ledger.ended(phase));
        succeeded += ended[0];
        rolled_back += ended[1];
        each.push(format!("{} {} + {}", service.name, ended[0], ended[1]));
    }
    let mut starts = lives.starts.clone();
    starts.sort();
    let phases: Vec<_> = phases.into_iter().map(|(phase, times)| format!("{phase} {times}")).collect();
    println!(
        "{} kills in {} s, {} of them before it served, with {} freezes; a start took {:?} at the median, {:?} at the most",
        lives.kills.len(),
        took.as_secs(),
        lives.kills.len() + 1 - starts.len(),
        world.freezes.get(),
        starts[starts.len() / 2],
        starts[starts.len() - 1],
    );
    println!("rollouts were, when it was killed: {}", phases.join(", "));
    println!(
        "{} rollouts ended: {succeeded} succeeded, {rolled_back} were rolled back; {entries} entries of history, {} of them shown before the kill, and {} commands acknowledged: each there once",
        succeeded + rolled_back,
        world.shown.get(),
        world.acknowledged.get(),
    );
    println!("of each service: {}", each.join(", "));
    println!(
        "{} requests answered, {on_trial} of them on trial, none beyond what was recorded; {} failed, each with the process",
        world.requests.get(),
        world.excused.get(),
    );
    Ok(())
}
