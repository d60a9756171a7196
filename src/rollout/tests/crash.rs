//! A world of one rollout: what is saved, and what is published. Effects happen one at a time with
//! a crash possible before, between and after any two; the design's sentences must hold after each.

use std::collections::{BTreeMap, HashSet};

use proptest::{
    collection::{btree_map, vec as any_vec},
    prelude::any,
    prop_oneof, proptest,
    sample::select,
    strategy::{Just, Strategy as Generator},
};

use super::*;

/// How many effects of an event a process survives; at [`ALL`] it does not crash.
type Survives = usize;

const ALL: Survives = 9;

struct World {
    plan: Plan,
    saved: Phase,
    published: Exposure,
}

impl World {
    fn new(plan: Plan, saved: Phase) -> Self {
        let published = saved.exposure(&plan);
        Self { plan, saved, published }
    }

    /// One event, perhaps a crash, and if so a restart from what is saved.
    fn live(&mut self, event: &Event, now: Timestamp, survives: Survives) {
        let Ok(transition) = machine::step(self.saved.clone(), &self.plan, event.clone(), now) else {
            assert!(matches!(event, Event::Command(_)), "only commands may be refused: {event:?}");
            return;
        };
        if transition.effects.is_empty() {
            assert_eq!(transition.phase, self.saved, "a phase must not change unsaved");
        }
        let before = self.saved.clone();
        for effect in transition.effects.iter().take(survives) {
            match effect {
                Effect::Save => self.saved = transition.phase.clone(),
                Effect::Publish(exposure) => self.published = *exposure,
            }
            self.check(&before, event, now);
        }
        if survives < transition.effects.len() {
            self.published = self.saved.exposure(&self.plan);
            self.check(&before, event, now);
        }
        let Self { plan, saved, published } = self;
        assert_eq!(*published, saved.exposure(plan), "what is published must catch up with the record");
    }

    fn check(&self, before: &Phase, event: &Event, now: Timestamp) {
        self.exposure_never_exceeds_record();
        self.a_rolled_back_rollout_never_advances(before, event);
        self.canary_never_gets_more_than_its_plan_allows(before, event, now);
        self.gates_and_hooks_are_passed_by_those_who_may(before, event);
        self.two_rollouts_never_run(before, event, now);
        self.in_a_freeze_only_a_person_moves_it_forward(before, event);
        self.it_succeeds_after_its_bake(before, event, now);
    }

    /// "A crash at any point thus leaves less canary traffic than recorded, never more."
    fn exposure_never_exceeds_record(&self) {
        let recorded = self.saved.exposure(&self.plan);
        assert!(self.published <= recorded, "{:?} exceeds {recorded:?}", self.published);
    }

    /// From `rolling_back` only `rolled_back` follows, and from there only another start.
    fn a_rolled_back_rollout_never_advances(&self, before: &Phase, event: &Event) {
        match before {
            Phase::RollingBack { .. } => {
                assert!(matches!(self.saved, Phase::RollingBack { .. } | Phase::RolledBack { .. }));
            }
            Phase::RolledBack { .. } if !matches!(event, Event::Command(Command::Start { .. })) => {
                assert_eq!(self.saved, *before);
            }
            _ => return,
        }
        assert_eq!(self.published, Exposure::NONE);
    }

    /// One rung of the plan's ladder at a time, each earned by its hold and the evidence or by a
    /// command; and nothing that is not on the ladder.
    fn canary_never_gets_more_than_its_plan_allows(&self, before: &Phase, event: &Event, now: Timestamp) {
        let ladder = ladder(&self.plan);
        // Where two are alike, that a rollout is no higher than the lower one is what matters.
        let rung = ladder.iter().position(|rung| *rung == self.published).expect("on the ladder");
        let earned = match (event, before) {
            (Event::Prepared, Phase::Preparing { full: true, .. }) => ladder.len(),
            (Event::Prepared, Phase::Preparing { .. }) => 1,
            (Event::HookAnswered(Ok(())), Phase::Paused { reason: PauseReason::Hook, earned: false, .. })
            | (Event::Tick(Decision::Advance), Phase::Paused { reason: PauseReason::HookAllowed, .. }) => 1,
            (
                Event::Command(Command::Resume),
                Phase::Paused { reason: PauseReason::Gate | PauseReason::HookFailed, .. },
            ) => 1,
            (Event::Command(PROMOTE), Phase::Stepping { .. } | Phase::Paused { .. }) => 1,
            (Event::Command(PROMOTE_FULL), Phase::Stepping { .. } | Phase::Paused { .. }) => ladder.len(),
            (Event::Tick(Decision::Advance), Phase::Stepping { step, since }) => {
                usize::from(lasted(*since, now) >= millis(self.plan.steps()[*step].hold))
            }
            _ => 0,
        };
        let most = reached(before, &self.plan) + earned;
        assert!(rung <= most, "{:?} after {event:?} in {before:?}", self.published);
    }

