//! The handlers: parse, ask the controller, render.

use axum::{
    Extension, Json, Router,
    body::Bytes,
    extract::{FromRequest, State},
    response::{IntoResponse, Response},
    routing::{MethodRouter, get, post, put},
};
use http::{StatusCode, header};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::{
    actor::{Actor, Named},
    audit::{Caller, Changes},
    problem::Problem,
    reload::{By, Reload},
    revision, watch,
};
use crate::{
    config::Scope,
    controller::{CommandError, Controller, Request, context::Context, status::ServiceStatus},
    model::weight::Weight,
    rollout::event::Command,
};

/// The routes under `/api/v1`, but for those that wait. `retry`, `abort` and `undo` are what users of Argo
/// Rollouts call them.
pub(super) fn router() -> Router<Controller> {
    Router::new()
        .route("/services", get(services))
        .route("/services/{name}/weight", put(weight))
        .route("/services/{name}/promote", post(promote))
        .route("/services/{name}/start", post(start))
        .route("/services/{name}/retry", post(start))
        .route("/services/{name}/guards-only", post(guards_only))
        .route("/services/{name}/pause", verb(Command::Pause))
        .route("/services/{name}/resume", verb(Command::Resume))
        .route("/services/{name}/flip", post(flip))
        .route("/services/{name}/undo", post(flip))
        .merge(super::history::router())
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
}

/// Those of them that wait for nothing.
pub(super) fn ways_back() -> Router<Controller> {
    Router::new()
        .route("/services/{name}/rollback", verb(Command::RollBack))
        .route("/services/{name}/abort", verb(Command::RollBack))
        .method_not_allowed_fallback(no_such_method)
}

/// A command with nothing to say but why.
fn verb(command: Command) -> MethodRouter<Controller> {
    post(
        async move |controller: State<Controller>, name: Named, caller: Caller, body: Option<Body<Plain>>| {
            let Body(Plain { reason }) = body.unwrap_or_default();
            ask(controller, name, Request::Rollout(command), caller.because(reason)?).await
        },
    )
}

#[derive(Serialize)]
struct Services {
    services: Vec<ServiceStatus>,
}

/// Those that the actor may have to do with.
async fn services(State(controller): State<Controller>, actor: Actor) -> Json<Services> {
    let mut services = controller.services();
    services.retain(|service| actor.may_touch(service.name.as_str()));
    Json(Services { services })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object such as {\"canary\": 12.5}")]
struct WeightBody {
    /// The canary's share of requests, in percent.
    canary: f64,
    /// Why.
    reason: Option<String>,
}

async fn weight(
    controller: State<Controller>,
    name: Named,
    caller: Caller,
    Body(body): Body<WeightBody>,
) -> Result<Response, Problem> {
    let WeightBody { canary, reason } = body;
    let weight = Weight::from_percent(canary)
        .map_err(|error| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string()))?;
    ask(controller, name, Request::SetWeight(weight), caller.because(reason)?).await
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "an object such as {\"reason\": \"…\"}")]
pub(super) struct Plain {
    /// Why.
    reason: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "an object such as {\"force\": true}")]
struct Force {
    /// Even if no endpoint takes a connection.
    force: bool,
    /// Why.
    reason: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "an object such as {\"force\": true}")]
struct StartBody {
    /// Whatever speaks against it: a freeze, a rollback not long ago.
    force: bool,
    /// Judge the canary by its limits alone.
    guards_only: bool,
    /// Why; has to be said where nothing is compared.
    reason: Option<String>,
}

async fn start(
    controller: State<Controller>,
    name: Named,
    caller: Caller,
    body: Option<Body<StartBody>>,
) -> Result<Response, Problem> {
    let Body(StartBody { force, guards_only, reason }) = body.unwrap_or_default();
    if guards_only {
        let because = "nothing is compared with stable then";
        needs_a_reason(reason.as_deref(), "`guards_only`", because, "\"guards_only\": true, ")?;
    }
    let command = Command::Start { force, guards_only };
    ask(controller, name, Request::Rollout(command), caller.because(reason)?).await
}

async fn guards_only(
    controller: State<Controller>,
    name: Named,
    caller: Caller,
    body: Option<Body<Plain>>,
) -> Result<Response, Problem> {
    let Body(Plain { reason }) = body.unwrap_or_default();
    let because = "nothing is compared with stable from then on";
    needs_a_reason(reason.as_deref(), "`guards-only`", because, "")?;
    ask(controller, name, Request::Rollout(Command::GuardsOnly), caller.because(reason)?).await
}

