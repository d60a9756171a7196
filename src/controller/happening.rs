//! What is told of a rollout to those outside: hooks and notifications say the same.

use serde::{Serialize, Serializer};

use crate::{
    model::{
        name::{BackendName, ServiceName},
        time::Timestamp,
        weight::Weight,
    },
    rollout::topic::Topic,
};

/// Something that has happened to a service, or what one is asked about.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Happening {
    /// What kind of thing, where one is told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) event: Option<Topic>,
    /// The service.
    pub(super) service: ServiceName,
    /// The rollout's id, if there has been one.
    pub(super) rollout: Option<String>,
    /// Which backend is stable now.
    pub(super) stable: BackendName,
    /// Which backend is canary now.
    pub(super) canary: Option<BackendName>,
    /// The backend that it is about, where it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) backend: Option<BackendName>,
    /// The phase that the rollout is in.
    pub(super) phase: &'static str,
    /// The step that it is in, from 0.
    pub(super) step: Option<usize>,
    /// How many steps there are.
    pub(super) steps: usize,
    /// The canary's share, in percent.
    pub(super) weight: Weight,
    /// Until when the old version is kept warm for the way back, once the rollout has succeeded and as long as
    /// nobody has gone that way.
    #[serde(serialize_with = "rfc3339_if_any", skip_serializing_if = "Option::is_none")]
    pub(super) rollback_until: Option<Timestamp>,
    /// When, of a kind that every language can read.
    #[serde(serialize_with = "rfc3339")]
    pub(super) time: Timestamp,
    /// What, as a sentence.
    pub(super) message: String,
    /// Who wanted it, if anybody did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) by: Option<String>,
    /// Why, if they said so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<String>,
}

impl Happening {
    /// A word for it, with the backend that it is about: two may be drained in one moment.
    pub(super) fn what(&self, word: &str) -> String {
        self.backend.as_ref().map_or_else(|| word.to_owned(), |backend| format!("{word}.{backend}"))
    }

    /// Who wanted it and why, to be put after a sentence; nothing where nobody did.
    pub(super) fn because(&self) -> String {
        match (&self.by, &self.reason) {
            (Some(by), Some(reason)) => format!(" ({by}: {reason})"),
            (Some(one), None) | (None, Some(one)) => format!(" ({one})"),
            (None, None) => String::new(),
        }
    }
}

/// A time as RFC 3339 has it, in UTC.
pub(super) fn in_words(time: Timestamp) -> String {
    let millis = i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(millis).unwrap_or(jiff::Timestamp::MAX).to_string()
}

fn rfc3339_if_any<S: Serializer>(time: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    time.map(in_words).serialize(serializer)
}

fn rfc3339<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&in_words(*time))
}
