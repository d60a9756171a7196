//! Writes down what rollouts are judged by, so that [`Replay`](crate::rollout::recording::Replay) can judge
//! it again: a file for each rollout, a line for each tick.
//!
//! Each is written by a thread of its own, which is there for as long as the rollout: a disk that is slow, full
//! or gone holds up no decision. What cannot be written ends the recording, with the reason in the log, and
//! never the rollout; a recording with a gap would give other verdicts.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread,
};

use tokio::sync::oneshot;

use super::{
    Answer,
    gained::{Gained, sample},
    service::ServiceTask,
};
use crate::{
    analysis::error_rate::Sample,
    clock,
    config::Recordings,
    model::name::ServiceName,
    rollout::{
        check::CheckStatus,
        phase::Phase,
        recording::{Endpoint, Line},
    },
    telemetry::reader::Counted,
};

/// Lines that may wait for the disk.
const QUEUE: usize = 64;

/// The largest recording: days of a rollout that waits for somebody.
const LARGEST: u64 = 256 << 20;

/// Who may read one: its owner. It tells how much traffic there is, and on which routes.
const MODE: u32 = 0o600;

/// What a recording's name ends with.
const EXTENSION: &str = ".jsonl";

/// The recording of the rollout that runs.
#[derive(Debug)]
pub(super) struct Recording {
    lines: SyncSender<Box<Line>>,
    /// Comes when everything is written.
    written: oneshot::Receiver<()>,
    /// Whether the first line has been given to it.
    begun: bool,
}

/// Why a recording ends before its rollout.
#[derive(Debug, PartialEq, Eq)]
struct Lost {
    /// Whether the thread has not said so itself.
    is_news: bool,
}

impl Recording {
    /// Begins the recording of a rollout with this id. Nothing is made before there is a line.
    fn begin(recordings: &Recordings, service: &ServiceName, rollout: &str) -> io::Result<Self> {
        let (lines, source) = sync_channel(QUEUE);
        let (done, written) = oneshot::channel();
        let (recordings, service, rollout) = (recordings.clone(), service.clone(), rollout.to_owned());
        thread::Builder::new().name("recording".to_owned()).spawn(move || {
            if let Err(error) = write(&recordings, &service, &rollout, &source) {
                let directory = recordings.directory.display();
                tracing::error!(%service, %rollout, %directory, %error, "the rollout is recorded no further");
            }
            // Nobody may wait for it.
            let _gone = done.send(());
        })?;
        Ok(Self { lines, written, begun: false })
    }

    fn take(&self, line: Box<Line>) -> Result<(), Lost> {
        self.lines.try_send(line).map_err(|error| Lost { is_news: matches!(error, TrySendError::Full(_)) })
    }
}

impl ServiceTask {
    /// A rollout begins: it is recorded, if that is wanted.
    pub(super) fn begin_recording(&mut self) {
        let recordings = self.config.rollout.recordings.as_ref();
        self.recording = recordings.zip(self.record.as_ref()).and_then(|(recordings, rollout)| {
            let begun = Recording::begin(recordings, &self.config.name, &rollout.id);
            let failed =
                |error| tracing::error!(service = %self.config.name, %error, "the rollout is not recorded");
            begun.map_err(failed).ok()
        });
    }

    /// What came in with a tick, to be written down once all is known; nothing where nothing is recorded.
    pub(super) fn line(&self, phase: &Phase, gained: &Gained) -> Option<Box<Line>> {
        let recording = self.recording.as_ref()?;
        let routes: Vec<Arc<str>> = self.analysis.routes_told().cloned().collect();
        let mut line =
            gained.tell(|tick| Line::of(clock::now(), (phase, self.weight), tick, &routes)).map(Box::new)?;
        if !recording.begun {
            line.learned = Some(Box::new(self.analysis.learned()));
        }
        if phase.step().is_some() {
            let endpoint = |(address, counted): (SocketAddr, Counted)| {
                let Sample { requests, failures } = sample(counted);
                Endpoint { endpoint: address.to_string().into(), requests, failures }
            };
            line.endpoints = self.counted().into_iter().map(endpoint).collect();
        }
        Some(line)
    }

    /// Has it written down, with how the checks stood by which it was judged.
    pub(super) fn write_down(&mut self, line: Option<Box<Line>>, checks: Vec<CheckStatus>) {
        let (Some(mut line), Some(recording)) = (line, &mut self.recording) else { return };
        line.checks = checks;
        recording.begun = true;
        if let Err(lost) = recording.take(line) {
            self.recording = None;
            if lost.is_news {
                tracing::error!(
                    service = %self.config.name,
                    "the disk does not keep up: the rollout is recorded no further"
                );
            }
        }
    }

