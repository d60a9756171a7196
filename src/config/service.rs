//! `[services.NAME]`: the backends of one application, their weights and their roles.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use http::HeaderName;
use serde::Deserialize;
use toml::Spanned;

use super::{
    Rollout, Service, Timeouts,
    backend::{self, RawBackends},
    balance::{self, RawBalance},
    condition,
    failures::{self, RawFailures},
    filter,
    force::{self, RawForce, RawPreview},
    health_check::{self, RawHealthCheck},
    limits::{self, RawLimits},
    mirror::{self, RawMirror},
    outlier_detection::{self, RawOutlierDetection},
    pool::{self, RawPool},
    report::Report,
    retry::{self, RawRetry},
    rollout::{self, Around, RawRollout},
    sticky::{self, RawSticky},
    suggest::suggest,
    timeouts::{self, RawTimeouts},
    upgrades,
    written::{self, Section, TIMEOUT, Table, Text, Time, time_or},
};
use crate::{
    model::{
        failure::Failures,
        name::{BackendName, ServiceName},
        role::{Role, Roles},
        weight::Weight,
    },
    routing::{mirror::Mirror, policy::Policy},
};

/// `[services.NAME]` as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawService {
    stable: Option<Text>,
    canary: Option<Text>,
    weight: Option<Spanned<f64>>,
    backends: Option<RawBackends>,
    sticky: Option<Table<RawSticky>>,
    force: Option<Vec<Spanned<Table<RawForce>>>>,
    preview: Option<Spanned<Table<RawPreview>>>,
    backend_header: Option<Text>,
    timeouts: Option<Table<RawTimeouts>>,
    upgrades: Option<Vec<Text>>,
    failures: Option<Table<RawFailures>>,
    balance: Option<Table<RawBalance>>,
    outlier_detection: Option<Table<RawOutlierDetection>>,
    health_check: Option<Table<RawHealthCheck>>,
    pool: Option<Table<RawPool>>,
    resolve_interval: Option<Time>,
    limits: Option<Table<RawLimits>>,
    retry: Option<Spanned<Table<RawRetry>>>,
    mirror: Option<Spanned<Table<RawMirror>>>,
    rollout: Option<Table<RawRollout>>,
}

impl Section for RawService {
    const HEADER: &'static str = "[services.NAME]";
}

/// Services by the names they are written with.
pub(super) type RawServices = BTreeMap<Text, Table<RawService>>;

/// The services, by name.
pub(super) fn lower(raw: RawServices, allow_exec: bool, report: &mut Report<'_>) -> Vec<Service> {
    raw.into_iter().filter_map(|(name, raw)| lower_one(&name, raw.0, allow_exec, report)).collect()
}

fn lower_one(
    written_name: &Text,
    raw: RawService,
    allow_exec: bool,
    report: &mut Report<'_>,
) -> Option<Service> {
    let RawService {
        stable,
        canary,
        weight,
        backends,
        sticky,
        force,
        preview,
        backend_header,
        timeouts,
        upgrades,
        failures,
        balance,
        outlier_detection,
        health_check,
        pool,
        resolve_interval,
        limits,
        retry,
        mirror,
        rollout,
    } = raw;
    let place = written_name.span();
    let service = written_name.get_ref();
    let name = written::name::<ServiceName>(written_name, "service", report);
    let backends = backends.unwrap_or_default();
    if backends.is_empty() {
        report.error(place.clone(), format!("service `{service}` has no backend")).help(format!(
            "add `[services.{service}.backends.v1]` with `endpoints = [\"http://HOST:PORT\"]`"
        ));
    }
    let roles = lower_roles(written_name, stable, canary.as_ref(), &backends, report);
    let weight = lower_weight(service, weight, canary.is_some(), report);
    let backends = backend::lower(backends, report);
    let (sticky, cookie_secrets) = sticky.map(|raw| sticky::lower(raw.0, report)).unzip();
    let overrides = force::lower(force.unwrap_or_default(), preview, report);
    let backend_header = backend_header.and_then(|written| lower_backend_header(&written, report));
    let timeouts: Timeouts = timeouts::lower(timeouts.unwrap_or_default().0, report);
    let upgrades = upgrades::lower(upgrades, report);
    let failures = failures.map(|raw| failures::lower(raw.0, report));
    let interval = resolve_interval.as_ref();
    let policy = Policy {
        balance: balance::lower(balance.unwrap_or_default().0, report),
        outlier_detection: outlier_detection.map(|raw| outlier_detection::lower(raw.0, report)),
        health_check: health_check.map(|raw| health_check::lower(raw.0, report)),
        pool: pool::lower(pool.unwrap_or_default().0, report),
        resolve_interval: time_or(
            Policy::default().resolve_interval,
            interval,
            "resolve_interval",
            TIMEOUT,
            report,
        ),
        warmup: None,
    };
    let limits = limits::lower(limits.unwrap_or_default().0, report);
    let retry = retry.map(|raw| retry::lower(raw, canary.is_some(), report));
    let mirror = mirror.map(|raw| mirror::lower(raw, canary.is_some(), report));
    let forced = overrides.as_ref().is_some_and(|overrides| overrides.can_force(Role::Canary));
    let rollout: Option<Rollout> = rollout::lower(
        rollout.unwrap_or_default().0,
        Around { unweighted: forced, allow_exec, is_sticky: sticky.is_some(), place },
        report,
    );
    let rollout = rollout?;
    let copied = mirror.or_else(|| rollout.plan.has_dark_steps().then(Mirror::of_rollouts));
    let tolerated = mirror::tolerated(rollout.analysis.latency_margin);
    let mirror = copied.map(|mirror| Mirror { tolerated, ..mirror });
    // What takes its time to take on its share is cold for as long.
    let warmup = rollout.warmup.or(policy.balance.slow_start).filter(|warmup| !warmup.is_zero());
    Some(Service {
        name: name?,
        // Filled in by whoever has the routes.
        routes: Arc::new([]),
        roles: roles?,
        weight,
        backends,
        sticky,
        cookie_secrets: cookie_secrets.flatten(),
        overrides,
        backend_header,
        timeouts,
        upgrades,
        failures: failures.filter(|failures| *failures != Failures::default()),
        policy: Policy { warmup, ..policy },
        limits,
        retry,
        mirror,
        rollout,
    })
}

