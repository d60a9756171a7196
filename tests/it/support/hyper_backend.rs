//! A backend that speaks HTTP/2, or HTTP/1.1, through hyper: for what is said, not for how it is written.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, request};
use http_body_util::BodyExt;
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
};
use tokio_rustls::TlsAcceptor;

use super::client::{AnyBody, full, runtime};

/// A request as it came, whole.
#[derive(Debug, Clone)]
pub struct SeenWhole {
    pub head: request::Parts,
    pub body: Bytes,
    pub trailers: Option<HeaderMap>,
}

/// What a backend is like.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// It speaks HTTP/1.1, and has no other limits.
    pub http1: bool,
    /// Streams that a connection may have.
    pub streams: u32,
    /// Whether it takes extended CONNECT.
    pub connect: bool,
    /// Requests after which a connection says that it leaves.
    pub requests: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { http1: false, streams: 100, connect: true, requests: usize::MAX }
    }
}

/// A running backend.
#[derive(Debug)]
pub struct HyperBackend {
    pub address: SocketAddr,
    connections: Arc<AtomicUsize>,
    requests: Arc<Mutex<Vec<SeenWhole>>>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl HyperBackend {
    /// Answers each request, before its body is read, with what `answer` makes of it.
    pub fn serving<F>(limits: Limits, answer: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Response<AnyBody>> + Send + 'static,
    {
        Self::serving_on(std::net::TcpListener::bind("127.0.0.1:0").unwrap(), limits, answer)
    }

    /// The same on a socket that listens already: who has connected before gets its first byte now.
    pub fn serving_on<F>(
        listener: std::net::TcpListener,
        limits: Limits,
        answer: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Response<AnyBody>> + Send + 'static,
    {
        Self::run(listener, None, limits, answer)
    }

    /// The same with TLS.
    pub fn serving_tls<F>(
        tls: ServerConfig,
        limits: Limits,
        answer: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Response<AnyBody>> + Send + 'static,
    {
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        Self::run(std::net::TcpListener::bind("127.0.0.1:0").unwrap(), Some(acceptor), limits, answer)
    }

    fn run<F>(
        listener: std::net::TcpListener,
        tls: Option<TlsAcceptor>,
        limits: Limits,
        answer: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Response<AnyBody>> + Send + 'static,
    {
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let (stop, mut stopped) = watch::channel(false);
        let connections = Arc::<AtomicUsize>::default();
        let (count, answer) = (Arc::clone(&connections), Arc::new(answer));
        let thread = thread::spawn(move || {
            runtime().block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                loop {
                    let (socket, _) = tokio::select! {
                        accepted = listener.accept() => accepted.unwrap(),
                        _ = stopped.wait_for(|stopped| *stopped) => return,
                    };
                    count.fetch_add(1, SeqCst);
                    let (answer, tls) = (Arc::clone(&answer), tls.clone());
                    tokio::spawn(async move {
                        match tls {
                            None => connection(limits, socket, answer).await,
                            // One that fails, the other side sees.
                            Some(tls) => {
                                if let Ok(stream) = tls.accept(socket).await {
                                    connection(limits, stream, answer).await;
                                }
                            }
                        }
                    });
                }
            });
        });
        Self { address, connections, requests: Arc::default(), stop, thread: Some(thread) }
    }

    /// Reads each request whole, and answers with what `answer` makes of it.
    pub fn answering(
        limits: Limits,
        answer: impl Fn(&SeenWhole) -> Response<AnyBody> + Send + Sync + 'static,
    ) -> Self {
        let requests = Arc::<Mutex<Vec<SeenWhole>>>::default();
        let (seen, answer) = (Arc::clone(&requests), Arc::new(answer));
        let serve = move |request: Request<Incoming>| {
            let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
            async move {
                let (head, body) = request.into_parts();
                let Ok(body) = body.collect().await else { return Response::new(full("broken")) };
                let trailers = body.trailers().cloned();
                let request = SeenWhole { head, body: body.to_bytes(), trailers };
                let response = answer(&request);
                seen.lock().unwrap().push(request);
                response
            }
        };
        let mut backend = Self::serving(limits, serve);
        backend.requests = requests;
        backend
    }

    pub fn requests(&self) -> Vec<SeenWhole> {
        self.requests.lock().unwrap().clone()
    }

    pub fn connections(&self) -> usize {
        self.connections.load(SeqCst)
    }
}

async fn connection<F>(
    limits: Limits,
    socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    answer: Arc<impl Fn(Request<Incoming>) -> F + Send + Sync + 'static>,
) where
    F: Future<Output = Response<AnyBody>> + Send + 'static,
{
    let (served, mut serving) = watch::channel(0);
    let service = service_fn(move |request| {
        served.send_modify(|served| *served += 1);
        let answering = answer(request);
        async move { Ok::<_, Infallible>(answering.await) }
    });
    if limits.http1 {
        let _ended = http1::Builder::new().serve_connection(TokioIo::new(socket), service).await;
        return;
    }
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.max_concurrent_streams(limits.streams);
    if limits.connect {
        builder.enable_connect_protocol();
    }
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(socket), service));
    tokio::select! {
        // What comes of it, the other side sees.
        _ = &mut connection => return,
        _ = serving.wait_for(|served| *served >= limits.requests) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ended = connection.await;
}

impl Drop for HyperBackend {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join)
            && !thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}
