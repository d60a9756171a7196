//! The end of a worker: clients are asked to go, then no more are let in, then those that are left
//! may finish, then they may not.

use std::{
    cell::{Cell, RefCell},
    rc::{Rc, Weak},
};

use slab::Slab;
use tokio::sync::Notify;

use crate::proxy::{client::Client, context::Context};

/// How far a worker is on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Stage {
    /// Serving.
    #[default]
    Serving,
    /// Still accepting, but each HTTP/1.1 response asks the client to close.
    Announcing,
    /// Not accepting; idle connections are closed, busy ones finish.
    Finishing,
    /// Whatever is left is cut.
    Cutting,
}

/// One listener among all that a worker has had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ListenerId(pub(super) u32);

/// The connections of one worker.
#[derive(Debug, Default)]
pub(super) struct Registry {
    clients: RefCell<Slab<(ListenerId, Weak<Client>)>>,
    closing: Cell<bool>,
    left: Notify,
}

impl Registry {
    /// A connection begins; it lasts until the returned guard is dropped.
    pub(super) fn enter(
        self: &Rc<Self>,
        listener: ListenerId,
        client: &Rc<Client>,
        context: &Rc<Context>,
    ) -> Registered {
        context.cells().connections_accepted.add(1);
        context.cells().connections_open.add(1);
        if self.closing.get() {
            client.close();
        }
        let key = self.clients.borrow_mut().insert((listener, Rc::downgrade(client)));
        Registered { registry: Rc::clone(self), context: Rc::clone(context), key }
    }

    /// Asks every connection, those to come included, to end after the exchanges that are on.
    pub(super) fn close_all(&self) {
        self.closing.set(true);
        self.each(|_| true, Client::close);
    }

    /// Asks every connection of a listener to end after the exchange that is on.
    pub(super) fn close_of(&self, listener: ListenerId) {
        self.each(|of| of == listener, Client::close);
    }

    /// Asks the clients of a listener to go, each with its next response.
    pub(super) fn announce_to(&self, listener: ListenerId) {
        self.each(|of| of == listener, Client::use_up);
    }

    fn each(&self, which: impl Fn(ListenerId) -> bool, ask: impl Fn(&Client)) {
        for (_, (listener, client)) in self.clients.borrow().iter() {
            if let Some(client) = client.upgrade().filter(|_| which(*listener)) {
                ask(&client);
            }
        }
    }

    /// Waits until no connection is left.
    pub(super) async fn emptied(&self) {
        while !self.clients.borrow().is_empty() {
            self.left.notified().await;
        }
    }
}

/// A connection is on while this lives.
pub(super) struct Registered {
    registry: Rc<Registry>,
    context: Rc<Context>,
    key: usize,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.context.cells().connections_open.sub_one();
        self.registry.clients.borrow_mut().remove(self.key);
        self.registry.left.notify_one();
    }
}
