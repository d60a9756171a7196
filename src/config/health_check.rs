//! `[services.NAME.health_check]`: how endpoints are asked whether they are well.

use std::ops::{Range, RangeInclusive};

use http::{HeaderValue, uri::PathAndQuery};
use serde::Deserialize;
use toml::Spanned;

use super::{
    report::Report,
    suggest::suggest,
    written::{Section, TIMEOUT, Text, Time, count, time_or},
};
use crate::routing::policy::{HealthCheck, Probe};

const KINDS: [&str; 3] = ["http", "tcp", "grpc"];
const IN_A_ROW: RangeInclusive<u32> = 1..=1000;

/// `[services.NAME.health_check]` as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawHealthCheck {
    kind: Option<Text>,
    path: Option<Text>,
    host: Option<Text>,
    expected_statuses: Option<Spanned<Vec<Text>>>,
    grpc_service: Option<Text>,
    interval: Option<Time>,
    timeout: Option<Time>,
    unhealthy_threshold: Option<Spanned<i64>>,
    healthy_threshold: Option<Spanned<i64>>,
}

impl Section for RawHealthCheck {
    const HEADER: &'static str = "[services.NAME.health_check]";
}

/// How the endpoints of one service are asked.
pub(super) fn lower(raw: RawHealthCheck, report: &mut Report<'_>) -> HealthCheck {
    let default = HealthCheck::default();
    let mut threshold = |written: &Option<Spanned<i64>>, key| {
        written.as_ref().and_then(|written| count(written, key, IN_A_ROW, report))
    };
    let unhealthy = threshold(&raw.unhealthy_threshold, "unhealthy_threshold");
    let healthy = threshold(&raw.healthy_threshold, "healthy_threshold");
    HealthCheck {
        interval: time_or(default.interval, raw.interval.as_ref(), "interval", TIMEOUT, report),
        timeout: time_or(default.timeout, raw.timeout.as_ref(), "timeout", TIMEOUT, report),
        unhealthy_threshold: unhealthy.unwrap_or(default.unhealthy_threshold),
        healthy_threshold: healthy.unwrap_or(default.healthy_threshold),
        probe: lower_probe(raw, report).unwrap_or(default.probe),
    }
}

fn lower_probe(raw: RawHealthCheck, report: &mut Report<'_>) -> Option<Probe> {
    let RawHealthCheck { kind, path, host, expected_statuses, grpc_service, .. } = raw;
    let name = kind.as_ref().map_or(KINDS[0], |kind| kind.get_ref().as_str());
    if !KINDS.contains(&name) {
        let place = kind.as_ref().map(Spanned::span).unwrap_or_default();
        let remedy = suggest(name, &KINDS, "kinds");
        report.error(place, format!("`{name}` is not a kind of health check")).help_if(remedy);
        return None;
    }
    let keys = [
        ("path", path.as_ref().map(Spanned::span), "http"),
        ("host", host.as_ref().map(Spanned::span), "http"),
        ("expected_statuses", expected_statuses.as_ref().map(Spanned::span), "http"),
        ("grpc_service", grpc_service.as_ref().map(Spanned::span), "grpc"),
    ];
    foreign(keys, name, "check", report);
    match name {
        "tcp" => Some(Probe::Tcp),
        "grpc" => Some(Probe::Grpc { service: grpc_service.map(Spanned::into_inner).unwrap_or_default() }),
        _ => {
            let path = path.map_or_else(|| Some("/".to_owned()), |written| lower_path(written, report))?;
            let host = host.map(|written| lower_host(written, report)).unwrap_or_default();
            let expected_statuses = match expected_statuses {
                None => vec![200..=399],
                Some(written) => lower_statuses(&written, report),
            };
            Some(Probe::Http { path, host, expected_statuses })
        }
    }
}

/// Reports keys that belong to another kind than this one: each with its place, if it is written, and the kind
/// that it belongs to.
pub(super) fn foreign<const N: usize>(
    keys: [(&str, Option<Range<usize>>, &str); N],
    kind: &str,
    what: &str,
    report: &mut Report<'_>,
) {
    for (key, place, of) in keys {
        if let Some(place) = place.filter(|_| of != kind) {
            report
                .error(place, format!("`{key}` means nothing to a {what} of kind `{kind}`"))
                .help(format!("write `kind = \"{of}\"`, or remove `{key}`"));
        }
    }
}

