//! One step of a rollout: phase, event and time in; next phase, effects and note out.
//!
//! The plan must be the one that the rollout began with, so whoever saves a phase saves it beside
//! its plan and its roles. `start` begins a rollout with the roles as they stand then: exposure is
//! relative to those, and after a success they are the swapped ones of the rollout before.
//!
//! Time only ever holds back. A clock that stands before the beginning of a phase proves nothing
//! about how long it lasted, so the phase's time is counted anew: waiting for the clock to catch up
//! could take years.

use std::time::Duration;

use super::{
    effect::{Effect, in_safe_order},
    event::{Command, Event},
    note::{AdvancedBy, Note},
    phase::{Exposure, PauseReason, Phase, RollBackReason},
    plan::{OnHookFailure, Plan, Step, Strategy, WhenInconclusive},
    refused::Refused,
};
use crate::{analysis::verdict::Decision, model::time::Timestamp};

/// What follows from an event.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct Transition {
    /// The phase from now on; where effects are empty, the one it was.
    pub phase: Phase,
    /// What to carry out, in this order.
    pub effects: Vec<Effect>,
    /// What happened, if anything did.
    pub note: Option<Note>,
}

impl Transition {
    /// Whether the new version gets less.
    pub fn is_retreat(&self) -> bool {
        matches!(self.effects.first(), Some(Effect::Publish(_)))
    }
}

/// Lets an event happen to a rollout.
///
/// # Errors
/// Only for a command that makes no sense in this phase; the phase comes back inside the error.
pub fn step(phase: Phase, plan: &Plan, event: Event, now: Timestamp) -> Result<Transition, Refused> {
    // Cannot happen while plan and phase are saved together. If it does, go to the safe side.
    if let Some(step) = phase.step().filter(|step| *step >= plan.steps().len()) {
        return Ok(roll_back(RollBackReason::UnknownStep { step }, now));
    }
    match event {
        Event::Command(command) => obey(phase, plan, command, now),
        Event::Tick(Decision::RollBack) if phase.can_roll_back() => {
            Ok(roll_back(RollBackReason::Verdict, now))
        }
        Event::Tick(decision) => Ok(tick(phase, plan, decision, now)),
        Event::Prepared => Ok(prepared(phase, plan, now)),
        Event::PrepareFailed(why) if matches!(phase, Phase::Preparing { .. }) => {
            Ok(roll_back(RollBackReason::PrepareFailed { why }, now))
        }
        Event::PrepareFailed(_) => Ok(stay(phase)),
        Event::HookAnswered(answer) => Ok(answered(phase, plan, answer, now)),
        Event::Frozen => Ok(match phase {
            Phase::Stepping { step, .. } => pause(&phase, plan, step, PauseReason::Freeze, now),
            _ => stay(phase),
        }),
        Event::Thawed => Ok(match phase {
            Phase::Paused { step, reason: PauseReason::Freeze, .. } => resume(&phase, plan, step, now),
            _ => stay(phase),
        }),
        Event::Drained => Ok(match &phase {
            Phase::RollingBack { reason, .. } => rolled_back(&phase, plan, reason.clone(), now),
            _ => stay(phase),
        }),
    }
}

/// A person or CI wants something.
fn obey(phase: Phase, plan: &Plan, command: Command, now: Timestamp) -> Result<Transition, Refused> {
    use PauseReason::{Freeze, Gate, Hook, HookAllowed, HookFailed, Inconclusive};
    Ok(match (command, &phase) {
        (Command::Start { force, guards_only }, _) if !phase.is_running() => match cooling(&phase, plan, now)
        {
            Some(left) if !force => return Err(Refused::cooling_down(phase, left, guards_only)),
            _ => start(now),
        },
        (Command::RollBack, _) if phase.can_roll_back() => roll_back(RollBackReason::Command, now),
        (Command::Promote { full: true }, Phase::Preparing { since, full: false }) => {
            let to = Phase::Preparing { since: *since, full: true };
            go(&phase, to, plan, Note::Hurried)
        }
        (Command::Promote { full: true }, Phase::Stepping { .. } | Phase::Paused { .. }) => {
            promote(&phase, plan, AdvancedBy::Command, now)
        }
        // Whoever says so takes the place of the hook.
        (
            Command::Promote { full: false },
            Phase::Paused { step, reason: Hook | HookFailed | HookAllowed, .. },
        ) => next_step(&phase, plan, *step, AdvancedBy::Command, now),
        (Command::Promote { full: false }, Phase::Stepping { step, .. } | Phase::Paused { step, .. })
        | (Command::Resume, Phase::Paused { step, reason: Gate | HookFailed, .. }) => {
            through_the_gate(&phase, plan, *step, AdvancedBy::Command, now)
        }
        (Command::Resume, Phase::Paused { step, reason: PauseReason::Command | Inconclusive, .. }) => {
            resume(&phase, plan, *step, now)
        }
        (Command::GuardsOnly, Phase::Preparing { .. } | Phase::Stepping { .. } | Phase::Paused { .. }) => {
            go(&phase, phase.clone(), plan, Note::GuardsOnly)
        }
        (
            Command::Pause,
            Phase::Stepping { step, .. } | Phase::Paused { step, reason: Freeze | HookAllowed, .. },
        ) => pause(&phase, plan, *step, PauseReason::Command, now),
        _ => return Err(Refused::new(command, phase)),
    })
}

