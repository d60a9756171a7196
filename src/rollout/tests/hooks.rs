//! Who is asked before a step is left, and what becomes of the answer.

use super::*;

#[test]
fn nobody_passes_a_gate_unasked_and_the_hook_comes_after_it() {
    let mut draft = draft();
    draft.steps[0].gate = true;
    draft.hooks = Hooks { step: true, ..Hooks::default() };
    let plan = Plan::new(draft).unwrap();
    let happens = |phase, event, now| machine::step(phase, &plan, event, at(now)).unwrap();
    let paused_at = |now, reason| Phase::Paused { step: 0, since: at(now), reason, earned: false };
    let gate = happens(stepping(0), Event::Tick(Decision::Advance), 110);
    check(&gate, &paused_at(110, PauseReason::Gate), &[Effect::Save]);
    for decision in [Decision::Advance, Decision::Continue, Decision::Hold] {
        check(&happens(gate.phase.clone(), Event::Tick(decision), 1_000_000), &gate.phase, &[]);
    }
    let hook = happens(gate.phase, Event::Command(PROMOTE), 120);
    check(&hook, &paused_at(120, PauseReason::Hook), &[Effect::Save]);
    let no = happens(hook.phase, Event::HookAnswered(Err("status 500".into())), 121);
    let sentence = "paused at step 1: a hook did not let it go on: status 500";
    assert_eq!(no.note.as_ref().unwrap().to_string(), sentence);
    let again = happens(no.phase, Event::Command(Command::Resume), 122);
    assert_eq!(again.phase, paused_at(122, PauseReason::Hook));
    let yes = happens(again.phase, Event::HookAnswered(Ok(())), 123);
    let next = Effect::Publish(Exposure::canary(weight(50.0)));
    check(&yes, &Phase::Stepping { step: 1, since: at(123) }, &[Effect::Save, next]);
}

/// Minutes may lie between the question and the answer.
#[test]
fn a_hooks_yes_goes_on_only_with_evidence_that_calls_for_it_still() {
    let plan = Plan::new(Draft { hooks: Hooks { step: true, ..Hooks::default() }, ..draft() }).unwrap();
    let happens = |phase: &Phase, event, now| machine::step(phase.clone(), &plan, event, at(now)).unwrap();
    let waits = |now, reason, earned| Phase::Paused { step: 0, since: at(now), reason, earned };
    let asked = happens(&stepping(0), Event::Tick(Decision::Advance), 110).phase;
    assert_eq!(asked, waits(110, PauseReason::Hook, true));
    let yes = happens(&asked, Event::HookAnswered(Ok(())), 120);
    check(&yes, &waits(120, PauseReason::HookAllowed, false), &[Effect::Save]);
    let sentence = "paused at step 1: a hook lets it go on as soon as the evidence does";
    assert_eq!(yes.note.unwrap().to_string(), sentence);
    let allowed = yes.phase;
    for decision in [Decision::Continue, Decision::Hold] {
        check(&happens(&allowed, Event::Tick(decision), 1_000_000), &allowed, &[]);
    }
    let second = |now| Phase::Stepping { step: 1, since: at(now) };
    let effects = [Effect::Save, Effect::Publish(Exposure::canary(weight(50.0)))];
    check(&happens(&allowed, Event::Tick(Decision::Advance), 121), &second(121), &effects);
    // A person need not wait for it, may stop it, and cannot have it go on with the step.
    check(&happens(&allowed, Event::Command(PROMOTE), 121), &second(121), &effects);
    let stopped = happens(&allowed, Event::Command(Command::Pause), 121);
    check(&stopped, &waits(121, PauseReason::Command, false), &[Effect::Save]);
    let refused = machine::step(allowed, &plan, Event::Command(Command::Resume), at(121)).unwrap_err();
    assert_eq!(refused.why, Why::HookAllowed);
    // Asked again after a no, it is still for the evidence; asked for a person, it is not.
    let no = happens(&asked, Event::HookAnswered(Err("no".into())), 120).phase;
    assert_eq!(no, waits(120, PauseReason::HookFailed, true));
    let again = happens(&no, Event::Command(Command::Resume), 130).phase;
    assert_eq!(again, waits(130, PauseReason::Hook, true));
    let wanted = happens(&stepping(0), Event::Command(PROMOTE), 110).phase;
    assert_eq!(wanted, waits(110, PauseReason::Hook, false));
    check(&happens(&wanted, Event::HookAnswered(Ok(())), 120), &second(120), &effects);
}

#[test]
fn a_hook_that_says_no_rolls_back_if_the_plan_says_so() {
    let hooks = Hooks { promotion: true, on_failure: OnHookFailure::RollBack, ..Hooks::default() };
    let plan = Plan::new(Draft { hooks, ..draft() }).unwrap();
    let event = Event::HookAnswered(Err("no answer".into()));
    let back = machine::step(paused(1, PauseReason::Hook), &plan, event, at(101)).unwrap();
    let sentence = "rolling back: a hook did not let it go on: no answer";
    assert_eq!(back.note.unwrap().to_string(), sentence);
    assert_eq!(back.effects, [Effect::Publish(Exposure::NONE), Effect::Save]);
}
