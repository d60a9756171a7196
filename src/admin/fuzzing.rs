//! The door for `fuzz/`, open only to a build with `--cfg fuzzing`.

use axum::{Extension, Router};
use prometheus::Registry;

use super::{
    access::Access,
    actor::Peer,
    readiness::Readiness,
    reload::Reload,
    server::{self, Served},
};
use crate::{config::Admin, controller::Controller};

/// The API as it is served by `admin`, of a process that does not read its configuration anew.
pub fn router(admin: &Admin, controller: Controller, registry: Registry, readiness: Readiness) -> Router {
    let (reload, _unheard) = Reload::channel();
    let access = Access::new(admin.clone(), &registry).expect("nobody else registers its metrics");
    let peer = Peer { address: ([127, 0, 0, 1], 1).into(), certificate: None };
    server::router(Served { access, controller, reload, registry, readiness }).layer(Extension(peer))
}
