//! The files in `config/` are what a user copies and the reference they read, so they have to be
//! right, complete and up to date.

use std::{cell::Cell, fmt, path::Path};

use serde::{
    Deserialize, Deserializer,
    de::{Visitor, value::Error},
    forward_to_deserialize_any,
};
use toml::Value;

use super::{
    Config,
    access_log::RawAccessLog,
    admin::RawAdmin,
    analysis::RawAnalysis,
    backend::RawBackend,
    backend_tls::RawBackendTls,
    balance::RawBalance,
    checks::RawCheck,
    condition::RawTest,
    diagnostic::render,
    document::RawDocument,
    edge::RawRequestId,
    failures::RawFailures,
    filter::{RawField, RawModifier, RawRedirect, RawRewrite, RawRouteTimeouts},
    force::{RawForce, RawPreview},
    freeze::RawFreeze,
    health_check::RawHealthCheck,
    hook::{RawHook, RawHooks},
    limits::{RawAdaptive, RawLimits, RawRate, RawRouteLimits},
    listener::RawListener,
    load::{load, parse},
    mirror::RawMirror,
    notification::RawNotification,
    outlier_detection::RawOutlierDetection,
    paths::RawPaths,
    pool::RawPool,
    probe::RawProbe,
    proxy_protocol::RawProxyProtocol,
    retry::{RawBackoff, RawBudget, RawRetry},
    rollout::RawRollout,
    route::RawRoute,
    schedule::RawSchedule,
    service::RawService,
    shutdown::RawShutdown,
    steps::RawStep,
    sticky::RawSticky,
    store::RawStore,
    timeouts::RawTimeouts,
    tls::{RawPair, RawTls},
    tracing::RawTracing,
};
use crate::rollout::plan::Strategy;

const FULL: &str = include_str!("../../config/full.toml");

fn meaning(text: &str) -> Config {
    match parse("full.toml", text) {
        Ok((config, warnings)) => {
            assert!(warnings.is_empty(), "{}", render(&warnings));
            config
        }
        Err(errors) => panic!("{}", render(&errors)),
    }
}

#[test]
fn every_example_is_free_of_errors_and_warnings() {
    let mut names = Vec::new();
    for entry in Path::new("config").read_dir().unwrap() {
        let path = entry.unwrap().path();
        // The reference names certificates that are nobody's.
        let loaded = match path.ends_with("full.toml") {
            true => parse("full.toml", FULL),
            false => load(&path),
        };
        match loaded {
            Ok((_, warnings)) => assert!(warnings.is_empty(), "{}", render(&warnings)),
            Err(errors) => panic!("{}", render(&errors)),
        }
        names.push(path.file_name().unwrap().to_str().unwrap().to_owned());
    }
    names.sort();
    assert_eq!(names, ["blue-green.toml", "canary.toml", "full.toml", "minimal.toml"]);
}

#[test]
fn the_examples_mean_what_they_say() {
    let minimal = meaning(include_str!("../../config/minimal.toml"));
    assert_eq!(minimal.services[0].weight.percent(), 10.0);
    let canary = meaning(include_str!("../../config/canary.toml")).services.remove(0);
    let weights: Vec<_> = canary.rollout.plan.steps().iter().map(|step| step.weight.percent()).collect();
    assert_eq!(weights, [1.0, 10.0, 50.0]);
    let blue_green = meaning(include_str!("../../config/blue-green.toml")).services.remove(0);
    assert_eq!(blue_green.rollout.plan.strategy(), Strategy::BlueGreen);
}

