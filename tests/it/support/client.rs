//! Clients: one that writes HTTP/1.1 as bytes, and one that speaks HTTP/2 through hyper.

use std::{
    net::{SocketAddr, TcpStream},
    pin::Pin,
    task::{Context, Poll},
    thread,
};

use bytes::Bytes;
use http::{Request, Response as HttpResponse};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{
    body::{Body, Frame, Incoming},
    client::conn::http2,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::runtime::{Builder, Runtime};

use super::{
    eventually::patience,
    wire::{Wire, fields},
};

/// A response as it came.
#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    /// Its head, byte for byte, without the empty line.
    pub head: String,
    pub body: Vec<u8>,
    pub trailers: String,
    /// Whether the body is complete.
    pub whole: bool,
}

impl Response {
    pub fn fields(&self, name: &str) -> Vec<&str> {
        fields(&self.head, name)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A client that writes what it is told to.
#[derive(Debug)]
pub struct Raw {
    pub wire: Wire,
}

impl Raw {
    pub fn connect(address: SocketAddr) -> Self {
        Self { wire: Wire::new(TcpStream::connect(address).expect("the proxy takes connections")) }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.wire.send(bytes)
    }

    /// Sends a GET for `target` of host `web.test` and reads the response.
    #[track_caller]
    pub fn get(&mut self, target: &str) -> Response {
        assert!(self.send(format!("GET {target} HTTP/1.1\r\nHost: web.test\r\n\r\n")));
        self.response()
    }

    /// The response to a request that was not HEAD.
    #[track_caller]
    pub fn response(&mut self) -> Response {
        self.response_to("GET")
    }

    #[track_caller]
    pub fn response_to(&mut self, method: &str) -> Response {
        self.try_response_to(method).expect("a response before the connection is closed")
    }

    /// The response, or nothing if the connection ends before its head is complete.
    pub fn try_response_to(&mut self, method: &str) -> Option<Response> {
        let head = self.wire.read_head()?;
        let status: u16 = head.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status");
        let mut response = Response { status, body: Vec::new(), trailers: String::new(), whole: true, head };
        if method == "HEAD" || status < 200 || status == 204 || status == 304 {
            return Some(response);
        }
        let length = response.fields("content-length").first().map(|l| l.parse().unwrap());
        if response.fields("transfer-encoding") == ["chunked"] {
            match self.wire.read_chunked() {
                Ok((body, trailers)) => (response.body, response.trailers) = (body, trailers),
                Err(part) => (response.body, response.whole) = (part, false),
            }
        } else if let Some(length) = length {
            response.body = self.wire.read_length(length);
            response.whole = response.body.len() == length;
        } else {
            response.body = self.wire.read_to_end();
        }
        Some(response)
    }

    /// Waits until the proxy closes; nothing more may come before that.
    #[track_caller]
    pub fn expect_end(&mut self) {
        let rest = self.wire.wait_for_end();
        assert!(rest.is_empty(), "{:?}", String::from_utf8_lossy(&rest));
    }
}

/// Sends bytes on a connection of their own and reads one response.
#[track_caller]
pub fn exchange(address: SocketAddr, request: impl AsRef<[u8]>) -> Response {
    let mut client = Raw::connect(address);
    assert!(client.send(request));
    client.response()
}

/// The status that a GET gets.
#[track_caller]
pub fn get(address: SocketAddr, target: &str) -> Response {
    Raw::connect(address).get(target)
}

/// A body of any kind.
pub type AnyBody = BoxBody<Bytes, std::convert::Infallible>;

/// A client's HTTP/2 connection.
#[derive(Debug, Clone)]
pub struct H2 {
    sender: http2::SendRequest<AnyBody>,
}

impl H2 {
    /// Connects with prior knowledge. The connection moves on a thread of its own until it ends.
    pub fn connect(address: SocketAddr) -> Self {
        let (give, take) = std::sync::mpsc::channel();
        thread::spawn(move || {
            runtime().block_on(async {
                let socket = tokio::net::TcpStream::connect(address).await.unwrap();
                let io = TokioIo::new(socket);
                let connected = http2::Builder::new(TokioExecutor::new()).handshake(io).await;
                let (sender, connection) = connected.unwrap();
                give.send(sender).unwrap();
                // However it ends, whoever waits for a response hears of it.
                let _ended = connection.await;
            });
        });
        Self { sender: take.recv().expect("the proxy takes connections") }
    }

    /// Sends a request; its response's head.
    pub async fn send(&self, request: Request<AnyBody>) -> hyper::Result<HttpResponse<Incoming>> {
        let sent = self.sender.clone().send_request(request);
        tokio::time::timeout(patience(), sent).await.expect("a response in time")
    }

    /// Sends a GET for host `web.test`; its status and body.
    pub async fn get(&self, target: &str) -> hyper::Result<(u16, Bytes)> {
        let request = h2_request("GET", target).body(empty()).unwrap();
        let response = self.send(request).await?;
        let status = response.status().as_u16();
        Ok((status, response.into_body().collect().await?.to_bytes()))
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}

pub fn h2_request(method: &str, target: &str) -> http::request::Builder {
    Request::builder().method(method).uri(format!("http://web.test{target}"))
}

pub fn empty() -> AnyBody {
    Full::default().boxed()
}

pub fn full(bytes: impl Into<Bytes>) -> AnyBody {
    Full::new(bytes.into()).boxed()
}

/// A body of given chunks, which may never end.
#[derive(Debug)]
pub struct Chunks {
    pub chunks: std::collections::VecDeque<Bytes>,
    pub ends: bool,
}

impl Body for Chunks {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.chunks.pop_front() {
            Some(chunk) => Poll::Ready(Some(Ok(Frame::data(chunk)))),
            None if self.ends => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}

pub fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}
