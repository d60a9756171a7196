//! Asking and telling those who are named as hooks: one delivery, its tries, and its signature.

use std::{hash::Hasher, sync::Arc, time::Duration};

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, header};
use http_body_util::Full;
use ring::hmac;
use serde::Serialize;
use siphasher::sip::SipHasher13;
use tokio::{
    sync::mpsc,
    time::{self, Instant},
};

use super::{
    client, exec,
    happening::{Happening, in_words},
    metrics::Metrics,
};
use crate::{
    clock,
    config::{
        hook::{At, Call, Hook},
        target::{Address, Source, Target},
    },
    model::{protocol::Protocol, units::format_duration},
    tls::{
        client::{Client, Settings},
        files::read_text,
    },
};

/// Bytes of an answer that are looked at.
const MAX_ANSWER: usize = 4096;
/// Characters of an answer that are shown.
const SHOWN: usize = 200;
/// How long is waited before the second try; before each further one twice as long.
const BACKOFF: Duration = Duration::from_millis(500);
/// Longest time between two tries.
const MAX_BACKOFF: Duration = Duration::from_secs(30);
/// What may wait to be told to one who is slow.
const QUEUE: usize = 64;
/// Where a receiver finds what it is to check.
const SIGNATURE: HeaderName = HeaderName::from_static("x-tidegate-signature");
/// The same for every try of one delivery.
const DELIVERY: HeaderName = HeaderName::from_static("x-tidegate-delivery");
const USER_AGENT: HeaderValue = HeaderValue::from_static("tidegate-hook");

/// Fields of a request.
type Fields = Vec<(HeaderName, HeaderValue)>;

/// What a hook is told.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Payload {
    /// The same for every try, also after a restart.
    pub(super) id: String,
    /// Why it is called.
    pub(super) at: At,
    #[serde(flatten)]
    pub(super) happening: Happening,
}

impl Payload {
    /// The same for a program, as variables.
    pub(super) fn environment(&self) -> Vec<(&'static str, String)> {
        let Self { id, at, happening } = self;
        let Happening {
            event: _,
            service,
            rollout,
            stable,
            canary,
            backend,
            phase,
            step,
            steps: _,
            weight,
            rollback_until,
            time: _,
            message,
            by,
            reason,
        } = happening;
        vec![
            ("TIDEGATE_DELIVERY", id.clone()),
            ("TIDEGATE_AT", at.to_string()),
            ("TIDEGATE_SERVICE", service.to_string()),
            ("TIDEGATE_ROLLOUT", rollout.clone().unwrap_or_default()),
            ("TIDEGATE_STABLE", stable.to_string()),
            ("TIDEGATE_CANARY", canary.as_ref().map(ToString::to_string).unwrap_or_default()),
            ("TIDEGATE_BACKEND", backend.as_ref().map(ToString::to_string).unwrap_or_default()),
            ("TIDEGATE_PHASE", (*phase).to_owned()),
            ("TIDEGATE_STEP", step.map(|step| step.to_string()).unwrap_or_default()),
            ("TIDEGATE_WEIGHT", weight.percent().to_string()),
            ("TIDEGATE_ROLLBACK_UNTIL", rollback_until.map(in_words).unwrap_or_default()),
            ("TIDEGATE_MESSAGE", message.clone()),
            ("TIDEGATE_BY", by.clone().unwrap_or_default()),
            ("TIDEGATE_REASON", reason.clone().unwrap_or_default()),
        ]
    }
}

/// Why a try has failed.
pub(super) struct Failed {
    pub(super) why: String,
    /// Whether another try may do better.
    pub(super) is_passing: bool,
}

impl From<anyhow::Error> for Failed {
    fn from(why: anyhow::Error) -> Self {
        Self { why: format!("{why:#}"), is_passing: true }
    }
}

/// Asks or tells once, with as many tries as it takes and may have.
///
/// # Errors
/// What came instead of a yes, as a sentence that names the hook.
pub(super) async fn deliver(hook: &Hook, payload: &Payload) -> Result<(), String> {
    let Hook { name, call, timeout, retries, deadline, .. } = hook;
    let body = Bytes::from(serde_json::to_vec(payload).map_err(|error| error.to_string())?);
    let until = Instant::now() + *deadline;
    let mut tried = 0;
    loop {
        let attempt = time::timeout_at(until.min(Instant::now() + *timeout), attempt(call, payload, &body));
        let failed = match attempt.await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(failed)) => failed,
            Err(_) => {
                Failed { why: format!("no answer within {}", format_duration(*timeout)), is_passing: true }
            }
        };
        let pause = backoff(&payload.id, tried);
        if !failed.is_passing || tried >= *retries || Instant::now() + pause >= until {
            let tries = if tried == 0 { String::new() } else { format!(" (try {})", tried + 1) };
            return Err(format!("the hook `{name}`{tries}: {}", failed.why));
        }
        tried += 1;
        time::sleep(pause).await;
    }
}

