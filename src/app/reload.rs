//! Taking up a changed configuration while requests are on: all of it, or nothing.
//!
//! What can fail comes first and changes nothing that anybody sees: the file is read and checked, new
//! addresses are bound, certificates are read, new names are resolved. What comes then cannot fail: the
//! snapshot is swapped, the services' tasks get their part, and the workers' listeners follow. No
//! connection is closed but those of listeners that are gone, and these after their clients have been told.

mod rollouts;

use std::{
    collections::{BTreeMap, HashSet},
    hash::Hasher,
    iter,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use prometheus::{Gauge, IntCounterVec, IntGauge, Opts, Registry};
use siphasher::sip::SipHasher13;
use tokio::sync::{Mutex, mpsc, watch};

use super::{TAKEN, behind, entrance};
use crate::{
    admin::{
        access::Access,
        audit,
        reload::{Asked, By, NotReloaded, Outcome},
    },
    clock,
    config::{Admin, Config, Listener, ListenerTls, Shutdown, diagnostic::render, load::load},
    controller::{
        Controller,
        context::Context,
        discovery::Discovery,
        publish::{Compiled, Publisher},
        spans, standing,
    },
    model::name::ServiceName,
    net::listen,
    store::Store,
    tls::reload::Keeper,
    worker::{
        handle::{Behind, ListenerChanges, ListenerControl, Opening},
        handshake::Entrance,
    },
};

/// A listener that is open.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) config: Listener,
    /// Where it is bound, by which the workers know it.
    pub(super) bound: SocketAddr,
    pub(super) entrance: Entrance,
}

/// What a changed configuration is taken up into.
pub(super) struct Running {
    pub(super) config: Config,
    pub(super) workers: usize,
    pub(super) opened: Vec<Opened>,
    pub(super) listeners: ListenerControl,
    pub(super) keeper: Arc<Mutex<Keeper>>,
    pub(super) publisher: Arc<Publisher>,
    pub(super) store: Store,
    pub(super) controller: Controller,
    pub(super) discovery: Discovery,
    pub(super) shutdown: watch::Sender<Shutdown>,
    /// What has spans sent, if there is tracing.
    pub(super) spans: Option<spans::Control>,
    /// Who may use the admin side, if there is one.
    pub(super) access: Option<Access>,
}

/// Listeners as they shall be, and what makes them so.
struct Plan {
    opened: Vec<Opened>,
    changes: ListenerChanges,
    words: Vec<String>,
}

impl Running {
    /// Takes up another configuration. Says what has changed, or why nothing has.
    async fn take_up(&mut self, config: Config, context: &Context) -> Result<Vec<String>, Vec<String>> {
        let mut reasons = self.fixed(&config);
        reasons.extend(self.in_the_way_of_rollouts(&config));
        if !reasons.is_empty() {
            return Err(reasons);
        }
        let mut keeper = self.keeper.lock().await;
        let plan = plan_listeners(&self.opened, &config.listeners, self.workers, &mut keeper);
        let plan = plan.map_err(|error| vec![format!("{error:#}")])?;
        let mut compiled = Compiled::new(&config, &mut keeper)
            .map_err(|error| vec![format!("{:#}", anyhow::Error::from(error))])?;
        drop(keeper);
        let addresses = self.discovery.resolve_new(&config).await;
        // Somebody may have started one meanwhile. From here to the tasks' having it, nothing waits.
        let reasons = self.in_the_way_of_rollouts(&config);
        if !reasons.is_empty() {
            return Err(reasons);
        }
        let Plan { opened, mut changes, mut words } = plan;
        changes.delay = config.shutdown.delay;
        words.extend(differences(&self.config, &config));
        let is_new = |name: &ServiceName| self.config.services.iter().all(|service| service.name != *name);
        standing::place(&mut compiled, &config, is_new, &self.store);
        self.publisher.take_up(compiled, &unmoved(&self.config, &config), &addresses);
        self.controller.take_up(&config, context);
        self.discovery.follow(&config, addresses);
        self.shutdown.send_replace(config.shutdown.clone());
        if let Some((spans, tracing)) = self.spans.as_ref().zip(config.tracing.clone()) {
            spans.take_up(tracing);
        }
        if let Some((access, admin)) = self.access.as_ref().zip(config.admin.clone()) {
            access.take_up(admin);
        }
        self.listeners.change(changes).await;
        self.opened = opened;
        self.config = config;
        Ok(words)
    }

    /// What would need a restart.
    fn fixed(&self, config: &Config) -> Vec<String> {
        let Config {
            workers,
            listeners: _,
            admin,
            shutdown: _,
            store,
            access_log,
            tracing,
            paths: _,
            routes: _,
            services: _,
            notifications: _,
        } = config;
        let changed = [
            ("workers", *workers != self.config.workers),
            ("address` or `tls` of `[admin]", bound(admin) != bound(&self.config.admin)),
            ("[store]", *store != self.config.store),
            ("[access_log]", *access_log != self.config.access_log),
        ];
        let changed = changed.into_iter().filter(|(_, changed)| *changed);
        let mut reasons: Vec<_> =
            changed.map(|(what, _)| format!("a change of `{what}` needs a restart")).collect();
        if tracing.is_some() != self.config.tracing.is_some() {
            reasons.push("adding or removing `[tracing]` needs a restart".to_owned());
        }
        reasons
    }

