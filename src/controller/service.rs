//! One service's task: its queue, its rollout, and how it stands.

use std::{sync::Arc, time::Duration};

use tokio::sync::{mpsc, watch};

use super::{
    Answer, Ask, CommandError, Common, Counts, Reading,
    aa::{AaStatus, AaTest},
    check::Checks,
    clocks::Clocks,
    context::Context,
    drained::Drained,
    events::Events,
    gained::{self, Evidence, Gained},
    hook::Told,
    incident,
    metrics::Metrics,
    notify::Notifier,
    publish::{self, Publisher},
    recording::Recording,
    save::{self, Journal},
    standing::Standing,
    status::ServiceStatus,
    users::Tracker,
    waiting::{self, Waiting},
};
use crate::{
    analysis::{Analysis, explain::explain, verdict::Verdict},
    clock,
    config::{Backend, Service},
    failpoint,
    model::{
        name::BackendName,
        role::{Role, Roles},
        time::Timestamp,
        units::format_duration,
        weight::Weight,
    },
    rollout::{event::Event, phase::Phase, plan::Plan, trial},
    store::record::{Endpoints, Entry, Kind, Position, Rollout},
    telemetry::{ledger::Hub, reader::Totals},
};

/// How long the window of recent figures grows before it moves on.
const WINDOW: Duration = Duration::from_secs(10);

/// One service's task.
pub(super) struct ServiceTask {
    pub(super) config: Service,
    pub(super) publisher: Arc<Publisher>,
    pub(super) hub: Arc<Hub>,
    pub(super) metrics: Metrics,
    pub(super) notifier: Arc<Notifier>,
    pub(super) roles: Roles,
    pub(super) weight: Weight,
    pub(super) salt: u64,
    pub(super) record: Option<Rollout>,
    /// Of the rollout that runs, or else of the next one, which learns what stable is like meanwhile.
    pub(super) analysis: Analysis,
    pub(super) waiting: Option<Waiting>,
    /// Who is told what happens.
    pub(super) told: Vec<Told>,
    pub(super) verdict: Option<Verdict>,
    /// Of the rollout that runs, measured from its first step on.
    pub(super) checks: Option<Checks>,
    /// Of what it is judged by, if it is recorded.
    pub(super) recording: Option<Recording>,
    /// Of stable against itself, while no rollout runs.
    pub(super) aa_test: Option<AaTest>,
    pub(super) aa: AaStatus,
    /// Whose first failures are counted, where users are the unit.
    pub(super) users: Option<Tracker>,
    pub(super) drained: Drained,
    pub(super) incident: incident::Told,
    pub(super) journal: Journal,
    pub(super) tick: Duration,
    /// On whose behalf things happen now, if on anybody's.
    pub(super) context: Option<Context>,
    pub(super) events: Events,
    pub(super) revision: u64,
    /// The highest that there has been: none is of two states.
    newest: u64,
    /// What the revision is of.
    revised: Revised,
    pub(super) now: Reading,
    pub(super) before: Reading,
    /// The canary's, since the rollout began.
    pub(super) endpoints: Endpoints,
    pub(super) window: Window,
    /// As they were at the last tick.
    pub(super) clocks: Clocks,
}

/// Two older readings, so that recent figures always span at least [`WINDOW`].
pub(super) struct Window {
    pub(super) start: (Reading, tokio::time::Instant),
    next: (Reading, tokio::time::Instant),
}

