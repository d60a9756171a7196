//! How soon a change of weight is obeyed by every worker: how long after the API has answered, or after the
//! verdict, a request by the old weight still comes to a backend. What a request takes from a worker to the
//! backend is in it.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use rand::{SeedableRng as _, rngs::StdRng};
use tidegate::clock;
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    figures::Times,
    proxy::{Proxy, TICK, free_ports, head},
    wire::{Handler, Wire, api, serve},
};

/// Clients, and their pause between two requests: a load that leaves the machine time.
const CONNECTIONS: usize = 64;
const PAUSE: Duration = Duration::from_millis(20);

/// How long after a change stragglers are waited for.
const AFTER: Duration = Duration::from_millis(25);

/// What is promised, at the worst.
const WORST: Duration = Duration::from_millis(10);

/// Longest time for a rollout.
const PATIENCE: Duration = Duration::from_secs(20);

/// What came to a backend last.
#[derive(Default)]
struct Last {
    monotonic: Mutex<Option<Instant>>,
    /// Wall clock, in milliseconds.
    wall: AtomicU64,
    fails: AtomicBool,
}

impl Last {
    fn backend(self: &Arc<Self>, name: &str) -> (String, Handler) {
        let last = Arc::clone(self);
        let handler = move |_: &str| {
            last.monotonic.lock().unwrap_or_else(PoisonError::into_inner).replace(clock::monotonic());
            last.wall.store(clock::now().as_millis(), Relaxed);
            !last.fails.load(Relaxed)
        };
        (name.to_owned(), Arc::new(handler))
    }

    /// How long after a moment something has come.
    fn after(&self, moment: Instant) -> Duration {
        let last = *self.monotonic.lock().unwrap_or_else(PoisonError::into_inner);
        last.map_or(Duration::ZERO, |last| last.saturating_duration_since(moment))
    }
}

/// Changes the weight so many times, and has so many canaries rolled back.
pub(crate) fn run(changes: u64, rollbacks: u64) -> anyhow::Result<()> {
    ensure!(changes > 0 && rollbacks > 0, "of nothing there are no figures");
    let folder = tempfile::tempdir()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let backends = [Arc::new(Last::default()), Arc::new(Last::default())];
    let addresses = serve(vec![backends[0].backend("v1"), backends[1].backend("v2")])?;
    let [address, admin] = free_ports(&mut StdRng::seed_from_u64(clock::now().as_millis()))?;
    let config = folder.path().join("tidegate.toml");
    let toml = format!(
        "{}[[routes]]\nservice = 'web'\n\
         [services.web]\nstable = 'v1'\ncanary = 'v2'\n\
         [services.web.backends]\nv1 = {{ endpoints = ['http://{}'] }}\nv2 = {{ endpoints = ['http://{}'] }}\n\
         [services.web.rollout]\nsteps = [{{ weight = 50, hold = '1h' }}]\ndrain = '100ms'\n",
        head(address, admin, None),
        addresses[0],
        addresses[1]
    );
    std::fs::write(&config, toml)?;
    let is_over = Arc::new(AtomicBool::new(false));
    let (changed, rolled_back, requests) = runtime.block_on(async {
        let mut proxy = Proxy::spawn(&config, TICK)?;
        proxy.ready().await?;
        let over = Arc::clone(&is_over);
        let clients = thread::spawn(move || visit(address, &over));
        sleep(Duration::from_secs(1)).await;
        let changed = change(admin, &backends, changes).await;
        let rolled_back = roll_back(admin, &backends[1], rollbacks).await;
        is_over.store(true, Relaxed);
        let requests = clients.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        proxy.kill().await?;
        anyhow::Ok((changed?, rolled_back?, requests))
    })?;
    println!("{requests} requests of {CONNECTIONS} connections, none failed");
    let worst = [
        Times::from(changed).say("from the API's answer to the last request by the old weight")?,
        Times::from(rolled_back).say("from a rollback's entry to the canary's last request")?,
    ];
    ensure!(worst.iter().all(|[_, worst]| *worst <= WORST), "the worst is over {WORST:?}");
    Ok(())
}

/// From 0 to 100 and back.
async fn change(admin: SocketAddr, backends: &[Arc<Last>; 2], times: u64) -> anyhow::Result<Vec<Duration>> {
    let mut wire = Wire::connect(admin).await?;
    let mut figures = Vec::new();
    for number in 0..times {
        let (old, body) = if number % 2 == 0 { (0, "{\"canary\":100}") } else { (1, "{\"canary\":0}") };
        let length = body.len();
        let request = format!(
            "PUT /api/v1/services/web/weight HTTP/1.1\r\nHost: {admin}\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        let reply = wire.ask(&request).await?;
        let answered = clock::monotonic();
        ensure!(reply.status == 200, "PUT weight: {}", reply.head);
        sleep(AFTER).await;
        figures.push(backends[old].after(answered));
    }
    api(admin, "PUT", "/web/weight", "{\"canary\":0}").await?;
    Ok(figures)
}

/// A canary that fails whatever it gets, so many times.
async fn roll_back(admin: SocketAddr, canary: &Last, times: u64) -> anyhow::Result<Vec<Duration>> {
    canary.fails.store(true, Relaxed);
    let mut figures = Vec::new();
    for _ in 0..times {
        let (status, answer) = api(admin, "POST", "/web/start", "{\"force\":true}").await?;
        ensure!(status == 200, "POST start: {status} {answer}");
        let ended = async {
            while api(admin, "GET", "/web", "").await?.1["rollout"]["phase"] != "rolled_back" {
                sleep(AFTER).await;
            }
            anyhow::Ok(())
        };
        timeout(PATIENCE, ended).await.context("a canary that fails is not rolled back")??;
        let (_, page) = api(admin, "GET", "/web/history?limit=5", "").await?;
        let mut entries = page["entries"].as_array().into_iter().flatten();
        let entry = entries.find(|entry| entry["phase"]["phase"] == "rolling_back");
        let at = entry.and_then(|entry| entry["at"].as_u64()).context("no entry of the rollback")?;
        figures.push(Duration::from_millis(canary.wall.load(Relaxed).saturating_sub(at)));
    }
    Ok(figures)
}

/// The clients, until it is over. Returns how many requests were answered.
fn visit(address: SocketAddr, is_over: &Arc<AtomicBool>) -> anyhow::Result<u64> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut clients = JoinSet::new();
        for _ in 0..CONNECTIONS {
            let is_over = Arc::clone(is_over);
            clients.spawn(async move {
                let mut wire = Wire::connect(address).await?;
                let mut answered = 0;
                while !is_over.load(Relaxed) {
                    wire.ask("GET / HTTP/1.1\r\nHost: x\r\n\r\n").await?;
                    answered += 1;
                    sleep(PAUSE).await;
                }
                anyhow::Ok(answered)
            });
        }
        let mut answered = 0;
        while let Some(client) = clients.join_next().await {
            answered += client??;
        }
        Ok(answered)
    })
}
