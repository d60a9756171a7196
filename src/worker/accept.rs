//! Taking connections off a listening socket, and from workers that have too many.

use std::{cell::RefCell, io, net::SocketAddr, pin::pin, rc::Rc, sync::Arc, time::Duration};

use tokio::net::{TcpListener, TcpStream};

use super::{
    connection::serve,
    drain::{ListenerId, Registry},
    flush::Flusher,
    handshake::{self, Accepted, Door, introduce, observe},
    spread::{Moved, Spread},
    stream::Stream,
};
use crate::{
    net::listen::stop_queueing,
    proxy::{client::Client, context::Context},
};

/// How long to wait after an error that the next call would only repeat (descriptors exhausted).
const BACK_OFF: Duration = Duration::from_millis(50);

/// One of a worker's listeners.
pub(super) struct Listener {
    pub(super) id: ListenerId,
    pub(super) context: Rc<Context>,
    pub(super) registry: Rc<Registry>,
    pub(super) flusher: Rc<Flusher>,
    /// What the next connection finds.
    pub(super) door: Rc<RefCell<Rc<Door>>>,
}

/// Accepts connections until `end`, and then those that the kernel has already taken for us: closing the
/// socket would reset them.
pub(super) async fn accept(
    listener: Listener,
    socket: TcpListener,
    mut spread: Spread,
    end: impl Future<Output = ()>,
) {
    let Listener { id, context, registry, flusher, door } = listener;
    let mut end = pin!(end);
    let admit = |socket, address, place, counted| {
        let door = Rc::clone(&door.borrow());
        let Some(visit) = door.enter(address) else {
            context.cells().connections_refused.add(1);
            return;
        };
        let (edge, pulse) = (Arc::clone(door.room.edge()), Rc::clone(context.pulse()));
        let client = Rc::new(Client::new(address, door.patience, edge, context.timers().deadline(), pulse));
        // Here and not in the task, so that a worker never looks empty with connections yet to start.
        let registered = registry.enter(id, &client, &context);
        let (context, flusher) = (Rc::clone(&context), Rc::clone(&flusher));
        // Boxed, because tokio moves a task about when it begins and when it ends, and these are large.
        if door.entrance.is_open() {
            introduce(&context, &client, || observe(address, &socket));
            let stream = Stream::new(socket, Rc::clone(&client), flusher);
            tokio::task::spawn_local(Box::pin(async move {
                let _until_it_ends = (place, counted, visit);
                serve(None, context, client, registered, stream).await;
            }));
        } else {
            let accepted = Accepted { socket, address, client, registered, visit };
            tokio::task::spawn_local(Box::pin(async move {
                let _until_it_ends = (place, counted);
                handshake::serve(door, context, flusher, accepted).await;
            }));
        }
    };
    let arrive = |Moved { socket, address, place, counted }| match TcpStream::from_std(socket) {
        Ok(socket) => admit(socket, address, place, counted),
        Err(error) => {
            context.cells().accept_errors.add(1);
            tracing::warn!(%error, "a connection that another worker handed over is lost");
        }
    };
    let mut failing = false;
    loop {
        let accepted = tokio::select! {
            accepted = async {
                let room = Rc::clone(&door.borrow());
                let place = room.room.place().await;
                socket.accept().await.map(|(socket, address)| (socket, address, place))
            } => accepted,
            Some(moved) = spread.arrival() => {
                arrive(moved);
                continue;
            }
            () = &mut end => break,
        };
        let error = match accepted {
            Ok((socket, address, place)) => {
                failing = false;
                let counted = spread.count();
                if spread.is_ours(&counted) {
                    admit(socket, address, place, counted);
                    continue;
                }
                match socket.into_std() {
                    Ok(socket) => {
                        let moved = Moved { socket, address, place, counted };
                        if let Err(ours) = spread.hand_over(moved) {
                            arrive(ours);
                        }
                        continue;
                    }
                    Err(error) => error,
                }
            }
            // The client was gone before we looked.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => error,
        };
        context.cells().accept_errors.add(1);
        if !std::mem::replace(&mut failing, true) {
            tracing::error!(%error, "cannot accept connections (is the limit of open files too low?)");
        }
        tokio::time::sleep(BACK_OFF).await;
    }
    // As many as there is room for, or not: these the kernel has already taken.
    if let Err(error) =
        accept_rest(socket, |socket, address| admit(socket, address, None, spread.count_here()))
    {
        tracing::warn!(%error, "connections that were still queued may have been reset");
    }
    spread.close();
    while let Some(moved) = spread.arrival().await {
        arrive(moved);
    }
}

/// Accepts what is queued, and closes the socket.
fn accept_rest(listener: TcpListener, admit: impl Fn(TcpStream, SocketAddr)) -> io::Result<()> {
    stop_queueing(&listener)?;
    let listener = listener.into_std()?;
    loop {
        match listener.accept() {
            Ok((socket, address)) => {
                socket.set_nonblocking(true)?;
                admit(TcpStream::from_std(socket)?, address);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => return Err(error),
        }
    }
}
