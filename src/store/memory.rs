//! A history that ends with the process.

use std::collections::{BTreeMap, VecDeque};

use super::{
    history::Line,
    record::{Entry, Numbered},
    sealed,
};
use crate::model::name::ServiceName;

/// Entries that are kept of each service.
const MOST: usize = 1000;

/// What has happened to each service.
#[derive(Debug, Default)]
pub(super) struct Memory(BTreeMap<ServiceName, VecDeque<Line>>);

impl Memory {
    pub(super) fn add(&mut self, service: &ServiceName, entries: &[Entry]) {
        let history = self.0.entry(service.clone()).or_default();
        for entry in entries {
            let seq = history.back().map_or(1, |line| line.brief.seq + 1);
            let body = sealed::raw(&Numbered { seq, entry });
            let brief = serde_json::from_str(body.get()).expect("an entry says what is asked of it");
            history.push_back(Line { brief, body });
            if history.len() > MOST {
                history.pop_front();
            }
        }
    }

    pub(super) fn read(&self, service: &ServiceName, before: u64, limit: usize) -> Vec<Line> {
        let history = self.0.get(service).into_iter().flatten().rev();
        history.filter(|line| line.brief.seq < before).take(limit).cloned().collect()
    }
}
