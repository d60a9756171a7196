//! The whole program put together, changed and taken apart again. The only module that knows both halves.

mod reload;

use std::{io, net::SocketAddr, path::Path, sync::Arc, thread, time::Duration};

use anyhow::Context as _;
use prometheus::{IntGaugeVec, Opts, Registry};
use tokio::sync::{Mutex, watch};

use self::reload::{Opened, Reloader};

use crate::{
    access_log::{AccessLog, Counts, Reopen},
    admin::{self, access::Access, readiness::Readiness, reload::Reload, server::Served},
    clock,
    config::{self, Config, Listener, ListenerTls, LogOutput, Shutdown},
    controller::{
        Controller, Inputs,
        discovery::Discovery,
        publish::{Compiled, Publisher},
        spans::Spans,
        standing,
    },
    model::name::ServiceName,
    proxy::{client::Patience, context::Witnesses},
    spans,
    store::Store,
    telemetry::{
        exposition::CellsCollector, health_exposition::HealthCollector,
        in_flight_exposition::InFlightCollector, ledger::Hub, mirror_exposition::MirrorCollector,
    },
    tls::{
        reload::Keeper,
        server::{Published, Server, Settings},
    },
    worker::{
        drain::Stage,
        handle::{Behind, ListenerChanges, Panicked, Workers},
        handshake::{Entrance, ProxyProtocol, Tls},
    },
};

/// What most often is the matter.
const TAKEN: &str = "(`ss -ltnp` shows who has the port)";

/// How long a process that ends waits for its last spans, whatever is left until the deadline.
const LAST_SPANS: Duration = Duration::from_secs(1);

/// What is not in the configuration, because nobody who runs Tidegate need choose it.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How often counts are read and decided on.
    pub tick: Duration,
    /// How often files of certificates are looked at.
    pub certificates: Duration,
    /// How often the configuration's file is.
    pub configuration: Duration,
    /// How long a span waits for others to be exported with it.
    pub spans: Duration,
}

impl Default for Options {
    fn default() -> Self {
        let files = Duration::from_secs(2);
        let second = Duration::from_secs(1);
        Self { tick: second, certificates: files, configuration: files, spans: second }
    }
}

/// A running Tidegate. Dropping it without [`Running::drain`] cuts what is in flight.
#[derive(Debug)]
pub struct Running {
    /// Where requests came in at the start, in the configuration's order, with the ports that were given.
    pub listeners: Vec<SocketAddr>,
    /// Where the admin API is, if anywhere.
    pub admin: Option<SocketAddr>,
    /// The control half.
    pub controller: Controller,
    /// Has the configuration read anew.
    pub reload: Reload,
    readiness: Readiness,
    workers: Workers,
    access_log: Option<AccessLog>,
    spans: Option<Spans>,
    shutdown: watch::Receiver<Shutdown>,
}

