//! Steps that nobody has to write: by a rule.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{MAX_STEPS, Step};
use crate::model::weight::Weight;

/// A rule that makes steps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// How each weight follows from the one before it.
    pub rise: Rise,
    /// The first weight.
    pub from: Weight,
    /// The last weight; the rule is cut off there.
    pub to: Weight,
    /// Shortest time at each.
    pub hold: Duration,
}

/// How weights rise.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rise {
    /// By so much from step to step.
    Linear(Weight),
    /// To so many times as much; over 1.
    Exponential(f64),
}

/// Why a rule makes no steps.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum ScheduleFault {
    /// It begins with nothing.
    #[error("a schedule cannot begin at 0, from which nothing rises")]
    FromZero,
    /// It ends before it begins.
    #[error("a schedule from {from} to {to} does not rise")]
    Falling {
        /// Its first weight.
        from: Weight,
        /// Its last weight.
        to: Weight,
    },
    /// Its steps are all the same.
    #[error("a schedule must rise from step to step")]
    Flat,
    /// More steps than a plan may have.
    #[error("the schedule has over {MAX_STEPS} steps")]
    TooMany,
}

impl Schedule {
    /// The steps: `from` first, `to` last, weights rising by at least a hundredth of a percent.
    ///
    /// # Errors
    /// When the rule makes none, or too many.
    pub fn steps(&self) -> Result<Vec<Step>, ScheduleFault> {
        let Self { rise, from, to, hold } = *self;
        match rise {
            _ if from == Weight::ZERO => return Err(ScheduleFault::FromZero),
            _ if to < from => return Err(ScheduleFault::Falling { from, to }),
            Rise::Linear(by) if by == Weight::ZERO => return Err(ScheduleFault::Flat),
            Rise::Exponential(factor) if factor.is_nan() || factor <= 1.0 => return Err(ScheduleFault::Flat),
            Rise::Linear(_) | Rise::Exponential(_) => {}
        }
        let mut steps = Vec::new();
        let mut weight = from;
        while weight < to {
            if steps.len() == MAX_STEPS {
                return Err(ScheduleFault::TooMany);
            }
            steps.push(Step::new(weight, hold));
            weight = rise.after(weight).min(to);
        }
        steps.push(Step::new(to, hold));
        if steps.len() > MAX_STEPS { Err(ScheduleFault::TooMany) } else { Ok(steps) }
    }
}

impl Rise {
    /// The weight that follows, at most everything.
    fn after(self, weight: Weight) -> Weight {
        let now = weight.hundredths();
        let next = match self {
            Self::Linear(by) => now.saturating_add(by.hundredths()),
            // Rounding down may leave it where it is.
            Self::Exponential(factor) => ((f64::from(now) * factor) as u16).max(now.saturating_add(1)),
        };
        Weight::from_hundredths(next).unwrap_or(Weight::FULL)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn percents(rise: Rise, from: f64, to: f64) -> Result<Vec<f64>, ScheduleFault> {
        let weight = |percent| Weight::from_percent(percent).unwrap();
        let schedule = Schedule { rise, from: weight(from), to: weight(to), hold: Duration::ZERO };
        Ok(schedule.steps()?.iter().map(|step| step.weight.percent()).collect())
    }

    #[test]
    fn weights_rise_by_the_rule_and_end_where_it_says() {
        let by = |percent| Rise::Linear(Weight::from_percent(percent).unwrap());
        assert_eq!(percents(by(10.0), 10.0, 50.0).unwrap(), [10.0, 20.0, 30.0, 40.0, 50.0]);
        assert_eq!(percents(by(30.0), 20.0, 60.0).unwrap(), [20.0, 50.0, 60.0]);
        assert_eq!(
            percents(Rise::Exponential(2.0), 1.0, 50.0).unwrap(),
            [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 50.0]
        );
        assert_eq!(percents(Rise::Exponential(1.5), 5.0, 5.0).unwrap(), [5.0]);
    }

    #[test]
    fn a_rule_that_makes_no_plan_says_why() {
        let flat = Rise::Linear(Weight::ZERO);
        assert_eq!(percents(flat, 1.0, 2.0), Err(ScheduleFault::Flat));
        assert_eq!(percents(Rise::Exponential(f64::NAN), 1.0, 2.0), Err(ScheduleFault::Flat));
        assert_eq!(percents(Rise::Exponential(2.0), 0.0, 2.0), Err(ScheduleFault::FromZero));
        assert!(matches!(percents(Rise::Exponential(2.0), 3.0, 2.0), Err(ScheduleFault::Falling { .. })));
        assert_eq!(percents(Rise::Exponential(1.001), 1.0, 100.0), Err(ScheduleFault::TooMany));
    }

    proptest! {
        #[test]
        fn whatever_the_rule_its_steps_are_a_plan(
            from in 1u16..=10_000, to in 1u16..=10_000, factor in 0.5f64..100.0, by in 0u16..=10_000, linear: bool,
        ) {
            let weight = |hundredths| Weight::from_hundredths(hundredths).unwrap();
            let rise = if linear { Rise::Linear(weight(by)) } else { Rise::Exponential(factor) };
            let schedule = Schedule { rise, from: weight(from), to: weight(to), hold: Duration::ZERO };
            if let Ok(steps) = schedule.steps() {
                let draft = super::super::Draft { steps, ..Default::default() };
                prop_assert!(super::super::Plan::new(draft).is_ok());
            }
        }
    }
}
