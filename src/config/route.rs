//! `[[routes]]`: which requests lead to which service.

use std::{collections::BTreeMap, ops::Range};

use serde::Deserialize;
use toml::Spanned;

use super::{
    Route, host,
    report::Report,
    suggest::suggest,
    written::{Section, Table, Text, name},
};
use crate::model::name::ServiceName;

/// `[[routes]]` as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRoute {
    hostnames: Option<Spanned<Vec<Text>>>,
    path_prefix: Option<Text>,
    service: Option<Text>,
}

impl Section for RawRoute {
    const HEADER: &'static str = "[[routes]]";
}

impl RawRoute {
    /// The service that is written, which need not exist.
    pub(super) fn service(&self) -> Option<&str> {
        self.service.as_ref().map(|service| service.get_ref().as_str())
    }
}

/// What routes match on, and the line that says so. The host is nothing where any will do.
type Taken = BTreeMap<(Option<String>, String), usize>;

/// The routes; `services` are the names of all services as they are written.
pub(super) fn lower(
    raw: Vec<Spanned<Table<RawRoute>>>,
    services: &[&str],
    report: &mut Report<'_>,
) -> Vec<Route> {
    if raw.is_empty() {
        let service = services.first().unwrap_or(&"web");
        report
            .error_in_file("there is no route, so no request would reach a service")
            .help(format!("add `[[routes]]` with `service = \"{service}\"`"));
    }
    let mut taken = Taken::new();
    raw.into_iter().filter_map(|raw| lower_one(raw, services, &mut taken, report)).collect()
}

fn lower_one(
    raw: Spanned<Table<RawRoute>>,
    services: &[&str],
    taken: &mut Taken,
    report: &mut Report<'_>,
) -> Option<Route> {
    let header = raw.span();
    let RawRoute { hostnames, path_prefix, service } = raw.into_inner().0;
    let any_host = hostnames.is_none();
    let hostnames = lower_hostnames(hostnames, report);
    let prefix_place = path_prefix.as_ref().map(Spanned::span);
    let path_prefix = match path_prefix {
        None => Some("/".to_owned()),
        Some(written) => lower_prefix(&written, report),
    };
    let service = lower_service(service, header.clone(), services, report);

    let path_prefix = path_prefix?;
    if any_host {
        let place = prefix_place.unwrap_or(header);
        claim(None, &path_prefix, place, taken, report);
    }
    for (hostname, place) in &hostnames {
        claim(Some(hostname), &path_prefix, place.clone(), taken, report);
    }
    let hostnames = hostnames.into_iter().map(|(hostname, _)| hostname).collect();
    Some(Route { hostnames, path_prefix, service: service? })
}

fn lower_service(
    written: Option<Text>,
    header: Range<usize>,
    services: &[&str],
    report: &mut Report<'_>,
) -> Option<ServiceName> {
    let Some(written) = written else {
        let service = services.first().unwrap_or(&"web");
        report
            .error(header, "this route leads to no service")
            .help(format!("say where it leads, such as `service = \"{service}\"`"));
        return None;
    };
    let service = written.get_ref();
    if services.contains(&service.as_str()) {
        // A bad name is reported once, where the service is defined.
        return service.parse().ok();
    }
    name::<ServiceName>(&written, "service", report)?;
    let remedy = suggest(service, services, "services")
        .unwrap_or_else(|| format!("define it with `[services.{service}]`"));
    report.error(written.span(), format!("there is no service `{service}`")).help(remedy);
    None
}

fn lower_hostnames(
    written: Option<Spanned<Vec<Text>>>,
    report: &mut Report<'_>,
) -> Vec<(String, Range<usize>)> {
    let Some(written) = written else { return Vec::new() };
    if written.get_ref().is_empty() {
        report
            .error(written.span(), "`hostnames` is empty, so this route would match no host")
            .help("leave `hostnames` out to match any host, or name at least one");
    }
    let hostnames = written.into_inner().into_iter();
    hostnames.filter_map(|written| Some((lower_hostname(&written, report)?, written.span()))).collect()
}

