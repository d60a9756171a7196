//! The workers as seen from other threads: start them, move them through their end, wait.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    rc::Rc,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{
    runtime::{Builder, LocalRuntime},
    sync::{mpsc, watch},
};

use super::{
    drain::{Registry, Stage},
    flush::Flusher,
    handshake::{Door, Entrance},
    listeners::{Change, Listeners},
    room::Room,
    spread::Spread,
};
use crate::{
    proxy::{
        client::Patience,
        context::{Context, Shared, Witnesses},
    },
    routing::{edge::Edge, snapshot::Snapshot},
    telemetry::ledger::Hub,
};

/// How often idle upstream connections are looked at.
const SWEEP: Duration = Duration::from_secs(1);

/// Changes of its listeners that may wait for a worker.
const CHANGES: usize = 16;

/// A listener that is to be opened.
#[derive(Debug)]
pub struct Opening {
    /// One socket for each worker.
    pub sockets: Vec<TcpListener>,
    /// What is behind it.
    pub behind: Behind,
}

/// What a client finds behind a listener.
#[derive(Debug)]
pub struct Behind {
    /// The address that the listener is configured with.
    pub address: SocketAddr,
    /// How long its clients may take.
    pub patience: Patience,
    /// What they meet before their first request.
    pub entrance: Entrance,
    /// What it lets in, and whose word it takes.
    pub edge: Edge,
}

/// What is to become of the workers' listeners.
#[derive(Debug, Default)]
pub struct ListenerChanges {
    /// Those that there shall be, too.
    pub opened: Vec<Opening>,
    /// Those whose next connections find something else.
    pub altered: Vec<Behind>,
    /// Those that there shall not be any more.
    pub closed: Vec<SocketAddr>,
    /// How long the clients of these are told to go before connections are closed.
    pub delay: Duration,
}

/// Changes the listeners of running workers.
#[derive(Debug, Clone)]
pub struct ListenerControl(Arc<[mpsc::Sender<Change>]>);

impl ListenerControl {
    /// Makes changes; returns when the sockets of closed listeners are closed, so that their addresses can
    /// be used again.
    ///
    /// # Panics
    /// When a listener has fewer sockets than there are workers.
    pub async fn change(&self, changes: ListenerChanges) {
        let workers = self.0.len();
        let ListenerChanges { opened, altered, closed, delay } = changes;
        let (done, mut all_done) = mpsc::channel(1);
        for address in closed {
            for worker in self.0.iter() {
                // A worker that is gone has no listeners.
                let _gone = worker.send(Change::Close { address, delay, closed: done.clone() }).await;
            }
        }
        for behind in altered {
            for (worker, (address, door)) in self.0.iter().zip(doors(behind, workers)) {
                let _gone = worker.send(Change::Alter { address, door }).await;
            }
        }
        for Opening { sockets, behind } in opened {
            assert!(sockets.len() >= workers, "one socket for each worker");
            let sides = doors(behind, workers).zip(Spread::over(workers)).zip(sockets);
            for (worker, (((address, door), spread), socket)) in self.0.iter().zip(sides) {
                let _gone = worker.send(Change::Open { address, socket, spread, door }).await;
            }
        }
        drop(done);
        let _none = all_done.recv().await;
    }
}

/// Each worker's side of what is behind a listener.
fn doors(behind: Behind, workers: usize) -> impl Iterator<Item = (SocketAddr, Door)> {
    let Behind { address, patience, entrance, edge } = behind;
    Room::split(edge, workers).map(move |room| (address, Door { patience, entrance: entrance.clone(), room }))
}

/// Running workers.
#[derive(Debug)]
pub struct Workers {
    listeners: ListenerControl,
    stage: watch::Sender<Stage>,
    ended: mpsc::Receiver<Panicked>,
    threads: Vec<JoinHandle<()>>,
}

/// A worker ended that nobody had asked to.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("a worker thread panicked; its message is above")]
pub struct Panicked;

