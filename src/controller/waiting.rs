//! What a rollout waits for from outside: the canary to be ready, hooks to answer. And who is told of it.
//!
//! What is waited for follows from the phase alone, so it makes no difference whether the phase was entered or
//! found after a restart: a hook is asked again then, with the id that the delivery had before.

use std::pin::Pin;

use tokio::sync::watch;

use super::{
    happening::Happening,
    hook::{self, Payload, Told},
    prepare,
    service::ServiceTask,
};
use crate::{
    clock,
    config::{
        Service,
        hook::{At, Hook},
    },
    model::{name::BackendName, time::Timestamp},
    rollout::{
        event::Event,
        phase::{PauseReason, Phase},
        topic::Topic,
    },
    store::record::{Entry, Kind},
};

/// What a phase waits for, and since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    Ready(Timestamp),
    Hook(usize, Timestamp),
}

impl Wait {
    fn of(phase: &Phase) -> Option<Self> {
        match phase {
            Phase::Preparing { since, full: _ } => Some(Self::Ready(*since)),
            Phase::Paused { step, since, reason: PauseReason::Hook, .. } => Some(Self::Hook(*step, *since)),
            _ => None,
        }
    }
}

/// What will come.
type Coming = Pin<Box<dyn Future<Output = Event> + Send>>;

/// What is waited for, until it has come.
pub(super) struct Waiting {
    wait: Wait,
    coming: Coming,
    come: Option<Event>,
    /// Whether it has come and had to wait for the end of a freeze.
    was_held_back: bool,
    /// Told when nobody has to be asked any more.
    unasked: watch::Sender<bool>,
}

impl Waiting {
    fn begin(wait: Wait, coming: Coming, unasked: watch::Sender<bool>) -> Self {
        Self { wait, coming, come: None, was_held_back: false, unasked }
    }
}

/// Waits for what is waited for.
pub(super) async fn come(waiting: &mut Option<Waiting>) -> Event {
    match waiting {
        Some(Waiting { coming, come: come @ None, .. }) => {
            let event = coming.await;
            *come = Some(event.clone());
            event
        }
        _ => std::future::pending().await,
    }
}

/// Where a rollout has got beyond, from one phase to the next.
fn passed(before: &Phase, after: &Phase) -> Vec<At> {
    let mut passed = Vec::new();
    let has_begun = matches!(after, Phase::Stepping { .. } | Phase::Paused { .. } | Phase::Promoting { .. });
    if matches!(before, Phase::Preparing { .. }) && has_begun {
        passed.push(At::PreRollout);
    }
    match (before, after) {
        (_, Phase::Stepping { step, .. }) if before.step().is_some_and(|before| before < *step) => {
            passed.push(At::Step);
        }
        (Phase::Promoting { .. }, Phase::Promoting { .. }) => {}
        (_, Phase::Promoting { .. }) => passed.extend([At::PrePromotion, At::PostPromotion]),
        (Phase::RollingBack { .. }, Phase::RollingBack { .. }) => {}
        (_, Phase::RollingBack { .. }) => passed.push(At::Rollback),
        _ => {}
    }
    passed
}

/// Waits until the canary, if there is one, is ready.
async fn ready(canary: Option<prepare::Canary>) -> Result<(), String> {
    match canary {
        Some(canary) => prepare::prepare(canary).await,
        None => Ok(()),
    }
}

impl ServiceTask {
    /// Begins to wait for what the phase waits for, and for nothing else.
    pub(super) fn wait_as_it_should(&mut self) {
        let wait = self.record.as_ref().and_then(|record| Wait::of(&record.phase));
        if wait != self.waiting.as_ref().map(|waiting| waiting.wait) {
            // Not before it would survive a crash: after one it would be another question, or of a start that has never
            // been.
            if wait.is_some() && !self.journal.is_settled() {
                return self.waiting = None;
            }
            self.waiting = wait.map(|wait| {
                let (unasked, asks) = watch::channel(false);
                Waiting::begin(wait, self.begin_to_wait(wait, asks), unasked)
            });
        }
        let phase = self.record.as_ref().map(|record| &record.phase);
        if let (Some(Phase::Preparing { full: true, .. }), Some(waiting)) = (phase, &self.waiting) {
            waiting.unasked.send_replace(true);
        }
    }

    /// Lets what has come happen, or says why it does not.
    pub(super) fn has_come(&mut self, event: Event) {
        if self.is_held_back(&event) {
            let what = match event {
                Event::Prepared => "the canary is ready; it gets nothing until the freeze is over",
                _ => "a hook says yes; nothing moves until the freeze is over",
            };
            if let Some(waiting) = &mut self.waiting {
                waiting.was_held_back = true;
            }
            // For now only: after a restart it is waited for anew.
            let entry = self.entry(Kind::Transition, what.to_owned(), self.position());
            return self.show(&entry);
        }
        self.happen(event);
    }

    /// Whether it has to wait now for something to come.
    pub(super) fn is_waiting(&self) -> bool {
        let phase = self.record.as_ref().map(|record| &record.phase);
        phase.and_then(Wait::of).is_some() && !self.journal.is_advancing()
    }

