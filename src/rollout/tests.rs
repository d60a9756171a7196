//! The rules of the machine, one by one; those of gates and hooks in `hooks`. `crash` lets whole worlds run and crash.

mod crash;
mod hooks;
mod lifecycle;

use std::time::Duration;

use super::{
    effect::{Effect, in_safe_order},
    event::{Command, Event},
    machine::{self, Transition},
    note::{AdvancedBy, Note},
    phase::{Exposure, PauseReason, Phase, RollBackReason},
    plan::{Draft, Hooks, OnHookFailure, Plan, Step, Strategy, WhenInconclusive},
    refused::{Why, allowed},
};
use crate::{
    analysis::verdict::Decision,
    model::{time::Timestamp, weight::Weight},
};

const START: Command = Command::Start { force: false, guards_only: false };
const PROMOTE: Command = Command::Promote { full: false };
const PROMOTE_FULL: Command = Command::Promote { full: true };

fn weight(percent: f64) -> Weight {
    Weight::from_percent(percent).unwrap()
}

fn at(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

/// Steps of 10 %, 50 %, held for 10 ms; deadline 20 ms beyond; bake and drain 10 ms.
fn draft() -> Draft {
    let hold = Duration::from_millis(10);
    Draft {
        strategy: Strategy::Canary,
        steps: [10.0, 50.0].map(|percent| Step::new(weight(percent), hold)).into(),
        bake: hold,
        deadline: Duration::from_millis(20),
        when_inconclusive: WhenInconclusive::Pause,
        drain: hold,
        ..Draft::default()
    }
}

fn plan() -> Plan {
    Plan::new(draft()).unwrap()
}

fn blue_green() -> Plan {
    Plan::new(Draft { strategy: Strategy::BlueGreen, steps: vec![], ..draft() }).unwrap()
}

fn when_inconclusive(when_inconclusive: WhenInconclusive) -> Plan {
    Plan::new(Draft { when_inconclusive, ..draft() }).unwrap()
}

/// One phase of every kind, all begun at 100 ms.
fn phases() -> [Phase; 9] {
    let since = at(100);
    let reason = RollBackReason::Verdict;
    [
        Phase::Idle,
        Phase::Preparing { since, full: false },
        Phase::Stepping { step: 0, since },
        Phase::Paused { step: 0, since, reason: PauseReason::Command, earned: false },
        Phase::Promoting { since },
        Phase::Baking { since },
        Phase::Succeeded { at: since },
        Phase::RollingBack { since, reason: reason.clone() },
        Phase::RolledBack { at: since, reason },
    ]
}

fn stepping(step: usize) -> Phase {
    Phase::Stepping { step, since: at(100) }
}

fn paused(step: usize, reason: PauseReason) -> Phase {
    Phase::Paused { step, since: at(100), reason, earned: false }
}

fn happens(phase: Phase, event: Event, now: u64) -> Transition {
    machine::step(phase, &plan(), event, at(now)).unwrap()
}

fn ticks(phase: Phase, decision: Decision, now: u64) -> Transition {
    happens(phase, Event::Tick(decision), now)
}

fn check(transition: &Transition, phase: &Phase, effects: &[Effect]) {
    assert_eq!(&transition.phase, phase);
    assert_eq!(transition.effects, effects);
    assert_eq!(transition.note.is_none(), effects.is_empty(), "{:?}", transition.note);
}

#[test]
fn a_rollout_that_goes_well_saves_before_it_publishes() {
    use Effect::{Publish, Save};
    let step = |i: usize| Publish(Exposure::canary(plan().steps()[i].weight));
    let since = at(100);
    let advance = Event::Tick(Decision::Advance);
    let story = [
        (Event::Command(START), Phase::Preparing { since, full: false }, vec![Publish(Exposure::NONE), Save]),
        (Event::Prepared, stepping(0), vec![Save, step(0)]),
        (advance.clone(), Phase::Stepping { step: 1, since: at(110) }, vec![Save, step(1)]),
        (advance.clone(), Phase::Promoting { since: at(120) }, vec![Save, Publish(Exposure::SWAPPED)]),
        (Event::Tick(Decision::Continue), Phase::Baking { since: at(120) }, vec![Save]),
        (advance, Phase::Succeeded { at: at(130) }, vec![Save]),
    ];
    let mut now = Phase::Idle;
    for ((event, phase, effects), millis) in story.into_iter().zip([100, 100, 110, 120, 120, 130]) {
        let transition = happens(now, event, millis);
        check(&transition, &phase, &effects);
        now = transition.phase;
    }
}

#[test]
fn a_dark_step_gives_copies_and_no_users() {
    use Effect::{Publish, Save};
    let mut draft = draft();
    draft.steps.insert(0, Step::dark(weight(20.0), Duration::from_millis(10)));
    let plan = Plan::new(draft).unwrap();
    let happens = |phase, event, now| machine::step(phase, &plan, event, at(now)).unwrap();
    let dark = happens(Phase::Preparing { since: at(90), full: false }, Event::Prepared, 100);
    let copies = Exposure { copies: weight(20.0), ..Exposure::NONE };
    check(&dark, &stepping(0), &[Save, Publish(copies)]);
    assert_eq!(copies.weight, Weight::ZERO);
    let sentence = "step 1 began: the canary gets copies of 20 % of requests (it is ready)";
    assert_eq!(dark.note.unwrap().to_string(), sentence);
    let live = happens(stepping(0), Event::Tick(Decision::Advance), 110);
    let users = Exposure::canary(weight(10.0));
    check(&live, &Phase::Stepping { step: 1, since: at(110) }, &[Save, Publish(users)]);
    assert_eq!(users.copies, Weight::ZERO);
    let back = happens(stepping(0), Event::Tick(Decision::RollBack), 105);
    assert_eq!(back.effects, [Publish(Exposure::NONE), Save]);
}

#[test]
fn advance_waits_for_the_hold() {
    check(&ticks(stepping(0), Decision::Advance, 109), &stepping(0), &[]);
    assert_eq!(ticks(stepping(0), Decision::Advance, 110).phase.step(), Some(1));
}

#[test]
fn only_an_advance_leaves_a_step() {
    for decision in [Decision::Continue, Decision::Hold] {
        check(&ticks(stepping(0), decision, 129), &stepping(0), &[]);
    }
}

#[test]
fn a_decision_to_roll_back_is_followed_in_every_phase_that_has_a_way_back() {
    for phase in phases() {
        let now = ticks(phase.clone(), Decision::RollBack, 90);
        if phase.can_roll_back() {
            let back = Phase::RollingBack { since: at(90), reason: RollBackReason::Verdict };
            check(&now, &back, &[Effect::Publish(Exposure::NONE), Effect::Save]);
        } else {
            assert_eq!(now.phase.exposure(&plan()), phase.exposure(&plan()), "{phase:?}");
        }
    }
}

#[test]
fn rolling_back_ends_when_drained_or_after_a_while_and_keeps_its_reason() {
    let reason = RollBackReason::PrepareFailed { why: "no endpoint is ready".into() };
    let event = Event::PrepareFailed("no endpoint is ready".into());
    let first = happens(Phase::Preparing { since: at(100), full: false }, event, 101);
    assert_eq!(first.phase, Phase::RollingBack { since: at(101), reason: reason.clone() });
    check(&ticks(first.phase.clone(), Decision::Advance, 110), &first.phase, &[]);
    let drained = happens(first.phase.clone(), Event::Drained, 102);
    check(&drained, &Phase::RolledBack { at: at(102), reason: reason.clone() }, &[Effect::Save]);
    let second = ticks(first.phase, Decision::Advance, 111);
    check(&second, &Phase::RolledBack { at: at(111), reason }, &[Effect::Save]);
    let sentence = "rolled back: the canary could not be made ready: no endpoint is ready";
    assert_eq!(second.note.unwrap().to_string(), sentence);
}

#[test]
fn the_plan_says_what_happens_at_the_deadline() {
    let at_deadline = |choice, decision| {
        let plan = when_inconclusive(choice);
        machine::step(stepping(0), &plan, Event::Tick(decision), at(130)).unwrap().phase
    };
    let since = at(130);
    for decision in [Decision::Continue, Decision::Hold] {
        assert_eq!(at_deadline(WhenInconclusive::Hold, decision), stepping(0));
        let waits = Phase::Paused { step: 0, since, reason: PauseReason::Inconclusive, earned: false };
        assert_eq!(at_deadline(WhenInconclusive::Pause, decision), waits);
        let back = Phase::RollingBack { since, reason: RollBackReason::Inconclusive };
        assert_eq!(at_deadline(WhenInconclusive::RollBack, decision), back);
    }
    assert_eq!(at_deadline(WhenInconclusive::RollBack, Decision::Advance).step(), Some(1));
}

#[test]
fn paused_time_does_not_count_and_resuming_holds_anew() {
    let phase = paused(1, PauseReason::Command);
    for decision in [Decision::Continue, Decision::Hold, Decision::Advance] {
        check(&ticks(phase.clone(), decision, 1_000_000), &phase, &[]);
    }
    let resumed = happens(phase, Event::Command(Command::Resume), 500);
    check(&resumed, &Phase::Stepping { step: 1, since: at(500) }, &[Effect::Save]);
    let next = ticks(resumed.phase, Decision::Advance, 509);
    assert_eq!(next.phase, Phase::Stepping { step: 1, since: at(500) });
}

#[test]
fn promote_goes_to_the_next_step_now_and_from_the_last_to_everything() {
    let paused = happens(paused(0, PauseReason::Inconclusive), Event::Command(PROMOTE), 101);
    assert_eq!(paused.phase, Phase::Stepping { step: 1, since: at(101) });
    let first = happens(stepping(0), Event::Command(PROMOTE), 101);
    let weight = weight(50.0);
    check(
        &first,
        &Phase::Stepping { step: 1, since: at(101) },
        &[Effect::Save, Effect::Publish(Exposure::canary(weight))],
    );
    assert_eq!(first.note, Some(Note::Stepped { step: 1, weight, mirror: None, by: AdvancedBy::Command }));
    let last = happens(first.phase, Event::Command(PROMOTE), 102);
    assert_eq!(last.phase, Phase::Promoting { since: at(102) });
}

#[test]
fn promote_full_skips_all_steps_also_when_paused() {
    for phase in [stepping(0), paused(0, PauseReason::Inconclusive)] {
        let promoted = happens(phase, Event::Command(PROMOTE_FULL), 101);
        let effects = [Effect::Save, Effect::Publish(Exposure::SWAPPED)];
        check(&promoted, &Phase::Promoting { since: at(101) }, &effects);
    }
}

#[test]
fn blue_green_flips_when_prepared_and_flips_back_while_baking() {
    let plan = blue_green();
    let flip =
        machine::step(Phase::Preparing { since: at(1), full: false }, &plan, Event::Prepared, at(2)).unwrap();
    let effects = [Effect::Save, Effect::Publish(Exposure::SWAPPED)];
    check(&flip, &Phase::Promoting { since: at(2) }, &effects);
    let bake = machine::step(flip.phase, &plan, Event::Tick(Decision::Hold), at(3)).unwrap();
    assert_eq!(bake.phase, Phase::Baking { since: at(3) });
    let back = machine::step(bake.phase, &plan, Event::Command(Command::RollBack), at(4)).unwrap();
    assert_eq!(back.effects, [Effect::Publish(Exposure::NONE), Effect::Save]);
}

#[test]
fn baking_ends_with_time_alone() {
    let baking = Phase::Baking { since: at(100) };
    for decision in [Decision::Continue, Decision::Advance, Decision::Hold] {
        check(&ticks(baking.clone(), decision, 109), &baking, &[]);
        check(&ticks(baking.clone(), decision, 110), &Phase::Succeeded { at: at(110) }, &[Effect::Save]);
    }
}

#[test]
fn late_news_of_preparing_changes_nothing() {
    for phase in phases().into_iter().filter(|phase| !matches!(phase, Phase::Preparing { .. })) {
        for event in [Event::Prepared, Event::PrepareFailed("late".into())] {
            check(&happens(phase.clone(), event, 200), &phase, &[]);
        }
    }
}

#[test]
fn a_clock_that_goes_back_starts_the_time_of_a_phase_anew() {
    // Even without a hold, when any elapsed time would do.
    let mut draft = draft();
    draft.steps[0].hold = Duration::ZERO;
    draft.bake = Duration::ZERO;
    let plan = Plan::new(draft).unwrap();
    for decision in [Decision::Advance, Decision::Continue, Decision::Hold] {
        let back = machine::step(stepping(0), &plan, Event::Tick(decision), at(40)).unwrap();
        check(&back, &Phase::Stepping { step: 0, since: at(40) }, &[Effect::Save]);
        assert_eq!(back.note, Some(Note::ClockWentBack { by: Duration::from_millis(60) }));
        let baking = Phase::Baking { since: at(100) };
        let back = machine::step(baking, &plan, Event::Tick(decision), at(40)).unwrap();
        check(&back, &Phase::Baking { since: at(40) }, &[Effect::Save]);
    }
}

#[test]
fn a_step_that_the_plan_does_not_have_is_rolled_back() {
    for phase in [stepping(2), paused(usize::MAX, PauseReason::Command)] {
        assert_eq!(phase.exposure(&plan()), Exposure::NONE);
        let back = happens(phase, Event::Command(PROMOTE_FULL), 101);
        assert!(matches!(back.phase, Phase::RollingBack { reason: RollBackReason::UnknownStep { .. }, .. }));
        assert_eq!(back.effects, [Effect::Publish(Exposure::NONE), Effect::Save]);
        let sentence = back.note.unwrap().to_string();
        assert!(sentence.starts_with("rolling back: the plan has no step "), "{sentence}");
    }
}

#[test]
fn a_command_is_accepted_where_it_is_allowed_and_refused_elsewhere() {
    for phase in phases() {
        for command in Command::ALL {
            let result = machine::step(phase.clone(), &plan(), Event::Command(command), at(101));
            assert_eq!(result.is_ok(), allowed(&phase).contains(&command), "{command} in {}", phase.name());
            if let Err(refused) = result {
                assert_eq!((refused.command, refused.phase), (command, phase.clone()));
            }
        }
    }
}

#[test]
fn a_refusal_says_what_to_do_instead() {
    let refused =
        |phase, command| machine::step(phase, &plan(), Event::Command(command), at(101)).unwrap_err();
    let over = refused(Phase::Succeeded { at: at(100) }, Command::RollBack);
    assert_eq!(over.why, Why::UseFlip);
    assert_eq!(
        over.to_string(),
        "cannot `rollback` while succeeded: the rollout is over; `flip` brings the old version back; \
         allowed now: `start`, `start --force`"
    );
    let running = refused(stepping(0), START);
    assert_eq!(
        running.to_string(),
        "cannot `start` while stepping: a rollout is under way; allowed now: `promote`, \
         `promote --full`, `rollback`, `pause`, `guards-only`"
    );
    let back = Phase::RollingBack { since: at(100), reason: RollBackReason::Command };
    assert_eq!(
        refused(back, Command::Pause).to_string(),
        "cannot `pause` while rolling back: it is already going back; allowed now: nothing"
    );
}

#[test]
fn effects_are_ordered_by_what_the_new_version_gets() {
    use Effect::{Publish, Save};
    let dark = [Exposure::dark(weight(0.01)), Exposure::dark(Weight::FULL)];
    let ladder = [Exposure::canary(weight(0.01)), Exposure::canary(Weight::FULL)];
    let ladder = [Exposure::NONE].into_iter().chain(dark).chain(ladder);
    let ladder: Vec<_> = ladder.chain([Exposure::SWAPPED]).collect();
    for (i, &from) in ladder.iter().enumerate() {
        for (j, &to) in ladder.iter().enumerate() {
            let expected = match j {
                j if j > i => vec![Save, Publish(to)],
                j if j < i => vec![Publish(to), Save],
                _ => vec![Save],
            };
            assert_eq!(in_safe_order(from, to), expected);
        }
    }
}

#[test]
fn phases_survive_saving() {
    for phase in phases() {
        let text = serde_json::to_string(&phase).unwrap();
        assert_eq!(serde_json::from_str::<Phase>(&text).unwrap(), phase);
        assert!(text.contains(&format!(r#""phase":"{}""#, phase.name())), "{text}");
    }
    let paused = serde_json::to_value(paused(3, PauseReason::Inconclusive)).unwrap();
    assert_eq!(
        paused,
        serde_json::json!({"phase": "paused", "step": 3, "since": 100, "reason": "inconclusive"})
    );
    let asked = Phase::Paused { step: 3, since: at(100), reason: PauseReason::Hook, earned: true };
    let text = serde_json::to_string(&asked).unwrap();
    assert_eq!(serde_json::from_str::<Phase>(&text).unwrap(), asked);
}

#[test]
fn a_hot_fix_gets_everything_as_soon_as_it_is_ready_and_no_sooner() {
    let hurried =
        happens(Phase::Preparing { since: at(100), full: false }, Event::Command(PROMOTE_FULL), 101);
    check(&hurried, &Phase::Preparing { since: at(100), full: true }, &[Effect::Save]);
    let ready = happens(hurried.phase.clone(), Event::Prepared, 102);
    let effects = [Effect::Save, Effect::Publish(Exposure::SWAPPED)];
    check(&ready, &Phase::Promoting { since: at(102) }, &effects);
    let failed = happens(hurried.phase, Event::PrepareFailed("no".into()), 102);
    assert!(matches!(failed.phase, Phase::RollingBack { .. }));
}

#[test]
fn after_a_rollback_the_next_try_waits_unless_forced() {
    let plan = Plan::new(Draft { cool_down: Duration::from_millis(50), ..draft() }).unwrap();
    let back = || Phase::RolledBack { at: at(100), reason: RollBackReason::Verdict };
    let start = |force, now| {
        machine::step(back(), &plan, Event::Command(Command::Start { force, guards_only: false }), at(now))
            .map(|t| t.phase)
    };
    let refused = start(false, 149).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "cannot `start` while rolled back: it was rolled back, and the plan wants the next try in 1ms at the \
         earliest; allowed now: `start --force`"
    );
    assert!(start(false, 150).is_ok() && start(true, 101).is_ok());
    // A clock that went back says nothing about how long ago it was.
    assert!(start(false, 40).is_ok());
}
