//! Which pinned clients were seen, failed or were slow: a bit for each slot, so that control can tell who did
//! for the first time.
//!
//! Bits are set by the worker that owns them and only read by control, like all that is counted; there are
//! none but for services whose unit is the user. Two things come down, as numbers that workers look at:
//! what is slow, and from when on bits are to begin at none. A worker that finds another *generation* than
//! that of its bits clears them first; whoever reads meanwhile sees by the generation that they are no good.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, Weak,
        atomic::{
            AtomicU16, AtomicU32,
            Ordering::{Acquire, Relaxed, Release},
            fence,
        },
    },
    time::Duration,
};

use super::cells::Counter;
use crate::model::{
    histogram,
    name::ServiceName,
    role::Role,
    slots::{Slots, WORDS, place},
};

/// What a slot may be marked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// A request of it ended.
    Seen,
    /// One that failed.
    Failed,
    /// One that was slow by the first edge.
    SlowP50,
    /// One that was slow by the second.
    SlowP99,
}

impl Mark {
    /// All of them, in the order of their index.
    pub const ALL: [Self; 4] = [Self::Seen, Self::Failed, Self::SlowP50, Self::SlowP99];
    /// Those of slow requests, in the order of their edges.
    pub const SLOW: [Self; 2] = [Self::SlowP50, Self::SlowP99];
}

/// What control tells workers of a service's users.
#[derive(Debug)]
pub struct Rules {
    generations: [AtomicU32; Mark::ALL.len()],
    /// By role, the buckets above which requests are slow; [`UNKNOWN`] while none is.
    edges: [[AtomicU16; 2]; 2],
}

/// No bucket: there are fewer.
const UNKNOWN: u16 = u16::MAX;
/// Bits that nobody may believe; rules begin with the generation after it.
const INVALID: u32 = 0;

impl Default for Rules {
    fn default() -> Self {
        let unknown = || std::array::from_fn(|_| AtomicU16::new(UNKNOWN));
        let generations = std::array::from_fn(|_| AtomicU32::new(INVALID + 1));
        Self { generations, edges: [unknown(), unknown()] }
    }
}

impl Rules {
    /// Which generation of marks is wanted.
    #[inline]
    pub fn generation(&self, mark: Mark) -> u32 {
        self.generations[mark as usize].load(Relaxed)
    }

    /// From now on, no slot has such a mark. For control alone.
    pub fn begin_anew(&self, mark: Mark) {
        let next = self.generation(mark).wrapping_add(1);
        let next = if next == INVALID { INVALID + 1 } else { next };
        self.generations[mark as usize].store(next, Relaxed);
    }

    /// From now on, requests of a role are slow above these buckets.
    pub fn set_edges(&self, role: Role, buckets: [Option<usize>; 2]) {
        for (edge, bucket) in self.edges[role.index()].iter().zip(buckets) {
            let bucket = bucket.and_then(|bucket| u16::try_from(bucket).ok());
            edge.store(bucket.unwrap_or(UNKNOWN), Relaxed);
        }
    }
}

/// The rules of all services that count users, for as long as anybody holds them.
#[derive(Debug, Default)]
pub struct ByService(Mutex<BTreeMap<ServiceName, Weak<Rules>>>);

impl ByService {
    /// A service's.
    pub fn of(&self, service: &ServiceName) -> Arc<Rules> {
        let mut rules = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        rules.retain(|_, rules| rules.strong_count() > 0);
        if let Some(there) = rules.get(service).and_then(Weak::upgrade) {
            return there;
        }
        let new = Arc::default();
        rules.insert(service.clone(), Arc::downgrade(&new));
        new
    }
}

/// What one worker knows of the users of a part of a backend's requests.
#[derive(Debug)]
pub(super) struct UserCells {
    rules: Arc<Rules>,
    /// Whose edges are theirs.
    role: Role,
    /// Whether it is of a route, of which only failures are compared.
    is_route: bool,
    bits: [Bits; Mark::ALL.len()],
    others: [Counter; 5],
}

/// The slots that have a mark.
#[derive(Debug, Default)]
struct Bits {
    generation: AtomicU32,
    /// Made with the first one.
    words: OnceLock<Box<[Counter; WORDS]>>,
}

impl UserCells {
    /// For a part in which requests are slow as in `role`.
    pub(super) fn new(rules: Arc<Rules>, role: Role, is_route: bool) -> Self {
        Self { rules, role, is_route, bits: Default::default(), others: Default::default() }
    }

