//! A worker's listeners: opened, changed and closed while it runs.

use std::{cell::RefCell, collections::HashMap, net::SocketAddr, rc::Rc, time::Duration};

use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

use super::{
    accept::{Listener, accept},
    drain::{ListenerId, Registry, Stage},
    flush::Flusher,
    handshake::Door,
    spread::Spread,
};
use crate::proxy::context::Context;

/// A change of one worker's listeners, which are known by the addresses that they are configured with.
#[derive(Debug)]
pub(super) enum Change {
    /// There is one more.
    Open { address: SocketAddr, socket: std::net::TcpListener, spread: Spread, door: Door },
    /// The next connection finds something else behind it.
    Alter { address: SocketAddr, door: Door },
    /// There is one less. Its clients are asked to go, and after the delay its connections end after the
    /// exchanges that are on. The socket is closed when the sender is gone.
    Close { address: SocketAddr, delay: Duration, closed: mpsc::Sender<()> },
}

/// One worker's listeners.
pub(super) struct Listeners {
    context: Rc<Context>,
    registry: Rc<Registry>,
    flusher: Rc<Flusher>,
    stage: watch::Receiver<Stage>,
    open: HashMap<SocketAddr, Open>,
    made: u32,
}

/// A listener that takes connections for as long as this lives.
struct Open {
    id: ListenerId,
    door: Rc<RefCell<Rc<Door>>>,
    _until: oneshot::Sender<()>,
    accepting: JoinHandle<()>,
}

impl Listeners {
    pub(super) fn new(
        context: Rc<Context>,
        registry: Rc<Registry>,
        flusher: Rc<Flusher>,
        stage: watch::Receiver<Stage>,
    ) -> Self {
        Self { context, registry, flusher, stage, open: HashMap::new(), made: 0 }
    }

    /// Makes a change.
    pub(super) fn change(&mut self, change: Change) {
        match change {
            Change::Open { address, socket, spread, door } => self.open(address, socket, spread, door),
            Change::Alter { address, door } => {
                if let Some(open) = self.open.get(&address) {
                    let Door { patience, entrance, room } = door;
                    let room = room.in_place_of(&open.door.borrow().room);
                    *open.door.borrow_mut() = Rc::new(Door { patience, entrance, room });
                }
            }
            Change::Close { address, delay, closed } => {
                if let Some(Open { id, door: _, _until, accepting }) = self.open.remove(&address) {
                    let registry = Rc::clone(&self.registry);
                    drop(_until);
                    tokio::task::spawn_local(async move {
                        let _cancelled = accepting.await;
                        drop(closed);
                        // An idle connection that is closed may meet a request: those who are told first
                        // send none.
                        registry.announce_to(id);
                        tokio::time::sleep(delay).await;
                        registry.close_of(id);
                    });
                }
            }
        }
    }

    fn open(&mut self, address: SocketAddr, socket: std::net::TcpListener, spread: Spread, door: Door) {
        let socket = match TcpListener::from_std(socket) {
            Ok(socket) => socket,
            Err(error) => return tracing::error!(%error, "a worker cannot use its listening socket"),
        };
        self.made += 1;
        let id = ListenerId(self.made);
        let door = Rc::new(RefCell::new(Rc::new(door)));
        let listener = Listener {
            id,
            context: Rc::clone(&self.context),
            registry: Rc::clone(&self.registry),
            flusher: Rc::clone(&self.flusher),
            door: Rc::clone(&door),
        };
        let mut stage = self.stage.clone();
        let (_until, mut until) = oneshot::channel();
        let end = async move {
            tokio::select! {
                // A sender that is gone means the last stage.
                _ = stage.wait_for(|stage| *stage >= Stage::Finishing) => {}
                _ = &mut until => {}
            }
        };
        let accepting = tokio::task::spawn_local(accept(listener, socket, spread, end));
        self.open.insert(address, Open { id, door, _until, accepting });
    }

    /// Waits until no more connections are taken, once that has been asked for.
    pub(super) async fn closed(&mut self) {
        for (_, Open { accepting, _until, .. }) in self.open.drain() {
            let _cancelled = accepting.await;
        }
    }
}