/// Time has passed, and there is no reason to go back.
fn tick(phase: Phase, plan: &Plan, decision: Decision, now: Timestamp) -> Transition {
    match phase {
        Phase::Stepping { step, since } => match elapsed(since, now) {
            Ok(elapsed) => stepping(phase, plan, step, (decision, elapsed), now),
            Err(by) => {
                let to = Phase::Stepping { step, since: now };
                go(&phase, to, plan, Note::ClockWentBack { by })
            }
        },
        Phase::Paused { step, reason: PauseReason::HookAllowed, .. } if decision == Decision::Advance => {
            next_step(&phase, plan, step, AdvancedBy::Hook, now)
        }
        Phase::Promoting { .. } => {
            go(&phase, Phase::Baking { since: now }, plan, Note::Baking { bake: plan.bake() })
        }
        // Time alone ends it, whether or not anything can be concluded: nobody becomes exposed, and
        // a service without requests at night would otherwise bake for ever.
        Phase::Baking { since } => match elapsed(since, now) {
            Ok(elapsed) if elapsed >= plan.bake() => {
                go(&phase, Phase::Succeeded { at: now }, plan, Note::Succeeded)
            }
            Ok(_) => stay(phase),
            Err(by) => go(&phase, Phase::Baking { since: now }, plan, Note::ClockWentBack { by }),
        },
        Phase::RollingBack { since, ref reason } => match elapsed(since, now) {
            Ok(elapsed) if elapsed >= plan.drain() => rolled_back(&phase, plan, reason.clone(), now),
            Ok(_) => stay(phase),
            Err(by) => {
                let to = Phase::RollingBack { since: now, reason: reason.clone() };
                go(&phase, to, plan, Note::ClockWentBack { by })
            }
        },
        Phase::Idle
        | Phase::Preparing { .. }
        | Phase::Paused { .. }
        | Phase::Succeeded { .. }
        | Phase::RolledBack { .. } => stay(phase),
    }
}

/// A tick in a step that has lasted for a while.
fn stepping(
    phase: Phase,
    plan: &Plan,
    step: usize,
    (decision, elapsed): (Decision, Duration),
    now: Timestamp,
) -> Transition {
    let hold = plan.steps()[step].hold;
    if decision == Decision::Advance && elapsed >= hold {
        return to_the_gate(&phase, plan, step, AdvancedBy::Verdict, now);
    }
    if elapsed < hold.saturating_add(plan.deadline()) {
        return stay(phase);
    }
    match plan.when_inconclusive() {
        WhenInconclusive::Hold => stay(phase),
        WhenInconclusive::Pause => pause(&phase, plan, step, PauseReason::Inconclusive, now),
        WhenInconclusive::RollBack => roll_back(RollBackReason::Inconclusive, now),
    }
}

/// The canary is ready: its first step begins. Blue/green has none, because with 100 % there is no
/// stable left to compare with; the guards watch it while it bakes.
fn prepared(phase: Phase, plan: &Plan, now: Timestamp) -> Transition {
    match (&phase, plan.strategy()) {
        (Phase::Preparing { full: true, .. }, _) => promote(&phase, plan, AdvancedBy::Command, now),
        (Phase::Preparing { .. }, Strategy::Canary) => enter(&phase, plan, 0, AdvancedBy::Preparation, now),
        (Phase::Preparing { .. }, Strategy::BlueGreen) => {
            to_the_gate(&phase, plan, 0, AdvancedBy::Preparation, now)
        }
        _ => stay(phase),
    }
}

/// A hook was asked whether the step may be left.
fn answered(phase: Phase, plan: &Plan, answer: Result<(), String>, now: Timestamp) -> Transition {
    let Phase::Paused { step, reason: PauseReason::Hook, earned, .. } = phase else { return stay(phase) };
    match (answer, plan.hooks().on_failure) {
        // It may have taken minutes, and a canary that came under suspicion meanwhile gets no more traffic.
        (Ok(()), _) if earned => pause(&phase, plan, step, PauseReason::HookAllowed, now),
        (Ok(()), _) => next_step(&phase, plan, step, AdvancedBy::Hook, now),
        (Err(why), OnHookFailure::RollBack) => roll_back(RollBackReason::HookFailed { why }, now),
        (Err(why), OnHookFailure::Pause) => {
            let reason = PauseReason::HookFailed;
            let note = Note::Paused { step, reason, answer: Some(why) };
            go(&phase, Phase::Paused { step, since: now, reason, earned }, plan, note)
        }
    }
}

