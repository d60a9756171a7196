//! A hundred services, each with a rollout, all at the same time: how long whoever asks waits, how late ticks
//! are, how long saving takes, and what users notice of it.
//!
//! Two moments are as bad as can be: all hundred are started at once, and all are moved on at once, while some
//! are rolled back. Their steps are as long as each other, so that ticks move them on together as well.

use std::{
    cell::{Cell, RefCell},
    fmt::Write as _,
    net::SocketAddr,
    path::Path,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use rand::{SeedableRng as _, rngs::StdRng};
use serde_json::Value;
use tidegate::clock;
use tokio::{
    task::{JoinSet, LocalSet},
    time::{sleep, timeout},
};

use crate::{
    figures::{Buckets, Times},
    proxy::{Proxy, free_ports, head},
    wire::{Handler, Wire, api, field, serve},
};

const SERVICES: usize = 100;
/// Of these, one in ten is rolled back by hand, and one in ten has a canary that fails in its last step.
const ONE_IN: usize = 10;

/// How often counts are looked at: as often as in earnest.
const TICK: Duration = Duration::from_secs(1);
/// Clients are one to a service. Between two requests of one is a pause: 2,000 a second in all.
const PAUSE: Duration = Duration::from_millis(50);
/// Between two questions of one kind that the API is asked.
const LOOKS: Duration = Duration::from_millis(100);
/// How long users are looked at before the first rollout, and rollouts between being started and moved on.
const CALM: Duration = Duration::from_secs(4);
/// Longest time for all rollouts of a round.
const PATIENCE: Duration = Duration::from_secs(90);

/// What is promised: of a write that waits for the disk beside a hundred others, and of anything else.
const WRITE: Duration = Duration::from_secs(1);
const READ: Duration = Duration::from_millis(250);
/// How much later than due a tick begins, and how long it takes until the last service is judged, in seconds.
const TICKS: f64 = 0.25;
/// How long a save takes, with those of all others before it, in seconds.
const SAVES: f64 = 1.0;
/// How long after a rollback's entry in the history the canary gets requests.
const GONE: Duration = Duration::from_millis(50);
/// How much longer than without rollouts 99 of 100 requests of users take at the most.
const SLOWER: Duration = Duration::from_millis(25);

/// One version of one service.
#[derive(Default)]
struct Version {
    /// When a request came last, by the wall clock, in milliseconds.
    last: AtomicU64,
    fails: AtomicBool,
}

impl Version {
    fn backend(self: &Arc<Self>, name: &str) -> (String, Handler) {
        let version = Arc::clone(self);
        let handler = move |_: &str| {
            version.last.store(clock::now().as_millis(), Relaxed);
            !version.fails.load(Relaxed)
        };
        (name.to_owned(), Arc::new(handler))
    }
}

/// What all tasks share.
struct World {
    admin: SocketAddr,
    versions: Vec<[Arc<Version>; 2]>,
    /// Whether rollouts stand where a person may pause them.
    may_pause: Cell<bool>,
    is_over: Cell<bool>,
    figures: RefCell<Figures>,
}

#[derive(Default)]
struct Figures {
    start: Times,
    promote: Times,
    rollback: Times,
    pause: Times,
    weight: Times,
    list: Times,
    status: Times,
    history: Times,
    scrape: Times,
    gone: Times,
}

/// A request of a user: when, how long, and whether it was during rollouts.
type Visits = Vec<(Instant, Duration)>;

/// Has a hundred rollouts at a time, so many times.
pub(crate) fn run(rounds: u64) -> anyhow::Result<()> {
    ensure!(rounds > 0, "of nothing there are no figures");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let folder = tempfile::tempdir()?;
    LocalSet::new().block_on(&runtime, begin(rounds, folder.path()))
}

async fn begin(rounds: u64, folder: &Path) -> anyhow::Result<()> {
    // The last is nobody's rollout: its weight is set by hand.
    let versions: Vec<[Arc<Version>; 2]> = (0..=SERVICES).map(|_| Default::default()).collect();
    let backends = versions.iter().flat_map(|[v1, v2]| [v1.backend("v1"), v2.backend("v2")]);
    let addresses = serve(backends.collect())?;
    let [address, admin] = free_ports(&mut StdRng::seed_from_u64(clock::now().as_millis()))?;
    let config = folder.join("tidegate.toml");
    std::fs::write(&config, configuration(address, admin, &addresses, folder)?)?;
    let mut proxy = Proxy::spawn(&config, TICK)?;
    proxy.ready().await?;
    let is_over = Arc::new(AtomicBool::new(false));
    let over = Arc::clone(&is_over);
    let users = thread::spawn(move || visit(address, &over));
    sleep(CALM).await;
    let world = Rc::new(World {
        admin,
        versions,
        may_pause: Cell::new(false),
        is_over: Cell::new(false),
        figures: RefCell::default(),
    });
    let before = world.scrape().await?;
    let begun = clock::monotonic();
    let mut lookers = JoinSet::new();
    lookers.spawn_local(look(Rc::clone(&world)));
    lookers.spawn_local(scrape(Rc::clone(&world)));
    lookers.spawn_local(write(Rc::clone(&world)));
    lookers.spawn_local(pause(Rc::clone(&world)));
    let mut done = Ok(());
    for _ in 0..rounds {
        done = timeout(PATIENCE, round(&world)).await.context("rollouts do not end").flatten();
        if done.is_err() {
            break;
        }
    }
    let ended = clock::monotonic();
    world.is_over.set(true);
    while let Some(looked) = lookers.join_next().await {
        looked??;
    }
    done?;
    let after = world.scrape().await?;
    is_over.store(true, Relaxed);
    let visits = users.join().map_err(|_| anyhow::anyhow!("a user panicked"))??;
    proxy.kill().await?;
    println!(
        "{} rollouts in {} s, {SERVICES} at a time",
        rounds as usize * SERVICES,
        (ended - begun).as_secs()
    );
    report(world.figures.take(), [&before, &after], &visits, begun..ended)
}

/// Says what everything came to, and holds it against what is promised.
fn report(
    figures: Figures,
    [before, after]: [&str; 2],
    visits: &Visits,
    during: std::ops::Range<Instant>,
) -> anyhow::Result<()> {
    let Figures { start, promote, rollback, pause, weight, list, status, history, scrape, gone } = figures;
    let mut broken = Vec::new();
    let mut hold = |what: &str, [most, _]: [Duration; 2], bound: Duration| {
        if most > bound {
            broken.push(format!("{what}: 99 % take {most:.1?}, and {bound:?} is promised"));
        }
    };
    for (what, times, bound) in [
        ("a start, all at once", start, WRITE),
        ("a promotion to the next step, all at once", promote, WRITE),
        ("a rollback by hand among these", rollback, WRITE),
        ("pause and resume", pause, WRITE),
        ("setting a weight", weight, WRITE),
        ("the list of services", list, READ),
        ("the status of one", status, READ),
        ("a page of its history", history, READ),
        ("a scrape", scrape, READ),
        ("from a rollback's entry to the canary's last request", gone, GONE),
    ] {
        hold(what, times.say(what)?, bound);
    }
    let (calm, busy): (Vec<_>, Vec<_>) = visits.iter().partition(|(at, _)| *at < during.start);
    let took =
        |visits: Vec<(Instant, Duration)>| Times::from(visits.into_iter().map(|v| v.1).collect::<Vec<_>>());
    let busy = busy.into_iter().filter(|(at, _)| *at < during.end).collect();
    let [calm, _] = took(calm).say("users' requests before, none failed")?;
    hold("users' requests", took(busy).say("users' requests meanwhile, none failed")?, calm + SLOWER);
    for (name, what, bound) in [
        ("tidegate_tick_lag_seconds", "a tick's beginning after it was due", TICKS),
        ("tidegate_tick_seconds", "from there until a service was judged", TICKS),
        ("tidegate_store_save_seconds", "a save, with its waiting", SAVES),
    ] {
        let most = Buckets::of(after, name)?.say(&Buckets::of(before, name)?, what)?;
        if most > bound {
            broken.push(format!("{what}: 99 % within {most} s, and {bound} s is promised"));
        }
    }
    ensure!(broken.is_empty(), "{}", broken.join("; "));
    Ok(())
}

/// All rollouts from their starts to their ends.
async fn round(world: &Rc<World>) -> anyhow::Result<()> {
    for version in world.versions.iter().flatten() {
        version.fails.store(false, Relaxed);
    }
    let canaries = world.services().await?.iter().map(canary).collect::<Vec<_>>();
    let all = |_| ("start", "{}");
    let times = world.write_to_all(all).await?;
    world.figures.borrow_mut().start.extend(times.into_iter().map(|(_, took)| took));
    world.until(|service| service["rollout"]["phase"] == "stepping").await?;
    world.may_pause.set(true);
    sleep(CALM).await;
    world.may_pause.set(false);
    world.until(|service| service["rollout"]["phase"] == "stepping").await?;
    let times =
        world.write_to_all(|number| (if is_given_up(number) { "rollback" } else { "promote" }, "{}")).await?;
    let mut figures = world.figures.take();
    for (number, took) in times {
        let of = if is_given_up(number) { &mut figures.rollback } else { &mut figures.promote };
        of.push(took);
    }
    world.figures.replace(figures);
    // Once all are in the last step, some canaries go wrong, whatever they get.
    world
        .until(|service| service["rollout"]["step"] != 1 || service["rollout"]["phase"] != "stepping")
        .await?;
    for number in (0..SERVICES).filter(|number| goes_wrong(*number)) {
        world.versions[number][canaries[number]].fails.store(true, Relaxed);
    }
    let ended =
        |service: &Value| ["succeeded", "rolled_back"].iter().any(|end| service["rollout"]["phase"] == *end);
    world.until(ended).await?;
    for (number, service) in world.services().await?.iter().enumerate() {
        let fell = is_given_up(number) || goes_wrong(number);
        let wanted = if fell { "rolled_back" } else { "succeeded" };
        ensure!(
            service["rollout"]["phase"] == wanted,
            "{} is not {wanted}: {}",
            service["name"],
            service["rollout"]
        );
        if fell {
            let gone = world.gone(number, canaries[number]).await?;
            world.figures.borrow_mut().gone.push(gone);
        }
    }
    Ok(())
}

fn is_given_up(number: usize) -> bool {
    number % ONE_IN == 3
}

fn goes_wrong(number: usize) -> bool {
    number % ONE_IN == 7
}

/// Which version of a service is its canary.
fn canary(service: &Value) -> usize {
    usize::from(service["canary"] == "v2")
}

impl World {
    async fn scrape(&self) -> anyhow::Result<String> {
        let mut wire = Wire::connect(self.admin).await?;
        let reply = wire.ask(&format!("GET /metrics HTTP/1.1\r\nHost: {}\r\n\r\n", self.admin)).await?;
        ensure!(reply.status == 200, "GET /metrics: {}", reply.head);
        Ok(String::from_utf8(reply.body)?)
    }

    /// The services that have rollouts, by their numbers.
    async fn services(&self) -> anyhow::Result<Vec<Value>> {
        let (_, all) = self.ask("GET", "", "").await?;
        let mut all = all["services"].as_array().cloned().context("no services")?;
        // By name: `hand` comes before `s00`.
        all.remove(0);
        ensure!(all.len() == SERVICES, "there are {} services", all.len());
        Ok(all)
    }

    /// Waits until all services are as they should be.
    async fn until(&self, are: impl Fn(&Value) -> bool) -> anyhow::Result<()> {
        while !self.services().await?.iter().all(&are) {
            sleep(LOOKS).await;
        }
        Ok(())
    }

    /// Asks the API something that it does, and returns how long that took.
    async fn ask(&self, method: &str, path: &str, body: &str) -> anyhow::Result<(Duration, Value)> {
        let asked = clock::monotonic();
        let (status, answer) = api(self.admin, method, path, body).await?;
        ensure!(status == 200, "{method} {path}: {status} {answer}");
        Ok((asked.elapsed(), answer))
    }

    /// Asks all services for something at the same time.
    async fn write_to_all(
        self: &Rc<Self>,
        what: impl Fn(usize) -> (&'static str, &'static str),
    ) -> anyhow::Result<Vec<(usize, Duration)>> {
        let mut writes = JoinSet::new();
        for number in 0..SERVICES {
            let (world, (verb, body)) = (Rc::clone(self), what(number));
            writes.spawn_local(async move {
                let (took, _) = world.ask("POST", &format!("/s{number:02}/{verb}"), body).await?;
                anyhow::Ok((number, took))
            });
        }
        let mut times = Vec::new();
        while let Some(written) = writes.join_next().await {
            times.push(written??);
        }
        Ok(times)
    }

    /// How long after the entry of its rollback a canary still got a request.
    async fn gone(&self, number: usize, canary: usize) -> anyhow::Result<Duration> {
        let (_, page) = self.ask("GET", &format!("/s{number:02}/history?limit=10"), "").await?;
        let mut entries = page["entries"].as_array().into_iter().flatten();
        let entry = entries.find(|entry| entry["phase"]["phase"] == "rolling_back");
        let at = entry.and_then(|entry| entry["at"].as_u64()).context("no entry of the rollback")?;
        let last = self.versions[number][canary].last.load(Relaxed);
        Ok(Duration::from_millis(last.saturating_sub(at)))
    }
}

/// Whoever looks: at all services, at one, at what has happened to it.
async fn look(world: Rc<World>) -> anyhow::Result<()> {
    for number in (0..SERVICES).cycle() {
        if world.is_over.get() {
            break;
        }
        let (list, _) = world.ask("GET", "", "").await?;
        let (status, _) = world.ask("GET", &format!("/s{number:02}"), "").await?;
        let (history, _) = world.ask("GET", &format!("/s{number:02}/history?limit=50"), "").await?;
        let mut figures = world.figures.borrow_mut();
        figures.list.push(list);
        figures.status.push(status);
        figures.history.push(history);
        drop(figures);
        sleep(LOOKS).await;
    }
    Ok(())
}

/// A Prometheus in a hurry.
async fn scrape(world: Rc<World>) -> anyhow::Result<()> {
    while !world.is_over.get() {
        let asked = clock::monotonic();
        world.scrape().await?;
        world.figures.borrow_mut().scrape.push(asked.elapsed());
        sleep(LOOKS).await;
    }
    Ok(())
}

/// Whoever sets the weight of a service without a rollout.
async fn write(world: Rc<World>) -> anyhow::Result<()> {
    for percent in (0..50).cycle() {
        if world.is_over.get() {
            break;
        }
        let (took, _) = world.ask("PUT", "/hand/weight", &format!("{{\"canary\":{percent}}}")).await?;
        world.figures.borrow_mut().weight.push(took);
        sleep(LOOKS).await;
    }
    Ok(())
}

/// Whoever has rollouts wait and go on.
async fn pause(world: Rc<World>) -> anyhow::Result<()> {
    for number in (0..SERVICES).cycle() {
        while !world.may_pause.get() && !world.is_over.get() {
            sleep(LOOKS).await;
        }
        if world.is_over.get() {
            break;
        }
        for verb in ["pause", "resume"] {
            let (took, _) = world.ask("POST", &format!("/s{number:02}/{verb}"), "{}").await?;
            world.figures.borrow_mut().pause.push(took);
        }
        sleep(LOOKS).await;
    }
    Ok(())
}

/// The users, until it is over: one of each service.
fn visit(address: SocketAddr, is_over: &Arc<AtomicBool>) -> anyhow::Result<Visits> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut users = JoinSet::new();
        for number in 0..SERVICES {
            let is_over = Arc::clone(is_over);
            users.spawn(async move {
                let mut wire = Wire::connect(address).await?;
                let request = format!("GET / HTTP/1.1\r\nHost: s{number:02}.test\r\n\r\n");
                let mut visits = Visits::new();
                // Not all at the same moment.
                sleep(PAUSE * number as u32 / SERVICES as u32).await;
                while !is_over.load(Relaxed) {
                    let asked = clock::monotonic();
                    let reply = wire.ask(&request).await?;
                    visits.push((asked, asked.elapsed()));
                    // A canary that fails says so itself.
                    ensure!(field(&reply.head, "x-backend").is_some(), "a user got {}", reply.head);
                    sleep(PAUSE).await;
                }
                anyhow::Ok(visits)
            });
        }
        let mut visits = Visits::new();
        while let Some(user) = users.join_next().await {
            visits.extend(user??);
        }
        Ok(visits)
    })
}

