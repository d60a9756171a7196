//! The whole document: its sections, and what has to hold between them.

use std::num::NonZeroUsize;

use serde::Deserialize;
use toml::Spanned;

use super::{
    Config,
    access_log::{self, RawAccessLog},
    admin::{self, RawAdmin},
    freeze::{self, RawFreeze},
    listener::{self, RawListener},
    paths::{self, RawPaths},
    report::Report,
    route::{self, RawRoute},
    service::{self, RawServices},
    shutdown::{self, RawShutdown},
    written::Table,
};

/// More threads than any machine that this runs on has; beyond it a slip is likelier.
const MAX_WORKERS: usize = 1024;

/// A configuration as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawDocument {
    workers: Option<Spanned<i64>>,
    shutdown: Option<Table<RawShutdown>>,
    access_log: Option<Table<RawAccessLog>>,
    listeners: Option<Vec<Spanned<Table<RawListener>>>>,
    admin: Option<Spanned<Table<RawAdmin>>>,
    paths: Option<Table<RawPaths>>,
    routes: Option<Vec<Spanned<Table<RawRoute>>>>,
    freeze: Option<Vec<Spanned<Table<RawFreeze>>>>,
    services: Option<RawServices>,
}

/// What a document means; only to be used if the report has no errors.
pub(super) fn lower(raw: RawDocument, report: &mut Report<'_>) -> Config {
    let RawDocument { workers, shutdown, access_log, listeners, admin, paths, routes, freeze, services } =
        raw;
    let (routes, services) = (routes.unwrap_or_default(), services.unwrap_or_default());
    warn_unrouted(&routes, &services, report);
    let listeners = listener::lower(listeners.unwrap_or_default(), report);
    let admin = admin.and_then(|raw| admin::lower(raw, &listeners, report));
    let names: Vec<_> = services.keys().map(|name| name.get_ref().clone()).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let mut services = service::lower(services, report);
    freeze::lower(freeze.unwrap_or_default(), &names, &mut services, report);
    Config {
        workers: workers.and_then(|written| lower_workers(&written, report)),
        listeners: listeners.into_iter().map(Spanned::into_inner).collect(),
        admin,
        shutdown: shutdown::lower(shutdown.unwrap_or_default().0, report),
        access_log: access_log.map(|raw| access_log::lower(raw, report)),
        paths: paths::lower(paths.unwrap_or_default().0, report),
        routes: route::lower(routes, &names, report),
        services,
    }
}

fn lower_workers(written: &Spanned<i64>, report: &mut Report<'_>) -> Option<NonZeroUsize> {
    let workers = usize::try_from(*written.get_ref()).ok().and_then(NonZeroUsize::new);
    let workers = workers.filter(|workers| workers.get() <= MAX_WORKERS);
    if workers.is_none() {
        let problem = format!("`workers` must be from 1 to {MAX_WORKERS}, not {}", written.get_ref());
        report
            .error(written.span(), problem)
            .help("leave it out for one worker for each CPU that the process may use");
    }
    workers
}

/// Warns of services that get no request, unless a route leads nowhere: then it was probably meant
/// to lead to one of them, and that is the fault to report.
fn warn_unrouted(routes: &[Spanned<Table<RawRoute>>], services: &RawServices, report: &mut Report<'_>) {
    let to_services = routes.iter().filter(|route| !route.get_ref().0.is_redirect());
    let led_to: Vec<_> = to_services.map(|route| route.get_ref().0.service()).collect();
    let leads_nowhere = |service: &Option<&str>| service.is_none_or(|name| !services.contains_key(name));
    if led_to.iter().any(leads_nowhere) {
        return;
    }
    for name in services.keys().filter(|name| !led_to.contains(&Some(name.get_ref().as_str()))) {
        let service = name.get_ref();
        report
            .warning(name.span(), format!("no route leads to service `{service}`, so it gets no traffic"))
            .help(format!("add `[[routes]]` with `service = \"{service}\"`, or remove the service"));
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{errors, errors_of, parsed, warnings};

    #[test]
    fn workers_have_a_range() {
        let with = |workers: &str| format!("workers = {workers}\n{}", super::super::testing::MINIMAL);
        assert_eq!(parsed("").workers, None);
        assert_eq!(errors_of(&with("1024")), [""; 0]);
        for bad in ["0", "-1", "1025"] {
            assert_eq!(errors_of(&with(bad)), [format!("`workers` must be from 1 to 1024, not {bad}")]);
        }
    }

    #[test]
    fn an_empty_document_lacks_its_parts() {
        assert_eq!(
            errors_of(""),
            [
                "there is no listener, so no request could come in",
                "there is no route, so no request would reach a service"
            ]
        );
    }

    #[test]
    fn a_service_without_route_is_warned_about_unless_a_route_is_lost() {
        let api = "[services.api]\nstable = 'v1'\n[services.api.backends.v1]\nendpoints = ['http://a']\n";
        assert_eq!(warnings(api), ["no route leads to service `api`, so it gets no traffic"]);
        let lost = format!("{api}[[routes]]\nservice = 'apj'\npath_prefix = '/api'");
        assert_eq!(errors(&lost), ["there is no service `apj`"]);
    }
}