    /// Counts an attempt that ended and says something about the backend; its slot, if its client is pinned.
    /// Only for the one writer.
    #[inline]
    pub(super) fn end(&self, slot: Option<u16>, failed: bool, latency: Option<Duration>) {
        let bucket = latency.filter(|_| !self.is_route && !failed).map(histogram::index);
        // A failure is not fast: stable's is as slow as can be, and the canary's says nothing of that.
        let fails_slowly = failed && !self.is_route && self.role == Role::Stable;
        let slow = self.rules.edges[self.role.index()].each_ref().map(|edge| {
            let edge = edge.load(Relaxed);
            edge != UNKNOWN && (fails_slowly || bucket.is_some_and(|bucket| bucket > usize::from(edge)))
        });
        match slot {
            Some(slot) => {
                let is_so = [!self.is_route, failed, slow[0], slow[1]];
                for (mark, _) in Mark::ALL.into_iter().zip(is_so).filter(|(_, is_so)| *is_so) {
                    self.bits[mark as usize].insert(slot, self.rules.generation(mark));
                }
            }
            None => {
                let is_so = [true, failed, failed || bucket.is_some(), slow[0], slow[1]];
                self.others.iter().zip(is_so).for_each(|(counter, is_so)| counter.add(u64::from(is_so)));
            }
        }
    }

    /// Adds what is there to a sum.
    pub(super) fn add_to(&self, (marked, others): &mut (Marked, Others)) {
        for mark in Mark::ALL {
            let generation = self.rules.generation(mark);
            if let Some(slots) = self.bits[mark as usize].read(generation) {
                marked.add(mark, generation, slots);
            }
        }
        let [requests, failures, timed, p50, p99] = self.others.each_ref().map(Counter::get);
        others.add(&Others { requests, failures, timed, slow: [p50, p99] });
    }
}

impl Bits {
    #[inline]
    fn insert(&self, slot: u16, generation: u32) {
        let words = self.words.get_or_init(|| Box::new(std::array::from_fn(|_| Counter::default())));
        if self.generation.load(Relaxed) != generation {
            self.clear(words, generation);
        }
        let (word, bit) = place(slot);
        if let Some(word) = words.get(word).filter(|word| word.get() & bit == 0) {
            word.add(bit);
        }
    }

    #[cold]
    fn clear(&self, words: &[Counter; WORDS], generation: u32) {
        self.generation.store(INVALID, Relaxed);
        // Whoever reads a word that was written from here on also sees that it is no good, or the end.
        fence(Release);
        words.iter().for_each(Counter::clear);
        self.generation.store(generation, Release);
    }

    /// Those of this generation, if that is what there is.
    fn read(&self, generation: u32) -> Option<Slots> {
        let words = self.words.get()?;
        if self.generation.load(Acquire) != generation {
            return None;
        }
        let slots = Slots::of(|word| words[word].get());
        fence(Acquire);
        (self.generation.load(Relaxed) == generation).then_some(slots)
    }
}

/// Slots by their marks, summed over workers.
#[derive(Debug, Clone, Default)]
pub struct Marked([Option<(u32, Slots)>; Mark::ALL.len()]);

impl Marked {
    fn add(&mut self, mark: Mark, generation: u32, slots: Slots) {
        match &mut self.0[mark as usize] {
            Some((mine, there)) if *mine == generation => there.unite(&slots),
            place => *place = Some((generation, slots)),
        }
    }

    /// Adds all of another one.
    pub fn merge(&mut self, other: &Self) {
        for (mark, theirs) in Mark::ALL.into_iter().zip(&other.0) {
            if let Some((generation, slots)) = theirs {
                self.add(mark, *generation, slots.clone());
            }
        }
    }
}

impl Rules {
    /// The slots with a mark, as far as they are of the generation that is wanted.
    pub fn slots(&self, marked: &Marked, mark: Mark) -> Slots {
        match &marked.0[mark as usize] {
            Some((generation, slots)) if *generation == self.generation(mark) => slots.clone(),
            _ => Slots::default(),
        }
    }
}

/// Requests of clients that are not pinned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Others {
    /// Those that ended and say something about the backend.
    pub requests: u64,
    /// Those of them that failed.
    pub failures: u64,
    /// Those that failed, or whose time is known.
    pub timed: u64,
    /// Those of these that were slow, by each edge.
    pub slow: [u64; 2],
}