impl Workers {
    /// Starts `count` workers, which have no listeners yet. Those for which there are witnesses tell them of
    /// their exchanges.
    ///
    /// # Errors
    /// When a thread or its runtime cannot be had. Those that were started are stopped.
    pub fn start(
        count: usize,
        snapshots: &Arc<ArcSwap<Snapshot>>,
        hub: &Arc<Hub>,
        witnesses: Vec<Witnesses>,
    ) -> io::Result<Self> {
        let (stage, _) = watch::channel(Stage::Serving);
        let (sign_off, ended) = mpsc::channel(count.max(1));
        let shared = Arc::new(Shared::default());
        let mut witnesses = witnesses.into_iter();
        let (mut threads, mut listeners) = (Vec::new(), Vec::new());
        for index in 0..count {
            let (changes, changed) = mpsc::channel(CHANGES);
            listeners.push(changes);
            let (snapshots, hub, shared) = (Arc::clone(snapshots), Arc::clone(hub), Arc::clone(&shared));
            let (stage, sign_off) = (stage.subscribe(), sign_off.clone());
            let witnesses = witnesses.next().unwrap_or_default();
            let runtime = || -> io::Result<LocalRuntime> {
                Builder::new_current_thread().enable_all().build_local(Default::default())
            };
            let (started, start) = std::sync::mpsc::sync_channel(1);
            let body = move || {
                // Dropped last, however this thread ends.
                let _sign_off = SignOff(sign_off);
                let runtime = match runtime() {
                    Ok(runtime) => runtime,
                    Err(error) => {
                        let _failed = started.send(Err(error));
                        return;
                    }
                };
                runtime.block_on(async {
                    let context = Context::new(index, hub, snapshots, shared, seed()).telling(witnesses);
                    // Only now, so that who looks at what it limits and counts finds all of it.
                    let _started = started.send(Ok(()));
                    run(Rc::new(context), changed, stage).await;
                });
            };
            threads.push(thread::Builder::new().name(format!("worker-{index}")).spawn(body)?);
            start.recv().map_err(|_| io::Error::other(Panicked))??;
        }
        Ok(Self { listeners: ListenerControl(listeners.into()), stage, ended, threads })
    }

    /// What changes their listeners.
    pub fn listeners(&self) -> &ListenerControl {
        &self.listeners
    }

    /// Moves all workers to a stage of their end; never back.
    pub fn enter(&self, stage: Stage) {
        self.stage.send_if_modified(|current| {
            let later = stage > *current;
            *current = stage.max(*current);
            later
        });
    }

    /// Waits until every worker has ended, or one has panicked.
    ///
    /// # Errors
    /// When one of them panicked.
    pub async fn ended(&mut self) -> Result<(), Panicked> {
        // The channel closes when the last worker's end of it is dropped.
        if let Some(panicked) = self.ended.recv().await {
            return Err(panicked);
        }
        for thread in self.threads.drain(..) {
            thread.join().map_err(|_| Panicked)?;
        }
        Ok(())
    }
}

/// Tells of the end of a worker: by being dropped, and before that, if it panics, by saying so.
struct SignOff(mpsc::Sender<Panicked>);

impl Drop for SignOff {
    fn drop(&mut self) {
        if thread::panicking() {
            // There is room for one from each worker.
            let _told = self.0.try_send(Panicked);
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "this is where a worker starts")]
fn seed() -> u64 {
    use rand::RngExt;
    rand::rng().random()
}

/// A worker's life.
async fn run(context: Rc<Context>, mut changes: mpsc::Receiver<Change>, mut stage: watch::Receiver<Stage>) {
    let timers = Rc::clone(context.timers());
    tokio::task::spawn_local(async move { timers.run().await });
    tokio::task::spawn_local(sweep(Rc::clone(&context)));
    let registry = Rc::new(Registry::default());
    let flusher = Rc::new(Flusher::new(Rc::clone(context.pulse())));
    let flushing = Rc::clone(&flusher);
    tokio::task::spawn_local(async move { flushing.run().await });
    let mut listeners = Listeners::new(Rc::clone(&context), Rc::clone(&registry), flusher, stage.clone());
    let mut announcing = stage.clone();
    let mut announced = false;
    loop {
        tokio::select! {
            // Changes first: who connects to a socket that no worker accepts from waits for nothing.
            biased;
            Some(change) = changes.recv() => listeners.change(change),
            () = reached(&mut stage, Stage::Finishing) => break,
            () = reached(&mut announcing, Stage::Announcing), if !announced => {
                context.start_draining();
                announced = true;
            }
        }
    }
    // Who still has changes is told that nobody takes them, and closes the sockets in them.
    drop(changes);
    listeners.closed().await;
    registry.close_all();
    tokio::select! {
        () = registry.emptied() => {}
        () = reached(&mut stage, Stage::Cutting) => {}
    }
}

/// Waits for a stage, or a later one. A sender that is gone means the same as the last: nobody is left to ask
/// for another.
async fn reached(stage: &mut watch::Receiver<Stage>, wanted: Stage) {
    let _gone = stage.wait_for(|stage| *stage >= wanted).await;
}

async fn sweep(context: Rc<Context>) {
    let mut interval = tokio::time::interval(SWEEP);
    loop {
        interval.tick().await;
        context.sweep();
    }
}
