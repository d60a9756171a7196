//! Having spans sent: taken from the workers' queues, a batch at a time, and posted over OTLP/HTTP.
//!
//! No worker waits for it and none wakes it: it looks by itself. What cannot be sent is tried again for a few
//! seconds, while the queues take what comes meanwhile; then it is dropped and counted.

use std::{sync::mpsc::TryRecvError, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, header};
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{self, Instant},
};

use super::hook::{Opened, backoff, open, post_to};
use crate::{
    clock,
    config::{target::Target, tracing::Tracing},
    spans::{
        Counts, otlp,
        queue::{Queue, Rules, Sampling, Source, bounded},
    },
};

/// Exchanges that one worker's queue holds: enough for 40,000 a second, and of the usual size some 2 MiB if
/// they stand still.
const QUEUE: usize = 2048;
/// How often the queues are looked at.
const LOOK: Duration = Duration::from_millis(50);
/// Spans that are sent without waiting for more.
const BATCH: usize = 512;
/// Times that a batch is tried.
const TRIES: u32 = 4;
/// How often a failure is logged while it lasts.
const SAID_EVERY: Duration = Duration::from_secs(60);
const USER_AGENT: HeaderValue = HeaderValue::from_static(concat!("tidegate/", env!("CARGO_PKG_VERSION")));
/// How long what stands in the target's files is taken to stand there still, as long as it serves.
const READ_EVERY: Duration = Duration::from_secs(60);
/// Where OTLP has its receivers take spans.
const PATH: &str = "/v1/traces";

/// Spans that are being sent.
#[derive(Debug)]
pub struct Spans {
    control: Control,
    ending: watch::Sender<bool>,
    exporter: JoinHandle<()>,
}

/// Changes what is sampled and where it goes.
#[derive(Debug, Clone)]
pub struct Control {
    sampling: Sampling,
    settings: watch::Sender<Tracing>,
}

impl Control {
    /// From now on.
    pub fn take_up(&self, settings: Tracing) {
        self.sampling.set(rules(&settings));
        self.settings.send_replace(settings);
    }
}

impl Spans {
    /// Begins; returns a queue for each worker. A batch that does not get full is sent `every` so often.
    pub fn start(settings: Tracing, workers: usize, counts: &Counts, every: Duration) -> (Self, Vec<Queue>) {
        let sampling = Sampling::new(rules(&settings));
        let (queues, sources) =
            (0..workers).map(|_| bounded(QUEUE, sampling.clone(), counts.dropped.clone())).unzip();
        let (settings, heeded) = watch::channel(settings);
        let (ending, ended) = watch::channel(false);
        let counts = counts.clone();
        let exporter = Exporter {
            sources,
            settings: heeded,
            ending: ended,
            counts,
            every,
            opened: None,
            said: None,
            due: None,
        };
        let exporter = tokio::spawn(exporter.run());
        (Self { control: Control { sampling, settings }, ending, exporter }, queues)
    }

    /// What changes it.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// Waits until the last spans are sent, once the workers have ended; but no longer than this.
    pub async fn flushed(mut self, longest: Duration) {
        self.ending.send_replace(true);
        if time::timeout(longest, &mut self.exporter).await.is_err() {
            self.exporter.abort();
            tracing::warn!("the last spans could not be exported in time");
        }
    }
}

fn rules(settings: &Tracing) -> Rules {
    Rules { sample: settings.sample, parent_based: settings.parent_based }
}

/// Takes spans from the queues and sends them.
struct Exporter {
    sources: Vec<Source>,
    settings: watch::Receiver<Tracing>,
    ending: watch::Receiver<bool>,
    counts: Counts,
    every: Duration,
    /// The target with what stands in its files, and when that was read.
    opened: Option<(Opened, Instant)>,
    /// When a failure was last logged, if the last export failed.
    said: Option<Instant>,
    /// When a batch is sent that does not get full.
    due: Option<Instant>,
}

/// Why a batch was not taken.
struct Failed {
    why: String,
    /// It may be if it is tried again.
    is_passing: bool,
}

impl Exporter {
    /// Does so until no more can come.
    async fn run(mut self) {
        let mut batch = Vec::new();
        loop {
            self.gather(&mut batch);
            let is_last = self.sources.is_empty();
            let now = Instant::now();
            let is_due = *self.due.get_or_insert(now + self.every) <= now;
            if batch.is_empty() {
                self.due = None;
                if is_last {
                    return;
                }
            } else if is_last || is_due || batch.len() >= BATCH {
                self.due = None;
                self.send(std::mem::take(&mut batch)).await;
                continue;
            }
            time::sleep(LOOK).await;
        }
    }

