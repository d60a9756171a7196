//! Bodies on their way to the client. They are never collected: a chunk is passed on when there is room
//! for it, so that the slower side sets the pace and memory per connection stays bounded.

use std::{
    pin::Pin,
    rc::Rc,
    task::{Context as Task, Poll, Waker},
    time::Duration,
};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::{
    attempt::Attempt,
    client::{Asked, Busy, Client},
    grpc,
    grpc::CallDeadline,
    headers,
    log_entry::LogEntry,
    upload::{RequestBody, Upload},
};
use crate::{
    model::{failure::GrpcStatuses, outcome::Outcome},
    net::{splice::Chunk, timers::Deadline},
    upstream::pool::Held,
};

/// Why a body ended early.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The other side's connection broke.
    #[error("the connection broke in the middle of a body")]
    Broken(#[source] hyper::Error),
    /// No byte came for too long.
    #[error("nothing came for too long in the middle of a body")]
    Idle,
    /// What hyper says it read is not what went into the pipe. Impossible, and a body that is cut
    /// is better than one that is wrong.
    #[error("a body was read out of step")]
    OutOfStep,
    /// The backend was rolled back, and the time that it had left is over.
    #[error("the version that sent this body was rolled back")]
    Cut,
    /// A gRPC call took longer than its client allows.
    #[error("the call's deadline is over")]
    Deadline,
}

/// A response's body on its way to the client.
#[derive(Debug)]
pub struct ResponseBody {
    source: Source,
    /// The client's connection is busy until this is gone.
    busy: Busy,
}

#[derive(Debug)]
enum Source {
    Local(Bytes),
    Backend(Box<Relay>),
}

impl ResponseBody {
    pub(super) fn local(text: &'static str, busy: Busy) -> Self {
        Self { source: Source::Local(Bytes::from_static(text.as_bytes())), busy }
    }

    pub(super) fn relay(relay: Relay, busy: Busy) -> Self {
        if relay.body.is_end_stream() {
            // Nothing will come, so the exchange is over: record it and give the connection back now.
            relay.complete(busy.client());
            return Self { source: Source::Local(Bytes::new()), busy };
        }
        Self { source: Source::Backend(Box::new(relay)), busy }
    }

    /// What the exchange has to say to the access log and to tracing, if it is logged or sampled.
    pub(super) fn entry(&self) -> Option<&Rc<LogEntry>> {
        self.busy.entry()
    }
}

impl Body for ResponseBody {
    type Data = Chunk;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Task<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, BodyError>>> {
        let polled = self.poll_source(cx);
        let gave = matches!(&polled, Poll::Ready(Some(Ok(frame))) if frame.is_data());
        self.busy.client().note_asked(if gave { Asked::Gave } else { Asked::HadNothing });
        if let Some(entry) = self.busy.entry()
            && let Poll::Ready(Some(Ok(frame))) = &polled
        {
            entry.add_out(frame.data_ref().map_or(0, Buf::remaining));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Local(text) => text.is_empty(),
            Source::Backend(relay) => relay.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Local(text) => SizeHint::with_exact(text.len() as u64),
            Source::Backend(relay) => relay.body.size_hint(),
        }
    }
}

impl ResponseBody {
    fn poll_source(&mut self, cx: &mut Task<'_>) -> Poll<Option<Result<Frame<Chunk>, BodyError>>> {
        let this = self;
        let relay = match &mut this.source {
            Source::Local(text) if text.is_empty() => return Poll::Ready(None),
            Source::Local(text) => {
                return Poll::Ready(Some(Ok(Frame::data(Chunk::Bytes(std::mem::take(text))))));
            }
            Source::Backend(relay) => relay,
        };
        let is_call = relay.trailers.is_some();
        let polled = std::task::ready!(relay.poll_frame(cx, this.busy.client()));
        let over = match &polled {
            None | Some(Err(_)) => true,
            // Nothing follows trailers, and whoever knows that may not ask again.
            Some(Ok(frame)) => {
                frame.is_trailers() || relay.body.is_end_stream() || this.busy.client().has_all(&relay.body)
            }
        };
        if over
            && let Source::Backend(relay) = std::mem::replace(&mut this.source, Source::Local(Bytes::new()))
        {
            match &polled {
                Some(Err(error)) => relay.break_off(error),
                None | Some(Ok(_)) => relay.complete(this.busy.client()),
            }
        }
        match polled {
            // A status that the client understands instead of a broken stream.
            Some(Err(BodyError::Deadline)) => Poll::Ready(Some(Ok(Frame::trailers(grpc::too_late())))),
            Some(Err(BodyError::Cut)) if is_call => {
                Poll::Ready(Some(Ok(Frame::trailers(grpc::rolled_back()))))
            }
            _ => Poll::Ready(polled),
        }
    }
}

