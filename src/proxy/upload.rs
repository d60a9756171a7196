//! A request's body on its way to a backend. It is never collected: a chunk is passed on when the backend has
//! room for it. What may be needed once more is kept up to a bound ([`super::kept`], [`super::mirror`]).

use std::{
    cell::{Cell, RefCell},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::{
    client::Client,
    error::ProxyError,
    headers,
    kept::{Kept, Sending},
    mirror::Copy,
    slow::Watch,
};
use crate::{
    clock,
    net::splice::{Chunk, Ends},
    routing::limits::Limits,
};

/// Why a request's body is not passed on to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum UploadError {
    /// The client's connection broke, or what came was not a body.
    #[error("the client broke off a body")]
    Client(#[source] hyper::Error),
    /// It is larger than the service takes.
    #[error("the body is too large")]
    TooLarge,
    /// The request has been given up here, and is sent elsewhere.
    #[error("the body is sent elsewhere")]
    SentElsewhere,
    /// As [`super::body::BodyError::OutOfStep`].
    #[error("a body was read out of step")]
    OutOfStep,
}

/// How far a request's body has come, for the exchange to watch.
#[derive(Debug)]
pub(super) struct Progress {
    /// Chunks passed on so far.
    pub(super) chunks: Cell<u64>,
    /// Bytes of them.
    pub(super) bytes: Cell<u64>,
    /// Bytes that there may be.
    most: u64,
    /// There are more.
    too_large: Cell<bool>,
    /// Set where it may not take as long as it likes.
    watch: Option<Watch>,
    /// It is complete.
    pub(super) done: Cell<bool>,
    /// The backend would take more, and the client has not sent it.
    waits_for_client: Cell<bool>,
    /// It ended early, or what came was not a body.
    broken: Cell<bool>,
    /// What is copied of it, if it is.
    copy: RefCell<Option<Box<Copy>>>,
    /// The pipes at the client's socket, where it may go through one.
    from: Option<Rc<Ends>>,
    /// Those at the backend's socket, once it is known.
    to: RefCell<Option<Rc<Ends>>>,
}

impl Progress {
    fn new(most: u64, watch: Option<Watch>, from: Option<Rc<Ends>>) -> Self {
        Self {
            chunks: Cell::new(0),
            bytes: Cell::new(0),
            most,
            too_large: Cell::new(false),
            watch,
            done: Cell::new(false),
            waits_for_client: Cell::new(false),
            broken: Cell::new(false),
            copy: RefCell::default(),
            from,
            to: RefCell::default(),
        }
    }

    /// Where it goes: to the socket that these pipes are at, or where there is none to see.
    pub(super) fn goes_to(&self, ends: Option<&Rc<Ends>>) {
        self.to.replace(ends.cloned());
    }

    /// What a frame of it from hyper stands for, with as much left. What is copied has to be seen, so it
    /// does not go through a pipe.
    pub(super) fn frame(&self, frame: Frame<Bytes>, left: Option<u64>) -> Result<Frame<Chunk>, UploadError> {
        let (bytes, from) = match (frame.into_data(), &self.from) {
            (Ok(bytes), Some(from)) => (bytes, from),
            (Ok(bytes), None) => return Ok(Frame::data(Chunk::Bytes(bytes))),
            (Err(frame), _) => return Ok(frame.map_data(Chunk::Bytes)),
        };
        let to = self.to.borrow();
        let to = to.as_deref().filter(|_| self.copy.borrow().is_none());
        let chunk = from.chunk(bytes, left, to);
        chunk.map(Frame::data).ok_or(UploadError::OutOfStep).inspect_err(|_| self.broken.set(true))
    }

    /// Whether the backend has taken all that has come.
    fn is_taken(&self) -> bool {
        self.to.borrow().as_ref().is_none_or(|ends| ends.is_drained())
    }

    /// Nothing more of it goes through a pipe.
    pub(super) fn end(&self) {
        if let (Some(from), Some(to)) = (&self.from, self.to.take()) {
            from.end(&to);
        }
    }

    /// Has it copied as it passes.
    pub(super) fn copy_to(&self, copy: Box<Copy>) {
        self.copy.replace(Some(copy));
    }

    /// All of it has passed.
    fn finish(&self) {
        if !self.done.replace(true)
            && let Some(copy) = self.copy.take()
        {
            copy.send();
        }
    }

    /// What is wrong with it, if something is: then it is the client who is to blame.
    pub(super) fn fault(&self) -> Option<ProxyError> {
        match (self.too_large.get(), self.broken.get()) {
            (true, _) => Some(ProxyError::BodyTooLarge),
            (false, true) => Some(ProxyError::BrokenBody),
            (false, false) => None,
        }
    }

    /// How much longer it may take: `idle`, or less if it is watched.
    pub(super) fn patience(&self, idle: Duration) -> Duration {
        let Some(watch) = &self.watch else { return idle };
        idle.min(watch.left(self.bytes.get(), clock::monotonic()))
    }

    /// Whether its patience may be less than the time in which some of it has to come.
    pub(super) fn is_watched(&self) -> bool {
        self.watch.is_some()
    }

    /// Takes note of what its source said; whether it goes on.
    fn note(&self, polled: &Poll<Option<hyper::Result<Frame<Bytes>>>>) -> bool {
        // Nothing is read while the pipe is not empty, and then it is the backend that is waited for.
        let waits = polled.is_pending() && self.is_taken();
        self.waits_for_client.set(waits);
        if let Some(watch) = &self.watch {
            watch.set_waiting(waits, clock::monotonic());
        }
        match polled {
            Poll::Ready(Some(Ok(frame))) => {
                self.chunks.set(self.chunks.get() + 1);
                let bytes = frame.data_ref().map_or(0, Bytes::len) as u64;
                self.bytes.set(self.bytes.get() + bytes);
                self.too_large.set(self.bytes.get() > self.most);
                if let Some(copy) = self.copy.take() {
                    self.copy.replace(copy.with(frame));
                }
                if frame.is_trailers() {
                    self.finish();
                }
            }
            Poll::Ready(None) => self.finish(),
            Poll::Ready(Some(Err(_))) => self.broken.set(true),
            Poll::Pending => {}
        }
        !self.too_large.get()
    }

    /// Whether it is the client that the exchange waits for.
    pub(super) fn is_stalled(&self) -> bool {
        !self.done.get() && self.waits_for_client.get()
    }
}

/// A request's body that may go on while the response comes.
#[derive(Debug)]
pub(super) struct Upload {
    pub(super) progress: Rc<Progress>,
    /// Chunks that had been passed on when last looked at.
    chunks: u64,
}

impl Upload {
    pub(super) fn new(progress: Rc<Progress>) -> Self {
        let chunks = progress.chunks.get();
        Self { progress, chunks }
    }

    /// Whether some of it has not come yet.
    pub(super) fn is_unread(&self) -> bool {
        !self.progress.done.get()
    }

    /// Whether more of it has been passed on since the last call.
    pub(super) fn has_moved(&mut self) -> bool {
        let chunks = self.progress.chunks.get();
        chunks != std::mem::replace(&mut self.chunks, chunks)
    }
}

/// A request's body on its way to a backend.
#[derive(Debug, Default)]
pub(super) enum RequestBody {
    /// No body.
    #[default]
    Empty,
    /// One that passes.
    Passing(Incoming, Piping),
    /// One that may be sent again. Its service has retries.
    Kept(Box<Sending>),
    /// One that has passed, of a copy.
    Recorded(Box<Recorded>),
}

/// A whole body.
#[derive(Debug)]
pub(super) struct Recorded {
    data: Bytes,
    trailers: Option<HeaderMap>,
}

impl RequestBody {
    /// Passes `incoming` on, within `limits`. There is progress to watch if there is anything to pass.
    pub(super) fn new(
        incoming: Incoming,
        client: &Client,
        limits: &Limits,
        now: Instant,
    ) -> (Self, Option<Rc<Progress>>) {
        if incoming.is_end_stream() {
            return (Self::Empty, None);
        }
        let most = limits.max_body_size.unwrap_or(u64::MAX);
        let from = client.takes_pipes().then(|| Rc::clone(client.ends()));
        let progress = Rc::new(Progress::new(most, Watch::new(limits, now), from));
        (Self::Passing(incoming, Piping(Rc::clone(&progress))), Some(progress))
    }

    /// One that is all there.
    pub(super) fn recorded(data: Vec<u8>, trailers: Option<HeaderMap>) -> Self {
        if data.is_empty() && trailers.is_none() {
            return Self::Empty;
        }
        Self::Recorded(Box::new(Recorded { data: data.into(), trailers }))
    }

    /// The same, with at most so many bytes kept to be sent again; and what keeps them, if there is a body.
    pub(super) fn kept(self, most: usize) -> (Self, Option<Rc<Kept>>) {
        let Self::Passing(incoming, piping) = self else { return (self, None) };
        let kept = Kept::new(incoming, Rc::clone(&piping.0), most);
        (Self::Kept(Box::new(kept.send())), Some(kept))
    }
}

/// The progress of a body that may go through a pipe, which it does no more when this is gone.
#[derive(Debug)]
pub(super) struct Piping(Rc<Progress>);

impl Drop for Piping {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// What comes next of a client's body.
pub(super) fn poll_client(
    incoming: &mut Incoming,
    progress: &Progress,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
    let mut polled = Pin::new(&mut *incoming).poll_frame(cx);
    if let Poll::Ready(Some(Ok(frame))) = &mut polled
        && let Some(trailers) = frame.trailers_mut()
    {
        headers::prepare_trailers(trailers);
    }
    if !progress.note(&polled) {
        return Poll::Ready(Some(Err(UploadError::TooLarge)));
    }
    if incoming.is_end_stream() && polled.is_ready() && !progress.broken.get() {
        progress.finish();
    }
    polled.map(|frame| frame.map(|frame| frame.map_err(UploadError::Client)))
}

impl Body for RequestBody {
    type Data = Chunk;
    type Error = UploadError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, UploadError>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Passing(incoming, Piping(progress)) => {
                let polled = poll_client(incoming, progress, cx);
                let left = incoming.size_hint().exact();
                polled.map(|frame| frame.map(|frame| progress.frame(frame?, left)))
            }
            Self::Kept(sending) => Pin::new(&mut **sending).poll_frame(cx),
            Self::Recorded(recorded) => {
                Poll::Ready(recorded.take().map(|frame| Ok(frame.map_data(Chunk::Bytes))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Passing(incoming, _) => incoming.is_end_stream(),
            Self::Kept(sending) => sending.is_end_stream(),
            Self::Recorded(recorded) => recorded.data.is_empty() && recorded.trailers.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Passing(incoming, _) => incoming.size_hint(),
            Self::Kept(sending) => sending.size_hint(),
            // What has trailers cannot have a length: they go at the end of chunks.
            Self::Recorded(recorded) if recorded.trailers.is_some() => SizeHint::new(),
            Self::Recorded(recorded) => SizeHint::with_exact(recorded.data.len() as u64),
        }
    }
}

impl Recorded {
    fn take(&mut self) -> Option<Frame<Bytes>> {
        if !self.data.is_empty() {
            return Some(Frame::data(std::mem::take(&mut self.data)));
        }
        self.trailers.take().map(Frame::trailers)
    }
}
