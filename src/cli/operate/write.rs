//! Writes: each is done once, however often it has to be asked for.
//!
//! All tries of one have the same `Idempotency-Key`, so that one whose answer was lost is answered again instead
//! of being done again. A process remembers no keys of the one before it; so from the second try on, what would
//! do something else if it were done twice is only asked of the service as it was before the first.

use std::time::Duration;

use http::{Method, header};
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
}

impl Write<'_> {
    /// Whether it comes to the same when it is done twice.
    fn may_be_done_twice(&self) -> bool {
        matches!(self.verb, "rollback" | "weight")
    }
}

impl Api {
    /// Has something done, and returns how the service then stands.
    pub(super) async fn write(&self, write: Write<'_>) -> Result<Value, Failure> {
        let service = format!("/services/{}", write.service);
        let path = format!("{service}/{}", write.verb);
        let mut fields = vec![(KEY, key()?)];
        let tag = if write.may_be_done_twice() {
            None
        } else {
            let before = self.call(Method::GET, &service, None).await?;
            let Service { revision, .. } = Service::deserialize(&before).map_err(Failure::not_understood)?;
            Some((header::IF_MATCH, format!("\"{revision}\"")))
        };
        let mut pauses = PAUSES.iter().enumerate();
        // Whether one of the tries so far may have been done: no answer to it says that nothing has changed.
        let mut may_be_done = false;
        loop {
            let answer = self.call_with(&fields, write.method.clone(), &path, Some(write.body)).await;
            let is_first = pauses.len() == PAUSES.len();
            let Unanswered { failure, why } = match answer {
                Ok(answer) => return Ok(answer),
                Err(Unanswered { failure: Failure::Refused { status: 412, detail }, .. }) if may_be_done => {
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
            if is_first {
                fields.extend(tag.clone());
            }
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