impl ServiceTask {
    pub(super) fn new(config: Service, common: &Common) -> Self {
        let Common { publisher, hub, metrics, tick, reading: _, store, notifier } = common;
        let standing = Standing::of(&config, &store.found(&config.name), clock::now());
        let Standing { position, salt, rollout, has_ended, analysis, endpoints, saved, events, news } =
            standing;
        let Position { roles, weight } = position;
        metrics.begin(&config.name);
        config.backends.iter().for_each(|backend| metrics.drained(&config.name, &backend.name, false));
        metrics.published(&config.name, &roles, &roles, weight);
        let revised = revised(Position { roles: roles.clone(), weight }, rollout.as_ref());
        // No number of a task before this one, in this process or another.
        let revision = clock::now().as_millis();
        let beginning = || (Reading::default(), tokio::time::Instant::now());
        let mut task = Self {
            roles,
            weight,
            salt,
            verdict: analysis.as_ref().map(Analysis::verdict),
            analysis: analysis.unwrap_or_else(|| fresh_analysis(&config, rollout.as_ref(), *tick)),
            record: rollout,
            waiting: None,
            told: Vec::new(),
            checks: None,
            recording: None,
            aa_test: None,
            aa: AaStatus::default(),
            users: Tracker::of(&config, hub),
            drained: Drained::default(),
            incident: incident::Told::default(),
            journal: Journal::new(store.clone()),
            context: None,
            events: Events::of(events),
            revision,
            newest: revision,
            revised,
            tick: *tick,
            now: Reading::default(),
            before: Reading::default(),
            endpoints,
            window: Window { start: beginning(), next: beginning() },
            clocks: Clocks::read(),
            config,
            publisher: Arc::clone(publisher),
            hub: Arc::clone(hub),
            metrics: metrics.clone(),
            notifier: Arc::clone(notifier),
        };
        task.metrics.running(&task.config.name, task.running().is_some());
        task.metrics.rollback_until(&task.config.name, task.rollback_until());
        if saved.is_some() {
            task.begin_recording(saved);
        }
        if task.running().is_some() {
            task.take_up_checks();
        }
        task.take_up_hooks();
        news.into_iter().for_each(|(kind, what)| task.note(kind, what));
        if has_ended {
            task.has_ended_meanwhile();
        }
        task
    }

