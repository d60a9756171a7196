//! What the table finds, by hand and against a plain search.

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use proptest::prelude::*;

use super::*;
use crate::routing::{
    condition::{HeaderTest, PairTest, Test},
    path::{EscapedSlashes, Normalized, PathRules},
};

fn rule(host: &str, path: PathMatch, conditions: Conditions) -> Rule {
    let host = (host != "*").then(|| host.to_owned());
    Rule { host, path, conditions, target: Target::Service(ServiceId(0)) }
}

fn numbered(rules: impl IntoIterator<Item = Rule>) -> Vec<Rule> {
    let number = |(rule, n)| Rule { target: Target::Service(ServiceId(n)), ..rule };
    rules.into_iter().zip(0..).map(number).collect()
}

fn prefix(path: &str) -> PathMatch {
    PathMatch::Prefix(path.to_owned())
}

fn exact(path: &str) -> PathMatch {
    PathMatch::Exact(path.to_owned())
}

fn regex(path: &str) -> PathMatch {
    PathMatch::Regex(Pattern::new(path).unwrap())
}

fn always() -> Conditions {
    Conditions::default()
}

fn found(rules: &[Rule], authority: &str, path: &str) -> Option<u32> {
    let headers = HeaderMap::new();
    number(
        &Table::new(rules.to_vec()),
        &Head { authority, path, query: None, method: &Method::GET, headers: &headers },
    )
}

fn number(table: &Table, head: &Head<'_>) -> Option<u32> {
    match table.find(head)? {
        Target::Service(id) => Some(id.0),
        Target::Route(_) => None,
    }
}

