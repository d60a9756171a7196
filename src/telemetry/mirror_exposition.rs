//! What is counted of copied requests, in Prometheus' form.

use std::{collections::BTreeMap, sync::Arc};

use prometheus::{
    core::{Collector, Desc},
    proto::{Metric, MetricFamily, MetricType},
};

use super::{
    exposition::{counter, gauge, label, latency},
    ledger::Hub,
    mirror::{FailedBy, MirrorResult, MirrorTotals},
};
use crate::model::{name::ServiceName, role::Role};

type Mirrors = BTreeMap<ServiceName, MirrorTotals>;

/// A family: its name, what it is, its labels, its kind, and its series.
struct Family(&'static str, &'static str, &'static [&'static str], MetricType, fn(&Mirrors) -> Vec<Metric>);

const FAMILIES: [Family; 5] = [
    Family(
        "tidegate_mirrored_requests_total",
        "Requests that were to be copied to the canary, by what became of that.",
        &["service", "result"],
        MetricType::COUNTER,
        results,
    ),
    Family(
        "tidegate_mirrored_requests_in_flight",
        "Copies of requests that have been sent to the canary and not been answered to the end.",
        &["service"],
        MetricType::GAUGE,
        in_flight,
    ),
    Family(
        "tidegate_mirrored_pairs_total",
        "Requests that both stable and, as a copy, the canary have had, by which of them failed.",
        &["service", "failed_by"],
        MetricType::COUNTER,
        pairs,
    ),
    Family(
        "tidegate_mirrored_pairs_compared_total",
        "Requests of which both times are known, by whether the canary took longer than it may beside stable.",
        &["service", "slower"],
        MetricType::COUNTER,
        compared,
    ),
    Family(
        "tidegate_mirrored_response_seconds",
        "Time from a whole request to the head of its response, of requests that both have answered.",
        &["service", "role"],
        MetricType::HISTOGRAM,
        latencies,
    ),
];

/// Sums what the workers have counted when it is scraped.
#[derive(Debug)]
pub struct MirrorCollector {
    hub: Arc<Hub>,
    descs: Vec<Desc>,
}

impl MirrorCollector {
    /// A collector over the workers' counts.
    ///
    /// # Errors
    /// Never: the names are constants in Prometheus' form.
    pub fn new(hub: Arc<Hub>) -> prometheus::Result<Self> {
        let desc = |Family(name, help, labels, ..): &Family| {
            let labels = labels.iter().map(|label| (*label).to_owned()).collect();
            Desc::new((*name).to_owned(), (*help).to_owned(), labels, Default::default())
        };
        Ok(Self { hub, descs: FAMILIES.iter().map(desc).collect::<Result<_, _>>()? })
    }
}

impl Collector for MirrorCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mirrors = self.hub.mirrors();
        // A family without a series is an error to the encoder.
        if mirrors.is_empty() {
            return Vec::new();
        }
        let family = |Family(name, help, _, kind, series): &Family| {
            let mut family = MetricFamily::default();
            family.set_name((*name).to_owned());
            family.set_help((*help).to_owned());
            family.set_field_type(*kind);
            family.set_metric(series(&mirrors));
            family
        };
        FAMILIES.iter().map(family).collect()
    }
}

fn results(mirrors: &Mirrors) -> Vec<Metric> {
    let of = |(service, totals): (&ServiceName, &MirrorTotals)| {
        let labels =
            |result: MirrorResult| vec![label("service", service.as_str()), label("result", result.label())];
        MirrorResult::ALL.map(|result| counter(labels(result), totals.results[result as usize]))
    };
    mirrors.iter().flat_map(of).collect()
}

fn in_flight(mirrors: &Mirrors) -> Vec<Metric> {
    let of = |(service, totals): (&ServiceName, &MirrorTotals)| {
        gauge(vec![label("service", service.as_str())], totals.in_flight)
    };
    mirrors.iter().map(of).collect()
}

fn pairs(mirrors: &Mirrors) -> Vec<Metric> {
    let of = |(service, totals): (&ServiceName, &MirrorTotals)| {
        let labels =
            |failed: FailedBy| vec![label("service", service.as_str()), label("failed_by", failed.label())];
        FailedBy::ALL.map(|failed| counter(labels(failed), totals.pairs[failed as usize]))
    };
    mirrors.iter().flat_map(of).collect()
}

fn compared(mirrors: &Mirrors) -> Vec<Metric> {
    let of = |(service, totals): (&ServiceName, &MirrorTotals)| {
        let labels = |slower| vec![label("service", service.as_str()), label("slower", slower)];
        [("false", totals.compared[0]), ("true", totals.compared[1])]
            .map(|(slower, pairs)| counter(labels(slower), pairs))
    };
    mirrors.iter().flat_map(of).collect()
}

fn latencies(mirrors: &Mirrors) -> Vec<Metric> {
    let of = |(service, totals): (&ServiceName, &MirrorTotals)| {
        let labels = |role: Role| vec![label("service", service.as_str()), label("role", role.as_str())];
        Role::ALL.map(|role| latency(labels(role), &totals.latency[role.index()]))
    };
    mirrors.iter().flat_map(of).collect()
}

#[cfg(test)]
mod tests {
    use prometheus::{Registry, TextEncoder};

    use super::*;

    #[test]
    fn there_is_nothing_without_a_mirror_and_all_of_it_with_one() {
        let hub = Arc::new(Hub::new(1));
        let registry = Registry::new();
        registry.register(Box::new(MirrorCollector::new(Arc::clone(&hub)).unwrap())).unwrap();
        let scrape = || TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        assert_eq!(scrape(), "");
        hub.mirror_cells(0, &"web".parse().unwrap()).count(MirrorResult::Match);
        let text = scrape();
        assert!(
            text.contains(r#"tidegate_mirrored_requests_total{service="web",result="match"} 1"#),
            "{text}"
        );
        assert!(
            text.contains(r#"tidegate_mirrored_pairs_total{service="web",failed_by="canary"} 0"#),
            "{text}"
        );
    }
}