/// Keys of the reference that are there to be shown and have no default, or a default of "off".
const WITHOUT_DEFAULT: &[&str] = &[
    "workers",
    "hostnames",
    "address",
    "service",
    "stable",
    "canary",
    "grpc_max",
    "max_error_rate",
    "max_p99",
    "dispersion",
    "max_harm",
    "algorithm",
    "hash_on",
    "slow_start",
    "host",
    "kind",
    "max_connections",
    "max_requests",
    "max_requests_per_connection",
    "max_connection_age",
    "path_prefix",
    "path",
    "path_regex",
    "methods",
    "headers",
    "header",
    "query",
    "from",
    "role",
    "set",
    "add",
    "remove",
    "hostname",
    "port",
    "scheme",
    "replace_prefix_match",
    "replace_full_path",
    "backend_header",
    "timeouts",
    "cookie",
    "certificates",
    "client_auth",
    "client_ca",
    "redirect_to_https",
    "ca",
    "server_name",
    "send_proxy_protocol",
    "secret_file",
    "certificate",
    "key",
    "trusted_proxies",
    "request_id",
    "max_connections_per_client",
    "max_body_size",
    "min_body_rate",
    "body_timeout",
    "max_in_flight",
    "adaptive_in_flight",
    "rate",
    "client_rate",
    "per_try_timeout",
    "except",
    "warmup",
    "name",
    "url",
    "json_pointer",
    "min",
    "max",
    "min_ratio",
    "max_ratio",
    "failures",
    "steps",
    "to",
    "by",
    "services",
    "body",
    "body_contains",
    "body_regex",
    "max_latency",
    "credentials",
    "audit_log",
    "record",
    "keep_recordings",
    "hosts",
    "at",
    "name",
    "url",
    "url_file",
    "ca_file",
    "secret_file",
    "headers_file",
    "exec",
    "allow_exec",
    "events",
    "template",
];

#[test]
fn the_reference_shows_the_defaults() {
    let mut left_out = String::new();
    let mut in_steps = false;
    for line in FULL.lines() {
        let key = line.split_once(" =").map(|(key, _)| key);
        in_steps = (in_steps || line == "steps = [") && line != "]";
        let kept = key.is_none_or(|key| key == "endpoints" || WITHOUT_DEFAULT.contains(&key));
        if kept && !in_steps && line != "]" {
            left_out = left_out + line + "\n";
        }
    }
    assert!(!left_out.contains("header_timeout") && left_out.contains("[services.web.rollout]"));
    assert_eq!(meaning(&left_out), meaning(FULL));
}

#[test]
fn the_reference_mentions_every_key() {
    let sections = [
        ("", keys::<RawDocument>()),
        (".shutdown", keys::<RawShutdown>()),
        (".store", keys::<RawStore>()),
        (".access_log", keys::<RawAccessLog>()),
        (".tracing", keys::<RawTracing>()),
        (".listeners", keys::<RawListener>()),
        (".listeners.request_id", keys::<RawRequestId>()),
        (".listeners.tls", keys::<RawTls>()),
        (".listeners.tls.certificates", keys::<RawPair>()),
        (".listeners.proxy_protocol", keys::<RawProxyProtocol>()),
        (".admin", keys::<RawAdmin>()),
        (".paths", keys::<RawPaths>()),
        (".routes", keys::<RawRoute>()),
        ("TEST", keys::<RawTest>()),
        (".routes.request_header_modifier", keys::<RawModifier>()),
        (".routes.request_header_modifier.set", keys::<RawField>()),
        (".routes.request_header_modifier.add", keys::<RawField>()),
        (".routes.response_header_modifier", keys::<RawModifier>()),
        (".routes.response_header_modifier.set", keys::<RawField>()),
        (".routes.response_header_modifier.add", keys::<RawField>()),
        (".routes.url_rewrite", keys::<RawRewrite>()),
        (".routes.request_redirect", keys::<RawRedirect>()),
        (".routes.timeouts", keys::<RawRouteTimeouts>()),
        (".routes.limits", keys::<RawRouteLimits>()),
        (".routes.limits.rate", keys::<RawRate>()),
        (".routes.limits.client_rate", keys::<RawRate>()),
        (".services.NAME", keys::<RawService>()),
        (".services.NAME.backends.NAME", keys::<RawBackend>()),
        (".services.NAME.backends.NAME.tls", keys::<RawBackendTls>()),
        (".services.NAME.sticky", keys::<RawSticky>()),
        (".services.NAME.force", keys::<RawForce>()),
        (".services.NAME.preview", keys::<RawPreview>()),
        (".services.NAME.timeouts", keys::<RawTimeouts>()),
        (".services.NAME.balance", keys::<RawBalance>()),
        (".services.NAME.outlier_detection", keys::<RawOutlierDetection>()),
        (".services.NAME.health_check", keys::<RawHealthCheck>()),
        (".services.NAME.pool", keys::<RawPool>()),
        (".services.NAME.limits", keys::<RawLimits>()),
        (".services.NAME.limits.adaptive_in_flight", keys::<RawAdaptive>()),
        (".services.NAME.limits.rate", keys::<RawRate>()),
        (".services.NAME.limits.client_rate", keys::<RawRate>()),
        (".services.NAME.failures", keys::<RawFailures>()),
        (".services.NAME.mirror", keys::<RawMirror>()),
        (".services.NAME.retry", keys::<RawRetry>()),
        (".services.NAME.retry.backoff", keys::<RawBackoff>()),
        (".services.NAME.retry.budget", keys::<RawBudget>()),
        (".services.NAME.rollout", keys::<RawRollout>()),
        (".services.NAME.rollout.steps", keys::<RawStep>()),
        (".services.NAME.rollout.probes", keys::<RawProbe>()),
        (".services.NAME.rollout.probes.headers", keys::<RawField>()),
        (".services.NAME.rollout.hooks", keys::<RawHook>()),
        (".hooks", keys::<RawHooks>()),
        (".notifications", keys::<RawNotification>()),
        (".services.NAME.rollout.schedule", keys::<RawSchedule>()),
        (".services.NAME.rollout.analysis", keys::<RawAnalysis>()),
        (".services.NAME.rollout.checks", keys::<RawCheck>()),
        (".freeze", keys::<RawFreeze>()),
    ];
    let mut written = Vec::new();
    collect("", &Value::Table(FULL.parse().unwrap()), &mut written);
    written.sort();
    written.dedup();
    let known = sections.iter();
    let known = known.flat_map(|(section, keys)| keys.iter().map(move |key| format!("{section}.{key}")));
    let mut known: Vec<_> = known.collect();
    known.sort();
    assert_eq!(written, known);
}

