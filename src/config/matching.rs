//! What a route matches on: path, methods, headers and query parameters.

use http::Method;
use toml::Spanned;

use super::{
    condition::{self, Subject, WrittenTest},
    report::Report,
    written::Text,
};
use crate::routing::{
    condition::Conditions,
    path::{EscapedSlashes, Normalized, PathRules},
    table::PathMatch,
};

/// What a path must be, and where that is written.
pub(super) type PlacedPath = Spanned<PathMatch>;

/// What a route's path must be; `Ok(None)` where any will do.
pub(super) fn path(
    prefix: Option<Text>,
    exact: Option<Text>,
    regex: Option<Text>,
    report: &mut Report<'_>,
) -> Result<Option<PlacedPath>, ()> {
    let written = [("path_prefix", &prefix), ("path", &exact), ("path_regex", &regex)];
    let mut written = written.into_iter().filter_map(|(key, text)| Some((key, text.as_ref()?)));
    if let (Some((first, _)), Some((second, place))) = (written.next(), written.next()) {
        report
            .error(place.span(), format!("this route has both `{first}` and `{second}`"))
            .help("keep one of them, or write two routes");
        return Err(());
    }
    let (place, path) = match (&prefix, &exact, &regex) {
        (Some(prefix), _, _) => {
            (prefix.span(), lower_path(prefix, "path prefix", report).map(PathMatch::Prefix))
        }
        (_, Some(exact), _) => (exact.span(), lower_path(exact, "path", report).map(PathMatch::Exact)),
        (_, _, Some(regex)) => {
            let pattern = condition::pattern(regex, report);
            if pattern.is_some() && regex.get_ref().is_empty() {
                report
                    .error(regex.span(), "an empty `path_regex` can match no request: a path begins with `/`")
                    .help("leave it out to match any path");
            }
            (regex.span(), pattern.map(PathMatch::Regex))
        }
        (None, None, None) => return Ok(None),
    };
    path.map(|path| Some(Spanned::new(place, path))).ok_or(())
}

/// A path as it is matched: in normal form, and a prefix without trailing slash.
fn lower_path(written: &Text, what: &str, report: &mut Report<'_>) -> Option<String> {
    let text = written.get_ref();
    if !text.starts_with('/') {
        report
            .error(written.span(), format!("the {what} `{text}` does not begin with `/`"))
            .help(format!("write `\"/{text}\"`"));
        return None;
    }
    let is_prefix = what == "path prefix";
    let trimmed = if is_prefix { text.strip_suffix('/').unwrap_or(text) } else { text };
    match fault_of(text, trimmed, is_prefix) {
        None => Some(if trimmed.is_empty() { "/".to_owned() } else { trimmed.to_owned() }),
        Some((fault, remedy)) => {
            let problem = format!("the {what} `{text}` can match no request: a {what} {fault}");
            report.error(written.span(), problem).help(remedy);
            None
        }
    }
}

/// Why a path can match no request, and what to write instead.
fn fault_of(text: &str, trimmed: &str, is_prefix: bool) -> Option<(&'static str, String)> {
    // What RFC 3986 lets stand in a path; anything else never arrives unescaped.
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:@".contains(&b);
    let odd_segment = |s: &str| matches!(s, "" | "." | "..");
    let middle = trimmed.strip_suffix('/').unwrap_or(trimmed);
    let rules = PathRules { escaped_slashes: EscapedSlashes::KeepUnchanged, ..PathRules::default() };
    if let Some(at) = text.find(['?', '#']) {
        Some(("ends before any `?` or `#`", format!("write `\"{}\"`", &text[..at])))
    } else if text.contains('*') && is_prefix {
        Some(("has no wildcard", "it matches every path below it by itself".to_owned()))
    } else if text.contains('*') {
        Some(("has no wildcard", "write it as `path_prefix` or `path_regex`".to_owned()))
    } else if !text.bytes().all(allowed) {
        Some(("has only characters of a URL", "write it percent-encoded, as clients send it".to_owned()))
    } else if middle.split('/').skip(1).any(odd_segment) || (is_prefix && trimmed.ends_with('/')) {
        Some(("has no empty, `.` or `..` segment", "write the path without it".to_owned()))
    } else {
        match rules.apply(trimmed) {
            Ok(Normalized::Forward(normal)) if normal != trimmed => {
                Some(("is compared in normal form", format!("write `\"{normal}\"`")))
            }
            Ok(_) => None,
            Err(_) => Some(("has one meaning only", "write `%25` for a percent sign".to_owned())),
        }
    }
}

