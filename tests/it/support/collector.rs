//! Whoever spans are exported to: takes OTLP over HTTP and remembers what it was told.

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value},
    trace::v1::{Span, span::SpanKind, status::StatusCode},
};
use prost::Message;

use super::{Backend, backend::Seen, eventually, reply};

/// A running collector.
pub struct Collector(pub Backend);

impl Collector {
    pub fn start() -> Self {
        Self::answering("200 OK")
    }

    /// One that says this to everything.
    pub fn answering(status: &'static str) -> Self {
        Self(Backend::answering(move |_| reply(status, &[("Content-Type", "application/x-protobuf")], "")))
    }

    /// The table that has spans sent here, with more keys.
    pub fn table(&self, keys: &str) -> String {
        format!("[tracing]\nurl = 'http://{}'\n{keys}\n", self.0.address)
    }

    pub fn spans(&self) -> Vec<Seeable> {
        self.0.requests().iter().flat_map(spans).collect()
    }

    /// The spans of one trace once there are so many: the server's first, the clients' in their order.
    #[track_caller]
    pub fn wait_for(&self, count: usize) -> Vec<Seeable> {
        let mut spans = eventually(|| self.spans(), |spans| spans.len() >= count);
        assert_eq!(spans.len(), count, "{spans:#?}");
        spans.sort_by_key(|span| (span.0.kind, span.0.start_time_unix_nano));
        assert!(spans.iter().all(|span| span.0.trace_id == spans[0].0.trace_id), "{spans:#?}");
        spans
    }
}

/// The message in a request.
pub fn message(seen: &Seen) -> ExportTraceServiceRequest {
    ExportTraceServiceRequest::decode(&seen.body[..]).unwrap()
}

fn spans(seen: &Seen) -> Vec<Seeable> {
    let resources = message(seen).resource_spans.into_iter();
    resources.flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans).map(Seeable).collect()
}

/// A span to be looked at.
#[derive(Debug)]
pub struct Seeable(pub Span);

impl Seeable {
    /// An attribute as text.
    pub fn get(&self, key: &str) -> Option<String> {
        attribute(&self.0.attributes, key)
    }

    /// Checks attributes.
    #[track_caller]
    pub fn expect(&self, wanted: &[(&str, &str)]) {
        for (key, value) in wanted {
            assert_eq!(self.get(key).as_deref(), Some(*value), "{key} in {self:#?}");
        }
    }

    pub fn is_server(&self) -> bool {
        self.0.kind() == SpanKind::Server
    }

    pub fn is_child_of(&self, other: &Self) -> bool {
        self.0.trace_id == other.0.trace_id && self.0.parent_span_id == other.0.span_id
    }

    pub fn failed(&self) -> bool {
        self.0.status.as_ref().is_some_and(|status| status.code() == StatusCode::Error)
    }

    pub fn trace_id(&self) -> String {
        hex(&self.0.trace_id)
    }

    pub fn parent(&self) -> String {
        hex(&self.0.parent_span_id)
    }

    /// The `traceparent` of what is done in it.
    pub fn context(&self) -> String {
        format!("00-{}-{}-01", self.trace_id(), hex(&self.0.span_id))
    }
}

/// An attribute of these as text.
pub fn attribute(attributes: &[KeyValue], key: &str) -> Option<String> {
    match attributes.iter().find(|attribute| attribute.key == key)?.value.clone()?.value? {
        Value::StringValue(text) => Some(text),
        Value::IntValue(number) => Some(number.to_string()),
        other => panic!("{key} is {other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
