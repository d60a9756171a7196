//! What waits for the store, and what does not.
//!
//! An advance waits: it is saved first, and made once that would outlive a crash; if it cannot be saved
//! it is not made. Everything else, a way back above all, takes effect at once and is saved after, again
//! and again until that succeeds. Whoever asked for either is answered when it is saved, or known not to
//! be. A disk that does not answer keeps those waiting who want an advance; the others are answered without it.
//!
//! One save of a service is under way at a time, and the next has whatever has come up meanwhile. A way
//! back that comes while an advance is being saved overtakes it: the disk may then have the advance for a
//! moment, which is more than the canary gets, and that is the side to be wrong on.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

use super::{
    Answer, CommandError, Request, context::Context, happening::Happening, service::ServiceTask,
    standing::configured,
};
use crate::{
    analysis::{Analysis, verdict::Verdict},
    clock,
    config::hook::At,
    failpoint,
    model::time::Timestamp,
    rollout::{
        note::Note,
        phase::{Exposure, Phase},
        trial,
    },
    store::{
        Saving, Store, StoreError,
        record::{Endpoints, Entry, Kind, Position, Record, Rollout},
    },
};

/// How often evidence is saved that has led to nothing yet, in ticks.
const EVIDENCE: u32 = 5;
/// Entries that may wait for a store that takes nothing; the oldest go first.
const MOST: usize = 1000;
/// How long a save may take before people are told, and those answered without it whose wish has taken effect.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a service has that the store may not have yet.
pub(super) struct Journal {
    pub(super) store: Store,
    saving: Option<UnderWay>,
    /// What is to happen once it is saved, and has not been given to the store yet.
    advance: Option<Box<Advance>>,
    /// What was before a start that has not been given to the store yet.
    before: Option<Box<Before>>,
    /// What is told of a start once it cannot be undone any more.
    start: Option<Box<Happening>>,
    /// Whether anything else is to be saved.
    is_dirty: bool,
    /// What has happened, and is to be saved with it.
    entries: VecDeque<Entry>,
    /// Those who wait for that.
    answers: Vec<Answer>,
    /// Those who can be told now, as soon as everybody else can see it.
    ready: Vec<(Answer, Result<(), CommandError>)>,
    /// Requests that came while an advance was being saved.
    held: VecDeque<(Request, Context, Answer)>,
    /// Why the last save failed, if it did.
    problem: Option<StoreError>,
    /// Whether to wait for the next tick, as the last save failed.
    rests: bool,
    last: Instant,
    /// The time that what the store was given last bears.
    given: Timestamp,
}

/// A save under way.
struct UnderWay {
    saving: Saving,
    since: Instant,
    purpose: Purpose,
    /// How many of the entries it has.
    entries: usize,
    answers: Vec<Answer>,
}

enum Purpose {
    /// How the service stands.
    Current,
    /// How it will stand.
    Advance(Box<Advance>),
    /// How it stands after a start, which is undone if it cannot be saved.
    Start(Box<Before>),
}

/// More traffic for the canary, or another one stable, once that is saved.
pub(super) struct Advance {
    /// The phase that it leads to; nothing where no rollout moves.
    pub(super) phase: Option<Phase>,
    pub(super) entry: Entry,
    pub(super) answer: Option<Answer>,
}

/// What a start has changed.
pub(super) struct Before {
    pub(super) revision: u64,
    pub(super) position: Position,
    pub(super) salt: u64,
    pub(super) record: Option<Rollout>,
    pub(super) analysis: Analysis,
    pub(super) verdict: Option<Verdict>,
}

impl Journal {
    pub(super) fn new(store: Store) -> Self {
        Self {
            store,
            saving: None,
            advance: None,
            before: None,
            start: None,
            is_dirty: false,
            entries: VecDeque::new(),
            answers: Vec::new(),
            ready: Vec::new(),
            held: VecDeque::new(),
            problem: None,
            rests: false,
            last: Instant::now(),
            given: Timestamp::from_millis(0),
        }
    }

    /// When a tick ends that ends now. What is saved is told from what came after it by its time, and both may be
    /// in one millisecond.
    pub(super) fn after_what_is_given(&self) -> Timestamp {
        clock::now().max(self.given.plus(Duration::from_millis(1)))
    }

    /// Whether an advance waits for its save.
    pub(super) fn is_advancing(&self) -> bool {
        let under_way = self.saving.as_ref().map(|saving| &saving.purpose);
        self.advance.is_some() || matches!(under_way, Some(Purpose::Advance(_)))
    }

    /// The phases to which advances lead that wait for their save.
    pub(super) fn advances_to(&mut self) -> impl Iterator<Item = &mut Phase> {
        let under_way = match &mut self.saving {
            Some(UnderWay { purpose: Purpose::Advance(advance), .. }) => Some(advance),
            _ => None,
        };
        under_way.into_iter().chain(&mut self.advance).filter_map(|advance| advance.phase.as_mut())
    }

