//! What outlives the process: how each service stands, and what has happened to it.
//!
//! [`Store::save`] takes a whole record and the entries that belong to it; both are on the disk when it
//! is done, or neither is. Threads of its own do the work, so that a disk that takes its time is waited for
//! by nobody but who has to: a rollout that wants to advance. What belongs to one service is done by one
//! thread, in the order in which it is asked. Saves of several services go on at the same time: a file system
//! commits together what is synced together, so a hundred of them take little longer than a few.
//!
//! Not here: what to do when something cannot be saved, which is the controller's to decide; and how a
//! service goes on after a restart.
//!
//! Without a directory everything is kept in memory for as long as the process lives.

mod error;
mod file;
mod history;
mod memory;
pub mod record;
mod sealed;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
};

use tokio::sync::{Semaphore, oneshot};

pub use self::{error::StoreError, history::Line, sealed::SCHEMA};
use self::{
    file::{Directory, Saved},
    memory::Memory,
    record::{Brief, Entry, Record},
};
use crate::{failpoint, model::name::ServiceName};

/// What may wait for the disk in each lane: a few saves for each of a few hundred services.
const QUEUE: usize = 1024;
/// Threads that save. More of them save no more a second: benches/README.md has the figures.
const LANES: usize = 8;
/// Histories that are read at a time, each in whole files.
const READERS: usize = 2;

/// What has been found of a service.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// How it stood when it was last saved; where that is corrupt, when it was saved before.
    pub record: Option<Arc<Record>>,
    /// The newest entries of its history, oldest first.
    pub recent: Vec<Brief>,
    /// The last entry, where it is newer than the record: then the newest record is lost, and the one that
    /// was found is not to be gone on with.
    pub newer: Option<Brief>,
    /// What is the matter with its files.
    pub problems: Vec<StoreError>,
}

/// Where a save will be told of.
pub type Saving = oneshot::Receiver<Result<(), StoreError>>;

/// A handle on what outlives the process. Clones are of the same.
#[derive(Debug, Clone)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    found: Mutex<BTreeMap<ServiceName, Found>>,
    kept: Kept,
}

#[derive(Debug)]
enum Kept {
    InMemory(Mutex<Memory>),
    InFiles {
        directory: PathBuf,
        lanes: Lanes,
        readers: Semaphore,
        /// Held for as long as anybody may still save something.
        _lock: Option<File>,
    },
}

/// The queues of the threads that save, and which services are whose.
#[derive(Debug)]
struct Lanes {
    jobs: Vec<mpsc::SyncSender<Job>>,
    of: Mutex<BTreeMap<ServiceName, usize>>,
}

enum Job {
    Save {
        service: ServiceName,
        record: Box<Record>,
        entries: Vec<Entry>,
        done: oneshot::Sender<Result<(), StoreError>>,
        store: Arc<Inner>,
    },
    Rest(oneshot::Sender<()>),
}

/// A part of a history.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// Its entries, the newest first.
    pub entries: Vec<Line>,
    /// The number before which the next page begins, if there is more.
    pub next: Option<u64>,
}

impl Store {
    /// One that ends with the process.
    pub fn in_memory() -> Self {
        let kept = Kept::InMemory(Mutex::default());
        Self(Arc::new(Inner { found: Mutex::default(), kept }))
    }

    /// One in a directory, with up to `max_history` bytes of history for each service. Blocks until all
    /// that is there has been read.
    ///
    /// # Errors
    /// When the directory cannot be read or made, another process has it, a newer version wrote what is
    /// in it, or there can be no thread. A directory that can only be read is opened, and saves nothing.
    pub fn open(directory: &Path, max_history: u64) -> Result<Self, StoreError> {
        let (mut files, found) = Directory::open(directory, max_history)?;
        let lock = files.lock.take();
        let lanes = Lanes::start(files.split(LANES), directory)?;
        let (directory, readers) = (directory.to_owned(), Semaphore::new(READERS));
        let kept = Kept::InFiles { directory, lanes, readers, _lock: lock };
        Ok(Self(Arc::new(Inner { found: Mutex::new(found), kept })))
    }

    /// Whether it outlives the process.
    pub fn is_durable(&self) -> bool {
        matches!(self.0.kept, Kept::InFiles { .. })
    }

    /// What is known of a service: what was found of it, and what has been saved since.
    pub fn found(&self, service: &ServiceName) -> Found {
        self.0.found().get(service).cloned().unwrap_or_default()
    }

    /// The services of which something is known.
    pub fn services(&self) -> Vec<ServiceName> {
        self.0.found().keys().cloned().collect()
    }

    /// Saves how a service stands, and what has happened to it. Does not wait: what it returns tells when
    /// both would outlive a crash, or why they would not.
    pub fn save(&self, service: &ServiceName, record: Record, entries: Vec<Entry>) -> Saving {
        let (done, saving) = oneshot::channel();
        match &self.0.kept {
            Kept::InMemory(memory) => {
                lock(memory).add(service, &entries);
                self.0.know(service, &Arc::new(record));
                let _gone = done.send(Ok(()));
            }
            Kept::InFiles { lanes, .. } => {
                let jobs = lanes.of(service);
                let (service, record, store) = (service.clone(), Box::new(record), Arc::clone(&self.0));
                match jobs.try_send(Job::Save { service, record, entries, done, store }) {
                    Ok(()) => {}
                    Err(mpsc::TrySendError::Full(job)) => job.refuse(StoreError::Busy),
                    Err(mpsc::TrySendError::Disconnected(job)) => job.refuse(StoreError::Stopped),
                }
            }
        }
        saving
    }

