//! How a service stands when its task begins: as its configuration says, or as it was saved.
//!
//! The configuration names the roles and the weight of the beginning. What has become of them is in the
//! store, and goes on, for as long as the configuration says what it said when that was saved. Where it
//! says something else, somebody has decided anew, and a rollout that ran is over.
//!
//! A rollout that goes on does so with the plan that it began with, and with the time that it had: what
//! the process was away for counts neither for its hold nor for its bake, since nobody was watching.

use std::time::Duration;

use super::{
    publish::{self, Compiled},
    status::Occurrence,
};
use crate::{
    analysis::Analysis,
    clock,
    config::{Config, Service},
    model::{name::ServiceName, role::Roles, time::Timestamp, units::format_duration, weight::Weight},
    rollout::phase::{Phase, RollBackReason},
    store::{
        Found, Store,
        record::{Brief, Endpoints, Kind, Position, Record, Rollout},
    },
};

/// How a service stands when its task begins.
#[derive(Debug, Clone)]
pub(super) struct Standing {
    pub(super) position: Position,
    pub(super) salt: u64,
    pub(super) rollout: Option<Rollout>,
    /// Whether that ran when it was saved, and is over by what was found since.
    pub(super) has_ended: bool,
    pub(super) analysis: Option<Analysis>,
    /// Who of the canary's endpoints that comes from.
    pub(super) endpoints: Endpoints,
    /// When the evidence was saved from which a rollout goes on.
    pub(super) saved: Option<Timestamp>,
    /// What happened before, to be shown.
    pub(super) events: Vec<Occurrence>,
    /// What there is to say about it. If there is anything, it has to be saved.
    pub(super) news: Vec<(Kind, String)>,
}

/// Lets the next snapshot have services as they stand, where that is not as they are written.
pub fn place(compiled: &mut Compiled, config: &Config, is_new: impl Fn(&ServiceName) -> bool, store: &Store) {
    for service in config.services.iter().filter(|service| is_new(&service.name)) {
        let standing = Standing::of(service, &store.found(&service.name), clock::now());
        let copies = standing.rollout.as_ref().map_or(Weight::ZERO, Rollout::copies);
        compiled.place(&service.name, (&standing.position, copies), standing.salt);
    }
}

impl Standing {
    /// How a service stands of which this has been found.
    pub(super) fn of(service: &Service, found: &Found, now: Timestamp) -> Self {
        let problems = found.problems.iter().map(|problem| (Kind::Store, problem.to_string()));
        let fresh = Self {
            position: configured(service),
            salt: publish::salt(&service.name, 0),
            rollout: None,
            has_ended: false,
            analysis: None,
            endpoints: Endpoints::default(),
            saved: None,
            events: found.recent.iter().map(occurrence).collect(),
            news: problems.collect(),
        };
        let known = |roles: &Roles| {
            let names = std::iter::once(roles.stable()).chain(roles.canary());
            names.into_iter().all(|name| service.backends.iter().any(|backend| backend.name == *name))
        };
        let standing = match (&found.record, &found.newer) {
            (None, None) => return fresh,
            (Some(record), None) => fresh.go_on(record, now),
            (Some(record), Some(newer)) => fresh.without_the_newest(record, newer, now),
            (None, Some(newer)) => {
                let position = Position { weight: Weight::ZERO, ..newer.position() };
                let news = format!(
                    "what was saved is lost: {} stays stable, as the history says last, and no rollout goes on",
                    position.roles.stable()
                );
                fresh.at(position, Kind::Store, news)
            }
        };
        if !known(&standing.position.roles) {
            let news =
                "what was saved names a backend that is gone: it begins as it is configured".to_owned();
            let salt = publish::salt(&service.name, 0);
            let over = Self { salt, ..standing.over(now, "a backend is gone") };
            return over.at(configured(service), Kind::Configuration, news);
        }
        standing
    }