pub(super) fn lower_path(written: Text, report: &mut Report<'_>) -> Option<String> {
    let path = written.get_ref();
    if !path.starts_with('/') || PathAndQuery::try_from(path.as_str()).is_err() {
        report
            .error(written.span(), format!("`{path}` is not a path that could be asked for"))
            .help("write a path from its first `/` on, such as `\"/healthz\"`");
        return None;
    }
    Some(written.into_inner())
}

pub(super) fn lower_host(written: Text, report: &mut Report<'_>) -> Option<String> {
    let host = written.get_ref();
    if host.is_empty() || host.contains(['/', ' ', '@']) || HeaderValue::try_from(host).is_err() {
        report
            .error(written.span(), format!("`{host}` cannot be a `Host`"))
            .help("write a host, with its port if need be, such as `\"app.example\"`");
        return None;
    }
    Some(written.into_inner())
}

pub(super) fn lower_statuses(
    written: &Spanned<Vec<Text>>,
    report: &mut Report<'_>,
) -> Vec<RangeInclusive<u16>> {
    if written.get_ref().is_empty() {
        report
            .error(written.span(), "no status passes, so nothing could")
            .help("the default is `[\"200-399\"]`");
    }
    let mut ranges = Vec::new();
    for text in written.get_ref() {
        let status = |text: &str| text.parse::<u16>().ok().filter(|status| (100..=999).contains(status));
        let class = text.get_ref().strip_suffix("xx").and_then(|class| class.parse::<u16>().ok());
        let (first, last) = match class.filter(|class| (1..=9).contains(class)) {
            Some(class) => (Some(class * 100), Some(class * 100 + 99)),
            None => {
                let text = text.get_ref();
                let (first, last) = text.split_once('-').unwrap_or((text, text));
                (status(first), status(last))
            }
        };
        match (first, last) {
            (Some(first), Some(last)) if first <= last => ranges.push(first..=last),
            _ => {
                report
                    .error(
                        text.span(),
                        format!("`{}` is not a status, nor a class or range of them", text.get_ref()),
                    )
                    .help("write `\"204\"`, `\"2xx\"` or `\"200-399\"`");
            }
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{errors, parsed},
        *,
    };

    fn check(written: &str) -> HealthCheck {
        let text = format!("[services.web.health_check]\n{written}");
        parsed(&text).services.remove(0).policy.health_check.unwrap()
    }

    #[test]
    fn it_is_off_unless_asked_for() {
        assert_eq!(parsed("").services[0].policy.health_check, None);
        assert_eq!(check(""), HealthCheck::default());
    }

    #[test]
    fn each_kind_has_its_keys() {
        let http = check("path = '/up?x=1'\nhost = 'a.b:80'\nexpected_statuses = ['200', '300-310']");
        let expected_statuses = vec![200..=200, 300..=310];
        let host = Some("a.b:80".to_owned());
        assert_eq!(http.probe, Probe::Http { path: "/up?x=1".to_owned(), host, expected_statuses });
        assert_eq!(check("kind = 'tcp'").probe, Probe::Tcp);
        assert_eq!(check("kind = 'grpc'").probe, Probe::Grpc { service: String::new() });
        let named = check("kind = 'grpc'\ngrpc_service = 'a.B'");
        assert_eq!(named.probe, Probe::Grpc { service: "a.B".to_owned() });
    }

    #[test]
    fn every_mistake_is_named() {
        let errors = |written: &str| errors(&format!("[services.web.health_check]\n{written}")).len();
        assert_eq!(errors("kind = 'tls'"), 1);
        assert_eq!(errors("kind = 'tcp'\npath = '/'\ngrpc_service = 'a'"), 2);
        assert_eq!(errors("path = 'up'"), 1);
        assert_eq!(errors("path = '/ü'\nhost = 'http://a'"), 1, "the path comes first");
        assert_eq!(errors("host = 'http://a'\nexpected_statuses = ['ok', '300-200', '99']"), 4);
        assert_eq!(errors("expected_statuses = []\ninterval = '0s'\ntimeout = '0s'"), 3);
        assert_eq!(errors("unhealthy_threshold = 0\nhealthy_threshold = 0"), 2);
    }
}
