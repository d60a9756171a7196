//! Telling people what happens to rollouts, in the forms that they understand. Nobody waits for it: each who is
//! told has a queue with an end and a task of their own, and what there is no room for is counted.

use std::{
    collections::VecDeque,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, header};
use prometheus::{IntCounterVec, Opts, Registry};
use serde_json::{Value, json};
use tokio::{
    sync::mpsc,
    time::{self, Instant},
};

use super::{
    backlog::Backlog,
    happening::{self, Happening},
    hook::{backoff, post},
};
use crate::config::notification::{Kind, Notification};

/// What may wait to be told to one who is slow.
const QUEUE: usize = 256;
/// Longest time that one try may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Tries of one message.
const TRIES: u32 = 4;
const MINUTE: Duration = Duration::from_secs(60);
const USER_AGENT: HeaderValue = HeaderValue::from_static("tidegate-notification");

/// Everybody who is told.
#[derive(Debug)]
pub(super) struct Notifier {
    sinks: RwLock<Vec<Sink>>,
    metrics: Metrics,
}

/// One who is told; their task ends with this.
#[derive(Debug)]
struct Sink {
    config: Arc<Notification>,
    queue: mpsc::Sender<Happening>,
}

impl Notifier {
    /// Nobody is told yet.
    ///
    /// # Errors
    /// When its metric is registered already.
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Self> {
        Ok(Self { sinks: RwLock::default(), metrics: Metrics::register(registry)? })
    }

    /// Tells these from now on. Those who were told already keep what waits for them.
    pub(super) fn take_up(&self, notifications: &[Notification]) {
        let mut sinks = self.sinks.write().unwrap_or_else(PoisonError::into_inner);
        let mut before = std::mem::take(&mut *sinks);
        for notification in notifications {
            let known = before.iter().position(|sink| *sink.config == *notification);
            sinks.push(match known {
                Some(known) => before.swap_remove(known),
                None => Sink::new(notification.clone(), self.metrics.clone()),
            });
        }
    }

    /// Lets everybody be told who wants to know.
    pub(super) fn tell(&self, happening: &Happening) {
        let sinks = self.sinks.read().unwrap_or_else(PoisonError::into_inner);
        for Sink { config, queue } in sinks.iter() {
            let is_of =
                |services: &Vec<String>| services.iter().any(|name| name == happening.service.as_str());
            let is_wanted = happening.event.is_some_and(|topic| config.topics.contains(&topic))
                && config.services.as_ref().is_none_or(is_of);
            if is_wanted && queue.try_send(happening.clone()).is_err() {
                self.metrics.count(config.kind, "dropped");
            }
        }
    }
}

impl Sink {
    fn new(config: Notification, metrics: Metrics) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let config = Arc::new(config);
        tokio::spawn(run(Arc::clone(&config), waiting, metrics));
        Self { config, queue }
    }
}

/// Tells one, as long as there may be something to tell.
async fn run(config: Arc<Notification>, mut waiting: mpsc::Receiver<Happening>, metrics: Metrics) {
    let mut limit = Limit { most: config.max_per_minute, sent: VecDeque::new() };
    let mut backlog = Backlog::default();
    loop {
        let full_until = limit.full_until(Instant::now());
        let next = if full_until.is_none() { backlog.next() } else { None };
        let Some((happening, left_out)) = next else {
            tokio::select! {
                // Whatever has come has its place before it is decided who is next.
                biased;
                newer = waiting.recv() => {
                    let Some(newer) = newer else { return };
                    metrics.add(config.kind, "left_out", backlog.put(newer));
                }
                () = time::sleep_until(full_until.unwrap_or_else(Instant::now)), if full_until.is_some() => {}
            }
            continue;
        };
        limit.take(Instant::now());
        let told = tell(&config, &happening, left_out).await;
        metrics.count(config.kind, if told.is_ok() { "success" } else { "failure" });
        if let Err(why) = told {
            let (kind, to) = (config.kind.name(), &config.target.address);
            tracing::warn!(service = %happening.service, kind, %to, "a notification was not delivered: {why}");
        }
    }
}

/// At most so many in any minute.
struct Limit {
    most: Option<u32>,
    sent: VecDeque<Instant>,
}

impl Limit {
    /// When there is room again, if there is none now.
    fn full_until(&mut self, now: Instant) -> Option<Instant> {
        let most = self.most? as usize;
        while self.sent.front().is_some_and(|first| *first + MINUTE <= now) {
            self.sent.pop_front();
        }
        self.sent.front().filter(|_| self.sent.len() >= most).map(|first| *first + MINUTE)
    }

    fn take(&mut self, now: Instant) {
        if self.most.is_some() {
            self.sent.push_back(now);
        }
    }
}

