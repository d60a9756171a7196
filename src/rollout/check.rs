//! Checks of what Tidegate does not see itself: memory, restarts, a business metric. Somebody else measures
//! (Prometheus, a service that answers with JSON); here is what their numbers have to be, and what follows.
//!
//! What is measured elsewhere is minutes old, sampled, and of no known distribution, so it says nothing with a
//! known probability of being wrong, and is no part of the evidence: a check is a limit. One that is broken
//! several times in a row rolls back. One whose provider does not answer is inconclusive: the rollout does
//! not go on without it, and it rolls nothing back.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    analysis::verdict::{Arms, Decision, Reason, Stage, Verdict},
    model::{
        name::ServiceName,
        role::{Role, Roles},
        template::Template,
        time::Timestamp,
        units::format_duration,
    },
};

/// Where a check's numbers come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// An instant query of Prometheus, or of whatever speaks its API.
    Prometheus {
        /// Its URL, without `/api/v1`.
        address: String,
        /// The query.
        query: Template,
    },
    /// A number in the JSON that a GET answers.
    Http {
        /// What is asked for.
        url: Template,
        /// Where the number is (RFC 6901).
        json_pointer: String,
    },
}

impl Source {
    /// Whether it is spoken to with TLS.
    pub fn is_https(&self) -> bool {
        let url = match self {
            Self::Prometheus { address, .. } => address,
            Self::Http { url, .. } => url.beginning(),
        };
        url.starts_with("https://")
    }

    /// Whether it is asked for another number for each role.
    pub fn tells_roles_apart(&self) -> bool {
        let (Self::Prometheus { query: asked, .. } | Self::Http { url: asked, .. }) = self;
        asked.names().any(|name| name != "service")
    }
}

/// The names that may stand in what is asked.
pub const NAMES: [&str; 3] = ["backend", "role", "service"];

/// Whose rollout a check is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// The service.
    pub service: ServiceName,
    /// The roles with which the rollout began.
    pub roles: Roles,
}

impl Subject {
    /// What is asked for a role.
    pub fn asked(&self, asked: &Template, role: Role) -> String {
        asked.render(|name| match (name, role) {
            ("role", _) => role.as_str(),
            ("backend", Role::Stable) => self.roles.stable().as_str(),
            ("backend", Role::Canary) => self.roles.canary().map_or("", |canary| canary.as_str()),
            _ => self.service.as_str(),
        })
    }
}

/// What a check's numbers have to be.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// The least that the canary's number may be.
    pub min: Option<f64>,
    /// The most.
    pub max: Option<f64>,
    /// The least that it may be as a multiple of stable's.
    pub min_ratio: Option<f64>,
    /// The most.
    pub max_ratio: Option<f64>,
    /// Times in a row that a limit is broken until the check fails (default 3).
    pub failure_threshold: u32,
    /// What it means if there is no number (default: nothing can be concluded).
    pub no_data: NoData,
    /// The age at which a number says nothing any more (default 5 min, as in Prometheus).
    pub max_age: Duration,
}

/// What it means if there is no number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NoData {
    /// Nothing can be concluded.
    #[default]
    Inconclusive,
    /// All is well.
    Pass,
    /// As much as a limit that is broken.
    Fail,
}

impl Rule {
    /// Whether stable's number is needed.
    pub fn compares(&self) -> bool {
        self.min_ratio.is_some() || self.max_ratio.is_some()
    }

    /// The limit that a number breaks, in words, if it breaks one.
    fn broken(&self, Arms { stable, canary }: Arms<Option<f64>>) -> Option<String> {
        let canary = canary?;
        let below = |limit: f64| (canary < limit).then(|| format!("under {}", figure(limit)));
        let above = |limit: f64| (canary > limit).then(|| format!("over {}", figure(limit)));
        let of_stable = |ratio: f64, said: String| {
            let stable = stable.map(figure).unwrap_or_default();
            format!("{said}, {} times stable's {stable}", figure(ratio))
        };
        let (min, max) = (self.min.and_then(below), self.max.and_then(above));
        let ratio = |ratio: f64, breaks: &dyn Fn(f64) -> Option<String>| {
            breaks(ratio * stable?).map(|said| of_stable(ratio, said))
        };
        let min_ratio = || self.min_ratio.and_then(|min| ratio(min, &below));
        let max_ratio = || self.max_ratio.and_then(|max| ratio(max, &above));
        let limit = min.or(max).or_else(min_ratio).or_else(max_ratio)?;
        Some(format!("{} is {limit}", figure(canary)))
    }

    /// Whether there is no number, of whom one is needed.
    fn lacks(&self, Arms { stable, canary }: Arms<Option<f64>>) -> bool {
        canary.is_none() || (self.compares() && stable.is_none())
    }
}

/// What measuring came to: a number of each arm where there is one, or why there is no answer.
pub type Measured = Result<Arms<Option<f64>>, String>;

/// What has been seen of a check.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Watch {
    last: Option<(Timestamp, Measured)>,
    /// Times in a row that a limit was broken. Where there is no answer nothing is known, so it counts
    /// neither way.
    failures: u32,
}

