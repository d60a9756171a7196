//! Coarse timers: one sweep every few milliseconds instead of a timer per request.
//!
//! Almost no deadline of a proxy is ever reached, so arming one must cost next to nothing: here it
//! is a store into a slot. A worker-wide task looks at the slots each [`TICK`] and wakes whoever is
//! late. Deadlines are rounded up to the tick, never down.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use slab::Slab;

/// How often deadlines are looked at, and so by how much they may be late.
pub const TICK: Duration = Duration::from_millis(20);

const UNARMED: u64 = u64::MAX;

#[derive(Debug)]
struct Slot {
    due: u64,
    waker: Option<Waker>,
    /// Whoever waits may have another reason to go on.
    looks: bool,
}

/// All deadlines of one worker.
#[derive(Debug)]
pub struct Timers {
    now: Cell<u64>,
    /// No slot is due before this tick.
    next: Cell<u64>,
    slots: RefCell<Slab<Slot>>,
}

impl Default for Timers {
    fn default() -> Self {
        Self { now: Cell::new(0), next: Cell::new(UNARMED), slots: RefCell::default() }
    }
}

impl Timers {
    /// Moves time one tick on and wakes whoever is late.
    pub fn tick(&self) {
        let now = self.now.get() + 1;
        self.now.set(now);
        if now < self.next.get() {
            return;
        }
        let mut next = UNARMED;
        for (_, slot) in self.slots.borrow_mut().iter_mut() {
            if slot.due <= now {
                if let Some(waker) = slot.waker.take() {
                    waker.wake();
                }
            } else {
                next = next.min(slot.due);
            }
        }
        self.next.set(next);
    }

    /// Runs the sweep for as long as it is polled.
    pub async fn run(&self) {
        let mut interval = tokio::time::interval(TICK);
        // After a stall, deadlines are late by the stall; they are not all due at once.
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            self.tick();
        }
    }

    /// A deadline that is not armed yet.
    pub fn deadline(self: &Rc<Self>) -> Deadline {
        self.insert(false)
    }

    /// The same for somebody who looks, whenever woken, whether there is another reason to go on: who is woken by
    /// [`Self::wake`], too.
    pub fn looking_deadline(self: &Rc<Self>) -> Deadline {
        self.insert(true)
    }

    fn insert(self: &Rc<Self>, looks: bool) -> Deadline {
        let key = self.slots.borrow_mut().insert(Slot { due: UNARMED, waker: None, looks });
        Deadline { timers: Rc::clone(self), key }
    }

    /// Wakes whoever waits for a deadline and looks for another reason to go on.
    pub fn wake(&self) {
        for (_, slot) in self.slots.borrow_mut().iter_mut().filter(|(_, slot)| slot.looks) {
            if let Some(waker) = slot.waker.take() {
                waker.wake();
            }
        }
    }
}

/// One deadline, armed and disarmed as often as one likes.
#[derive(Debug)]
pub struct Deadline {
    timers: Rc<Timers>,
    key: usize,
}

impl Deadline {
    /// (Re)starts the deadline `after` from now.
    pub fn arm(&self, after: Duration) {
        let ticks = u64::try_from(after.as_nanos().div_ceil(TICK.as_nanos())).unwrap_or(UNARMED / 2);
        // One more, because part of the current tick is over.
        let due = self.timers.now.get().saturating_add(ticks).saturating_add(1).min(UNARMED - 1);
        self.timers.next.set(self.timers.next.get().min(due));
        self.timers.slots.borrow_mut()[self.key].due = due;
    }

    /// Stops the deadline.
    pub fn disarm(&self) {
        self.timers.slots.borrow_mut()[self.key].due = UNARMED;
    }

    /// Whether it runs (or has run out).
    pub fn is_armed(&self) -> bool {
        self.timers.slots.borrow()[self.key].due != UNARMED
    }

    /// Ready once the deadline is over; else the task is woken when it is.
    pub fn poll_expired(&self, cx: &Context<'_>) -> Poll<()> {
        let mut slots = self.timers.slots.borrow_mut();
        let slot = &mut slots[self.key];
        if slot.due == UNARMED {
            return Poll::Pending;
        }
        if slot.due <= self.timers.now.get() {
            return Poll::Ready(());
        }
        match &mut slot.waker {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            waker => *waker = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        self.timers.slots.borrow_mut().remove(self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expired(deadline: &Deadline) -> bool {
        deadline.poll_expired(&Context::from_waker(Waker::noop())).is_ready()
    }

    fn run(timers: &Timers, ticks: u32) {
        for _ in 0..ticks {
            timers.tick();
        }
    }

    #[test]
    fn a_deadline_is_never_early_and_at_most_a_tick_late() {
        let timers = Rc::new(Timers::default());
        let deadline = timers.deadline();
        assert!(!expired(&deadline));
        deadline.arm(TICK * 3);
        run(&timers, 3);
        assert!(!expired(&deadline), "the first tick may have been nearly over");
        run(&timers, 1);
        assert!(expired(&deadline));
    }

    #[test]
    fn rearming_and_disarming_move_it() {
        let timers = Rc::new(Timers::default());
        let (a, b) = (timers.deadline(), timers.deadline());
        a.arm(TICK);
        b.arm(TICK);
        a.arm(TICK * 10);
        b.disarm();
        run(&timers, 5);
        assert!(!expired(&a) && !expired(&b));
        run(&timers, 6);
        assert!(expired(&a) && !expired(&b));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_is_woken() {
        let timers = Rc::new(Timers::default());
        let deadline = timers.deadline();
        deadline.arm(Duration::from_secs(75));
        let start = tokio::time::Instant::now();
        tokio::select! {
            () = timers.run() => unreachable!("the sweep never ends"),
            () = std::future::poll_fn(|cx| deadline.poll_expired(cx)) => {}
        }
        let took = start.elapsed();
        assert!(took >= Duration::from_secs(75) && took <= Duration::from_secs(75) + TICK * 2, "{took:?}");
    }

    #[test]
    fn who_looks_is_woken_before_the_time_and_nobody_else() {
        let timers = Rc::new(Timers::default());
        let (idle, looking) = (timers.deadline(), timers.looking_deadline());
        for deadline in [&idle, &looking] {
            deadline.arm(TICK);
            assert!(!expired(deadline));
        }
        timers.wake();
        let waits = |deadline: &Deadline| timers.slots.borrow()[deadline.key].waker.is_some();
        assert!(waits(&idle) && !waits(&looking));
        assert!(!expired(&looking) && waits(&looking), "it waits again");
    }

    #[test]
    fn a_dropped_deadline_frees_its_slot() {
        let timers = Rc::new(Timers::default());
        drop(timers.deadline());
        assert!(timers.slots.borrow().is_empty());
    }
}
