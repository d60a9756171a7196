//! Figures: times that were taken here, and histograms that Tidegate has of its own.

use std::time::Duration;

use anyhow::{Context as _, ensure};

/// Times of one kind of thing.
#[derive(Default)]
pub(crate) struct Times(Vec<Duration>);

impl Extend<Duration> for Times {
    fn extend<I: IntoIterator<Item = Duration>>(&mut self, times: I) {
        self.0.extend(times);
    }
}

impl From<Vec<Duration>> for Times {
    fn from(mut times: Vec<Duration>) -> Self {
        times.sort();
        Self(times)
    }
}

impl Times {
    pub(crate) fn push(&mut self, time: Duration) {
        self.0.push(time);
    }

    /// Says what they came to, and returns the 99th percentile and the worst.
    pub(crate) fn say(mut self, what: &str) -> anyhow::Result<[Duration; 2]> {
        self.0.sort();
        let last = self.0.len().checked_sub(1).with_context(|| format!("there is no figure: {what}"))?;
        let [median, most, worst] = [0.5, 0.99, 1.0].map(|share| self.0[(last as f64 * share) as usize]);
        println!("{what}, {} times: median {median:.1?}, 99 % {most:.1?}, worst {worst:.1?}", last + 1);
        Ok([most, worst])
    }
}

/// A histogram without labels, as a scrape has it: bounds in seconds, and how many were within each.
pub(crate) struct Buckets(Vec<(f64, u64)>);

impl Buckets {
    pub(crate) fn of(scrape: &str, name: &str) -> anyhow::Result<Self> {
        let start = format!("{name}_bucket{{le=\"");
        let lines = scrape.lines().filter_map(|line| line.strip_prefix(&start)?.split_once("\"} "));
        let bucket = |(bound, count): (&str, &str)| anyhow::Ok((bound.parse()?, count.parse()?));
        let buckets = lines.map(bucket).collect::<anyhow::Result<Vec<_>>>()?;
        ensure!(!buckets.is_empty(), "the scrape has no {name}");
        Ok(Self(buckets))
    }

    /// Says what has come since `before`, and returns a time within which at least 99 % were.
    pub(crate) fn say(&self, before: &Self, what: &str) -> anyhow::Result<f64> {
        let since = |at: usize| self.0[at].1 - before.0[at].1;
        let all = since(self.0.len() - 1);
        ensure!(all > 0, "there is no figure: {what}");
        let within = |share: f64| {
            let wanted = (all as f64 * share).ceil() as u64;
            (0..self.0.len()).find(|at| since(*at) >= wanted).map_or(f64::INFINITY, |at| self.0[at].0)
        };
        let [median, most, worst] = [0.5, 0.99, 1.0].map(within);
        println!("{what}, {all} times: median within {median} s, 99 % {most} s, worst {worst} s");
        Ok(most)
    }
}