/// Says one thing, with a few tries.
async fn tell(config: &Notification, happening: &Happening, left_out: usize) -> Result<(), String> {
    let content_type = match config.kind {
        Kind::CloudEvents => "application/cloudevents+json; charset=utf-8",
        _ => "application/json",
    };
    let body = Bytes::from(body(config, happening, left_out).to_string());
    let mut tried = 0;
    loop {
        let fields = vec![(header::USER_AGENT, USER_AGENT)];
        let posted = post(config.target.clone(), content_type, fields, body.clone());
        let (why, is_passing) = match time::timeout(TIMEOUT, posted).await {
            Ok(Ok((200..=299, _))) => return Ok(()),
            // What somebody says who does not take it may have what was sent in it, and so is not shown.
            Ok(Ok((status, _))) => (format!("status {status}"), matches!(status, 408 | 425 | 429 | 500..)),
            Ok(Err(error)) => (format!("{error:#}"), true),
            Err(_) => ("no answer in time".to_owned(), true),
        };
        tried += 1;
        if !is_passing || tried >= TRIES {
            return Err(why);
        }
        time::sleep(backoff(&happening.message, tried)).await;
    }
}

fn body(config: &Notification, happening: &Happening, left_out: usize) -> Value {
    let kind = config.kind;
    let value = |name: &str| {
        let value = value(happening, name);
        if kind == Kind::Slack { escaped(&value) } else { value }
    };
    let mut text = config.template.render(value);
    match left_out {
        0 => {}
        1 => text += "\n(1 message before this one was left out)",
        more => text += &format!("\n({more} messages before this one were left out)"),
    }
    match kind {
        Kind::Slack => json!({ "text": text }),
        Kind::Teams => json!({
            "type": "message",
            "attachments": [{
                "contentType": "application/vnd.microsoft.card.adaptive",
                "contentUrl": null,
                "content": {
                    "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
                    "type": "AdaptiveCard",
                    "version": "1.4",
                    "body": [{ "type": "TextBlock", "text": text, "wrap": true }],
                },
            }],
        }),
        Kind::Webhook => {
            let mut fields = json!(happening);
            fields["text"] = json!(text);
            fields["left_out"] = json!(left_out);
            fields
        }
        Kind::CloudEvents => {
            let event = value("event");
            let subject = happening.rollout.as_deref().unwrap_or(happening.service.as_str());
            json!({
                "specversion": "1.0",
                "id": format!("{subject}.{}.{}", happening.what(&event), happening.time.as_millis()),
                "source": format!("/tidegate/services/{}", happening.service),
                "type": format!("tidegate.rollout.{event}"),
                "subject": subject,
                "time": happening::in_words(happening.time),
                "datacontenttype": "application/json",
                "data": happening,
            })
        }
    }
}

/// What a name in a template stands for.
fn value(happening: &Happening, name: &str) -> String {
    let Happening {
        event,
        service,
        rollout,
        stable,
        canary,
        backend,
        phase,
        step,
        steps,
        weight,
        rollback_until,
        time,
        message,
        by,
        reason,
    } = happening;
    match name {
        "service" => service.to_string(),
        "event" => event.map(|event| event.to_string()).unwrap_or_default(),
        "message" => message.clone(),
        "rollout" => rollout.clone().unwrap_or_default(),
        "stable" => stable.to_string(),
        "canary" => canary.as_ref().map(ToString::to_string).unwrap_or_default(),
        "backend" => backend.as_ref().map(ToString::to_string).unwrap_or_default(),
        "phase" => (*phase).to_owned(),
        // People count from 1.
        "step" => step.map(|step| (step + 1).to_string()).unwrap_or_default(),
        "steps" => steps.to_string(),
        "weight" => weight.percent().to_string(),
        "by" => by.clone().unwrap_or_default(),
        "reason" => reason.clone().unwrap_or_default(),
        "because" => happening.because(),
        "rollback_until" => rollback_until.map(happening::in_words).unwrap_or_default(),
        _ => happening::in_words(*time),
    }
}

/// A text in which nothing means anything to Slack, such as `<!channel>`.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[derive(Debug, Clone)]
struct Metrics(IntCounterVec);

impl Metrics {
    fn register(registry: &Registry) -> prometheus::Result<Self> {
        let notifications = IntCounterVec::new(
            Opts::new("tidegate_notifications_total", "Notifications, by what became of them."),
            &["kind", "result"],
        )?;
        registry.register(Box::new(notifications.clone()))?;
        Ok(Self(notifications))
    }

    fn count(&self, kind: Kind, result: &str) {
        self.add(kind, result, 1);
    }

    fn add(&self, kind: Kind, result: &str, messages: usize) {
        self.0.with_label_values(&[kind.name(), result]).inc_by(messages as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_at_most_so_many_in_any_minute() {
        let mut limit = Limit { most: Some(2), sent: VecDeque::new() };
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        for seconds in [0, 10] {
            assert_eq!(limit.full_until(at(seconds)), None);
            limit.take(at(seconds));
        }
        assert_eq!(limit.full_until(at(20)), Some(at(60)));
        assert_eq!(limit.full_until(at(60)), None);
        limit.take(at(60));
        assert_eq!(limit.full_until(at(61)), Some(at(70)));
        let mut unlimited = Limit { most: None, sent: VecDeque::new() };
        unlimited.take(start);
        assert_eq!((unlimited.full_until(start), unlimited.sent.len()), (None, 0));
    }
}
