//! Serving one client connection, HTTP/1.1 or HTTP/2, to its end.

use std::{convert::Infallible, future::poll_fn, num::NonZeroU16, pin::Pin, rc::Rc, task::Poll};

use http::{Request, Response};
use hyper::{
    body::Incoming,
    rt::{Read, Write},
    server::conn::{http1, http2},
    service::{Service, service_fn},
};
use hyper_util::rt::TokioIo;

use super::{
    drain::Registered,
    stalled::Streams,
    stream::{Protocol, Stream},
};
use crate::{
    proxy::{
        body::ResponseBody,
        client::{Client, Overdue},
        context::Context,
        exchange::exchange,
        redirect,
    },
    telemetry::local_reason::LocalReason,
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
/// Fields that hyper has room for without asking for memory.
const USUAL_HEADERS: usize = 100;
/// Streams that a client may reset before we have looked at them (CVE-2023-44487).
const MAX_RESET_BEFORE_ACCEPT: usize = 20;
/// Streams that we may have to reset for a client's mistakes (CVE-2025-8671). Streams beyond
/// [`MAX_STREAMS`] are among them, which an honest client may open before it has read that number.
const MAX_RESET_FOR_ERRORS: usize = 1024;

/// Serves a connection until it ends: closed by the client, idle for too long, or drained.
/// `known` is what the client speaks, if it has been agreed on already.
pub(super) async fn serve(
    known: Option<Protocol>,
    context: Rc<Context>,
    client: Rc<Client>,
    _registered: Registered,
    mut stream: Box<Stream>,
) {
    let protocol = match known {
        Some(protocol) => protocol,
        None => match stream.detect().await {
            Some(protocol) => protocol,
            None => return,
        },
    };
    let service = {
        let (client, context) = (Rc::clone(&client), Rc::clone(&context));
        service_fn(move |request| exchange(Rc::clone(&context), &client, request))
    };
    run(protocol, stream, service, &client, &context).await;
}

/// Serves a connection whose client is only sent to HTTPS, on this port.
pub(super) async fn redirect(
    context: Rc<Context>,
    client: Rc<Client>,
    _registered: Registered,
    mut stream: Box<Stream>,
    port: NonZeroU16,
) {
    let Some(protocol) = stream.detect().await else { return };
    let service = {
        let (client, context) = (Rc::clone(&client), Rc::clone(&context));
        service_fn(move |request| redirect::redirect(&context, &client, request, port))
    };
    run(protocol, stream, service, &client, &context).await;
}

/// Lets hyper call a service for each request of a connection.
async fn run<S>(
    protocol: Protocol,
    stream: Box<Stream>,
    service: S,
    client: &Rc<Client>,
    context: &Rc<Context>,
) where
    S: Service<Request<Incoming>, Response = Response<ResponseBody>, Error = Infallible>,
    S::Future: 'static,
{
    let mut io = TokioIo::new(stream);
    let edge = client.edge();
    match protocol {
        Protocol::Http1 => {
            let mut builder = http1::Builder::new();
            // Kept by the client's deadline, which costs no timer.
            builder.header_read_timeout(None).max_buf_size(MAX_BUFFER).max_header_size(edge.max_header_bytes);
            if edge.max_headers > USUAL_HEADERS {
                builder.max_headers(edge.max_headers);
            }
            loop {
                // Boxed, so that it is gone while the connection rests.
                let mut connection = Box::new(builder.serve_connection(io, &service));
                let finish = |connection: Pin<&mut _>| http1::Connection::graceful_shutdown(connection);
                let end = drive(Pin::new(&mut *connection), finish, client, context).await;
                let switched = client.take_switched();
                let http1::Parts { io: socket, read_buf, .. } = parts(connection);
                let mut stream = socket.into_inner();
                match (end, switched) {
                    (End::Whole, Some(switched)) => {
                        let (transport, early) = stream.into_transport(read_buf);
                        // Seldom, so its size is not carried by every connection.
                        return Box::pin(switched.run(transport, early)).await;
                    }
                    (End::Rest, _) if stream.rest(read_buf).await => io = TokioIo::new(stream),
                    _ => return,
                }
            }
        }
        Protocol::Http2 => {
            client.set_multiplexed();
            let connection = http2::Builder::new(Streams::new(client, context))
                .max_concurrent_streams(MAX_STREAMS)
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_send_buf_size(MAX_SEND_BUFFER)
                .max_header_list_size(u32::try_from(edge.max_header_bytes).unwrap_or(u32::MAX))
                .max_pending_accept_reset_streams(MAX_RESET_BEFORE_ACCEPT)
                .max_local_error_reset_streams(MAX_RESET_FOR_ERRORS)
                .enable_connect_protocol()
                .serve_connection(io, service);
            // Boxed, or a connection of HTTP/1.1 would take as much.
            drive(
                Box::pin(connection).as_mut(),
                |connection| connection.graceful_shutdown(),
                client,
                context,
            )
            .await;
        }
    }
}

/// What is left of a connection, without the memory that it was in: a box that is only moved out of keeps
/// that for as long as its name is in scope, which is all the while that the connection rests.
#[expect(clippy::boxed_local, reason = "to be freed here is what it is for")]
fn parts<I, S>(connection: Box<http1::Connection<I, S>>) -> http1::Parts<I, S>
where
    I: Read + Write + Unpin,
    S: Service<Request<Incoming>, Response = Response<ResponseBody>, Error = Infallible>,
{
    connection.into_parts()
}

/// How the driving of a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Of itself and well.
    Whole,
    /// It broke, or took too long.
    Cut,
    /// It has been idle for a while. hyper keeps two buffers for each connection, which are most of what
    /// it takes, and needs neither to wait.
    Rest,
}

/// Runs a connection until it ends, comes to rest, or the client's patience ends; asks it once to finish
/// when the worker drains.
async fn drive<C: Future<Output = hyper::Result<()>>>(
    mut connection: Pin<&mut C>,
    finish: impl Fn(Pin<&mut C>),
    client: &Client,
    context: &Context,
) -> End {
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
                Ok(()) => End::Whole,
                Err(error) => {
                    // hyper has answered what is no request, and nobody else would count it.
                    if error.is_parse_too_large() {
                        context.cells().replied(LocalReason::HeadTooLarge);
                    } else if error.is_parse() {
                        context.cells().replied(LocalReason::BadRequest);
                    }
                    tracing::debug!(%error, "connection ended");
                    End::Cut
                }
            });
        }
        if client.poll_overdue(cx).is_pending() {
            return Poll::Pending;
        }
        match client.overdue() {
            Overdue::Rest => return Poll::Ready(End::Rest),
            Overdue::Wait => return client.poll_overdue(cx).map(|()| End::Cut),
            Overdue::End => {}
        }
        // An HTTP/2 client is told which requests were taken (GOAWAY); if it does not go, it is cut.
        if client.is_multiplexed() && !client.is_closing() {
            client.close();
            client.wait_for_farewell();
            return Poll::Pending;
        }
        Poll::Ready(End::Cut)
    })
    .await
}