fn lower_hostname(written: &Text, report: &mut Report<'_>) -> Option<String> {
    let text = written.get_ref();
    let fault = match host::parse(text) {
        Ok(host) => return Some(host),
        Err(fault) => fault,
    };
    let problem = format!("`{text}` is not a host name");
    let (problem, remedy) = if text.contains('*') {
        (
            format!("`{text}` has a wildcard, which is not supported yet"),
            "list the host names, or leave `hostnames` out to match any host".to_owned(),
        )
    } else if let Some((_, rest)) = text.split_once("://") {
        let end = rest.find(['/', ':']).unwrap_or(rest.len());
        (problem, format!("write only the host: `\"{}\"`", &rest[..end]))
    } else if let Some((path_free, _)) = text.split_once('/') {
        (problem, format!("write only the host: `\"{path_free}\"`; a path goes into `path_prefix`"))
    } else if let Some((host, port)) = text.rsplit_once(':')
        && host::parse(host).is_ok()
        && port.bytes().all(|b| b.is_ascii_digit())
    {
        (
            format!("the host name `{text}` has a port, and a route matches on any port"),
            format!("write only the host: `\"{host}\"`"),
        )
    } else {
        (problem, fault.0.to_owned())
    };
    report.error(written.span(), problem).help(remedy);
    None
}

fn lower_prefix(written: &Text, report: &mut Report<'_>) -> Option<String> {
    let text = written.get_ref();
    if !text.starts_with('/') {
        report
            .error(written.span(), format!("the path prefix `{text}` does not begin with `/`"))
            .help(format!("write `\"/{text}\"`"));
        return None;
    }
    // What RFC 3986 lets stand in a path; anything else never arrives unescaped.
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:@".contains(&b);
    let trimmed = text.strip_suffix('/').unwrap_or(text);
    let odd_segment = |s: &str| matches!(s, "" | "." | "..");
    let (problem, remedy) = if let Some(at) = text.find(['?', '#']) {
        ("a path prefix ends before any `?` or `#`", format!("write `\"{}\"`", &text[..at]))
    } else if text.contains('*') {
        ("a path prefix has no wildcard", "it matches every path below it by itself".to_owned())
    } else if !text.bytes().all(allowed) {
        ("this character cannot stand in a path", "write it percent-encoded, as clients send it".to_owned())
    } else if trimmed.split('/').skip(1).any(odd_segment) {
        ("a path prefix has no empty, `.` or `..` segment", "write the path without it".to_owned())
    } else {
        return Some(if trimmed.is_empty() { "/".to_owned() } else { trimmed.to_owned() });
    };
    let problem = format!("the path prefix `{text}` can match no request: {problem}");
    report.error(written.span(), problem).help(remedy);
    None
}

/// Notes that a route matches on this, unless another one does so already.
fn claim(host: Option<&str>, prefix: &str, place: Range<usize>, taken: &mut Taken, report: &mut Report<'_>) {
    let line = report.line_number(&place);
    let key = (host.map(str::to_owned), prefix.to_owned());
    let Some(earlier) = taken.get(&key) else {
        taken.insert(key, line);
        return;
    };
    let host = host.map_or_else(|| "any host".to_owned(), |host| format!("host `{host}`"));
    let problem = format!("{host} with path prefix `{prefix}` is already matched on line {earlier}");
    report
        .error(place, problem)
        .help("one route cannot lead to two services: remove one, or let them differ in host or path");
}

#[cfg(test)]
mod tests {
    use super::super::testing::{errors, parsed};

    fn route(settings: &str) -> String {
        format!("[[routes]]\nservice = 'web'\n{settings}")
    }

    #[test]
    fn hosts_are_lowered_and_prefixes_lose_their_last_slash() {
        let route = parsed(&route("hostnames = ['Web.Example']\npath_prefix = '/api/'")).routes.remove(1);
        assert_eq!((route.hostnames[0].as_str(), route.path_prefix.as_str()), ("web.example", "/api"));
        assert_eq!(parsed("").routes[0].path_prefix, "/");
    }

    #[test]
    fn two_routes_may_not_match_on_the_same() {
        let same = errors(&route("path_prefix = '/'"));
        assert_eq!(same, ["any host with path prefix `/` is already matched on line 3"]);
        let twice = errors(&route("hostnames = ['a.example', 'A.example']"));
        assert_eq!(twice, ["host `a.example` with path prefix `/` is already matched on line 11"]);
        let other = route("hostnames = ['a.example']") + "\n" + &route("hostnames = ['b.example']");
        assert_eq!(errors(&other), [""; 0]);
    }

    #[test]
    fn prefixes_that_match_nothing_are_faults() {
        for bad in ["api", "/a?b", "/a b", "/a//b", "/a/../b", "/api/*", "//"] {
            assert_eq!(errors(&route(&format!("path_prefix = '{bad}'"))).len(), 1, "{bad}");
        }
    }

    #[test]
    fn hostnames_that_match_nothing_are_faults() {
        for bad in ["*.example", "a.example:80", "http://a.example/x", "a.example/x", ""] {
            assert_eq!(errors(&route(&format!("hostnames = ['{bad}']"))).len(), 1, "{bad}");
        }
        assert_eq!(errors(&route("hostnames = []")).len(), 1);
    }
}
