//! What is to be told to one who has been told enough for now. Not all of it will be, but the last word on each
//! service: how it stands, if that was to be told, and the newest of what has happened since.
//!
//! So there are at most two of a service, however much happens. What is replaced passes its place in the line on;
//! otherwise a service to which something happens all the time would never have its turn.

use std::collections::VecDeque;

use super::happening::Happening;
use crate::rollout::topic::Topic;

/// What waits, in the order in which it is told.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    /// How services stand; these go first.
    outcomes: VecDeque<Waiting>,
    /// What has happened since.
    others: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    happening: Happening,
    /// How many of its service were left out before it.
    left_out: usize,
}

impl Backlog {
    /// Lets one more wait. Returns how many are left out for it.
    pub(super) fn put(&mut self, happening: Happening) -> usize {
        if !happening.event.is_some_and(Topic::is_outcome) {
            return put(&mut self.others, happening, 0);
        }
        let older = self.others.iter().position(|waiting| waiting.happening.service == happening.service);
        let older = older.and_then(|at| self.others.remove(at));
        let (instead, before) = older.map_or((0, 0), |older| (1, older.left_out + 1));
        instead + put(&mut self.outcomes, happening, before)
    }

    /// What is told next, and how many of its service were left out before it.
    pub(super) fn next(&mut self) -> Option<(Happening, usize)> {
        let next = self.outcomes.pop_front().or_else(|| self.others.pop_front());
        next.map(|Waiting { happening, left_out }| (happening, left_out))
    }
}

/// Puts it in the place of the one of its service, or at the end; so many were left out already. Returns how many more
/// are now.
fn put(line: &mut VecDeque<Waiting>, happening: Happening, left_out: usize) -> usize {
    match line.iter_mut().find(|waiting| waiting.happening.service == happening.service) {
        Some(waiting) => {
            let left_out = waiting.left_out + 1 + left_out;
            *waiting = Waiting { happening, left_out };
            1
        }
        None => {
            line.push_back(Waiting { happening, left_out });
            0
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{time::Timestamp, weight::Weight};

    fn of(service: &str, event: Topic, at: u64) -> Happening {
        Happening {
            event: Some(event),
            service: service.parse().unwrap(),
            rollout: None,
            stable: "v1".parse().unwrap(),
            canary: None,
            backend: None,
            phase: "idle",
            step: None,
            steps: 0,
            weight: Weight::ZERO,
            rollback_until: None,
            time: Timestamp::from_millis(at),
            message: String::new(),
            by: None,
            reason: None,
        }
    }

    /// What is told of these, with how much was left out before each.
    fn told(happenings: &[(&str, Topic)]) -> Vec<(String, Topic, usize)> {
        let mut backlog = Backlog::default();
        let left_out: usize =
            happenings.iter().map(|(service, event)| backlog.put(of(service, *event, 0))).sum();
        let next =
            || backlog.next().map(|(told, left)| (told.service.to_string(), told.event.unwrap(), left));
        let told: Vec<_> = std::iter::from_fn(next).collect();
        assert_eq!(told.len() + left_out, happenings.len());
        assert_eq!(told.iter().map(|(.., left_out)| left_out).sum::<usize>(), left_out);
        told
    }

    #[test]
    fn no_service_takes_anothers_last_word() {
        use Topic::{Drained, Paused, Resumed, RolledBack, RollingBack, Started, Stepped, Succeeded};
        let expect = |happenings: &[(&str, Topic)], expected: &[(&str, Topic, usize)]| {
            let expected: Vec<_> = expected.iter().map(|(name, t, n)| ((*name).to_owned(), *t, *n)).collect();
            assert_eq!(told(happenings), expected);
        };
        expect(&[], &[]);
        expect(&[("a", RolledBack), ("b", Stepped)], &[("a", RolledBack, 0), ("b", Stepped, 0)]);
        // An end goes before a step that was there first.
        expect(&[("b", Stepped), ("a", RolledBack)], &[("a", RolledBack, 0), ("b", Stepped, 0)]);
        expect(
            &[("a", Started), ("a", Stepped), ("a", RollingBack), ("a", RolledBack), ("a", Drained)],
            &[("a", RolledBack, 3), ("a", Drained, 0)],
        );
        // The next rollout's steps do not hide how the last one ended.
        expect(
            &[("a", RolledBack), ("a", Started), ("a", Stepped)],
            &[("a", RolledBack, 0), ("a", Stepped, 1)],
        );
        expect(&[("a", Paused), ("a", Resumed), ("a", Succeeded)], &[("a", Succeeded, 2)]);
        // Whoever was there first stays first.
        expect(&[("a", Stepped), ("b", Stepped), ("a", Stepped)], &[("a", Stepped, 1), ("b", Stepped, 0)]);
    }

    proptest! {
        #[test]
        fn two_of_each_service_wait_and_the_newest_is_one_of_them(
            happenings in prop::collection::vec((0_usize..3, 0..Topic::ALL.len(), any::<bool>()), 1..50)
        ) {
            const SERVICES: [&str; 3] = ["a", "b", "c"];
            let mut backlog = Backlog::default();
            let mut newest = [None; 3];
            let mut last_told = [0; 3];
            let told_in_order = |told: &Happening, last_told: &mut [u64; 3]| {
                let of = SERVICES.iter().position(|name| *name == told.service.as_str()).unwrap();
                assert!(last_told[of] < told.time.as_millis(), "{} is told in order", told.service);
                last_told[of] = told.time.as_millis();
            };
            for (at, (service, event, tells)) in (1..).zip(happenings) {
                backlog.put(of(SERVICES[service], Topic::ALL[event].1, at));
                newest[service] = Some(at);
                for name in SERVICES {
                    let lines = backlog.outcomes.iter().chain(&backlog.others);
                    prop_assert!(lines.filter(|waiting| waiting.happening.service.as_str() == name).count() <= 2);
                }
                if tells {
                    told_in_order(&backlog.next().unwrap().0, &mut last_told);
                }
            }
            while let Some((told, _)) = backlog.next() {
                told_in_order(&told, &mut last_told);
            }
            prop_assert_eq!(last_told.map(|at| Some(at).filter(|at| *at > 0)), newest);
        }
    }
}
