//! The whole document: its sections, and what has to hold between them.

use std::{num::NonZeroUsize, sync::Arc};

use serde::Deserialize;
use toml::Spanned;

use super::{
    Config, Lead, Route, Service,
    access_log::{self, RawAccessLog},
    admin::{self, RawAdmin},
    freeze::{self, RawFreeze},
    hook::RawHooks,
    listener::{self, RawListener},
    notification::{self, RawNotification},
    paths::{self, RawPaths},
    report::Report,
    route::{self, RawRoute},
    service::{self, RawServices},
    shutdown::{self, RawShutdown},
    store::{self, RawStore},
    tracing::{self, RawTracing},
    written::Table,
};

/// More threads than any machine that this runs on has; beyond it a slip is likelier.
const MAX_WORKERS: usize = 1024;
/// Routes of one service that are counted apart; the evidence is shared out among them.
const MAX_COUNTED: usize = 64;

/// A configuration as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawDocument {
    workers: Option<Spanned<i64>>,
    shutdown: Option<Table<RawShutdown>>,
    store: Option<Spanned<Table<RawStore>>>,
    access_log: Option<Table<RawAccessLog>>,
    tracing: Option<Spanned<Table<RawTracing>>>,
    listeners: Option<Vec<Spanned<Table<RawListener>>>>,
    admin: Option<Spanned<Table<RawAdmin>>>,
    paths: Option<Table<RawPaths>>,
    routes: Option<Vec<Spanned<Table<RawRoute>>>>,
    freeze: Option<Vec<Spanned<Table<RawFreeze>>>>,
    hooks: Option<Table<RawHooks>>,
    notifications: Option<Vec<Spanned<Table<RawNotification>>>>,
    services: Option<RawServices>,
}

/// What a document means; only to be used if the report has no errors.
pub(super) fn lower(raw: RawDocument, report: &mut Report<'_>) -> Config {
    let RawDocument {
        workers,
        shutdown,
        store,
        access_log,
        tracing,
        listeners,
        admin,
        paths,
        routes,
        freeze,
        hooks,
        notifications,
        services,
    } = raw;
    let (routes, services) = (routes.unwrap_or_default(), services.unwrap_or_default());
    warn_unrouted(&routes, &services, report);
    let listeners = listener::lower(listeners.unwrap_or_default(), report);
    let admin = admin.and_then(|raw| admin::lower(raw, &listeners, report));
    let names: Vec<_> = services.keys().map(|name| name.get_ref().clone()).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let routes = route::lower(routes, &names, report);
    let mut services = service::lower(services, hooks.unwrap_or_default().0.allows_exec(), report);
    services.iter_mut().for_each(|service| service.routes = counted(&routes, service));
    freeze::lower(freeze.unwrap_or_default(), &names, &mut services, report);
    Config {
        workers: workers.and_then(|written| lower_workers(&written, report)),
        listeners: listeners.into_iter().map(Spanned::into_inner).collect(),
        admin,
        shutdown: shutdown::lower(shutdown.unwrap_or_default().0, report),
        store: store.and_then(|raw| store::lower(raw, report)),
        access_log: access_log.map(|raw| access_log::lower(raw, report)),
        tracing: tracing.and_then(|raw| tracing::lower(raw, report)),
        paths: paths::lower(paths.unwrap_or_default().0, report),
        routes,
        services,
        notifications: notification::lower(notifications.unwrap_or_default(), &names, report),
    }
}

/// The routes to a service whose requests are counted apart: those that there are to compare, where there
/// are several.
fn counted(routes: &[Route], service: &Service) -> Arc<[Arc<str>]> {
    let leads_here = |route: &&Route| matches!(&route.lead, Lead::Service(name) if *name == service.name);
    let names = routes.iter().filter(leads_here).map(|route| Arc::clone(&route.name));
    let names: Vec<_> = names.take(MAX_COUNTED).collect();
    match service.roles.canary() {
        Some(_) if names.len() > 1 => names.into(),
        _ => Arc::new([]),
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
    use super::super::testing::{errors, errors_of, parsed, parsed_of, warnings};

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
    fn routes_are_counted_apart_where_there_are_several_and_a_canary() {
        let v2 = "[services.web.backends.v2]\nendpoints = ['http://127.0.0.1:9002']\n";
        let more = "[[routes]]\nservice = 'web'\npath = '/a'\n[[routes]]\npath = '/b'\n\
                    [routes.request_redirect]\nport = 1\n";
        let names = |text: &str| parsed_of(text).services.remove(0).routes.to_vec();
        let minimal = super::super::testing::MINIMAL;
        let with_canary = minimal.replace("stable = 'v1'", "stable = 'v1'\ncanary = 'v2'") + v2;
        assert_eq!(names(&format!("{with_canary}{more}")), ["/".into(), "/a".into()]);
        assert!(names(&with_canary).is_empty() && names(&format!("{minimal}{more}")).is_empty());
        let many = |i: usize| format!("[[routes]]\nservice = 'web'\npath = '/{i}'\n");
        let many: String = (0..100).map(many).collect();
        assert_eq!(names(&format!("{with_canary}{many}")).len(), super::MAX_COUNTED);
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