/// What takes something away that protects users is not done without saying why.
fn needs_a_reason(reason: Option<&str>, what: &str, because: &str, beside: &str) -> Result<(), Problem> {
    if reason.is_some_and(|reason| !reason.trim().is_empty()) {
        return Ok(());
    }
    let detail = format!("{what} needs a `reason`, because {because}: write {{{beside}\"reason\": \"…\"}}");
    Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail))
}

async fn flip(
    controller: State<Controller>,
    name: Named,
    caller: Caller,
    body: Option<Body<Force>>,
) -> Result<Response, Problem> {
    let Body(Force { force, reason }) = body.unwrap_or_default();
    ask(controller, name, Request::Flip { force }, caller.because(reason)?).await
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "an object such as {\"full\": true, \"reason\": \"…\"}")]
struct PromoteBody {
    /// Skip the steps that are left.
    full: bool,
    /// Why; has to be said where steps are skipped.
    reason: Option<String>,
}

async fn promote(
    controller: State<Controller>,
    name: Named,
    caller: Caller,
    body: Option<Body<PromoteBody>>,
) -> Result<Response, Problem> {
    let Body(PromoteBody { full, reason }) = body.unwrap_or_default();
    if full {
        let because = "it goes past all steps, gates and hooks that are left";
        needs_a_reason(reason.as_deref(), "`full`", because, "\"full\": true, ")?;
    }
    ask(controller, name, Request::Rollout(Command::Promote { full }), caller.because(reason)?).await
}

/// Has the service do it, and answers how it stands then; if it has changed meanwhile, how it stands now.
async fn ask(
    State(controller): State<Controller>,
    Named(name): Named,
    request: Request,
    context: Context,
) -> Result<Response, Problem> {
    match controller.request(&name, request, context).await {
        Ok(status) => Ok(watch::answer(status)),
        Err(error @ CommandError::Changed(_)) => {
            let status = controller.service(&name)?;
            let current = serde_json::to_value(&status).ok().map(Box::new);
            let mut response = Problem { current, ..Problem::from(error) }.into_response();
            response.headers_mut().insert(header::ETAG, revision::tag(status.revision));
            Ok(response)
        }
        Err(error) => Err(error.into()),
    }
}

#[derive(Serialize)]
struct Reloaded {
    /// What has changed, a line for each.
    changes: Vec<String>,
}

/// Has the configuration read anew.
pub(super) async fn reload(
    State(reload): State<Reload>,
    actor: Actor,
    caller: Caller,
    body: Option<Body<Plain>>,
) -> Result<impl IntoResponse, Problem> {
    actor.needs(Scope::Admin)?;
    actor.needs_all_services()?;
    let context = caller.because(body.and_then(|Body(body)| body.reason))?;
    if context.revisions.is_some() {
        let detail = "`If-Match` names revisions of a service, and a reload is of none: ask without it";
        return Err(Problem::new(StatusCode::PRECONDITION_FAILED, detail));
    }
    let changes = reload.ask(By::Caller(context)).await?;
    Ok((Extension(Changes(changes.clone())), Json(Reloaded { changes })))
}

async fn no_such_path() -> Problem {
    let detail = "there is nothing here; the API begins at /api/v1/services";
    Problem::new(StatusCode::NOT_FOUND, detail)
}

pub(super) async fn no_such_method() -> Problem {
    let detail = "this path does not answer this method; the `Allow` field names those that it does";
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail)
}

/// A JSON body, whatever its content type says: `curl -d` calls everything a form.
#[derive(Default)]
pub(super) struct Body<T>(T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: axum::extract::Request, state: &S) -> Result<Self, Problem> {
        parse(&bytes(request, state).await?).map(Self)
    }
}

impl<S: Send + Sync, T: DeserializeOwned> axum::extract::OptionalFromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: axum::extract::Request, state: &S) -> Result<Option<Self>, Problem> {
        let bytes = bytes(request, state).await?;
        if bytes.trim_ascii().is_empty() {
            return Ok(None);
        }
        parse(&bytes).map(|body| Some(Self(body)))
    }
}

async fn bytes<S: Send + Sync>(request: axum::extract::Request, state: &S) -> Result<Bytes, Problem> {
    Bytes::from_request(request, state).await.map_err(|error| match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large: 64 KiB is the most")
        }
        status => Problem::new(status, "the body did not arrive whole"),
    })
}

/// A body that is an object. By itself serde also takes an array for a struct, value by value in the
/// order of the fields, which nobody means and no key is checked in.
fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let object = serde_json::from_slice::<Map<String, Value>>(bytes);
    let parsed = object.and_then(|object| serde_json::from_value(Value::Object(object)));
    parsed.map_err(|error| Problem::new(StatusCode::BAD_REQUEST, format!("the body is not right: {error}")))
}