    /// Up to `limit` entries of a service's history before number `before`, or the newest ones.
    ///
    /// # Errors
    /// When files cannot be read.
    pub async fn history(
        &self,
        service: &ServiceName,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Page, StoreError> {
        let before = before.unwrap_or(u64::MAX);
        // One more, to see whether there is more.
        let wanted = limit.saturating_add(1);
        let mut entries = match &self.0.kept {
            Kept::InMemory(memory) => lock(memory).read(service, before, wanted),
            Kept::InFiles { directory, readers, .. } => {
                let folder = directory.join(service.as_str());
                blocking(readers, move || history::read(&folder, before, wanted)).await?
            }
        };
        let has_more = entries.len() > limit;
        entries.truncate(limit);
        let next = entries.last().map(|line| line.brief.seq).filter(|_| has_more);
        Ok(Page { entries, next })
    }

    /// The entries of a service's history before number `before`, or its newest ones, the newest first: as many of them
    /// as are read in one go, and none only where there are no more. For whoever wants all.
    ///
    /// # Errors
    /// When files cannot be read.
    pub async fn chapter(&self, service: &ServiceName, before: Option<u64>) -> Result<Vec<Line>, StoreError> {
        let before = before.unwrap_or(u64::MAX);
        match &self.0.kept {
            Kept::InMemory(memory) => Ok(lock(memory).read(service, before, usize::MAX)),
            Kept::InFiles { directory, readers, .. } => {
                let folder = directory.join(service.as_str());
                blocking(readers, move || history::read_chapter(&folder, before)).await
            }
        }
    }

    /// Waits until all that it was asked for so far has been done.
    pub async fn rest(&self) {
        let Kept::InFiles { lanes, .. } = &self.0.kept else { return };
        let asked = lanes.jobs.iter().filter_map(|jobs| {
            let (done, rested) = oneshot::channel();
            jobs.try_send(Job::Rest(done)).is_ok().then_some(rested)
        });
        for rested in asked.collect::<Vec<_>>() {
            let _gone = rested.await;
        }
    }
}

/// Does what blocks, when it is its turn.
async fn blocking<T: Send + 'static>(
    readers: &Semaphore,
    read: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let _turn = readers.acquire().await;
    tokio::task::spawn_blocking(read).await.unwrap_or(Err(StoreError::Stopped))
}

impl Lanes {
    /// Starts a thread for each part of a directory.
    fn start(parts: Vec<Directory>, directory: &Path) -> Result<Self, StoreError> {
        let (mut queues, mut of) = (Vec::new(), BTreeMap::new());
        for (number, mut files) in parts.into_iter().enumerate() {
            of.extend(files.services().map(|service| (service.clone(), number)));
            let (jobs, asked) = mpsc::sync_channel::<Job>(QUEUE);
            let work = move || {
                while let Ok(job) = asked.recv() {
                    job.work(&mut files);
                }
            };
            thread::Builder::new()
                .name(format!("store-{number}"))
                .spawn(work)
                .map_err(|error: io::Error| StoreError::io("start a thread for", directory, &error))?;
            queues.push(jobs);
        }
        Ok(Self { jobs: queues, of: Mutex::new(of) })
    }

    /// The queue of the thread that saves a service: in turn, so that each has as many.
    fn of(&self, service: &ServiceName) -> &mpsc::SyncSender<Job> {
        let mut of = lock(&self.of);
        let next = of.len() % self.jobs.len();
        &self.jobs[*of.entry(service.clone()).or_insert(next)]
    }
}

impl Job {
    fn work(self, files: &mut Directory) {
        match self {
            Self::Rest(done) => {
                let _gone = done.send(());
            }
            Self::Save { service, record, entries, done, store } => {
                let saved = files.save(&service, &record, &entries);
                if let Ok(Saved { history: Some(problem) }) = &saved {
                    tracing::warn!(%service, "the history lacks what the record has: {problem}");
                }
                let saved = saved.map(|_| store.know(&service, &Arc::new(*record)));
                failpoint::pass("a save is to be told of");
                // Before it is told: whoever waited for the last save may open the directory anew.
                drop(store);
                let _gone = done.send(saved);
            }
        }
    }

    fn refuse(self, why: StoreError) {
        if let Self::Save { done, .. } = self {
            let _gone = done.send(Err(why));
        }
    }
}

impl Inner {
    fn found(&self) -> MutexGuard<'_, BTreeMap<ServiceName, Found>> {
        lock(&self.found)
    }

    /// From now on this is how a service stood when it was last saved.
    fn know(&self, service: &ServiceName, record: &Arc<Record>) {
        let mut found = self.found();
        let found = found.entry(service.clone()).or_default();
        found.record = Some(Arc::clone(record));
        (found.recent, found.newer, found.problems) = (Vec::new(), None, Vec::new());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
