//! The verbs that ask something of a Tidegate that runs: over its admin API, like anybody else.
//!
//! What people are to read goes to stdout, as does JSON; progress and complaints go to stderr, so that both
//! can be told apart in a pipeline.

pub(super) mod api;
mod ending;
mod news;
pub(super) mod options;
mod seen;
mod table;
mod view;
mod wait;
mod watch;
mod write;

use std::process::ExitCode;

use http::Method;
use serde::{Deserialize as _, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use self::{
    api::{Api, Failure},
    ending::Ending,
    options::{Connection, Target, Verb},
    seen::{Event, Page, Services},
    wait::Deadline,
    write::Write,
};
use super::args::Output;

/// Entries of the history that are asked for at a time: an answer may not take long, and each may have a verdict.
const PAGE: usize = 200;

/// Does what a verb says.
pub(super) fn operate(verb: &Verb) -> ExitCode {
    let connection = verb.connection();
    connection.color.write_global();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Ending::Broken(format!("cannot start: {error}")).tell(connection),
    };
    let ended = runtime.block_on(async {
        let deadline = verb.look().and_then(Deadline::of);
        let api = Api::new(&connection.access)?;
        // Whoever waits says how it stands; before that, nobody has answered.
        let nobody = || "nobody has answered, and what was asked for may be done or not".to_owned();
        let obeyed = Box::pin(obey(verb, deadline, &api, connection));
        Deadline::hold(deadline, obeyed, nobody).await.unwrap_or_else(Ok)
    });
    ended.unwrap_or_else(Ending::from).tell(connection)
}

async fn obey(
    verb: &Verb,
    deadline: Option<Deadline>,
    api: &Api,
    connection: &Connection,
) -> Result<Ending, Failure> {
    let reason = |mut body: Map<String, Value>| {
        if let Some(reason) = &connection.reason {
            body.insert("reason".to_owned(), json!(reason));
        }
        Value::Object(body)
    };
    let post = async |target: &Target, path: &str, body: Map<String, Value>| {
        let name = api.service(target.service.as_deref()).await?;
        let (service, body) = (name.as_str(), &reason(body));
        api.write(Write { method: Method::POST, service, verb: path, body, rollout: None }).await
    };
    let flag = |name: &str, on: bool| match on {
        true => Map::from_iter([(name.to_owned(), json!(true))]),
        false => Map::new(),
    };
    let answer = match verb {
        Verb::Status { target, look } if look.wait => {
            let name = api.service(target.service.as_deref()).await?;
            api.call(Method::GET, &format!("/services/{name}"), None).await?
        }
        Verb::Status { target, .. } => return status(target, api, connection).await,
        Verb::Watch { target } => return watch::watch(target, api, connection).await,
        Verb::History { target, events } => return history(target, *events, api, connection).await,
        Verb::Reload { .. } => {
            return match api.call(Method::POST, "/reload", None).await {
                Err(Failure::Refused { status: 422, detail }) => Ok(Ending::Misconfigured(detail)),
                answer => show(connection, &answer?, view::reloaded),
            };
        }
        Verb::Weight { service, percent, .. } => {
            let body = reason(Map::from_iter([("canary".to_owned(), json!(percent))]));
            let name = api.service(Some(service)).await?;
            let (method, service, verb) = (Method::PUT, name.as_str(), "weight");
            api.write(Write { method, service, verb, body: &body, rollout: None }).await?
        }
        Verb::Start { target, force, guards_only, .. } => {
            let mut flags = flag("force", *force);
            flags.extend(flag("guards_only", *guards_only));
            post(target, "start", flags).await?
        }
        Verb::GuardsOnly { target, .. } => post(target, "guards-only", Map::new()).await?,
        Verb::Promote { target, full, .. } => post(target, "promote", flag("full", *full)).await?,
        Verb::Rollback { target, rollout, .. } => {
            let name = api.service(target.service.as_deref()).await?;
            let (method, service, verb) = (Method::POST, name.as_str(), "rollback");
            let body = &reason(Map::new());
            api.write(Write { method, service, verb, body, rollout: rollout.as_deref() }).await?
        }
        Verb::Pause { target } => post(target, "pause", Map::new()).await?,
        Verb::Resume { target, .. } => post(target, "resume", Map::new()).await?,
        Verb::Flip { target, force } => post(target, "flip", flag("force", *force)).await?,
    };
    match verb.look() {
        Some(look) if look.wait => wait::until_it_ends(answer, deadline, api, connection).await,
        _ => show(connection, &answer, view::changed),
    }
}

async fn status(target: &Target, api: &Api, connection: &Connection) -> Result<Ending, Failure> {
    if target.service.is_none() {
        let all = api.call(Method::GET, "/services", None).await?;
        return show(connection, &all, |all: &Services| view::services(&all.services));
    }
    let name = api.service(target.service.as_deref()).await?;
    let one = api.call(Method::GET, &format!("/services/{name}"), None).await?;
    show(connection, &one, view::service)
}

async fn history(
    target: &Target,
    events: usize,
    api: &Api,
    connection: &Connection,
) -> Result<Ending, Failure> {
    let name = api.service(target.service.as_deref()).await?;
    let (mut entries, mut before) = (Vec::new(), String::new());
    loop {
        // At least one, so that a service that does not exist is heard of.
        let limit = (events - entries.len()).clamp(1, PAGE);
        let path = format!("/services/{name}/history?limit={limit}{before}");
        let answer = api.call(Method::GET, &path, None).await?;
        let page = Page::deserialize(&answer).map_err(Failure::not_understood)?;
        let was_empty = page.entries.is_empty();
        entries.extend(page.entries);
        entries.truncate(events);
        match page.next {
            Some(next) if !was_empty && entries.len() < events => before = format!("&before={next}"),
            _ => break,
        }
    }
    // They come the newest first.
    entries.reverse();
    show(connection, &Value::Array(entries), |entries: &Vec<Event>| view::events(entries))
}

/// Prints an answer: as it came for programs, or as `view` words it.
fn show<T: DeserializeOwned>(
    connection: &Connection,
    answer: &Value,
    view: impl FnOnce(&T) -> String,
) -> Result<Ending, Failure> {
    let text = match connection.output {
        Output::Json => serde_json::to_string_pretty(answer).map_err(Failure::not_understood)? + "\n",
        Output::Table => view(&T::deserialize(answer).map_err(Failure::not_understood)?),
    };
    print(&text);
    Ok(Ending::Done)
}

/// Prints to stdout; whoever has stopped reading wants no more.
fn print(text: &str) {
    use std::io::Write as _;
    let _gone = anstream::stdout().write_all(text.as_bytes());
}

/// Prints a line to stderr.
fn say(line: &str) {
    use std::io::Write as _;
    let _gone = writeln!(anstream::stderr(), "{line}");
}
