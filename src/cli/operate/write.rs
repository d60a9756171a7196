//! Writes: each is done once, however often it has to be asked for.
//!
//! All tries of one have the same `Idempotency-Key`, so that one whose answer was lost is answered again instead
//! of being done again. A process remembers no keys of the one before it; so from the second try on, what would
//! do something else if it were done twice is only asked of the service as it was before the first.

use std::time::Duration;

use http::{Method, StatusCode, header};
use ring::rand::{SecureRandom as _, SystemRandom};
use serde::Deserialize as _;
use serde_json::Value;
use tokio::time;

use super::{
    api::{Api, Failure, Unanswered, Why},
    say,
    seen::Service,
};
use crate::admin::idempotency::KEY;

/// How long is waited before each further try: a process that is started anew, or a disk that is busy for a
/// moment, and a pipeline that wants to know.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(250), Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2)];

/// What is asked for.
pub(super) struct Write<'a> {
    pub(super) method: Method,
    /// The service's name.
    pub(super) service: &'a str,
    /// What of it: the last part of the path.
    pub(super) verb: &'a str,
    pub(super) body: &'a Value,
    /// The rollout that it is about; nothing means whichever there is.
    pub(super) rollout: Option<&'a str>,
}

impl Write<'_> {
    /// Whether it comes to the same when it is done twice.
    fn may_be_done_twice(&self) -> bool {
        matches!(self.verb, "rollback" | "weight")
    }

    /// Whether the service's rollout is the one that is meant.
    fn is_about(&self, service: &Service) -> Result<(), Failure> {
        let Some(wanted) = self.rollout else { return Ok(()) };
        if service.rollout.as_ref().is_some_and(|rollout| rollout.id == wanted) {
            return Ok(());
        }
        let detail = format!("rollout `{wanted}` is not the one that service `{}` has now", service.name);
        Err(Failure::Refused { status: StatusCode::CONFLICT.as_u16(), detail })
    }
}

impl Api {
    /// Has something done, and returns how the service then stands.
    pub(super) async fn write(&self, write: Write<'_>) -> Result<Value, Failure> {
        for pause in PAUSES {
            match self.write_as_it_stands(&write).await {
                // It has gone on, and may still be the same rollout.
                Err(Failure::Refused { status: 412, .. }) if write.rollout.is_some() => {
                    time::sleep(pause).await
                }
                answer => return answer,
            }
        }
        self.write_as_it_stands(&write).await
    }

    async fn write_as_it_stands(&self, write: &Write<'_>) -> Result<Value, Failure> {
        let service = format!("/services/{}", write.service);
        let path = format!("{service}/{}", write.verb);
        let mut fields = vec![(KEY, key()?)];
        let mut tag = if write.may_be_done_twice() && write.rollout.is_none() {
            None
        } else {
            let before = self.call(Method::GET, &service, None).await?;
            let before = Service::deserialize(&before).map_err(Failure::not_understood)?;
            write.is_about(&before)?;
            Some((header::IF_MATCH, format!("\"{}\"", before.revision)))
        };
        if write.rollout.is_some() {
            fields.extend(tag.take());
        }
        let mut pauses = PAUSES.iter().enumerate();
        // Whether one of the tries so far may have been done: no answer to it says that nothing has changed.
        let mut may_be_done = false;
        loop {
            let answer = self.call_with(&fields, write.method.clone(), &path, Some(write.body)).await;
            let is_first = pauses.len() == PAUSES.len();
            let Unanswered { failure, why } = match answer {
                Ok(answer) => return Ok(answer),
                Err(Unanswered { failure: Failure::Refused { status: 412, detail }, .. })
                    if may_be_done && !write.may_be_done_twice() =>
                {
                    return Err(Failure::Broken(format!(
                        "the answer was lost, and it may have been done or not: {detail}"
                    )));
                }
                Err(unanswered) => unanswered,
            };
            may_be_done |= why != Why::Absent && !failure.says_that_nothing_was_done();
            // Somebody who was there a moment ago will be there again.
            let is_hopeless = why == Why::Final || why == Why::Absent && is_first;
            let Some((tried, pause)) = pauses.next().filter(|_| !is_hopeless) else { return Err(failure) };
            say(&format!("{failure}; trying again ({} of {})", tried + 1, PAUSES.len()));
            time::sleep(*pause).await;
            fields.extend(tag.take());
        }
    }
}

/// A key that nobody else has.
fn key() -> Result<String, Failure> {
    let mut bytes = [0; 16];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| Failure::Broken("the system has no random numbers".to_owned()))?;
    Ok(format!("tidegate-{:032x}", u128::from_ne_bytes(bytes)))
}
