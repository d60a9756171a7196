//! What is known of stable when a rollout begins: how failures come together, how many are usual, how many
//! requests there are and how long they take.
//!
//! It is learned from every tick without a canary, so it depends on more than anybody writes down. A
//! recording of a rollout therefore begins with it, and goes on from there bit for bit.

use serde::{Deserialize, Serialize};

use super::{
    Analysis,
    dispersion::Dispersion,
    harm::Load,
    incident::Usual,
    latency,
    users::{Judge, Known},
};

/// What is known of stable before the canary gets anything.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Learned {
    dispersion: Dispersion,
    usual: Usual,
    #[serde(default, skip_serializing_if = "Load::is_unknown")]
    load: Load,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    over_max_p99: Option<Dispersion>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    latency: Option<latency::Learned>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    users: Option<Judge>,
}

impl Analysis {
    /// What is known of stable so far.
    pub fn learned(&self) -> Learned {
        Learned {
            dispersion: self.dispersion,
            over_max_p99: self.over_max_p99,
            usual: self.tally.window.usual,
            load: self.tally.load,
            latency: self.latency.as_ref().map(latency::Latency::learned),
            users: self.users.as_ref().map(|known| known.judge),
        }
    }

    /// The same, with that known of stable. What the settings say comes first.
    #[must_use]
    pub fn knowing(mut self, learned: &Learned) -> Self {
        let Learned { dispersion, usual, load, over_max_p99, latency, users } = learned;
        self.dispersion.take_over(*dispersion);
        if let (Some(mine), Some(learned)) = (&mut self.over_max_p99, over_max_p99) {
            mine.take_over(*learned);
        }
        (self.tally.window.usual, self.tally.load) = (*usual, *load);
        if let (Some(mine), Some(learned)) = (&mut self.latency, latency) {
            mine.take_over(learned);
        }
        if let Some(learned) = users {
            let mut judge = Judge::beside(&self.dispersion);
            judge.take_over(*learned);
            self.users = Some(Box::new(Known::new(judge)));
        }
        self
    }
}