    /// As it was saved, unless the configuration says something else since.
    fn go_on(self, record: &Record, now: Timestamp) -> Self {
        let written = self.position.clone();
        let was = Self {
            position: record.position.clone(),
            salt: record.salt,
            rollout: record.rollout.clone(),
            analysis: record.analysis.clone(),
            ..self
        };
        if written != record.configured && written != record.position {
            let news = format!(
                "the configuration has changed meanwhile: {} is stable, and the canary gets {}",
                written.roles.stable(),
                written.weight
            );
            let salt = self.salt;
            let began = Self { salt, ..was.over(now, "the configuration has other roles or another weight") };
            return began.at(written, Kind::Configuration, news);
        }
        let away = now.since(record.saved);
        match was.rollout.as_ref().filter(|rollout| rollout.phase.is_running()) {
            None => was,
            Some(rollout) => {
                let news = format!(
                    "the rollout goes on after a restart: it is {}, and the canary gets {}; what passed since it was saved ({}) does not count",
                    rollout.phase.name(),
                    was.position.weight,
                    format_duration(Duration::from_secs(away.as_secs()))
                );
                let (position, has_evidence) = (was.position.clone(), was.analysis.is_some());
                let was = was.later(away, now).at(position.clone(), Kind::Restart, news);
                if has_evidence {
                    let endpoints = record.endpoints.clone();
                    return Self { saved: Some(record.saved), endpoints, ..was };
                }
                let news = "its evidence is another version's and cannot be read: it is gathered anew";
                was.at(position, Kind::Restart, news.to_owned())
            }
        }
    }

    /// With a record that is not the newest: the history says how traffic stood after that one. Whatever
    /// ran then cannot go on, as nobody knows what for.
    fn without_the_newest(self, record: &Record, newer: &Brief, now: Timestamp) -> Self {
        let written = self.position.clone();
        if written != record.configured {
            return self.go_on(record, now);
        }
        let was = Self { salt: record.salt, rollout: record.rollout.clone(), analysis: None, ..self };
        let ran = was.rollout.as_ref().filter(|rollout| rollout.phase.is_running());
        let had_ended = |rollout: &Rollout| {
            let same = newer.rollout.as_ref() == Some(&rollout.id);
            let phase = newer.phase.as_ref().map(|phase| phase.phase.as_str());
            !same || matches!(phase, Some("succeeded" | "rolled_back"))
        };
        match ran {
            Some(rollout) if !had_ended(rollout) => {
                let back = Position { roles: rollout.roles.clone(), weight: Weight::ZERO };
                let news = "the newest record is lost, so the rollout goes back".to_owned();
                was.at(back, Kind::Store, news).over(now, "the newest record is lost")
            }
            ran => {
                let lost = ran.is_some();
                let news = "the newest record is lost: it stands as the history says last".to_owned();
                let was = was.at(newer.position(), Kind::Store, news);
                if lost { Self { rollout: None, ..was } } else { was }
            }
        }
    }

    fn at(mut self, position: Position, kind: Kind, news: String) -> Self {
        self.news.push((kind, news));
        Self { position, ..self }
    }

    /// A rollout that runs is over, and has been rolled back.
    fn over(mut self, now: Timestamp, why: &str) -> Self {
        if let Some(rollout) = &mut self.rollout
            && rollout.phase.is_running()
        {
            let reason = RollBackReason::CannotGoOn { why: why.to_owned() };
            rollout.phase = Phase::RolledBack { at: now, reason };
            self.has_ended = true;
        }
        (self.analysis, self.saved) = (None, None);
        self
    }

    /// With what is measured beginning so much later.
    fn later(mut self, by: Duration, now: Timestamp) -> Self {
        if let Some(rollout) = &mut self.rollout {
            rollout.phase.later(by, now);
        }
        self
    }
}

/// How a service stands by its configuration.
pub(super) fn configured(service: &Service) -> Position {
    Position { roles: service.roles.clone(), weight: service.weight }
}

fn occurrence(brief: &Brief) -> Occurrence {
    let Brief { at, what, by, reason, .. } = brief;
    Occurrence { id: 0, at: *at, what: what.clone(), by: by.clone(), reason: reason.clone() }
}
