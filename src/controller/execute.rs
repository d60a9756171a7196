//! Carrying out what the rollout machine asks for, in the order in which it asks.

use super::{
    save::{Advance, Before},
    service::{ServiceTask, plan_in_words},
};
use crate::{
    clock, failpoint,
    model::{role::Roles, time::Timestamp, weight::Weight},
    rollout::{
        effect::Effect,
        event::{Command, Event},
        machine::{self, Transition},
        note::Note,
        phase::{Exposure, Phase},
        plan::Strategy,
        refused::Refused,
        trial,
    },
    store::record::{Kind, Position, Rollout},
};

impl ServiceTask {
    /// Lets a command happen.
    ///
    /// # Errors
    /// When it makes no sense now; nothing has changed then.
    pub(super) fn command(&mut self, command: Command) -> Result<(), Refused> {
        let now = clock::now();
        let running = self.record.as_ref().is_some_and(|record| record.phase.is_running());
        let phase = self.record.as_ref().map_or(Phase::Idle, |record| record.phase.clone());
        // A rollout goes on with the plan that it began with.
        let plan = match &self.record {
            Some(record) if running => &record.plan,
            _ => &self.config.rollout.plan,
        };
        let transition = machine::step(phase, plan, Event::Command(command), now)?;
        let mut before = None;
        if !running {
            // Nothing but a start is accepted where none runs.
            before = Some(Before {
                revision: self.revision,
                position: self.position(),
                salt: self.salt,
                record: self.record.take(),
                analysis: self.analysis.clone(),
                verdict: self.verdict.take(),
            });
            self.record = Some(self.new_record(now));
            self.salt = super::publish::salt(&self.config.name, now.as_millis());
            self.begin_preparing();
        }
        if let Command::GuardsOnly | Command::Start { guards_only: true, .. } = command {
            self.judge_by_guards_alone();
        }
        self.carry_out(transition);
        if let Some(before) = before {
            self.started(before);
        }
        Ok(())
    }

    /// Lets something happen that cannot be refused.
    pub(super) fn happen(&mut self, event: Event) {
        let Some(record) = &self.record else { return };
        match machine::step(record.phase.clone(), &record.plan, event, clock::now()) {
            // What happens while an advance waits for its save will happen again after it; but a way back
            // waits for nothing.
            Ok(transition) if self.journal.is_advancing() && !transition.is_retreat() => {}
            Ok(transition) => self.carry_out(transition),
            Err(refused) => {
                debug_assert!(false, "only commands are refused");
                tracing::error!(%refused, "an event was refused");
            }
        }
    }

    fn new_record(&self, now: Timestamp) -> Rollout {
        Rollout {
            id: format!("{}-{}", self.config.name, now.as_millis()),
            started: now,
            plan: self.config.rollout.plan.clone(),
            roles: self.roles.clone(),
            phase: Phase::Idle,
            wanted_until: None,
            guards_only: false,
        }
    }

    fn judge_by_guards_alone(&mut self) {
        self.analysis.judge_by_guards_alone();
        if let Some(record) = &mut self.record {
            record.guards_only = true;
        }
    }

    /// Carries out effects in their order. What comes after a save waits until that would survive a crash;
    /// a save that nothing comes after is waited for by nobody.
    fn carry_out(&mut self, transition: Transition) {
        let Transition { phase, effects, note } = transition;
        if effects.is_empty() {
            return;
        }
        let before = self.record.as_ref().map(|record| record.phase.clone()).unwrap_or_default();
        if let [Effect::Save, Effect::Publish(exposure)] = effects[..] {
            let position = self.position_at(exposure);
            let entry = match &note {
                Some(note) => self.transition_entry(&phase, note, position),
                None => self.entry(Kind::Transition, phase.name().to_owned(), position),
            };
            return self.advance(Advance { phase: Some(phase), entry, answer: None });
        }
        self.overtake();
        for effect in effects {
            match effect {
                Effect::Save => {
                    self.enter(&phase);
                    self.journal.must_save();
                }
                Effect::Publish(exposure) => {
                    let Position { roles, weight } = self.position_at(exposure);
                    self.publish_with(roles, weight, exposure.copies);
                }
            }
        }
        if let Some(note) = note {
            let entry = self.transition_entry(&phase, &note, self.position());
            self.tell_of_phase(&before, &phase, &entry);
            failpoint::pass("a phase is told of");
            if note == Note::Started {
                self.tell_of_start_when_saved(&entry);
            } else {
                self.tell_of(&entry);
            }
            self.record(entry);
        }
    }