    /// Lets what has come happen again, where it has not got anywhere: what it called for may not have been
    /// saved, or there was a freeze. A canary that got ready before that may not be any more, so it has to show
    /// it anew before its first user; a hook's yes was about the rollout, and holds.
    pub(super) fn come_again(&mut self) {
        let wait = self.record.as_ref().and_then(|record| Wait::of(&record.phase));
        let Some(Waiting { wait: of, come: Some(event), was_held_back, .. }) = &self.waiting else { return };
        if wait != Some(*of) || self.is_held_back(event) {
            return;
        }
        if *was_held_back && *event == Event::Prepared {
            let what = "whether the canary is still ready is asked again before it gets anything";
            let entry = self.entry(Kind::Transition, what.to_owned(), self.position());
            let canary = self.canary();
            let prepared =
                async { ready(canary).await.map_or_else(Event::PrepareFailed, |()| Event::Prepared) };
            self.waiting = Some(Waiting::begin(*of, Box::pin(prepared), watch::channel(false).0));
            return self.show(&entry);
        }
        self.happen(event.clone());
    }

    /// Begins to wait for this; hooks before the first user, for as long as somebody has to be asked.
    fn begin_to_wait(&self, wait: Wait, mut unasked: watch::Receiver<bool>) -> Coming {
        match wait {
            Wait::Ready(since) => {
                let (canary, hooks) = (self.canary(), self.asked(At::PreRollout, since));
                Box::pin(async move {
                    let prepared = async {
                        ready(canary).await?;
                        tokio::select! {
                            // First, so that no hook is called for nothing.
                            biased;
                            Ok(_) = unasked.wait_for(|unasked| *unasked) => Ok(()),
                            answer = hooks => answer,
                        }
                    };
                    match prepared.await {
                        Ok(()) => Event::Prepared,
                        Err(why) => Event::PrepareFailed(why),
                    }
                })
            }
            Wait::Hook(step, since) => {
                let steps = self.record.as_ref().map_or(0, |record| record.plan.steps().len());
                let hooks = self.asked(if step + 1 < steps { At::Step } else { At::PrePromotion }, since);
                Box::pin(async move { Event::HookAnswered(hooks.await) })
            }
        }
    }

    /// The canary to be prepared.
    fn canary(&self) -> Option<prepare::Canary> {
        let canary = self.roles.canary();
        let Service { name, backends, rollout, .. } = &self.config;
        let backend = backends.iter().find(|backend| Some(&backend.name) == canary)?;
        Some(prepare::Canary {
            service: name.clone(),
            endpoints: backend.endpoints.clone(),
            send_proxy_protocol: backend.send_proxy_protocol,
            tls: self.publisher.connector(name, &backend.name),
            probes: rollout.probes.clone(),
            deadline: rollout.prepare_deadline,
        })
    }

