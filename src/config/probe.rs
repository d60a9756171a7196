//! `[[services.NAME.rollout.probes]]`: what each endpoint of a canary is asked before anybody is sent there.

use std::{fmt, ops::RangeInclusive, time::Duration};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method};
use serde::Deserialize;
use toml::Spanned;

use super::{
    condition,
    filter::{self, RawField},
    health_check, matching,
    report::Report,
    suggest::suggest,
    written::{Section, TIMEOUT, Table, Text, Time, WAIT, count, time, time_or},
};
use crate::{
    model::units::format_duration,
    routing::pattern::{InvalidPattern, Pattern},
};

/// What an endpoint is asked, and how often it has to answer well.
#[derive(Debug, Clone, PartialEq)]
pub struct Probe {
    /// What is asked.
    pub question: Question,
    /// Right answers in a row that it takes (default 1).
    pub times: u32,
    /// Time between two tries (default 1 s).
    pub interval: Duration,
    /// Longest time that one may take (default 5 s).
    pub timeout: Duration,
}

/// What an endpoint is asked.
#[derive(Debug, Clone, PartialEq)]
pub enum Question {
    /// A request.
    Http(Box<Http>),
    /// `grpc.health.v1.Health/Check`.
    Grpc {
        /// The service that is asked about (default: the server as a whole).
        service: String,
    },
}

/// A request, and what has to be answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Http {
    /// Its method (default GET, or POST with a body).
    pub method: Method,
    /// Its path.
    pub path: String,
    /// Its `Host` (default: the endpoint as it is written).
    pub host: Option<String>,
    /// Its other fields.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Its body.
    pub body: Bytes,
    /// What has to be answered.
    pub expected: Expected,
}

/// What has to be answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Expected {
    /// One of these statuses (default 200 to 399).
    pub statuses: Vec<RangeInclusive<u16>>,
    /// A body with this in it.
    pub body_contains: Option<String>,
    /// A body in which this matches somewhere.
    pub body_regex: Option<Anywhere>,
    /// The whole answer within this time.
    pub max_latency: Option<Duration>,
}

/// A regular expression that matches somewhere in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anywhere {
    text: String,
    pattern: Pattern,
}

impl Anywhere {
    fn new(text: &str) -> Result<Self, InvalidPattern> {
        // By itself first: what closes a group that it has not opened is no expression.
        Pattern::new(text)?;
        let pattern = Pattern::new(&format!("(?s:.*)(?:{text})(?s:.*)"))?;
        Ok(Self { text: text.to_owned(), pattern })
    }
}

/// Bytes of an answer that are shown where it is not the right one.
const SHOWN: usize = 100;

impl Expected {
    /// Whether an answer will do.
    ///
    /// # Errors
    /// What was answered, and what should have been.
    pub fn judge(&self, status: u16, body: &[u8], latency: Duration) -> Result<(), String> {
        let Self { statuses, body_contains, body_regex, max_latency } = self;
        if !statuses.iter().any(|expected| expected.contains(&status)) {
            return Err(format!("status {status} instead of {}", in_words(statuses)));
        }
        let shown = || String::from_utf8_lossy(&body[..body.len().min(SHOWN)]).into_owned();
        if let Some(part) = body_contains
            && !body.windows(part.len().max(1)).any(|window| window == part.as_bytes())
        {
            return Err(format!("the body {:?}, which does not contain {part:?}", shown()));
        }
        if let Some(Anywhere { text, pattern }) = body_regex
            && !pattern.matches(body.iter().copied())
        {
            return Err(format!("the body {:?}, in which `{text}` does not match", shown()));
        }
        match max_latency {
            Some(most) if latency > *most => Err(format!(
                "an answer after {} ms instead of {} at most",
                latency.as_millis(),
                format_duration(*most)
            )),
            _ => Ok(()),
        }
    }
}

fn in_words(statuses: &[RangeInclusive<u16>]) -> String {
    let range = |range: &RangeInclusive<u16>| match (range.start(), range.end()) {
        (first, last) if first == last => first.to_string(),
        (first, last) => format!("{first}-{last}"),
    };
    statuses.iter().map(range).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(http) => write!(f, "{} {}", http.method, http.path),
            Self::Grpc { service } if service.is_empty() => f.write_str("gRPC health"),
            Self::Grpc { service } => write!(f, "gRPC health of {service}"),
        }
    }
}

const KINDS: [&str; 2] = ["http", "grpc"];
const TIMES: RangeInclusive<u32> = 1..=1000;
/// Longest time that may lie between two tries.
const INTERVAL: RangeInclusive<Duration> = Duration::from_millis(10)..=*WAIT.end();

