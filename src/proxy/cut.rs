//! How what is under way learns that it is to end, though both sides would go on: its backend has lost a
//! rollout, and the time that it had left is over.
//!
//! Whoever moves bytes looks by itself: that is one load of a number that nobody writes. What is silent has to be
//! woken, so it is watched: a tunnel from its beginning, a response once nothing has come for a while.

use std::{
    cell::RefCell,
    rc::Rc,
    task::{Context as Task, Poll, Waker},
    time::Instant,
};

use super::{
    attempt::Attempt,
    context::{Context, Endpoint},
};

/// Something that is woken when it is to end, for as long as this lives.
#[derive(Debug)]
pub(super) struct Watched {
    context: Rc<Context>,
    end: Rc<End>,
    key: usize,
}

impl Watched {
    pub(super) fn new(context: Rc<Context>, attempt: &Attempt) -> Self {
        let (endpoint, began) = (Rc::clone(attempt.endpoint()), attempt.started());
        let end = Rc::new(End { endpoint, began, waker: RefCell::default() });
        let key = context.cuttable().borrow_mut().insert(Rc::clone(&end));
        Self { context, end, key }
    }

    pub(super) fn context(&self) -> &Rc<Context> {
        &self.context
    }

    /// Ready when it is to end; else the task is woken when it is.
    pub(super) fn poll(&self, task: &Task<'_>) -> Poll<()> {
        if self.end.has_come() {
            return Poll::Ready(());
        }
        let mut waker = self.end.waker.borrow_mut();
        waker.get_or_insert_with(|| task.waker().clone()).clone_from(task.waker());
        Poll::Pending
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.context.cuttable().borrow_mut().remove(self.key);
    }
}

/// What is looked at on behalf of something that is watched.
#[derive(Debug)]
pub(super) struct End {
    endpoint: Rc<Endpoint>,
    began: Instant,
    waker: RefCell<Option<Waker>>,
}

impl End {
    /// Wakes what is to end. Somebody has to look: nothing else wakes what is silent.
    pub(super) fn look(&self) {
        if self.has_come()
            && let Some(waker) = self.waker.borrow_mut().take()
        {
            waker.wake();
        }
    }

    fn has_come(&self) -> bool {
        self.endpoint.is_cut_since(self.began)
    }
}
