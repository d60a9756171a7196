//! What a route does to the requests that take it, by Gateway API's words: fields set, added and
//! removed, host and path rewritten, or the client sent elsewhere. Everything that can be prepared is
//! a value already.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::{
    limits::RouteLimits,
    snapshot::{ServiceId, Timeouts},
};
use crate::model::failure::Failures;

/// A route that does more than lead to a service, or has a label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// What it is called: another name than every other route has.
    pub name: Arc<str>,
    /// Where it ends.
    pub end: End,
    /// What changes in the request.
    pub request: HeaderModifier,
    /// What changes in the response.
    pub response: HeaderModifier,
    /// The `Host` that the backend gets.
    pub hostname: Option<HeaderValue>,
    /// The path that the backend gets.
    pub path: Option<PathRewrite>,
    /// Times that take the place of the service's.
    pub timeouts: RouteTimeouts,
    /// How much it lets in.
    pub limits: RouteLimits,
    /// What counts against the backend, where it is not what does for the service.
    pub failures: Option<Box<Failures>>,
    /// Its place among the routes of its service that are counted apart, if it is one.
    pub counted: Option<u16>,
    /// How it is named in spans, if there are any.
    pub label: Option<Label>,
}

/// How a route is named in spans.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// What it is called.
    pub name: Arc<str>,
    /// What the path has to be.
    pub path: Arc<str>,
}

/// Where a route ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// At a service.
    Service(ServiceId),
    /// At the client, which is to ask elsewhere.
    Redirect(Redirect),
}

/// Times that a route gives its requests instead of the service's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RouteTimeouts {
    /// Longest time from the request sent to the response's head.
    pub response: Option<Duration>,
    /// Longest time without a byte of body in either direction.
    pub idle: Option<Duration>,
}

impl RouteTimeouts {
    /// The service's times with these in their place.
    pub fn over(&self, service: Timeouts) -> Timeouts {
        Timeouts {
            response: self.response.unwrap_or(service.response),
            idle: self.idle.unwrap_or(service.idle),
            ..service
        }
    }
}

/// Changes to header fields: removed first, then set, then added.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeaderModifier {
    /// Fields of these names take the place of all that there were.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Fields that come in addition.
    pub add: Vec<(HeaderName, HeaderValue)>,
    /// Fields that are taken away.
    pub remove: Vec<HeaderName>,
}

impl HeaderModifier {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.add.is_empty() && self.remove.is_empty()
    }

    /// Changes the fields.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name, value.clone());
        }
    }
}

/// Another path in the place of the one that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathRewrite {
    /// This one.
    Full(String),
    /// The prefix that the route matched, replaced; the rest stays.
    Prefix {
        /// What the route matched, without trailing slash.
        matched: String,
        /// What stands there instead, without trailing slash.
        replacement: String,
    },
}

impl PathRewrite {
    /// Whether this may stand in a path that takes the place of another: what is sent as it is written, and ends no path.
    pub fn may_have(byte: u8) -> bool {
        byte.is_ascii_graphic() && !b"?#\"<>\\^`{|}".contains(&byte)
    }

    /// Replaces `matched` by `replacement`.
    pub fn prefix(matched: &str, replacement: &str) -> Self {
        let bare = |path: &str| path.trim_end_matches('/').to_owned();
        Self::Prefix { matched: bare(matched), replacement: bare(replacement) }
    }

    /// The new path and the query that came. A path that the prefix does not begin stays as it is.
    pub fn apply(&self, path: &str, query: Option<&str>) -> String {
        let (start, rest) = match self {
            Self::Full(full) => (full.as_str(), ""),
            Self::Prefix { matched, replacement } => match path.strip_prefix(matched.as_str()) {
                Some(rest) => (replacement.as_str(), rest),
                None => ("", path),
            },
        };
        let mut target = String::with_capacity(start.len() + rest.len() + query.map_or(1, |q| q.len() + 1));
        target.push_str(start);
        target.push_str(rest);
        if target.is_empty() {
            target.push('/');
        }
        if let Some(query) = query {
            target.push('?');
            target.push_str(query);
        }
        target
    }
}

/// Where a client is sent to. What is not said stays as it was in the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// `http` or `https`; nothing means the client's own, whatever that is.
    pub scheme: Option<&'static str>,
    /// Host without port.
    pub hostname: Option<String>,
    /// Port; if there is none, that of the scheme where one is given, else that of the request.
    pub port: Option<u16>,
    /// Path.
    pub path: Option<PathRewrite>,
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
}

impl Redirect {
    /// To another path of the same host, with method and body kept.
    pub const NOWHERE_ELSE: Self =
        Self { scheme: None, hostname: None, port: None, path: None, status: StatusCode::TEMPORARY_REDIRECT };

    /// The `Location` for a request; nothing if it is to keep a host that the request does not say.
    ///
    /// Where the scheme stays, it is left out: the client knows best which one it used. Where the host
    /// stays too, so is the host.
    pub fn location(&self, authority: &str, path: &str, query: Option<&str>) -> Option<HeaderValue> {
        let keep = PathRewrite::prefix("", "");
        let target = self.path.as_ref().unwrap_or(&keep).apply(path, query);
        let target = match target.trim_start_matches(['/', '\\']) {
            // `//host` would be another host.
            rest if self.is_local() => format!("/{rest}"),
            _ => target,
        };
        if self.is_local() {
            return HeaderValue::try_from(target).ok();
        }
        let (host, port) = split_port(authority);
        // HTTP/1.0 may come without a host, and then there is none to keep.
        let host = Some(self.hostname.as_deref().unwrap_or(host)).filter(|host| !host.is_empty())?;
        let port = match (self.port, self.scheme) {
            (Some(port), Some(scheme)) if well_known(port) == Some(scheme) => None,
            (Some(port), _) => Some(port.to_string()),
            (None, Some(_)) => None,
            (None, None) => port.map(str::to_owned),
        };
        let scheme = self.scheme.map(|scheme| format!("{scheme}:")).unwrap_or_default();
        let port = port.map(|port| format!(":{port}")).unwrap_or_default();
        HeaderValue::try_from(format!("{scheme}//{host}{port}{target}")).ok()
    }

