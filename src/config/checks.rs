//! `[[services.NAME.rollout.checks]]`: what is measured elsewhere, and what it has to be.

use std::{collections::BTreeSet, ops::RangeInclusive, time::Duration};

use http::{Uri, uri::Scheme};
use serde::Deserialize;
use toml::Spanned;

use super::{
    Check,
    files::Noted,
    report::Report,
    suggest::suggest,
    template,
    tls::authorities,
    written::{Section, TIMEOUT, Table, Text, Time, count, time_or},
};
use crate::{
    rollout::check::{self, NoData, Rule, Source},
    tls::client,
};

const KINDS: [&str; 2] = ["prometheus", "http"];
const NO_DATA: [(&str, NoData); 3] =
    [("inconclusive", NoData::Inconclusive), ("pass", NoData::Pass), ("fail", NoData::Fail)];
const THRESHOLD: RangeInclusive<u32> = 1..=1000;

/// `[[services.NAME.rollout.checks]]` as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCheck {
    name: Option<Text>,
    kind: Option<Text>,
    address: Option<Text>,
    query: Option<Text>,
    url: Option<Text>,
    json_pointer: Option<Text>,
    ca: Option<Text>,
    min: Option<Spanned<f64>>,
    max: Option<Spanned<f64>>,
    min_ratio: Option<Spanned<f64>>,
    max_ratio: Option<Spanned<f64>>,
    failure_threshold: Option<Spanned<i64>>,
    no_data: Option<Text>,
    max_age: Option<Time>,
    interval: Option<Time>,
    timeout: Option<Time>,
}

impl Section for RawCheck {
    const HEADER: &'static str = "[[services.NAME.rollout.checks]]";
}

/// The names that are written, those included of checks that are wrong in something else.
pub(super) fn names(raw: &[Spanned<Table<RawCheck>>]) -> Vec<String> {
    raw.iter().filter_map(|raw| raw.get_ref().0.name.as_ref()).map(|name| name.get_ref().clone()).collect()
}

/// The checks of one service's rollouts.
pub(super) fn lower(raw: Vec<Spanned<Table<RawCheck>>>, report: &mut Report<'_>) -> Vec<Check> {
    let mut names = BTreeSet::new();
    raw.into_iter().filter_map(|raw| lower_one(raw, &mut names, report)).collect()
}

fn lower_one(
    raw: Spanned<Table<RawCheck>>,
    names: &mut BTreeSet<String>,
    report: &mut Report<'_>,
) -> Option<Check> {
    let header = raw.span();
    let mut raw = raw.into_inner().0;
    let name = match raw.name.take() {
        None => {
            report.error(header.clone(), "this check has no `name`").help("give it one: `name = \"memory\"`");
            None
        }
        Some(name) if !names.insert(name.get_ref().clone()) => {
            report
                .error(name.span(), format!("there is another check `{}` of this service", name.get_ref()))
                .help("give each a name of its own");
            None
        }
        Some(name) => Some(name.into_inner().into()),
    };
    let ca = raw.ca.take();
    let source = lower_source(&mut raw, &header, report);
    let tls = lower_tls(ca, source.as_ref(), header.clone(), report);
    let rule = lower_rule(&raw, source.as_ref(), &header, report);
    let (interval, timeout) = (raw.interval.as_ref(), raw.timeout.as_ref());
    Some(Check {
        interval: time_or(Duration::from_secs(15), interval, "interval", TIMEOUT, report),
        timeout: time_or(Duration::from_secs(5), timeout, "timeout", TIMEOUT, report),
        name: name?,
        source: source?,
        tls,
        rule: rule?,
    })
}

/// Where the numbers come from. Keys that mean nothing to the kind are faults.
fn lower_source(
    raw: &mut RawCheck,
    header: &std::ops::Range<usize>,
    report: &mut Report<'_>,
) -> Option<Source> {
    let Some(kind) = raw.kind.take() else {
        report
            .error(header.clone(), "this check does not say who measures")
            .help("write `kind = \"prometheus\"` or `kind = \"http\"`");
        return None;
    };
    let name = kind.get_ref().as_str();
    if !KINDS.contains(&name) {
        let remedy = suggest(name, &KINDS, "kinds");
        report.error(kind.span(), format!("`{name}` is not a kind of check")).help_if(remedy);
        return None;
    }
    let keys = [
        ("address", &mut raw.address, KINDS[0], "http://prometheus:9090"),
        ("query", &mut raw.query, KINDS[0], "sum(up)"),
        ("url", &mut raw.url, KINDS[1], "http://127.0.0.1:8000/orders"),
        ("json_pointer", &mut raw.json_pointer, KINDS[1], "/rate"),
    ];
    let [address, query, url, pointer] = keys.map(|(key, written, of, example)| {
        let written = written.take();
        match &written {
            Some(text) if of != name => {
                report
                    .error(text.span(), format!("`{key}` means nothing to a check of kind `{name}`"))
                    .help(format!("write `kind = \"{of}\"`, or remove `{key}`"));
                None
            }
            None if of == name => {
                report
                    .error(header.clone(), format!("this check has no `{key}`"))
                    .help(format!("add it: `{key} = \"{example}\"`"));
                None
            }
            _ => written,
        }
    });
    if name == KINDS[0] {
        let address = address.and_then(|written| lower_url(&written, report).map(|()| written.into_inner()));
        let query = query.and_then(|written| template::lower(&written, &check::NAMES, report));
        let address = address?.trim_end_matches('/').to_owned();
        return Some(Source::Prometheus { address, query: query? });
    }
    let url = url.and_then(|written| {
        lower_url(&written, report)?;
        template::lower(&written, &check::NAMES, report)
    });
    let json_pointer = pointer.and_then(|written| lower_pointer(written, report));
    Some(Source::Http { url: url?, json_pointer: json_pointer? })
}

