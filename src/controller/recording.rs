//! Writes down what rollouts are judged by, so that [`Replay`](crate::rollout::recording::Replay) can judge
//! it again: a file for each rollout, a line for each tick.
//!
//! Each is written by a thread of its own, which is there for as long as the rollout: a disk that is slow, full
//! or gone holds up no decision. What cannot be written ends the recording, with the reason in the log, and
//! never the rollout; a recording with a gap would give other verdicts.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead as _, BufReader, Seek as _, SeekFrom, Write as _},
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread,
};

use serde::Deserialize;
use tokio::sync::oneshot;

use super::{Answer, gained::Gained, service::ServiceTask};
use crate::{
    analysis::error_rate::Sample,
    config::Recordings,
    model::{name::ServiceName, time::Timestamp},
    rollout::{
        check::CheckStatus,
        phase::Phase,
        recording::{Endpoint, Line},
    },
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
    queue: SyncSender<Message>,
    /// Whether the first line has been given to it.
    begun: bool,
}

/// What its thread is given.
#[derive(Debug)]
enum Message {
    Line(Box<Line>),
    /// To be told when all is written that was given before.
    Written(oneshot::Sender<()>),
}

/// What is recorded, and where.
#[derive(Debug)]
struct Subject {
    recordings: Recordings,
    service: ServiceName,
    rollout: String,
    /// Of a rollout that goes on after a restart, when that was saved from which it does.
    saved: Option<Timestamp>,
}

/// Why a recording ends before its rollout.
#[derive(Debug, PartialEq, Eq)]
struct Lost {
    /// Whether the thread has not said so itself.
    is_news: bool,
}

impl Recording {
    /// Begins a recording, or goes on with it. Nothing is made before there is a line.
    fn begin(subject: Subject) -> io::Result<Self> {
        let (queue, source) = sync_channel(QUEUE);
        let begun = subject.saved.is_some();
        thread::Builder::new().name("recording".to_owned()).spawn(move || {
            if let Err(error) = subject.write(&source) {
                let Subject { recordings, service, rollout, saved: _ } = &subject;
                let directory = recordings.directory.display();
                tracing::error!(%service, rollout, %directory, %error, "the rollout is recorded no further");
            }
        })?;
        Ok(Self { queue, begun })
    }

    fn take(&self, line: Box<Line>) -> Result<(), Lost> {
        let sent = self.queue.try_send(Message::Line(line));
        sent.map_err(|error| Lost { is_news: matches!(error, TrySendError::Full(_)) })
    }
}

impl ServiceTask {
    /// A rollout begins, or goes on from what was `saved`: it is recorded, if that is wanted.
    pub(super) fn begin_recording(&mut self, saved: Option<Timestamp>) {
        let recordings = self.config.rollout.recordings.as_ref();
        self.recording = recordings.zip(self.record.as_ref()).and_then(|(recordings, rollout)| {
            let begun = Recording::begin(Subject {
                recordings: recordings.clone(),
                service: self.config.name.clone(),
                rollout: rollout.id.clone(),
                saved,
            });
            let failed =
                |error| tracing::error!(service = %self.config.name, %error, "the rollout is not recorded");
            begun.map_err(failed).ok()
        });
    }

