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
use http::{StatusCode, header};
use prometheus::{Registry, TextEncoder};
use tokio::net::TcpListener;
use tower::{BoxError, ServiceBuilder};

use super::{
    access::{self, Access},
    api,
    connection::{self, Tls},
    guard,
    problem::Problem,
    readiness::Readiness,
    reload::Reload,
};
use crate::controller::Controller;

/// Longest time that a reply may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Requests that are worked on at a time; more are turned away.
const CONCURRENCY: usize = 64;
/// Largest body, in bytes.
const MAX_BODY: usize = 64 * 1024;

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
    connection::accept(listener, tls, router(served)).await;
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
    let limits = ServiceBuilder::new()
        .layer(HandleErrorLayer::new(overloaded))
        .load_shed()
        .concurrency_limit(CONCURRENCY)
        .timeout(TIMEOUT);
    Router::new()
        .nest("/api/v1", api::router())
        .with_state(controller)
        .route("/api/v1/reload", post(api::reload).with_state(reload))
        .route("/metrics", get(metrics).with_state(registry))
        .layer(limits)
        // Outside the limits: that the API is busy does not make the process unwell.
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz).with_state(readiness))
        .method_not_allowed_fallback(api::no_such_method)
        .fallback(async || Problem::new(StatusCode::NOT_FOUND, "there is nothing here; try /api/v1/services or /metrics"))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn_with_state(access.clone(), access::authenticate))
        .layer(middleware::from_fn_with_state(access.clone(), guard::refuse_browsers))
        .layer(middleware::from_fn_with_state(access, guard::refuse_other_names))
        .layer(middleware::map_response(guard::harden))
}

async fn overloaded(error: BoxError) -> Problem {
    if error.is::<tower::timeout::error::Elapsed>() {
        Problem::new(StatusCode::GATEWAY_TIMEOUT, format!("no answer within {} s", TIMEOUT.as_secs()))
    } else {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too many requests at a time; try again")
    }
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