impl Others {
    /// Counts `other` in.
    pub fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.failures += other.failures;
        self.timed += other.timed;
        self.slow.iter_mut().zip(other.slow).for_each(|(mine, theirs)| *mine += theirs);
    }

    /// What came in since an older reading.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(earlier.requests),
            failures: self.failures.saturating_sub(earlier.failures),
            timed: self.timed.saturating_sub(earlier.timed),
            slow: [0, 1].map(|at| self.slow[at].saturating_sub(earlier.slow[at])),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(rules: &Arc<Rules>, role: Role) -> UserCells {
        UserCells::new(Arc::clone(rules), role, false)
    }

    fn counts(cells: &UserCells, rules: &Rules) -> [u64; 4] {
        let mut sum = Default::default();
        cells.add_to(&mut sum);
        Mark::ALL.map(|mark| rules.slots(&sum.0, mark).count())
    }

    const MILLI: Option<Duration> = Some(Duration::from_millis(1));

    #[test]
    fn slots_are_marked_for_what_they_did() {
        let rules = Arc::new(Rules::default());
        let cells = cells(&rules, Role::Canary);
        cells.end(Some(7), false, MILLI);
        assert_eq!(counts(&cells, &rules), [1, 0, 0, 0]);
        let index = histogram::index(Duration::from_millis(1));
        rules.set_edges(Role::Stable, [Some(0), Some(0)]);
        rules.set_edges(Role::Canary, [Some(index - 1), Some(index)]);
        cells.end(Some(9_999), false, MILLI);
        cells.end(Some(8), true, MILLI);
        cells.end(Some(7), true, None);
        cells.end(Some(7), true, None);
        assert_eq!(counts(&cells, &rules), [3, 2, 1, 0]);
        // What stable fails is slow.
        let cells = self::cells(&rules, Role::Stable);
        cells.end(Some(8), true, None);
        assert_eq!(counts(&cells, &rules), [1, 1, 1, 1]);
    }

    #[test]
    fn who_is_not_pinned_is_counted_by_requests() {
        let rules = Arc::new(Rules::default());
        rules.set_edges(Role::Stable, [Some(0), None]);
        let cells = cells(&rules, Role::Stable);
        cells.end(None, false, MILLI);
        cells.end(None, true, None);
        let mut sum = <(Marked, Others)>::default();
        cells.add_to(&mut sum);
        let others = Others { requests: 2, failures: 1, timed: 2, slow: [2, 0] };
        assert_eq!((sum.1, counts(&cells, &rules)), (others, [0; 4]));
        assert_eq!(others.since(&others), Others::default());
    }

    #[test]
    fn a_new_generation_begins_at_none() {
        let rules = Arc::new(Rules::default());
        let cells = cells(&rules, Role::Stable);
        (0..100).for_each(|slot| cells.end(Some(slot), true, None));
        let mut before = Default::default();
        cells.add_to(&mut before);
        assert_eq!(rules.slots(&before.0, Mark::Failed).count(), 100);
        rules.begin_anew(Mark::Failed);
        assert_eq!(counts(&cells, &rules), [100, 0, 0, 0]);
        cells.end(Some(5), true, None);
        assert_eq!(counts(&cells, &rules), [100, 1, 0, 0]);
        // What was read before is of no use any more.
        assert_eq!(rules.slots(&before.0, Mark::Failed).count(), 0);
    }

    #[test]
    fn of_a_route_only_failures_are_known() {
        let rules = Arc::new(Rules::default());
        rules.set_edges(Role::Stable, [Some(0), Some(0)]);
        let cells = UserCells::new(Arc::clone(&rules), Role::Stable, true);
        cells.end(Some(1), true, MILLI);
        cells.end(Some(2), false, MILLI);
        assert_eq!(counts(&cells, &rules), [0, 1, 0, 0]);
    }

    /// A reader never sees slots of an older generation, whatever the writer is about to do.
    #[test]
    fn whoever_reads_while_slots_are_cleared_sees_none_of_before() {
        let rules = Arc::new(Rules::default());
        let cells = cells(&rules, Role::Stable);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                // In each generation only slots that leave the same rest.
                for round in 0..5_000_u16 {
                    let generation = rules.generation(Mark::Failed);
                    let rest = (generation % 50) as u16;
                    (0..20).for_each(|nth| cells.bits[1].insert(rest + 50 * nth, generation));
                    if round % 5 == 0 {
                        rules.begin_anew(Mark::Failed);
                    }
                }
            });
            while !writer.is_finished() {
                let generation = rules.generation(Mark::Failed);
                let Some(read) = cells.bits[1].read(generation) else { continue };
                let mut wanted = Slots::default();
                (0..20).for_each(|nth| assert!(wanted.insert((generation % 50) as u16 + 50 * nth)));
                assert_eq!(read.without(&wanted).count(), 0);
            }
        });
    }

    #[test]
    fn rules_are_the_same_for_whoever_asks() {
        let (services, web) = (ByService::default(), "web".parse().unwrap());
        let rules = services.of(&web);
        rules.begin_anew(Mark::Seen);
        assert!(Arc::ptr_eq(&rules, &services.of(&web)));
        drop(rules);
        assert_eq!(services.of(&web).generation(Mark::Seen), INVALID + 1);
    }
}