    /// More than a gated step only by a person, more than a hooked one only by the hook or a person.
    fn gates_and_hooks_are_passed_by_those_who_may(&self, before: &Phase, event: &Event) {
        let Some(step) = before.step().filter(|step| has_left(*step, &self.saved)) else { return };
        let by_person = matches!(event, Event::Command(Command::Promote { .. } | Command::Resume));
        let by_hook = match before {
            Phase::Paused { reason: PauseReason::Hook, .. } => *event == Event::HookAnswered(Ok(())),
            Phase::Paused { reason: PauseReason::HookAllowed, .. } => {
                *event == Event::Tick(Decision::Advance)
            }
            _ => false,
        };
        assert!(by_person || by_hook || !self.plan.has_gate_after(step), "{event:?} in {before:?}");
        let instead = matches!(event, Event::Command(Command::Promote { .. }));
        assert!(instead || by_hook || !self.plan.has_hook_after(step), "{event:?} in {before:?}");
    }

    /// A rollout begins by a start, where none runs, and once the last one has cooled down unless that is forced.
    fn two_rollouts_never_run(&self, before: &Phase, event: &Event, now: Timestamp) {
        let Phase::Preparing { since, .. } = self.saved else { return };
        match (event, before) {
            (_, Phase::Preparing { since: began, .. }) => assert_eq!(since, *began, "{event:?}"),
            (Event::Command(START), Phase::RolledBack { at, .. }) => {
                // A clock that went back locks nobody out.
                assert!(
                    *at > now || lasted(*at, now) >= millis(self.plan.cool_down()),
                    "{before:?} at {now:?}"
                );
            }
            (Event::Command(Command::Start { .. }), _) => assert!(!before.is_running(), "{before:?}"),
            _ => panic!("{event:?} in {before:?} begins a rollout"),
        }
    }

    /// What has stopped for a freeze goes on with its end, and until then no further than a person wants.
    fn in_a_freeze_only_a_person_moves_it_forward(&self, before: &Phase, event: &Event) {
        let Phase::Paused { reason: PauseReason::Freeze, step, .. } = before else { return };
        if has_left(*step, &self.saved) {
            assert!(matches!(event, Event::Command(Command::Promote { .. })), "{event:?} in {before:?}");
        }
        if matches!(self.saved, Phase::Stepping { step: now, .. } if now == *step) {
            assert_eq!(*event, Event::Thawed, "in {before:?}");
        }
    }

    /// The new version is stable for good after it was watched for as long as the plan says, and not before.
    fn it_succeeds_after_its_bake(&self, before: &Phase, event: &Event, now: Timestamp) {
        let (Phase::Succeeded { .. }, false) = (&self.saved, matches!(before, Phase::Succeeded { .. }))
        else {
            return;
        };
        let Phase::Baking { since } = before else { panic!("{event:?} in {before:?} is a success") };
        assert!(matches!(event, Event::Tick(_)) && *event != Event::Tick(Decision::RollBack), "{event:?}");
        assert!(lasted(*since, now) >= millis(self.plan.bake()), "{before:?} at {now:?}");
    }
}

/// How long something has lasted, in milliseconds; less than nothing where the clock stands before its beginning.
fn lasted(since: Timestamp, now: Timestamp) -> i128 {
    i128::from(now.as_millis()) - i128::from(since.as_millis())
}

fn millis(time: Duration) -> i128 {
    i128::try_from(time.as_millis()).unwrap()
}

/// Whether a rollout that was in this step is beyond it now.
fn has_left(step: usize, now: &Phase) -> bool {
    match now {
        Phase::Promoting { .. } | Phase::Baking { .. } | Phase::Succeeded { .. } => true,
        now => now.step().is_some_and(|now| now > step),
    }
}

/// The rung of the ladder that a phase stands on.
fn reached(phase: &Phase, plan: &Plan) -> usize {
    match phase {
        Phase::Promoting { .. } | Phase::Baking { .. } | Phase::Succeeded { .. } => ladder(plan).len() - 1,
        phase if plan.strategy() == Strategy::Canary => phase.step().map_or(0, |step| step + 1),
        _ => 0,
    }
}

