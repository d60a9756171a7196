//! The health of endpoints in Prometheus' form. The label `endpoint` is what stands in the
//! configuration: the addresses of a name are summed, so that DNS cannot raise the number of series.

use std::sync::Arc;

use prometheus::{
    IntCounterVec, IntGaugeVec, Opts,
    core::{Collector, Desc},
    proto::MetricFamily,
};

use super::ledger::Hub;
use crate::clock;

const LABELS: [&str; 3] = ["service", "backend", "endpoint"];

/// Reads the board when it is scraped.
#[derive(Debug)]
pub struct HealthCollector {
    hub: Arc<Hub>,
    descs: Vec<Desc>,
}

impl HealthCollector {
    /// A collector over the hub's board.
    ///
    /// # Errors
    /// Never: the names are constants in Prometheus' form.
    pub fn new(hub: Arc<Hub>) -> prometheus::Result<Self> {
        let families = Families::new()?;
        Ok(Self { hub, descs: families.all().iter().flat_map(|f| f.desc()).cloned().collect() })
    }
}

struct Families {
    healthy: IntGaugeVec,
    addresses: IntGaugeVec,
    ejections: IntCounterVec,
}

impl Families {
    fn new() -> prometheus::Result<Self> {
        let gauge = |name, help| IntGaugeVec::new(Opts::new(name, help), &LABELS);
        Ok(Self {
            healthy: gauge(
                "tidegate_endpoint_healthy",
                "Addresses of an endpoint that pass their checks and are not ejected.",
            )?,
            addresses: gauge("tidegate_endpoint_addresses", "Addresses of an endpoint.")?,
            ejections: IntCounterVec::new(
                Opts::new(
                    "tidegate_endpoint_ejections_total",
                    "Times that an address of an endpoint was ejected for what requests saw of it.",
                ),
                &LABELS,
            )?,
        })
    }

    fn all(&self) -> [&dyn Collector; 3] {
        [&self.healthy, &self.addresses, &self.ejections]
    }
}

impl Collector for HealthCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Ok(families) = Families::new() else { return Vec::new() };
        let board = self.hub.health();
        let now = board.millis(clock::monotonic());
        for (key, backend) in board.backends() {
            for (endpoint, summary) in backend.summary(now) {
                let labels = [key.service.as_str(), key.backend.as_str(), &endpoint];
                let gauge = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
                families.healthy.with_label_values(&labels).set(gauge(summary.healthy));
                families.addresses.with_label_values(&labels).set(gauge(summary.addresses));
                families.ejections.with_label_values(&labels).inc_by(summary.ejections);
            }
        }
        // A family without a series is an error to the encoder.
        let families = families.all().into_iter().flat_map(Collector::collect);
        families.filter(|family| !family.get_metric().is_empty()).collect()
    }
}