    /// The answer of the hooks that are asked at a place: of all of them in their order, or of the first one
    /// that does not say yes.
    fn asked(&self, at: At, since: Timestamp) -> impl Future<Output = Result<(), String>> + Send + 'static {
        let hooks = self.config.rollout.hooks.iter().enumerate();
        let hooks = hooks.filter(|(_, hook)| hook.is_blocking && hook.at == at);
        let message = match at {
            At::PreRollout => "may the first users get to the canary?",
            At::Step => "may the next step begin?",
            _ => "may the canary get everything?",
        };
        let happening = self.happening(None, since, message.to_owned());
        let hooks: Vec<(Hook, Payload)> = hooks
            .map(|(index, hook)| (hook.clone(), payload(happening.clone(), (at, index), since)))
            .collect();
        let metrics = self.metrics.clone();
        async move {
            for (hook, payload) in hooks {
                let answered = hook::deliver(&hook, &payload).await;
                let result = if answered.is_ok() { "success" } else { "failure" };
                metrics.called(&payload.happening.service, at, result);
                answered?;
            }
            Ok(())
        }
    }

    /// Tells those who only want to know that the rollout went from one phase to another.
    pub(super) fn tell_of_phase(&self, before: &Phase, after: &Phase, entry: &Entry) {
        for at in passed(before, after) {
            self.tell(at, self.happened(None, entry));
        }
    }

    /// Tells those who want to know of everything what has happened.
    pub(super) fn tell_of(&self, entry: &Entry) {
        if let Some(news) = self.news(entry) {
            self.tell(At::Event, news);
        }
    }

    /// What those are told; nothing where it is not for them.
    pub(super) fn news(&self, entry: &Entry) -> Option<Happening> {
        let topic = match &entry.note {
            Some(note) => Topic::of(note),
            None => (entry.kind == Kind::Flip).then_some(Topic::Flipped),
        };
        topic.map(|topic| self.happened(Some(topic), entry))
    }

    /// Tells those who wait for it, and those who want to know of everything, that a backend may be taken away.
    pub(super) fn tell_of_drained(&self, backend: &BackendName, sentence: &str) {
        let now = clock::now();
        for (at, event) in [(At::Drained, None), (At::Event, Some(Topic::Drained))] {
            let backend = Some(backend.clone());
            self.tell(at, Happening { backend, ..self.happening(event, now, sentence.to_owned()) });
        }
    }

    pub(super) fn tell(&self, at: At, happening: Happening) {
        if at == At::Event {
            self.notifier.tell(&happening);
        }
        let since = happening.time;
        for (index, told) in self.told.iter().enumerate() {
            let Hook { at: wanted, is_blocking, .. } = told.hook();
            if *wanted == at && !is_blocking {
                told.tell(payload(happening.clone(), (at, index), since), &self.metrics);
            }
        }
    }

    /// Those who are told, by the configuration; who was there before keeps what waits for them.
    pub(super) fn take_up_hooks(&mut self) {
        let mut before = std::mem::take(&mut self.told);
        for hook in &self.config.rollout.hooks {
            let known = before.iter().position(|told| told.hook() == hook);
            self.told.push(match known {
                Some(known) => before.swap_remove(known),
                None => Told::new(hook.clone(), self.metrics.clone()),
            });
        }
    }

    /// What has just happened, who wanted it and why.
    fn happened(&self, event: Option<Topic>, Entry { what, by, reason, .. }: &Entry) -> Happening {
        let (by, reason) = (by.clone(), reason.clone());
        Happening { by, reason, ..self.happening(event, clock::now(), what.clone()) }
    }

    fn happening(&self, event: Option<Topic>, time: Timestamp, message: String) -> Happening {
        let phase = self.record.as_ref().map_or(&Phase::Idle, |record| &record.phase);
        Happening {
            event,
            service: self.config.name.clone(),
            rollout: self.record.as_ref().map(|record| record.id.clone()),
            stable: self.roles.stable().clone(),
            canary: self.roles.canary().cloned(),
            backend: None,
            phase: phase.name(),
            step: phase.step(),
            steps: self.record.as_ref().map_or(0, |record| record.plan.steps().len()),
            weight: self.weight,
            rollback_until: self.rollback_until(),
            time,
            message,
            by: None,
            reason: None,
        }
    }
}

/// What a hook is told. Its id is made of what a restart knows.
fn payload(happening: Happening, (at, index): (At, usize), since: Timestamp) -> Payload {
    let subject = happening.rollout.as_deref().unwrap_or(happening.service.as_str());
    let what = happening.what(happening.event.map_or_else(|| at.name(), Topic::name));
    let id = format!("{subject}.{what}.{}.{index}", since.as_millis());
    Payload { id, at, happening }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::phase::RollBackReason;

    #[test]
    fn each_place_is_passed_once() {
        let at = Timestamp::from_millis(1);
        let step = |step| Phase::Stepping { step, since: at };
        let paused = |step| Phase::Paused { step, since: at, reason: PauseReason::Hook, earned: false };
        let preparing = Phase::Preparing { since: at, full: false };
        let promoting = Phase::Promoting { since: at };
        let back = Phase::RollingBack { since: at, reason: RollBackReason::Command };
        let promotion = vec![At::PrePromotion, At::PostPromotion];
        for (before, after, wanted) in [
            (&Phase::Idle, &preparing, vec![]),
            (&preparing, &preparing, vec![]),
            (&preparing, &step(0), vec![At::PreRollout]),
            (&preparing, &paused(0), vec![At::PreRollout]),
            (&preparing, &promoting, [vec![At::PreRollout], promotion.clone()].concat()),
            (&step(0), &step(0), vec![]),
            (&step(0), &paused(0), vec![]),
            (&paused(0), &step(0), vec![]),
            (&paused(0), &step(1), vec![At::Step]),
            (&step(0), &step(1), vec![At::Step]),
            (&step(1), &promoting, promotion),
            (&promoting, &Phase::Baking { since: at }, vec![]),
            (&step(0), &back, vec![At::Rollback]),
            (&back, &back, vec![]),
        ] {
            assert_eq!(passed(before, after), wanted, "{before:?} to {after:?}");
        }
    }

    #[test]
    fn two_backends_that_are_drained_in_one_moment_are_two_deliveries() {
        let drained = |backend: &str| Happening {
            event: None,
            service: "web".parse().unwrap(),
            rollout: None,
            stable: "v1".parse().unwrap(),
            canary: None,
            backend: Some(backend.parse().unwrap()),
            phase: "idle",
            step: None,
            steps: 0,
            weight: crate::model::weight::Weight::ZERO,
            rollback_until: None,
            time: Timestamp::from_millis(7),
            message: String::new(),
            by: None,
            reason: None,
        };
        let [v2, v3] = ["v2", "v3"].map(|backend| {
            let happening = drained(backend);
            let since = happening.time;
            payload(happening, (At::Drained, 0), since).id
        });
        assert_eq!((v2.as_str(), v3.as_str()), ("web.drained.v2.7.0", "web.drained.v3.7.0"));
    }
}
