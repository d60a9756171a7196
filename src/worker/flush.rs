//! When an HTTP/2 connection's writes leave: together.
//!
//! Many streams of one connection finish within moments of each other, and hyper would send each
//! response with a write of its own; the write is most of what a small response costs. So what a
//! connection writes is gathered, and leaves once the worker has nothing else to do: when a turn of
//! the loop (everything that was ready, and a look at the sockets) has brought nothing new, or after
//! [`MAX_TURNS`] of them. It never waits for the loop to sleep, and never for more than
//! [`super::stream::OUTBOX`] bytes.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use tokio::sync::Notify;

use crate::proxy::client::Client;

/// Turns of the loop after which gathered bytes leave even if there is more to do.
const MAX_TURNS: u32 = 8;

/// The connections of one worker that have something to send.
#[derive(Debug)]
pub(super) struct Flusher {
    /// Counts what the worker gets done.
    pulse: Rc<Cell<u64>>,
    waiting: RefCell<Vec<Rc<Client>>>,
    begun: Notify,
}

impl Flusher {
    pub(super) fn new(pulse: Rc<Cell<u64>>) -> Self {
        Self { pulse, waiting: RefCell::default(), begun: Notify::new() }
    }

    /// A connection has something to send. It is told when ([`Client::is_flush_due`]).
    pub(super) fn add(&self, client: &Rc<Client>) {
        self.waiting.borrow_mut().push(Rc::clone(client));
        self.begun.notify_one();
    }

    /// Tells connections when to send, for as long as it is polled.
    pub(super) async fn run(&self) {
        loop {
            self.begun.notified().await;
            for _ in 0..MAX_TURNS {
                let before = self.pulse.get();
                tokio::task::yield_now().await;
                if self.pulse.get() == before {
                    break;
                }
            }
            for client in self.waiting.take() {
                client.flush_now();
            }
        }
    }
}