/// One of `[[services.NAME.rollout.probes]]` as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawProbe {
    kind: Option<Text>,
    method: Option<Text>,
    path: Option<Text>,
    host: Option<Text>,
    headers: Option<Vec<Spanned<Table<RawField>>>>,
    body: Option<Text>,
    expected_statuses: Option<Spanned<Vec<Text>>>,
    body_contains: Option<Text>,
    body_regex: Option<Text>,
    max_latency: Option<Time>,
    grpc_service: Option<Text>,
    times: Option<Spanned<i64>>,
    interval: Option<Time>,
    timeout: Option<Time>,
}

impl Section for RawProbe {
    const HEADER: &'static str = "[[services.NAME.rollout.probes]]";
}

/// What each endpoint is asked.
pub(super) fn lower(raw: Vec<Table<RawProbe>>, report: &mut Report<'_>) -> Vec<Probe> {
    raw.into_iter().filter_map(|raw| lower_one(raw.0, report)).collect()
}

fn lower_one(raw: RawProbe, report: &mut Report<'_>) -> Option<Probe> {
    let times = raw.times.as_ref().map_or(Some(1), |written| count(written, "times", TIMES, report));
    let interval = time_or(Duration::from_secs(1), raw.interval.as_ref(), "interval", INTERVAL, report);
    let timeout = time_or(Duration::from_secs(5), raw.timeout.as_ref(), "timeout", TIMEOUT, report);
    Some(Probe { question: lower_question(raw, report)?, times: times?, interval, timeout })
}

fn lower_question(raw: RawProbe, report: &mut Report<'_>) -> Option<Question> {
    let kind = raw.kind.as_ref().map_or(KINDS[0], |kind| kind.get_ref().as_str());
    if !KINDS.contains(&kind) {
        let place = raw.kind.as_ref().map(Spanned::span).unwrap_or_default();
        let remedy = suggest(kind, &KINDS, "kinds");
        report.error(place, format!("`{kind}` is not a kind of probe")).help_if(remedy);
        return None;
    }
    let span = |text: &Option<Text>| text.as_ref().map(Spanned::span);
    let fields = raw.headers.as_ref().and_then(|fields| fields.first()).map(Spanned::span);
    let keys = [
        ("method", span(&raw.method), "http"),
        ("path", span(&raw.path), "http"),
        ("host", span(&raw.host), "http"),
        ("headers", fields, "http"),
        ("body", span(&raw.body), "http"),
        ("expected_statuses", raw.expected_statuses.as_ref().map(Spanned::span), "http"),
        ("body_contains", span(&raw.body_contains), "http"),
        ("body_regex", span(&raw.body_regex), "http"),
        ("max_latency", raw.max_latency.as_ref().map(Spanned::span), "http"),
        ("grpc_service", span(&raw.grpc_service), "grpc"),
    ];
    health_check::foreign(keys, kind, "probe", report);
    if kind == "grpc" {
        let service = raw.grpc_service.map(Spanned::into_inner).unwrap_or_default();
        return Some(Question::Grpc { service });
    }
    let RawProbe { method, path, host, headers, body, body_contains, body_regex, max_latency, .. } = raw;
    let usual = if body.is_some() { Method::POST } else { Method::GET };
    let method = method.map_or(Some(usual), |written| matching::lower_method(&written, report));
    let path = path.map_or_else(|| Some("/".to_owned()), |written| health_check::lower_path(written, report));
    let host = host.map(|written| health_check::lower_host(written, report));
    let statuses = raw.expected_statuses;
    let expected = Expected {
        statuses: statuses.map_or_else(|| vec![200..=399], |s| health_check::lower_statuses(&s, report)),
        body_contains: body_contains.map(Spanned::into_inner),
        body_regex: body_regex.and_then(|written| lower_regex(&written, report)),
        max_latency: max_latency.and_then(|written| time(&written, "max_latency", TIMEOUT, report)),
    };
    let headers = headers.unwrap_or_default().into_iter();
    let headers = headers.filter_map(|raw| lower_field(raw, report)).collect();
    Some(Question::Http(Box::new(Http {
        method: method?,
        path: path?,
        host: host.flatten(),
        headers,
        body: body.map(Spanned::into_inner).unwrap_or_default().into(),
        expected,
    })))
}

/// A field that may be set: all but those that say where the request goes or ends, or are about its
/// connection.
fn lower_field(raw: Spanned<Table<RawField>>, report: &mut Report<'_>) -> Option<(HeaderName, HeaderValue)> {
    let (written, value) = filter::field(raw, report)?;
    let name = condition::field_name(&written, report)?;
    if NOT_SET.contains(&name.as_str()) {
        report
            .error(written.span(), format!("a probe cannot set the header `{name}`"))
            .help(if name == "host" { "write `host = \"…\"` beside `path`" } else { "leave it out" });
        return None;
    }
    Some((name, value?))
}

