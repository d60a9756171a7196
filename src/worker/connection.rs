//! Serving one client connection, HTTP/1.1 or HTTP/2, to its end.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    rc::Rc,
    task::Poll,
};

use hyper::{
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::TokioIo;

use super::{
    drain::Registered,
    stream::{Protocol, Stream},
};
use crate::{
    net::executor::LocalExecutor,
    proxy::{client::Client, context::Context, exchange::exchange},
};

/// Bytes that one HTTP/1.1 connection may hold of a request (its head included), and as many of a
/// response.
const MAX_BUFFER: usize = 64 * 1024;
/// Requests that one HTTP/2 connection may have at a time.
const MAX_STREAMS: u32 = 128;
/// Bytes that a client may send on one stream before we have passed them on.
const STREAM_WINDOW: u32 = 256 * 1024;
/// The same for a connection; four times the stream's, since equal ones can lock each other out.
const CONNECTION_WINDOW: u32 = 4 * STREAM_WINDOW;
/// Bytes that one stream may hold for a client that does not read.
const MAX_SEND_BUFFER: usize = 64 * 1024;
/// Bytes of an HTTP/2 request's fields.
const MAX_HEADER_LIST: u32 = 32 * 1024;

/// Serves a connection until it ends: closed by the client, idle for too long, or drained.
pub(super) async fn serve(
    context: Rc<Context>,
    client: Rc<Client>,
    _registered: Registered,
    mut stream: Stream,
) {
    let Some(protocol) = stream.detect().await else { return };
    let service = {
        let client = Rc::clone(&client);
        service_fn(move |request| exchange(Rc::clone(&context), &client, request))
    };
    let io = TokioIo::new(stream);
    match protocol {
        Protocol::Http1 => {
            let mut connection = http1::Builder::new()
                // Kept by the client's deadline, which costs no timer.
                .header_read_timeout(None)
                .max_buf_size(MAX_BUFFER)
                .serve_connection(io, service);
            let finish = |connection: Pin<&mut _>| http1::Connection::graceful_shutdown(connection);
            let whole = drive(Pin::new(&mut connection), finish, &client).await;
            if let Some(switched) = client.take_switched()
                && whole
            {
                let http1::Parts { io, read_buf, .. } = connection.into_parts();
                let (socket, early) = io.into_inner().into_socket(read_buf);
                // Seldom, so its size is not carried by every connection.
                Box::pin(switched.run(socket, early)).await;
            }
        }
        Protocol::Http2 => {
            client.set_multiplexed();
            let connection = http2::Builder::new(LocalExecutor)
                .max_concurrent_streams(MAX_STREAMS)
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_send_buf_size(MAX_SEND_BUFFER)
                .max_header_list_size(MAX_HEADER_LIST)
                .enable_connect_protocol()
                .serve_connection(io, service);
            drive(pin!(connection), |connection| connection.graceful_shutdown(), &client).await;
        }
    }
}

/// Runs a connection until it ends or the client's patience does; asks it once to finish when the
/// worker drains. Returns whether it ended of itself and well.
async fn drive<C: Future<Output = hyper::Result<()>>>(
    mut connection: Pin<&mut C>,
    finish: impl Fn(Pin<&mut C>),
    client: &Client,
) -> bool {
    let mut asked = false;
    poll_fn(|cx| {
        client.register(cx);
        let mut polled = connection.as_mut().poll(cx);
        // Only after a look at what has come: an idle connection is closed at once, and a request that
        // waits in the socket would be lost. One that has not had its first request gets a moment.
        if polled.is_pending() && client.is_closing() && !asked && !client.is_fresh() {
            asked = true;
            finish(connection.as_mut());
            polled = connection.as_mut().poll(cx);
        }
        if let Poll::Ready(result) = polled {
            return Poll::Ready(match result {
                Ok(()) => true,
                Err(error) => {
                    tracing::debug!(%error, "connection ended");
                    false
                }
            });
        }
        if client.poll_overdue(cx).is_pending() {
            return Poll::Pending;
        }
        // An HTTP/2 client is told which requests were taken (GOAWAY); if it does not go, it is cut.
        if client.is_multiplexed() && !client.is_closing() {
            client.close();
            client.wait_for_farewell();
            return Poll::Pending;
        }
        Poll::Ready(false)
    })
    .await
}