/// Every exposure that a plan allows, in the order in which it allows them: nothing, one for each step, everything.
fn ladder(plan: &Plan) -> Vec<Exposure> {
    let steps = match plan.strategy() {
        Strategy::Canary => plan.steps(),
        Strategy::BlueGreen => &[],
    };
    let exposure = |step: &Step| match step.mirror {
        Some(copies) => Exposure::dark(copies),
        None => Exposure::canary(step.weight),
    };
    [Exposure::NONE].into_iter().chain(steps.iter().map(exposure)).chain([Exposure::SWAPPED]).collect()
}

fn plans() -> Vec<Plan> {
    let choices = [WhenInconclusive::Hold, WhenInconclusive::Pause, WhenInconclusive::RollBack];
    let mut impatient = draft();
    impatient.steps[0].hold = Duration::ZERO;
    impatient.deadline = Duration::ZERO;
    impatient.bake = Duration::ZERO;
    let mut to_the_top = draft();
    to_the_top.steps.push(Step::new(Weight::FULL, Duration::from_millis(5)));
    let mut asking = draft();
    asking.steps[0].gate = true;
    asking.hooks = Hooks { step: true, promotion: true, on_failure: OnHookFailure::RollBack };
    asking.cool_down = Duration::from_millis(15);
    let mut forced = draft();
    forced.steps.insert(0, Step::new(Weight::ZERO, Duration::from_millis(10)));
    forced.unweighted = true;
    let mut dark = draft();
    dark.steps.insert(0, Step::dark(weight(10.0), Duration::from_millis(10)));
    let mut darker = dark.clone();
    darker.steps.insert(1, Step::dark(weight(1.0), Duration::from_millis(10)));
    // First copies, then users whom a rule sends, then users.
    let mut forced_after_dark = forced.clone();
    forced_after_dark.steps.insert(0, Step::dark(weight(10.0), Duration::from_millis(10)));
    let flip = Draft { strategy: Strategy::BlueGreen, steps: vec![], promotion_gate: true, ..draft() };
    let more = [impatient, to_the_top, asking, forced, forced_after_dark, dark, darker, flip];
    let more = more.map(|draft| Plan::new(draft).unwrap()).into_iter().chain([blue_green()]);
    choices.map(when_inconclusive).into_iter().chain(more).collect()
}

fn events() -> Vec<Event> {
    let decisions = [Decision::Continue, Decision::Advance, Decision::RollBack, Decision::Hold];
    let ticks = decisions.map(Event::Tick).into_iter();
    let others = [
        Event::Prepared,
        Event::PrepareFailed("no".into()),
        Event::HookAnswered(Ok(())),
        Event::HookAnswered(Err("no".into())),
        Event::Frozen,
        Event::Thawed,
        Event::Drained,
    ];
    ticks.chain(Command::ALL.map(Event::Command)).chain(others).collect()
}

fn time_of(phase: &mut Phase) -> Option<&mut Timestamp> {
    match phase {
        Phase::Idle => None,
        Phase::Preparing { since: time, .. }
        | Phase::Stepping { since: time, .. }
        | Phase::Paused { since: time, .. }
        | Phase::Promoting { since: time }
        | Phase::Baking { since: time }
        | Phase::Succeeded { at: time }
        | Phase::RollingBack { since: time, .. }
        | Phase::RolledBack { at: time, .. } => Some(time),
    }
}

/// Where the clock stands before each event of the exhaustive test.
const NOW: u64 = 1_000;

/// The phase with its time moved as if the clock stood at [`NOW`] again, and its age cut to what can
/// matter: longer than hold and deadline, or in the future. So the number of phases is finite.
fn rebased(mut phase: Phase, now: u64) -> Phase {
    if let Some(time) = time_of(&mut phase) {
        *time = at((NOW + time.as_millis()).saturating_sub(now).clamp(NOW - 40, NOW + 10));
    }
    phase
}

/// Every phase that can be reached, every event in it, on both sides of every threshold of time and
/// with the clock going back, and a crash at every effect.
#[test]
fn the_designs_sentences_hold_in_every_reachable_phase() {
    for plan in plans() {
        let mut seen = vec![Phase::Idle];
        let mut next = 0;
        while let Some(phase) = seen.get(next).cloned() {
            next += 1;
            for event in &events() {
                for (now, survives) in [NOW - 5, NOW, NOW + 5, NOW + 10, NOW + 30]
                    .into_iter()
                    .flat_map(|now| [0, 1, ALL].map(|survives| (now, survives)))
                {
                    let mut world = World::new(plan.clone(), phase.clone());
                    world.live(event, at(now), survives);
                    let reached = rebased(world.saved, now);
                    if !seen.contains(&reached) {
                        seen.push(reached);
                    }
                }
            }
        }
        let kinds: HashSet<_> = seen.iter().map(Phase::name).collect();
        // Blue/green has no steps, and waits only if it has a gate.
        let never = match (plan.strategy(), plan.has_gate_after(0)) {
            (Strategy::Canary, _) => 0,
            (Strategy::BlueGreen, true) => 1,
            (Strategy::BlueGreen, false) => 2,
        };
        assert_eq!(kinds.len(), phases().len() - never, "every kind of phase is reached: {kinds:?}");
    }
}