    /// Whether everything that has happened is saved.
    pub(super) fn is_settled(&self) -> bool {
        self.saving.is_none() && self.advance.is_none() && self.before.is_none() && !self.is_dirty
    }

    /// Why how it stands is not saved, if it is not.
    pub(super) fn problem(&self) -> Option<String> {
        self.problem.as_ref().map(ToString::to_string)
    }

    /// Whoever asked for what has just taken effect is answered when it is saved.
    pub(super) fn answer_when_saved(&mut self, answer: Answer) {
        match &mut self.advance {
            Some(advance) if advance.answer.is_none() => advance.answer = Some(answer),
            _ if self.is_dirty => self.answers.push(answer),
            _ => self.ready.push((answer, Ok(()))),
        }
    }

    /// Whoever asked is answered at once.
    pub(super) fn answer(&mut self, answer: Answer, result: Result<(), CommandError>) {
        self.ready.push((answer, result));
    }

    pub(super) fn ready(&mut self) -> Vec<(Answer, Result<(), CommandError>)> {
        std::mem::take(&mut self.ready)
    }

    /// Keeps a request for when the advance is through; `most` may wait.
    pub(super) fn hold(&mut self, request: Request, context: Context, answer: Answer, most: usize) {
        if self.held.len() < most {
            self.held.push_back((request, context, answer));
        } else {
            self.ready.push((answer, Err(CommandError::NotSaved(StoreError::Busy))));
        }
    }

    /// The requests that were kept do not happen.
    pub(super) fn give_up_held(&mut self) {
        let held = std::mem::take(&mut self.held).into_iter();
        self.ready.extend(held.map(|(_, _, answer)| (answer, Err(CommandError::Overtaken))));
    }

    /// The next request that was kept, once nothing is in its way.
    pub(super) fn next_held(&mut self) -> Option<(Request, Context, Answer)> {
        if self.is_advancing() { None } else { self.held.pop_front() }
    }

    /// From now on how the service stands is not how it is saved.
    pub(super) fn must_save(&mut self) {
        self.is_dirty = true;
    }

    fn add(&mut self, entry: Entry) {
        // Those that are being saved are counted from the front when they are.
        let under_way = self.saving.as_ref().map_or(0, |saving| saving.entries);
        while self.entries.len() >= MOST + under_way {
            self.entries.remove(under_way);
        }
        self.entries.push_back(entry);
        self.is_dirty = true;
    }

    /// What waits to be saved is not wanted any more.
    fn overtake(&mut self) {
        // A start that something came after is not undone.
        self.before = None;
        let waiting = self.advance.take();
        let under_way = self.saving.as_mut().map(|saving| &mut saving.purpose);
        let under_way = match under_way.map(|purpose| std::mem::replace(purpose, Purpose::Current)) {
            Some(Purpose::Advance(advance)) => Some(advance),
            _ => None,
        };
        for advance in waiting.into_iter().chain(under_way) {
            self.is_dirty = true;
            self.ready.extend(advance.answer.map(|answer| (answer, Err(CommandError::Overtaken))));
        }
    }
}

/// Waits for the save that is under way, if there is one.
pub(super) async fn saved(journal: &mut Journal) -> Result<(), StoreError> {
    match &mut journal.saving {
        Some(saving) => (&mut saving.saving).await.unwrap_or(Err(StoreError::Stopped)),
        None => std::future::pending().await,
    }
}

impl ServiceTask {
    /// What would be saved now, or, with a phase and a position, once these are reached.
    fn to_be_saved(&self, phase: Option<&Phase>, position: Position) -> Record {
        let mut rollout = self.record.clone();
        let mut analysis = self.analysis.clone();
        if let (Some(rollout), Some(phase)) = (&mut rollout, phase) {
            let before = std::mem::replace(&mut rollout.phase, phase.clone());
            trial::follow(&mut analysis, &before, phase, &rollout.plan);
        }
        let runs = rollout.as_ref().is_some_and(|rollout| rollout.phase.is_running());
        Record {
            saved: clock::now(),
            configured: configured(&self.config),
            position,
            salt: self.salt,
            rollout,
            analysis: runs.then_some(analysis),
            endpoints: if runs { self.endpoints.clone() } else { Endpoints::default() },
        }
    }

    /// How traffic stands.
    pub(super) fn position(&self) -> Position {
        Position { roles: self.roles.clone(), weight: self.weight }
    }