    /// Makes a phase the rollout's own.
    pub(super) fn enter(&mut self, phase: &Phase) {
        let Some(record) = &mut self.record else { return };
        let before = std::mem::replace(&mut record.phase, phase.clone());
        self.metrics.entered(&self.config.name, phase);
        trial::follow(&mut self.analysis, &before, phase, &record.plan);
        if let (Phase::RollingBack { since, .. }, Phase::RolledBack { .. }) = (&before, phase) {
            // They have had their time.
            self.cut_canary(*since);
        }
        if matches!(phase, Phase::Stepping { .. }) && before.step().is_none() {
            self.restart_users();
        }
        if !phase.is_running() {
            self.restart_users();
            self.forget_evidence();
        }
    }

    /// The rollout that ran in the process before this one is over by what was found since: that is its last
    /// transition, which is recorded, counted and told like any other.
    pub(super) fn has_ended_meanwhile(&mut self) {
        let Some(Phase::RolledBack { at, reason }) = self.record.as_ref().map(|record| record.phase.clone())
        else {
            return;
        };
        let (note, phase) =
            (Note::RolledBack { reason: reason.clone() }, Phase::RolledBack { at, reason: reason.clone() });
        self.metrics.entered(&self.config.name, &phase);
        let entry = self.transition_entry(&phase, &note, self.position());
        // Both at once: whoever is told of a rollback is told when the canary gets nothing more.
        self.tell_of_phase(&Phase::Idle, &Phase::RollingBack { since: at, reason }, &entry);
        self.tell_of(&entry);
        self.record(entry);
    }

    /// How traffic stands at an exposure, which is relative to the roles with which the rollout began, and of which the
    /// canary gets no more than may be lost by it.
    fn position_at(&self, exposure: Exposure) -> Position {
        let Exposure { swapped, weight, copies: _ } =
            trial::within_budget(exposure, self.weight, &self.analysis);
        let roles = self.record.as_ref().map_or(&self.roles, |record| &record.roles).clone();
        Position { roles: if swapped { roles.swapped() } else { roles }, weight }
    }

    /// Makes roles and weight the ones that the next request sees.
    pub(super) fn publish(&mut self, roles: Roles, weight: Weight) {
        let copies = self.copies();
        self.publish_with(roles, weight, copies);
    }

    /// The same with the copies that the canary gets for its rollout.
    fn publish_with(&mut self, roles: Roles, weight: Weight, copies: Weight) {
        // Both who had something until now, and who has from now on.
        self.use_backends();
        failpoint::pass("an exposure is to be published");
        self.end_test();
        self.publisher.publish(&self.config.name, (&roles, weight, copies), self.salt);
        failpoint::pass("an exposure is published");
        self.metrics.published(&self.config.name, &self.roles, &roles, weight);
        if self.roles != roles && self.running().is_none() {
            self.forget_evidence();
        }
        self.roles = roles;
        self.weight = weight;
        self.use_backends();
    }

    /// What the budget leaves of the weight of a step that begins, if not all of it.
    pub(super) fn kept_back(&self, phase: &Phase, note: &Note, position: &Position) -> String {
        let wanted = self.record.as_ref().map(|record| phase.exposure(&record.plan).weight);
        match (note, self.analysis.harm()) {
            (Note::Stepped { .. }, Some(harm)) if Some(position.weight) < wanted => {
                format!("; {} for now, as more could cost over {:.0} requests", position.weight, harm.budget)
            }
            _ => String::new(),
        }
    }

    /// What happened, and, where the evidence called for it, the evidence.
    pub(super) fn sentence(&self, phase: &Phase, note: &Note) -> String {
        let Some(record) = &self.record else { return note.to_string() };
        if note.is_by_verdict()
            && let Some(why) = self.explanation()
        {
            return format!("{note}: {why}");
        }
        match phase {
            Phase::Preparing { .. } if *note != Note::GuardsOnly => {
                let canary = record.roles.canary().map(ToString::to_string).unwrap_or_default();
                let plan = match record.plan.strategy() {
                    Strategy::Canary => plan_in_words(&record.plan),
                    Strategy::BlueGreen => "all at once".to_owned(),
                };
                let by = if record.guards_only { ", judged by guards alone" } else { "" };
                format!("{note}: {} to {canary}, {plan}{by}", record.roles.stable())
            }
            Phase::RolledBack { .. } if let Some(canary) = record.roles.canary() => {
                match self.under_way(canary) {
                    0 if self.is_mirrored() => {
                        format!(
                            "{note}; no user's request is under way at {canary} any more, and copies go on"
                        )
                    }
                    0 => format!("{note}; nothing is under way at {canary} any more"),
                    cut => format!("{note}; cut is what was still under way at {canary}: {cut}"),
                }
            }
            _ => note.to_string(),
        }
    }
}
