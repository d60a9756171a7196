//! Who did what: a record of each write, whatever came of it, as a line of the log and of a file.
//!
//! The file is opened for each line, so it may be moved away at any time. A line is on its way to the disk
//! before the write is answered; but what cannot be written stops nobody, because a full disk must not keep
//! anybody from rolling back: it is said in the log, and counted.

use std::{
    fs::OpenOptions,
    io::{self, Write as _},
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::{
    extract::{FromRequestParts, Path, Request, State},
    middleware::Next,
    response::Response,
};
use http::{StatusCode, request::Parts};
use serde::Serialize;

use super::{
    access::Access,
    actor::{Actor, Peer},
    finish::Asker,
    problem::{Detail, Problem},
    reload::{By, Outcome},
    revision,
};
use crate::{
    clock,
    controller::{Controller, context::Context, status::ServiceStatus},
    model::weight::Weight,
};

/// Most characters of a reason.
const MAX_REASON: usize = 500;
/// How long an answer waits for its line.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a handler has learned that the record wants to have.
#[derive(Debug, Clone, Default)]
struct Notes(Arc<OnceLock<String>>);

/// Whoever asks for a write, and on what condition.
#[derive(Debug)]
pub(super) struct Caller {
    actor: Actor,
    revisions: Option<Vec<u64>>,
    asker: Option<Asker>,
    notes: Notes,
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let actor = Actor::from_request_parts(parts, state).await?;
        let notes = parts.extensions.get::<Notes>().cloned().unwrap_or_default();
        let asker = parts.extensions.get::<Asker>().cloned();
        Ok(Self { actor, revisions: revision::to_match(&parts.headers), asker, notes })
    }
}

impl Caller {
    /// What the controller is to know, with the reason that was given.
    ///
    /// # Errors
    /// When it is no reason.
    pub(super) fn because(self, reason: Option<String>) -> Result<Context, Problem> {
        if let Some(reason) = &reason {
            if reason.chars().count() > MAX_REASON || reason.chars().any(char::is_control) {
                let detail = format!("a reason has up to {MAX_REASON} characters, and no line breaks");
                return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail));
            }
            // Once for each request, since each has one handler.
            let _first = self.notes.0.set(reason.clone());
        }
        let Self { actor, revisions, asker, notes: _ } = self;
        Ok(Context { actor: actor.name(), reason, revisions, asker: asker.map(|Asker(asker)| asker) })
    }
}

/// How a service stands, in short.
#[derive(Debug, Serialize)]
struct Standing<'s> {
    #[serde(flatten)]
    roles: RolesOf<'s>,
    weight: Weight,
    revision: u64,
    phase: Option<&'static str>,
    step: Option<usize>,
}

#[derive(Debug, Serialize)]
struct RolesOf<'s> {
    stable: &'s str,
    canary: Option<&'s str>,
}

impl<'s> Standing<'s> {
    fn of(status: &'s ServiceStatus) -> Self {
        let phase = status.rollout.as_ref().map(|rollout| &rollout.phase);
        Self {
            roles: RolesOf {
                stable: status.stable.as_str(),
                canary: status.canary.as_ref().map(|c| c.as_str()),
            },
            weight: status.weight,
            revision: status.revision,
            phase: phase.map(|phase| phase.name()),
            step: phase.and_then(|phase| phase.step()),
        }
    }
}

/// What a reload has changed, for the record of it.
#[derive(Debug, Clone)]
pub(super) struct Changes(pub(super) Vec<String>);

/// A record.
#[derive(Debug, Serialize)]
struct Record<'r> {
    /// In milliseconds since 1970.
    at: u64,
    actor: &'r str,
    /// How it is known who it is: by a `credential`, a `certificate` or an `address` alone; or it is nobody outside
    /// this `process`.
    by: &'static str,
    peer: String,
    verb: &'static str,
    service: Option<&'r str>,
    reason: Option<&'r str>,
    before: Option<Standing<'r>>,
    after: Option<Standing<'r>>,
    /// What a reload has changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    changes: Option<&'r [String]>,
    status: u16,
    /// What was wrong, if something was.
    problem: Option<&'r str>,
}

