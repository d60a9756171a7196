//! The compiled routes: from host and path to a service, at a cost that does not grow with the
//! number of routes.
//!
//! Exact hosts are tried before "any host"; within one, the longest path prefix wins. A prefix
//! matches by whole segments: `/api` matches `/api` and `/api/x`, not `/apis`. A lookup hashes the
//! host once and the path once for each of its leading segments that some prefix is long enough for.

use std::{borrow::Cow, collections::HashMap};

use super::snapshot::ServiceId;

/// One route before it is compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Exact host, lower case, without port; nothing means any.
    pub host: Option<String>,
    /// Path prefix; begins with `/` and ends without one unless it is `/`.
    pub path_prefix: String,
    /// Where it leads.
    pub service: ServiceId,
}

/// The compiled routes.
#[derive(Debug, Default)]
pub struct Table {
    hosts: HashMap<Box<str>, Paths>,
    any: Paths,
}

impl Table {
    /// Compiles rules; of two with the same host and prefix the first one stays.
    pub fn new(rules: impl IntoIterator<Item = Rule>) -> Self {
        let mut table = Self::default();
        for Rule { host, path_prefix, service } in rules {
            let paths = match host {
                Some(host) => table.hosts.entry(host.into_boxed_str()).or_default(),
                None => &mut table.any,
            };
            paths.insert(&path_prefix, service);
        }
        table
    }

    /// The service for a request, by its authority (host with or without port) and its path.
    pub fn find(&self, authority: &str, path: &str) -> Option<ServiceId> {
        if !self.hosts.is_empty()
            && let Some(paths) = self.hosts.get(&*bare_host(authority))
            && let Some(service) = paths.find(path)
        {
            return Some(service);
        }
        self.any.find(path)
    }
}

/// The prefixes of one host.
#[derive(Debug, Default)]
struct Paths {
    /// What `/` leads to.
    root: Option<ServiceId>,
    /// The other prefixes, without trailing slash.
    prefixes: HashMap<Box<str>, ServiceId>,
    /// Length of the longest prefix: no longer part of a path need be looked up.
    longest: usize,
}

impl Paths {
    fn insert(&mut self, prefix: &str, service: ServiceId) {
        let prefix = prefix.trim_end_matches('/');
        if prefix.is_empty() {
            self.root.get_or_insert(service);
        } else {
            self.longest = self.longest.max(prefix.len());
            self.prefixes.entry(prefix.into()).or_insert(service);
        }
    }

    fn find(&self, path: &str) -> Option<ServiceId> {
        if !self.prefixes.is_empty() {
            let bytes = path.as_bytes();
            // Candidates end where a segment ends, the longest first.
            let mut end = bytes.len();
            loop {
                if end <= self.longest
                    && let Some(service) = self.prefixes.get(&path[..end])
                {
                    return Some(*service);
                }
                match bytes[..end].iter().rposition(|b| *b == b'/') {
                    Some(slash) if slash > 0 => end = slash,
                    _ => break,
                }
            }
        }
        self.root
    }
}

/// The host of an authority: lower case, without port and without a trailing dot.
fn bare_host(authority: &str) -> Cow<'_, str> {
    let host = match authority.rsplit_once(':') {
        // The colons of an IPv6 address stand inside brackets.
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !host.is_empty() => host,
        _ => authority,
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.bytes().any(|b| b.is_ascii_uppercase()) {
        Cow::Owned(host.to_ascii_lowercase())
    } else {
        Cow::Borrowed(host)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn table(rules: &[(&str, &str)]) -> Table {
        Table::new(rules.iter().enumerate().map(|(i, (host, prefix))| Rule {
            host: (*host != "*").then(|| (*host).to_owned()),
            path_prefix: (*prefix).to_owned(),
            service: ServiceId(i as u32),
        }))
    }

    #[track_caller]
    fn check(rules: &[(&str, &str)], authority: &str, path: &str, expected: Option<u32>) {
        assert_eq!(table(rules).find(authority, path), expected.map(ServiceId), "{authority}{path}");
    }

    #[test]
    fn prefixes_match_by_whole_segments_and_the_longest_wins() {
        let rules = [("*", "/"), ("*", "/api"), ("*", "/api/v2")];
        check(&rules, "x", "/", Some(0));
        check(&rules, "x", "/apis", Some(0));
        check(&rules, "x", "/api", Some(1));
        check(&rules, "x", "/api/", Some(1));
        check(&rules, "x", "/api/v1/users", Some(1));
        check(&rules, "x", "/api/v2", Some(2));
        check(&rules, "x", "/api/v2/a/very/long/path/that/goes/on", Some(2));
        check(&[("*", "/api")], "x", "/", None);
        check(&[("*", "/api")], "x", "", None);
        check(&[("*", "/")], "x", "*", Some(0));
    }

    #[test]
    fn an_exact_host_comes_first_and_any_host_catches_the_rest() {
        let rules = [("*", "/"), ("shop.example", "/cart"), ("[::1]", "/")];
        check(&rules, "shop.example", "/cart/1", Some(1));
        check(&rules, "SHOP.example.:8080", "/cart", Some(1));
        check(&rules, "shop.example", "/", Some(0));
        check(&rules, "other.example", "/cart", Some(0));
        check(&rules, "[::1]:80", "/", Some(2));
        check(&rules, "[::1]", "/", Some(2));
    }

    proptest! {
        #[test]
        fn the_table_agrees_with_a_plain_search(
            prefixes in prop::collection::vec("(/[ab]{1,2}){1,3}", 1..6),
            path in "(/[ab]{0,2}){0,5}",
        ) {
            let rules: Vec<_> = prefixes.iter().map(|p| ("*", p.as_str())).collect();
            let matches = |p: &str| path == p || path.strip_prefix(p).is_some_and(|rest| rest.starts_with('/'));
            let expected = prefixes.iter().filter(|p| matches(p)).max_by_key(|p| p.len());
            let first = expected.map(|e| prefixes.iter().position(|p| p == e).unwrap() as u32);
            prop_assert_eq!(table(&rules).find("x", &path), first.map(ServiceId));
        }
    }
}