    /// Something that happens now, as the history has it: how traffic and rollout stand after it.
    pub(super) fn entry(&self, kind: Kind, what: String, position: Position) -> Entry {
        let running = self.record.as_ref().filter(|record| record.phase.is_running());
        Entry {
            at: clock::now(),
            kind,
            what,
            rollout: running.map(|record| record.id.clone()),
            note: None,
            phase: running.map(|record| record.phase.clone()),
            position,
            by: self.context.as_ref().map(|context| context.actor.clone()),
            reason: self.context.as_ref().and_then(|context| context.reason.clone()),
            verdict: None,
        }
    }

    /// The same for a rollout's going from one phase to another.
    pub(super) fn transition_entry(&self, phase: &Phase, note: &Note, position: Position) -> Entry {
        let verdict = self.verdict.clone().filter(|_| note.is_by_verdict()).map(Box::new);
        let what = self.sentence(phase, note) + &self.kept_back(phase, note, &position);
        Entry {
            rollout: self.record.as_ref().map(|record| record.id.clone()),
            note: Some(note.clone()),
            phase: Some(phase.clone()),
            verdict,
            ..self.entry(Kind::Transition, what, position)
        }
    }

    /// Records something that has happened, to be seen and to be saved.
    pub(super) fn record(&mut self, entry: Entry) {
        self.show(&entry);
        self.journal.add(entry);
    }

    /// The same for something that has happened at how things stand now.
    pub(super) fn note(&mut self, kind: Kind, what: String) {
        let entry = self.entry(kind, what, self.position());
        self.record(entry);
    }

    /// Lets something happen once it is saved.
    pub(super) fn advance(&mut self, advance: Advance) {
        debug_assert!(!self.journal.is_advancing(), "one advance at a time");
        self.journal.advance = Some(Box::new(advance));
    }

    /// A start has just taken effect, and can be undone.
    pub(super) fn started(&mut self, before: Before) {
        self.journal.before = Some(Box::new(before));
    }

    /// Something comes that waits for no save, and takes the place of what waits for one.
    pub(super) fn overtake(&mut self) {
        self.journal.overtake();
        self.tell_of_start();
    }

    /// Of a start that cannot be saved nobody outside is to hear: it has never been.
    pub(super) fn tell_of_start_when_saved(&mut self, entry: &Entry) {
        self.journal.start = self.news(entry).map(Box::new);
    }

    fn tell_of_start(&mut self) {
        if let Some(start) = self.journal.start.take() {
            self.tell(At::Event, *start);
        }
    }

    /// Gives the store what it should have, unless it is at it.
    pub(super) fn submit(&mut self) {
        if self.journal.saving.is_some() {
            return;
        }
        let (record, purpose) = if let Some(before) = self.journal.before.take() {
            // Whatever comes of the start has to wait for it: it may be undone.
            (self.to_be_saved(None, self.position()), Purpose::Start(before))
        } else if let Some(advance) = self.journal.advance.take() {
            let record = self.to_be_saved(advance.phase.as_ref(), advance.entry.position.clone());
            (record, Purpose::Advance(advance))
        } else if self.journal.is_dirty && !self.journal.rests {
            (self.to_be_saved(None, self.position()), Purpose::Current)
        } else {
            return;
        };
        let mut entries: Vec<_> = self.journal.entries.iter().cloned().collect();
        if let Purpose::Advance(advance) = &purpose {
            entries.push(advance.entry.clone());
        }
        self.journal.given = record.saved;
        failpoint::pass("a save is to be asked for");
        let saving = self.journal.store.save(&self.config.name, record, entries);
        failpoint::pass("a save is asked for");
        let answers = std::mem::take(&mut self.journal.answers);
        let (since, entries) = (Instant::now(), self.journal.entries.len());
        self.journal.saving = Some(UnderWay { saving, since, purpose, entries, answers });
        (self.journal.is_dirty, self.journal.last) = (false, since);
    }

    /// A tick: a save that failed may be tried again, and evidence is saved now and then.
    pub(super) fn may_save_again(&mut self, is_observed: bool) {
        self.journal.rests = false;
        self.notice_silence();
        if is_observed && self.journal.last.elapsed() >= self.tick * EVIDENCE {
            self.journal.is_dirty = true;
        }
    }

    /// A disk that hangs is trouble like one that fails. Only shown: an entry would be one more thing to save, and
    /// on a disk that is merely slow the next save would call for the next entry, for ever.
    fn notice_silence(&mut self) {
        let Journal { saving, answers, before, problem, ready, .. } = &mut self.journal;
        let Some(UnderWay { purpose, answers: earlier, .. }) =
            saving.as_mut().filter(|saving| saving.since.elapsed() >= PATIENCE)
        else {
            return;
        };
        // What they asked for has happened; but a start can still be undone.
        if before.is_none() && !matches!(purpose, Purpose::Start(_)) {
            ready.extend(earlier.drain(..).chain(answers.drain(..)).map(|answer| (answer, Ok(()))));
        }
        if problem.is_none() {
            let silent = StoreError::Silent;
            let what = format!("what happens is not saved yet: {silent}");
            *problem = Some(silent);
            self.metrics.unsaved(&self.config.name);
            self.show(&self.entry(Kind::Store, what, self.position()));
        }
    }