/// A URL, which may have words in double braces after its host.
fn lower_url(written: &Text, report: &mut Report<'_>) -> Option<()> {
    let text = written.get_ref();
    let plain = text.replace([' ', '{', '}'], "");
    let uri: Option<Uri> = plain.parse().ok();
    let known = |scheme: &Scheme| *scheme == Scheme::HTTP || *scheme == Scheme::HTTPS;
    let is_one = uri.is_some_and(|uri| uri.scheme().is_some_and(known) && uri.host().is_some());
    let host = text.split("://").nth(1).and_then(|rest| rest.split('/').next()).unwrap_or_default();
    if !is_one || host.contains(['{', '@', ' ']) {
        report
            .error(written.span(), format!("`{text}` is not a URL that could be asked"))
            .help("write `\"http://HOST:PORT/PATH\"`, or `https://`");
        return None;
    }
    Some(())
}

fn lower_pointer(written: Text, report: &mut Report<'_>) -> Option<String> {
    let text = written.get_ref();
    if !text.is_empty() && !text.starts_with('/') {
        report
            .error(written.span(), format!("`{text}` is not a JSON pointer"))
            .help("write the keys that lead to the number, each after a slash: `\"/data/rate\"`");
        return None;
    }
    Some(written.into_inner())
}

/// How the provider is spoken to. Without TLS there is nothing to say.
fn lower_tls(
    ca: Option<Text>,
    source: Option<&Source>,
    header: std::ops::Range<usize>,
    report: &mut Report<'_>,
) -> client::Settings {
    let is_https = source.is_some_and(Source::is_https);
    match ca {
        Some(ca) if source.is_some() && !is_https => {
            report
                .error(ca.span(), "there is a `ca` here, but the provider is not spoken to with TLS")
                .help("write its URL with `https://`, or remove `ca`");
            client::Settings::default()
        }
        None if is_https => {
            report.note(Noted::System(header));
            client::Settings::default()
        }
        ca => client::Settings { ca: ca.map(|ca| authorities(&ca, report)), ..client::Settings::default() },
    }
}

/// What the numbers have to be.
fn lower_rule(
    raw: &RawCheck,
    source: Option<&Source>,
    header: &std::ops::Range<usize>,
    report: &mut Report<'_>,
) -> Option<Rule> {
    let RawCheck { min, max, min_ratio, max_ratio, failure_threshold, no_data, max_age, .. } = raw;
    let limits = [("min", min), ("max", max), ("min_ratio", min_ratio), ("max_ratio", max_ratio)];
    for (key, written) in limits {
        let Some(written) = written else { continue };
        let (value, is_ratio) = (*written.get_ref(), key.ends_with("ratio"));
        if !value.is_finite() || (is_ratio && value < 0.0) {
            let (range, help) = match is_ratio {
                true => ("0 or more", "it is a multiple of stable's number: 1.2 is 20 % more"),
                false => ("a number", "leave it out for no limit"),
            };
            report.error(written.span(), format!("`{key}` must be {range}, not {value}")).help(help);
        }
    }
    for (low, high, key) in [(min, max, "max"), (min_ratio, max_ratio, "max_ratio")] {
        if let (Some(low), Some(high)) = (low, high)
            && low.get_ref() > high.get_ref()
        {
            report
                .error(high.span(), format!("no number could pass: `{key}` is below the least"))
                .help("let the two limits leave room between them");
        }
    }
    let value = |written: &Option<Spanned<f64>>| written.as_ref().map(|written| *written.get_ref());
    let no_data = no_data.as_ref().and_then(|written| lower_no_data(written, report));
    let threshold = failure_threshold.as_ref();
    let threshold = threshold.and_then(|written| count(written, "failure_threshold", THRESHOLD, report));
    let rule = Rule {
        min: value(min),
        max: value(max),
        min_ratio: value(min_ratio),
        max_ratio: value(max_ratio),
        failure_threshold: threshold.unwrap_or(3),
        no_data: no_data.unwrap_or_default(),
        max_age: time_or(Duration::from_secs(300), max_age.as_ref(), "max_age", TIMEOUT, report),
    };
    if limits.iter().all(|(_, written)| written.is_none()) {
        report
            .error(header.clone(), "this check has no limit, so it would always pass")
            .help("write at least one of `min`, `max`, `min_ratio` and `max_ratio`");
        return None;
    }
    let ratio = [min_ratio, max_ratio].into_iter().flatten().next();
    if let (Some(ratio), Some(source)) = (ratio, source)
        && !source.tells_roles_apart()
    {
        report
            .error(ratio.span(), "this check compares both versions, but asks for the same number of both")
            .help("put `{{ backend }}` or `{{ role }}` into what is asked for");
    }
    Some(rule)
}

