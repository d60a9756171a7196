//! The counts in Prometheus' form: one collector that sums the cells when it is scraped.
//!
//! Label values are names from the configuration and members of enums, so the number of series is
//! bounded by the configuration, never by what clients send.

use std::{collections::BTreeMap, sync::Arc};

use prometheus::{
    core::{Collector, Desc},
    proto::{
        Bucket, Counter, Gauge, Histogram as HistogramProto, LabelPair, Metric, MetricFamily, MetricType,
    },
};

use super::{
    ledger::{HandshakeFailure, Hub},
    local_reason::LocalReason,
    reader::{self, Series, Totals},
    retries::{RetryResult, RetryTotals},
};
use crate::model::{
    histogram::{self, BUCKETS, Histogram},
    name::ServiceName,
    outcome::Outcome,
};

/// Upper bounds of the exported latency buckets, in seconds: those of OpenTelemetry's
/// `http.server.request.duration`.
pub const LATENCY_BOUNDS: [f64; 14] =
    [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

const REQUESTS: &str = "tidegate_requests_total";
const FAILURES: &str = "tidegate_request_failures_total";
const DURATION: &str = "tidegate_request_duration_seconds";
const IN_FLIGHT: &str = "tidegate_requests_in_flight";
const CONNECT_FAILURES: &str = "tidegate_upstream_connect_failures_total";
const UNSERVED: &str = "tidegate_unserved_requests_total";
const LOCAL_REPLIES: &str = "tidegate_local_replies_total";
const HANDSHAKE_FAILURES: &str = "tidegate_tls_handshake_failures_total";
const ACCEPTED: &str = "tidegate_connections_accepted_total";
const OPEN: &str = "tidegate_connections_open";
const TUNNELS: &str = "tidegate_tunnels_open";
const REFUSED: &str = "tidegate_connections_refused_total";
const RETRIES: &str = "tidegate_retries_total";
const SHIELDED: &str = "tidegate_shielded_total";
const ACCEPT_ERRORS: &str = "tidegate_accept_errors_total";

const BY_BACKEND: [&str; 3] = ["service", "backend", "role"];

/// Sums the cells of all workers when it is scraped.
#[derive(Debug)]
pub struct CellsCollector {
    hub: Arc<Hub>,
    descs: Vec<Desc>,
}

impl CellsCollector {
    /// A collector over the workers' counts.
    pub fn new(hub: Arc<Hub>) -> Self {
        let desc = |(name, help, labels): (&str, &str, &[&str])| {
            let labels = labels.iter().map(|l| (*l).to_owned()).collect();
            Desc::new(name.to_owned(), help.to_owned(), labels, Default::default())
                .expect("names and labels are constants in Prometheus' form")
        };
        let with_status = ["service", "backend", "role", "status"];
        let descs = [
            (
                REQUESTS,
                "Attempts at a backend that have ended, by status class or by what happened instead.",
                &with_status[..],
            ),
            (FAILURES, "Those of them that count against the backend.", &BY_BACKEND),
            (
                DURATION,
                "Time from a request's head to the end of its response, of attempts that had a response.",
                &BY_BACKEND,
            ),
            (IN_FLIGHT, "Attempts at a backend that have not ended.", &BY_BACKEND),
            (CONNECT_FAILURES, "Connections to a backend that could not be made.", &BY_BACKEND),
            (
                UNSERVED,
                "Requests that were to go to a backend none of whose endpoints could take them; no attempts.",
                &BY_BACKEND,
            ),
            (LOCAL_REPLIES, "Replies made by Tidegate itself, by reason.", &["reason"]),
            (
                HANDSHAKE_FAILURES,
                "Connections that ended before a request could come: in the TLS handshake or the PROXY header.",
                &["reason"],
            ),
            (
                RETRIES,
                "Retries of requests that had failed, by what became of them or why they were not made.",
                &["service", "result"],
            ),
            (
                SHIELDED,
                "Those of them that were for a request that the canary had failed, at stable.",
                &["service", "result"],
            ),
            (ACCEPTED, "Connections accepted, by worker.", &["worker"]),
            (OPEN, "Connections open, by worker.", &["worker"]),
            (TUNNELS, "Tunnels open, such as WebSockets, by worker.", &["worker"]),
            (
                REFUSED,
                "Connections closed at once because their client's address had too many, by worker.",
                &["worker"],
            ),
            (ACCEPT_ERRORS, "Connections that could not be accepted, by worker.", &["worker"]),
        ];
        Self { hub, descs: descs.into_iter().map(desc).collect() }
    }

    fn family(&self, name: &str, kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
        let desc = self.descs.iter().find(|d| d.fq_name == name).expect("every family is described");
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(desc.help.clone());
        family.set_field_type(kind);
        family.set_metric(metrics);
        family
    }

    fn worker_families(&self) -> Vec<MetricFamily> {
        let mut by_reason = [0; LocalReason::ALL.len()];
        let mut by_failure = [0; HandshakeFailure::ALL.len()];
        let (mut accepted, mut open, mut errors) = (Vec::new(), Vec::new(), Vec::new());
        let (mut tunnels, mut refused) = (Vec::new(), Vec::new());
        for (i, (_, cells)) in self.hub.workers().enumerate() {
            for reason in LocalReason::ALL {
                by_reason[reason as usize] += cells.local_replies(reason);
            }
            for failure in HandshakeFailure::ALL {
                by_failure[failure as usize] += cells.handshake_failures(failure);
            }
            let worker = || vec![label("worker", &i.to_string())];
            accepted.push(counter(worker(), cells.connections_accepted.get()));
            open.push(gauge(worker(), cells.connections_open.get()));
            tunnels.push(gauge(worker(), cells.tunnels_open.get()));
            refused.push(counter(worker(), cells.connections_refused.get()));
            errors.push(counter(worker(), cells.accept_errors.get()));
        }
        let replies = LocalReason::ALL
            .map(|reason| counter(vec![label("reason", reason.label())], by_reason[reason as usize]));
        let failures = HandshakeFailure::ALL
            .map(|failure| counter(vec![label("reason", failure.label())], by_failure[failure as usize]));
        vec![
            self.family(HANDSHAKE_FAILURES, MetricType::COUNTER, failures.into()),
            self.family(LOCAL_REPLIES, MetricType::COUNTER, replies.into()),
            self.family(ACCEPTED, MetricType::COUNTER, accepted),
            self.family(OPEN, MetricType::GAUGE, open),
            self.family(TUNNELS, MetricType::GAUGE, tunnels),
            self.family(REFUSED, MetricType::COUNTER, refused),
            self.family(ACCEPT_ERRORS, MetricType::COUNTER, errors),
        ]
    }
}

/// Those of each service, by result.
fn by_result(retries: &BTreeMap<ServiceName, RetryTotals>, of: fn(&RetryTotals) -> &[u64]) -> Vec<Metric> {
    let one = |(service, totals): (&ServiceName, &RetryTotals)| {
        let labels =
            |result: RetryResult| vec![label("service", service.as_str()), label("result", result.label())];
        let counts = of(totals).to_vec();
        RetryResult::ALL.map(|result| counter(labels(result), counts[result as usize]))
    };
    retries.iter().flat_map(one).collect()
}

impl Collector for CellsCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let sums = reader::read(&self.hub);
        let mut families = self.worker_families();
        // Only where there is a service that has retries: see below.
        let retries = self.hub.retries();
        if !retries.is_empty() {
            let (all, shielded) =
                (by_result(&retries, |totals| &totals.all), by_result(&retries, |totals| &totals.shielded));
            families.push(self.family(RETRIES, MetricType::COUNTER, all));
            families.push(self.family(SHIELDED, MetricType::COUNTER, shielded));
        }
        // A family without a series is an error to the encoder; before the first request there are none.
        if sums.is_empty() {
            return families;
        }
        let each = |metric: fn(Vec<LabelPair>, &Totals) -> Metric| -> Vec<Metric> {
            sums.iter().map(|(series, totals)| metric(by_backend(series), totals)).collect()
        };
        let requests = sums.iter().flat_map(|(series, totals)| {
            Outcome::ALL.map(|outcome| {
                let mut labels = by_backend(series);
                labels.push(label("status", outcome.label()));
                counter(labels, totals.outcomes[outcome.index()])
            })
        });
        families.extend([
            self.family(REQUESTS, MetricType::COUNTER, requests.collect()),
            self.family(FAILURES, MetricType::COUNTER, each(|l, t| counter(l, t.failures))),
            self.family(DURATION, MetricType::HISTOGRAM, each(|l, t| latency(l, &t.latency))),
            self.family(IN_FLIGHT, MetricType::GAUGE, each(|l, t| gauge(l, t.in_flight))),
            self.family(CONNECT_FAILURES, MetricType::COUNTER, each(|l, t| counter(l, t.connect_failures))),
            self.family(UNSERVED, MetricType::COUNTER, each(|l, t| counter(l, t.unserved))),
        ]);
        families
    }
}