/// What a request must have beside its host and path; nothing if some of it is wrong. Tests stand in
/// one order, so that two routes that say the same say it in the same way.
pub(super) fn conditions(
    methods: Option<Spanned<Vec<Text>>>,
    headers: Option<Vec<WrittenTest>>,
    query: Option<Vec<WrittenTest>>,
    report: &mut Report<'_>,
) -> Option<Conditions> {
    let methods = match methods {
        Some(written) => lower_methods(written, report),
        None => Some(Vec::new()),
    };
    let headers = headers.unwrap_or_default().into_iter();
    let headers: Vec<_> = headers.map(|raw| condition::header(raw, report)).collect();
    let query = query.unwrap_or_default().into_iter();
    let query: Vec<_> = query.map(|raw| condition::pair(raw, Subject::Parameter, report)).collect();
    let mut headers = headers.into_iter().collect::<Option<Vec<_>>>()?;
    headers.sort_by_cached_key(|test| format!("{test:?}"));
    let mut query = query.into_iter().collect::<Option<Vec<_>>>()?;
    query.sort_by_cached_key(|test| format!("{test:?}"));
    Some(Conditions { methods: methods?.into(), headers: headers.into(), query: query.into() })
}

fn lower_methods(written: Spanned<Vec<Text>>, report: &mut Report<'_>) -> Option<Vec<Method>> {
    if written.get_ref().is_empty() {
        report
            .error(written.span(), "`methods` is empty, so this route would match no request")
            .help("leave `methods` out to match any method, or name at least one");
        return None;
    }
    let methods: Vec<_> = written.into_inner().iter().map(|written| lower_method(written, report)).collect();
    let mut methods = methods.into_iter().collect::<Option<Vec<_>>>()?;
    methods.sort_by(|a, b| a.as_str().cmp(b.as_str()));
    methods.dedup();
    Some(methods)
}

/// One of `methods`; nothing, and a fault, if no request can have it.
pub(super) fn lower_method(written: &Text, report: &mut Report<'_>) -> Option<Method> {
    let text = written.get_ref();
    let capitals = text.to_ascii_uppercase();
    let known = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"];
    let (problem, remedy) = if *text != capitals && known.contains(&capitals.as_str()) {
        (format!("no request has the method `{text}`: case matters"), format!("write `\"{capitals}\"`"))
    } else if text == "CONNECT" {
        ("CONNECT is not answered here".to_owned(), "leave it out".to_owned())
    } else {
        match Method::from_bytes(text.as_bytes()) {
            Ok(method) => return Some(method),
            Err(_) => (format!("`{text}` is not a method"), "write one such as `\"GET\"`".to_owned()),
        }
    };
    report.error(written.span(), problem).help(remedy);
    None
}

#[cfg(test)]
mod tests {
    use super::super::testing::{errors, parsed};
    use crate::routing::table::PathMatch;

    fn route(settings: &str) -> String {
        format!("[[routes]]\nservice = 'web'\n{settings}")
    }

    #[test]
    fn a_path_is_exact_or_a_prefix_or_an_expression() {
        let of = |settings: &str| parsed(&route(settings)).routes.remove(1).path;
        assert_eq!(of("path_prefix = '/api/'"), PathMatch::Prefix("/api".to_owned()));
        assert_eq!(of("path = '/api/'"), PathMatch::Exact("/api/".to_owned()));
        assert!(matches!(of("path_regex = '/v[0-9]+/.*'"), PathMatch::Regex(_)));
        assert_eq!(of("path = '/'"), PathMatch::Exact("/".to_owned()));
        let both = errors(&route("path = '/a'\npath_regex = '/b'"));
        assert_eq!(both, ["this route has both `path` and `path_regex`"]);
    }

    #[test]
    fn paths_that_match_nothing_are_faults() {
        for bad in
            ["api", "/a?b", "/a b", "/a//b", "/a/../b", "/api/*", "//", "/%41", "/%c3%a9", "/%", "/..;"]
        {
            for key in ["path_prefix", "path"] {
                assert_eq!(errors(&route(&format!("{key} = '{bad}'"))).len(), 1, "{key} = {bad}");
            }
        }
        assert_eq!(errors(&route("path_regex = ''")).len(), 1);
    }

    #[test]
    fn methods_are_written_as_they_are_sent() {
        let good = parsed(&route("methods = ['POST', 'GET', 'PURGE', 'GET']")).routes.remove(1);
        assert_eq!(good.conditions.methods.len(), 3);
        for bad in ["['get']", "['CONNECT']", "['A B']", "[]"] {
            assert_eq!(errors(&route(&format!("methods = {bad}"))).len(), 1, "{bad}");
        }
    }
}
