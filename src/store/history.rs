//! What has happened to a service, in files that only grow: `history-N.jsonl`, where N is the number of
//! the first entry in it. One that has become large is followed by another; the oldest are removed once
//! all of them together are too large.
//!
//! An entry is a sealed line. The end of the last file may be torn, if the machine went down while it was
//! written: what is not whole there is written over by the next entries. The record has those that were
//! saved with it, so they come again.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use serde_json::value::RawValue;

use super::{error::StoreError, file::sync_folder, record::Brief, sealed};
use crate::failpoint;

/// Files that a full history has at least, about.
const FILES: u64 = 4;
/// Bytes after which a file is followed by another, however large the history may be: to read a page, a whole file is
/// read.
const MAX_FILE: u64 = 4 * 1024 * 1024;
/// How much of a history is read to see how it ends.
const TAIL: u64 = 128 * 1024;

/// A service's history, to add to.
#[derive(Debug)]
pub(super) struct Log {
    folder: PathBuf,
    /// Bytes that all files together may have.
    max: u64,
    /// The file that grows, and how much of it is whole.
    current: Option<(PathBuf, u64)>,
}

/// What a history ends with.
#[derive(Debug, Default)]
pub(super) struct End {
    /// The newest entries, oldest first.
    pub(super) recent: Vec<Brief>,
    /// What is the matter with it.
    pub(super) problems: Vec<StoreError>,
}

/// An entry and its text.
#[derive(Debug, Clone)]
pub struct Line {
    /// What the store knows of it.
    pub brief: Brief,
    /// All of it.
    pub body: Box<RawValue>,
}

impl Log {
    /// Opens a service's history, and reads up to `recent` of its last entries.
    pub(super) fn open(folder: &Path, max: u64, recent: usize) -> Result<(Self, End), StoreError> {
        let mut log = Self { folder: folder.to_owned(), max, current: None };
        let mut end = End::default();
        for file in files(folder)?.into_iter().rev() {
            let Read { lines, from, whole, problems } = read_file(&file, TAIL)?;
            end.problems.extend(problems);
            let newer = std::mem::take(&mut end.recent);
            let older = lines.into_iter().map(|line| line.brief);
            end.recent = older.chain(newer).collect();
            log.current.get_or_insert((file, whole));
            if from > 0 || end.recent.len() >= recent {
                break;
            }
        }
        end.recent.drain(..end.recent.len().saturating_sub(recent));
        Ok((log, end))
    }

    /// Adds entries, the first of which has number `first`, and returns when they would outlive a crash.
    pub(super) fn append(&mut self, entries: &[Box<RawValue>], first: u64) -> Result<(), StoreError> {
        let (path, whole) = match self.current.take() {
            Some((path, whole)) if whole < self.max_file() => (path, whole),
            _ => (self.folder.join(format!("history-{first:012}.jsonl")), 0),
        };
        let lines: Vec<u8> = entries.iter().flat_map(|entry| sealed::seal(entry)).collect();
        let written = write_at(&path, whole, &lines);
        let failed = |error| StoreError::io("add to", &path, &error);
        // What was written in part is cut off before the next attempt, which begins at the same place.
        let whole_now = if written.is_ok() { whole + lines.len() as u64 } else { whole };
        self.current = Some((path.clone(), whole_now));
        written.map_err(failed)?;
        failpoint::pass("a history is synced");
        if whole == 0 {
            sync_folder(&self.folder)?;
            failpoint::pass("a history's new file is synced");
            self.retain()?;
        }
        Ok(())
    }

    fn max_file(&self) -> u64 {
        MAX_FILE.min(self.max / FILES)
    }

    /// Removes the oldest files for as long as all are too large.
    fn retain(&self) -> Result<(), StoreError> {
        let mut files = files(&self.folder)?;
        files.reverse();
        let mut total = 0;
        // The newest is kept whatever it has.
        for (at, file) in files.iter().enumerate() {
            total += fs::metadata(file).map_or(0, |metadata| metadata.len());
            if at > 0 && total + self.max_file() > self.max {
                fs::remove_file(file).map_err(|error| StoreError::io("remove", file, &error))?;
                failpoint::pass("a history's oldest file is removed");
            }
        }
        Ok(())
    }
}

