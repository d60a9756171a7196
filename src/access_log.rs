//! The access log: one line for each exchange, once it has ended.
//!
//! A worker puts a [`record::Record`] into its own bounded queue and goes on. A thread of its own makes
//! lines of what the queues hold and writes them. It looks at the queues again and again instead of
//! being woken, so that putting a record there is a few stores to memory that no other worker writes:
//! no lock, no system call. When a queue is full, its records are dropped and counted: a disk that
//! stands still costs lines, never requests.

pub mod format;
pub mod queue;
pub mod record;
pub mod writer;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use prometheus::{IntCounter, Registry};
use tokio::sync::oneshot;

use self::{queue::Queue, writer::Writer};
use crate::config::AccessLog as Settings;

/// Records that one worker's queue holds. The writer looks 50 times a second, so this is enough for
/// 200,000 requests a second; if it stands still, they are 4 MiB in common use and 32 MiB at worst.
const QUEUE: usize = 4096;

/// How long a process that ends waits for its last lines.
const LAST_LINES: Duration = Duration::from_secs(1);

/// A running access log.
#[derive(Debug)]
pub struct AccessLog {
    reopen: Reopen,
    written: oneshot::Receiver<()>,
}

/// What is counted about the log itself.
#[derive(Debug, Clone)]
pub struct Counts {
    dropped: IntCounter,
    write_errors: IntCounter,
}

impl Counts {
    /// The counts, at zero.
    ///
    /// # Errors
    /// When a name is none; they are constants.
    pub fn new() -> prometheus::Result<Self> {
        let dropped = "Lines of the access log that were lost, to a full queue or to a write that failed.";
        let write_errors = "Times that the access log could not be written or opened.";
        Ok(Self {
            dropped: IntCounter::new("tidegate_access_log_dropped_total", dropped)?,
            write_errors: IntCounter::new("tidegate_access_log_write_errors_total", write_errors)?,
        })
    }

    /// Has them scraped.
    ///
    /// # Errors
    /// When they are already.
    pub fn register(&self, registry: &Registry) -> prometheus::Result<()> {
        registry.register(Box::new(self.dropped.clone()))?;
        registry.register(Box::new(self.write_errors.clone()))
    }
}

impl AccessLog {
    /// Opens the output and starts the thread that writes; returns a queue for each worker.
    ///
    /// The thread ends when every queue is gone and empty.
    ///
    /// # Errors
    /// When the file cannot be opened, or the thread not be started.
    pub fn start(settings: &Settings, workers: usize, counts: &Counts) -> io::Result<(Self, Vec<Queue>)> {
        let (queues, sources) =
            (0..workers).map(|_| queue::bounded(QUEUE, settings.sample, counts.dropped.clone())).unzip();
        let reopen = Reopen::default();
        let writer = Writer::open(settings, sources, reopen.clone(), counts.clone())?;
        let (done, written) = oneshot::channel();
        let body = move || {
            writer.run();
            // Gone only if nobody waits.
            let _unawaited = done.send(());
        };
        thread::Builder::new().name("access-log".to_owned()).spawn(body)?;
        Ok((Self { reopen, written }, queues))
    }

    /// What asks for the file to be opened anew.
    pub fn reopen(&self) -> Reopen {
        self.reopen.clone()
    }

    /// Waits until everything is written, once the workers have ended; but not for ever, if whoever
    /// reads the output does not.
    pub async fn written(self) {
        if tokio::time::timeout(LAST_LINES, self.written).await.is_err() {
            tracing::warn!("the last lines of the access log could not be written in time");
        }
    }
}

/// Asks for the file to be opened anew.
#[derive(Debug, Clone, Default)]
pub struct Reopen(Arc<AtomicBool>);

impl Reopen {
    /// Asks. It happens before the next lines are written.
    pub fn ask(&self) {
        self.0.store(true, Relaxed);
    }

    /// Whether somebody has asked since the last call.
    fn take(&self) -> bool {
        self.0.swap(false, Relaxed)
    }
}