#[track_caller]
fn check(rules: &[(&str, &str)], authority: &str, path: &str, expected: Option<u32>) {
    let rules = numbered(rules.iter().map(|(host, path)| rule(host, prefix(path), always())));
    assert_eq!(found(&rules, authority, path), expected, "{authority}{path}");
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

#[test]
fn the_longest_wildcard_comes_between_exact_and_any_host() {
    let rules = [("*.example", "/"), ("*.shop.example", "/"), ("a.shop.example", "/a"), ("*", "/")];
    check(&rules, "a.shop.example", "/a", Some(2));
    check(&rules, "a.shop.example", "/b", Some(1));
    check(&rules, "B.A.Shop.Example:80", "/", Some(1));
    check(&rules, "shop.example", "/", Some(0));
    check(&rules, "example", "/", Some(3));
    check(&rules, "a.shop.example.org", "/", Some(3));
    check(&rules, "xshop.example", "/", Some(0));
    check(&rules[..3], ".example", "/", Some(0));
    check(&rules[..3], "", "/", None);
}

#[test]
fn an_exact_path_precedes_prefixes_and_those_precede_expressions() {
    let rules = numbered([
        rule("*", prefix("/"), always()),
        rule("*", regex("/a/.*"), always()),
        rule("*", regex("/a/b"), always()),
        rule("*", prefix("/a/b"), always()),
        rule("*", exact("/a/b"), always()),
        rule("*", regex("/.*[0-9]"), always()),
    ]);
    for (path, expected) in [
        ("/a/b", 4),
        ("/a/b/", 3),
        ("/a/b/c", 3),
        ("/a/c", 1),
        ("/a/7", 1),
        ("/b/7", 5),
        ("/b", 0),
        ("/a", 0),
    ] {
        assert_eq!(found(&rules, "x", path), Some(expected), "{path}");
    }
}

fn header(name: &'static str) -> HeaderTest {
    HeaderTest { name: HeaderName::from_static(name), test: Test::Present }
}

fn parameter(name: &str) -> PairTest {
    PairTest { name: name.into(), test: Test::Present }
}

fn conditions(methods: &[Method], headers: &[HeaderTest], query: &[PairTest]) -> Conditions {
    Conditions { methods: methods.into(), headers: headers.into(), query: query.into() }
}

#[test]
fn of_equal_paths_a_method_then_headers_then_the_query_decide() {
    let post = [Method::POST];
    let rules = numbered([
        rule("*", prefix("/"), always()),
        rule("*", prefix("/"), conditions(&[], &[], &[parameter("p"), parameter("q")])),
        rule("*", prefix("/"), conditions(&[], &[header("a")], &[])),
        rule("*", prefix("/"), conditions(&[], &[header("b")], &[])),
        rule("*", prefix("/"), conditions(&[], &[header("a"), header("b")], &[])),
        rule("*", prefix("/"), conditions(&post, &[], &[])),
    ]);
    let table = Table::new(rules);
    let sent = |names: &[&'static str]| -> HeaderMap {
        names.iter().map(|n| (HeaderName::from_static(n), HeaderValue::from_static("1"))).collect()
    };
    for (method, names, query, expected) in [
        (Method::GET, &[][..], None, 0),
        (Method::GET, &[], Some("p"), 0),
        (Method::GET, &[], Some("p&q"), 1),
        (Method::GET, &["b"], Some("p&q"), 3),
        (Method::GET, &["a"], None, 2),
        (Method::GET, &["a", "b"], Some("p&q"), 4),
        (Method::POST, &["a", "b"], Some("p&q"), 5),
    ] {
        let head = Head { authority: "x", path: "/", query, method: &method, headers: &sent(names) };
        assert_eq!(number(&table, &head), Some(expected), "{head:?}");
    }
}

#[test]
fn a_route_that_does_not_hold_shadows_nothing() {
    let never = conditions(&[Method::POST], &[], &[]);
    let rules = numbered([
        rule("a.example", exact("/x"), never.clone()),
        rule("a.example", prefix("/x"), never.clone()),
        rule("*.example", regex("/x"), never.clone()),
        rule("*", exact("/x"), never),
        rule("*", prefix("/"), always()),
    ]);
    assert_eq!(found(&rules, "a.example", "/x"), Some(4));
    assert_eq!(found(&rules[..4], "a.example", "/x"), None);
}

/// How specific a rule is for a request, the greatest first; nothing if it does not match.
fn rank(rule: &Rule, host: &str, head: &Head<'_>) -> Option<impl Ord> {
    let host = match rule.host.as_deref() {
        None => (0, 0),
        Some(wildcard) if wildcard.starts_with("*.") => {
            host.ends_with(&wildcard[1..]).then_some((1, wildcard.len()))?
        }
        Some(exact) => (exact == host).then_some((2, 0))?,
    };
    let (path, by_conditions) = match &rule.path {
        PathMatch::Exact(path) => ((path == head.path).then_some((3, 0))?, true),
        PathMatch::Prefix(p) if p == "/" => ((0, 0), true),
        PathMatch::Prefix(p) => {
            let rest = head.path.strip_prefix(p.as_str())?;
            ((rest.is_empty() || rest.starts_with('/')).then_some((2, p.len()))?, true)
        }
        PathMatch::Regex(pattern) => (pattern.matches(head.path.bytes()).then_some((1, 0))?, false),
    };
    rule.conditions.hold(head).then_some((host, path, by_conditions.then(|| rule.conditions.precedence())))
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let host = prop::sample::select(vec!["*", "a.test", "*.a.test", "*.test", "b.a.test"]);
    let path = prop_oneof![
        "(/[ab]{1,2}){1,3}".prop_map(PathMatch::Prefix),
        "(/[ab]{1,2}){1,3}".prop_map(PathMatch::Exact),
        "/[ab.*/]{1,4}"
            .prop_filter_map("an expression", |text| Pattern::new(&text).ok().map(PathMatch::Regex)),
        Just(prefix("/")),
    ];
    let methods = prop::sample::select(vec![vec![], vec![], vec![Method::GET], vec![Method::POST]]);
    let query = prop::sample::select(vec![vec![], vec![], vec!["p"], vec!["p", "q"]]);
    let names = prop::sample::select(vec![vec![], vec![], vec!["x"], vec!["x", "y"]]);
    (host, path, methods, query, names).prop_map(|(host, path, methods, query, names)| {
        let query: Vec<_> = query.into_iter().map(parameter).collect();
        let names: Vec<_> = names.into_iter().map(header).collect();
        rule(host, path, conditions(&methods, &names, &query))
    })
}

proptest! {
    #[test]
    fn the_table_agrees_with_a_plain_search(
        rules in prop::collection::vec(any_rule(), 1..10),
        host in prop::sample::select(vec!["a.test", "b.a.test", "c.b.a.test", "test", "x"]),
        path in "(/[ab]{0,2}){0,4}",
        query in prop::sample::select(vec![None, Some("p"), Some("q=1&p")]),
        names in prop::sample::select(vec![vec![], vec!["x"], vec!["y", "x"]]),
    ) {
        let rules = numbered(rules);
        let headers: HeaderMap =
            names.iter().map(|n| (HeaderName::from_static(n), HeaderValue::from_static(""))).collect();
        let head = Head { authority: host, path: &path, query, method: &Method::GET, headers: &headers };
        let ranked = rules.iter().enumerate().filter_map(|(n, rule)| Some((rank(rule, host, &head)?, n as u32)));
        // Of equals `max_by` takes the last, and the first is wanted.
        let expected = ranked.rev().max_by(|(a, _), (b, _)| a.cmp(b)).map(|(_, n)| n);
        prop_assert_eq!(number(&Table::new(rules.clone()), &head), expected);
    }

    #[test]
    fn what_is_matched_is_what_the_backend_matches(
        rules in prop::collection::vec(any_rule(), 1..10),
        parts in prop::collection::vec(prop::sample::select(vec!["/", ".", "%2e", "a", "%61", "b", "%2F"]), 0..9),
    ) {
        let rules = numbered(rules);
        let paths = PathRules { escaped_slashes: EscapedSlashes::KeepUnchanged, ..PathRules::default() };
        if let Ok(Normalized::Forward(seen)) = paths.apply(&format!("/{}", parts.concat())) {
            let again = paths.apply(&seen);
            let Ok(Normalized::Forward(again)) = again else { panic!("{seen} is refused") };
            prop_assert_eq!(found(&rules, "b.a.test", &seen), found(&rules, "b.a.test", &again));
        }
    }
}