    /// Ends the recording; whoever is answered by what is returned hears of it when everything is written.
    pub(super) fn end_recording(&mut self, answer: Answer) -> Answer {
        let Some(Recording { lines, written, .. }) = self.recording.take() else { return answer };
        drop(lines);
        let (first, asked) = oneshot::channel();
        tokio::spawn(async move {
            let Ok(result) = asked.await else { return };
            // A thread that is gone writes no more.
            let _gone = written.await;
            let _gone = answer.send(result);
        });
        first
    }
}

/// Writes lines for as long as any can come.
fn write(
    recordings: &Recordings,
    service: &ServiceName,
    rollout: &str,
    lines: &Receiver<Box<Line>>,
) -> io::Result<()> {
    let (mut file, mut length, mut text) = (None, 0, Vec::new());
    for line in lines {
        text.clear();
        serde_json::to_writer(&mut text, &line)?;
        text.push(b'\n');
        let file = match &mut file {
            Some(file) => file,
            None => file.insert(create(recordings, service, rollout)?),
        };
        let whole = length;
        length += text.len() as u64;
        if length > LARGEST {
            return Err(io::Error::other(format!("it would be larger than {} MiB", LARGEST >> 20)));
        }
        // A part of a line is no line.
        file.write_all(&text).or_else(|error| file.set_len(whole).and(Err(error)))?;
    }
    Ok(())
}

/// Makes the file, in the place of the oldest if there are enough.
fn create(recordings: &Recordings, service: &ServiceName, rollout: &str) -> io::Result<File> {
    let Recordings { directory, keep } = recordings;
    fs::create_dir_all(directory)?;
    remove_oldest(directory, service, keep.saturating_sub(1) as usize)?;
    let path = directory.join(format!("{rollout}{EXTENSION}"));
    OpenOptions::new().write(true).create_new(true).mode(MODE).open(path)
}

/// Removes the oldest recordings of a service but so many.
fn remove_oldest(directory: &Path, service: &ServiceName, keep: usize) -> io::Result<()> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if let Some(began) = entry.file_name().to_str().and_then(|name| began(name, service)) {
            found.push((began, entry.path()));
        }
    }
    found.sort_unstable();
    found[..found.len().saturating_sub(keep)].iter().try_for_each(|(_, path)| fs::remove_file(path))
}

/// When the rollout of a service began whose recording has this name, if it is one.
fn began(name: &str, service: &ServiceName) -> Option<u64> {
    let millis = name.strip_suffix(EXTENSION)?.strip_prefix(service.as_str())?.strip_prefix('-')?;
    // Another service may be called `web-2`.
    if millis.bytes().all(|byte| byte.is_ascii_digit()) { millis.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line() -> Box<Line> {
        Box::new(
            serde_json::from_str(r#"{"at":1,"phase":"idle","stable":{"requests":1,"failures":0}}"#).unwrap(),
        )
    }

    fn recordings(directory: &Path) -> Recordings {
        Recordings { directory: directory.to_owned(), keep: 2 }
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn the_oldest_of_the_same_service_make_room() {
        let folder = tempfile::tempdir().unwrap();
        let others = ["web-2-5.jsonl", "api-1.jsonl", "web-x.jsonl", "web-4.txt"];
        for name in ["web-9.jsonl", "web-10.jsonl", "web-8.jsonl"].iter().chain(&others) {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let service = "web".parse().unwrap();
        create(&recordings(folder.path()), &service, "web-11").unwrap();
        let mut left = [&others[..], &["web-10.jsonl", "web-11.jsonl"]].concat();
        left.sort_unstable();
        assert_eq!(names(folder.path()), left);
    }

    #[test]
    fn nothing_is_made_without_a_line_and_nothing_is_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let (recordings, service) = (recordings(&folder.path().join("new")), "web".parse().unwrap());
        let written = |lines: usize| {
            let (sender, source) = sync_channel(QUEUE);
            (0..lines).for_each(|_| sender.send(line()).unwrap());
            drop(sender);
            write(&recordings, &service, "web-1", &source)
        };
        written(0).unwrap();
        assert!(!recordings.directory.exists());
        written(2).unwrap();
        assert_eq!(fs::read_to_string(recordings.directory.join("web-1.jsonl")).unwrap().lines().count(), 2);
        assert_eq!(written(1).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn who_does_not_keep_up_is_given_no_more() {
        let (lines, source) = sync_channel(1);
        let (_done, written) = oneshot::channel();
        let recording = Recording { lines, written, begun: false };
        assert_eq!(recording.take(line()), Ok(()));
        assert_eq!(recording.take(line()), Err(Lost { is_news: true }));
        drop(source);
        assert_eq!(recording.take(line()), Err(Lost { is_news: false }));
    }
}
