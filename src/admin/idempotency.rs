//! A write that was done is not done again: `Idempotency-Key` names it, and whoever asks twice, because the
//! first answer was lost, gets that answer.
//!
//! What was refused has changed nothing and may be asked again; of what nobody has waited for to the end it is not
//! known whether it will be, so its key stays that of a request that is being worked on until it is. What is remembered is bounded in number and
//! age, and is not kept over a restart; `If-Match` holds over one.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    body::{Body, to_bytes},
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use ring::digest::{Context as Digest, SHA256};

use super::{actor::Actor, problem::Problem};
use crate::clock;

/// What a write is called by.
pub(crate) const KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// What is said of one that is being done.
pub(crate) const UNDER_WAY: &str = "the request of this `Idempotency-Key` is still being worked on";
/// Most bytes of a key.
const MAX_KEY: usize = 255;
/// How long an answer is remembered.
const KEPT: Duration = Duration::from_secs(60 * 60);
/// How many are; beyond them the oldest are forgotten.
const MOST: usize = 256;
/// Says that an answer is that of an earlier request.
const REPLAYED: (HeaderName, HeaderValue) =
    (HeaderName::from_static("idempotent-replayed"), HeaderValue::from_static("true"));

/// What was done lately. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Memory(Arc<Mutex<HashMap<Key, Entry>>>);

/// Who asks, and what they call it.
type Key = (String, String);

#[derive(Debug)]
struct Entry {
    /// The digest of what was asked.
    asked: Vec<u8>,
    at: Instant,
    /// Nothing while it is being done.
    answer: Option<Answer>,
}

#[derive(Debug, Clone)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Memory {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to do something; or says what came of it, or why it is not done.
    fn begin(&self, key: &Key, asked: &[u8], now: Instant) -> Result<Option<Answer>, Problem> {
        let mut entries = self.lock();
        entries.retain(|_, entry| entry.answer.is_none() || now.saturating_duration_since(entry.at) < KEPT);
        if let Some(entry) = entries.get(key) {
            if entry.asked != asked {
                let detail = "this `Idempotency-Key` was used for another request: a key is for one";
                return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail));
            }
            return entry
                .answer
                .clone()
                .map(Some)
                .ok_or_else(|| Problem::new(StatusCode::CONFLICT, UNDER_WAY));
        }
        while entries.len() >= MOST {
            let done = entries.iter().filter(|(_, entry)| entry.answer.is_some());
            let Some(oldest) = done.min_by_key(|(_, entry)| entry.at).map(|(key, _)| key.clone()) else {
                break;
            };
            entries.remove(&oldest);
        }
        entries.insert(key.clone(), Entry { asked: asked.to_vec(), at: now, answer: None });
        Ok(None)
    }

    /// It is done, or was refused.
    fn end(&self, key: &Key, answer: Option<Answer>) {
        let mut entries = self.lock();
        match answer {
            None => drop(entries.remove(key)),
            answer => {
                if let Some(entry) = entries.get_mut(key) {
                    entry.answer = answer;
                }
            }
        }
    }
}

/// The middleware. It has to be seen through, or the key would stay that of a request that is being worked on.
pub(super) async fn once(State(memory): State<Memory>, request: Request, next: Next) -> Response {
    let actor = request.extensions().get::<Actor>().map(Actor::identity);
    let (Some(actor), Some(named)) = (actor, request.headers().get(KEY)) else {
        return next.run(request).await;
    };
    if request.method().is_safe() {
        return next.run(request).await;
    }
    let named = named.to_str().ok().filter(|named| (1..=MAX_KEY).contains(&named.len()));
    let Some(named) = named.map(str::to_owned) else {
        let detail = format!("an `Idempotency-Key` has 1 to {MAX_KEY} visible characters");
        return Problem::new(StatusCode::BAD_REQUEST, detail).into_response();
    };
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, usize::MAX).await.expect("a write is passed on once it is there");
    let mut asked = Digest::new(&SHA256);
    for part in [parts.method.as_str().as_bytes(), parts.uri.path().as_bytes(), &body] {
        asked.update(&part.len().to_be_bytes());
        asked.update(part);
    }
    let (key, asked) = ((actor, named), asked.finish());
    match memory.begin(&key, asked.as_ref(), clock::monotonic()) {
        Err(problem) => return problem.into_response(),
        Ok(Some(answer)) => {
            let mut response = (answer.status, answer.headers, answer.body).into_response();
            response.headers_mut().extend([REPLAYED]);
            return response;
        }
        Ok(None) => {}
    }
    let response = next.run(Request::from_parts(parts, Body::from(body))).await;
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, usize::MAX).await.unwrap_or_default();
    let headers = [header::CONTENT_TYPE, header::ETAG].into_iter();
    let headers = headers.filter_map(|name| Some((name.clone(), parts.headers.get(name)?.clone()))).collect();
    let answer = Answer { status: parts.status, headers, body: body.clone() };
    memory.end(&key, parts.status.is_success().then_some(answer));
    Response::from_parts(parts, Body::from(body))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: usize) -> Key {
        ("ci".to_owned(), name.to_string())
    }

    fn answer() -> Answer {
        Answer { status: StatusCode::OK, headers: HeaderMap::new(), body: Bytes::from_static(b"{}") }
    }

    #[test]
    fn what_was_done_is_answered_again_and_what_was_refused_is_done_again() {
        let (memory, now) = (Memory::default(), clock::monotonic());
        assert!(memory.begin(&key(1), b"a", now).unwrap().is_none());
        assert_eq!(memory.begin(&key(1), b"a", now).unwrap_err().status, 409);
        memory.end(&key(1), None);
        assert!(memory.begin(&key(1), b"a", now).unwrap().is_none());
        memory.end(&key(1), Some(answer()));
        assert_eq!(memory.begin(&key(1), b"a", now).unwrap().unwrap().body, "{}");
        assert_eq!(memory.begin(&key(1), b"b", now).unwrap_err().status, 422);
        // Somebody else's key of the same name is another.
        assert!(memory.begin(&("anna".to_owned(), "1".to_owned()), b"b", now).unwrap().is_none());
        assert!(memory.begin(&key(1), b"b", now + KEPT).unwrap().is_none());
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_go_first() {
        let (memory, now) = (Memory::default(), clock::monotonic());
        for n in 0..MOST + 10 {
            let at = now + Duration::from_millis(n as u64);
            assert!(memory.begin(&key(n), b"a", at).unwrap().is_none());
            memory.end(&key(n), Some(answer()));
        }
        assert_eq!(memory.lock().len(), MOST);
        assert!(memory.lock().contains_key(&key(MOST + 9)) && !memory.lock().contains_key(&key(9)));
    }
}