fn lower_no_data(written: &Text, report: &mut Report<'_>) -> Option<NoData> {
    let word = written.get_ref().as_str();
    let meaning = NO_DATA.iter().find(|(known, _)| *known == word).map(|(_, meaning)| *meaning);
    if meaning.is_none() {
        let remedy = suggest(word, &NO_DATA.map(|(known, _)| known), "choices");
        report.error(written.span(), format!("`no_data` cannot be `{word}`")).help_if(remedy);
    }
    meaning
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{errors, parsed},
        *,
    };
    use crate::model::template::Template;

    const PROMETHEUS: &str = "name = 'memory'\nkind = 'prometheus'\naddress = 'http://p:9090/'\n";

    fn check(keys: &str) -> String {
        format!("[[services.web.rollout.checks]]\n{keys}\n")
    }

    fn one(keys: &str) -> Check {
        parsed(&check(keys)).services.remove(0).rollout.checks.remove(0)
    }

    #[test]
    fn everything_but_the_question_and_a_limit_has_a_default() {
        assert!(parsed("").services[0].rollout.checks.is_empty());
        let memory = one(&format!("{PROMETHEUS}query = 'sum(x)'\nmax = 1"));
        let query = Template::new("sum(x)", &[]).unwrap();
        assert_eq!(memory.source, Source::Prometheus { address: "http://p:9090".to_owned(), query });
        let Rule { min, max, min_ratio, max_ratio, failure_threshold, no_data, max_age } = memory.rule;
        assert_eq!((min, max, min_ratio, max_ratio), (None, Some(1.0), None, None));
        assert_eq!(
            (failure_threshold, no_data, max_age),
            (3, NoData::Inconclusive, Duration::from_secs(300))
        );
        assert_eq!((memory.interval, memory.timeout), (Duration::from_secs(15), Duration::from_secs(5)));
    }

    #[test]
    fn a_service_may_answer_for_each_role() {
        let orders = one(
            "name = 'orders'\nkind = 'http'\nurl = 'https://h/x?v={{ backend }}'\njson_pointer = '/a/0'\n\
             min_ratio = 0.9\nmax_ratio = 1.1\nno_data = 'fail'\nfailure_threshold = 1\ninterval = '1s'",
        );
        let url = Template::new("https://h/x?v={{ backend }}", &check::NAMES).unwrap();
        assert_eq!(orders.source, Source::Http { url, json_pointer: "/a/0".to_owned() });
        assert!(orders.rule.compares() && orders.rule.no_data == NoData::Fail);
    }

    #[test]
    fn every_mistake_is_named() {
        let errors = |keys: &str| errors(&check(keys));
        assert_eq!(
            errors(""),
            [
                "this check has no `name`",
                "this check does not say who measures",
                "this check has no limit, so it would always pass"
            ]
        );
        assert_eq!(
            errors("name = 'a'\nkind = 'http'\nquery = 'x'\nmax = 1"),
            [
                "this check has no `url`",
                "this check has no `json_pointer`",
                "`query` means nothing to a check of kind `http`"
            ]
        );
        let asks = |keys: &str| errors(&format!("{PROMETHEUS}{keys}"));
        assert_eq!(asks("query = '{{ pod }}'\nmax = 1"), ["`pod` stands for nothing"]);
        let same = "this check compares both versions, but asks for the same number of both";
        assert_eq!(asks("query = 'x'\nmax_ratio = 1"), [same]);
        assert_eq!(asks("query = 'x'\nmin = 2\nmax = 1"), ["no number could pass: `max` is below the least"]);
        assert_eq!(asks("query = 'x'\nmax = nan").len(), 1);
        assert_eq!(asks("query = 'x'\nmax = 1\nca = 'ca.pem'").len(), 1);
        let wrong = asks(
            "query = 'x'\nmax = 1\nno_data = 'ok'\nfailure_threshold = 0\ninterval = '0s'\ntimeout = 'x'",
        );
        assert_eq!(wrong.len(), 4);
        for bad in ["p:9090", "ftp://p", "http://", "http://{{ backend }}:1", "http://u@p"] {
            let text = format!("name = 'a'\nkind = 'prometheus'\nquery = 'x'\nmax = 1\naddress = '{bad}'");
            assert_eq!(errors(&text).len(), 1, "{bad}");
        }
        let twice = format!("{PROMETHEUS}query = 'x'\nmax = 1\n");
        let twice = super::super::testing::errors(&(check(&twice) + &check(&twice)));
        assert_eq!(twice, ["there is another check `memory` of this service"]);
    }
}
