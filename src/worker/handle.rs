//! The workers as seen from other threads: start them, move them through their end, wait.

use std::{
    io,
    net::TcpListener,
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
    accept::accept,
    drain::{Registry, Stage},
    flush::Flusher,
    handshake::{Door, Entrance},
    room::Room,
    spread::Spread,
};
use crate::{
    access_log::queue::Queue,
    proxy::{
        client::Patience,
        context::{Context, Shared},
    },
    routing::{edge::Edge, snapshot::Snapshot},
    telemetry::ledger::Hub,
};

/// How often idle upstream connections are looked at.
const SWEEP: Duration = Duration::from_secs(1);

/// A listening address: one socket for each worker, and how long its clients may take.
#[derive(Debug)]
pub struct Listening {
    /// One socket for each worker.
    pub sockets: Vec<TcpListener>,
    /// How long its clients may take.
    pub patience: Patience,
    /// What they meet before their first request.
    pub entrance: Entrance,
    /// What it lets in, and whose word it takes.
    pub edge: Edge,
}

/// Running workers.
#[derive(Debug)]
pub struct Workers {
    stage: watch::Sender<Stage>,
    ended: mpsc::Receiver<Panicked>,
    threads: Vec<JoinHandle<()>>,
}

/// A worker ended that nobody had asked to.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("a worker thread panicked; its message is above")]
pub struct Panicked;

impl Workers {
    /// Starts `count` workers on the listening sockets. Those for which there is an access log's queue
    /// write to it.
    ///
    /// # Errors
    /// When a thread or its runtime cannot be had. Those that were started are stopped.
    ///
    /// # Panics
    /// When a listener has fewer sockets than there are workers.
    pub fn start(
        count: usize,
        listening: Vec<Listening>,
        snapshots: &Arc<ArcSwap<Snapshot>>,
        hub: &Arc<Hub>,
        access_logs: Vec<Queue>,
    ) -> io::Result<Self> {
        let (stage, _) = watch::channel(Stage::Serving);
        let (sign_off, ended) = mpsc::channel(count.max(1));
        let shared = Arc::new(Shared::default());
        let mut by_worker: Vec<Vec<(TcpListener, Spread, Door)>> = (0..count).map(|_| Vec::new()).collect();
        for Listening { sockets, patience, entrance, edge } in listening {
            assert!(sockets.len() >= count, "one socket for each worker");
            let rooms = Room::split(edge, count);
            let sides = rooms.zip(Spread::over(count));
            for ((worker, socket), (room, spread)) in by_worker.iter_mut().zip(sockets).zip(sides) {
                worker.push((socket, spread, Door { patience, entrance: entrance.clone(), room }));
            }
        }
        let mut access_logs = access_logs.into_iter();
        let mut threads = Vec::new();
        for (index, listeners) in by_worker.into_iter().enumerate() {
            let (snapshots, hub, shared) = (Arc::clone(snapshots), Arc::clone(hub), Arc::clone(&shared));
            let (stage, sign_off) = (stage.subscribe(), sign_off.clone());
            let access_log = access_logs.next();
            let runtime = || -> io::Result<LocalRuntime> {
                Builder::new_current_thread().enable_all().build_local(Default::default())
            };
            let (started, start) = std::sync::mpsc::sync_channel(1);
            let body = move || {
                // Dropped last, however this thread ends.
                let _sign_off = SignOff(sign_off);
                let runtime = match runtime() {
                    Ok(runtime) => {
                        let _started = started.send(Ok(()));
                        runtime
                    }
                    Err(error) => {
                        let _failed = started.send(Err(error));
                        return;
                    }
                };
                runtime.block_on(async {
                    let context = Context::new(index, hub, snapshots, shared, seed()).logging(access_log);
                    run(Rc::new(context), listeners, stage).await;
                });
            };
            threads.push(thread::Builder::new().name(format!("worker-{index}")).spawn(body)?);
            start.recv().map_err(|_| io::Error::other(Panicked))??;
        }
        Ok(Self { stage, ended, threads })
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
async fn run(
    context: Rc<Context>,
    listeners: Vec<(TcpListener, Spread, Door)>,
    mut stage: watch::Receiver<Stage>,
) {
    let timers = Rc::clone(context.timers());
    tokio::task::spawn_local(async move { timers.run().await });
    tokio::task::spawn_local(sweep(Rc::clone(&context)));
    let registry = Rc::new(Registry::default());
    let flusher = Rc::new(Flusher::new(Rc::clone(context.pulse())));
    let flushing = Rc::clone(&flusher);
    tokio::task::spawn_local(async move { flushing.run().await });
    let mut accepting = Vec::new();
    for (listener, spread, door) in listeners {
        match tokio::net::TcpListener::from_std(listener) {
            Ok(listener) => accepting.push(tokio::task::spawn_local(accept(
                Rc::clone(&context),
                Rc::clone(&registry),
                Rc::clone(&flusher),
                (listener, spread),
                door,
                stage.clone(),
            ))),
            Err(error) => tracing::error!(%error, "a worker cannot use its listening socket"),
        }
    }
    // A sender that is gone means the same as the last stage: nobody is left to ask for another.
    let reached = async |stage: &mut watch::Receiver<Stage>, wanted| {
        let _gone = stage.wait_for(|stage| *stage >= wanted).await;
    };
    reached(&mut stage, Stage::Announcing).await;
    context.start_draining();
    reached(&mut stage, Stage::Finishing).await;
    for task in accepting {
        let _cancelled = task.await;
    }
    registry.close_all();
    tokio::select! {
        () = registry.emptied() => {}
        () = reached(&mut stage, Stage::Cutting) => {}
    }
}

async fn sweep(context: Rc<Context>) {
    let mut interval = tokio::time::interval(SWEEP);
    loop {
        interval.tick().await;
        context.sweep();
    }
}
