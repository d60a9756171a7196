//! The users: a steady stream of requests over kept connections, and how many of them failed.
//!
//! The pace does not depend on the answers. A beat that comes too late is left out instead of made
//! up for, so that a slow machine gets less load rather than all of it at once.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    task::{self, JoinSet},
    time::{self, MissedTickBehavior},
};

use super::{backend::NAME_FIELD, thread::Thread};
use crate::{clock, model::time::Timestamp};

/// Requests a second, over all connections.
pub(super) const RATE: u32 = 500;
/// Connections; each has at most one request under way.
const CONNECTIONS: u32 = 100;
/// How long a user waits for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Requests that ended, and those of them that failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) requests: u64,
    pub(super) failures: u64,
}

impl Counts {
    /// What came in since `earlier`.
    pub(super) fn since(self, earlier: Self) -> Self {
        Self { requests: self.requests - earlier.requests, failures: self.failures - earlier.failures }
    }
}

/// What makes a request of a new version the first bad one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sign {
    /// It failed.
    Failure,
    /// It was answered at all: every answer is slow, or may be.
    Answer,
    /// Nobody answered it.
    Silence,
}

#[derive(Debug)]
struct State {
    /// Where even and odd connections go.
    paths: [&'static str; 2],
    counts: Counts,
    suspect: Option<Suspect>,
}

#[derive(Debug)]
struct Suspect {
    backend: String,
    sign: Sign,
    first: Option<Timestamp>,
}

impl State {
    /// Counts one request: who answered it, if anybody, and whether it failed.
    fn count(&mut self, backend: Option<&str>, failed: bool, now: Timestamp) {
        self.counts.requests += 1;
        self.counts.failures += u64::from(failed);
        if let Some(suspect) = &mut self.suspect
            && suspect.first.is_none()
            && match suspect.sign {
                Sign::Silence => failed && backend.is_none(),
                Sign::Failure => failed && backend == Some(suspect.backend.as_str()),
                Sign::Answer => backend == Some(suspect.backend.as_str()),
            }
        {
            suspect.first = Some(now);
        }
    }
}

/// A handle on the load; dropping it ends it.
#[derive(Debug)]
pub(super) struct Load {
    state: Arc<Mutex<State>>,
    _thread: Thread,
}

impl Load {
    /// Starts sending to the proxy, for at most `limit`.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(super) fn start(proxy: SocketAddr, limit: Option<Duration>) -> io::Result<Self> {
        let state = State { paths: ["/"; 2], counts: Counts::default(), suspect: None };
        let state = Arc::new(Mutex::new(state));
        let shared = Arc::clone(&state);
        let thread = Thread::spawn("demo-load", move || async move {
            let mut users = JoinSet::new();
            for number in 0..CONNECTIONS {
                users.spawn_local(user(number, proxy, Arc::clone(&shared)));
            }
            match limit {
                Some(limit) => time::sleep(limit).await,
                None => std::future::pending().await,
            }
        })?;
        Ok(Self { state, _thread: thread })
    }

    /// Half of the connections ask for the one path from now on, half for the other.
    pub(super) fn ask_for(&self, paths: [&'static str; 2]) {
        lock(&self.state).paths = paths;
    }

    /// All requests so far.
    pub(super) fn counts(&self) -> Counts {
        lock(&self.state).counts
    }

    /// From now on, looks for the first bad request of a backend.
    pub(super) fn suspect(&self, backend: &str, sign: Sign) {
        lock(&self.state).suspect = Some(Suspect { backend: backend.to_owned(), sign, first: None });
    }

    /// When the first bad request ended, if there was one.
    pub(super) fn first_bad(&self) -> Option<Timestamp> {
        lock(&self.state).suspect.as_ref().and_then(|suspect| suspect.first)
    }
}

/// Plain counts are whole at any moment, even where somebody panicked beside them.
fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One user, who asks at every beat.
async fn user(number: u32, proxy: SocketAddr, state: Arc<Mutex<State>>) {
    let (first, period) = beat(number);
    let mut beat = time::interval_at(time::Instant::now() + first, period);
    beat.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut connection = None;
    for order in (u64::from(number)..).step_by(CONNECTIONS as usize) {
        beat.tick().await;
        let path = lock(&state).paths[(number % 2) as usize];
        let target = format!("{path}?order={order}");
        let answer = time::timeout(PATIENCE, ask(&mut connection, proxy, &target)).await;
        let (backend, failed) = match answer {
            Ok(Ok(answer)) => (answer.backend, answer.failed),
            Ok(Err(_)) | Err(_) => {
                connection = None;
                (None, true)
            }
        };
        lock(&state).count(backend.as_deref(), failed, clock::now());
    }
}

/// A user's first beat and the time between beats, so that all together make an even stream.
fn beat(number: u32) -> (Duration, Duration) {
    let period = Duration::from_secs(1) * CONNECTIONS / RATE;
    (period * number / CONNECTIONS, period)
}

struct Answer {
    backend: Option<String>,
    failed: bool,
}

type Connection = SendRequest<Empty<Bytes>>;

async fn ask(connection: &mut Option<Connection>, proxy: SocketAddr, path: &str) -> anyhow::Result<Answer> {
    if connection.as_ref().is_none_or(Connection::is_closed) {
        let stream = TcpStream::connect(proxy).await.context("cannot connect to the proxy")?;
        stream.set_nodelay(true)?;
        let (sender, driver) = http1::handshake(TokioIo::new(stream)).await?;
        task::spawn_local(driver);
        *connection = Some(sender);
    }
    let sender = connection.as_mut().context("it was just made")?;
    sender.ready().await?;
    let request = Request::get(path)
        .header(header::HOST, "demo.test")
        .body(Empty::new())
        .context("the parts are valid")?;
    let response = sender.send_request(request).await?;
    let failed = response.status().is_server_error();
    let backend = response.headers().get(NAME_FIELD).and_then(|name| name.to_str().ok()).map(str::to_owned);
    response.into_body().collect().await?;
    Ok(Answer { backend, failed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beats_make_the_rate() {
        let (first, period) = beat(0);
        assert_eq!((first, period), (Duration::ZERO, Duration::from_millis(200)));
        assert_eq!(beat(CONNECTIONS - 1).0, Duration::from_millis(198));
    }

    #[test]
    fn only_the_suspect_is_caught_and_only_once() {
        let suspect = Suspect { backend: "green".to_owned(), sign: Sign::Failure, first: None };
        let mut state = State { paths: ["/"; 2], counts: Counts::default(), suspect: Some(suspect) };
        let at = Timestamp::from_millis;
        state.count(Some("blue"), true, at(1));
        state.count(Some("green"), false, at(2));
        state.count(Some("green"), true, at(3));
        state.count(Some("green"), true, at(4));
        state.count(None, true, at(5));
        assert_eq!(state.suspect.take().unwrap().first, Some(at(3)));
        assert_eq!(state.counts, Counts { requests: 5, failures: 4 });
        let silent = Suspect { backend: "green".to_owned(), sign: Sign::Silence, first: None };
        state.suspect = Some(silent);
        state.count(Some("green"), true, at(6));
        state.count(None, true, at(7));
        assert_eq!(state.suspect.unwrap().first, Some(at(7)));
    }
}