/// Starts everything: binds every address, then starts the workers, the controller and the admin API
/// on the current runtime. When it returns, requests are served. If the configuration is from a `file`,
/// changes of that are taken up.
///
/// # Errors
/// When an address cannot be bound or a thread cannot be started; nothing is left running then.
pub async fn start(config: &Config, file: Option<&Path>, options: Options) -> anyhow::Result<Running> {
    // Before all that takes time: a change meanwhile is one to be noticed.
    let began_with = file.and_then(|file| reload::fingerprint(&reload::files(file, config)));
    let count = config.workers.map_or_else(available_cpus, |workers| workers.get());
    let hub = Arc::new(Hub::new(count));
    let registry = registry(&hub).context("cannot register the metrics")?;
    let mut keeper = Keeper::new(&registry).context("cannot register the metrics")?;
    let (mut opened, mut opening) = (Vec::new(), Vec::new());
    for listener in &config.listeners {
        let entrance = entrance(listener, None, &mut keeper)?;
        let open = reload::open(listener, count, |bound| behind(listener, bound, entrance.clone()))?;
        opened.push(Opened { config: listener.clone(), bound: open.behind.address, entrance });
        opening.push(open);
    }
    let listeners = opened.iter().map(|opened| opened.bound).collect();
    let admin_socket = match &config.admin {
        Some(admin) => Some(
            admin::server::bind(admin.address)
                .with_context(|| format!("cannot listen on {} for the admin API {TAKEN}", admin.address))?,
        ),
        None => None,
    };
    let admin = admin_socket.as_ref().map(std::net::TcpListener::local_addr).transpose()?;
    let admin_side =
        config.admin.as_ref().map(|admin| admin_side(admin, &mut keeper, &registry)).transpose()?;

    let store = open_store(config)?;
    let mut compiled = Compiled::new(config, &mut keeper)?;
    // Before anybody asks: what has become of the roles is what holds.
    standing::place(&mut compiled, config, |_| true, &store);
    let publisher = Arc::new(Publisher::new(compiled));
    let mut witnesses: Vec<_> = (0..count).map(|_| Witnesses::default()).collect();
    let access_log = start_access_log(config, &mut witnesses, &registry)?;
    let spans = start_spans(config, &mut witnesses, &registry, options.spans)?;
    // Before anybody asks for an endpoint.
    let mut discovery = Discovery::new(Arc::clone(&publisher), Arc::clone(&hub));
    let addresses = discovery.resolve_new(config).await;
    discovery.follow(config, addresses);
    let workers =
        Workers::start(count, publisher.snapshots(), &hub, witnesses).context("cannot start the workers")?;
    workers.listeners().change(ListenerChanges { opened: opening, ..ListenerChanges::default() }).await;
    let inputs = Inputs {
        config,
        publisher: Arc::clone(&publisher),
        hub,
        tick: options.tick,
        store: store.clone(),
        registry: &registry,
    };
    let controller = Controller::start(inputs).context("cannot start the controller")?;
    let keeper = Arc::new(Mutex::new(keeper));
    let (shutdown_control, shutdown) = watch::channel(config.shutdown.clone());
    let (reload, asked) = Reload::channel();
    if let Some(file) = file {
        let metrics = reload::Metrics::register(&registry).context("cannot register the metrics")?;
        let running = reload::Running {
            config: config.clone(),
            workers: count,
            opened,
            listeners: workers.listeners().clone(),
            keeper: Arc::clone(&keeper),
            publisher,
            store,
            controller: controller.clone(),
            discovery,
            shutdown: shutdown_control,
            spans: spans.as_ref().map(Spans::control),
            access: admin_side.as_ref().map(|(access, _)| access.clone()),
        };
        let reloader = Reloader { running, file: file.to_owned(), began_with, asked, metrics };
        tokio::spawn(reloader.run(options.configuration));
    } else {
        // It goes on watching what it does.
        tokio::spawn(async move {
            let _discovery = discovery;
            std::future::pending::<()>().await;
        });
    }
    let readiness = Readiness::default();
    if let Some((socket, (access, tls))) = admin_socket.zip(admin_side) {
        let served = Served {
            access,
            controller: controller.clone(),
            reload: reload.clone(),
            registry,
            readiness: readiness.clone(),
        };
        tokio::spawn(async move {
            if let Err(error) = admin::server::serve(socket, tls, served).await {
                tracing::error!(%error, "the admin API has stopped");
            }
        });
    }
    tokio::spawn(Keeper::run(keeper, options.certificates));
    readiness.set(true);
    Ok(Running { listeners, admin, controller, reload, readiness, workers, access_log, spans, shutdown })
}

impl Running {
    /// Ends the process's work: tells clients to go and takes the last connections for `delay`, then
    /// lets what is in flight finish until the deadline, then cuts it.
    ///
    /// # Errors
    /// When a worker panicked.
    pub async fn drain(mut self, delay: Duration) -> Result<(), Panicked> {
        let deadline = self.shutdown.borrow().deadline;
        let begin = clock::monotonic() + delay;
        let drained = self.drain_workers(delay).await;
        self.controller.settle().await;
        if let Some(log) = self.access_log {
            log.written().await;
        }
        if let Some(spans) = self.spans {
            let took = clock::monotonic().saturating_duration_since(begin);
            // The spans of a worker that has panicked are not worth the wait.
            let left = if drained.is_ok() { deadline.saturating_sub(took) } else { Duration::ZERO };
            spans.flushed(left.max(LAST_SPANS)).await;
        }
        drained
    }

