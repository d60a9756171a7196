//! The route table against a plain search: lines of `HOST PREFIX` (`*` is any host), the last one
//! being the authority and the path that are asked for.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate::routing::{
    snapshot::ServiceId,
    table::{Rule, Table},
};

fuzz_target!(|text: &str| {
    let mut lines: Vec<_> = text.lines().filter_map(|line| line.split_once(' ')).collect();
    let Some((authority, path)) = lines.pop() else { return };
    let rules: Vec<Rule> = lines
        .into_iter()
        .zip(0..)
        .map(|((host, prefix), service)| Rule {
            host: (host != "*").then(|| host.to_ascii_lowercase()),
            path_prefix: prefix.to_owned(),
            service: ServiceId(service),
        })
        .collect();
    let host = bare(authority);
    let expected = search(&rules, Some(&host), path).or_else(|| search(&rules, None, path));
    assert_eq!(Table::new(rules).find(authority, path), expected);
});

/// The longest prefix of `path` under `host`, and the first rule that has it.
fn search(rules: &[Rule], host: Option<&str>, path: &str) -> Option<ServiceId> {
    let prefix = |rule: &Rule| rule.path_prefix.trim_end_matches('/').len();
    let matches = |rule: &&Rule| {
        let rest = path.strip_prefix(&rule.path_prefix[..prefix(rule)]);
        rest.is_some_and(|rest| prefix(rule) == 0 || rest.is_empty() || rest.starts_with('/'))
    };
    let of_host = rules.iter().filter(|rule| rule.host.as_deref() == host);
    // Of several equals `max_by_key` takes the last.
    of_host.filter(matches).rev().max_by_key(|rule| prefix(rule)).map(|rule| rule.service)
}

fn bare(authority: &str) -> String {
    let without_digits = authority.trim_end_matches(|c: char| c.is_ascii_digit());
    let host = without_digits.strip_suffix(':').filter(|host| !host.is_empty()).unwrap_or(authority);
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}