/// How a check stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// What was measured last is as it has to be.
    Passed,
    /// A limit was broken often enough.
    Failed,
    /// Nothing can be concluded now.
    Inconclusive,
}

/// How a check stands, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckStatus {
    /// The check's name.
    pub name: Arc<str>,
    /// How it stands.
    pub standing: Standing,
    /// Why, in words.
    pub why: String,
    /// Stable's number, where it is compared.
    pub stable: Option<f64>,
    /// The canary's number.
    pub canary: Option<f64>,
    /// When it was measured last, in milliseconds since the Unix epoch.
    pub measured: Option<Timestamp>,
    /// Times in a row that a limit was broken.
    pub failures: u32,
}

impl Watch {
    /// Takes in what was measured.
    pub fn take(&mut self, measured: Measured, rule: &Rule, at: Timestamp) {
        if let Ok(arms) = &measured {
            let lacks = rule.lacks(*arms);
            if rule.broken(*arms).is_some() || (lacks && rule.no_data == NoData::Fail) {
                self.failures = self.failures.saturating_add(1);
            } else if !lacks || rule.no_data == NoData::Pass {
                self.failures = 0;
            }
        }
        self.last = Some((at, measured));
    }

    /// How the check stands.
    pub fn status(&self, name: &Arc<str>, rule: &Rule, now: Timestamp) -> CheckStatus {
        let (standing, why) = self.stands(rule, now);
        let arms = self.last.as_ref().and_then(|(_, measured)| measured.clone().ok()).unwrap_or_default();
        CheckStatus {
            name: Arc::clone(name),
            standing,
            why,
            stable: arms.stable,
            canary: arms.canary,
            measured: self.last.as_ref().map(|(at, _)| *at),
            failures: self.failures,
        }
    }

    fn stands(&self, rule: &Rule, now: Timestamp) -> (Standing, String) {
        let inconclusive = |why: String| (Standing::Inconclusive, why);
        let Some((at, measured)) = &self.last else { return inconclusive("not measured yet".to_owned()) };
        let age = now.since(*at);
        let arms = match measured {
            _ if age > rule.max_age => {
                return inconclusive(format!("measured {} ago", format_duration(age)));
            }
            Err(why) => return inconclusive(why.clone()),
            Ok(arms) => *arms,
        };
        let lacks = rule.lacks(arms);
        let broken = rule
            .broken(arms)
            .or_else(|| (lacks && rule.no_data == NoData::Fail).then(|| "there is no number".to_owned()));
        match broken {
            Some(why) if self.failures >= rule.failure_threshold => (Standing::Failed, why),
            Some(why) => {
                inconclusive(format!("{why}, {} of {} times", self.failures, rule.failure_threshold))
            }
            None if lacks && rule.no_data == NoData::Inconclusive => {
                inconclusive("there is no number".to_owned())
            }
            None => (Standing::Passed, arms.canary.map_or_else(|| "no number".to_owned(), figure)),
        }
    }
}

/// Has checks their say in a verdict: one that fails rolls back; one that is inconclusive lets nothing go on.
pub fn consider(verdict: &mut Verdict, checks: &[CheckStatus]) {
    if verdict.decision == Decision::RollBack {
        return;
    }
    let first = |standing| checks.iter().find(|check| check.standing == standing);
    if let Some(CheckStatus { name, why, .. }) = first(Standing::Failed) {
        verdict.decision = Decision::RollBack;
        verdict.reason = Reason::CheckFailed { name: Arc::clone(name), why: why.clone() };
    } else if let Some(CheckStatus { name, why, .. }) = first(Standing::Inconclusive)
        && verdict.decision == Decision::Advance
        && verdict.stage != Stage::Baking
    {
        verdict.decision = Decision::Hold;
        verdict.reason = Reason::CheckInconclusive { name: Arc::clone(name), why: why.clone() };
    }
}