    /// What came in with a tick, to be written down once all is known; nothing where nothing is recorded.
    pub(super) fn line(&self, at: Timestamp, phase: &Phase, gained: &Gained) -> Option<Box<Line>> {
        let recording = self.recording.as_ref()?;
        let routes: Vec<Arc<str>> = self.analysis.routes_told().cloned().collect();
        let mut line = gained.tell(|tick| Line::of(at, (phase, self.weight), tick, &routes)).map(Box::new)?;
        if !recording.begun {
            line.learned = Some(Box::new(self.analysis.learned()));
        }
        line.guards_only = self.record.as_ref().is_some_and(|record| record.guards_only);
        if phase.step().is_some() {
            let endpoint = |(address, Sample { requests, failures }): (SocketAddr, Sample)| {
                let gone = !self.is_there(address);
                Endpoint { endpoint: address.to_string().into(), requests, failures, gone }
            };
            line.endpoints = self.counted().map(endpoint).collect();
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

    /// Whoever is answered by what is returned hears of it when everything is written that was recorded
    /// until then.
    pub(super) fn when_written(&self, answer: Answer) -> Answer {
        let Some(queue) = self.recording.as_ref().map(|recording| recording.queue.clone()) else {
            return answer;
        };
        let (first, asked) = oneshot::channel();
        tokio::spawn(async move {
            let Ok(result) = asked.await else { return };
            let (done, written) = oneshot::channel();
            // Where nothing can be written any more, nobody waits for it.
            let _lost = queue.try_send(Message::Written(done));
            let _gone = written.await;
            let _gone = answer.send(result);
        });
        first
    }
}

impl Subject {
    /// Writes lines for as long as any can come.
    fn write(&self, messages: &Receiver<Message>) -> io::Result<()> {
        let (mut opened, mut text) = (None, Vec::new());
        for message in messages {
            let line = match message {
                Message::Line(line) => line,
                Message::Written(done) => {
                    // Whoever has stopped waiting need not know.
                    let _gone = done.send(());
                    continue;
                }
            };
            text.clear();
            serde_json::to_writer(&mut text, &line)?;
            text.push(b'\n');
            let (file, length) = match &mut opened {
                Some(opened) => opened,
                None => opened.insert(self.open()?),
            };
            if *length + text.len() as u64 > LARGEST {
                return Err(io::Error::other(format!("it would be larger than {} MiB", LARGEST >> 20)));
            }
            // A part of a line is no line.
            file.write_all(&text).or_else(|error| file.set_len(*length).and(Err(error)))?;
            *length += text.len() as u64;
        }
        Ok(())
    }

    /// Its file, and how long that is.
    fn open(&self) -> io::Result<(File, u64)> {
        let Recordings { directory, keep } = &self.recordings;
        let path = directory.join(format!("{}{EXTENSION}", self.rollout));
        if let Some(saved) = self.saved {
            return go_on(&path, saved);
        }
        fs::create_dir_all(directory)?;
        remove_oldest(directory, &self.service, keep.saturating_sub(1) as usize)?;
        let file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(path)?;
        Ok((file, 0))
    }
}

/// A recording without what came after what was saved: from there the rollout has gone on another way.
fn go_on(path: &Path, saved: Timestamp) -> io::Result<(File, u64)> {
    #[derive(Deserialize)]
    struct When {
        at: Timestamp,
    }
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    let (mut reader, mut text, mut length) = (BufReader::new(&file), String::new(), 0);
    while reader.read_line(&mut text)? > 0 {
        // The last one may be there in part.
        match serde_json::from_str(&text) {
            Ok(When { at }) if at <= saved && text.ends_with('\n') => length += text.len() as u64,
            _ => break,
        }
        text.clear();
    }
    file.set_len(length)?;
    file.seek(SeekFrom::Start(length))?;
    Ok((file, length))
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

    fn line(at: u64) -> Message {
        let text = format!(r#"{{"at":{at},"phase":"idle","stable":{{"requests":1,"failures":0}}}}"#);
        Message::Line(Box::new(serde_json::from_str(&text).unwrap()))
    }

    fn subject(directory: &Path, rollout: &str, saved: Option<u64>) -> Subject {
        let recordings = Recordings { directory: directory.to_owned(), keep: 2 };
        let (service, saved) = ("web".parse().unwrap(), saved.map(Timestamp::from_millis));
        Subject { recordings, service, rollout: rollout.to_owned(), saved }
    }

    /// Writes lines of these moments.
    fn write(subject: &Subject, moments: &[u64]) -> io::Result<()> {
        let (sender, source) = sync_channel(QUEUE);
        moments.iter().for_each(|at| sender.send(line(*at)).unwrap());
        drop(sender);
        subject.write(&source)
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
        write(&subject(folder.path(), "web-11", None), &[1]).unwrap();
        let mut left = [&others[..], &["web-10.jsonl", "web-11.jsonl"]].concat();
        left.sort_unstable();
        assert_eq!(names(folder.path()), left);
    }

    #[test]
    fn nothing_is_made_without_a_line_and_nothing_is_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("new");
        let subject = subject(&directory, "web-1", None);
        write(&subject, &[]).unwrap();
        assert!(!directory.exists());
        write(&subject, &[1, 2]).unwrap();
        assert_eq!(fs::read_to_string(directory.join("web-1.jsonl")).unwrap().lines().count(), 2);
        assert_eq!(write(&subject, &[3]).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn after_a_restart_it_goes_on_from_what_was_saved() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web-1.jsonl");
        write(&subject(folder.path(), "web-1", None), &[1, 2, 3, 4]).unwrap();
        let whole = fs::read_to_string(&path).unwrap();
        let moments = || {
            let text = fs::read_to_string(&path).unwrap();
            let at = |line: &str| serde_json::from_str::<Line>(line).unwrap().at.as_millis();
            text.lines().map(at).collect::<Vec<_>>()
        };
        write(&subject(folder.path(), "web-1", Some(2)), &[7]).unwrap();
        assert_eq!(moments(), [1, 2, 7]);
        // The process was killed in the middle of a line.
        fs::write(&path, &whole[..whole.len() - 9]).unwrap();
        write(&subject(folder.path(), "web-1", Some(9)), &[10]).unwrap();
        assert_eq!(moments(), [1, 2, 3, 10]);
        let gone = write(&subject(folder.path(), "web-2", Some(9)), &[10]).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn who_does_not_keep_up_is_given_no_more() {
        let (queue, source) = sync_channel(1);
        let recording = Recording { queue, begun: false };
        let take = || match line(1) {
            Message::Line(line) => recording.take(line),
            Message::Written(_) => Ok(()),
        };
        assert_eq!(take(), Ok(()));
        assert_eq!(take(), Err(Lost { is_news: true }));
        drop(source);
        assert_eq!(take(), Err(Lost { is_news: false }));
    }
}