/// Where a test of one value stands. It is the same everywhere, so it need be shown whole only once.
const TESTS: [&str; 6] =
    [".routes.headers", ".routes.query", ".force.header", ".force.cookie", ".force.query", ".preview.header"];

/// Every key below a value, by its path; names that the user chooses are `NAME`.
fn collect(path: &str, value: &Value, found: &mut Vec<String>) {
    let path = if TESTS.iter().any(|test| path.ends_with(test)) { "TEST" } else { path };
    // A route's has the keys of its service's.
    let path = if path == ".routes.failures" { ".services.NAME.failures" } else { path };
    // The admin side's has those of a listener's.
    let path = if path == ".admin.tls" { ".listeners.tls" } else { path };
    let is_map = path == ".services" || path.ends_with("backends");
    match value {
        Value::Table(table) if is_map => {
            table.values().for_each(|value| collect(&format!("{path}.NAME"), value, found));
        }
        Value::Table(table) => {
            for (key, value) in table {
                let path = format!("{path}.{key}");
                found.push(path.clone());
                collect(&path, value, found);
            }
        }
        Value::Array(array) => array.iter().for_each(|value| collect(path, value, found)),
        _ => {}
    }
}

/// The keys of a raw shape, as its own `Deserialize` names them.
fn keys<'de, T: Deserialize<'de> + fmt::Debug>() -> Vec<&'static str> {
    struct Asked<'a>(&'a Cell<&'static [&'static str]>);
    impl<'de> Deserializer<'de> for Asked<'_> {
        type Error = Error;
        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
            Err(serde::de::Error::custom("only structs are asked for their keys"))
        }
        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _: &'static str,
            fields: &'static [&'static str],
            visitor: V,
        ) -> Result<V::Value, Error> {
            self.0.set(fields);
            self.deserialize_any(visitor)
        }
        forward_to_deserialize_any! {
            bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit
            unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }
    let keys = Cell::new([].as_slice());
    T::deserialize(Asked(&keys)).expect_err("the keys are all that is asked for");
    keys.get().to_vec()
}
