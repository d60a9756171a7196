//! The loop that decides: one task for each service takes commands and readings off its queue, one
//! at a time, asks the pure core what follows, and carries it out.
//!
//! A tick is a new reading of the workers' counts. Readings are taken once for all services, so that
//! a tick costs the same however many services watch it. Commands arrive beside them and are
//! answered when they have taken effect: the next request already sees the new weight.

pub mod aa;
mod backlog;
mod calendar;
pub mod check;
mod client;
mod clocks;
pub mod context;
pub mod discovery;
mod drained;
mod endpoints;
mod events;
mod exec;
mod execute;
mod gained;
mod grpc;
mod happening;
pub mod history;
mod hook;
mod in_flight;
mod incident;
mod metrics;
mod notify;
mod prepare;
mod probe;
pub mod publish;
mod recording;
mod requests;
mod save;
mod service;
pub mod spans;
pub mod standing;
pub mod status;
mod users;
mod waiting;

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::Instant,
};

use self::{
    context::Context,
    metrics::Metrics,
    notify::Notifier,
    publish::Publisher,
    service::ServiceTask,
    status::{Occurrence, ServiceStatus},
};
use crate::{
    clock,
    config::{Config, Service},
    model::{
        name::{BackendName, ServiceName},
        weight::Weight,
    },
    rollout::{event::Command, refused::Refused},
    store::{Store, StoreError},
    telemetry::{
        ledger::{Hub, Key},
        reader::{self, Copies, Counted, Endpoints, Pairs, RetryTotals, Series, Totals, UserTotals},
    },
};

/// Commands that may wait for a service's task.
const QUEUE: usize = 64;

/// All counts of one moment.
pub(crate) type Reading = Arc<Counts>;

/// All counts.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// When the tick began that they are of.
    begun: Option<Instant>,
    totals: BTreeMap<Series, Totals>,
    endpoints: Endpoints<Counted>,
    pairs: BTreeMap<ServiceName, Pairs>,
    copies: BTreeMap<Key, Copies>,
    retries: BTreeMap<ServiceName, RetryTotals>,
    users: BTreeMap<Series, UserTotals>,
}

impl Counts {
    fn read(hub: &Hub) -> Self {
        let begun = Some(Instant::now());
        // First, so that the failure of which a retry took the place is always known as well.
        let retries = hub.retries();
        let (totals, endpoints) = (reader::read(hub), reader::read_endpoints(hub));
        let (pairs, copies) = (hub.pairs(), reader::read_copies(hub));
        let users = reader::read_users(hub);
        Self { begun, totals, endpoints, pairs, copies, retries, users }
    }
}

/// Something that a person or a pipeline wants of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Give the canary this share of requests; only while no rollout runs.
    SetWeight(Weight),
    /// Swap the roles at once; only while no rollout runs.
    Flip {
        /// Even if nothing seems to be there any more.
        force: bool,
    },
    /// Start, move or end a rollout.
    Rollout(Command),
}

/// Why a service did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// There is no service of this name.
    #[error("there is no service `{0}`")]
    UnknownService(String),
    /// The service has nothing to compare with or to swap to.
    #[error("service `{0}` has no canary: name a second backend as `canary` in its configuration")]
    NoCanary(ServiceName),
    /// Whoever would get everything is not there.
    #[error(
        "no endpoint of `{backend}` takes a connection ({why}), so nothing would be answered: start it first, or flip with force"
    )]
    Gone {
        /// The backend.
        backend: BackendName,
        /// What the last one said.
        why: String,
    },
    /// A rollout has the weight in its hands.
    #[error(
        "a rollout of service `{service}` is {phase}, and until it ends nothing else moves traffic: promote it or roll it back"
    )]
    RolloutRunning {
        /// The service.
        service: ServiceName,
        /// The rollout's phase.
        phase: &'static str,
    },
    /// Now is no time to begin one.
    #[error(
        "service `{service}` is frozen, {freeze}: start its rollout when that is over, or with force if it cannot wait"
    )]
    Frozen {
        /// The service.
        service: ServiceName,
        /// The window, in words.
        freeze: String,
    },
    /// The rollout is in a phase in which the command means nothing.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// It would have to be saved before it happens, and cannot be.
    #[error("this cannot be saved, so nothing has changed: {0}")]
    NotSaved(StoreError),
    /// What has happened cannot be read.
    #[error("the history cannot be read: {0}")]
    Unreadable(StoreError),
    /// Something came before it was saved.
    #[error("this was overtaken by something newer before it was saved, and has not happened")]
    Overtaken,
    /// It was held until something before it was saved, and whoever asked did not wait so long.
    #[error("nobody waited for this any more when what was before it had been saved, so it was not done")]
    TooLate,
    /// It is not as it was when whoever asks looked.
    #[error("service `{0}` has changed since: look again")]
    Changed(ServiceName),
    /// The controller has stopped.
    #[error("the controller has stopped")]
    Stopped,
}

