//! What has happened to a service, as far back as the store has it.

use serde::Serialize;

use super::{CommandError, Controller};
use crate::{model::time::Timestamp, store::Page};

/// A rollout of the past, or the one that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Past {
    /// Its id.
    pub id: String,
    /// When the first of it happened that is still known.
    pub started: Timestamp,
    /// When the last of it happened.
    pub changed: Timestamp,
    /// The phase in which it is or was: `succeeded` and `rolled_back` are outcomes.
    pub phase: Option<String>,
    /// What happened last, as a sentence.
    pub what: String,
    /// The numbers of its first and its last entry.
    pub entries: (u64, u64),
}

impl Controller {
    /// Up to `limit` entries of a service's history before number `before`, or its newest ones.
    ///
    /// # Errors
    /// When there is no such service, or the history cannot be read.
    pub async fn history(&self, name: &str, before: Option<u64>, limit: usize) -> Result<Page, CommandError> {
        let service = self.service(name)?.name;
        self.common.store.history(&service, before, limit).await.map_err(CommandError::Unreadable)
    }

    /// Up to `limit` of a service's rollouts before entry number `before`, or its last ones, the newest first; and the
    /// number before which there are more, if there are.
    ///
    /// # Errors
    /// When there is no such service, or the history cannot be read.
    pub async fn rollouts(
        &self,
        name: &str,
        mut before: Option<u64>,
        limit: usize,
    ) -> Result<(Vec<Past>, Option<u64>), CommandError> {
        let service = self.service(name)?.name;
        let mut found: Vec<Past> = Vec::new();
        loop {
            let chapter =
                self.common.store.chapter(&service, before).await.map_err(CommandError::Unreadable)?;
            let Some(oldest) = chapter.last() else { return Ok((found, None)) };
            before = Some(oldest.brief.seq);
            for brief in chapter.into_iter().map(|line| line.brief) {
                let Some(id) = brief.rollout else { continue };
                // One more than wanted is looked at, so that the last one is whole.
                let is_full = found.len() == limit;
                match found.last_mut().filter(|past| past.id == id) {
                    Some(past) => (past.started, past.entries.0) = (brief.at, brief.seq),
                    None if is_full => {
                        let next = found.last().map(|past| past.entries.0);
                        return Ok((found, next));
                    }
                    None => found.push(Past {
                        id,
                        started: brief.at,
                        changed: brief.at,
                        phase: brief.phase.map(|phase| phase.phase),
                        what: brief.what,
                        entries: (brief.seq, brief.seq),
                    }),
                }
            }
        }
    }
}
