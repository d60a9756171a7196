//! The thread that writes the log.

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::PathBuf,
    sync::mpsc::TryRecvError,
    thread,
    time::Duration,
};

use super::{Counts, Reopen, format, queue::Source};
use crate::config::{AccessLog as Settings, LogFormat, LogOutput};

/// How long the writer rests when it has written all there was.
const PAUSE: Duration = Duration::from_millis(20);

/// Bytes from which on lines are written before more are made.
const ENOUGH: usize = 64 * 1024;

/// Who may read a new file: its owner, and the owner's group. Addresses and paths tell of people.
const MODE: u32 = 0o640;

/// Makes lines of records and writes them.
#[derive(Debug)]
pub(super) struct Writer {
    sources: Vec<Source>,
    format: LogFormat,
    output: Output,
    lines: Vec<u8>,
    count: u64,
    reopen: Reopen,
    counts: Counts,
    /// The last attempt failed, so the next one that does is no news.
    failing: bool,
    /// A line may have been written in part.
    torn: bool,
}

/// What one look at the queues has brought.
enum Gathered {
    /// As much as is written at a time; there may be more.
    Enough,
    /// All there was.
    All,
    /// The last there ever will be.
    Last,
}

impl Writer {
    /// Opens the output.
    ///
    /// # Errors
    /// When it is a file that cannot be opened.
    pub(super) fn open(
        settings: &Settings,
        sources: Vec<Source>,
        reopen: Reopen,
        counts: Counts,
    ) -> io::Result<Self> {
        let output = match &settings.output {
            LogOutput::Stdout => Output::Stdout,
            LogOutput::File(path) => Output::File(Opened::open(path.clone())?),
        };
        let (format, lines) = (settings.format, Vec::new());
        Ok(Self { sources, format, output, lines, count: 0, reopen, counts, failing: false, torn: false })
    }

    /// Writes until no more records can come.
    pub(super) fn run(mut self) {
        loop {
            let gathered = self.gather();
            let renewed = self.renew();
            let written = self.write();
            self.failing &= !(renewed && written);
            match gathered {
                Gathered::Enough => {}
                Gathered::All => thread::sleep(PAUSE),
                Gathered::Last => return,
            }
        }
    }

    /// Makes lines of what the queues hold, in turn.
    fn gather(&mut self) -> Gathered {
        let (format, lines, count) = (self.format, &mut self.lines, &mut self.count);
        let mut enough = false;
        self.sources.retain(|source| {
            while lines.len() < ENOUGH {
                match source.take() {
                    Ok(record) => {
                        format::line(format, &record, lines);
                        *count += 1;
                    }
                    Err(TryRecvError::Empty) => return true,
                    Err(TryRecvError::Disconnected) => return false,
                }
            }
            enough = true;
            true
        });
        // Whoever was first this time is last the next.
        if enough {
            self.sources.rotate_left(1);
            return Gathered::Enough;
        }
        if self.sources.is_empty() { Gathered::Last } else { Gathered::All }
    }

    /// Opens the file anew, if somebody asks for it or the path is not that file any more. Whether there
    /// are lines to write, and they have the right place to go to.
    fn renew(&mut self) -> bool {
        let (asked, has_lines) = (self.reopen.take(), !self.lines.is_empty());
        let Output::File(opened) = &mut self.output else { return has_lines };
        if !asked && (!has_lines || opened.is_in_place()) {
            return has_lines;
        }
        match Opened::open(opened.path.clone()) {
            Ok(anew) => {
                // A part of a line stays where it is.
                self.torn &= anew.id == opened.id;
                *opened = anew;
                has_lines
            }
            Err(error) => {
                // What was moved away is still open, and better than nothing.
                self.failed(&error);
                false
            }
        }
    }

    /// Writes the lines; whether that went well.
    fn write(&mut self) -> bool {
        if self.lines.is_empty() {
            return true;
        }
        let written = self.output.write(&self.lines, self.torn);
        self.torn = written.is_err();
        if let Err(error) = &written {
            self.counts.dropped.inc_by(self.count);
            self.failed(error);
        }
        self.lines.clear();
        self.count = 0;
        written.is_ok()
    }

    fn failed(&mut self, error: &io::Error) {
        self.counts.write_errors.inc();
        if !std::mem::replace(&mut self.failing, true) {
            tracing::error!(%error, output = %self.output, "the access log cannot be written");
        }
    }
}

/// Where lines go.
#[derive(Debug)]
enum Output {
    Stdout,
    File(Opened),
}

impl Output {
    fn write(&mut self, lines: &[u8], torn: bool) -> io::Result<()> {
        let start: &[u8] = if torn { b"\n" } else { b"" };
        match self {
            Self::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(start)?;
                out.write_all(lines)?;
                out.flush()
            }
            Self::File(opened) => {
                opened.file.write_all(start)?;
                opened.file.write_all(lines)
            }
        }
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stdout => f.write_str("stdout"),
            Self::File(opened) => opened.path.display().fmt(f),
        }
    }
}

/// A file, and which one it is.
#[derive(Debug)]
struct Opened {
    path: PathBuf,
    file: File,
    id: (u64, u64),
}

fn id(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

impl Opened {
    fn open(path: PathBuf) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).mode(MODE).open(&path)?;
        let id = id(&file.metadata()?);
        Ok(Self { path, file, id })
    }

    /// Whether its path still leads to it.
    fn is_in_place(&self) -> bool {
        fs::metadata(&self.path).is_ok_and(|metadata| id(&metadata) == self.id)
    }
}