fn by_backend((service, backend, role): &Series) -> Vec<LabelPair> {
    let values = [service.as_str(), backend.as_str(), role.as_str()];
    BY_BACKEND.iter().zip(values).map(|(name, value)| label(name, value)).collect()
}

pub(super) fn label(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}

fn metric(labels: Vec<LabelPair>) -> Metric {
    let mut metric = Metric::default();
    metric.set_label(labels);
    metric
}

pub(super) fn counter(labels: Vec<LabelPair>, value: u64) -> Metric {
    let mut counter = Counter::default();
    counter.set_value(value as f64);
    let mut metric = metric(labels);
    metric.set_counter(counter);
    metric
}

pub(super) fn gauge(labels: Vec<LabelPair>, value: u64) -> Metric {
    let mut gauge = Gauge::default();
    gauge.set_value(value as f64);
    let mut metric = metric(labels);
    metric.set_gauge(gauge);
    metric
}

/// The histogram at the exported bounds. A fine bucket that a bound falls into counts as above it,
/// so that a bucket's figure is never too high; it is too low by at most the requests within 2.2 %
/// below the bound.
pub(super) fn latency(labels: Vec<LabelPair>, counts: &Histogram) -> Metric {
    let mut histogram = HistogramProto::default();
    let buckets = LATENCY_BOUNDS.map(|bound| {
        let end = histogram::index(std::time::Duration::from_secs_f64(bound)).min(BUCKETS - 1);
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(bound);
        bucket.set_cumulative_count(counts.below(end));
        bucket
    });
    histogram.set_bucket(buckets.into());
    histogram.set_sample_count(counts.total());
    histogram.set_sample_sum(counts.sum_seconds());
    let mut metric = metric(labels);
    metric.set_histogram(histogram);
    metric
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prometheus::{Registry, TextEncoder};

    use super::*;
    use crate::{
        model::role::Role,
        telemetry::ledger::{Key, Part},
    };

    fn scrape(hub: &Arc<Hub>) -> String {
        let registry = Registry::new();
        registry.register(Box::new(CellsCollector::new(Arc::clone(hub)))).unwrap();
        TextEncoder::new().encode_to_string(&registry.gather()).unwrap()
    }

    #[test]
    fn a_scrape_before_the_first_request_is_well_formed() {
        assert!(scrape(&Arc::new(Hub::new(1))).contains("tidegate_connections_open{worker=\"0\"} 0"));
    }

    #[test]
    fn a_scrape_sums_what_was_counted() {
        let hub = Arc::new(Hub::new(1));
        let key = Key { service: "web".parse().unwrap(), backend: "v1".parse().unwrap() };
        let writer = hub.open_ledger(0, Arc::new([key.into()])).writer(0, Role::Stable, Part::Rest);
        for millis in [1, 7, 20_000] {
            writer.begin();
            writer.end(Outcome::Success, millis == 7, Some(Duration::from_millis(millis)));
        }
        writer.unserved();
        let text = scrape(&hub);
        for line in [
            r#"tidegate_requests_total{service="web",backend="v1",role="stable",status="2xx"} 3"#,
            r#"tidegate_requests_total{service="web",backend="v1",role="stable",status="5xx"} 0"#,
            r#"tidegate_unserved_requests_total{service="web",backend="v1",role="stable"} 1"#,
            r#"tidegate_request_failures_total{service="web",backend="v1",role="stable"} 1"#,
            r#"tidegate_request_duration_seconds_bucket{service="web",backend="v1",role="stable",le="0.005"} 1"#,
            r#"tidegate_request_duration_seconds_bucket{service="web",backend="v1",role="stable",le="0.01"} 2"#,
            r#"tidegate_request_duration_seconds_bucket{service="web",backend="v1",role="stable",le="+Inf"} 3"#,
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
