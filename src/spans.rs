//! Spans of sampled exchanges, in OpenTelemetry's form.
//!
//! A worker gathers what an exchange was, with its attempts at backends, and puts it into its own bounded
//! queue once it has ended: a few stores to memory that no other worker writes, no lock and no system call.
//! What is here makes OTLP's messages of it; [`crate::controller`] takes it from the queues and sends it.
//! When a queue is full, exchanges are dropped and their spans counted: a collector that stands still costs
//! spans, never requests.
//!
//! The SDK is not used: its tracer takes a lock for each span and its processor wakes a thread for each.

pub mod context;
pub mod otlp;
pub mod queue;
pub mod record;

use prometheus::{IntCounter, Registry};

/// What is counted about spans.
#[derive(Debug, Clone)]
pub struct Counts {
    /// Those that were taken by whoever they were sent to.
    pub exported: IntCounter,
    /// Those that were lost.
    pub dropped: IntCounter,
    /// Times that sending some failed.
    pub export_errors: IntCounter,
}

impl Counts {
    /// The counts, at zero.
    ///
    /// # Errors
    /// When a name is none; they are constants.
    pub fn new() -> prometheus::Result<Self> {
        let exported = "Spans that were exported.";
        let dropped = "Spans that were lost, to a full queue or because they could not be exported.";
        let export_errors = "Times that an export of spans failed, tries again included.";
        Ok(Self {
            exported: IntCounter::new("tidegate_spans_exported_total", exported)?,
            dropped: IntCounter::new("tidegate_spans_dropped_total", dropped)?,
            export_errors: IntCounter::new("tidegate_spans_export_errors_total", export_errors)?,
        })
    }

    /// Has them scraped.
    ///
    /// # Errors
    /// When they are already.
    pub fn register(&self, registry: &Registry) -> prometheus::Result<()> {
        registry.register(Box::new(self.exported.clone()))?;
        registry.register(Box::new(self.dropped.clone()))?;
        registry.register(Box::new(self.export_errors.clone()))
    }
}