/// Between half and all of what doubles with each try, so that many who failed together do not come back
/// together.
pub(super) fn backoff(id: &str, tried: u32) -> Duration {
    let most = BACKOFF.saturating_mul(2_u32.saturating_pow(tried)).min(MAX_BACKOFF);
    let mut hasher = SipHasher13::new();
    hasher.write(id.as_bytes());
    hasher.write_u32(tried);
    let share = 0.5 + 0.5 * (hasher.finish() >> 11) as f64 / (1_u64 << 53) as f64;
    most.mul_f64(share)
}

async fn attempt(call: &Call, payload: &Payload, body: &Bytes) -> Result<(), Failed> {
    let (target, secret) = match call {
        Call::Exec(program) => return exec::run(program, payload, body).await,
        Call::Http { target, secret } => (target.clone(), secret.clone()),
    };
    let mut fields = vec![(DELIVERY, value(&payload.id)?), (header::USER_AGENT, USER_AGENT)];
    if let Some(secret) = secret {
        // Read each time: a secret that has been replaced is used at once.
        let secret = blocking(move || read_text(&secret).map_err(|fault| anyhow!(fault))).await?;
        fields.push((SIGNATURE, value(&signature(&secret, clock::now().as_millis() / 1000, body))?));
    }
    let (status, answer) = post(target, "application/json", fields, body.clone()).await?;
    match status {
        200..=299 => Ok(()),
        _ => {
            let said = shown(&answer);
            let colon = if said.is_empty() { "" } else { ": " };
            // A server in trouble, or one that asks for patience; anything else is what it wants to say.
            let is_passing = matches!(status, 408 | 425 | 429 | 500..);
            Err(Failed { why: format!("status {status}{colon}{said}"), is_passing })
        }
    }
}

/// Sends something, and returns the status and the beginning of what is answered.
///
/// # Errors
/// When there is no answer. What it says has no part of a URL that may be secret.
pub(super) async fn post(
    target: Target,
    content_type: &'static str,
    fields: Fields,
    body: Bytes,
) -> anyhow::Result<(u16, Bytes)> {
    post_to(&open(target).await?, content_type, fields, body).await
}

/// The same to a target that has been opened.
///
/// # Errors
/// As above.
pub(super) async fn post_to(
    opened: &Opened,
    content_type: &'static str,
    fields: Fields,
    body: Bytes,
) -> anyhow::Result<(u16, Bytes)> {
    let Opened { address, fields: more, tls } = opened;
    let tls = tls.as_ref().map(|tls| &**tls.connector());
    let stream = client::connect_to((&address.host, address.port), tls, Protocol::Http1).await?;
    let request = Request::post(&address.path)
        .header(header::HOST, &address.authority)
        .header(header::CONTENT_TYPE, content_type)
        .header(header::CONNECTION, "close");
    let fields = fields.into_iter().chain(more.iter().cloned());
    let request = fields.fold(request, |request, (name, value)| request.header(name, value));
    let request = request.body(Full::new(body))?;
    let answer = client::ask(stream, Protocol::Http1, request, MAX_ANSWER).await?;
    Ok((answer.status, answer.body))
}

/// A target whose files have been read.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) address: Address,
    fields: Fields,
    tls: Option<Client>,
}

/// Reads the files of a target. They are read each time, so that what has been replaced is used at once.
///
/// # Errors
/// When one of them is not what it should be.
pub(super) async fn open(target: Target) -> anyhow::Result<Opened> {
    blocking(move || read(target)).await
}

fn read(target: Target) -> anyhow::Result<Opened> {
    let Target { address, ca, headers } = target;
    let address = match address {
        Source::Url(address) => address,
        Source::File(path) => {
            let text = read_text(&path)?;
            let first = text.lines().next().unwrap_or_default();
            first.parse().with_context(|| format!("the URL in `{}`", path.display()))?
        }
    };
    let fields = match headers {
        None => Vec::new(),
        Some(path) => {
            let fields = read_text(&path)?.lines().map(field).collect::<Option<Vec<_>>>();
            fields.with_context(|| format!("`{}` has a line that is not `NAME: VALUE`", path.display()))?
        }
    };
    let tls = address.is_https.then(|| Client::new(Settings { ca, ..Settings::default() })).transpose()?;
    Ok(Opened { address, fields, tls })
}

