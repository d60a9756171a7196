//! Which events are new to somebody who looks again and again.

use super::seen::{Event, Service};

/// What has been told of a service's events.
#[derive(Debug, Default)]
pub(super) struct News {
    /// The number of the last event that was told.
    told: Option<u64>,
}

impl News {
    /// The events that have not been told. To begin with that is the last one alone: it says where things stand.
    pub(super) fn of<'a>(&mut self, service: &'a Service) -> Vec<&'a Event> {
        let events = &service.events;
        let new = match self.told {
            None => events.iter().rev().take(1).collect(),
            Some(told) => events.iter().filter(|event| event.id > told).collect(),
        };
        let last = events.last().map_or(0, |event| event.id);
        // After a restart those from before it may have lower numbers than they had.
        self.told = self.told.max(Some(last));
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(news: &mut News, events: &[(u64, &str)]) -> String {
        let events = events
            .iter()
            // As after the clock was set back.
            .map(|&(id, what)| Event {
                id,
                at: 100 - id,
                what: what.to_owned(),
                by: None,
                reason: None,
                more: serde_json::Map::new(),
            })
            .collect();
        let (name, stable) = ("web".to_owned(), "v1".to_owned());
        let service = Service {
            name,
            revision: 1,
            stable,
            canary: None,
            weight: 0.0,
            rollout: None,
            backends: Vec::new(),
            events,
        };
        news.of(&service).iter().map(|event| event.what.as_str()).collect()
    }

    #[test]
    fn each_event_is_told_once() {
        let mut news = News::default();
        assert_eq!(told(&mut news, &[(1, "a"), (2, "b")]), "b");
        assert_eq!(told(&mut news, &[(1, "a"), (2, "b")]), "");
        // One of them has been forgotten there.
        assert_eq!(told(&mut news, &[(2, "b"), (3, "c"), (4, "d")]), "cd");
        // The proxy was started anew, and numbers them as well as it can.
        assert_eq!(told(&mut news, &[(2, "c"), (3, "d"), (5, "e")]), "e");
        assert_eq!(told(&mut News::default(), &[]), "");
        let mut quiet = News::default();
        assert_eq!(told(&mut quiet, &[]), "");
        assert_eq!(told(&mut quiet, &[(1, "a"), (2, "b")]), "ab");
    }
}
