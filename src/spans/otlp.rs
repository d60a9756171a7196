//! OTLP's messages: exchanges as spans, with attributes named by OpenTelemetry's semantic conventions for HTTP
//! (1.42), and by words of our own where those have none.
//!
//! A query is not told, because it may have secrets.

use std::time::Duration;

use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse},
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span, Status, span::SpanKind, status::StatusCode},
};
use prost::Message;

use super::record::{Attempt, Exchange};
use crate::{
    access_log::record::{Record, Text},
    model::outcome::Outcome,
};

/// The version of the conventions.
const SCHEMA: &str = "https://opentelemetry.io/schemas/1.42.0";

/// The methods that the conventions know. Any other is not told by name, since a client can choose it.
const METHODS: [&str; 10] =
    ["CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"];

/// Sampled, and it is known whether the parent is somewhere else.
const FLAGS: u32 = 0x101;
/// It is.
const REMOTE: u32 = 0x200;

/// The spans of an exchange: its own first.
pub fn spans(exchange: &Exchange) -> impl Iterator<Item = Span> {
    std::iter::once(server(exchange)).chain(exchange.attempts.iter().zip(0..).map(|(attempt, resent)| {
        let mut span = client(exchange, attempt);
        if resent > 0 {
            span.attributes.push(integer("http.request.resend_count", resent));
        }
        span
    }))
}

/// The message in which spans are exported.
pub fn request(service_name: &str, spans: Vec<Span>) -> Vec<u8> {
    let scope = InstrumentationScope {
        name: "tidegate".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    };
    let resource = Resource {
        attributes: vec![
            text("service.name", service_name),
            text("service.version", env!("CARGO_PKG_VERSION")),
        ],
        ..Resource::default()
    };
    let scope_spans = vec![ScopeSpans { scope: Some(scope), spans, schema_url: SCHEMA.to_owned() }];
    let resource_spans =
        vec![ResourceSpans { resource: Some(resource), scope_spans, schema_url: SCHEMA.to_owned() }];
    ExportTraceServiceRequest { resource_spans }.encode_to_vec()
}

/// How many of the spans that were exported were not taken, and why, as the answer says.
pub fn rejected(answer: &[u8]) -> Option<(u64, String)> {
    // Some who take spans answer with something else, and by that do not say that they have not.
    let partial = ExportTraceServiceResponse::decode(answer).ok()?.partial_success?;
    let rejected = u64::try_from(partial.rejected_spans).ok().filter(|rejected| *rejected > 0)?;
    Some((rejected, partial.error_message))
}

/// The exchange as its client saw it.
fn server(exchange: &Exchange) -> Span {
    let Exchange { record, trace_id, span_id, parent, began, is_https, route, attempts } = exchange;
    let mut attributes = method(record);
    let of_text = |key, of| written(record, of).map(|value| text(key, value));
    attributes.push(text("url.scheme", if *is_https { "https" } else { "http" }));
    if let Some(target) = written(record, Text::Path) {
        attributes.push(text("url.path", target.split('?').next().unwrap_or_default()));
    }
    if let Some(host) = written(record, Text::Host) {
        address(&mut attributes, &host);
    }
    attributes.push(text("client.address", record.client.to_string()));
    attributes.push(text("network.protocol.version", record.protocol.trim_start_matches("HTTP/")));
    attributes.extend(of_text("user_agent.original", Text::UserAgent));
    attributes.extend(record.status.map(|status| integer("http.response.status_code", status.into())));
    attributes.push(integer("http.request.body.size", record.bytes_in as i64));
    attributes.push(integer("http.response.body.size", record.bytes_out as i64));
    if let Some(route) = route {
        attributes.push(text("http.route", &*route.path));
        attributes.push(text("tidegate.route", &*route.name));
    }
    attributes.extend(of_text("tidegate.service", Text::Service));
    attributes.extend(record.assignment.map(|reason| text("tidegate.assignment", reason)));
    attributes.extend(record.local_reply.map(|reason| text("tidegate.local_reply", reason)));
    let last = attempts.last();
    attributes.extend(last.and_then(|attempt| attempt.grpc_status).into_iter().flat_map(call));
    let error = error_of_exchange(record, last);
    let name = match route {
        Some(route) => format!("{} {}", named(record), route.path),
        None => named(record).to_owned(),
    };
    Span {
        parent_span_id: parent.map(bytes).unwrap_or_default(),
        flags: if parent.is_some() { FLAGS | REMOTE } else { FLAGS },
        ..span(
            Made { trace_id: *trace_id, span_id: *span_id, name, kind: SpanKind::Server, attributes, error },
            (*began, record.duration),
        )
    }
}