/// A number to four digits.
fn figure(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return value.to_string();
    }
    let digits = value.abs().log10().floor();
    if !(-4.0..12.0).contains(&digits) {
        return format!("{value:.3e}");
    }
    let scale = 10f64.powf(3.0 - digits);
    ((value * scale).round() / scale).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "memory";

    fn rule() -> Rule {
        Rule {
            min: None,
            max: Some(3.0),
            min_ratio: None,
            max_ratio: None,
            failure_threshold: 2,
            no_data: NoData::Inconclusive,
            max_age: Duration::from_secs(60),
        }
    }

    fn canary(value: f64) -> Measured {
        Ok(Arms { stable: None, canary: Some(value) })
    }

    fn nothing() -> Measured {
        Ok(Arms::default())
    }

    fn down() -> Measured {
        Err("no connection".to_owned())
    }

    /// How a check stands after these, a second apart.
    fn stands(rule: &Rule, measured: impl IntoIterator<Item = Measured>) -> (Standing, String) {
        let (mut watch, mut now) = (Watch::default(), Timestamp::from_millis(1_000));
        for measured in measured {
            watch.take(measured, rule, now);
            now = now.plus(Duration::from_secs(1));
        }
        let status = watch.status(&NAME.into(), rule, now);
        (status.standing, status.why)
    }

    #[test]
    fn a_limit_has_to_be_broken_in_a_row() {
        let stands = |measured: &[Measured]| stands(&rule(), measured.iter().cloned());
        assert_eq!(stands(&[canary(3.0)]), (Standing::Passed, "3".to_owned()));
        let once = (Standing::Inconclusive, "3.5 is over 3, 1 of 2 times".to_owned());
        assert_eq!(stands(&[canary(3.5)]), once);
        assert_eq!(stands(&[canary(4.0), canary(1.0), canary(3.5)]), once);
        assert_eq!(stands(&[canary(4.0), canary(3.5)]), (Standing::Failed, "3.5 is over 3".to_owned()));
        // Nobody answered in between, which says nothing.
        assert_eq!(stands(&[canary(4.0), down(), nothing(), canary(3.5)]).0, Standing::Failed);
    }

    #[test]
    fn a_provider_that_is_down_makes_it_inconclusive_whatever_was_before() {
        let stands = |measured: &[Measured]| stands(&rule(), measured.iter().cloned());
        let inconclusive = (Standing::Inconclusive, "no connection".to_owned());
        for before in [vec![canary(1.0)], vec![canary(9.0); 5], vec![]] {
            assert_eq!(stands(&[before.clone(), vec![down()]].concat()), inconclusive, "{before:?}");
        }
        assert_eq!(stands(&[]), (Standing::Inconclusive, "not measured yet".to_owned()));
    }

    #[test]
    fn no_number_means_what_is_written() {
        let with = |no_data| Rule { no_data, ..rule() };
        let twice = |no_data| stands(&with(no_data), [nothing(), nothing()]);
        let missing = "there is no number".to_owned();
        assert_eq!(twice(NoData::Inconclusive), (Standing::Inconclusive, missing.clone()));
        assert_eq!(twice(NoData::Pass), (Standing::Passed, "no number".to_owned()));
        assert_eq!(twice(NoData::Fail), (Standing::Failed, missing));
        assert_eq!(
            stands(&with(NoData::Pass), [canary(4.0), nothing(), canary(4.0)]).0,
            Standing::Inconclusive
        );
    }

    #[test]
    fn a_number_grows_old() {
        let mut watch = Watch::default();
        watch.take(canary(1.0), &rule(), Timestamp::from_millis(0));
        let at = |seconds: u64| watch.status(&NAME.into(), &rule(), Timestamp::from_millis(seconds * 1_000));
        assert_eq!(at(60).standing, Standing::Passed);
        assert_eq!((at(61).standing, &*at(61).why), (Standing::Inconclusive, "measured 1m 1s ago"));
    }

    #[test]
    fn the_canary_is_compared_with_stable() {
        let rule =
            Rule { max: None, max_ratio: Some(1.2), min_ratio: Some(0.5), failure_threshold: 1, ..rule() };
        let both = |stable: f64, canary: f64| [Ok(Arms { stable: Some(stable), canary: Some(canary) })];
        assert!(rule.compares());
        assert_eq!(stands(&rule, both(10.0, 12.0)).0, Standing::Passed);
        let high = (Standing::Failed, "13 is over 12, 1.2 times stable's 10".to_owned());
        assert_eq!(stands(&rule, both(10.0, 13.0)), high);
        let low = (Standing::Failed, "4 is under 5, 0.5 times stable's 10".to_owned());
        assert_eq!(stands(&rule, both(10.0, 4.0)), low);
        assert_eq!(
            stands(&rule, [canary(1.0)]).0,
            Standing::Inconclusive,
            "there is nothing to compare with"
        );
    }

    #[test]
    fn numbers_are_written_as_people_would() {
        let written = [0.0, 1.0 / 3.0, 1_500_000_000.0, 1e15, 12.345_6, f64::INFINITY].map(figure);
        assert_eq!(written, ["0", "0.3333", "1500000000", "1.000e15", "12.35", "inf"]);
    }

    #[test]
    fn templates_speak_of_a_role() {
        let subject = Subject {
            service: "web".parse().unwrap(),
            roles: Roles::new("v1".parse().unwrap(), Some("v2".parse().unwrap())).unwrap(),
        };
        let template = |text| Template::new(text, &NAMES).unwrap();
        let query = template(r#"sum(x{pod=~"{{backend}}-.*",s="{{ service }}"}) # {{ role }}"#);
        assert_eq!(subject.asked(&query, Role::Canary), r#"sum(x{pod=~"v2-.*",s="web"}) # canary"#);
        assert_eq!(subject.asked(&query, Role::Stable), r#"sum(x{pod=~"v1-.*",s="web"}) # stable"#);
        let tells_apart =
            |text| Source::Prometheus { address: String::new(), query: template(text) }.tells_roles_apart();
        assert!(["{{ role }}", "x{v=\"{{backend}}\"}"].into_iter().all(tells_apart));
        assert!(!["up", "{{ service }}", "x{a=\"b\"}"].into_iter().any(tells_apart));
    }
}