    /// Why running rollouts do not allow it.
    fn in_the_way_of_rollouts(&self, config: &Config) -> Vec<String> {
        let unmoved = unmoved(&self.config, config);
        rollouts::in_the_way(&self.controller.services(), (&self.config, config), &unmoved)
    }
}

/// What the admin side is bound to and how it speaks: the rest is taken up.
fn bound(admin: &Option<Admin>) -> Option<(SocketAddr, Option<&ListenerTls>)> {
    admin.as_ref().map(|admin| (admin.address, admin.tls.as_ref()))
}

/// Services whose roles and weight are written as before, and so stay as they have become.
fn unmoved(before: &Config, after: &Config) -> HashSet<ServiceName> {
    let before: BTreeMap<_, _> = before.services.iter().map(|s| (&s.name, (&s.roles, s.weight))).collect();
    let unmoved = after.services.iter().filter(|s| before.get(&s.name) == Some(&(&s.roles, s.weight)));
    unmoved.map(|service| service.name.clone()).collect()
}

/// What listeners have to change, with new addresses bound and new certificates read.
fn plan_listeners(
    before: &[Opened],
    wanted: &[Listener],
    workers: usize,
    keeper: &mut Keeper,
) -> anyhow::Result<Plan> {
    let mut left: Vec<&Opened> = before.iter().collect();
    let mut plan = Plan { opened: Vec::new(), changes: ListenerChanges::default(), words: Vec::new() };
    for listener in wanted {
        let known = left.iter().position(|opened| opened.config.address == listener.address);
        let known = known.map(|at| left.remove(at));
        let same_tls = known.filter(|k| {
            k.config.tls.as_ref().map(|t| &t.settings) == listener.tls.as_ref().map(|t| &t.settings)
        });
        // The same certificates stay the same object: its tickets are those that clients hold.
        let published = same_tls.and_then(|k| k.entrance.tls.as_ref()).map(|tls| &tls.published);
        let entrance = entrance(listener, published, keeper)?;
        let behind = |bound| behind(listener, bound, entrance.clone());
        let bound = match known {
            Some(known) => {
                if known.config != *listener {
                    plan.words.push(format!("listener {} changed", listener.address));
                    plan.changes.altered.push(behind(known.bound));
                }
                known.bound
            }
            None => {
                let opening = open(listener, workers, behind)?;
                plan.words.push(format!("listener {} added", listener.address));
                let bound = opening.behind.address;
                plan.changes.opened.push(opening);
                bound
            }
        };
        plan.opened.push(Opened { config: listener.clone(), bound, entrance });
    }
    for gone in left {
        plan.words.push(format!("listener {} removed", gone.config.address));
        plan.changes.closed.push(gone.bound);
    }
    Ok(plan)
}

/// Binds a listener's address for each worker.
pub(super) fn open(
    listener: &Listener,
    workers: usize,
    behind: impl FnOnce(SocketAddr) -> Behind,
) -> anyhow::Result<Opening> {
    use anyhow::Context as _;
    let address = listener.address;
    let sockets =
        listen::bind(address, workers).with_context(|| format!("cannot listen on {address} {TAKEN}"))?;
    let bound = sockets[0].local_addr()?;
    Ok(Opening { sockets, behind: behind(bound) })
}

/// What else is different, in a few words each.
fn differences(before: &Config, after: &Config) -> Vec<String> {
    let mut words = Vec::new();
    let old: BTreeMap<_, _> = before.services.iter().map(|service| (&service.name, service)).collect();
    for service in &after.services {
        match old.get(&service.name) {
            None => words.push(format!("service `{}` added", service.name)),
            Some(old) if *old != service => words.push(format!("service `{}` changed", service.name)),
            Some(_) => {}
        }
    }
    let is_gone = |name: &ServiceName| after.services.iter().all(|service| service.name != *name);
    words.extend(old.keys().filter(|name| is_gone(name)).map(|name| format!("service `{name}` removed")));
    let others = [
        ("routes", before.routes != after.routes),
        ("[[notifications]]", before.notifications != after.notifications),
        ("[paths]", before.paths != after.paths),
        ("[shutdown]", before.shutdown != after.shutdown),
        ("[tracing]", before.tracing != after.tracing),
        ("[admin]", before.admin != after.admin),
    ];
    words.extend(
        others.into_iter().filter(|(_, changed)| *changed).map(|(what, _)| format!("{what} changed")),
    );
    words
}

/// Reads the configuration anew when somebody asks, and when it has changed.
pub(super) struct Reloader {
    pub(super) running: Running,
    pub(super) file: PathBuf,
    /// What was in it when it was read for the start.
    pub(super) began_with: Option<u64>,
    pub(super) asked: mpsc::Receiver<Asked>,
    pub(super) metrics: Metrics,
}