    /// Takes what comes, in the order in which it comes, until nobody can send any more.
    pub(super) async fn run(
        mut self,
        mut requests: mpsc::Receiver<(Ask, Answer)>,
        mut configs: watch::Receiver<(Service, Context)>,
        mut readings: watch::Receiver<Reading>,
        status: watch::Sender<ServiceStatus>,
    ) {
        loop {
            while let Some((request, context, answer)) = self.journal.next_held() {
                // It may have been held for long: then they have been told so, or are gone, and may want
                // something else by now.
                if context.is_waited_for() {
                    self.obey(Ask::Request(request, context), answer);
                } else {
                    self.journal.answer(answer, Err(CommandError::TooLate));
                }
            }
            self.wait_as_it_should();
            self.submit();
            self.revise();
            status.send_replace(self.status());
            // After that: whoever asked may look at once.
            for (answer, result) in self.journal.ready() {
                failpoint::pass("an answer is to be given");
                let _gone = answer.send(result.map(|()| self.status()));
            }
            tokio::select! {
                // First, so that nothing is decided by a configuration that is not in force any more.
                biased;
                Ok(()) = configs.changed() => {
                    let (config, by) = configs.borrow_and_update().clone();
                    self.reconfigure(config, by);
                }
                saved = save::saved(&mut self.journal) => self.settle(saved),
                request = requests.recv() => {
                    let Some((ask, answer)) = request else {
                        self.without(&[]);
                        return self.metrics.end(&self.config.name, &self.roles);
                    };
                    self.obey(ask, answer);
                }
                changed = readings.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let reading = Arc::clone(&readings.borrow_and_update());
                    let begun = reading.begun;
                    self.observe(reading);
                    if let Some(begun) = begun {
                        self.metrics.ticked(begun.elapsed());
                    }
                }
                event = waiting::come(&mut self.waiting) => self.has_come(event),
            }
        }
    }

    /// Another configuration is in force. Roles and weight that are written anew have been published with
    /// it; otherwise they stay as they have become.
    fn reconfigure(&mut self, config: Service, by: Context) {
        if self.config.roles != config.roles || self.config.weight != config.weight {
            self.overtake();
            self.metrics.published(&config.name, &self.roles, &config.roles, config.weight);
            self.roles = config.roles.clone();
            self.weight = config.weight;
            self.salt = publish::salt(&config.name, 0);
            self.end_test();
            self.forget_evidence();
            let stable = self.roles.stable();
            let what = match self.roles.canary() {
                Some(canary) => format!("configured anew: {stable} is stable, {canary} gets {}", self.weight),
                None => format!("configured anew: {stable} gets all requests"),
            };
            self.context = Some(by);
            self.note(Kind::Configuration, what);
            self.context = None;
        }
        self.without(&config.backends);
        self.config = config;
        self.count_users();
        self.take_up_hooks();
    }

    /// No backends but these are there any more.
    fn without(&mut self, there: &[Backend]) {
        let is_there = |name: &BackendName| there.iter().any(|backend| backend.name == *name);
        for gone in self.config.backends.iter().filter(|backend| !is_there(&backend.name)) {
            self.metrics.without(&self.config.name, &gone.name);
        }
        self.drained.keep(is_there);
    }

    /// Begins another revision if it does not stand as it did.
    pub(super) fn revise(&mut self) {
        let now = revised(self.position(), self.record.as_ref());
        if now != self.revised {
            self.newest += 1;
            self.revision = self.newest;
            self.revised = now;
            self.metrics.rollback_until(&self.config.name, self.rollback_until());
        }
    }

    /// Until when the old version is kept warm for the way back, if there is one to go.
    pub(super) fn rollback_until(&self) -> Option<Timestamp> {
        self.record.as_ref()?.rollback_until(&self.roles)
    }

    /// A tick: what came in since the last one becomes a verdict, and the verdict an event.
    fn observe(&mut self, reading: Reading) {
        // Before anything looks how long something has lasted.
        self.look_at_the_clock();
        self.before = std::mem::replace(&mut self.now, reading);
        self.window.advance(&self.now);
        self.count_endpoints();
        let observed = |phase: &Phase| {
            matches!(phase, Phase::Stepping { .. } | Phase::Paused { .. } | Phase::Baking { .. })
        };
        let is_observed = self.record.as_ref().is_some_and(|record| observed(&record.phase));
        self.may_save_again(is_observed);
        self.come_again();
        self.keep_to_the_calendar();
        self.notice_drained();
        self.look_who_is_drained();
        let running = self.record.as_ref().filter(|record| record.phase.is_running());
        if running.is_none() {
            self.checks = None;
            self.incident = incident::Told::default();
        }
        let phase = running.map_or(Phase::Idle, |record| record.phase.clone());
        let nobody_drawn = running.is_some_and(|record| trial::is_by_rules(&phase, &record.plan));
        let users = self.told_of_users(&phase);
        let between = (&*self.now, &*self.before);
        let evidence = if nobody_drawn { Evidence::All } else { Evidence::Drawn };
        let told = (evidence, self.analysis.routes_told());
        let gained = Gained::between(between, &self.config, &self.roles, told);
        let Some(gained) = gained else { return };
        let (users, halves) = users.map(|told| (told.arms, told.halves)).unzip();
        let gained = gained.by_users(users);
        self.test_itself(gained.stable(), halves.flatten().as_ref());
        let between = (&*self.now, &*self.before);
        let pairs = self.is_dark().then(|| gained::pairs(between, &self.config.name));
        let at = self.journal.after_what_is_given();
        let mut line = self.line(at, &phase, &gained);
        if let Some(line) = &mut line {
            line.pairs = pairs;
        }
        let analysis = &mut self.analysis;
        let observed = gained.tell(|tick| trial::observe(analysis, &phase, tick, pairs.as_ref()));
        self.tell_what_is_slow();
        let (mut decision, mut checks) = (observed, Vec::new());
        if is_observed && observed.is_some() {
            let mut verdict = self.analysis.verdict();
            self.tell_endpoint_from_version(&mut verdict);
            self.tell_of_incident(&verdict);
            checks = self.ask_elsewhere(&mut verdict);
            decision = Some(verdict.decision);
            self.metrics.evidence(&self.config.name, verdict.evidence / verdict.threshold);
            self.verdict = Some(verdict);
        }
        self.write_down(line, checks);
        let Some(decision) = decision else { return };
        let event = Event::Tick(decision);
        if !self.is_held_back(&event) {
            self.happen(event);
        }
        self.keep_to_budget();
    }

    /// Whether the canary gets copies now, and no users.
    fn is_dark(&self) -> bool {
        self.copies() > Weight::ZERO
    }

    /// The share of stable's requests that the rollout gives the canary copies of.
    pub(super) fn copies(&self) -> Weight {
        self.record.as_ref().map_or(Weight::ZERO, Rollout::copies)
    }

    /// Gives the canary no more of the step's weight than may be lost by it.
    fn keep_to_budget(&mut self) {
        let harm = self.verdict.as_ref().and_then(|verdict| verdict.harm);
        let (Some(harm), Some(record)) = (harm, &self.record) else { return };
        let step = record.phase.step().and_then(|step| record.plan.steps().get(step));
        let Some(weight) = step.map(|step| trial::weight(step.weight, self.weight, Some(&harm))) else {
            return;
        };
        let is_more = weight > self.weight;
        // What waits for its save comes first; there is another tick after it, and after a freeze or a pause,
        // in which nobody more is to get there.
        let is_paused = matches!(record.phase, Phase::Paused { .. });
        let waits = is_more && (self.journal.is_advancing() || is_paused || self.freeze().is_some());
        if weight != self.weight && !waits {
            let what = format!("weight set to {weight}: more could cost over {:.0} requests", harm.budget);
            let position = Position { weight, ..self.position() };
            self.stand(position, is_more, (Kind::Weight, what));
        }
    }

    /// A new rollout is being prepared: evidence begins at nothing, with what is known of stable.
    pub(super) fn begin_preparing(&mut self) {
        self.verdict = None;
        self.take_up_checks();
        self.end_test();
        self.analysis = new_analysis(&self.config, &self.config.rollout.plan, self.tick)
            .knowing(&self.analysis.learned());
        self.begin_endpoints();
        self.begin_recording(None);
    }

    /// Whatever was gathered is about another rollout, or another stable: evidence begins at nothing.
    pub(super) fn forget_evidence(&mut self) {
        self.recording = None;
        self.analysis = new_analysis(&self.config, &self.config.rollout.plan, self.tick);
    }

    /// The sentence that explains the last verdict.
    pub(super) fn explanation(&self) -> Option<String> {
        self.verdict.as_ref().map(explain)
    }

    /// Shows something that has happened, in the log and to whoever looks.
    pub(super) fn show(&mut self, entry: &Entry) {
        let Entry { at, what, by, reason, .. } = entry;
        tracing::info!(service = %self.config.name, by, reason, "{what}");
        self.events.push(*at, what.clone(), by.clone(), reason.clone());
    }

    pub(super) fn running(&self) -> Option<&'static str> {
        self.record.as_ref().map(|record| &record.phase).filter(|phase| phase.is_running()).map(Phase::name)
    }
}