/// An attempt at a backend.
fn client(exchange: &Exchange, attempt: &Attempt) -> Span {
    let Exchange { record, trace_id, span_id: parent, began, .. } = exchange;
    let Attempt {
        span_id,
        backend,
        role,
        endpoint,
        began: after,
        ended,
        status,
        grpc_status,
        outcome,
        failed,
    } = attempt;
    let mut attributes = method(record);
    attributes.push(text("server.address", endpoint.ip().to_string()));
    attributes.push(integer("server.port", endpoint.port().into()));
    attributes.extend(status.map(|status| integer("http.response.status_code", status.into())));
    attributes.extend(grpc_status.iter().copied().flat_map(call));
    if let Some(service) = written(record, Text::Service) {
        attributes.push(text("tidegate.service", service));
    }
    attributes.push(text("tidegate.backend", &**backend));
    attributes.push(text("tidegate.role", role.as_str()));
    attributes.push(text("tidegate.outcome", outcome.label()));
    let error = match outcome {
        Outcome::ClientAbort => Some((outcome.label().to_owned(), StatusCode::Unset)),
        _ if *failed => Some((kind_of_failure(attempt), StatusCode::Error)),
        _ => None,
    };
    let began = began.saturating_add(nanos(*after));
    let name = named(record).to_owned();
    Span {
        parent_span_id: bytes(*parent),
        ..span(
            Made { trace_id: *trace_id, span_id: *span_id, name, kind: SpanKind::Client, attributes, error },
            (began, ended.saturating_sub(*after)),
        )
    }
}

/// What differs from span to span.
struct Made {
    trace_id: u128,
    span_id: u64,
    name: String,
    kind: SpanKind,
    attributes: Vec<KeyValue>,
    /// What went wrong, and whether that makes the span one that failed.
    error: Option<(String, StatusCode)>,
}

fn span(made: Made, (began, took): (u64, Duration)) -> Span {
    let Made { trace_id, span_id, name, kind, mut attributes, error } = made;
    let status = error.map(|(what, code)| {
        attributes.push(text("error.type", what));
        Status { code: code.into(), message: String::new() }
    });
    Span {
        trace_id: trace_id.to_be_bytes().to_vec(),
        span_id: bytes(span_id),
        flags: FLAGS,
        name,
        kind: kind.into(),
        start_time_unix_nano: began,
        end_time_unix_nano: began.saturating_add(nanos(took)),
        attributes,
        status: status.filter(|status| status.code != i32::from(StatusCode::Unset)),
        ..Span::default()
    }
}

/// What went wrong with an exchange, if something did. A client that went away is named, but that is not a
/// failure of whoever served it.
fn error_of_exchange(record: &Record, last: Option<&Attempt>) -> Option<(String, StatusCode)> {
    if let Some(attempt) = last
        && attempt.outcome == Outcome::ClientAbort
        && record.local_reply.is_none()
    {
        return Some((attempt.outcome.label().to_owned(), StatusCode::Unset));
    }
    let status = record.status.filter(|status| *status >= 500);
    let why = match (record.local_reply, last) {
        (Some(reason), _) => status.map(|_| reason.to_owned())?,
        // It broke off, or it was a call that failed inside a 200.
        (None, Some(attempt)) if attempt.failed && !attempt.outcome.is_status() => kind_of_failure(attempt),
        (None, _) => status?.to_string(),
    };
    Some((why, StatusCode::Error))
}

