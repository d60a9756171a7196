//! A backend that does what a test tells it to, over real sockets, and remembers what it saw.

use std::{
    collections::HashMap,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
};

use super::wire::{Wire, fields};

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Its head, byte for byte, without the empty line.
    pub head: String,
    pub body: Vec<u8>,
    pub trailers: String,
}

impl Seen {
    pub fn method(&self) -> &str {
        self.head.split(' ').next().unwrap()
    }

    pub fn target(&self) -> &str {
        self.head.split(' ').nth(1).unwrap()
    }

    pub fn fields(&self, name: &str) -> Vec<&str> {
        fields(&self.head, name)
    }
}

/// A connection to the backend.
#[derive(Debug)]
pub struct Peer {
    pub wire: Wire,
    number: usize,
    shared: Arc<Shared>,
}

impl Peer {
    /// A head alone; its body, if any, is still to be read. It is not remembered.
    pub fn head(&mut self) -> Option<String> {
        self.wire.read_head()
    }

    /// A whole request; nothing if the connection ends before.
    pub fn request(&mut self) -> Option<Seen> {
        let head = self.wire.read_head()?;
        let mut trailers = String::new();
        let length = fields(&head, "content-length").first().and_then(|l| l.parse().ok());
        let body = if !fields(&head, "transfer-encoding").is_empty() {
            let (body, after) = self.wire.read_chunked().ok()?;
            trailers = after;
            body
        } else {
            let length = length.unwrap_or(0);
            let body = self.wire.read_length(length);
            if body.len() < length {
                return None;
            }
            body
        };
        let seen = Seen { head, body, trailers };
        self.shared.requests.lock().unwrap().push(seen.clone());
        Some(seen)
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.wire.send(bytes)
    }

    /// Closes with a reset instead of a farewell.
    pub fn reset(self) {
        self.shared.sockets.lock().unwrap().remove(&self.number);
        self.wire.reset();
    }

    /// Waits for the proxy to close.
    pub fn wait_for_end(&mut self) {
        self.wire.wait_for_end();
    }
}

#[derive(Debug, Default)]
struct Shared {
    requests: Mutex<Vec<Seen>>,
    connections: AtomicUsize,
    /// To close those connections that are still open.
    sockets: Mutex<HashMap<usize, TcpStream>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    stopping: AtomicBool,
}

/// A running backend. When it is dropped its connections are closed, and what went wrong in its script
/// fails the test.
#[derive(Debug)]
pub struct Backend {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl Backend {
    /// Runs `script` for each connection, on a thread of its own.
    pub fn scripted(script: impl Fn(Peer) + Send + Sync + 'static) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").unwrap(), script)
    }

    /// The same on a socket that is listening already.
    pub fn on(listener: TcpListener, script: impl Fn(Peer) + Send + Sync + 'static) -> Self {
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let script = Arc::new(script);
        let acceptor = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                for socket in listener.incoming() {
                    if shared.stopping.load(SeqCst) {
                        return;
                    }
                    let socket = socket.unwrap();
                    let number = shared.connections.fetch_add(1, SeqCst);
                    shared.sockets.lock().unwrap().insert(number, socket.try_clone().unwrap());
                    let peer = Peer { wire: Wire::new(socket), number, shared: Arc::clone(&shared) };
                    let script = Arc::clone(&script);
                    let served = {
                        let shared = Arc::clone(&shared);
                        thread::spawn(move || {
                            script(peer);
                            shared.sockets.lock().unwrap().remove(&number);
                        })
                    };
                    shared.threads.lock().unwrap().push(served);
                }
            })
        };
        Self { address, shared, acceptor: Some(acceptor) }
    }

    /// Answers each request with the bytes that `answer` makes of it, and keeps connections open
    /// unless those say otherwise.
    pub fn answering(answer: impl Fn(&Seen) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self::scripted(serve(answer))
    }

    /// Answers 200 with `name` as its body.
    pub fn named(name: &'static str) -> Self {
        Self::answering(move |_| reply("200 OK", &[], name))
    }

    /// What came so far.
    pub fn requests(&self) -> Vec<Seen> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// The one request that came.
    #[track_caller]
    pub fn only_request(&self) -> Seen {
        let mut requests = self.requests();
        assert_eq!(requests.len(), 1, "{requests:#?}");
        requests.remove(0)
    }

    pub fn count(&self) -> usize {
        self.shared.requests.lock().unwrap().len()
    }

    /// How many connections were made so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(SeqCst)
    }

    /// How many connections are open.
    pub fn open(&self) -> usize {
        self.shared.sockets.lock().unwrap().len()
    }

    /// Closes every connection that is open now.
    pub fn close_connections(&self) {
        for (_, socket) in self.shared.sockets.lock().unwrap().drain() {
            // One that is closed already cannot be closed again.
            let _closed = socket.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.shared.stopping.store(true, SeqCst);
        // Wakes the acceptor.
        let _woken = TcpStream::connect(self.address);
        let accepted = self.acceptor.take().map(JoinHandle::join);
        self.close_connections();
        let threads = std::mem::take(&mut *self.shared.threads.lock().unwrap());
        let panicked = threads.into_iter().map(JoinHandle::join).chain(accepted).find_map(Result::err);
        if let Some(panic) = panicked
            && !thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

/// A script that answers each request with the bytes that `answer` makes of it.
pub fn serve(answer: impl Fn(&Seen) -> Vec<u8>) -> impl Fn(Peer) {
    move |mut peer| {
        // A connection may be idle for as long as the proxy likes.
        peer.wire.socket().set_read_timeout(None).unwrap();
        while let Some(seen) = peer.request() {
            let reply = answer(&seen);
            let closing = String::from_utf8_lossy(&reply).contains("Connection: close\r\n");
            if !peer.send(reply) || closing {
                return;
            }
        }
    }
}

/// A response as bytes, with a `Content-Length`.
pub fn reply(status: &str, fields: &[(&str, &str)], body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let mut reply = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in fields {
        reply += &format!("{name}: {value}\r\n");
    }
    reply += "\r\n";
    let mut reply = reply.into_bytes();
    reply.extend_from_slice(body);
    reply
}

/// An address that refuses connections: nobody listens there, and as the socket is bound, nobody else
/// will while it lives.
#[derive(Debug)]
pub struct Refusing {
    socket: socket2::Socket,
    pub address: SocketAddr,
}

impl Refusing {
    pub fn new() -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        Self { socket, address }
    }

    /// Begins to listen, as a backend that answers 200 with its name.
    pub fn open(self, name: &'static str) -> Backend {
        self.socket.listen(128).unwrap();
        Backend::on(self.socket.into(), serve(move |_| reply("200 OK", &[], name)))
    }
}

/// An address that neither takes nor refuses connections: its queue is full, and nobody empties it.
#[derive(Debug)]
pub struct Unaccepting {
    pub address: SocketAddr,
    _listener: socket2::Socket,
    _queued: Vec<socket2::Socket>,
}

impl Unaccepting {
    pub fn new() -> Self {
        let socket = || socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let listener = socket();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let queued = (0..8).map(|_| {
            let queued = socket();
            queued.set_nonblocking(true).unwrap();
            // The first is taken into the queue; the others wait for a place in it.
            let _waits = queued.connect(&address);
            queued
        });
        let queued = queued.collect();
        Self { address: address.as_socket().unwrap(), _listener: listener, _queued: queued }
    }
}