    fn is_local(&self) -> bool {
        self.scheme.is_none() && self.hostname.is_none() && self.port.is_none()
    }
}

/// The scheme whose port need not be said.
fn well_known(port: u16) -> Option<&'static str> {
    match port {
        80 => Some("http"),
        443 => Some("https"),
        _ => None,
    }
}

/// Host and port of an authority; the colons of an IPv6 address stand inside brackets.
fn split_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => {
            (host, Some(port))
        }
        _ => (authority.trim_end_matches(':'), None),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn prefixes_are_replaced_by_whole_segments() {
        // Gateway API's own table of examples, and a query.
        for (matched, replacement, path, expected) in [
            ("/foo", "/xyz", "/foo/bar", "/xyz/bar"),
            ("/foo", "/xyz/", "/foo/bar", "/xyz/bar"),
            ("/foo/", "/xyz", "/foo/bar", "/xyz/bar"),
            ("/foo/", "/xyz/", "/foo/bar", "/xyz/bar"),
            ("/foo", "/xyz", "/foo", "/xyz"),
            ("/foo", "/xyz", "/foo/", "/xyz/"),
            ("/foo", "/", "/foo/bar", "/bar"),
            ("/foo", "", "/foo/bar", "/bar"),
            ("/foo", "/", "/foo", "/"),
            ("/foo", "/", "/foo/", "/"),
            ("/", "/xyz", "/", "/xyz/"),
            ("/", "/xyz", "/bar", "/xyz/bar"),
        ] {
            let rewrite = PathRewrite::prefix(matched, replacement);
            assert_eq!(rewrite.apply(path, None), expected, "{matched} {replacement} {path}");
            assert_eq!(rewrite.apply(path, Some("a=b")), format!("{expected}?a=b"));
        }
        assert_eq!(PathRewrite::Full("/x".to_owned()).apply("/a/b", Some("")), "/x?");
    }

    fn redirect() -> Redirect {
        Redirect { scheme: None, hostname: None, port: None, path: None, status: StatusCode::FOUND }
    }

    #[test]
    fn a_location_says_no_more_than_it_must() {
        let https = Redirect { scheme: Some("https"), ..redirect() };
        let host = Redirect { hostname: Some("new.example".to_owned()), ..redirect() };
        let port = |port, of: &Redirect| Redirect { port: Some(port), ..of.clone() };
        let path = Redirect { path: Some(PathRewrite::prefix("/a", "/b")), ..redirect() };
        for (redirect, expected) in [
            (redirect(), "/a/x?q=1"),
            (path, "/b/x?q=1"),
            (https.clone(), "https://old.example/a/x?q=1"),
            (port(443, &https), "https://old.example/a/x?q=1"),
            (port(8443, &https), "https://old.example:8443/a/x?q=1"),
            (host.clone(), "//new.example:8080/a/x?q=1"),
            (port(81, &host), "//new.example:81/a/x?q=1"),
            (port(80, &redirect()), "//old.example:80/a/x?q=1"),
        ] {
            assert_eq!(redirect.location("old.example:8080", "/a/x", Some("q=1")).unwrap(), expected);
        }
        assert_eq!(https.location("[::1]:80", "/", None).unwrap(), "https://[::1]/");
        assert_eq!(https.location("[::1]", "/", None).unwrap(), "https://[::1]/");
        assert_eq!(https.location("", "/", None), None);
    }

    #[test]
    fn fields_are_removed_then_set_then_added() {
        let name = HeaderName::from_static;
        let value = HeaderValue::from_static;
        let modifier = HeaderModifier {
            set: vec![(name("a"), value("1"))],
            add: vec![(name("b"), value("2")), (name("c"), value("3"))],
            remove: vec![name("d"), name("e")],
        };
        let sent = [("a", "x"), ("a", "y"), ("b", "1"), ("d", "x"), ("d", "y"), ("f", "z")];
        let mut headers: HeaderMap = sent.into_iter().map(|(n, v)| (name(n), value(v))).collect();
        modifier.apply(&mut headers);
        let mut left: Vec<_> = headers.iter().map(|(n, v)| (n.as_str(), v.to_str().unwrap())).collect();
        left.sort_unstable();
        assert_eq!(left, [("a", "1"), ("b", "1"), ("b", "2"), ("c", "3"), ("f", "z")]);
    }

    proptest! {
        #[test]
        fn a_redirect_within_the_host_stays_within_it(path in "/[/\\\\a.]{0,6}", replacement in "/?[/a]{0,3}") {
            let to = Redirect { path: Some(PathRewrite::prefix("/a", &replacement)), ..redirect() };
            let location = to.location("x", &path, None).unwrap();
            let location = location.to_str().unwrap();
            prop_assert!(location.starts_with('/') && !location[1..].starts_with(['/', '\\']), "{}", location);
        }
    }
}
