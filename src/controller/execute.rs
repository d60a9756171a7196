//! Carrying out what the rollout machine asks for, in the order in which it asks.

use super::service::{ServiceTask, plan_in_words};
use crate::{
    clock,
    model::{role::Roles, time::Timestamp, weight::Weight},
    rollout::{
        effect::Effect,
        event::{Command, Event},
        machine::{self, Transition},
        note::Note,
        phase::{Exposure, Phase},
        plan::{Plan, Strategy},
        refused::Refused,
        trial,
    },
};

/// A rollout, with all that must be known to go on with it.
pub(super) struct Record {
    pub(super) id: String,
    pub(super) started: Timestamp,
    pub(super) plan: Plan,
    /// The roles with which it began; a phase's exposure is relative to them.
    pub(super) roles: Roles,
    pub(super) phase: Phase,
}

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
        if !running {
            // Nothing but a start is accepted where none runs.
            self.record = Some(self.new_record(now));
            self.salt = super::publish::salt(&self.config.name, now.as_millis());
            self.begin_preparing();
        }
        self.carry_out(transition);
        Ok(())
    }

    /// Lets something happen that cannot be refused.
    pub(super) fn happen(&mut self, event: Event) {
        let Some(record) = &self.record else { return };
        match machine::step(record.phase.clone(), &record.plan, event, clock::now()) {
            Ok(transition) => self.carry_out(transition),
            Err(refused) => {
                debug_assert!(false, "only commands are refused");
                tracing::error!(%refused, "an event was refused");
            }
        }
    }

    fn new_record(&self, now: Timestamp) -> Record {
        Record {
            id: format!("{}-{}", self.config.name, now.as_millis()),
            started: now,
            plan: self.config.rollout.plan.clone(),
            roles: self.roles.clone(),
            phase: Phase::Idle,
        }
    }

    fn carry_out(&mut self, transition: Transition) {
        let Transition { phase, effects, note } = transition;
        if effects.is_empty() {
            return;
        }
        for effect in effects {
            match effect {
                Effect::Save => self.save(&phase),
                Effect::Publish(exposure) => self.expose(exposure),
            }
        }
        if let Some(note) = note {
            self.note(self.sentence(&phase, &note));
        }
    }

    /// Makes a phase the rollout's own. It is kept in memory: a restart begins anew from the
    /// configuration, with the canary's initial weight.
    fn save(&mut self, phase: &Phase) {
        let Some(record) = &mut self.record else { return };
        let before = std::mem::replace(&mut record.phase, phase.clone());
        self.metrics.entered(&self.config.name, phase);
        trial::follow(&mut self.analysis, &before, phase, &record.plan);
        if !phase.is_running() {
            self.preparation = None;
            self.forget_evidence();
        }
    }

    fn expose(&mut self, Exposure { swapped, weight }: Exposure) {
        let Some(record) = &self.record else { return };
        let roles = record.roles.clone();
        self.publish(if swapped { roles.swapped() } else { roles }, weight);
    }

    /// Makes roles and weight the ones that the next request sees.
    pub(super) fn publish(&mut self, roles: Roles, weight: Weight) {
        self.publisher.publish(&self.config.name, &roles, weight, self.salt);
        self.metrics.published(&self.config.name, &self.roles, &roles, weight);
        if self.roles != roles && self.running().is_none() {
            self.forget_evidence();
        }
        self.roles = roles;
        self.weight = weight;
    }

    /// What happened, and, where the evidence called for it, the evidence.
    fn sentence(&self, phase: &Phase, note: &Note) -> String {
        let Some(record) = &self.record else { return note.to_string() };
        if note.is_by_verdict()
            && let Some(why) = self.explanation()
        {
            return format!("{note}: {why}");
        }
        match phase {
            Phase::Preparing { .. } => {
                let canary = record.roles.canary().map(ToString::to_string).unwrap_or_default();
                let plan = match record.plan.strategy() {
                    Strategy::Canary => plan_in_words(&record.plan),
                    Strategy::BlueGreen => "all at once".to_owned(),
                };
                format!("{note}: {} to {canary}, {plan}", record.roles.stable())
            }
            _ => note.to_string(),
        }
    }
}
