//! The handlers: parse, ask the controller, render.

use axum::{
    Json, Router,
    body::Bytes,
    extract::{FromRequest, State},
    response::IntoResponse,
    routing::{get, post, put},
};
use http::StatusCode;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::{
    actor::{Actor, Named},
    problem::Problem,
    reload::Reload,
};
use crate::{
    config::Scope,
    controller::{Controller, Request, status::ServiceStatus},
    model::weight::Weight,
    rollout::event::Command,
};

type Answer<T> = Result<Json<T>, Problem>;

/// The routes under `/api/v1`. `retry`, `abort` and `undo` are what users of Argo Rollouts call them.
pub(super) fn router() -> Router<Controller> {
    let verb = |request: Request| {
        post(move |controller: State<Controller>, name: Named| ask(controller, name, request))
    };
    Router::new()
        .route("/services", get(services))
        .route("/services/{name}", get(service))
        .route("/services/{name}/weight", put(weight))
        .route("/services/{name}/promote", post(promote))
        .route("/services/{name}/start", post(start))
        .route("/services/{name}/retry", post(start))
        .route("/services/{name}/rollback", verb(Request::Rollout(Command::RollBack)))
        .route("/services/{name}/abort", verb(Request::Rollout(Command::RollBack)))
        .route("/services/{name}/pause", verb(Request::Rollout(Command::Pause)))
        .route("/services/{name}/resume", verb(Request::Rollout(Command::Resume)))
        .route("/services/{name}/flip", post(flip))
        .route("/services/{name}/undo", post(flip))
        .merge(super::history::router())
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
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

async fn service(State(controller): State<Controller>, Named(name): Named) -> Answer<ServiceStatus> {
    Ok(Json(controller.service(&name)?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object such as {\"canary\": 12.5}")]
struct WeightBody {
    /// The canary's share of requests, in percent.
    canary: f64,
}

async fn weight(
    controller: State<Controller>,
    name: Named,
    Body(body): Body<WeightBody>,
) -> Answer<ServiceStatus> {
    let weight = Weight::from_percent(body.canary)
        .map_err(|error| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string()))?;
    ask(controller, name, Request::SetWeight(weight)).await
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "an object such as {\"force\": true}")]
struct Force {
    /// Whatever speaks against it: a freeze, a rollback not long ago, endpoints that do not answer.
    force: bool,
}

async fn start(
    controller: State<Controller>,
    name: Named,
    body: Option<Body<Force>>,
) -> Answer<ServiceStatus> {
    let Force { force } = body.map(|Body(body)| body).unwrap_or_default();
    ask(controller, name, Request::Rollout(Command::Start { force })).await
}

async fn flip(
    controller: State<Controller>,
    name: Named,
    body: Option<Body<Force>>,
) -> Answer<ServiceStatus> {
    let Force { force } = body.map(|Body(body)| body).unwrap_or_default();
    ask(controller, name, Request::Flip { force }).await
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "an object such as {\"full\": true}")]
struct PromoteBody {
    /// Skip the steps that are left.
    full: bool,
}

async fn promote(
    controller: State<Controller>,
    name: Named,
    body: Option<Body<PromoteBody>>,
) -> Answer<ServiceStatus> {
    let PromoteBody { full } = body.map(|Body(body)| body).unwrap_or_default();
    ask(controller, name, Request::Rollout(Command::Promote { full })).await
}

async fn ask(
    State(controller): State<Controller>,
    Named(name): Named,
    request: Request,
) -> Answer<ServiceStatus> {
    Ok(Json(controller.request(&name, request).await?))
}

#[derive(Serialize)]
struct Reloaded {
    /// What has changed, a line for each.
    changes: Vec<String>,
}

/// Has the configuration read anew.
pub(super) async fn reload(State(reload): State<Reload>, actor: Actor) -> Result<impl IntoResponse, Problem> {
    actor.needs(Scope::Admin)?;
    actor.needs_all_services()?;
    let changes = reload.ask().await?;
    Ok(Json(Reloaded { changes }))
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
struct Body<T>(T);

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