/// Any plan, with times of the same size as the story's: dark steps and then live ones, the first of which may have
/// no weight; or all at once, with or without a gate.
fn any_plan() -> impl Generator<Value = Plan> {
    let dark = any_vec((1u16..=10_000, 0u64..40, any::<bool>()), 0..3);
    let weights = prop_oneof![1 => Just(0u16), 6 => 1u16..=10_000];
    let live = btree_map(weights, (0u64..40, any::<bool>()), 0..5);
    let hooks = (any::<bool>(), any::<bool>(), select(vec![OnHookFailure::Pause, OnHookFailure::RollBack]));
    let hooks = hooks.prop_map(|(step, promotion, on_failure)| Hooks { step, promotion, on_failure });
    let times = [0u64..40, 0..40, 0..40, 0..40, 0..40];
    let choice = select(vec![WhenInconclusive::Hold, WhenInconclusive::Pause, WhenInconclusive::RollBack]);
    (dark, live, times, choice, hooks, any::<bool>()).prop_map(drawn)
}

type Drawn = (Vec<(u16, u64, bool)>, BTreeMap<u16, (u64, bool)>, [u64; 5], WhenInconclusive, Hooks, bool);

fn drawn((dark, live, times, when_inconclusive, hooks, promotion_gate): Drawn) -> Plan {
    let strategy = if live.is_empty() { Strategy::BlueGreen } else { Strategy::Canary };
    let is_canary = strategy == Strategy::Canary;
    let share = |hundredths| Weight::from_hundredths(hundredths).unwrap();
    let dark = dark.into_iter().filter(|_| is_canary).map(|(copies, hold, gate)| {
        let step = Step::dark(share(copies), Duration::from_millis(hold));
        Step { gate, ..step }
    });
    let live = live.into_iter().map(|(weight, (hold, gate))| {
        let step = Step::new(share(weight), Duration::from_millis(hold));
        Step { gate, ..step }
    });
    let [bake, deadline, drain, cool_down, rollback_window] = times.map(Duration::from_millis);
    let draft = Draft {
        strategy,
        steps: dark.chain(live).collect(),
        bake,
        deadline,
        drain,
        cool_down,
        rollback_window,
        when_inconclusive,
        promotion_gate: promotion_gate && !is_canary,
        hooks,
        unweighted: true,
    };
    Plan::new(draft).unwrap()
}

/// How the clock moves between two events: mostly on, now and then back, and once in a while far away, as when
/// somebody sets it.
fn any_move() -> impl Generator<Value = i64> {
    prop_oneof![12 => -30i64..60, 1 => select(vec![-3_600_000, 3_600_000, i64::MIN, i64::MAX])]
}

/// Events as they come: mostly good ones, or no rollout would get far.
fn any_event() -> impl Generator<Value = Event> {
    let good = vec![
        Event::Tick(Decision::Advance),
        Event::Tick(Decision::Continue),
        Event::Prepared,
        Event::HookAnswered(Ok(())),
        Event::Command(PROMOTE),
    ];
    prop_oneof![3 => select(good), 1 => select(events())]
}

proptest! {
    #[test]
    fn the_designs_sentences_hold_in_any_story(
        plan in any_plan(),
        story in any_vec((any_event(), any_move(), select(vec![0, 1, ALL, ALL, ALL])), 1..120),
    ) {
        let mut world = World::new(plan, Phase::Idle);
        let mut now = 1_000u64;
        world.live(&Event::Command(START), at(now), ALL);
        for (event, later, survives) in story {
            now = now.saturating_add_signed(later);
            world.live(&event, at(now), survives);
        }
    }

    #[test]
    fn no_record_and_no_clock_makes_the_machine_panic(
        kind in 0usize..9, step in any::<usize>(), since in any::<u64>(), now in any::<u64>(),
        event in select(events()),
    ) {
        let mut phase = phases()[kind].clone();
        if let Some(time) = time_of(&mut phase) {
            *time = at(since);
        }
        if let Phase::Stepping { step: s, .. } | Phase::Paused { step: s, .. } = &mut phase {
            *s = step;
        }
        if let Ok(transition) = machine::step(phase, &plan(), event, at(now)) {
            let text = transition.note.map(|note| note.to_string());
            assert_ne!(text.as_deref(), Some(""));
        }
    }
}
