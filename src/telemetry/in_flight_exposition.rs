//! The limits of requests at a time, in Prometheus' form.

use std::sync::Arc;

use prometheus::{
    IntCounterVec, IntGaugeVec, Opts,
    core::{Collector, Desc},
    proto::MetricFamily,
};

use super::ledger::Hub;

/// Reads the limits when it is scraped.
#[derive(Debug)]
pub struct InFlightCollector {
    hub: Arc<Hub>,
    descs: Vec<Desc>,
}

impl InFlightCollector {
    /// A collector over the hub's limits.
    ///
    /// # Errors
    /// Never: the names are constants in Prometheus' form.
    pub fn new(hub: Arc<Hub>) -> prometheus::Result<Self> {
        let (limit, rejections) = families()?;
        let descs = limit.desc().into_iter().chain(rejections.desc()).cloned().collect();
        Ok(Self { hub, descs })
    }
}

fn families() -> prometheus::Result<(IntGaugeVec, IntCounterVec)> {
    let limit = Opts::new(
        "tidegate_in_flight_limit",
        "Requests that a service may have at a time, where that is limited.",
    );
    let rejections = Opts::new(
        "tidegate_in_flight_rejections_total",
        "Requests that were turned away because the service had as many as it may have.",
    );
    Ok((IntGaugeVec::new(limit, &["service"])?, IntCounterVec::new(rejections, &["service"])?))
}

impl Collector for InFlightCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Ok((limits, rejections)) = families() else { return Vec::new() };
        for (service, limit) in self.hub.in_flight().all() {
            let labels = [service.as_str()];
            limits.with_label_values(&labels).set(limit.limit().into());
            rejections.with_label_values(&labels).inc_by(limit.rejected());
        }
        // A family without a series is an error to the encoder.
        let families = limits.collect().into_iter().chain(rejections.collect());
        families.filter(|family| !family.get_metric().is_empty()).collect()
    }
}