impl Reloader {
    /// Does so for as long as it is polled. The file is looked at this often, by what is in it; what has
    /// changed is taken up once it has stayed the same for one look, because somebody may still be writing.
    pub(super) async fn run(mut self, every: Duration) {
        let mut tried = self.began_with;
        let mut settling = None;
        let mut interval = tokio::time::interval(every);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some((by, answer)) = self.asked.recv() => {
                    tried = self.look().await;
                    let outcome = self.reload(by).await;
                    // Whoever asked may be gone.
                    let _gone = answer.send(outcome);
                }
                _ = interval.tick() => {
                    let seen = self.look().await;
                    // A file that cannot be read is not one that has changed: it may be on its way.
                    if seen.is_none() || seen == tried {
                        settling = None;
                    } else if settling.replace(seen) == Some(seen) {
                        (tried, settling) = (seen, None);
                        let _told = self.reload(By::File).await;
                    }
                }
            }
        }
    }

    /// The fingerprint of the files, which may be on a network.
    async fn look(&self) -> Option<u64> {
        let files = files(&self.file, &self.running.config);
        tokio::task::spawn_blocking(move || fingerprint(&files)).await.ok()?
    }

    async fn reload(&mut self, by: By) -> Outcome {
        let outcome = self.load_and_take_up(&by.context()).await;
        self.metrics.count(outcome.is_ok());
        let file = self.file.display();
        match &outcome {
            Ok(changes) if changes.is_empty() => tracing::info!(%file, "the configuration says what it said"),
            Ok(changes) => {
                tracing::info!(%file, changes = changes.join(", "), "the configuration has changed and is taken up");
            }
            Err(why) => {
                tracing::error!(%file, "the configuration is not taken up, and the running one stays: {why}");
            }
        }
        if let (By::Signal | By::File, Some(access)) = (&by, &self.running.access) {
            audit::reloaded(access, &by, &outcome).await;
        }
        outcome
    }

    async fn load_and_take_up(&mut self, context: &Context) -> Outcome {
        let file = self.file.clone();
        // It may be on a network.
        let loaded = tokio::task::spawn_blocking(move || load(&file)).await;
        let loaded = loaded.map_err(|error| NotReloaded::Refused(format!("cannot be read: {error}")))?;
        let (config, warnings) = loaded.map_err(|wrong| NotReloaded::Wrong(render(&wrong)))?;
        if !warnings.is_empty() {
            tracing::warn!("{}", render(&warnings));
        }
        self.running
            .take_up(config, context)
            .await
            .map_err(|reasons| NotReloaded::Refused(reasons.join("; ")))
    }
}

/// The files that a configuration was read from: its own, and that of credentials.
pub(super) fn files(file: &Path, config: &Config) -> Vec<PathBuf> {
    let credentials = config.admin.as_ref().and_then(|admin| admin.credentials.as_ref());
    let credentials = credentials.map(|credentials| credentials.file.clone());
    iter::once(file.to_owned()).chain(credentials).collect()
}

/// What is in files, in short; nothing if one cannot be read.
pub(super) fn fingerprint(files: &[PathBuf]) -> Option<u64> {
    let mut hasher = SipHasher13::new();
    for file in files {
        let content = std::fs::read(file).ok()?;
        hasher.write_usize(content.len());
        hasher.write(&content);
    }
    Some(hasher.finish())
}

/// What is counted about reloads.
#[derive(Debug)]
pub(super) struct Metrics {
    reloads: IntCounterVec,
    successful: IntGauge,
    last_success: Gauge,
}

impl Metrics {
    /// Registers them. The configuration that the process began with counts as taken up.
    pub(super) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let metrics = Self {
            reloads: IntCounterVec::new(
                Opts::new(
                    "tidegate_config_reloads_total",
                    "Times that the configuration was read anew, by whether it was taken up.",
                ),
                &["result"],
            )?,
            successful: IntGauge::new(
                "tidegate_config_last_reload_successful",
                "Whether the configuration was taken up when it was last read.",
            )?,
            last_success: Gauge::new(
                "tidegate_config_last_reload_success_timestamp_seconds",
                "When a configuration was last taken up, in seconds since 1970.",
            )?,
        };
        registry.register(Box::new(metrics.reloads.clone()))?;
        registry.register(Box::new(metrics.successful.clone()))?;
        registry.register(Box::new(metrics.last_success.clone()))?;
        for result in ["success", "failure"] {
            metrics.reloads.with_label_values(&[result]).inc_by(0);
        }
        metrics.show(true);
        Ok(metrics)
    }

    fn count(&self, is_taken_up: bool) {
        let result = if is_taken_up { "success" } else { "failure" };
        self.reloads.with_label_values(&[result]).inc();
        self.show(is_taken_up);
    }

    fn show(&self, is_taken_up: bool) {
        self.successful.set(i64::from(is_taken_up));
        if is_taken_up {
            self.last_success.set(clock::now().as_millis() as f64 / 1000.0);
        }
    }
}
