//! `[tracing]`: which exchanges have spans, and where these go.

use std::{ops::RangeInclusive, time::Duration};

use serde::Deserialize;
use toml::Spanned;

use super::{
    report::Report,
    target::{self, Target, Written},
    written::{Section, Table, Text, Time, time_or},
};
use crate::model::weight::Weight;

/// Which exchanges have spans, and where these go.
#[derive(Debug, Clone, PartialEq)]
pub struct Tracing {
    /// Where they are exported to, over OTLP/HTTP.
    pub target: Target,
    /// The name under which they stand there (default `tidegate`).
    pub service_name: String,
    /// The share of traces that are sampled (default 1 %).
    pub sample: Weight,
    /// Whether a trace that a trusted proxy has begun is sampled if they say so, and only then (default yes).
    pub parent_based: bool,
    /// Longest time that one export may take (default 10 s).
    pub timeout: Duration,
}

impl Tracing {
    /// As OpenTelemetry's exporters have it.
    const TIMEOUT: Duration = Duration::from_secs(10);
    const SERVICE_NAME: &'static str = "tidegate";
    /// 1 %.
    const SAMPLE: u16 = 100;
}

/// Spans wait for one export at a time.
const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(60);

/// `[tracing]` as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTracing {
    url: Option<Text>,
    ca_file: Option<Text>,
    headers_file: Option<Text>,
    service_name: Option<Text>,
    sample: Option<Spanned<f64>>,
    parent_based: Option<bool>,
    timeout: Option<Time>,
}

impl Section for RawTracing {
    const HEADER: &'static str = "[tracing]";
}

/// Tracing, if it is known where to.
pub(super) fn lower(raw: Spanned<Table<RawTracing>>, report: &mut Report<'_>) -> Option<Tracing> {
    let place = raw.span();
    let RawTracing { url, ca_file, headers_file, service_name, sample, parent_based, timeout } =
        raw.into_inner().0;
    let target = if url.is_none() {
        report
            .error(place, "`[tracing]` has no `url`")
            .help("name the collector: `url = \"http://127.0.0.1:4318\"`");
        None
    } else {
        target::lower(Written { url, url_file: None, ca_file, headers_file }, place, "collector", report)
    };
    let service_name = service_name.and_then(|written| lower_name(written, report));
    let sample = sample.and_then(|written| lower_sample(&written, report));
    let timeout = time_or(Tracing::TIMEOUT, timeout.as_ref(), "timeout", TIMEOUT, report);
    Some(Tracing {
        target: target?,
        service_name: service_name.unwrap_or_else(|| Tracing::SERVICE_NAME.to_owned()),
        sample: sample.or_else(|| Weight::from_hundredths(Tracing::SAMPLE).ok()).unwrap_or_default(),
        parent_based: parent_based.unwrap_or(true),
        timeout,
    })
}

fn lower_name(written: Text, report: &mut Report<'_>) -> Option<String> {
    if written.get_ref().trim().is_empty() {
        report
            .error(written.span(), "`service_name` is empty, so nobody would find the spans")
            .help("leave it out for `tidegate`, or name this proxy as your other services are named");
        return None;
    }
    Some(written.into_inner())
}

fn lower_sample(written: &Spanned<f64>, report: &mut Report<'_>) -> Option<Weight> {
    let share = *written.get_ref();
    let sample = Weight::from_percent(share * 100.0).ok();
    if sample.is_none() {
        report.error(written.span(), format!("`sample` cannot be {share}")).help(
            "write a share from 0 to 1 with at most four decimals; 0 samples only what trusted proxies say",
        );
    }
    sample
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            target::Source,
            testing::{errors, parsed},
        },
        *,
    };

    fn tracing(keys: &str) -> Tracing {
        parsed(&format!("[tracing]\nurl = 'http://127.0.0.1:4318'\n{keys}")).tracing.unwrap()
    }

    #[test]
    fn there_is_none_unless_asked_for_and_then_every_key_has_a_default() {
        assert_eq!(parsed("").tracing, None);
        let written = "service_name = 'tidegate'\nsample = 0.01\nparent_based = true\ntimeout = '10s'";
        assert_eq!(tracing(""), tracing(written));
        assert_eq!(tracing("").sample.percent(), 1.0);
    }

    #[test]
    fn every_key_is_heeded() {
        let keys = "service_name = 'edge'\nsample = 0\nparent_based = false\ntimeout = '2s'\n\
                    headers_file = '/run/token'";
        let tracing = tracing(keys);
        assert_eq!((tracing.service_name.as_str(), tracing.sample), ("edge", Weight::ZERO));
        assert_eq!((tracing.parent_based, tracing.timeout), (false, Duration::from_secs(2)));
        assert_eq!(tracing.target.headers, Some("/run/token".into()));
        assert!(matches!(tracing.target.address, Source::Url(address) if address.port == 4318));
    }

    #[test]
    fn every_mistake_is_named() {
        assert_eq!(errors("[tracing]"), ["`[tracing]` has no `url`"]);
        for (keys, problem) in [
            ("service_name = ' '", "`service_name` is empty, so nobody would find the spans"),
            ("sample = 1.5", "`sample` cannot be 1.5"),
            ("sample = 0.00001", "`sample` cannot be 0.00001"),
            ("sample = -0.1", "`sample` cannot be -0.1"),
            ("sample = nan", "`sample` cannot be NaN"),
            ("timeout = '2m'", "`timeout` of 2m is too long"),
        ] {
            assert_eq!(errors(&format!("[tracing]\nurl = 'http://a'\n{keys}")), [problem]);
        }
    }
}