/// A step may be left, if nobody has to be asked.
fn to_the_gate(from: &Phase, plan: &Plan, step: usize, by: AdvancedBy, now: Timestamp) -> Transition {
    if plan.has_gate_after(step) {
        pause(from, plan, step, PauseReason::Gate, now)
    } else {
        through_the_gate(from, plan, step, by, now)
    }
}

/// A step may be left, if no hook has to be asked.
fn through_the_gate(from: &Phase, plan: &Plan, step: usize, by: AdvancedBy, now: Timestamp) -> Transition {
    if !plan.has_hook_after(step) {
        return next_step(from, plan, step, by, now);
    }
    let earned = match from {
        // Whoever has it asked again says nothing of the evidence.
        Phase::Paused { reason: PauseReason::HookFailed, earned, .. } => *earned,
        _ => by == AdvancedBy::Verdict,
    };
    let reason = PauseReason::Hook;
    let note = Note::Paused { step, reason, answer: None };
    go(from, Phase::Paused { step, since: now, reason, earned }, plan, note)
}

/// How long no rollout may be started yet without force.
fn cooling(phase: &Phase, plan: &Plan, now: Timestamp) -> Option<Duration> {
    let Phase::RolledBack { at, .. } = phase else { return None };
    // A clock that went back says nothing, and must not lock anybody out.
    let cooled = elapsed(*at, now).unwrap_or_else(|_| plan.cool_down());
    plan.cool_down().checked_sub(cooled).filter(|left| !left.is_zero())
}

fn start(now: Timestamp) -> Transition {
    to_nothing(Phase::Preparing { since: now, full: false }, Note::Started)
}

fn roll_back(reason: RollBackReason, now: Timestamp) -> Transition {
    let note = Note::RollingBack { reason: reason.clone() };
    to_nothing(Phase::RollingBack { since: now, reason }, note)
}

/// To a phase in which the new version gets nothing. Assumes that it had everything: before a
/// rollout the weight is the service's own and may be anything, and going back must not depend on
/// having known exactly where one was.
fn to_nothing(phase: Phase, note: Note) -> Transition {
    let effects = in_safe_order(Exposure::SWAPPED, Exposure::NONE);
    Transition { phase, effects, note: Some(note) }
}

fn next_step(from: &Phase, plan: &Plan, step: usize, by: AdvancedBy, now: Timestamp) -> Transition {
    if step + 1 < plan.steps().len() {
        enter(from, plan, step + 1, by, now)
    } else {
        promote(from, plan, by, now)
    }
}

fn enter(from: &Phase, plan: &Plan, step: usize, by: AdvancedBy, now: Timestamp) -> Transition {
    let Step { weight, mirror, .. } = plan.steps()[step];
    go(from, Phase::Stepping { step, since: now }, plan, Note::Stepped { step, weight, mirror, by })
}

fn promote(from: &Phase, plan: &Plan, by: AdvancedBy, now: Timestamp) -> Transition {
    go(from, Phase::Promoting { since: now }, plan, Note::Promoted { by })
}

fn pause(from: &Phase, plan: &Plan, step: usize, reason: PauseReason, now: Timestamp) -> Transition {
    let note = Note::Paused { step, reason, answer: None };
    go(from, Phase::Paused { step, since: now, reason, earned: false }, plan, note)
}

fn resume(from: &Phase, plan: &Plan, step: usize, now: Timestamp) -> Transition {
    go(from, Phase::Stepping { step, since: now }, plan, Note::Resumed { step })
}

fn rolled_back(from: &Phase, plan: &Plan, reason: RollBackReason, now: Timestamp) -> Transition {
    go(from, Phase::RolledBack { at: now, reason: reason.clone() }, plan, Note::RolledBack { reason })
}

fn go(from: &Phase, to: Phase, plan: &Plan, note: Note) -> Transition {
    let effects = in_safe_order(from.exposure(plan), to.exposure(plan));
    Transition { phase: to, effects, note: Some(note) }
}

fn stay(phase: Phase) -> Transition {
    Transition { phase, effects: Vec::new(), note: None }
}

/// How long it is since then, or by how much the clock stands before that.
fn elapsed(since: Timestamp, now: Timestamp) -> Result<Duration, Duration> {
    if since <= now { Ok(now.since(since)) } else { Err(since.since(now)) }
}
