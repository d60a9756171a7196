//! The service of `tests/peers/grpc_peer.py` by tonic, a server and a client: the same calls, so that
//! either's client can be set on either's server. Messages are bytes, so there is no generated code.

use std::{convert::Infallible, net::SocketAddr, pin::Pin, thread, time::Duration};

use bytes::{Buf, BufMut, Bytes};
use http::uri::PathAndQuery;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::{Stream, StreamExt, iter, wrappers::ReceiverStream};
use tonic::{
    Code, Request, Response, Status, Streaming,
    body::Body,
    client,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    metadata::MetadataMap,
    server,
    transport::{Channel, Endpoint, Server, server::TcpIncoming},
};
use tower::service_fn;

use super::client::runtime;

/// Messages as they are.
#[derive(Debug, Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put(message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

const SERVICE: &str = "/tidegate.Test/";

type Messages = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

/// A running server.
#[derive(Debug)]
pub struct TonicServer {
    pub address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl TonicServer {
    pub fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let thread = thread::spawn(move || {
            runtime().block_on(async {
                let incoming = TcpIncoming::from(tokio::net::TcpListener::from_std(listener).unwrap());
                tokio::select! {
                    served = Server::builder().serve_with_incoming(service_fn(answer), incoming) => {
                        served.unwrap();
                    }
                    _ = stopped => {}
                }
            });
        });
        Self { address, stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for TonicServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(Err(panic)) = self.thread.take().map(thread::JoinHandle::join)
            && !thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

async fn answer(request: http::Request<Body>) -> Result<http::Response<Body>, Infallible> {
    let mut grpc = server::Grpc::new(Raw);
    let method = request.uri().path().strip_prefix(SERVICE).unwrap_or_default().to_owned();
    Ok(match method.as_str() {
        "Echo" => grpc.unary(service_fn(echo), request).await,
        "Count" => grpc.server_streaming(service_fn(count), request).await,
        "Join" => grpc.client_streaming(service_fn(join), request).await,
        "Chat" => grpc.streaming(service_fn(chat), request).await,
        _ => Status::unimplemented("there is no such method").into_http(),
    })
}

/// What every answer carries, in its head or behind it.
fn metadata() -> MetadataMap {
    let mut metadata = MetadataMap::new();
    metadata.insert("x-trailer", "t".parse().unwrap());
    metadata
}

async fn echo(request: Request<Bytes>) -> Result<Response<Bytes>, Status> {
    let (asked, _, message) = request.into_parts();
    if let Some(code) = asked.get("x-fail") {
        let code = if code == "NOT_FOUND" { Code::NotFound } else { Code::Unavailable };
        return Err(Status::with_metadata(code, "as asked", metadata()));
    }
    let message = match &message[..] {
        b"hang" => std::future::pending().await,
        b"deadline" => seconds(asked.get("grpc-timeout").unwrap().to_str().unwrap()).to_string().into(),
        _ => message,
    };
    Ok(Response::from_parts(metadata(), message, http::Extensions::new()))
}

fn seconds(timeout: &str) -> f64 {
    let (digits, unit) = timeout.split_at(timeout.len() - 1);
    let unit = match unit {
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "S" => 1.0,
        other => panic!("{other}"),
    };
    digits.parse::<f64>().unwrap() * unit
}

async fn count(request: Request<Bytes>) -> Result<Response<Messages>, Status> {
    let many: u32 = str::from_utf8(request.get_ref()).unwrap().parse().unwrap();
    let fails = request.metadata().get("x-fail").map(|_| Err(Status::internal("after all")));
    let messages = (0..many).map(|i| Ok(i.to_string().into()));
    Ok(Response::new(Box::pin(iter(messages.chain(fails)))))
}

async fn join(request: Request<Streaming<Bytes>>) -> Result<Response<Bytes>, Status> {
    let mut messages = request.into_inner();
    let mut joined = Vec::new();
    while let Some(message) = messages.message().await? {
        joined.extend(message);
    }
    Ok(Response::new(joined.into()))
}

async fn chat(request: Request<Streaming<Bytes>>) -> Result<Response<Messages>, Status> {
    let answers = request.into_inner().map(|question| Ok([b"re: ", &question?[..]].concat().into()));
    Ok(Response::new(Box::pin(answers)))
}

/// Makes calls of every shape, which have to end as they should.
pub fn check(address: SocketAddr) {
    runtime().block_on(async {
        let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        let mut client = Client(client::Grpc::new(channel));
        client.unary_calls().await;
        client.streams().await;
        client.failures().await;
        client.deadlines().await;
    });
}

struct Client(client::Grpc<Channel>);

fn path(method: &str) -> PathAndQuery {
    format!("{SERVICE}{method}").parse().unwrap()
}

fn failing(code: &'static str) -> Request<Bytes> {
    let mut request = Request::new("3".into());
    request.metadata_mut().insert("x-fail", code.parse().unwrap());
    request
}

impl Client {
    async fn unary(&mut self, method: &str, request: Request<Bytes>) -> Result<Response<Bytes>, Status> {
        self.0.ready().await.unwrap();
        self.0.unary(request, path(method), Raw).await
    }

    async fn unary_calls(&mut self) {
        let large: Vec<u8> = (0..=255).cycle().take(2_000_000).collect();
        for message in [b"hello".to_vec(), Vec::new(), large] {
            let response = self.unary("Echo", Request::new(message.clone().into())).await.unwrap();
            assert_eq!(response.metadata().get("x-trailer").unwrap(), "t");
            assert!(response.into_inner() == message);
        }
    }

    async fn streams(&mut self) {
        self.0.ready().await.unwrap();
        let counted = self.0.server_streaming(Request::new("100".into()), path("Count"), Raw).await.unwrap();
        let counted: Result<Vec<Bytes>, _> = counted.into_inner().collect().await;
        assert!(counted.unwrap().into_iter().eq((0..100).map(|i| Bytes::from(i.to_string()))));

        let messages = iter(["a", "b", "c"].map(Bytes::from));
        self.0.ready().await.unwrap();
        let joined = self.0.client_streaming(Request::new(messages), path("Join"), Raw).await.unwrap();
        assert_eq!(joined.into_inner(), "abc");

        // One answer is awaited before the next question is asked.
        let (ask, questions) = mpsc::channel(1);
        self.0.ready().await.unwrap();
        let chat = self.0.streaming(Request::new(ReceiverStream::new(questions)), path("Chat"), Raw);
        ask.send(Bytes::from("0")).await.unwrap();
        let mut answers = chat.await.unwrap().into_inner();
        for i in 0..10 {
            assert_eq!(answers.message().await.unwrap().unwrap(), format!("re: {i}"));
            ask.send(Bytes::from((i + 1).to_string())).await.unwrap();
        }
        drop(ask);
        assert_eq!(answers.message().await.unwrap().unwrap(), "re: 10");
        assert_eq!(answers.message().await.unwrap(), None);
    }

    async fn failures(&mut self) {
        for (name, code) in [("NOT_FOUND", Code::NotFound), ("UNAVAILABLE", Code::Unavailable)] {
            let status = self.unary("Echo", failing(name)).await.unwrap_err();
            assert_eq!((status.code(), status.message()), (code, "as asked"));
            assert_eq!(status.metadata().get("x-trailer").unwrap(), "t");
        }
        self.0.ready().await.unwrap();
        let counted = self.0.server_streaming(failing("INTERNAL"), path("Count"), Raw).await.unwrap();
        let counted: Vec<Result<Bytes, Status>> = counted.into_inner().collect().await;
        assert_eq!(counted.len(), 4);
        assert_eq!(counted[3].as_ref().unwrap_err().code(), Code::Internal);
        let status = self.unary("Gone", Request::new(Bytes::new())).await.unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented);
    }

    async fn deadlines(&mut self) {
        let mut request = Request::new("deadline".into());
        request.set_timeout(Duration::from_secs(20));
        let left = self.unary("Echo", request).await.unwrap().into_inner();
        let left: f64 = str::from_utf8(&left).unwrap().parse().unwrap();
        assert!(left > 10.0 && left < 21.0, "{left} s are left of 20");
        let mut request = Request::new("hang".into());
        request.set_timeout(Duration::from_millis(300));
        let status = self.unary("Echo", request).await.unwrap_err();
        // tonic's own client and server say CANCELLED, if they notice first.
        assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status}");
    }
}