/// The roles, and warnings about backends that have none.
fn lower_roles(
    service: &Text,
    stable: Option<Text>,
    canary: Option<&Text>,
    backends: &RawBackends,
    report: &mut Report<'_>,
) -> Option<Roles> {
    let written: Vec<_> = backends.keys().map(|name| name.get_ref().as_str()).collect();
    let Some(stable) = stable else {
        let example = written.first().unwrap_or(&"v1");
        let problem = format!("service `{}` does not say which backend is `stable`", service.get_ref());
        report.error(service.span(), problem).help(format!("add `stable = \"{example}\"`"));
        if let Some(canary) = canary {
            lower_role(Role::Canary, canary, None, &written, report);
        }
        return None;
    };
    let stable_name = lower_role(Role::Stable, &stable, canary, &written, report);
    let canary_name = canary.map(|canary| lower_role(Role::Canary, canary, Some(&stable), &written, report));
    let canary_name = match canary_name {
        None => None,
        Some(found) => Some(found?),
    };
    for name in backends.keys() {
        let roles = [Some(stable.get_ref()), canary.map(Spanned::get_ref)];
        if !roles.contains(&Some(name.get_ref())) {
            let (name, place) = (name.get_ref(), name.span());
            warn_idle(name, place, canary.is_some(), report);
        }
    }
    let place = canary.map(Spanned::span).unwrap_or_default();
    Roles::new(stable_name?, canary_name)
        .inspect_err(|same| {
            let others = written.iter().find(|other| **other != same.0.as_str());
            let remedy = match others {
                Some(other) => format!("name another one, such as `canary = \"{other}\"`"),
                None => "leave `canary` out until there is a second backend".to_owned(),
            };
            report.error(place, same.to_string()).help(remedy);
        })
        .ok()
}

/// The backend that holds a role; `other` is the one that holds the other role, and so is not meant.
fn lower_role(
    role: Role,
    written: &Text,
    other: Option<&Text>,
    backends: &[&str],
    report: &mut Report<'_>,
) -> Option<BackendName> {
    let name = written.get_ref();
    if backends.contains(&name.as_str()) {
        // A bad name is reported once, where the backend is defined.
        return name.parse().ok();
    }
    // Without any backend that is what is wrong, and it has been said.
    if !backends.is_empty() {
        let free = backends.iter().copied().filter(|free| other.is_none_or(|other| other.get_ref() != free));
        let remedy = suggest(name, &free.collect::<Vec<_>>(), "backends without a role")
            .unwrap_or_else(|| format!("define `{name}` among the backends of this service"));
        let problem = format!("`{role}` names the backend `{name}`, which this service does not have");
        report.error(written.span(), problem).help(remedy);
    }
    None
}

