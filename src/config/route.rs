//! `[[routes]]`: which requests lead to which service.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use http::Method;
use serde::Deserialize;
use toml::Spanned;

use super::{
    Filters, Lead, Route,
    condition::WrittenTest,
    failures::{self, RawFailures},
    filter::{self, RawModifier, RawRedirect, RawRewrite, RawRouteTimeouts},
    host,
    limits::{self, RawRouteLimits},
    matching,
    report::Report,
    suggest::suggest,
    written::{Section, Table, Text, name},
};
use crate::{
    model::name::ServiceName,
    routing::{condition::Conditions, table::PathMatch},
};

/// `[[routes]]` as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRoute {
    hostnames: Option<Spanned<Vec<Text>>>,
    path_prefix: Option<Text>,
    path: Option<Text>,
    path_regex: Option<Text>,
    methods: Option<Spanned<Vec<Text>>>,
    headers: Option<Vec<WrittenTest>>,
    query: Option<Vec<WrittenTest>>,
    service: Option<Text>,
    request_header_modifier: Option<Table<RawModifier>>,
    response_header_modifier: Option<Table<RawModifier>>,
    url_rewrite: Option<Spanned<Table<RawRewrite>>>,
    request_redirect: Option<Spanned<Table<RawRedirect>>>,
    timeouts: Option<Table<RawRouteTimeouts>>,
    limits: Option<Table<RawRouteLimits>>,
    failures: Option<Table<RawFailures>>,
}

impl Section for RawRoute {
    const HEADER: &'static str = "[[routes]]";
}

impl RawRoute {
    /// The service that is written, which need not exist.
    pub(super) fn service(&self) -> Option<&str> {
        self.service.as_ref().map(|service| service.get_ref().as_str())
    }

    /// Whether it sends clients elsewhere, and so needs no service.
    pub(super) fn is_redirect(&self) -> bool {
        self.request_redirect.is_some() && self.service.is_none()
    }
}

/// What routes match on, and the line that says so: the host, which is nothing where any will do, and
/// the rest in words.
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
    let mut routes: Vec<_> =
        raw.into_iter().filter_map(|raw| lower_one(raw, services, &mut taken, report)).collect();
    number(&mut routes);
    routes
}

/// Tells routes apart that match on the same but for headers and query.
fn number(routes: &mut [Route]) {
    let mut seen: BTreeMap<Arc<str>, usize> = BTreeMap::new();
    for route in routes {
        let count = seen.entry(Arc::clone(&route.name)).or_default();
        *count += 1;
        if *count > 1 {
            route.name = format!("{} ({count})", route.name).into();
        }
    }
}

/// What a route is called: methods, host and path, as far as it asks for them.
fn name_of(hostnames: &[String], path: &PathMatch, conditions: &Conditions) -> String {
    let methods: Vec<_> = conditions.methods.iter().map(Method::as_str).collect();
    let mut name = methods.join(",");
    if !name.is_empty() {
        name.push(' ');
    }
    if let Some((first, others)) = hostnames.split_first() {
        name.push_str(first);
        if !others.is_empty() {
            name.push_str(",…");
        }
    }
    match path {
        PathMatch::Exact(path) | PathMatch::Prefix(path) => name.push_str(path),
        PathMatch::Regex(pattern) => name.push_str(pattern.as_str()),
    }
    name
}

fn lower_one(
    raw: Spanned<Table<RawRoute>>,
    services: &[&str],
    taken: &mut Taken,
    report: &mut Report<'_>,
) -> Option<Route> {
    let header = raw.span();
    let mut raw = raw.into_inner().0;
    let any_host = raw.hostnames.is_none();
    let hostnames = lower_hostnames(raw.hostnames.take(), report);
    let path = matching::path(raw.path_prefix.take(), raw.path.take(), raw.path_regex.take(), report);
    let conditions = matching::conditions(raw.methods.take(), raw.headers.take(), raw.query.take(), report);
    let matched = path.as_ref().ok().and_then(|path| path.as_ref().map(Spanned::get_ref));
    let (lead, filters) = lower_lead(raw, header.clone(), matched, services, report);

    let (path, conditions) = (path.ok()?, conditions?);
    let place = path.as_ref().map_or(header, Spanned::span);
    let path = path.map_or_else(|| PathMatch::Prefix("/".to_owned()), Spanned::into_inner);
    let rest = in_words(&path, &conditions);
    if any_host {
        claim(None, &rest, place, taken, report);
    }
    for (hostname, place) in &hostnames {
        claim(Some(hostname), &rest, place.clone(), taken, report);
    }
    let hostnames: Vec<_> = hostnames.into_iter().map(|(hostname, _)| hostname).collect();
    let name = name_of(&hostnames, &path, &conditions).into();
    Some(Route { name, hostnames, path, conditions, lead: lead?, filters })
}

/// Where a route leads, and what it changes.
fn lower_lead(
    raw: RawRoute,
    header: Range<usize>,
    path: Option<&PathMatch>,
    services: &[&str],
    report: &mut Report<'_>,
) -> (Option<Lead>, Filters) {
    let mut filters = Filters::default();
    if let Some(modifier) = raw.request_header_modifier {
        filters.request = filter::modifier(modifier, report);
    }
    if let Some(modifier) = raw.response_header_modifier {
        filters.response = filter::modifier(modifier, report);
    }
    if let Some(timeouts) = raw.timeouts {
        filters.timeouts = filter::timeouts(timeouts, report);
    }
    if let Some(limits) = raw.limits {
        filters.limits = limits::of_route(limits.0, report);
    }
    filters.failures = raw.failures.map(|failures| failures::lower(failures.0, report));
    if let Some(rewrite) = raw.url_rewrite {
        (filters.hostname, filters.path) = filter::rewrite(rewrite, path, report);
    }
    let Some(redirect) = raw.request_redirect else {
        return (lower_service(raw.service, header, services, report).map(Lead::Service), filters);
    };
    let redirect_place = redirect.span();
    if filters != Filters::default() {
        report
            .error(redirect_place.clone(), "this route redirects, so there is nothing left for it to change")
            .help("keep the redirect alone, or remove it");
    }
    let redirect = filter::redirect(redirect, path, report).map(Lead::Redirect);
    if raw.service.is_some() {
        report
            .error(redirect_place, "this route leads to a service and redirects")
            .help("remove `service`, or the redirect");
    }
    (redirect, filters)
}