    async fn drain_workers(&mut self, delay: Duration) -> Result<(), Panicked> {
        self.readiness.set(false);
        self.workers.enter(Stage::Announcing);
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            // Only a panic ends a worker here.
            ended = self.workers.ended() => return ended.and(Err(Panicked)),
        }
        self.workers.enter(Stage::Finishing);
        let deadline = self.shutdown.borrow().deadline;
        if let Ok(ended) = tokio::time::timeout(deadline, self.workers.ended()).await {
            return ended;
        }
        tracing::warn!(?deadline, "some requests did not finish in time and are cut");
        self.workers.enter(Stage::Cutting);
        self.workers.ended().await
    }

    /// Waits for a worker to end of itself, which only a bug makes it do.
    pub async fn failed(&mut self) -> Panicked {
        let _ended = self.workers.ended().await;
        Panicked
    }

    /// What asks for the access log's file to be opened anew, if there is one.
    pub fn reopen_access_log(&self) -> Option<Reopen> {
        self.access_log.as_ref().map(AccessLog::reopen)
    }

    /// How long clients are told to go before no more are let in.
    pub fn drain_delay(&self) -> Duration {
        self.shutdown.borrow().delay
    }
}

/// What clients of a listener meet before their first request; `published` is its side of TLS, if it has
/// one already.
fn entrance(
    listener: &Listener,
    published: Option<&Published>,
    keeper: &mut Keeper,
) -> anyhow::Result<Entrance> {
    let tls = match &listener.tls {
        None => None,
        Some(ListenerTls { settings, handshake_timeout }) => {
            let published = match published {
                Some(published) => Arc::clone(published),
                None => publish(settings, listener.address, keeper)?,
            };
            Some(Tls { published, timeout: *handshake_timeout })
        }
    };
    let proxy_protocol = listener.proxy_protocol.as_ref();
    let proxy_protocol = proxy_protocol.map(|p| ProxyProtocol { from: p.from.clone(), timeout: p.timeout });
    Ok(Entrance { proxy_protocol, tls, redirect_to_https: listener.redirect_to_https })
}

/// A side of TLS that is kept fresh from now on.
fn publish(settings: &Settings, address: SocketAddr, keeper: &mut Keeper) -> anyhow::Result<Published> {
    let server = Server::new(settings.clone()).with_context(|| format!("cannot speak TLS on {address}"))?;
    let published = Arc::clone(server.published());
    keeper.add_server(server);
    Ok(published)
}

/// Who may use the admin side, and how it speaks TLS, if it does.
fn admin_side(
    admin: &config::Admin,
    keeper: &mut Keeper,
    registry: &Registry,
) -> anyhow::Result<(Access, Option<admin::connection::Tls>)> {
    let access = Access::new(admin.clone(), registry).context("cannot register the metrics")?;
    let tls = admin.tls.as_ref().map(|tls| {
        let published = publish(&tls.settings, admin.address, keeper)?;
        anyhow::Ok(admin::connection::Tls { published, timeout: tls.handshake_timeout })
    });
    Ok((access, tls.transpose()?))
}

/// What is behind a listener that is bound there.
fn behind(listener: &Listener, bound: SocketAddr, entrance: Entrance) -> Behind {
    let patience = Patience { header: listener.header_timeout, idle: listener.idle_timeout };
    Behind { address: bound, patience, entrance, edge: listener.edge.clone() }
}