    /// Adds what the queues hold to a batch, in turn, until it is full.
    fn gather(&mut self, batch: &mut Vec<Span>) {
        self.sources.retain(|source| {
            while batch.len() < BATCH {
                match source.take() {
                    Ok(exchange) => batch.extend(otlp::spans(&exchange)),
                    Err(TryRecvError::Empty) => return true,
                    Err(TryRecvError::Disconnected) => return false,
                }
            }
            true
        });
        // Whoever was first this time is last the next.
        if batch.len() >= BATCH && !self.sources.is_empty() {
            self.sources.rotate_left(1);
        }
    }

    /// Sends a batch, with a few tries; only one at the end of the process.
    async fn send(&mut self, spans: Vec<Span>) {
        let count = spans.len() as u64;
        let body = otlp::request(&self.settings.borrow().service_name, spans);
        let body = Bytes::from(body);
        let id = clock::nanos().to_string();
        let mut tried = 0;
        loop {
            let (timeout, target) = self.target();
            let to = target.address.to_string();
            let sent = time::timeout(timeout, self.export(target, body.clone())).await;
            let late = || Failed { why: "no answer in time".to_owned(), is_passing: true };
            let failed = match sent.unwrap_or_else(|_| Err(late())) {
                Ok(rejected) => {
                    let rejected = rejected.min(count);
                    self.counts.exported.inc_by(count - rejected);
                    self.counts.dropped.inc_by(rejected);
                    self.said = None;
                    return;
                }
                Err(failed) => failed,
            };
            self.opened = None;
            self.counts.export_errors.inc();
            self.say(&to, &failed.why);
            tried += 1;
            if !failed.is_passing || tried >= TRIES || *self.ending.borrow() {
                self.counts.dropped.inc_by(count);
                return;
            }
            tokio::select! {
                () = time::sleep(backoff(&id, tried)) => {}
                // One more try, at once. Whoever would say it is gone only with all the rest.
                _ending = self.ending.wait_for(|ending| *ending) => {}
            }
        }
    }

    /// Where spans go, and how long that may take. What was opened for another place is let go.
    fn target(&mut self) -> (Duration, Target) {
        let is_new = self.settings.has_changed().unwrap_or(false);
        let settings = self.settings.borrow_and_update();
        if is_new {
            self.opened = None;
        }
        (settings.timeout, settings.target.clone())
    }

    /// Sends one message. Returns how many of its spans were not taken, though the message was.
    async fn export(&mut self, target: Target, body: Bytes) -> Result<u64, Failed> {
        let passing = |error: anyhow::Error| Failed { why: format!("{error:#}"), is_passing: true };
        let kept = self.opened.take().filter(|(_, read)| read.elapsed() < READ_EVERY);
        let is_kept = kept.is_some();
        let opened = match kept {
            Some(kept) => kept,
            None => {
                let mut opened = open(target).await.map_err(passing)?;
                if opened.address.path == "/" {
                    PATH.clone_into(&mut opened.address.path);
                }
                (opened, Instant::now())
            }
        };
        let (opened, _) = self.opened.insert(opened);
        let fields = vec![(header::USER_AGENT, USER_AGENT)];
        let posted = post_to(opened, "application/x-protobuf", fields, body).await;
        let (status, answer) = posted.map_err(passing)?;
        match status {
            200..=299 => Ok(otlp::rejected(&answer).map_or(0, |(rejected, why)| {
                tracing::debug!(rejected, why, "some spans were not taken");
                rejected
            })),
            // A token may have been replaced since it was read.
            401 | 403 if is_kept => Err(Failed { why: format!("status {status}"), is_passing: true }),
            // As OTLP has it: anything else is about what was sent (OTLP/HTTP response, failures).
            429 | 502 | 503 | 504 => Err(Failed { why: format!("status {status}"), is_passing: true }),
            _ => Err(Failed { why: format!("status {status}"), is_passing: false }),
        }
    }

    /// Logs a failure, unless that has been done a moment ago.
    fn say(&mut self, to: &str, why: &str) {
        let now = Instant::now();
        if self.said.is_none_or(|said| now >= said + SAID_EVERY) {
            self.said = Some(now);
            tracing::warn!(%to, "spans cannot be exported: {why}");
        }
    }
}