/// What a route matches on beside the host.
fn in_words(path: &PathMatch, conditions: &Conditions) -> String {
    let path = match path {
        PathMatch::Exact(path) => format!("path `{path}`"),
        PathMatch::Prefix(prefix) => format!("path prefix `{prefix}`"),
        PathMatch::Regex(pattern) => format!("path regex `{}`", pattern.as_str()),
    };
    if conditions.is_empty() { path } else { format!("{path} and {conditions:?}") }
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
    if let Some(parent) = text.strip_prefix("*.")
        && let Ok(parent) = host::parse(parent)
        && parent.parse::<std::net::Ipv4Addr>().is_err()
        && !parent.starts_with('[')
    {
        return Some(format!("*.{parent}"));
    }
    let fault = match host::parse(text) {
        Ok(host) => return Some(host),
        Err(fault) => fault,
    };
    let problem = format!("`{text}` is not a host name");
    let (problem, remedy) = if text.contains('*') {
        (
            format!("`{text}` has a wildcard that stands for no whole domain"),
            "write it as the first label of a name, such as `\"*.app.example\"`".to_owned(),
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

/// Notes that a route matches on this, unless another one does so already.
fn claim(host: Option<&str>, rest: &str, place: Range<usize>, taken: &mut Taken, report: &mut Report<'_>) {
    let line = report.line_number(&place);
    let key = (host.map(str::to_owned), rest.to_owned());
    let Some(earlier) = taken.get(&key) else {
        taken.insert(key, line);
        return;
    };
    let host = host.map_or_else(|| "any host".to_owned(), |host| format!("host `{host}`"));
    // Conditions were compared by what they mean, which need not be how they are written.
    let rest = match rest.split_once(" and ") {
        Some((path, _)) => format!("{path} and the same conditions"),
        None => rest.to_owned(),
    };
    report
        .error(place, format!("{host} with {rest} is already matched on line {earlier}"))
        .help("one request cannot go two ways: remove one, or let them differ in host, path or conditions");
}

#[cfg(test)]
mod tests {
    use super::super::testing::{errors, parsed};
    use crate::routing::table::PathMatch;

    fn route(settings: &str) -> String {
        format!("[[routes]]\nservice = 'web'\n{settings}")
    }

    #[test]
    fn routes_are_called_by_what_they_match_on() {
        let more = ["path = '/a'", "path_regex = '/[0-9]+'\nmethods = ['PUT', 'GET']"];
        let hosts = "hostnames = ['a.example', 'b.example']\npath_prefix = '/x'";
        let beta = "path = '/a'\nheaders = [{ name = 'x-beta', present = true }]";
        let text: String = more.iter().chain([&hosts, &beta]).map(|more| route(more) + "\n").collect();
        let names: Vec<_> = parsed(&text).routes.iter().map(|route| route.name.to_string()).collect();
        assert_eq!(names, ["/", "/a", "GET,PUT /[0-9]+", "a.example,…/x", "/a (2)"]);
    }

    #[test]
    fn hosts_are_lowered_and_prefixes_lose_their_last_slash() {
        let prefix = |prefix: &str| PathMatch::Prefix(prefix.to_owned());
        let route = parsed(&route("hostnames = ['Web.Example', '*.Web.Example']\npath_prefix = '/api/'"));
        let route = &route.routes[1];
        assert_eq!(
            (&route.hostnames[..], &route.path),
            (&["web.example".to_owned(), "*.web.example".to_owned()][..], &prefix("/api"))
        );
        assert_eq!(parsed("").routes[0].path, prefix("/"));
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
    fn routes_may_differ_in_their_conditions_alone() {
        let first = route(
            "methods = ['GET', 'HEAD']\nquery = [{ name = 'a', value = '1' }, { name = 'b', present = true }]",
        );
        let other = route("methods = ['GET']");
        assert_eq!(errors(&format!("{first}\n{other}")), [""; 0]);
        let same = route(
            "query = [{ name = 'b', present = true }, { name = 'a', value = '1' }]\nmethods = ['HEAD', 'GET']",
        );
        let said = errors(&format!("{first}\n{same}"));
        assert_eq!(
            said,
            ["any host with path prefix `/` and the same conditions is already matched on line 9"]
        );
        let exact = route("path = '/a'");
        assert_eq!(errors(&format!("{exact}\n{}", route("path_prefix = '/a'"))), [""; 0]);
        assert_eq!(
            errors(&format!("{exact}\n{exact}")),
            ["any host with path `/a` is already matched on line 11"]
        );
    }

    #[test]
    fn hostnames_that_match_nothing_are_faults() {
        for bad in [
            "*",
            "a.*.example",
            "*a.example",
            "*.127.0.0.1",
            "a.example:80",
            "http://a.example/x",
            "a.example/x",
            "",
        ] {
            assert_eq!(errors(&route(&format!("hostnames = ['{bad}']"))).len(), 1, "{bad}");
        }
        assert_eq!(errors(&route("hostnames = []")).len(), 1);
    }
}