fn field(line: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = line.split_once(':')?;
    let mut value = HeaderValue::from_str(value.trim()).ok()?;
    value.set_sensitive(true);
    Some((name.trim().parse().ok()?, value))
}

async fn blocking<T: Send + 'static>(
    read: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    // Files may be on a network.
    tokio::task::spawn_blocking(read).await?
}

fn value(text: &str) -> anyhow::Result<HeaderValue> {
    Ok(HeaderValue::from_str(text)?)
}

/// What proves that whoever sends a body at a time has the secret: `t=TIME,v1=HMAC-SHA256("TIME.BODY")`.
fn signature(secret: &str, seconds: u64, body: &[u8]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let mut context = hmac::Context::with_key(&key);
    context.update(format!("{seconds}.").as_bytes());
    context.update(body);
    let hex: String = context.sign().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("t={seconds},v1={hex}")
}

/// The beginning of what somebody has said, on one line and without what would steer a terminal.
pub(super) fn shown(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let text: String = text.chars().filter(|c| !c.is_control()).take(SHOWN).collect();
    text
}

/// One who is told, one thing after the other, by a task of its own, which ends with this.
#[derive(Debug)]
pub(super) struct Told {
    hook: Arc<Hook>,
    queue: mpsc::Sender<Payload>,
}

impl Told {
    pub(super) fn new(hook: Hook, metrics: Metrics) -> Self {
        let (queue, mut waiting) = mpsc::channel::<Payload>(QUEUE);
        let hook = Arc::new(hook);
        let told = Arc::clone(&hook);
        tokio::spawn(async move {
            while let Some(payload) = waiting.recv().await {
                let delivered = deliver(&told, &payload).await;
                let service = &payload.happening.service;
                metrics.called(service, told.at, if delivered.is_ok() { "success" } else { "failure" });
                if let Err(why) = delivered {
                    tracing::warn!(%service, at = %told.at, delivery = payload.id, "a hook was not told: {why}");
                }
            }
        });
        Self { hook, queue }
    }

    pub(super) fn hook(&self) -> &Hook {
        &self.hook
    }

    /// Lets it be told when it is its turn. Whoever is so slow that too much waits already is not.
    pub(super) fn tell(&self, payload: Payload, metrics: &Metrics) {
        if let Err(full) = self.queue.try_send(payload) {
            let Payload { id, at, happening } = full.into_inner();
            metrics.called(&happening.service, at, "dropped");
            tracing::warn!(service = %happening.service, %at, delivery = id, "a hook is too slow and was not told");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_what_anybody_can_compute() {
        // printf '1700000000.{}' | openssl dgst -sha256 -hmac secret
        assert_eq!(
            signature("secret", 1_700_000_000, b"{}"),
            "t=1700000000,v1=b8569b78799ff9e3cbff0fc2d63a33a2b57f3282abd07c37ae5e8e7d79a5f163"
        );
    }

    #[test]
    fn tries_lie_further_and_further_apart() {
        for tried in 0..20 {
            let most = Duration::from_millis(500 * 2_u64.pow(tried)).min(MAX_BACKOFF);
            let pause = backoff("a", tried);
            assert!(pause >= most / 2 && pause <= most, "{tried}: {pause:?}");
        }
        assert_ne!(backoff("a", 3), backoff("b", 3));
        assert!(backoff("a", u32::MAX) <= MAX_BACKOFF);
    }

    #[test]
    fn fields_are_written_a_line_each() {
        let (name, value) = field("Authorization: Bearer abc").unwrap();
        assert_eq!((name.as_str(), value.to_str().unwrap()), ("authorization", "Bearer abc"));
        assert!(value.is_sensitive());
        for wrong in ["", "a", "a b: c", "a: \u{7f}"] {
            assert_eq!(field(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_is_shown_of_an_answer_is_short_and_harmless() {
        assert_eq!(shown(b"  no:\n\x1b[31mred\x00 \xff "), "no: [31mred \u{fffd}");
        assert_eq!(shown("ä".repeat(1000).as_bytes()).chars().count(), SHOWN);
    }
}