/// The services: a step in which all wait to be moved on, and two that are left when time and evidence say so.
fn configuration(
    address: SocketAddr,
    admin: SocketAddr,
    backends: &[SocketAddr],
    folder: &Path,
) -> anyhow::Result<String> {
    let mut toml = head(address, admin, Some(folder));
    for (number, backends) in backends.chunks(2).enumerate() {
        let name = if number < SERVICES { format!("s{number:02}") } else { "hand".to_owned() };
        write!(
            toml,
            "[[routes]]\nhostnames = ['{name}.test']\nservice = '{name}'\n\
             [services.{name}]\nstable = 'v1'\ncanary = 'v2'\n\
             [services.{name}.backends]\nv1 = {{ endpoints = ['http://{}'] }}\nv2 = {{ endpoints = ['http://{}'] }}\n\
             [services.{name}.rollout]\nbake = '2s'\ndrain = '1s'\n\
             steps = [{{ weight = 20, hold = '1h' }}, {{ weight = 30, hold = '3s' }}, {{ weight = 60, hold = '5s' }}]\n\
             [services.{name}.rollout.analysis]\n\
             minimum_requests = 5\nlatency_margin = false\npromotion_margin = 0.9\npromotion_alpha = 0.5\n",
            backends[0], backends[1]
        )?;
    }
    Ok(toml)
}
