//! The same inputs as an independent implementation in another language, and its outputs.

use serde::Deserialize;

use crate::{
    analysis::{
        dispersion::Dispersion,
        error_rate::{Comparison, Margin, Sample},
        guard::Guard,
        latency::{HALF_LIFE, LEAST, Latency, Quantile},
        mixture::TICKS_PER_START,
        verdict::Arms,
    },
    model::histogram::Histogram,
};

#[derive(Deserialize)]
struct Vectors {
    comparison: Vec<ComparisonVector>,
    latency: Vec<LatencyVector>,
}

#[derive(Deserialize)]
struct ComparisonVector {
    name: String,
    rho: f64,
    delta: f64,
    better: Tolerance,
    phi: f64,
    guard_limit: f64,
    restart_every: u64,
    planned: u64,
    ticks_ns_nc_xs_xc: Vec<[u64; 4]>,
    log_e: Vec<ComparisonOutput>,
}

#[derive(Deserialize)]
struct Tolerance {
    rho: f64,
    delta: f64,
}

#[derive(Deserialize)]
struct ComparisonOutput {
    tick: usize,
    worse: f64,
    better: f64,
    guard: f64,
}

#[derive(Deserialize)]
struct LatencyVector {
    name: String,
    level: f64,
    margin: f64,
    half_life: f64,
    least: f64,
    restart_every: u64,
    planned: u64,
    ticks_stable_canary_buckets: Vec<[Vec<(usize, u64)>; 2]>,
    log_e: Vec<LatencyOutput>,
}

#[derive(Deserialize)]
struct LatencyOutput {
    tick: usize,
    edge: Option<usize>,
    log_e: f64,
}

fn vectors() -> Vectors {
    let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/analysis/vectors.json"));
    serde_json::from_str(text).unwrap()
}

fn check(what: &str, name: &str, tick: usize, (ours, theirs): (f64, f64)) {
    // What is next to nothing is a difference of numbers around 1, and has no more digits than these leave.
    let off = (ours - theirs).abs() / theirs.abs().max(1e-4);
    assert!(off <= 1e-9, "{name}, tick {tick}: {what} is {ours}, not {theirs}");
}

#[test]
fn failure_rates_and_limits_agree_with_the_reference() {
    let vectors = vectors().comparison;
    assert_eq!(vectors.len(), 64);
    for v in vectors {
        assert_eq!(v.restart_every, TICKS_PER_START);
        let margin = Margin { ratio: v.rho, absolute: v.delta };
        let better = Margin { ratio: v.better.rho, absolute: v.better.delta };
        let mut worse = Comparison::worse(margin, v.planned);
        let mut better = Comparison::better(better);
        let mut guard = Guard::new(v.guard_limit, v.planned);
        let mut outputs = v.log_e.iter().peekable();
        for (tick, [ns, nc, xs, xc]) in v.ticks_ns_nc_xs_xc.into_iter().enumerate() {
            let stable = Sample { requests: ns, failures: xs };
            let canary = Sample { requests: nc, failures: xc };
            worse.update(Arms { stable, canary }, v.phi);
            better.update(Arms { stable, canary }, v.phi);
            guard.update(canary, 1.0);
            if let Some(output) = outputs.next_if(|output| output.tick == tick) {
                check("worse", &v.name, tick, (worse.log_e(), output.worse));
                check("better", &v.name, tick, (better.log_e(), output.better));
                check("guard", &v.name, tick, (guard.log_e(), output.guard));
            }
        }
        assert!(outputs.next().is_none(), "{}: an output was left out", v.name);
    }
}

#[test]
fn latencies_agree_with_the_reference() {
    let vectors = vectors().latency;
    assert_eq!(vectors.len(), 8);
    for v in vectors {
        assert_eq!((v.restart_every, v.half_life, v.least), (TICKS_PER_START, HALF_LIFE, LEAST));
        let quantile = if v.level == 0.5 { Quantile::P50 } else { Quantile::P99 };
        assert_eq!(quantile.level(), v.level);
        let mut latency = Latency::new(v.margin, v.planned, Dispersion::Known(1.0));
        let mut outputs = v.log_e.iter().peekable();
        for (tick, arms) in v.ticks_stable_canary_buckets.iter().enumerate() {
            let [stable, canary] = arms.each_ref().map(|buckets| {
                let mut histogram = Histogram::default();
                buckets.iter().for_each(|(index, count)| histogram.add(*index, *count));
                histogram
            });
            latency.update(Arms { stable: &stable, canary: &canary }, Arms::default(), None);
            if let Some(output) = outputs.next_if(|output| output.tick == tick) {
                assert_eq!(latency.edge(quantile), output.edge, "{}, tick {tick}", v.name);
                check("latency", &v.name, tick, (latency.log_e(quantile), output.log_e));
            }
        }
        assert!(outputs.next().is_none(), "{}: an output was left out", v.name);
    }
}
