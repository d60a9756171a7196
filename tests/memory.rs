//! How much memory there is, counted in bytes that are allocated: what a connection takes that is idle, that
//! configurations and weights leave nothing behind, and that a tick of the analysis takes none.
//!
//! In a binary of its own, because the allocator counts for the whole process. Resident memory, which people see, says
//! less: it is also what the allocator keeps for later, and what the kernel thinks of that.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails, helpers included")]

use std::{
    alloc::System,
    fs,
    hint::black_box,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use cap::Cap;
use tidegate::{
    analysis::{
        Analysis, ArmTick, Sent, Tick,
        error_rate::Sample,
        paired,
        settings::Settings,
        users::{Firsts, Users},
        verdict::Arms,
    },
    app::{self, Options},
    config::load::load,
    model::{histogram::Histogram, weight::Weight},
};
use tokio::sync::oneshot;

#[path = "it/support/eventually.rs"]
#[expect(dead_code, unreachable_pub, reason = "the other binary has use for all of it")]
mod eventually;

use eventually::eventually;

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

/// One test at a time, or one would count what the other has.
static ALONE: Mutex<()> = Mutex::new(());

/// What is looked at for a connection: by each of these, so that what tables set aside for more is little.
const CLIENTS: usize = 1000;
/// Bytes for each of them: the client (232) and its pipes, the task (128) and its future, the stream, the socket's
/// registration (256), places in the tables of connections and deadlines.
const IDLE: usize = 1664;

/// Rounds of changes after which the configuration is as it was.
const TURN: usize = 60;
/// How many more times these come.
const TURNS: usize = 8;
/// Bytes for each round that may be left: blocks of channels, nodes and places of tables are kept, and it takes about
/// 2,000 rounds until none are added (0.2 MB in all). What a topology takes, or a service, is several times as much.
const LEFT: usize = 512;

/// A Tidegate in this process, and its end.
struct Running {
    listener: SocketAddr,
    admin: SocketAddr,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Running {
    fn start(file: &Path) -> Self {
        let (config, _) = load(file).unwrap();
        let file = file.to_owned();
        let (stop, stopped) = oneshot::channel();
        let (give, take) = std::sync::mpsc::channel();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                // It is told of each change, so it does not have to look.
                let options =
                    Options { configuration: Duration::from_secs(24 * 60 * 60), ..Options::default() };
                let running = app::start(&config, Some(&file), options).await.unwrap();
                give.send((running.listeners[0], running.admin.unwrap())).unwrap();
                stopped.await.unwrap();
                running.drain(Duration::ZERO).await.unwrap();
            });
        });
        let (listener, admin) = take.recv().unwrap();
        Self { listener, admin, stop, thread }
    }

    fn end(self) {
        self.stop.send(()).unwrap();
        self.thread.join().unwrap();
    }

    /// Asks the API, which must agree.
    fn api(&self, method: &str, path: &str, body: &str) {
        let mut connection = TcpStream::connect(self.admin).unwrap();
        let length = body.len();
        write!(
            connection,
            "{method} /api/v1/{path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}",
            self.admin
        )
        .unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{method} {path} {body}: {answer}");
    }
}

/// A connection that has had an answer.
fn ask(address: SocketAddr) -> TcpStream {
    let mut connection = TcpStream::connect(address).unwrap();
    connection.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = [0; 1024];
    let (mut length, text) = (0, b"\r\n\r\nok");
    while !answer[..length].ends_with(text) {
        let n = connection.read(&mut answer[length..]).unwrap();
        assert_ne!(n, 0, "{}", String::from_utf8_lossy(&answer[..length]));
        length += n;
    }
    assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer[..length]));
    connection
}

/// Somebody who answers everything with `ok`, for as long as the test lasts. Each answer is a connection's last: what
/// is kept for the next request would be counted.
fn backend() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for connection in listener.incoming() {
            let mut reader = BufReader::new(connection.unwrap());
            let mut line = String::new();
            while line != "\r\n" {
                line.clear();
                // Whoever makes ready may say nothing.
                if reader.read_line(&mut line).unwrap_or_default() == 0 {
                    break;
                }
            }
            let answer = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";
            // Whoever asked may have gone.
            let _gone = reader.get_mut().write_all(answer.as_bytes());
        }
    });
    address
}