/// Fields that are not for a probe to say.
const NOT_SET: [&str; 9] = [
    "host",
    "content-length",
    "transfer-encoding",
    "trailer",
    "connection",
    "keep-alive",
    "te",
    "upgrade",
    "expect",
];

fn lower_regex(written: &Text, report: &mut Report<'_>) -> Option<Anywhere> {
    match Anywhere::new(written.get_ref()) {
        Ok(anywhere) => Some(anywhere),
        Err(fault) => {
            condition::bad_pattern(written, &fault, report);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{errors, parsed},
        *,
    };

    fn written(keys: &str) -> String {
        format!("[[services.web.rollout.probes]]\n{keys}")
    }

    fn probe(keys: &str) -> Probe {
        parsed(&written(keys)).services.remove(0).rollout.probes.remove(0)
    }

    fn http(keys: &str) -> Http {
        match probe(keys).question {
            Question::Http(http) => *http,
            Question::Grpc { .. } => panic!("{keys}"),
        }
    }

    #[test]
    fn everything_has_a_default() {
        assert!(parsed("").services[0].rollout.probes.is_empty());
        let Probe { question, times, interval, timeout } = probe("");
        assert_eq!((question.to_string().as_str(), times), ("GET /", 1));
        assert_eq!((interval, timeout), (Duration::from_secs(1), Duration::from_secs(5)));
        assert_eq!(http("body = '{}'").method, Method::POST);
        assert_eq!(http("body = '{}'\nmethod = 'PUT'").method, Method::PUT);
        assert_eq!(probe("kind = 'grpc'").question.to_string(), "gRPC health");
        let named = probe("kind = 'grpc'\ngrpc_service = 'a.B'\ntimes = 3");
        assert_eq!((named.question.to_string().as_str(), named.times), ("gRPC health of a.B", 3));
    }

    #[test]
    fn an_answer_that_will_not_do_is_told_with_what_would() {
        let judged = |keys: &str, status, body: &str, millis| {
            http(keys).expected.judge(status, body.as_bytes(), Duration::from_millis(millis))
        };
        assert_eq!(judged("", 200, "", 0), Ok(()));
        let said = |keys: &str, status, body: &str, millis| judged(keys, status, body, millis).unwrap_err();
        assert_eq!(said("", 503, "", 0), "status 503 instead of 200-399");
        assert_eq!(
            said("expected_statuses = ['2xx', '404']", 301, "", 0),
            "status 301 instead of 200-299, 404"
        );
        assert_eq!(judged("body_contains = 'ok'", 200, "is ok", 0), Ok(()));
        assert_eq!(
            said("body_contains = 'ok'", 200, "bad\n", 0),
            r#"the body "bad\n", which does not contain "ok""#
        );
        assert_eq!(judged("body_regex = '^v[0-9]$'", 200, "v2", 0), Ok(()));
        assert_eq!(judged("body_regex = 'a|b'", 200, "x\nb\ny", 0), Ok(()));
        assert_eq!(
            said("body_regex = '^v[0-9]$'", 200, "v22", 0),
            r#"the body "v22", in which `^v[0-9]$` does not match"#
        );
        assert_eq!(judged("max_latency = '1s'", 200, "", 1000), Ok(()));
        let late = said("max_latency = '1s'", 200, "", 1001);
        assert_eq!(late, "an answer after 1001 ms instead of 1s at most");
    }

    #[test]
    fn every_mistake_is_named() {
        for (keys, problem) in [
            ("kind = 'tcp'", "`tcp` is not a kind of probe"),
            ("kind = 'grpc'\npath = '/'", "`path` means nothing to a probe of kind `grpc`"),
            ("grpc_service = 'a'", "`grpc_service` means nothing to a probe of kind `http`"),
            ("path = 'up'", "`up` is not a path that could be asked for"),
            ("method = 'get'", "no request has the method `get`: case matters"),
            ("host = 'a b'", "`a b` cannot be a `Host`"),
            ("headers = [{ name = 'x-a' }]", "this field needs a name and a value"),
            ("headers = [{ name = 'Host', value = 'a' }]", "a probe cannot set the header `host`"),
            ("body_regex = 'a)(b'", "`a)(b` is not a regular expression: unopened group"),
            ("times = 0", "`times` cannot be 0"),
            ("interval = '1ms'", "`interval` of 1ms is too short"),
            ("timeout = '0s'", "`timeout` of 0s is too short"),
            ("max_latency = '0s'", "`max_latency` of 0s is too short"),
            ("expected_statuses = ['2x']", "`2x` is not a status, nor a class or range of them"),
        ] {
            assert_eq!(errors(&written(keys)), [problem]);
        }
    }
}
