//! Staying until a rollout has ended.

use std::time::Duration;

use http::Method;
use serde::Deserialize as _;
use serde_json::Value;
use tokio::time::{self, Instant};

use super::{
    api::{Api, Failure},
    ending::Ending,
    news::News,
    options::{Connection, Look},
    print, say,
    seen::{Rollout, Service},
    view,
};
use crate::{cli::args::Output, model::units::format_duration};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(500);
/// How long nobody has to answer before it is given up: a restart takes less.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long somebody waits in all, and until when that is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline(Duration, Instant);

impl Deadline {
    /// From now on.
    pub(super) fn of(look: &Look) -> Option<Self> {
        look.timeout.map(|timeout| Self(timeout, Instant::now() + timeout))
    }

    /// What comes of this if it comes in time, or how it stands then.
    pub(super) async fn hold<T>(
        deadline: Option<Self>,
        work: impl Future<Output = T>,
        stands: impl FnOnce() -> String,
    ) -> Result<T, Ending> {
        let Some(Self(timeout, at)) = deadline else { return Ok(work.await) };
        let late =
            |_| Ending::Undecided(format!("not over after {}: {}", format_duration(timeout), stands()));
        time::timeout_at(at, work).await.map_err(late)
    }
}

/// Tells what happens, and ends when the rollout has.
pub(super) async fn until_it_ends(
    first: Value,
    deadline: Option<Deadline>,
    api: &Api,
    connection: &Connection,
) -> Result<Ending, Failure> {
    let mut answer = first;
    let mut seen = Seen::default();
    loop {
        let service = Service::deserialize(&answer).map_err(Failure::not_understood)?;
        let Some(rollout) = &service.rollout else {
            return Ok(Ending::Refused(format!("no rollout of service `{}` has been started", service.name)));
        };
        seen.tell(&service);
        if let Some(ending) = seen.ending(&service, rollout) {
            if connection.output == Output::Json {
                let text = serde_json::to_string_pretty(&answer).map_err(Failure::not_understood)?;
                print(&format!("{text}\n"));
            }
            return Ok(ending);
        }
        let next = async {
            time::sleep(PAUSE).await;
            patiently(api, &service.name).await
        };
        let stands = || anstream::adapter::strip_str(&view::stands(rollout)).to_string();
        answer = match Deadline::hold(deadline, next, stands).await {
            Ok(next) => next?,
            Err(late) => return Ok(late),
        };
    }
}

/// Asks again, for a while even where nobody answers: it may be restarting.
async fn patiently(api: &Api, name: &str) -> Result<Value, Failure> {
    let until = Instant::now() + PATIENCE;
    loop {
        match api.call(Method::GET, &format!("/services/{name}"), None).await {
            Err(Failure::Unreachable(_) | Failure::Broken(_)) if Instant::now() < until => {
                time::sleep(PAUSE).await;
            }
            result => return result,
        }
    }
}

/// What was seen so far.
#[derive(Debug, Default)]
struct Seen {
    /// The rollout that is waited for.
    id: Option<String>,
    /// Which events were told.
    news: News,
}

impl Seen {
    /// Tells the events that are new.
    fn tell(&mut self, service: &Service) {
        self.news.of(service).into_iter().for_each(|event| say(&view::event_line(event)));
    }

    /// How it has ended, if it has.
    fn ending(&mut self, service: &Service, rollout: &Rollout) -> Option<Ending> {
        let id = self.id.get_or_insert_with(|| rollout.id.clone());
        if *id != rollout.id {
            return Some(Ending::Undecided(format!("another rollout has begun: {}", rollout.id)));
        }
        let why = || {
            let last = service.events.last().map(|event| event.what.clone());
            last.unwrap_or_else(|| rollout.phase.replace('_', " "))
        };
        match (rollout.phase.as_str(), rollout.waits_for()) {
            ("succeeded", _) => Some(Ending::Done),
            ("rolled_back", _) => Some(Ending::RolledBack(why())),
            ("paused", Some("inconclusive" | "hook_failed")) => Some(Ending::Undecided(why())),
            _ => None,
        }
    }
}
