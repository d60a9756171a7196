//! The compiled routes: from a request to where it goes, at a cost that does not grow with the number
//! of routes.
//!
//! Of the routes that match, the most specific one wins, by Gateway API's order: an exact host before
//! the longest wildcard before any host; an exact path before the longest prefix before a regular
//! expression before `/`, which is to say any path; then a route with a method, then the one with most
//! headers, then with most query parameters, then the one that is written first. A host's routes
//! shadow nothing that they do not match.
//!
//! Gateway API leaves the place of regular expressions open. Here they come after the prefixes, so that
//! a request for a prefix pays nothing for them, and before `/`, so that a host may have a route for
//! what is left. They are tried in the order in which they are written.
//!
//! A lookup hashes the host once, and once more for each of its parent domains that some wildcard is
//! long enough for; then the path once, and once for each of its leading segments that some prefix is
//! long enough for.

use std::{borrow::Cow, collections::HashMap};

use super::{
    condition::{Conditions, Head},
    pattern::Pattern,
    snapshot::{RouteId, ServiceId},
};

/// Where a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// To a service, as it is.
    Service(ServiceId),
    /// Wherever a route with filters says.
    Route(RouteId),
}

/// What a path must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathMatch {
    /// This.
    Exact(String),
    /// This, or something below it: `/api` matches `/api` and `/api/x`, not `/apis`.
    Prefix(String),
    /// Something that matches as a whole.
    Regex(Pattern),
}

/// One route before it is compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// A host, lower case, without port; `*.` before it stands for one or more labels. Nothing means
    /// any host.
    pub host: Option<String>,
    /// What the path must be.
    pub path: PathMatch,
    /// What the request must have beside these.
    pub conditions: Conditions,
    /// Where it goes then.
    pub target: Target,
}

/// The compiled routes.
#[derive(Debug, Default)]
pub struct Table {
    hosts: HashMap<Box<str>, Paths>,
    /// By what follows the `*.`.
    wildcards: HashMap<Box<str>, Paths>,
    /// Length of the longest of them: no longer part of a host need be looked up.
    longest_wildcard: usize,
    any: Paths,
}

impl Table {
    /// Compiles rules; of two that match the very same the first one stays.
    pub fn new(rules: impl IntoIterator<Item = Rule>) -> Self {
        let mut table = Self::default();
        for Rule { host, path, conditions, target } in rules {
            let paths = match host {
                None => &mut table.any,
                Some(host) => match host.strip_prefix("*.") {
                    None => table.hosts.entry(host.into()).or_default(),
                    Some(suffix) => {
                        table.longest_wildcard = table.longest_wildcard.max(suffix.len());
                        table.wildcards.entry(suffix.into()).or_default()
                    }
                },
            };
            paths.insert(path, conditions, target);
        }
        table
    }

    /// Where a request goes.
    pub fn find(&self, head: &Head<'_>) -> Option<Target> {
        if !(self.hosts.is_empty() && self.wildcards.is_empty()) {
            let host = bare_host(head.authority);
            if let Some(paths) = self.hosts.get(&*host)
                && let Some(target) = paths.find(head)
            {
                return Some(target);
            }
            if !self.wildcards.is_empty()
                && let Some(target) = self.find_wildcard(&host, head)
            {
                return Some(target);
            }
        }
        self.any.find(head)
    }

    /// Tries the domains that a host is below, the longest first.
    fn find_wildcard(&self, host: &str, head: &Head<'_>) -> Option<Target> {
        let mut rest = host;
        while let Some((_, parent)) = rest.split_once('.') {
            if parent.len() <= self.longest_wildcard
                && let Some(paths) = self.wildcards.get(parent)
                && let Some(target) = paths.find(head)
            {
                return Some(target);
            }
            rest = parent;
        }
        None
    }
}

/// The routes of one host.
#[derive(Debug, Default)]
struct Paths {
    exact: HashMap<Box<str>, Choices>,
    /// Without trailing slash, and without `/` itself.
    prefixes: HashMap<Box<str>, Choices>,
    /// Length of the longest prefix: no longer part of a path need be looked up.
    longest: usize,
    regexes: Vec<(Pattern, Conditions, Target)>,
    /// The routes of `/`.
    root: Choices,
}

impl Paths {
    fn insert(&mut self, path: PathMatch, conditions: Conditions, target: Target) {
        let choices = match path {
            PathMatch::Regex(pattern) => {
                self.regexes.push((pattern, conditions, target));
                return;
            }
            PathMatch::Exact(path) => self.exact.entry(path.into()).or_default(),
            PathMatch::Prefix(prefix) => match prefix.trim_end_matches('/') {
                "" => &mut self.root,
                prefix => {
                    self.longest = self.longest.max(prefix.len());
                    self.prefixes.entry(prefix.into()).or_default()
                }
            },
        };
        choices.insert(conditions, target);
    }

    fn find(&self, head: &Head<'_>) -> Option<Target> {
        let path = head.path;
        if !self.exact.is_empty()
            && let Some(choices) = self.exact.get(path)
            && let Some(target) = choices.find(head)
        {
            return Some(target);
        }
        if !self.prefixes.is_empty() {
            let bytes = path.as_bytes();
            // Candidates end where a segment ends, the longest first.
            let mut end = bytes.len();
            loop {
                if end <= self.longest
                    && let Some(choices) = self.prefixes.get(&path[..end])
                    && let Some(target) = choices.find(head)
                {
                    return Some(target);
                }
                match bytes[..end].iter().rposition(|b| *b == b'/') {
                    Some(slash) if slash > 0 => end = slash,
                    _ => break,
                }
            }
        }
        let mut regexes = self.regexes.iter();
        let regex =
            regexes.find(|(pattern, conditions, _)| conditions.hold(head) && pattern.matches(path.bytes()));
        match regex {
            Some((_, _, target)) => Some(*target),
            None => self.root.find(head),
        }
    }
}

/// The routes of one host and path.
#[derive(Debug, Default)]
struct Choices {
    /// Those with conditions, the most specific first.
    conditional: Vec<(Conditions, Target)>,
    /// The one without.
    always: Option<Target>,
}

impl Choices {
    fn insert(&mut self, conditions: Conditions, target: Target) {
        if conditions.is_empty() {
            self.always.get_or_insert(target);
            return;
        }
        let precedence = conditions.precedence();
        // Behind its equals, which are written earlier.
        let at = self.conditional.partition_point(|(other, _)| other.precedence() >= precedence);
        self.conditional.insert(at, (conditions, target));
    }

    #[inline]
    fn find(&self, head: &Head<'_>) -> Option<Target> {
        match self.conditional.iter().find(|(conditions, _)| conditions.hold(head)) {
            Some((_, target)) => Some(*target),
            None => self.always,
        }
    }
}

/// The host of an authority: lower case, without port and without a trailing dot.
pub fn bare_host(authority: &str) -> Cow<'_, str> {
    let bytes = authority.as_bytes();
    let digits = bytes.iter().rev().take_while(|b| b.is_ascii_digit()).count();
    let host = match (bytes.len() - digits).checked_sub(1) {
        // The colons of an IPv6 address stand inside brackets.
        Some(colon) if colon > 0 && bytes[colon] == b':' => &authority[..colon],
        _ => authority,
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    // Without a branch for each byte, so that it compiles to a few vector instructions.
    if host.bytes().fold(false, |found, b| found | b.is_ascii_uppercase()) {
        Cow::Owned(host.to_ascii_lowercase())
    } else {
        Cow::Borrowed(host)
    }
}

#[cfg(test)]
mod tests;