/// The response field that names the backend.
fn lower_backend_header(written: &Text, report: &mut Report<'_>) -> Option<HeaderName> {
    let name = condition::field_name(written, report)?;
    if filter::owned(&name).is_some() {
        report
            .error(
                written.span(),
                format!("the header `{name}` cannot name the backend: it means something else"),
            )
            .help("use a name of your own, such as `\"x-backend\"`");
        return None;
    }
    Some(name)
}

fn warn_idle(name: &str, place: Range<usize>, has_canary: bool, report: &mut Report<'_>) {
    let remedy = if has_canary {
        "remove it, or make it `stable` or `canary`".to_owned()
    } else {
        format!("remove it, or add `canary = \"{name}\"` to the service")
    };
    report.warning(place, format!("backend `{name}` has no role, so it gets no traffic")).help(remedy);
}

fn lower_weight(
    service: &str,
    written: Option<Spanned<f64>>,
    has_canary: bool,
    report: &mut Report<'_>,
) -> Weight {
    let Some(written) = written else { return Weight::ZERO };
    let weight = written::weight(&written, report);
    if !has_canary {
        report
            .error(written.span(), format!("service `{service}` has a weight but no canary to give it to"))
            .help("add `canary = \"…\"`, or remove `weight`");
    }
    weight.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{errors, errors_of, parsed, warnings};

    const V2: &str = "[services.web.backends.v2]\nendpoints = ['http://127.0.0.1:9002']\n";

    /// A configuration with these settings of the service, and backends `v1` and `v2`.
    fn service(settings: &str) -> String {
        format!(
            "[[listeners]]\naddress = '0.0.0.0:8080'\n[[routes]]\nservice = 'web'\n[services.web]\n{settings}\n\
             [services.web.backends.v1]\nendpoints = ['http://127.0.0.1:9001']\n{V2}"
        )
    }

    #[test]
    fn a_service_needs_a_stable_backend() {
        let web = parsed("").services.remove(0);
        assert_eq!((web.name.as_str(), web.roles.stable().as_str()), ("web", "v1"));
        assert_eq!((web.roles.canary(), web.weight.hundredths()), (None, 0));
        assert_eq!(errors_of(&service("")), ["service `web` does not say which backend is `stable`"]);
    }

    #[test]
    fn roles_name_two_backends_of_the_service() {
        let wrong = service("stable = 'v3'\ncanary = 'v9'");
        assert_eq!(
            errors_of(&wrong),
            [
                "`stable` names the backend `v3`, which this service does not have",
                "`canary` names the backend `v9`, which this service does not have"
            ]
        );
        let same = service("stable = 'v1'\ncanary = 'v1'");
        assert_eq!(errors_of(&same), ["backend `v1` cannot be stable and canary at once"]);
    }

    #[test]
    fn weights_are_percentages_of_a_canary() {
        assert_eq!(errors_of(&service("stable = 'v1'\ncanary = 'v2'\nweight = 10")), [""; 0]);
        assert_eq!(errors_of(&service("stable = 'v1'\ncanary = 'v2'\nweight = 10.0")), [""; 0]);
        let wrong = errors_of(&service("stable = 'v1'\ncanary = 'v2'\nweight = 100.5"));
        assert_eq!(wrong, ["100.5 is not a weight"]);
        let alone = errors_of(&service("stable = 'v1'\nweight = 10"));
        assert_eq!(alone, ["service `web` has a weight but no canary to give it to"]);
    }

    #[test]
    fn the_backend_is_named_if_asked_for() {
        let with = |name: &str| service(&format!("stable = 'v1'\ncanary = 'v2'\nbackend_header = '{name}'"));
        assert_eq!(errors_of(&with("X-Backend")), [""; 0]);
        assert_eq!(errors_of(&with("x backend")), ["`x backend` cannot name a header"]);
        let taken = errors_of(&with("content-length"));
        assert_eq!(taken, ["the header `content-length` cannot name the backend: it means something else"]);
    }

    #[test]
    fn a_bad_name_is_reported_once() {
        let bad = errors(
            "[services.'a b']\nstable = 'c d'\n[services.'a b'.backends.'c d']\nendpoints = ['http://a']\n[[routes]]\nservice = 'a b'\npath_prefix = '/a'",
        );
        assert_eq!(bad, ["`a b` cannot name a service", "`c d` cannot name a backend"]);
    }

    #[test]
    fn a_service_without_backends_has_one_fault() {
        let api = "[services.api]\nstable = 'v1'\n[[routes]]\nservice = 'api'\npath_prefix = '/api'";
        assert_eq!(errors(api), ["service `api` has no backend"]);
    }

    #[test]
    fn a_backend_without_role_is_warned_about() {
        assert_eq!(warnings(V2), ["backend `v2` has no role, so it gets no traffic"]);
    }
}
