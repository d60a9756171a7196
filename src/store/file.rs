//! A directory of files, one folder for each service:
//!
//! ```text
//! DIRECTORY/.lock              held by the process that uses it
//! DIRECTORY/web/state.json     how the service stands: one sealed line
//! DIRECTORY/web/state.json.last    the same before that was saved
//! DIRECTORY/web/state.json.corrupt    one that could not be read, for people to look at
//! DIRECTORY/web/history-000000000001.jsonl    what has happened
//! ```
//!
//! *The record is what counts.* It is replaced in one piece: written beside, synced, renamed, and the
//! folder synced. The entries that belong to it stand in it as well, and are added to the history after
//! that; so a crash in between loses none, and doubles none, because they are numbered.
//!
//! Everything here blocks. It runs in the store's own threads, each of which has some of the folders, but for
//! reading the history.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions, TryLockError},
    io::{ErrorKind, Read as _, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{
    Found,
    error::StoreError,
    history::Log,
    record::{Brief, Entry, Numbered, Record},
    sealed,
};
use crate::{failpoint, model::name::ServiceName};

/// The newest entries that are told when a service is opened: as many as are shown.
pub(super) const RECENT: usize = 50;
/// Entries that may wait for the history; it is a disk that takes records and nothing else.
const MAX_PENDING: usize = 1000;

/// What `state.json` holds.
#[derive(Serialize, Deserialize)]
struct State<R> {
    /// The number of the last entry.
    seq: u64,
    /// Entries that may not be in the history yet; the last one is number `seq`.
    pending: Vec<Box<RawValue>>,
    record: R,
}

/// A store's directory.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    max_history: u64,
    services: BTreeMap<ServiceName, Folder>,
    /// Keeps others out for as long as it is held.
    pub(super) lock: Option<File>,
}

/// A service's folder.
#[derive(Debug)]
struct Folder {
    path: PathBuf,
    /// The number of the last entry that was saved.
    seq: u64,
    /// Entries up to that one that are not in the history yet.
    pending: Vec<Box<RawValue>>,
    log: Log,
}

impl Directory {
    /// Opens a directory, makes it if need be, and reads what is in it.
    ///
    /// # Errors
    /// When it cannot be read or made, another process has it, or a newer version wrote what is in it.
    /// What is corrupt is told with the service that it belongs to.
    pub(super) fn open(
        path: &Path,
        max_history: u64,
    ) -> Result<(Self, BTreeMap<ServiceName, Found>), StoreError> {
        if let Err(error) = fs::create_dir_all(path)
            && !path.is_dir()
        {
            return Err(StoreError::io("make the directory", path, &error));
        }
        let lock = lock(path)?;
        let mut directory = Self { path: path.to_owned(), max_history, services: BTreeMap::new(), lock };
        let mut all = BTreeMap::new();
        let listed = fs::read_dir(path).map_err(|error| StoreError::io("list", path, &error))?;
        for entry in listed.filter_map(Result::ok).filter(|entry| entry.path().is_dir()) {
            // Nothing else is ours.
            let name = entry.file_name().to_str().and_then(|name| name.parse::<ServiceName>().ok());
            if let Some(name) = name {
                let (folder, found) = Folder::open(entry.path(), max_history)?;
                directory.services.insert(name.clone(), folder);
                all.insert(name, found);
            }
        }
        Ok((directory, all))
    }

    /// The services of which it has something.
    pub(super) fn services(&self) -> impl Iterator<Item = &ServiceName> {
        self.services.keys()
    }

    /// Shares its services out among so many, each of which may be worked with by itself.
    pub(super) fn split(self, among: usize) -> Vec<Self> {
        let Self { path, max_history, services, lock: _ } = self;
        let part = |_| Self { path: path.clone(), max_history, services: BTreeMap::new(), lock: None };
        let mut parts: Vec<_> = (0..among).map(part).collect();
        for ((name, folder), part) in services.into_iter().zip((0..among).cycle()) {
            parts[part].services.insert(name, folder);
        }
        parts
    }

    /// Saves how a service stands, and what has happened to it. When it returns, both would outlive a
    /// crash; of an error nothing has.
    pub(super) fn save(
        &mut self,
        service: &ServiceName,
        record: &Record,
        entries: &[Entry],
    ) -> Result<Saved, StoreError> {
        let folder = match self.services.get_mut(service) {
            Some(folder) => folder,
            None => {
                let path = self.path.join(service.as_str());
                fs::create_dir_all(&path).map_err(|error| StoreError::io("make", &path, &error))?;
                failpoint::pass("a service's folder is made");
                sync_folder(&self.path)?;
                let (folder, _) = Folder::open(path, self.max_history)?;
                self.services.entry(service.clone()).or_insert(folder)
            }
        };
        folder.save(record, entries)
    }
}

/// What has become of a save.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Saved {
    /// Why the history does not have it yet; the record does.
    pub(super) history: Option<StoreError>,
}

impl Folder {
    fn open(path: PathBuf, max_history: u64) -> Result<(Self, Found), StoreError> {
        let (log, end) = Log::open(&path, max_history, RECENT)?;
        let mut problems = end.problems;
        let newest = read_state(&path.join(NEWEST), &mut problems)?;
        let state = match newest {
            Some(state) => Some(state),
            None => {
                // Or the next save would put it in the place of the good one.
                set_aside(&path, &mut problems);
                // A crash between two renames leaves the one of before alone; nobody has been told of another.
                read_state(&path.join(LAST), &mut problems)?
            }
        };
        let in_history = end.recent.last().map_or(0, |brief| brief.seq);
        let mut folder = Self { path, seq: in_history, pending: Vec::new(), log };
        let mut found = Found { recent: end.recent, problems, ..Found::default() };
        if let Some(State { seq, pending, record }) = state {
            if seq < in_history {
                // Only where the newest record is lost. What has happened since may be a way back.
                found.newer = found.recent.last().cloned();
            }
            for entry in pending {
                let brief: Option<Brief> = serde_json::from_str(entry.get()).ok();
                if let Some(brief) = brief.filter(|brief| brief.seq > in_history) {
                    found.recent.push(brief);
                    folder.pending.push(entry);
                }
            }
            folder.seq = seq.max(in_history);
            found.record = Some(Arc::new(record));
        } else {
            found.newer = found.recent.last().cloned();
        }
        if let Err(problem) = folder.add_pending() {
            found.problems.push(problem);
        }
        Ok((folder, found))
    }