/// The kind of an attempt's failure: a status, or what happened instead of one.
fn kind_of_failure(attempt: &Attempt) -> String {
    match (attempt.outcome, attempt.status, attempt.grpc_status) {
        (Outcome::GrpcFailure, _, Some(status)) => status.to_owned(),
        (outcome, Some(status), _) if outcome.is_status() => status.to_string(),
        (outcome, ..) => outcome.label().to_owned(),
    }
}

/// How a call of gRPC ended.
fn call(status: &'static str) -> [KeyValue; 2] {
    [text("rpc.system.name", "grpc"), text("rpc.response.status_code", status)]
}

/// The method in the name of a span.
fn named(record: &Record) -> &str {
    let method = record.texts.get(Text::Method).unwrap_or_default();
    METHODS.into_iter().find(|known| known.as_bytes() == method).unwrap_or("HTTP")
}

fn method(record: &Record) -> Vec<KeyValue> {
    match named(record) {
        "HTTP" => {
            let original =
                written(record, Text::Method).map(|method| text("http.request.method_original", method));
            std::iter::once(text("http.request.method", "_OTHER")).chain(original).collect()
        }
        known => vec![text("http.request.method", known)],
    }
}

/// A host, with its port if it has one.
fn address(attributes: &mut Vec<KeyValue>, host: &str) {
    let parted = host.rsplit_once(':').and_then(|(name, port)| Some((name, port.parse::<u16>().ok()?)));
    let (name, port) = parted.map_or((host, None), |(name, port)| (name, Some(port)));
    attributes.push(text("server.address", name.trim_matches(['[', ']'])));
    attributes.extend(port.map(|port| integer("server.port", port.into())));
}

fn written(record: &Record, of: Text) -> Option<String> {
    record.texts.get(of).map(|bytes| String::from_utf8_lossy(bytes).into_owned())
}

fn text(key: &str, value: impl Into<String>) -> KeyValue {
    attribute(key, Value::StringValue(value.into()))
}

fn integer(key: &str, value: i64) -> KeyValue {
    attribute(key, Value::IntValue(value))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    let value = Some(AnyValue { value: Some(value) });
    KeyValue { key: key.to_owned(), value, ..KeyValue::default() }
}