/// What outlives the process, or for want of that what lasts as long.
fn open_store(config: &Config) -> anyhow::Result<Store> {
    let Some(store) = &config.store else {
        if config.services.iter().any(|service| service.roles.canary().is_some()) {
            tracing::warn!(
                "there is no [store]: a restart forgets every rollout, and who became stable in one"
            );
        }
        return Ok(Store::in_memory());
    };
    let opened = Store::open(&store.path, store.max_history).context("cannot use the store")?;
    let gone = |name: &ServiceName| config.services.iter().all(|service| service.name != *name);
    for service in opened.services().into_iter().filter(gone) {
        tracing::warn!(%service, "the store has a service that is not configured; it is kept for when it is");
    }
    Ok(opened)
}

/// The access log, if there is to be one, which each worker gets a queue to.
fn start_access_log(
    config: &Config,
    witnesses: &mut [Witnesses],
    registry: &Registry,
) -> anyhow::Result<Option<AccessLog>> {
    let Some(settings) = &config.access_log else { return Ok(None) };
    let counts = Counts::new().and_then(|counts| counts.register(registry).map(|()| counts));
    let counts = counts.context("cannot register the metrics")?;
    let started = AccessLog::start(settings, witnesses.len(), &counts);
    let (log, queues) = started.with_context(|| match &settings.output {
        LogOutput::Stdout => "cannot start the access log".to_owned(),
        LogOutput::File(path) => format!("cannot write the access log to {}", path.display()),
    })?;
    witnesses.iter_mut().zip(queues).for_each(|(witnesses, queue)| witnesses.access_log = Some(queue));
    Ok(Some(log))
}

/// What has spans sent, if there is tracing, which each worker gets a queue to.
fn start_spans(
    config: &Config,
    witnesses: &mut [Witnesses],
    registry: &Registry,
    every: Duration,
) -> anyhow::Result<Option<Spans>> {
    let Some(settings) = &config.tracing else { return Ok(None) };
    let counts = spans::Counts::new().and_then(|counts| counts.register(registry).map(|()| counts));
    let counts = counts.context("cannot register the metrics")?;
    let (spans, queues) = Spans::start(settings.clone(), witnesses.len(), &counts, every);
    witnesses.iter_mut().zip(queues).for_each(|(witnesses, queue)| witnesses.spans = Some(queue));
    Ok(Some(spans))
}

/// One worker for each CPU that the process may use, container limits included.
fn available_cpus() -> usize {
    thread::available_parallelism().map_or(1, |cpus| cpus.get())
}

fn registry(hub: &Arc<Hub>) -> prometheus::Result<Registry> {
    let registry = Registry::new();
    registry.register(Box::new(CellsCollector::new(Arc::clone(hub))))?;
    registry.register(Box::new(HealthCollector::new(Arc::clone(hub))?))?;
    registry.register(Box::new(InFlightCollector::new(Arc::clone(hub))?))?;
    registry.register(Box::new(MirrorCollector::new(Arc::clone(hub))?))?;
    #[cfg(target_os = "linux")]
    registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
    let build = IntGaugeVec::new(
        Opts::new("tidegate_build_info", "Always 1; the label says which version this is."),
        &["version"],
    )?;
    build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
    registry.register(Box::new(build))?;
    Ok(registry)
}

/// Raises the limit of open files to what the system allows: a proxy needs two for each client.
///
/// # Errors
/// When the limits cannot be read or changed.
pub fn raise_open_files_limit() -> io::Result<u64> {
    rlimit::increase_nofile_limit(u64::MAX)
}

/// Has the kernel keep this process's memory in pages of the usual size.
///
/// mimalloc asks for huge ones (2 MiB), where the least object keeps all of one resident; and what is given back
/// between objects comes back, since the kernel makes one of small pages by and by where any of them is in use. Under
/// mixed load that was 17 MiB after a quarter of an hour, in steps that look like a leak, and no request was cheaper.
/// Commands that this process runs inherit it.
///
/// # Errors
/// When the kernel refuses.
#[cfg(target_os = "linux")]
pub fn refuse_huge_pages() -> io::Result<()> {
    Ok(rustix::thread::disable_transparent_huge_pages(true)?)
}

/// Other kernels are left alone.
///
/// # Errors
/// None.
#[cfg(not(target_os = "linux"))]
pub fn refuse_huge_pages() -> io::Result<()> {
    Ok(())
}