/// What is in force in a round: a listener, a service with its route, an endpoint, retries and a mirror come and go.
fn config(folder: &Path, backends: [SocketAddr; 2], round: usize) -> String {
    let [one, other] = backends;
    let has = |every: usize| round.is_multiple_of(every);
    let endpoints =
        if has(2) { format!(r#""http://{one}", "http://{other}""#) } else { format!(r#""http://{one}""#) };
    let mut text = format!(
        r#"
        workers = 2
        [store]
        path = {:?}
        [admin]
        address = "127.0.0.1:0"
        [[listeners]]
        address = "127.0.0.1:0"
        idle_timeout = "{}s"
        "#,
        folder.join("store"),
        60 + round % 2
    );
    if has(4) {
        text += "[[listeners]]\naddress = \"127.0.0.2:0\"\n";
    }
    text += "[[routes]]\nservice = \"web\"\n";
    if has(3) {
        text += "[[routes]]\npath = \"/extra\"\nservice = \"extra\"\n";
        text += &format!("[services.extra]\nstable = \"v1\"\nbackends.v1.endpoints = [\"http://{other}\"]\n");
    }
    text += &format!(
        r#"
        [services.web]
        stable = "v1"
        canary = "v2"
        backends.v1.endpoints = [{endpoints}]
        backends.v2.endpoints = ["http://{other}"]
        "#
    );
    if has(2) {
        text += "[services.web.retry]\n";
    }
    if has(5) {
        text += "[services.web.mirror]\n";
    }
    text
}

/// How much there is once nothing moves: the least of what is seen for a while.
fn settled() -> usize {
    let mut least = usize::MAX;
    let mut unchanged = 0;
    eventually(
        || {
            let now = ALLOCATOR.allocated();
            unchanged = if now < least { 0 } else { unchanged + 1 };
            least = least.min(now);
            unchanged
        },
        |unchanged| *unchanged > 300,
    );
    least
}

/// Bytes that are allocated while something is done, whether or not they are given back: the least of ten rounds,
/// since other threads may allocate meanwhile.
fn allocated_by(mut something: impl FnMut()) -> usize {
    let rounds = (0..10).map(|_| {
        let before = ALLOCATOR.total_allocated();
        something();
        ALLOCATOR.total_allocated() - before
    });
    rounds.min().unwrap()
}

/// More ticks at a time than lie between two starts of a mixture, after one in which buckets are set aside.
fn allocates_nothing(what: &str, mut tick: impl FnMut()) {
    tick();
    let bytes = allocated_by(|| (0..50).for_each(|_| tick()));
    assert_eq!(bytes, 0, "bytes for 50 ticks {what}");
}

#[test]
fn a_tick_of_the_analysis_allocates_nothing() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    // Every check that there is, and none that ends the rollout.
    let settings = Settings {
        max_error_rate: Some(0.5),
        max_p99: Some(Duration::from_secs(60)),
        max_harm: Some(1e9),
        ..Settings::default()
    };
    let names = (0..8).map(|n| format!("/{n}").into());
    let mut analysis = Analysis::new(&settings, 600).with_routes(&settings, names).with_dark_steps(&settings);
    let mut latency = Histogram::default();
    (0..1_000).for_each(|n| latency.record(Duration::from_micros(50 * n)));
    let sample = Sample { requests: 100, failures: 1 };
    let arm = ArmTick {
        warming: sample,
        sent: Some(Sent { sample, latency: &latency }),
        shielded: 1,
        unserved: 1,
        ..ArmTick::new(1_000, 10, &latency)
    };
    let routes = [Arms { stable: sample, canary: sample }; 8];
    let tick = Tick { stable: arm, canary: arm, routes: &routes, users: None };
    let pairs = paired::Counts { none: 96, stable: 1, canary: 1, both: 2, timed: 100, slower: 50 };
    allocates_nothing("before the rollout", || analysis.observe_before(&arm, None));
    analysis.begin_dark_step();
    allocates_nothing("of a dark step", || _ = black_box(analysis.observe_dark(&tick, &pairs)));
    for next in [Some(Weight::FULL), None] {
        analysis.begin_step(next);
        allocates_nothing("of a step", || _ = black_box(analysis.observe(&tick)));
    }
    let users = Users { routes: vec![Firsts::default(); 8], ..Users::default() };
    let of_users = Tick { users: Some(&users), ..tick };
    // The first time, there is nothing yet that users are known by.
    analysis.observe(&of_users);
    allocates_nothing("of users", || _ = black_box(analysis.observe(&of_users)));
    analysis.begin_baking();
    allocates_nothing("of baking", || _ = black_box(analysis.observe_baking(&arm)));
    // Whoever wants numbers of routes gets a list, so there is something that can be counted.
    analysis.begin_step(Some(Weight::FULL));
    assert!(allocated_by(|| drop(analysis.verdict())) > 0);
}

#[test]
fn a_connection_that_is_idle_takes_little() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    app::raise_open_files_limit().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tidegate.toml");
    let backend = backend();
    fs::write(&file, config(folder.path(), [backend; 2], 1)).unwrap();
    let tidegate = Running::start(&file);
    let mut clients = Vec::with_capacity(CLIENTS);
    drop(ask(tidegate.listener));
    let before = settled();
    clients.extend((0..CLIENTS).map(|_| ask(tidegate.listener)));
    let each = || ALLOCATOR.allocated().saturating_sub(before) / CLIENTS;
    let busy = each();
    let idle = eventually(each, |each| *each <= IDLE);
    assert!(busy > idle, "{busy} bytes each with buffers, {idle} without");
    drop(clients);
    tidegate.end();
}

#[test]
fn what_is_changed_leaves_nothing_behind() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tidegate.toml");
    let backends = [backend(), backend()];
    let write = |round| fs::write(&file, config(folder.path(), backends, round)).unwrap();
    write(0);
    let tidegate = Running::start(&file);
    let turn = |from: usize| {
        for round in from..from + TURN {
            write(round);
            tidegate.api("POST", "reload", "");
            tidegate.api("PUT", "services/web/weight", &format!("{{\"canary\": {}}}", 10 + round % TURN));
            drop(ask(tidegate.listener));
        }
    };
    turn(0);
    let before = settled();
    (1..=TURNS).for_each(|number| turn(number * TURN));
    let (after, rounds) = (settled(), TURNS * TURN);
    assert!(after <= before + rounds * LEFT, "{before} bytes became {after} with {rounds} changes");
    tidegate.end();
}
