//! Which events are new to somebody who looks again and again.

use super::seen::{Event, Service};

/// What has been told of a service's events.
#[derive(Debug, Default)]
pub(super) struct News {
    /// When the last event happened that was told, and how many of that moment.
    told: Option<(u64, usize)>,
}

impl News {
    /// The events that have not been told. To begin with that is the last one alone: it says where things stand.
    pub(super) fn of<'a>(&mut self, service: &'a Service) -> Vec<&'a Event> {
        let events = &service.events;
        let new = match self.told {
            None => events.iter().rev().take(1).collect(),
            Some((at, told)) => {
                let of_that_moment = events.iter().filter(|event| event.at == at).skip(told);
                of_that_moment.chain(events.iter().filter(|event| event.at > at)).collect()
            }
        };
        let last = events.last().map_or(0, |event| event.at);
        self.told = Some((last, events.iter().filter(|event| event.at == last).count()));
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(news: &mut News, events: &[(u64, &str)]) -> String {
        let events = events
            .iter()
            .map(|&(at, what)| Event { at, what: what.to_owned(), by: None, reason: None })
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
        // Two in one moment, and one that has been forgotten there.
        assert_eq!(told(&mut news, &[(2, "b"), (2, "c"), (3, "d")]), "cd");
        assert_eq!(told(&mut News::default(), &[]), "");
        let mut quiet = News::default();
        assert_eq!(told(&mut quiet, &[]), "");
        assert_eq!(told(&mut quiet, &[(1, "a"), (1, "b")]), "ab");
    }
}