fn new_analysis(config: &Service, plan: &Plan, tick: Duration) -> Analysis {
    let rollout = &config.rollout;
    let analysis = trial::begin(&rollout.analysis, plan, tick);
    analysis.with_routes(&rollout.analysis, config.routes.iter().cloned())
}

/// The same for a rollout that may be under way already.
fn fresh_analysis(config: &Service, rollout: Option<&Rollout>, tick: Duration) -> Analysis {
    let running = rollout.filter(|rollout| rollout.phase.is_running());
    let plan = running.map_or(&config.rollout.plan, |rollout| &rollout.plan);
    let mut analysis = new_analysis(config, plan, tick);
    if let Some(Rollout { phase, plan, .. }) = rollout {
        let step = phase.step().map(|step| Phase::Stepping { step, since: Timestamp::from_millis(0) });
        trial::follow(&mut analysis, &Phase::Idle, step.as_ref().unwrap_or(phase), plan);
    }
    if running.is_some_and(|rollout| rollout.guards_only) {
        analysis.judge_by_guards_alone();
    }
    analysis
}

/// What a revision is of: all that a write may be meant for. Of a rollout: which, where it is, and whether it is
/// judged by guards alone.
type Revised = (Position, Option<(String, Phase, bool)>);

fn revised(position: Position, rollout: Option<&Rollout>) -> Revised {
    (position, rollout.map(|rollout| (rollout.id.clone(), rollout.phase.clone(), rollout.guards_only)))
}

impl Window {
    fn advance(&mut self, reading: &Reading) {
        if self.next.1.elapsed() >= WINDOW {
            let next = (Arc::clone(reading), tokio::time::Instant::now());
            self.start = std::mem::replace(&mut self.next, next);
        }
    }
}

/// What one series gained between two readings.
pub(super) fn delta(
    now: &Counts,
    before: &Counts,
    (service, backend, role): (&Service, &BackendName, Role),
) -> Totals {
    let series = (service.name.clone(), backend.clone(), role);
    match (now.totals.get(&series), before.totals.get(&series)) {
        (Some(now), Some(before)) => now.since(before),
        (Some(now), None) => now.clone(),
        (None, _) => Totals::default(),
    }
}

/// The service's plan in words, for the note that starts a rollout.
pub(super) fn plan_in_words(plan: &Plan) -> String {
    let steps: Vec<String> = plan
        .steps()
        .iter()
        .map(|step| {
            let hold = format_duration(step.hold);
            match step.mirror {
                Some(mirror) => format!("copies of {mirror} for {hold}"),
                None => format!("{} for {hold}", step.weight),
            }
        })
        .collect();
    steps.join(", then ")
}
