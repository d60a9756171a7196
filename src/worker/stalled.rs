//! Streams of an HTTP/2 connection whose client takes nothing of them.
//!
//! Flow control lets a client stop one stream while others go on. The socket never blocks then, so the
//! connection looks well, and the stream would hold its backend's connection for ever. hyper keeps the
//! chunk that it has been given until there is room (WINDOW_UPDATE), and asks the body for nothing
//! meanwhile: so a stream whose body gave something when it was asked last waits for its client. It is
//! reset after as long as a connection may be idle, which is also what a client of HTTP/1.1 has.
//!
//! Not seen here: the rest of a chunk of which the client has taken a part. It is in h2's hands, bounded
//! by a chunk for each stream, and no backend waits for it.

use std::{
    pin::Pin,
    rc::Rc,
    task::{Context as Task, Poll},
};

use hyper::rt::Executor;
use pin_project_lite::pin_project;

use crate::{
    net::timers::Deadline,
    proxy::{
        client::{Asked, Client},
        context::Context,
    },
};

/// Runs the streams of one connection, and gives up those whose client takes nothing.
#[derive(Debug, Clone)]
pub(super) struct Streams {
    client: Rc<Client>,
    context: Rc<Context>,
}

impl Streams {
    pub(super) fn new(client: &Rc<Client>, context: &Rc<Context>) -> Self {
        Self { client: Rc::clone(client), context: Rc::clone(context) }
    }
}

impl<F: Future<Output = ()> + 'static> Executor<F> for Streams {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(Watched { future, streams: self.clone(), deadline: None });
    }
}

pin_project! {
    /// One stream. It is reset when this ends before the response has.
    struct Watched<F> {
        #[pin]
        future: F,
        streams: Streams,
        // Made when the client keeps the stream waiting for the first time.
        deadline: Option<Deadline>,
    }
}

impl<F: Future<Output = ()>> Future for Watched<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<()> {
        let this = self.project();
        let Streams { client, context } = this.streams;
        let _of_another = client.take_asked();
        if this.future.poll(task).is_ready() {
            return Poll::Ready(());
        }
        match (client.take_asked(), &this.deadline) {
            (Some(Asked::Gave), _) => {
                let deadline = this.deadline.get_or_insert_with(|| context.timers().deadline());
                deadline.arm(client.idle_timeout());
            }
            (Some(Asked::HadNothing), Some(deadline)) => deadline.disarm(),
            _ => {}
        }
        this.deadline.as_ref().map_or(Poll::Pending, |deadline| deadline.poll_expired(task))
    }
}
