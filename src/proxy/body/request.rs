//! A request's body on its way to a backend: as it comes, through a pipe, or with a copy kept.

use std::{
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Instant,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::{
    super::{
        client::Client,
        headers,
        kept::{Kept, Sending},
        slow::Watch,
    },
    Progress, UploadError,
};
use crate::{net::splice::Chunk, routing::limits::Limits};

/// A request's body on its way to a backend.
#[derive(Debug, Default)]
pub(in crate::proxy) enum RequestBody {
    /// No body.
    #[default]
    Empty,
    /// One that passes.
    Passing(Incoming, Piping),
    /// One that may be sent again. Its service has retries.
    Kept(Box<Sending>),
}

impl RequestBody {
    /// Passes `incoming` on, within `limits`. There is progress to watch if there is anything to pass.
    pub(in crate::proxy) fn new(
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

    /// The same, with at most so many bytes kept to be sent again; and what keeps them, if there is a body.
    pub(in crate::proxy) fn kept(self, most: usize) -> (Self, Option<Rc<Kept>>) {
        let Self::Passing(incoming, piping) = self else { return (self, None) };
        let kept = Kept::new(incoming, Rc::clone(&piping.0), most);
        (Self::Kept(Box::new(kept.send())), Some(kept))
    }
}

/// What comes next of a client's body.
pub(in crate::proxy) fn poll_client(
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
        progress.done.set(true);
    }
    polled.map(|frame| frame.map(|frame| frame.map_err(UploadError::Client)))
}

/// The progress of a body that may go through a pipe, which it does no more when this is gone.
#[derive(Debug)]
pub(in crate::proxy) struct Piping(Rc<Progress>);

impl Drop for Piping {
    fn drop(&mut self) {
        self.0.end();
    }
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
            Self::Passing(incoming, Piping(progress)) => poll_client(incoming, progress, cx).map(|frame| {
                frame.map(|frame| match frame?.into_data() {
                    Ok(bytes) => progress.chunk(bytes, incoming.size_hint().exact()).map(Frame::data),
                    Err(frame) => Ok(frame.map_data(Chunk::Bytes)),
                })
            }),
            // What is kept has to be seen, so none of it goes through a pipe.
            Self::Kept(sending) => Pin::new(&mut **sending)
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map(|frame| frame.map_data(Chunk::Bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Passing(incoming, _) => incoming.is_end_stream(),
            Self::Kept(sending) => sending.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Passing(incoming, _) => incoming.size_hint(),
            Self::Kept(sending) => sending.size_hint(),
        }
    }
}