/// The middleware.
pub(super) async fn audit(
    State((access, controller)): State<(Access, Controller)>,
    request: Request,
    next: Next,
) -> Response {
    let actor = request.extensions().get::<Actor>().cloned();
    let Some(actor) = actor.filter(|_| !request.method().is_safe()) else { return next.run(request).await };
    let peer = request.extensions().get::<Peer>().map(|peer| peer.address.to_string()).unwrap_or_default();
    let (mut parts, body) = request.into_parts();
    let verb = verb(parts.uri.path());
    // As the handler reads it: however it is encoded, it is the same service.
    let service = Path::<String>::from_request_parts(&mut parts, &()).await.ok();
    let look = || service.as_ref().and_then(|Path(name)| controller.service(name).ok());
    let notes = Notes::default();
    parts.extensions.insert(notes.clone());
    let before = look();
    let response = next.run(Request::from_parts(parts, body)).await;
    let after = response.extensions().get::<ServiceStatus>().cloned().or_else(look);
    let record = Record {
        at: clock::now().as_millis(),
        actor: &actor.name(),
        by: actor.kind(),
        peer,
        verb,
        service: before.as_ref().map(|status| status.name.as_str()),
        reason: notes.0.get().map(String::as_str),
        before: before.as_ref().map(Standing::of),
        after: after.as_ref().map(Standing::of),
        changes: response.extensions().get::<Changes>().map(|changes| changes.0.as_slice()),
        status: response.status().as_u16(),
        problem: response.extensions().get::<Detail>().map(|detail| detail.0.as_str()),
    };
    write(&record, access.config().audit_log.as_deref(), &access).await;
    response
}

/// Records a reload that nobody has asked for over the API.
pub async fn reloaded(access: &Access, by: &By, outcome: &Outcome) {
    let problem = outcome.clone().err().map(Problem::from);
    let record = Record {
        at: clock::now().as_millis(),
        actor: &by.context().actor,
        by: "process",
        peer: String::new(),
        verb: "reload",
        service: None,
        reason: None,
        before: None,
        after: None,
        changes: outcome.as_ref().ok().map(Vec::as_slice),
        status: problem.as_ref().map_or(StatusCode::OK.as_u16(), |problem| problem.status),
        problem: problem.as_ref().map(|problem| problem.detail.as_str()),
    };
    write(&record, access.config().audit_log.as_deref(), access).await;
}

/// The verb of a path. What users of Argo Rollouts say is what it is said for here.
fn verb(path: &str) -> &'static str {
    let path = path.strip_prefix("/api/v1/").unwrap_or_default();
    let of_service = path.strip_prefix("services/").and_then(|rest| rest.split_once('/'));
    let known =
        ["weight", "start", "guards-only", "promote", "rollback", "pause", "resume", "flip", "reload"];
    match of_service.map_or(path, |(_, verb)| verb) {
        "retry" => "start",
        "abort" => "rollback",
        "undo" => "flip",
        other => known.into_iter().find(|known| *known == other).unwrap_or("unknown"),
    }
}

async fn write(record: &Record<'_>, file: Option<&std::path::Path>, access: &Access) {
    let json =
        |standing: &Option<Standing<'_>>| standing.as_ref().and_then(|s| serde_json::to_string(s).ok());
    let Record { actor, by, peer, verb, service, reason, before, after, changes, status, problem, .. } =
        record;
    let (before, after) = (json(before), json(after));
    let changes = changes.map(|changes| changes.join(", "));
    tracing::info!(target: "audit", actor, by, peer, service, reason, before, after, changes, status, problem, "{verb}");
    let Some(file) = file else { return };
    let line = serde_json::to_string(record).expect("a record has only texts and numbers") + "\n";
    let (path, pen) = (file.to_owned(), Arc::clone(access.pen()));
    let written = async move {
        let pen = pen.acquire_owned().await.map_err(io::Error::other)?;
        let write = move || {
            let _until_it_is_written = pen;
            append(path, &line)
        };
        tokio::task::spawn_blocking(write).await.map_err(io::Error::other)?
    };
    let why = match tokio::time::timeout(PATIENCE, written).await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(_) => "the disk does not answer".to_owned(),
    };
    access.refusals().audit_failed();
    tracing::error!(file = %file.display(), why, "the audit cannot be written");
}

/// One write of the whole line, so that lines of several do not mix.
fn append(path: PathBuf, line: &str) -> io::Result<()> {
    OpenOptions::new().create(true).append(true).open(path)?.write_all(line.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_a_verb() {
        assert_eq!(verb("/api/v1/services/web/promote"), "promote");
        assert_eq!(verb("/api/v1/services/web/abort"), "rollback");
        assert_eq!(verb("/api/v1/reload"), "reload");
        assert_eq!(verb("/api/v1/services/web/x\ny"), "unknown");
        assert_eq!(verb("/api/v1/services/reload"), "unknown");
        assert_eq!(verb("/metrics"), "unknown");
    }

    #[test]
    fn every_write_has_a_verb() {
        let document: serde_json::Value = serde_json::from_str(include_str!("openapi.json")).unwrap();
        let paths = document["paths"].as_object().unwrap();
        let writes = paths
            .iter()
            .filter(|(_, of)| ["put", "post", "patch", "delete"].iter().any(|m| of[m].is_object()));
        let mut seen = 0;
        for (path, _) in writes {
            let last = path.rsplit('/').next().unwrap();
            let meant = [("retry", "start"), ("abort", "rollback"), ("undo", "flip")];
            let meant = meant.into_iter().find(|(other, _)| *other == last).map_or(last, |(_, meant)| meant);
            assert_eq!(verb(path), meant, "{path}");
            seen += 1;
        }
        assert!(seen >= 12, "{seen}");
    }
}
