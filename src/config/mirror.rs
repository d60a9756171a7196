//! `[services.NAME.mirror]`: which requests to stable are copied to the canary.

use std::{collections::BTreeSet, ops::RangeInclusive};

use http::Method;
use serde::Deserialize;
use toml::Spanned;

use super::{
    matching::lower_method,
    report::Report,
    written::{Section, Size, Table, Text, count, size},
};
use crate::{model::weight::Weight, routing::mirror::Mirror};

/// What is kept is kept for each copy.
const BODY: RangeInclusive<u64> = 0..=1024 * 1024;
const IN_FLIGHT: RangeInclusive<u32> = 1..=100_000;

/// `[services.NAME.mirror]` as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawMirror {
    percent: Option<Spanned<f64>>,
    methods: Option<Spanned<Vec<Text>>>,
    max_body: Option<Size>,
    max_in_flight: Option<Spanned<i64>>,
    mismatch_fails: Option<bool>,
}

impl Section for RawMirror {
    const HEADER: &'static str = "[services.NAME.mirror]";
}

/// Which requests of one service are copied. What is wrong stands as its default.
pub(super) fn lower(raw: Spanned<Table<RawMirror>>, has_canary: bool, report: &mut Report<'_>) -> Mirror {
    if !has_canary {
        report
            .warning(raw.span(), "there is no canary to copy requests to")
            .help("add `canary = \"…\"` to the service, or remove the table");
    }
    let RawMirror { percent, methods, max_body, max_in_flight, mismatch_fails } = raw.into_inner().0;
    let default = Mirror::default();
    let percent = percent.and_then(|written| self::percent(&written, "percent", report));
    let methods = methods.and_then(|written| lower_methods(&written, report));
    let max_body = max_body.and_then(|written| size(&written, "max_body", BODY, report));
    let max_body = max_body.and_then(|bytes| usize::try_from(bytes).ok());
    let max_in_flight = max_in_flight.and_then(|written| count(&written, "max_in_flight", IN_FLIGHT, report));
    Mirror {
        percent: percent.unwrap_or(default.percent),
        methods: methods.unwrap_or(default.methods),
        max_body: max_body.unwrap_or(default.max_body),
        max_in_flight: max_in_flight.unwrap_or(default.max_in_flight),
        mismatch_fails: mismatch_fails.unwrap_or(default.mismatch_fails),
        ..default
    }
}

/// How much longer than stable a canary may take for a copy, in thousandths of what stable took, where times
/// are compared.
pub(super) fn tolerated(latency_margin: Option<f64>) -> Option<u32> {
    // Rounded up; the cast saturates.
    latency_margin.map(|margin| ((1.0 + margin) * 1_000.0 - 1e-6).ceil() as u32)
}

/// A share of requests that is written under `key`.
pub(super) fn percent(written: &Spanned<f64>, key: &str, report: &mut Report<'_>) -> Option<Weight> {
    let percent = *written.get_ref();
    let share = Weight::from_percent(percent).ok();
    if share.is_none() {
        report
            .error(written.span(), format!("`{key}` cannot be {percent}"))
            .help("write a percentage from 0 to 100 with at most two decimals, such as 2.5");
    }
    share
}

fn lower_methods(written: &Spanned<Vec<Text>>, report: &mut Report<'_>) -> Option<Box<[Method]>> {
    if written.get_ref().is_empty() {
        report
            .error(written.span(), "`methods` is empty, so nothing would be copied")
            .help("leave `methods` out for GET, HEAD and OPTIONS, or name at least one");
        return None;
    }
    let methods: Option<Vec<_>> = written.get_ref().iter().map(|text| lower_method(text, report)).collect();
    let mut seen = BTreeSet::new();
    Some(methods?.into_iter().filter(|method| seen.insert(method.to_string())).collect())
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            load::parse,
            testing::{MINIMAL, errors_of, warnings},
        },
        *,
    };

    fn text(keys: &str) -> String {
        let with_canary = MINIMAL.replace("stable = 'v1'", "stable = 'v1'\ncanary = 'v2'");
        format!(
            "{with_canary}[services.web.backends.v2]\nendpoints = ['http://127.0.0.1:9002']\n\
             [services.web.mirror]\n{keys}"
        )
    }

    fn mirror(keys: &str) -> Mirror {
        parse("x.toml", &text(keys)).unwrap().0.services.remove(0).mirror.unwrap()
    }

    #[test]
    fn every_key_has_a_default_and_is_heeded() {
        assert_eq!(mirror(""), Mirror::default());
        let methods = "methods = ['POST', 'GET', 'POST']";
        let numbers = "percent = 12.5\nmax_body = '1KiB'\nmax_in_flight = 7";
        let all = mirror(&format!("{numbers}\n{methods}\nmismatch_fails = false"));
        let percent = Weight::from_percent(12.5).unwrap();
        let methods = [Method::POST, Method::GET].into();
        let (max_body, max_in_flight, tolerated) = (1024, 7, Some(1_200));
        assert_eq!(
            all,
            Mirror { percent, methods, max_body, max_in_flight, tolerated, mismatch_fails: false }
        );
    }

    #[test]
    fn the_rollout_says_what_is_slower() {
        let with = |analysis: &str| mirror(&format!("[services.web.rollout.analysis]\n{analysis}")).tolerated;
        assert_eq!(with("latency_margin = 0.5"), Some(1_500));
        assert_eq!(with("latency_margin = 0.0001"), Some(1_001));
        assert_eq!(with("latency_margin = false"), None);
    }

    #[test]
    fn dark_steps_need_no_table() {
        let steps = "[services.web.rollout]\nsteps = [{ mirror = 10 }, { weight = 50 }]";
        let text = text("").replace("[services.web.mirror]\n", "") + steps;
        let service = parse("x.toml", &text).unwrap().0.services.remove(0);
        assert_eq!(service.mirror, Some(Mirror::of_rollouts()));
        assert_eq!(service.rollout.plan.steps()[0].mirror, Some(Weight::from_percent(10.0).unwrap()));
    }

    #[test]
    fn every_mistake_is_named() {
        for (keys, problem) in [
            ("percent = 100.5", "`percent` cannot be 100.5"),
            ("percent = 0.001", "`percent` cannot be 0.001"),
            ("methods = []", "`methods` is empty, so nothing would be copied"),
            ("methods = ['post']", "no request has the method `post`: case matters"),
            ("methods = ['CONNECT']", "CONNECT is not answered here"),
            ("max_body = '2MiB'", "`max_body` of 2MiB is too large"),
            ("max_in_flight = 0", "`max_in_flight` cannot be 0"),
        ] {
            assert_eq!(errors_of(&text(keys)), [problem]);
        }
    }

    #[test]
    fn without_a_canary_there_is_nowhere_to_copy_to() {
        assert_eq!(warnings("[services.web.mirror]"), ["there is no canary to copy requests to"]);
    }
}