fn bytes(id: u64) -> Vec<u8> {
    id.to_be_bytes().to_vec()
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spans::record::samples::exchange;

    fn get(span: &Span, key: &str) -> Option<String> {
        let found: Vec<_> = span.attributes.iter().filter(|attribute| attribute.key == key).collect();
        assert!(found.len() < 2, "{key} stands twice");
        match found.first()?.value.clone()?.value? {
            Value::StringValue(text) => Some(text),
            Value::IntValue(number) => Some(number.to_string()),
            _ => None,
        }
    }

    /// `error.type` and whether the span failed, of each.
    fn errors(exchange: &Exchange) -> Vec<(Option<String>, bool)> {
        spans(exchange).map(|span| (get(&span, "error.type"), span.status.is_some())).collect()
    }

    #[test]
    fn an_exchange_is_a_span_and_its_attempts_are_its_children() {
        let exchange = exchange(&[
            (Outcome::ServerError, true, Some(503), None),
            (Outcome::Success, false, Some(200), None),
        ]);
        let spans: Vec<_> = spans(&exchange).collect();
        let ids: Vec<_> = spans.iter().map(|s| (s.span_id[7], s.parent_span_id[7], s.kind)).collect();
        let (server, client) = (SpanKind::Server.into(), SpanKind::Client.into());
        assert_eq!(ids, [(2, 3, server), (4, 2, client), (5, 2, client)]);
        let times: Vec<_> = spans.iter().map(|s| (s.start_time_unix_nano, s.end_time_unix_nano)).collect();
        let at = |ms: u64| 1_000_000_000 + ms * 1_000_000;
        assert_eq!(times, [(at(0), at(9)), (at(4), at(6)), (at(5), at(7))]);
        assert_eq!(spans.iter().map(|s| s.flags).collect::<Vec<_>>(), [0x301, 0x101, 0x101]);
        let wanted = [
            ("http.request.method", "GET"),
            ("url.scheme", "https"),
            ("url.path", "/a"),
            ("server.address", "::1"),
            ("server.port", "8080"),
            ("client.address", "192.0.2.1"),
            ("network.protocol.version", "2"),
            ("http.response.status_code", "200"),
            ("http.response.body.size", "5"),
            ("http.route", "/a"),
            ("tidegate.route", "GET /a (2)"),
            ("tidegate.service", "web"),
            ("tidegate.assignment", "weight"),
        ];
        for (key, value) in wanted {
            assert_eq!(get(&spans[0], key).as_deref(), Some(value), "{key}");
        }
        assert_eq!((spans[0].name.as_str(), spans[1].name.as_str()), ("GET /a", "GET"));
        let resent = |span| get(span, "http.request.resend_count");
        assert_eq!((resent(&spans[1]), resent(&spans[2]).as_deref()), (None, Some("1")));
        assert!(spans.iter().all(|span| !format!("{span:?}").contains("secret")));
    }

    #[test]
    fn what_went_wrong_is_named_and_a_client_that_left_is_not_a_failure() {
        let error = |what: &str| (Some(what.to_owned()), true);
        let fine = (None, false);
        let all = |outcome, failed, status, grpc| errors(&exchange(&[(outcome, failed, status, grpc)]));
        assert_eq!(all(Outcome::Success, false, Some(200), None), [fine.clone(), fine.clone()]);
        assert_eq!(all(Outcome::ClientError, false, Some(404), None), [fine.clone(), fine.clone()]);
        assert_eq!(all(Outcome::ServerError, true, Some(503), None), [error("503"), error("503")]);
        // Not by the service's own rules.
        assert_eq!(all(Outcome::ServerError, false, Some(501), None), [error("501"), fine.clone()]);
        assert_eq!(all(Outcome::ClientError, true, Some(404), None), [fine, error("404")]);
        assert_eq!(all(Outcome::Reset, true, Some(200), None), [error("reset"), error("reset")]);
        let failed = all(Outcome::GrpcFailure, true, Some(200), Some("UNAVAILABLE"));
        assert_eq!(failed, [error("UNAVAILABLE"), error("UNAVAILABLE")]);
        let left = (Some("client_abort".to_owned()), false);
        assert_eq!(all(Outcome::ClientAbort, false, Some(200), None), [left.clone(), left]);
        let mut replied = exchange(&[(Outcome::ConnectFailure, true, None, None)]);
        (replied.record.status, replied.record.local_reply) = (Some(502), Some("connect_failure"));
        assert_eq!(errors(&replied), [error("connect_failure"), error("connect_failure")]);
        let mut refused = exchange(&[]);
        (refused.record.status, refused.record.local_reply) = (Some(404), Some("no_route"));
        assert_eq!(errors(&refused), [(None, false)]);
    }

    #[test]
    fn a_method_that_a_client_has_made_up_names_nothing() {
        let mut exchange = exchange(&[(Outcome::Success, false, Some(200), None)]);
        exchange.record.texts.replace(Text::Method, b"BREW");
        exchange.route = None;
        for span in spans(&exchange) {
            assert_eq!(span.name, "HTTP");
            assert_eq!(get(&span, "http.request.method").as_deref(), Some("_OTHER"));
            assert_eq!(get(&span, "http.request.method_original").as_deref(), Some("BREW"));
        }
    }

    #[test]
    fn an_answer_says_what_was_not_taken() {
        use opentelemetry_proto::tonic::collector::trace::v1::ExportTracePartialSuccess;
        let answer = |rejected_spans| {
            let error_message = "no".to_owned();
            let partial_success = Some(ExportTracePartialSuccess { rejected_spans, error_message });
            ExportTraceServiceResponse { partial_success }.encode_to_vec()
        };
        assert_eq!(rejected(&answer(3)), Some((3, "no".to_owned())));
        assert_eq!((rejected(&answer(0)), rejected(b""), rejected(b"{}")), (None, None, None));
    }
}