    /// What was to be saved is, or cannot be.
    pub(super) fn settle(&mut self, saved: Result<(), StoreError>) {
        let Some(under_way) = self.journal.saving.take() else { return };
        let UnderWay { saving: _, since, purpose, entries, answers } = under_way;
        self.metrics.saved(&self.config.name, saved.is_ok(), since.elapsed());
        failpoint::pass("a save is told of");
        match saved {
            Ok(()) => {
                self.journal.entries.drain(..entries);
                match purpose {
                    Purpose::Advance(advance) => self.make(*advance),
                    Purpose::Start(_) => self.tell_of_start(),
                    Purpose::Current => {}
                }
                self.journal.ready.extend(answers.into_iter().map(|answer| (answer, Ok(()))));
                let what = "what happens can be saved again".to_owned();
                match self.journal.problem.take() {
                    Some(StoreError::Silent) => self.show(&self.entry(Kind::Store, what, self.position())),
                    Some(_) => self.note(Kind::Store, what),
                    None => {}
                }
            }
            Err(problem) => self.not_saved(purpose, answers, problem),
        }
    }

    /// An advance is saved: now it happens.
    fn make(&mut self, advance: Advance) {
        let Advance { phase, mut entry, answer } = advance;
        let before = self.record.as_ref().map(|record| record.phase.clone()).unwrap_or_default();
        if let Some(phase) = &phase {
            self.enter(phase);
        }
        self.keep_within_budget(&mut entry.position);
        self.publish(entry.position.roles.clone(), entry.position.weight);
        if let Some(phase) = &phase {
            self.tell_of_phase(&before, phase, &entry);
            failpoint::pass("a phase is told of");
        }
        self.tell_of(&entry);
        self.show(&entry);
        self.journal.ready.extend(answer.map(|answer| (answer, Ok(()))));
    }

    /// The disk may have taken its time, and a step's weight be more by now than may be lost.
    fn keep_within_budget(&mut self, position: &mut Position) {
        if self.record.as_ref().is_none_or(|record| record.phase.step().is_none()) {
            return;
        }
        let allowed =
            trial::within_budget(Exposure::canary(position.weight), self.weight, &self.analysis).weight;
        if allowed < position.weight {
            position.weight = allowed;
            self.journal.must_save();
        }
    }

    fn not_saved(&mut self, purpose: Purpose, answers: Vec<Answer>, problem: StoreError) {
        self.journal.rests = true;
        // However things stand, they are not saved.
        self.journal.is_dirty = true;
        let is_news = self.journal.problem.as_ref() != Some(&problem);
        self.journal.problem = Some(problem.clone());
        let refused = || Err(CommandError::NotSaved(problem.clone()));
        match purpose {
            Purpose::Advance(advance) => {
                let Advance { phase: _, entry, answer } = *advance;
                self.journal.ready.extend(answer.map(|answer| (answer, refused())));
                if is_news {
                    let what =
                        format!("this cannot be saved, and so does not happen: {}: {problem}", entry.what);
                    self.note(Kind::Store, what);
                }
            }
            Purpose::Start(before) => {
                self.undo(*before);
                self.journal.ready.extend(answers.into_iter().map(|answer| (answer, refused())));
                self.note(
                    Kind::Store,
                    format!("the rollout cannot be saved, and so is not begun: {problem}"),
                );
                return;
            }
            Purpose::Current if is_news => {
                self.note(
                    Kind::Store,
                    format!("what happens cannot be saved, and is tried again: {problem}"),
                );
            }
            Purpose::Current => {}
        }
        // What they asked for has happened, and how things stand says that it is not saved.
        self.journal.ready.extend(answers.into_iter().map(|answer| (answer, Ok(()))));
    }

    /// Takes back a start that nobody can be told of.
    fn undo(&mut self, before: Before) {
        let Before { revision, position, salt, record, analysis, verdict } = before;
        (self.journal.advance, self.journal.start) = (None, None);
        let began = self.record.as_ref().map(|record| record.id.clone());
        self.journal.entries.retain(|entry| entry.rollout != began);
        (self.record, self.analysis, self.verdict) = (record, analysis, verdict);
        self.salt = salt;
        self.recording = None;
        self.metrics.running(&self.config.name, false);
        self.publish(position.roles, position.weight);
        // Nothing has changed, and who goes by how it stood before may ask again.
        self.revise();
        self.revision = revision;
    }
}

/// How long a process that ends waits for what is to be saved last.
pub(super) const LAST_SAVE: Duration = Duration::from_secs(2);
