//! What a route changes: `[routes.request_header_modifier]`, `[routes.response_header_modifier]`,
//! `[routes.url_rewrite]`, `[routes.request_redirect]` and `[routes.timeouts]`.

use http::{HeaderName, HeaderValue, StatusCode};
use serde::Deserialize;
use toml::Spanned;

use super::{
    condition::field_name,
    host,
    report::Report,
    written::{Section, TIMEOUT, Table, Text, Time, time},
};
use crate::routing::{
    filter::{HeaderModifier, PathRewrite, Redirect, RouteTimeouts},
    path::{Normalized, PathRules},
    table::PathMatch,
};

/// `[routes.request_header_modifier]` and its counterpart for responses as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawModifier {
    set: Option<Vec<Spanned<Table<RawField>>>>,
    add: Option<Vec<Spanned<Table<RawField>>>>,
    remove: Option<Vec<Text>>,
}

impl Section for RawModifier {
    const HEADER: &'static str = "[routes.request_header_modifier]";
}

/// A field to set or to add as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawField {
    name: Option<Text>,
    value: Option<Text>,
}

impl Section for RawField {
    const HEADER: &'static str = "{ name = \"…\", value = \"…\" }";
}

/// `[routes.url_rewrite]` as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRewrite {
    hostname: Option<Text>,
    replace_full_path: Option<Text>,
    replace_prefix_match: Option<Text>,
}

impl Section for RawRewrite {
    const HEADER: &'static str = "[routes.url_rewrite]";
}

/// `[routes.request_redirect]` as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRedirect {
    scheme: Option<Text>,
    hostname: Option<Text>,
    port: Option<Spanned<i64>>,
    replace_full_path: Option<Text>,
    replace_prefix_match: Option<Text>,
    status_code: Option<Spanned<i64>>,
}

impl Section for RawRedirect {
    const HEADER: &'static str = "[routes.request_redirect]";
}

/// `[routes.timeouts]` as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRouteTimeouts {
    response: Option<Time>,
    idle: Option<Time>,
}

impl Section for RawRouteTimeouts {
    const HEADER: &'static str = "[routes.timeouts]";
}

/// Changes to header fields.
pub(super) fn modifier(raw: Table<RawModifier>, report: &mut Report<'_>) -> HeaderModifier {
    let RawModifier { set, add, remove } = raw.0;
    let mut taken = Vec::new();
    let set = fields(set, &mut taken, true, report);
    let add = fields(add, &mut taken, false, report);
    let remove = remove.unwrap_or_default().into_iter();
    let remove = remove.filter_map(|written| changeable(&written, &mut taken, true, report)).collect();
    HeaderModifier { set, add, remove }
}

/// What is already said of names in the same table: the name, and whether it may stand only once.
type Taken = Vec<(HeaderName, bool)>;

fn fields(
    raw: Option<Vec<Spanned<Table<RawField>>>>,
    taken: &mut Taken,
    once: bool,
    report: &mut Report<'_>,
) -> Vec<(HeaderName, HeaderValue)> {
    let raw = raw.unwrap_or_default().into_iter();
    raw.filter_map(|raw| {
        let (name, value) = field(raw, report)?;
        let name = changeable(&name, taken, once, report);
        Some((name?, value?))
    })
    .collect()
}

/// The name of a field as it is written, and its value; nothing, and a fault, if one is missing or wrong.
pub(super) fn field(
    raw: Spanned<Table<RawField>>,
    report: &mut Report<'_>,
) -> Option<(Text, Option<HeaderValue>)> {
    let place = raw.span();
    let RawField { name, value } = raw.into_inner().0;
    let (Some(name), Some(value)) = (name, value) else {
        let example = RawField::HEADER;
        report.error(place, "this field needs a name and a value").help(format!("write `{example}`"));
        return None;
    };
    let parsed = HeaderValue::from_str(value.get_ref());
    if parsed.is_err() {
        report
            .error(value.span(), "this cannot be the value of a header")
            .help("use visible ASCII characters, spaces and tabs");
    }
    Some((name, parsed.ok()))
}

