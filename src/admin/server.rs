//! The admin listener and what stands before the handlers.

use std::{io, net::SocketAddr, time::Duration};

use axum::{
    Router,
    error_handling::HandleErrorLayer,
    extract::{DefaultBodyLimit, State},
    middleware,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use http::{HeaderValue, StatusCode, header};
use prometheus::{Registry, TextEncoder};
use tokio::net::TcpListener;
use tower::{BoxError, ServiceBuilder};

use super::{
    access::{self, Access},
    api, audit,
    connection::{self, Tls},
    finish, guard,
    idempotency::{self, Memory},
    problem::Problem,
    readiness::Readiness,
    reload::Reload,
    watch::{self, Watching},
};
use crate::controller::Controller;

/// Longest time that a reply may take.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);
/// Requests of a kind that are worked on at a time; more are turned away. A write may wait for the disk, and a
/// pipeline may start a hundred services in one moment.
const CONCURRENCY: usize = 128;
/// The same of ways back. They take effect before they wait for the disk, and one that stands still may not keep the
/// next from doing so.
const WAYS_BACK: usize = 1024;
/// Largest body, in bytes.
pub(super) const MAX_BODY: usize = 64 * 1024;

/// What is served, and to whom.
#[derive(Debug, Clone)]
pub struct Served {
    /// Who may come in.
    pub access: Access,
    /// What is asked about services, and to move their traffic.
    pub controller: Controller,
    /// What is asked to read the configuration anew.
    pub reload: Reload,
    /// Where metrics come from.
    pub registry: Registry,
    /// Whether the process wants traffic.
    pub readiness: Readiness,
}

/// Serves the API on a listening socket until the process ends.
///
/// # Errors
/// When the socket cannot be used.
pub async fn serve(listener: std::net::TcpListener, tls: Option<Tls>, served: Served) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let access = served.access.clone();
    connection::accept(listener, tls, router(served), access).await;
    Ok(())
}

/// Binds the admin address.
///
/// # Errors
/// When it cannot be bound.
pub fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    std::net::TcpListener::bind(address)
}

pub(super) fn router(served: Served) -> Router {
    let Served { access, controller, reload, registry, readiness } = served;
    let limits = |most| {
        let shed = ServiceBuilder::new().layer(HandleErrorLayer::new(overloaded)).load_shed();
        shed.concurrency_limit(most).layer(middleware::from_fn(finish::read_in_time))
    };
    let watching = Watching::new(controller.clone(), readiness.clone(), access.clone());
    Router::new()
        .nest("/api/v1", api::router())
        .with_state(controller.clone())
        .route("/api/v1/reload", post(api::reload).with_state(reload))
        .route("/metrics", get(metrics).with_state(registry))
        .layer(limits(CONCURRENCY))
        .nest("/api/v1", api::ways_back().with_state(controller.clone()).layer(limits(WAYS_BACK)))
        .route("/api/v1/services/{name}", get(watch::service).with_state(watching.clone()))
        .route("/api/v1/services/{name}/events", get(watch::service_events).with_state(watching.clone()))
        .route("/api/v1/events", get(watch::events).with_state(watching))
        .route("/api/v1/openapi.json", get(openapi))
        // Outside the limits: that the API is busy does not make the process unwell.
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz).with_state(readiness))
        .method_not_allowed_fallback(api::no_such_method)
        .fallback(async || Problem::new(StatusCode::NOT_FOUND, "there is nothing here; try /api/v1/services or /metrics"))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn(access::authorise))
        .layer(middleware::from_fn_with_state((access.clone(), controller), audit::audit))
        .layer(middleware::from_fn_with_state(Memory::default(), idempotency::once))
        .layer(middleware::from_fn(finish::finish))
        .layer(middleware::from_fn_with_state(access.clone(), access::authenticate))
        .layer(middleware::from_fn_with_state(access.clone(), guard::refuse_browsers))
        .layer(middleware::from_fn_with_state(access, guard::refuse_other_names))
        .layer(middleware::map_response(guard::harden))
}

async fn overloaded(_: BoxError) -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too many requests at a time; try again")
}

/// What there is to be asked, in OpenAPI's words. It is kept by hand; tests hold it against the routes.
async fn openapi() -> Response {
    let json = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, json)], include_str!("openapi.json")).into_response()
}

async fn readyz(State(readiness): State<Readiness>) -> Response {
    if readiness.is_ready() {
        "ok\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "draining: send new connections elsewhere\n").into_response()
    }
}

async fn metrics(State(registry): State<Registry>) -> Result<Response, Problem> {
    let text = TextEncoder::new()
        .encode_to_string(&registry.gather())
        .map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response())
}