/// A backend's body, and the connection that it comes from.
#[derive(Debug)]
pub(super) struct Relay {
    pub(super) body: Incoming,
    pub(super) held: Held<RequestBody>,
    pub(super) attempt: Attempt,
    /// What the attempt will have been once the body is complete.
    pub(super) outcome: Outcome,
    /// It is a gRPC call whose trailers say how it ended, and these statuses are failures.
    pub(super) trailers: Option<GrpcStatuses>,
    /// When the call has to be over.
    pub(super) call: Option<Box<CallDeadline>>,
    /// What is still to come of the request, if it was not complete when the response began.
    pub(super) upload: Option<Upload>,
    pub(super) deadline: Deadline,
    pub(super) idle_timeout: Duration,
    /// It is cut, and has until the deadline to end by itself.
    pub(super) is_ending: bool,
}

/// How long what is cut has to end by itself: an answer that is there already is not thrown away.
const GRACE: Duration = Duration::from_millis(500);

impl Relay {
    fn poll_frame(
        &mut self,
        cx: &mut Task<'_>,
        client: &Client,
    ) -> Poll<Option<Result<Frame<Chunk>, BodyError>>> {
        if !self.is_ending && self.attempt.is_cut() {
            self.is_ending = true;
            self.deadline.arm(GRACE);
        }
        if self.is_ending && self.deadline.poll_expired(cx).is_ready() {
            return Poll::Ready(Some(Err(BodyError::Cut)));
        }
        // From HTTP/1.1: what has been read already first, then the socket, then what that brought. Only
        // driving the connection brings more, so the body need not wake us, and taking a chunk need not
        // wake the connection: either would only have us polled once more.
        let mut polled = match &mut self.held {
            Held::Http1(connection) => {
                let quiet = &mut Task::from_waker(Waker::noop());
                connection.unwatch();
                let mut polled = Pin::new(&mut self.body).poll_frame(quiet);
                if polled.is_pending() {
                    let _over = connection.poll_drive(cx);
                    polled = Pin::new(&mut self.body).poll_frame(quiet);
                }
                polled
            }
            Held::Http2(_) => Pin::new(&mut self.body).poll_frame(cx),
        };
        if let Poll::Ready(frame) = &mut polled {
            self.wait_no_more();
            if let Some(Ok(frame)) = frame
                && let Some(trailers) = frame.trailers_mut()
            {
                headers::prepare_trailers(trailers);
                if let Some(failures) = self.trailers {
                    self.outcome = grpc::outcome(trailers, failures);
                    if let Some(entry) = self.attempt.entry() {
                        entry.called(trailers);
                    }
                }
            }
            return polled
                .map(|frame| frame.map(|frame| self.chunk(frame.map_err(BodyError::Broken)?, client)));
        }
        if !client.ends().is_drained() {
            // It is the client that is waited for, and it has a deadline of its own.
            self.wait_no_more();
            return Poll::Pending;
        }
        if let Some(call) = &self.call
            && call.deadline.poll_expired(cx).is_ready()
        {
            return Poll::Ready(Some(Err(BodyError::Deadline)));
        }
        let moved = self.upload.as_mut().is_some_and(Upload::has_moved);
        if !self.is_ending && (moved || !self.deadline.is_armed()) {
            self.deadline.arm(self.idle_timeout);
        }
        self.deadline.poll_expired(cx).map(|()| Some(Err(BodyError::Idle)))
    }

    /// It is not the backend that is waited for.
    fn wait_no_more(&self) {
        if !self.is_ending {
            self.deadline.disarm();
        }
    }

    /// What a frame from hyper stands for.
    fn chunk(&self, frame: Frame<Bytes>, client: &Client) -> Result<Frame<Chunk>, BodyError> {
        let bytes = match frame.into_data() {
            Ok(bytes) => bytes,
            Err(frame) => return Ok(frame.map_data(Chunk::Bytes)),
        };
        let Some(ends) = self.held.ends() else { return Ok(Frame::data(Chunk::Bytes(bytes))) };
        let to = client.takes_pipes().then(|| &**client.ends());
        let chunk = ends.chunk(bytes, self.body.size_hint().exact(), to);
        chunk.map(Frame::data).ok_or(BodyError::OutOfStep)
    }

    /// The response is complete: record it, and let the next request have the connection.
    fn complete(mut self, client: &Client) {
        if let Some(ends) = self.held.ends() {
            ends.end(client.ends());
        }
        let now = self.attempt.end(self.outcome);
        self.held.release(self.attempt.endpoint(), now);
    }

    fn break_off(mut self, error: &BodyError) {
        let upload = self.upload.as_ref().map(|upload| &upload.progress);
        self.attempt.end(match error {
            // A backend cannot go on with a request that does not come, or not wholly.
            BodyError::Broken(_) if upload.is_some_and(|p| p.fault().is_some()) => Outcome::ClientAbort,
            BodyError::Idle | BodyError::Deadline if upload.is_some_and(|p| p.is_stalled()) => {
                Outcome::ClientAbort
            }
            BodyError::Broken(_) => Outcome::Reset,
            BodyError::Idle | BodyError::Deadline => Outcome::Timeout,
            BodyError::Cut => Outcome::Cut,
            BodyError::OutOfStep => Outcome::ClientAbort,
        });
    }
}