    fn save(&mut self, record: &Record, entries: &[Entry]) -> Result<Saved, StoreError> {
        let numbered = entries.iter().zip(self.seq + 1..);
        let numbered = numbered.map(|(entry, seq)| sealed::raw(&Numbered { seq, entry }));
        let mut pending = self.pending.clone();
        pending.extend(numbered);
        let too_many = pending.len().saturating_sub(MAX_PENDING);
        pending.drain(..too_many);
        let seq = self.seq + entries.len() as u64;
        let state = sealed::raw(&State { seq, pending: pending.clone(), record });
        replace(&self.path, &sealed::seal(&state))?;
        (self.seq, self.pending) = (seq, pending);
        Ok(Saved { history: self.add_pending().err() })
    }

    /// Brings the history up to the record.
    fn add_pending(&mut self) -> Result<(), StoreError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let first = self.seq + 1 - self.pending.len() as u64;
        self.log.append(&self.pending, first)?;
        self.pending.clear();
        Ok(())
    }
}

/// How often the lock is tried again, and after how long: about a second.
const LOCK_TRIES: u32 = 40;
const LOCK_PAUSE: Duration = Duration::from_millis(25);

const NEWEST: &str = "state.json";
const LAST: &str = "state.json.last";
const NEXT: &str = "state.json.next";
const CORRUPT: &str = "state.json.corrupt";

/// Puts a state in the place of the one that is there, which is kept beside.
fn replace(folder: &Path, state: &[u8]) -> Result<(), StoreError> {
    let [newest, last, next] = [NEWEST, LAST, NEXT].map(|name| folder.join(name));
    failpoint::pass("a state is to be written");
    let written = File::create(&next).and_then(|mut file| {
        file.write_all(state)?;
        failpoint::pass_unsynced("a state is written", &next, 0);
        file.sync_all()
    });
    if let Err(error) = written {
        // It may have taken the last of the space.
        let _removed = fs::remove_file(&next);
        return Err(StoreError::io("write", &next, &error));
    }
    failpoint::pass("a state is synced");
    match fs::rename(&newest, &last) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(StoreError::io("rename", &newest, &error));
        }
        _ => {}
    }
    failpoint::pass("the state of before is kept");
    fs::rename(&next, &newest).map_err(|error| StoreError::io("rename", &next, &error))?;
    failpoint::pass("a state is in its place");
    sync_folder(folder)?;
    failpoint::pass("a state's folder is synced");
    Ok(())
}

/// Takes a newest state that cannot be read out of the way, if there is one.
fn set_aside(folder: &Path, problems: &mut Vec<StoreError>) {
    let newest = folder.join(NEWEST);
    match fs::rename(&newest, folder.join(CORRUPT)) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => problems.push(StoreError::io("rename", &newest, &error)),
    }
}

/// A state, if there is one that is whole.
fn read_state(file: &Path, problems: &mut Vec<StoreError>) -> Result<Option<State<Record>>, StoreError> {
    let bytes = match fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        // Whoever runs this has to know: with the state of yesterday, yesterday's version comes back.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            return Err(StoreError::io("read", file, &error));
        }
        Err(error) => {
            problems.push(StoreError::io("read", file, &error));
            return Ok(None);
        }
    };
    match sealed::open(&bytes, file, 0) {
        Ok(state) => Ok(Some(state)),
        Err(newer @ StoreError::NewerSchema { .. }) => Err(newer),
        Err(problem) => {
            problems.push(problem);
            Ok(None)
        }
    }
}

/// Makes what was done to a folder's names outlive a crash.
pub(super) fn sync_folder(folder: &Path) -> Result<(), StoreError> {
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|error| StoreError::io("sync", folder, &error))
}

/// Takes the directory for this process. The lock is held by a file that is open for reading, so that the
/// file system can be made read-only meanwhile. In one that is so already there may be none, and need not:
/// nobody can write it.
fn lock(directory: &Path) -> Result<Option<File>, StoreError> {
    let path = directory.join(".lock");
    match OpenOptions::new().append(true).create(true).open(&path) {
        Err(error) if error.kind() != ErrorKind::ReadOnlyFilesystem => {
            return Err(StoreError::io("open", &path, &error));
        }
        _ => {}
    }
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StoreError::io("open", &path, &error)),
    };
    // The one before may have been killed just now, and not be gone yet.
    let mut tries = 0..LOCK_TRIES;
    let locked = loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if tries.next().is_some() => thread::sleep(LOCK_PAUSE),
            locked => break locked,
        }
    };
    match locked {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut process = String::new();
            let told = file.read_to_string(&mut process);
            let process = match told {
                Ok(1..) => format!("number {}", process.trim()),
                _ => "of another name".to_owned(),
            };
            return Err(StoreError::Locked { directory: directory.to_owned(), process });
        }
        Err(TryLockError::Error(error)) => return Err(StoreError::io("lock", &path, &error)),
    }
    // Only for whoever is told that it is locked: a full disk may well say no.
    let _told = fs::write(&path, std::process::id().to_string());
    Ok(Some(file))
}