/// What a service's task is asked.
#[derive(Debug)]
enum Ask {
    /// To do something.
    Request(Request, Context),
    /// To save how it stands.
    Settle,
}

type Answer = oneshot::Sender<Result<ServiceStatus, CommandError>>;

/// A handle on the running controller.
#[derive(Debug, Clone)]
pub struct Controller {
    services: Arc<RwLock<BTreeMap<ServiceName, Handle>>>,
    common: Common,
}

/// What the tasks of all services have in common.
#[derive(Debug, Clone)]
struct Common {
    publisher: Arc<Publisher>,
    hub: Arc<Hub>,
    metrics: Metrics,
    tick: Duration,
    reading: watch::Receiver<Reading>,
    store: Store,
    notifier: Arc<Notifier>,
}

/// One service's task, which ends when every handle on it is gone.
#[derive(Debug, Clone)]
struct Handle {
    requests: mpsc::Sender<(Ask, Answer)>,
    /// With who has last changed it.
    config: watch::Sender<(Service, Context)>,
    status: watch::Receiver<ServiceStatus>,
}

/// What the controller works on.
#[derive(Debug)]
pub struct Inputs<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// Where snapshots are published.
    pub publisher: Arc<Publisher>,
    /// Where counts are read.
    pub hub: Arc<Hub>,
    /// How often.
    pub tick: Duration,
    /// What outlives the process.
    pub store: Store,
    /// Where the controller's own metrics are registered.
    pub registry: &'a prometheus::Registry,
}

impl Controller {
    /// Starts the controller on the current runtime.
    ///
    /// # Errors
    /// When its metrics are registered already.
    pub fn start(inputs: Inputs<'_>) -> prometheus::Result<Self> {
        let Inputs { config, publisher, hub, tick, store, registry } = inputs;
        let metrics = Metrics::register(registry)?;
        // Of all services, before anything happens to one.
        for kept in store.services().iter().map(|name| store.found(name).recent) {
            events::go_on_after(kept.iter().map(|entry| entry.at));
        }
        let notifier = Arc::new(Notifier::new(registry)?);
        notifier.take_up(&config.notifications);
        let (readings, reading) = watch::channel(Reading::default());
        tokio::spawn(read(Arc::clone(&hub), tick, readings, metrics.clone()));
        tokio::spawn(in_flight::run(Arc::clone(&hub), reading.clone()));
        let common = Common { publisher, hub, metrics, tick, reading, store, notifier };
        let services = config.services.iter().map(|s| (s.name.clone(), common.start(s.clone())));
        Ok(Self { services: Arc::new(RwLock::new(services.collect())), common })
    }

    /// Takes up a configuration that has just been published. Tasks of services that are gone end; those
    /// of services that are there still see it before whatever is asked of them next.
    pub fn take_up(&self, config: &Config, by: &Context) {
        self.common.notifier.take_up(&config.notifications);
        let mut services = self.services.write().unwrap_or_else(PoisonError::into_inner);
        services.retain(|name, _| config.services.iter().any(|service| service.name == *name));
        for service in &config.services {
            match services.get(&service.name) {
                Some(handle) => {
                    handle.config.send_if_modified(|current| {
                        let changed = current.0 != *service;
                        if changed {
                            *current = (service.clone(), by.clone());
                        }
                        changed
                    });
                }
                None => {
                    services.insert(service.name.clone(), self.common.start(service.clone()));
                }
            }
        }
    }

    /// Every service as it stands, by name.
    pub fn services(&self) -> Vec<ServiceStatus> {
        let services = self.services.read().unwrap_or_else(PoisonError::into_inner);
        services.values().map(|handle| handle.status.borrow().clone()).collect()
    }

