//! A request's body that can be sent again, as long as what has passed of it is small.
//!
//! It goes to the backend as it comes, at the backend's pace. What has passed is copied, up to a bound,
//! so that memory does not depend on how the client cuts it into pieces. Sent again, the copy goes first and
//! the rest follows as it comes. Beyond the bound nothing is kept, and it cannot be sent again; what is still
//! to come then may go through a pipe.

use std::{
    cell::{Cell, RefCell},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::upload::{Progress, UploadError, poll_client};
use crate::net::splice::Chunk;

/// What has passed of a body, and where the rest comes from.
#[derive(Debug)]
pub(super) struct Kept {
    incoming: RefCell<Incoming>,
    progress: Rc<Progress>,
    most: usize,
    bytes: RefCell<Vec<u8>>,
    trailers: RefCell<Option<HeaderMap>>,
    /// Some of what has passed is not kept.
    lost: Cell<bool>,
    /// Counts who sends it. A connection may ask for more when it has been given up already, and must not
    /// get what is another's now.
    turn: Cell<u32>,
}

impl Kept {
    /// A body of which at most so many bytes are kept.
    pub(super) fn new(incoming: Incoming, progress: Rc<Progress>, most: usize) -> Rc<Self> {
        // One that is too large anyway need not be copied first.
        let most = if incoming.size_hint().lower() > most as u64 { 0 } else { most };
        Rc::new(Self {
            incoming: RefCell::new(incoming),
            progress,
            most,
            bytes: RefCell::default(),
            trailers: RefCell::default(),
            lost: Cell::new(false),
            turn: Cell::new(0),
        })
    }

    /// Whether it can be sent from its beginning.
    pub(super) fn is_whole(&self) -> bool {
        !self.lost.get()
    }

    /// Sends it from its beginning. Whoever has sent it before gets no more of it.
    pub(super) fn send(self: &Rc<Self>) -> Sending {
        debug_assert!(self.is_whole());
        let turn = self.turn.get() + 1;
        self.turn.set(turn);
        let first = Bytes::copy_from_slice(&self.bytes.borrow());
        let trailers = self.trailers.borrow().clone();
        Sending { kept: Rc::clone(self), turn, first, trailers }
    }

    /// It will not be sent again.
    pub(super) fn let_go(&self) {
        self.lost.set(true);
        self.bytes.take();
    }

    fn keep(&self, frame: &Frame<Bytes>) {
        if let Some(trailers) = frame.trailers_ref() {
            *self.trailers.borrow_mut() = Some(trailers.clone());
        }
        let Some(data) = frame.data_ref().filter(|_| self.is_whole()) else { return };
        let mut bytes = self.bytes.borrow_mut();
        if bytes.len() + data.len() <= self.most {
            bytes.extend_from_slice(data);
        } else {
            drop(bytes);
            self.let_go();
        }
    }
}

/// A body that is being sent.
#[derive(Debug)]
pub(super) struct Sending {
    kept: Rc<Kept>,
    turn: u32,
    /// What had passed before.
    first: Bytes,
    /// What stood at its end, if that had been reached.
    trailers: Option<HeaderMap>,
}

impl Sending {
    /// Whether it has not been given up.
    fn is_current(&self) -> bool {
        self.turn == self.kept.turn.get()
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if self.is_current() {
            self.kept.progress.end();
        }
    }
}

impl Body for Sending {
    type Data = Chunk;
    type Error = UploadError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, UploadError>>> {
        if !self.is_current() {
            return Poll::Ready(Some(Err(UploadError::SentElsewhere)));
        }
        if !self.first.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(Chunk::Bytes(std::mem::take(&mut self.first))))));
        }
        if self.kept.progress.done.get() {
            return Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))));
        }
        let Kept { incoming, progress, .. } = &*self.kept;
        let mut incoming = incoming.borrow_mut();
        let polled = poll_client(&mut incoming, progress, cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            self.kept.keep(frame);
        }
        // Only what will not be sent again may go through a pipe, where nobody can copy it.
        let left = incoming.size_hint().exact().filter(|_| !self.kept.is_whole());
        polled.map(|frame| frame.map(|frame| progress.frame(frame?, left)))
    }

    fn is_end_stream(&self) -> bool {
        let Self { kept, turn: _, first, trailers } = self;
        let over = || kept.progress.done.get() || kept.incoming.borrow().is_end_stream();
        first.is_empty() && trailers.is_none() && over()
    }

    fn size_hint(&self) -> SizeHint {
        let first = self.first.len() as u64;
        let rest = match (self.kept.progress.done.get(), &self.trailers) {
            (true, None) => SizeHint::with_exact(0),
            // Where the length is known, HTTP/1.1 has no place for trailers.
            (true, Some(_)) => SizeHint::default(),
            (false, _) => self.kept.incoming.borrow().size_hint(),
        };
        let mut hint = SizeHint::default();
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(first));
        }
        hint.set_lower(rest.lower().saturating_add(first));
        hint
    }
}
