//! The door for `fuzz/`, open only to a build with `--cfg fuzzing`.

use axum::Router;
use prometheus::Registry;

use super::{readiness::Readiness, reload::Reload, server};
use crate::controller::Controller;

/// The API as it is served, of a process that does not read its configuration anew.
pub fn router(controller: Controller, registry: Registry, readiness: Readiness) -> Router {
    let (reload, _unheard) = Reload::channel();
    server::router(controller, reload, registry, readiness)
}
