//! Taking connections off a listening socket.

use std::{io, net::SocketAddr, rc::Rc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};

use super::{
    connection::serve,
    drain::{Registry, Stage},
    flush::Flusher,
    handshake::{self, Accepted, Entrance},
    stream::Stream,
};
use crate::{
    net::listen::stop_queueing,
    proxy::{
        client::{Client, Patience},
        context::Context,
    },
};

/// How long to wait after an error that the next call would only repeat (descriptors exhausted).
const BACK_OFF: Duration = Duration::from_millis(50);

/// Accepts connections until the worker finishes, and then those that the kernel has already taken
/// for us: closing the socket would reset them.
pub(super) async fn accept(
    context: Rc<Context>,
    registry: Rc<Registry>,
    flusher: Rc<Flusher>,
    listener: TcpListener,
    patience: Patience,
    entrance: Rc<Entrance>,
    mut stage: watch::Receiver<Stage>,
) {
    let admit = |socket, address| {
        let pulse = Rc::clone(context.pulse());
        let client = Rc::new(Client::new(address, patience, context.timers().deadline(), pulse));
        // Here and not in the task, so that a worker never looks empty with connections yet to start.
        let registered = registry.enter(&client, &context);
        let (context, flusher) = (Rc::clone(&context), Rc::clone(&flusher));
        if entrance.is_open() {
            let stream = Stream::new(socket, Rc::clone(&client), flusher);
            tokio::task::spawn_local(serve(None, context, client, registered, stream));
        } else {
            let accepted = Accepted { socket, address, client, registered };
            tokio::task::spawn_local(handshake::serve(Rc::clone(&entrance), context, flusher, accepted));
        }
    };
    let mut failing = false;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stage.wait_for(|stage| *stage >= Stage::Finishing) => break,
        };
        match accepted {
            Ok((socket, address)) => {
                failing = false;
                admit(socket, address);
            }
            // The client was gone before we looked.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                context.cells().accept_errors.add(1);
                if !std::mem::replace(&mut failing, true) {
                    tracing::error!(%error, "cannot accept connections (is the limit of open files too low?)");
                }
                tokio::time::sleep(BACK_OFF).await;
            }
        }
    }
    if let Err(error) = accept_rest(listener, admit) {
        tracing::warn!(%error, "connections that were still queued may have been reset");
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
