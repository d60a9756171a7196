//! Trouble that is not the canary's alone: nothing is concluded from it, but people are told.

use super::service::ServiceTask;
use crate::{
    analysis::{
        explain::explain,
        verdict::{Scope, Verdict},
    },
    store::record::Kind,
};

/// Ticks without trouble after which it is over: what comes and goes is one incident.
const OVER: u32 = 10;

/// What people have been told of.
#[derive(Debug, Default)]
pub(super) struct Told {
    scope: Option<Scope>,
    quiet: u32,
}

/// What they have not been told of yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum News {
    Trouble,
    Over,
}

impl Told {
    fn look(&mut self, scope: Option<Scope>) -> Option<News> {
        self.quiet = if scope.is_some() { 0 } else { self.quiet.saturating_add(1) };
        match scope {
            Some(_) if scope != self.scope => {
                self.scope = scope;
                Some(News::Trouble)
            }
            None if self.quiet >= OVER && self.scope.take().is_some() => Some(News::Over),
            _ => None,
        }
    }
}

impl ServiceTask {
    /// Says when both versions come to be in trouble, or stable alone, and when that is over.
    pub(super) fn tell_of_incident(&mut self, verdict: &Verdict) {
        let what = match self.incident.look(verdict.incident.map(|incident| incident.scope)) {
            Some(News::Trouble) => format!("incident: {}", explain(verdict)),
            Some(News::Over) => "the incident is over".to_owned(),
            None => return,
        };
        self.note(Kind::Incident, what);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_told_of_once_and_what_comes_and_goes_is_one() {
        let mut told = Told::default();
        let (both, stable) = (Some(Scope::Both), Some(Scope::StableOnly));
        assert_eq!([None, both, both].map(|scope| told.look(scope)), [None, Some(News::Trouble), None]);
        assert!((1..OVER).all(|_| told.look(None).is_none()));
        assert_eq!([both, stable].map(|scope| told.look(scope)), [None, Some(News::Trouble)]);
        assert!((1..OVER).all(|_| told.look(None).is_none()));
        assert_eq!([None, None].map(|scope| told.look(scope)), [Some(News::Over), None]);
    }
}