/// The name of a field that may be changed, and that nothing else is said of.
fn changeable(written: &Text, taken: &mut Taken, once: bool, report: &mut Report<'_>) -> Option<HeaderName> {
    let name = field_name(written, report)?;
    if let Some((why, remedy)) = owned(&name) {
        report.error(written.span(), format!("the header `{name}` cannot be changed: {why}")).help(remedy);
        return None;
    }
    if taken.iter().any(|(other, other_once)| *other == name && (once || *other_once)) {
        report
            .error(written.span(), format!("the header `{name}` is changed twice by one route"))
            .help("name it once: to have several values, use only `add`");
        return None;
    }
    taken.push((name.clone(), once));
    Some(name)
}

/// Why a field cannot be changed by a route, and what to do instead: those that delimit messages or
/// belong to one connection, and those by which backends know whom they serve.
pub(super) fn owned(name: &HeaderName) -> Option<(&'static str, &'static str)> {
    match name.as_str() {
        "host" => Some(("it says where the request goes", "use `hostname` in `[routes.url_rewrite]`")),
        "content-length" | "transfer-encoding" | "trailer" => {
            Some(("it says where the message ends", "leave it out"))
        }
        "connection"
        | "keep-alive"
        | "proxy-connection"
        | "te"
        | "upgrade"
        | "expect"
        | "proxy-authorization"
        | "proxy-authenticate"
        | "http2-settings" => Some(("it belongs to one connection", "leave it out")),
        "via" | "forwarded" | "x-real-ip" | "proxy-status" => {
            Some(("Tidegate answers for what it says", "leave it out"))
        }
        name if name.starts_with("x-forwarded-") => {
            Some(("Tidegate answers for what it says", "leave it out"))
        }
        _ => None,
    }
}

/// The `Host` and the path that the backend gets.
pub(super) fn rewrite(
    raw: Spanned<Table<RawRewrite>>,
    path: Option<&PathMatch>,
    report: &mut Report<'_>,
) -> (Option<HeaderValue>, Option<PathRewrite>) {
    let place = raw.span();
    let RawRewrite { hostname, replace_full_path, replace_prefix_match } = raw.into_inner().0;
    if hostname.is_none() && replace_full_path.is_none() && replace_prefix_match.is_none() {
        report
            .error(place, "this rewrites nothing")
            .help("add `hostname`, `replace_full_path` or `replace_prefix_match`");
    }
    let hostname = hostname.and_then(|written| lower_host(&written, report));
    let hostname = hostname.and_then(|host| HeaderValue::try_from(host).ok());
    (hostname, new_path(replace_full_path, replace_prefix_match, path, report))
}

fn lower_host(written: &Text, report: &mut Report<'_>) -> Option<String> {
    host::parse(written.get_ref())
        .inspect_err(|fault| {
            let problem = format!("`{}` is not a host name", written.get_ref());
            report.error(written.span(), problem).help(fault.0);
        })
        .ok()
}

fn new_path(
    full: Option<Text>,
    prefix: Option<Text>,
    matched: Option<&PathMatch>,
    report: &mut Report<'_>,
) -> Option<PathRewrite> {
    match (full, prefix) {
        (None, None) => None,
        (Some(full), None) => lower_replacement(&full, report).map(PathRewrite::Full),
        (None, Some(prefix)) => {
            let replacement = match prefix.get_ref().as_str() {
                "" => Some("/".to_owned()),
                _ => lower_replacement(&prefix, report),
            };
            let matched = match matched {
                None => "/",
                Some(PathMatch::Prefix(matched)) => matched,
                Some(PathMatch::Exact(_) | PathMatch::Regex(_)) => {
                    report
                        .error(
                            prefix.span(),
                            "there is no prefix to replace: this route matches on a whole path",
                        )
                        .help("use `replace_full_path`, or `path_prefix` for the route");
                    return None;
                }
            };
            replacement.map(|replacement| PathRewrite::prefix(matched, &replacement))
        }
        (Some(_), Some(prefix)) => {
            report
                .error(prefix.span(), "a path is replaced as a whole or by its prefix, not both")
                .help("keep one of `replace_full_path` and `replace_prefix_match`");
            None
        }
    }
}

