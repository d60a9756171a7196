//! What people and pipelines ask of a service: whether it makes sense now, and who is answered when.

use super::{Answer, Ask, CommandError, QUEUE, Request, save::Advance, service::ServiceTask};
use crate::{
    model::weight::Weight,
    rollout::event::Command,
    store::record::{Kind, Position},
};

impl ServiceTask {
    /// Does what is asked, or sees to it that it is done once it is saved.
    pub(super) fn obey(&mut self, ask: Ask, answer: Answer) {
        let (request, context) = match ask {
            Ask::Request(request, context) => (request, context),
            Ask::Settle => {
                if self.running().is_some() {
                    self.journal.must_save();
                }
                let answer = self.when_written(answer);
                return self.journal.answer_when_saved(answer);
            }
        };
        // A way back waits for nothing.
        let overtakes = self.journal.is_advancing();
        if overtakes && !self.is_way_back(request) {
            return self.journal.hold(request, context, answer, QUEUE);
        }
        // An earlier one in the same line may have changed it.
        self.revise();
        if !context.is_met_by(self.revision) {
            let changed = CommandError::Changed(self.config.name.clone());
            return self.journal.answer(answer, Err(changed));
        }
        self.context = Some(context);
        let accepted = self.accept(request);
        self.context = None;
        match accepted {
            Ok(()) => {
                if overtakes {
                    // What stood in line behind the advance was asked for earlier than the way back.
                    self.journal.give_up_held();
                }
                self.journal.answer_when_saved(answer);
            }
            Err(error) => self.journal.answer(answer, Err(error)),
        }
    }

    /// Whether it gives the canary no more than it has now, or takes it everything.
    fn is_way_back(&self, request: Request) -> bool {
        match request {
            Request::Rollout(command) => command == Command::RollBack,
            Request::SetWeight(weight) => self.running().is_none() && weight <= self.weight,
            Request::Flip { .. } => self.running().is_none() && self.is_flip_back(),
        }
    }

    /// Whether a flip would go back to what was stable before the last rollout; or, where none has been with these
    /// two, to what is written as stable, from where only flips lead away.
    fn is_flip_back(&self) -> bool {
        let swapped = self.roles.clone().swapped();
        let record = self.record.as_ref().map(|record| &record.roles);
        let began = record.filter(|roles| **roles == self.roles || **roles == swapped);
        *began.unwrap_or(&self.config.roles) == swapped
    }

    fn accept(&mut self, request: Request) -> Result<(), CommandError> {
        let name = self.config.name.clone();
        if self.roles.canary().is_none() {
            return Err(CommandError::NoCanary(name));
        }
        match request {
            Request::Rollout(Command::Start { force: false, .. }) if let Some(freeze) = self.freeze() => {
                Err(CommandError::Frozen { service: name, freeze })
            }
            Request::Rollout(command) => {
                self.command(command)?;
                if command.is_forward() && self.is_waiting() {
                    self.want_in_spite_of_a_freeze();
                }
                Ok(())
            }
            Request::SetWeight(_) | Request::Flip { .. } if let Some(phase) = self.running() => {
                Err(CommandError::RolloutRunning { service: name, phase })
            }
            Request::SetWeight(weight) => {
                let position = Position { roles: self.roles.clone(), weight };
                let is_more = weight > self.weight;
                self.stand(position, is_more, (Kind::Weight, format!("weight set to {weight}")));
                Ok(())
            }
            Request::Flip { .. } => {
                let roles = self.roles.clone().swapped();
                let what = format!("flipped: {} is stable and has all requests", roles.stable());
                let is_more = !self.is_flip_back();
                self.stand(Position { roles, weight: Weight::ZERO }, is_more, (Kind::Flip, what));
                Ok(())
            }
        }
    }

    /// Gives the canary another share, or another backend all of it, in the phase that it is in. What is more traffic
    /// for the canary is saved first; what is less does not wait for that, and takes its place.
    pub(super) fn stand(&mut self, position: Position, is_more: bool, (kind, what): (Kind, String)) {
        if is_more {
            let entry = self.entry(kind, what, position);
            self.advance(Advance { phase: None, entry, answer: None });
        } else {
            self.overtake();
            self.publish(position.roles, position.weight);
            let entry = self.entry(kind, what, self.position());
            self.tell_of(&entry);
            self.record(entry);
        }
    }
}
