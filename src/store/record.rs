//! What is saved of a service: all that a restart needs to go on, and what has happened.

use std::{collections::BTreeMap, net::SocketAddr};

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::{
    analysis::{Analysis, attribution::Suspect, error_rate::Sample, verdict::Verdict},
    model::{name::BackendName, role::Roles, time::Timestamp, weight::Weight},
    rollout::{note::Note, phase::Phase, plan::Plan},
};

/// How traffic stands: who has which role, and what the canary gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The roles.
    #[serde(flatten)]
    pub roles: Roles,
    /// The canary's share, in percent.
    pub weight: Weight,
}

/// A service as it is saved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// When.
    pub saved: Timestamp,
    /// What the configuration said then. Where it says something else, somebody has decided anew.
    pub configured: Position,
    /// How traffic stands.
    pub position: Position,
    /// What decides which users go first.
    pub salt: u64,
    /// The rollout that runs or ran last.
    pub rollout: Option<Rollout>,
    /// Its evidence, while it runs. What another version has gathered is of use only to one that counts
    /// alike; where it cannot be read, the rest still can.
    #[serde(deserialize_with = "if_readable")]
    pub analysis: Option<Analysis>,
    /// Who of the canary's endpoints that evidence comes from.
    #[serde(default, skip_serializing_if = "Endpoints::is_empty")]
    pub endpoints: Endpoints,
}

/// What is known of the canary's endpoints in a rollout.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Endpoints {
    /// What each has done, those that are gone included.
    pub counted: BTreeMap<SocketAddr, Sample>,
    /// Which of them was to blame last.
    pub suspect: Suspect,
}

impl Endpoints {
    /// Whether there were none.
    pub fn is_empty(&self) -> bool {
        self.counted.is_empty()
    }
}

fn if_readable<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Analysis>, D::Error> {
    let value = Value::deserialize(from)?;
    Ok(serde_json::from_value(value).unwrap_or_default())
}

/// A rollout, with all that must be known to go on with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// Its id, unique within the service.
    pub id: String,
    /// When it was started.
    pub started: Timestamp,
    /// The plan with which it began.
    pub plan: Plan,
    /// The roles with which it began; a phase's exposure is relative to them.
    pub roles: Roles,
    /// Where it stands.
    pub phase: Phase,
    /// The end of the freeze in spite of which somebody wanted it to move, if anybody did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wanted_until: Option<Timestamp>,
    /// Whether it is judged by limits alone, as somebody wanted it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub guards_only: bool,
}

impl Rollout {
    /// The share of stable's requests that it gives the canary copies of.
    pub fn copies(&self) -> Weight {
        self.phase.exposure(&self.plan).copies
    }

    /// Until when the old version is kept warm for the way back, once it has succeeded; nothing where the roles are
    /// not those any more with which it did: then the canary is not the version to go back to.
    pub fn rollback_until(&self, now: &Roles) -> Option<Timestamp> {
        match self.phase {
            Phase::Succeeded { at } if self.roles.clone().swapped() == *now => {
                Some(at.plus(self.plan.rollback_window()))
            }
            _ => None,
        }
    }
}

/// Something that happened, as the history keeps it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Entry {
    /// When.
    pub at: Timestamp,
    /// What kind of thing.
    pub kind: Kind,
    /// What, as a sentence.
    pub what: String,
    /// The rollout that it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollout: Option<String>,
    /// What became of that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<Note>,
    /// Where it then stood.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// How traffic then stood.
    #[serde(flatten)]
    pub position: Position,
    /// Who wanted it, if anybody did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Why, if they said so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What was known, where evidence has called for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Box<Verdict>>,
}

/// What kind of thing has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A rollout went from one phase to another.
    Transition,
    /// The weight was set, by somebody or to keep to the budget of harm.
    Weight,
    /// The roles were swapped.
    Flip,
    /// The configuration was changed.
    Configuration,
    /// One endpoint of the canary's is to blame, and not the version.
    Endpoint,
    /// Both versions are in trouble, or stable alone, or not any more.
    Incident,
    /// Nothing is under way at a backend any more.
    Drained,
    /// The process was started anew.
    Restart,
    /// Something is the matter with the store, or is not any more.
    Store,
}

/// An entry with its number.
#[derive(Serialize)]
pub(super) struct Numbered<'a> {
    /// Counts a service's entries from 1, without gaps.
    pub(super) seq: u64,
    #[serde(flatten)]
    pub(super) entry: &'a Entry,
}

/// What is read of an entry: the rest is only passed on.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Brief {
    /// Its number.
    pub seq: u64,
    /// When.
    pub at: Timestamp,
    /// What, as a sentence.
    pub what: String,
    /// Who wanted it, if anybody did.
    #[serde(default)]
    pub by: Option<String>,
    /// Why, if they said so.
    #[serde(default)]
    pub reason: Option<String>,
    /// The rollout that it belongs to.
    #[serde(default)]
    pub rollout: Option<String>,
    /// The phase in which that then was.
    #[serde(default)]
    pub phase: Option<Stood>,
    /// Who then had which role.
    pub stable: BackendName,
    /// The one on trial.
    pub canary: Option<BackendName>,
    /// What the canary then got.
    pub weight: Weight,
}

impl Brief {
    /// How traffic then stood.
    pub fn position(&self) -> Position {
        let canary = self.canary.clone().filter(|canary| *canary != self.stable);
        let roles = Roles::new(self.stable.clone(), canary).expect("two names that differ");
        Position { roles, weight: self.weight }
    }
}

/// The name of a phase, whatever else it says.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Stood {
    /// As [`Phase::name`].
    pub phase: String,
}
