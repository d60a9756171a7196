//! The route table against a plain search: lines of `HOST PATH` (`*` is any host, `*.` before one all
//! below it; `=` before a path makes it exact, `~` a regular expression), the last one being the
//! authority and the path that are asked for.

#![no_main]

use http::{HeaderMap, Method};
use libfuzzer_sys::fuzz_target;
use tidegate::routing::{
    condition::{Conditions, Head},
    pattern::Pattern,
    snapshot::ServiceId,
    table::{PathMatch, Rule, Table, Target},
};

fuzz_target!(|text: &str| {
    let mut lines: Vec<_> = text.lines().filter_map(|line| line.split_once(' ')).collect();
    let Some((authority, path)) = lines.pop() else { return };
    let rules = lines.into_iter().zip(0..).filter_map(|((host, path), service)| {
        Some(Rule {
            host: (host != "*").then(|| host.to_ascii_lowercase()),
            path: path_match(path)?,
            conditions: Conditions::default(),
            target: Target::Service(ServiceId(service)),
        })
    });
    let rules: Vec<Rule> = rules.collect();
    let host = bare(authority);
    let matching =
        rules.iter().filter_map(|rule| Some(((host_rank(rule, &host)?, path_rank(rule, path)?), rule)));
    // Of several equals `max_by` takes the last.
    let matching: Vec<_> = matching.collect();
    let expected = matching.iter().rev().max_by(|(a, _), (b, _)| a.cmp(b)).map(|(_, rule)| rule.target);
    let head = Head { authority, path, query: None, method: &Method::GET, headers: &HeaderMap::new() };
    assert_eq!(Table::new(rules.clone()).find(&head), expected);
});

fn path_match(path: &str) -> Option<PathMatch> {
    Some(match path.split_at_checked(1) {
        Some(("=", path)) => PathMatch::Exact(path.to_owned()),
        Some(("~", pattern)) => PathMatch::Regex(Pattern::new(pattern).ok()?),
        _ => PathMatch::Prefix(path.to_owned()),
    })
}

/// How specific a rule's host is, if it is the one that is asked for.
fn host_rank(rule: &Rule, host: &str) -> Option<(u8, usize)> {
    let Some(wanted) = &rule.host else { return Some((0, 0)) };
    match wanted.strip_prefix("*.") {
        Some(parent) => {
            let below = host.strip_suffix(parent).is_some_and(|label| label.ends_with('.'));
            below.then_some((1, parent.len()))
        }
        None => (wanted == host).then_some((2, 0)),
    }
}

/// How specific a rule's path is, if it matches.
fn path_rank(rule: &Rule, path: &str) -> Option<(u8, usize)> {
    match &rule.path {
        PathMatch::Exact(wanted) => (wanted == path).then_some((3, 0)),
        PathMatch::Regex(pattern) => pattern.matches(path.bytes()).then_some((1, 0)),
        PathMatch::Prefix(prefix) => match prefix.trim_end_matches('/') {
            "" => Some((0, 0)),
            prefix => {
                let rest = path.strip_prefix(prefix)?;
                (rest.is_empty() || rest.starts_with('/')).then_some((2, prefix.len()))
            }
        },
    }
}

fn bare(authority: &str) -> String {
    let without_digits = authority.trim_end_matches(|c: char| c.is_ascii_digit());
    let host = without_digits.strip_suffix(':').filter(|host| !host.is_empty()).unwrap_or(authority);
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}
