//! Running a program as a hook: what is told comes on its standard input and in its environment, and its exit
//! status is the answer.

use std::process::Stdio;

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{self, AsyncReadExt as _, AsyncWriteExt as _},
    process::Command,
    time::{self, Duration},
};

use super::hook::{Failed, Payload, shown};

/// Bytes of its standard error that are looked at.
const MAX_SAID: usize = 4096;
/// How long one waits for what a program has said that has ended.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// Everything that a program has started and that has stayed in its group. It ends with this.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // Gone already, most often.
            let _gone = kill_process_group(group, Signal::KILL);
        }
    }
}

/// Runs a program to its end; with this future, everything that it has started ends.
///
/// # Errors
/// When it does not end with 0, with the beginning of what it said on its standard error: that is its answer, and
/// asking again until there is another would be none.
pub(super) async fn run(exec: &[String], payload: &Payload, body: &[u8]) -> Result<(), Failed> {
    let (program, arguments) = exec.split_first().context("no program")?;
    let mut child = Command::new(program)
        .args(arguments)
        .envs(payload.environment())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot run {program}"))?;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    let _group = Group(pid.and_then(Pid::from_raw));
    let mut stdin = child.stdin.take().context("no standard input")?;
    let mut stderr = child.stderr.take().context("no standard error")?.take(MAX_SAID as u64);
    let mut said = Vec::new();
    let status = {
        let talk = async {
            // Who does not want to know need not read it.
            let _unread = stdin.write_all(body).await;
            drop(stdin);
            let _closed = stderr.read_to_end(&mut said).await;
            // What is not looked at is read all the same: in a pipe that is full it would stand still.
            let _rest = io::copy(stderr.get_mut(), &mut io::sink()).await;
            std::future::pending::<std::convert::Infallible>().await
        };
        tokio::select! {
            status = child.wait() => status.context("cannot wait for it")?,
            never = talk => match never {},
        }
    };
    if status.success() {
        return Ok(());
    }
    // What it has started may live on and keep this open.
    let _open = time::timeout(LAST_WORDS, stderr.read_to_end(&mut said)).await;
    let why = match said.is_empty() {
        true => status.to_string(),
        false => format!("{status}: {}", shown(&said)),
    };
    Err(Failed { why, is_passing: false })
}