/// A path that is sent to a backend or to a client.
fn lower_replacement(written: &Text, report: &mut Report<'_>) -> Option<String> {
    let text = written.get_ref();
    let normal = PathRules::default().apply(text);
    let is_normal = matches!(&normal, Ok(Normalized::Forward(normal)) if normal == text);
    if text.starts_with('/') && text.bytes().all(PathRewrite::may_have) && is_normal {
        return Some(text.clone());
    }
    let remedy = match normal {
        _ if !text.starts_with('/') => format!("begin it with a slash: `\"/{text}\"`"),
        Ok(Normalized::Forward(normal)) if text.bytes().all(PathRewrite::may_have) => {
            format!("write `\"{normal}\"`")
        }
        _ => "write a path without query, percent-encoded, as it is sent".to_owned(),
    };
    report.error(written.span(), format!("`{text}` cannot take the place of a path")).help(remedy);
    None
}

/// Where clients are sent to.
pub(super) fn redirect(
    raw: Spanned<Table<RawRedirect>>,
    path: Option<&PathMatch>,
    report: &mut Report<'_>,
) -> Option<Redirect> {
    let place = raw.span();
    let RawRedirect { scheme, hostname, port, replace_full_path, replace_prefix_match, status_code } =
        raw.into_inner().0;
    if scheme.is_none()
        && hostname.is_none()
        && port.is_none()
        && replace_full_path.is_none()
        && replace_prefix_match.is_none()
    {
        report
            .error(place, "this sends clients back to where they came from")
            .help("add what changes, such as `scheme = \"https\"`");
        return None;
    }
    let status = match status_code {
        None => Some(StatusCode::FOUND),
        Some(written) => lower_status(&written, report),
    };
    let scheme = scheme.map(|written| lower_scheme(&written, report));
    let hostname = hostname.map(|written| lower_host(&written, report));
    let port = port.map(|written| lower_port(&written, report));
    let path = new_path(replace_full_path, replace_prefix_match, path, report);
    Some(Redirect {
        scheme: lift(scheme)?,
        hostname: lift(hostname)?,
        port: lift(port)?,
        path,
        status: status?,
    })
}

/// What is written and right, or not written; nothing at all if it is wrong.
#[expect(clippy::option_option, reason = "written, and then right or wrong")]
fn lift<T>(written: Option<Option<T>>) -> Option<Option<T>> {
    match written {
        Some(None) => None,
        other => Some(other.flatten()),
    }
}

fn lower_scheme(written: &Text, report: &mut Report<'_>) -> Option<&'static str> {
    match written.get_ref().as_str() {
        "http" => Some("http"),
        "https" => Some("https"),
        other => {
            report
                .error(written.span(), format!("`{other}` is not a scheme that clients can be sent to"))
                .help("write `\"http\"` or `\"https\"`");
            None
        }
    }
}

fn lower_port(written: &Spanned<i64>, report: &mut Report<'_>) -> Option<u16> {
    let port = u16::try_from(*written.get_ref()).ok().filter(|port| *port > 0);
    if port.is_none() {
        report
            .error(written.span(), format!("{} is not a port", written.get_ref()))
            .help("a port is a number from 1 to 65535");
    }
    port
}

fn lower_status(written: &Spanned<i64>, report: &mut Report<'_>) -> Option<StatusCode> {
    match written.get_ref() {
        301 => Some(StatusCode::MOVED_PERMANENTLY),
        302 => Some(StatusCode::FOUND),
        303 => Some(StatusCode::SEE_OTHER),
        307 => Some(StatusCode::TEMPORARY_REDIRECT),
        308 => Some(StatusCode::PERMANENT_REDIRECT),
        other => {
            report
                .error(written.span(), format!("{other} is not the status of a redirect"))
                .help("write 301 or 308 for good, 302 or 307 for now, or 303 for the answer to a POST");
            None
        }
    }
}

/// Times that take the place of the service's.
pub(super) fn timeouts(raw: Table<RawRouteTimeouts>, report: &mut Report<'_>) -> RouteTimeouts {
    let RawRouteTimeouts { response, idle } = raw.0;
    RouteTimeouts {
        response: response.and_then(|written| time(&written, "response", TIMEOUT, report)),
        idle: idle.and_then(|written| time(&written, "idle", TIMEOUT, report)),
    }
}

#[cfg(test)]
mod tests;
