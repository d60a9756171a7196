//! The histogram against a sorted list: two bytes of a quantile's level, then latencies in
//! nanoseconds, eight bytes each.

#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use tidegate::model::histogram::{BUCKETS, Histogram, index, upper_edge};

fuzz_target!(|data: &[u8]| {
    let Some((level, rest)) = data.split_first_chunk::<2>() else { return };
    let level = f64::from(u16::from_le_bytes(*level)) / f64::from(u16::MAX);
    let (latencies, _) = rest.as_chunks::<8>();
    let mut latencies: Vec<_> =
        latencies.iter().map(|bytes| Duration::from_nanos(u64::from_le_bytes(*bytes))).collect();
    latencies.sort_unstable();

    let mut histogram = Histogram::default();
    for latency in &latencies {
        histogram.record(*latency);
        let bucket = index(*latency);
        // An edge is rounded to the nanosecond.
        let rounding = Duration::from_nanos(1);
        assert!(*latency < upper_edge(bucket) + rounding || bucket == BUCKETS - 1);
        assert!(bucket == 0 || *latency + rounding >= upper_edge(bucket - 1));
    }
    assert_eq!(histogram.total(), latencies.len() as u64);
    assert_eq!(histogram.since(&histogram).total(), 0);
    assert_eq!(histogram.above(0), latencies.iter().filter(|latency| latency.as_micros() > 0).count() as u64);
    let rank = (level * latencies.len() as f64).ceil() as usize;
    let exact = latencies.get(rank.max(1) - 1);
    assert_eq!(histogram.quantile(level), exact.map(|latency| upper_edge(index(*latency))));
});