    /// One service as it stands.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn service(&self, name: &str) -> Result<ServiceStatus, CommandError> {
        Ok(self.handle(name)?.status.borrow().clone())
    }

    /// One service as it changes, for those who watch.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn watch(&self, name: &str) -> Result<watch::Receiver<ServiceStatus>, CommandError> {
        Ok(self.handle(name)?.status)
    }

    /// What has happened since the event of this number, in order, to those services that are wanted.
    pub fn events_since(
        &self,
        id: u64,
        wanted: impl Fn(&ServiceName) -> bool,
    ) -> Vec<(ServiceName, Occurrence)> {
        let services = self.services.read().unwrap_or_else(PoisonError::into_inner);
        let mut since = Vec::new();
        for (name, handle) in services.iter().filter(|(name, _)| wanted(name)) {
            let status = handle.status.borrow();
            let newer = status.events.iter().filter(|event| event.id > id);
            since.extend(newer.map(|event| (name.clone(), event.clone())));
        }
        since.sort_unstable_by_key(|(_, event)| event.id);
        since
    }

    /// Asks something of a service, and returns how it stands once that is done.
    ///
    /// # Errors
    /// When there is no such service, or it does not do what was asked; nothing has changed then.
    pub async fn request(
        &self,
        name: &str,
        request: Request,
        context: Context,
    ) -> Result<ServiceStatus, CommandError> {
        let (answer, answered) = oneshot::channel();
        let handle = self.handle(name)?;
        if request == (Request::Flip { force: false }) {
            // Before it waits in line, so that nothing else has to wait for connections.
            handle.would_answer().await?;
        }
        let queue = handle.requests;
        queue.send((Ask::Request(request, context), answer)).await.map_err(|_| CommandError::Stopped)?;
        answered.await.map_err(|_| CommandError::Stopped)?
    }

    /// Has every service save how it stands, for a process that ends. Does not wait for a disk that does
    /// not answer.
    pub async fn settle(&self) {
        let handles: Vec<_> = {
            let services = self.services.read().unwrap_or_else(PoisonError::into_inner);
            services.values().map(|handle| handle.requests.clone()).collect()
        };
        let mut settling = JoinSet::new();
        for queue in handles {
            settling.spawn(async move {
                let (answer, answered) = oneshot::channel();
                if queue.send((Ask::Settle, answer)).await.is_ok() {
                    let _stopped = answered.await;
                }
            });
        }
        let settled = settling.join_all();
        if tokio::time::timeout(save::LAST_SAVE, settled).await.is_err() {
            tracing::warn!("the store does not answer: the evidence of the last seconds may be lost");
        }
    }

    fn handle(&self, name: &str) -> Result<Handle, CommandError> {
        let services = self.services.read().unwrap_or_else(PoisonError::into_inner);
        services.get(name).cloned().ok_or_else(|| CommandError::UnknownService(name.to_owned()))
    }
}

impl Handle {
    /// Whether the backend that is canary now would answer requests.
    async fn would_answer(&self) -> Result<(), CommandError> {
        let Some(canary) = self.status.borrow().canary.clone() else { return Ok(()) };
        let backend = self.config.borrow().0.backends.iter().find(|backend| backend.name == canary).cloned();
        let endpoints = backend.map(|backend| backend.endpoints).unwrap_or_default();
        prepare::any_accepts(&endpoints).await.map_err(|why| CommandError::Gone { backend: canary, why })
    }
}

impl Common {
    /// Starts a service's task.
    fn start(&self, service: Service) -> Handle {
        let (requests, queue) = mpsc::channel(QUEUE);
        let (config, configs) = watch::channel((service.clone(), Context::default()));
        let task = ServiceTask::new(service, self);
        let (sender, status) = watch::channel(task.status());
        tokio::spawn(task.run(queue, configs, self.reading.clone(), sender));
        Handle { requests, config, status }
    }
}

/// Takes readings for as long as somebody looks at them.
async fn read(hub: Arc<Hub>, tick: Duration, readings: watch::Sender<Reading>, metrics: Metrics) {
    let mut interval = tokio::time::interval(tick);
    // After a stall one reading tells everything that happened; several at once would tell nothing more.
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let started = clock::monotonic();
    loop {
        let due = interval.tick().await;
        metrics.tick_begins(due.elapsed());
        if readings.send(Arc::new(Counts::read(&hub))).is_err() {
            tracing::debug!(after = ?started.elapsed(), "nobody reads the counts any more");
            return;
        }
    }
}
