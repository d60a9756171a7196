//! What Prometheus would read.

use std::{collections::BTreeSet, net::SocketAddr};

use super::client::exchange;

/// One line of a scrape.
#[derive(Debug, Clone, PartialEq)]
struct Sample {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

/// A scrape, parsed.
#[derive(Debug, Clone)]
pub struct Scrape(Vec<Sample>);

impl Scrape {
    /// Scrapes an admin address.
    #[track_caller]
    pub fn of(admin: SocketAddr) -> Self {
        let response = exchange(admin, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert_eq!(response.status, 200);
        let text = response.text();
        Self(text.lines().filter(|line| !line.starts_with('#')).map(parse).collect())
    }

    fn matching<'s>(
        &'s self,
        name: &'s str,
        labels: &'s [(&str, &str)],
    ) -> impl Iterator<Item = &'s Sample> + 's {
        let has = |sample: &Sample, (label, value): &(&str, &str)| {
            sample.labels.iter().any(|(l, v)| l == label && v == value)
        };
        self.0.iter().filter(move |s| s.name == name && labels.iter().all(|wanted| has(s, wanted)))
    }

    /// The sum over all series of this name that have these labels; 0 if there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.matching(name, labels).map(|sample| sample.value).sum()
    }

    /// Which series there are.
    pub fn series(&self) -> BTreeSet<(&str, &[(String, String)])> {
        self.0.iter().map(|sample| (sample.name.as_str(), sample.labels.as_slice())).collect()
    }

    /// Fails, and shows what comes near, unless the sum is `wanted`.
    #[track_caller]
    pub fn expect(&self, name: &str, labels: &[(&str, &str)], wanted: f64) {
        let sum = self.sum(name, labels);
        let near: Vec<_> = self.0.iter().filter(|s| s.name == name && s.value != 0.0).collect();
        assert!(sum == wanted, "{name} {labels:?} is {sum}, not {wanted}; there are: {near:#?}");
    }
}

fn parse(line: &str) -> Sample {
    let (series, value) = line.rsplit_once(' ').expect("a value at the end of the line");
    let (name, labels) = series.split_once('{').unwrap_or((series, ""));
    let labels = labels.trim_end_matches('}').split("\",").filter(|label| !label.is_empty());
    let labels = labels.map(|label| {
        let (label, value) = label.split_once("=\"").expect("a label's value in quotes");
        (label.to_owned(), value.trim_end_matches('"').to_owned())
    });
    Sample { name: name.to_owned(), labels: labels.collect(), value: value.parse().unwrap() }
}