/// The entries before the one of number `before`, the newest first, those of one file at a time. What is not whole is
/// passed over.
///
/// # Errors
/// When the folder cannot be listed; each file that cannot be read is one.
pub(super) fn chapters(
    folder: &Path,
    before: u64,
) -> Result<impl Iterator<Item = Result<Vec<Line>, StoreError>>, StoreError> {
    let files = files(folder)?.into_iter().rev();
    let files = files.filter(move |file| first_of(file).is_none_or(|first| first < before));
    Ok(files.map_while(move |file| match read_file(&file, u64::MAX) {
        Ok(Read { lines, .. }) => {
            Some(Ok(lines.into_iter().rev().filter(|line| line.brief.seq < before).collect()))
        }
        // Removed meanwhile, as the oldest are.
        Err(StoreError::Io { .. }) if !file.exists() => None,
        Err(error) => Some(Err(error)),
    }))
}

/// Up to `limit` of these entries.
///
/// # Errors
/// When a file cannot be read.
pub(super) fn read(folder: &Path, before: u64, limit: usize) -> Result<Vec<Line>, StoreError> {
    let mut found = Vec::new();
    for lines in chapters(folder, before)? {
        found.extend(lines?);
        if found.len() >= limit {
            break;
        }
    }
    found.truncate(limit);
    Ok(found)
}

/// The newest of these entries, as many as one file has; none where there are none at all.
///
/// # Errors
/// When a file cannot be read.
pub(super) fn read_chapter(folder: &Path, before: u64) -> Result<Vec<Line>, StoreError> {
    let mut chapters = chapters(folder, before)?;
    let found = chapters.find(|lines| lines.as_ref().map_or(true, |lines| !lines.is_empty()));
    found.unwrap_or_else(|| Ok(Vec::new()))
}

/// The files of a history, the oldest first.
fn files(folder: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let listed = match fs::read_dir(folder) {
        Ok(listed) => listed,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(StoreError::io("list", folder, &error)),
    };
    let paths = listed.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let mut files: Vec<_> = paths.filter(|path| first_of(path).is_some()).collect();
    files.sort_by_key(|path| first_of(path));
    Ok(files)
}

/// The number of a file's first entry.
fn first_of(file: &Path) -> Option<u64> {
    file.file_name()?.to_str()?.strip_prefix("history-")?.strip_suffix(".jsonl")?.parse().ok()
}

/// What is read of a file.
struct Read {
    lines: Vec<Line>,
    /// Where reading began.
    from: u64,
    /// Where the last whole line ends.
    whole: u64,
    /// What is the matter with the others.
    problems: Vec<StoreError>,
}

/// Reads the last `tail` bytes of a file.
fn read_file(file: &Path, tail: u64) -> Result<Read, StoreError> {
    let (bytes, mut from) = read_tail(file, tail).map_err(|error| StoreError::io("read", file, &error))?;
    let mut bytes = bytes.as_slice();
    if from > 0 {
        // It begins within a line.
        let skipped = bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |at| at + 1);
        bytes = &bytes[skipped..];
        from += skipped as u64;
    }
    let mut read = Read { lines: Vec::new(), from, whole: from, problems: Vec::new() };
    let mut at = from;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let offset = at;
        at += line.len() as u64;
        match read_line(line, file, offset) {
            Ok(line) => {
                read.lines.push(line);
                read.whole = at;
            }
            Err(problem) => read.problems.push(problem),
        }
    }
    Ok(read)
}

fn read_line(line: &[u8], file: &Path, offset: u64) -> Result<Line, StoreError> {
    let corrupt = |what: String| StoreError::Corrupt { file: file.to_owned(), offset, what };
    if !line.ends_with(b"\n") {
        return Err(corrupt("the last line has no end: it was being written when all ended".to_owned()));
    }
    let body = sealed::open::<Box<RawValue>>(line, file, offset)?;
    let brief =
        serde_json::from_str(body.get()).map_err(|error| corrupt(format!("it is no entry: {error}")))?;
    Ok(Line { brief, body })
}

/// The last `tail` bytes of a file, and where they begin.
fn read_tail(file: &Path, tail: u64) -> io::Result<(Vec<u8>, u64)> {
    let mut file = File::open(file)?;
    let from = file.metadata()?.len().saturating_sub(tail);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok((bytes, from))
}

/// Writes bytes at a place in a file, whatever stood there and after, and syncs them.
fn write_at(path: &Path, at: u64, bytes: &[u8]) -> io::Result<()> {
    let mut file: File = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    file.set_len(at)?;
    failpoint::pass("a history is to be written");
    file.seek(SeekFrom::Start(at))?;
    let written = file.write_all(bytes).and_then(|()| {
        failpoint::pass_unsynced("a history is written", path, at);
        file.sync_data()
    });
    if written.is_err() {
        // A part of a line does no harm, since it is not whole; but it may take the last of the space.
        let _cut = file.set_len(at);
    }
    written
}
