//! Where a client is sent: a route's redirect (scheme, host, port and path, `-` for what stays), then
//! the request's authority, path and query, a line each. Whoever follows it, a browser included, gets
//! to the host that is meant, and to no other.

#![no_main]

use std::num::NonZeroU16;

use http::{HeaderValue, Request, StatusCode, uri::PathAndQuery};
use libfuzzer_sys::fuzz_target;
use tidegate::{
    proxy::fuzzing,
    routing::{
        edge::Edge,
        filter::{PathRewrite, Redirect},
        path::{EscapedSlashes, Normalized, PathRules},
    },
};

fuzz_target!(|text: &str| {
    let mut lines = text.split('\n');
    let (Some(rule), Some(authority), Some(path)) = (lines.next(), lines.next(), lines.next()) else {
        return;
    };
    let query = lines.next();
    let target = query.map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
    // As they reach a route: understood by hyper, and accepted.
    let Ok(target) = PathAndQuery::try_from(target) else { return };
    let request = Request::builder().uri(target.as_str()).header("host", authority);
    let Ok(request) = request.body(()) else { return };
    let mut parts = request.into_parts().0;
    if !path.starts_with('/') || fuzzing::accept(&mut parts, &Edge::default()).is_err() {
        return;
    }
    if let Ok(location) = fuzzing::to_https(&parts, NonZeroU16::MAX) {
        assert_eq!(host(&location).as_deref(), Some(format!("{}:65535", bare(authority)).as_str()));
    }

    // Nothing is made normal, so that the redirect itself has to be careful.
    let rules = PathRules {
        normalize_path: false,
        merge_slashes: false,
        escaped_slashes: EscapedSlashes::KeepUnchanged,
    };
    let Ok(Normalized::Forward(path)) = rules.apply(target.path()) else { return };
    let Some(redirect) = redirect(rule) else { return };
    // A route matches by segments.
    if let Some(PathRewrite::Prefix { matched, .. }) = &redirect.path
        && !path.strip_prefix(matched.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    {
        return;
    }
    let Some(location) = redirect.location(authority, &path, target.query()) else { return };
    let stays = redirect.scheme.is_none() && redirect.hostname.is_none() && redirect.port.is_none();
    let to = host(&location);
    let name = redirect.hostname.as_deref().unwrap_or(bare(authority));
    assert_eq!(to.as_deref().map(bare), if stays { None } else { Some(name) }, "{location:?}");
});

fn redirect(rule: &str) -> Option<Redirect> {
    let mut words = rule.split(' ').map(|word| Some(word).filter(|word| *word != "-"));
    let (scheme, hostname, port, path) = (words.next()?, words.next()?, words.next()?, words.next()?);
    let scheme = match scheme {
        Some("http") => Some("http"),
        Some("https") => Some("https"),
        _ => None,
    };
    // As the configuration lets them be.
    let is_host = |host: &&str| host.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.');
    let hostname = hostname.filter(|host| !host.is_empty()).filter(is_host).map(str::to_owned);
    let is_path = |path: &str| path.starts_with('/') && path.bytes().all(PathRewrite::may_have);
    let path = match path.filter(|path| path.splitn(2, '>').all(is_path)) {
        Some(path) => Some(match path.split_once('>') {
            Some((matched, replacement)) => PathRewrite::prefix(matched, replacement),
            None => PathRewrite::Full(path.to_owned()),
        }),
        None => None,
    };
    let port = port.and_then(|port| port.parse().ok());
    Some(Redirect { scheme, hostname, port, path, status: StatusCode::FOUND })
}

/// The host (and port) that a browser goes to (WHATWG URL: a backslash is a slash), if it is named.
fn host(location: &HeaderValue) -> Option<String> {
    let text = location.as_bytes();
    // What browsers leave out could join what stood apart.
    assert!(text.iter().all(|b| *b > b' ' && *b != 0x7f), "{location:?}");
    let text = String::from_utf8_lossy(text).replace('\\', "/");
    let after = text.strip_prefix("http:").or_else(|| text.strip_prefix("https:")).unwrap_or(&text);
    assert!(after.starts_with('/'), "{location:?} begins at the page that it is read on");
    let named = after.strip_prefix("//")?.trim_start_matches('/');
    let end = named.find(['/', '?', '#']).unwrap_or(named.len());
    assert!(!named[..end].contains('@'), "{location:?}");
    Some(named[..end].to_owned())
}

/// A host without its port.
fn bare(authority: &str) -> &str {
    if let Some(end) = authority.rfind(']') {
        return &authority[..=end];
    }
    authority.split(':').next().unwrap_or_default()
}
