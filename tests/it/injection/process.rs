//! A process that stops in a place where it is to be killed.

use std::{
    collections::BTreeSet,
    env, fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::Duration,
};

use tidegate::{clock, failpoint};

use crate::support::{Tidegate, patience, wire::Wire};

/// By which the process that is to be killed knows its configuration, and where it is to stop before it has been
/// told to.
const CONFIG: &str = "TIDEGATE_TEST_INJECTED";
const STOP: &str = "TIDEGATE_TEST_STOP";

/// What begins a line of its own, among those of the test harness.
const MARK: &str = "| ";

/// What a process is told that has stopped, and is not to be killed.
const GO: &str = "go";
/// What a process is told whose clock is to go ahead, before the number of seconds.
const AHEAD: &str = "ahead ";

/// Where a process is to stop.
#[derive(Debug, Clone, Copy)]
pub enum Stop {
    Nowhere,
    /// In the place of this number, from 1.
    In(i64),
    /// In the next place of this name.
    At(&'static str),
}

/// What the process has been told.
struct Told {
    /// Places to come to before it stops; none stops it that it comes to after that.
    left: i64,
    /// How much of what is not synced is then left, in thousandths.
    keeps: u64,
    /// The name of the only places that count; all do if there is none.
    name: String,
}

impl Told {
    fn read(line: &str) -> Self {
        let [left, keeps, name] = line.splitn(3, ' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        Self { left: left.parse().unwrap(), keeps: keeps.parse().unwrap(), name: name.to_owned() }
    }

    /// It has come to a place. Returns how much of what is not synced is left, if it is to stop there.
    fn come_to(&mut self, name: &str) -> Option<u64> {
        if self.name.is_empty() || self.name == name {
            self.left -= 1;
            return (self.left == 0).then_some(self.keeps);
        }
        None
    }
}

impl Stop {
    /// As the process reads it.
    pub fn line(self, keeps: u64) -> String {
        match self {
            Self::Nowhere => "0 0 ".to_owned(),
            Self::In(place) => format!("{place} {keeps} "),
            Self::At(name) => format!("1 {keeps} {name}"),
        }
    }
}

/// Is the process. Stops in a place as it is told to on its standard input, with the thread that came there, and
/// waits to be killed, or to be told to go on; its workers go on.
#[test]
#[ignore = "is the process that the others kill"]
fn serve() {
    let Some(config) = env::var_os(CONFIG) else { return };
    let tell = |what: String| println!("\n{MARK}{what}");
    let told = Arc::new(Mutex::new(Told::read(&env::var(STOP).unwrap())));
    let now = Arc::clone(&told);
    let (go, goes) = channel();
    let goes = Mutex::new(goes);
    failpoint::watch(move |place| {
        let Some(keeps) = now.lock().unwrap().come_to(place.name) else { return };
        if let Some((file, from)) = place.unsynced {
            let file = fs::OpenOptions::new().write(true).open(file).unwrap();
            let unsynced = file.metadata().unwrap().len() - from;
            file.set_len(from + unsynced * keeps / 1000).unwrap();
        }
        tell(format!("stopped {}", place.name));
        // Or else the test is over.
        let _goes: Result<(), _> = goes.lock().unwrap().recv();
    });
    let tidegate = Tidegate::start_from(Path::new(&config), false);
    tell(format!("listening {} {}", tidegate.address(), tidegate.admin));
    for line in std::io::stdin().lines().map(Result::unwrap) {
        match (line.as_str(), line.strip_prefix(AHEAD)) {
            (GO, _) => go.send(()).unwrap(),
            (_, Some(seconds)) => clock::put_ahead(Duration::from_secs(seconds.parse().unwrap())),
            (line, None) => *told.lock().unwrap() = Told::read(line),
        }
        tell("told".to_owned());
    }
}

/// What comes of a step.
#[derive(Debug)]
pub enum Comes {
    Listening(SocketAddr, SocketAddr),
    /// It has been told where to stop.
    Told,
    /// It has stopped in a place.
    Stopped(String),
    /// The step is done.
    Done,
}

/// The process, which is killed when it is dropped.
pub struct Process {
    child: Child,
    comes: Receiver<Comes>,
    pub done: Sender<Comes>,
    /// Where it listens, and its admin side; nothing before it serves.
    pub at: Option<(SocketAddr, SocketAddr)>,
}

impl Process {
    /// Starts it. It stops as it is told to.
    pub fn spawn(config: &Path, stop: &str) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["injection::process::serve", "--exact", "--ignored", "--nocapture"])
            .env(CONFIG, config)
            .env(STOP, stop)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (done, comes) = channel();
        let (said, tell) = (BufReader::new(child.stdout.take().unwrap()), done.clone());
        thread::spawn(move || {
            for line in said.lines().map_while(Result::ok) {
                let Some(said) = line.strip_prefix(MARK) else { continue };
                let told = match said.split_once(' ') {
                    Some(("stopped", place)) => Comes::Stopped(place.to_owned()),
                    Some(("listening", at)) => {
                        let (address, admin) = at.split_once(' ').unwrap();
                        Comes::Listening(address.parse().unwrap(), admin.parse().unwrap())
                    }
                    _ => Comes::Told,
                };
                // Gone only if the test is over.
                let _gone = tell.send(told);
            }
        });
        Self { child, comes, done, at: None }
    }

    pub fn next(&self) -> Comes {
        self.comes.recv_timeout(patience()).expect("it goes on")
    }

    /// Starts it, and waits until it serves.
    pub fn start(config: &Path) -> Self {
        let mut process = Self::spawn(config, &Stop::Nowhere.line(0));
        assert_eq!(process.serves(), None);
        process
    }

    /// Waits until it serves. Returns where it has stopped before that, if it has.
    pub fn serves(&mut self) -> Option<String> {
        match self.next() {
            Comes::Listening(address, admin) => self.at = Some((address, admin)),
            Comes::Stopped(place) => return Some(place),
            other => panic!("{other:?} was not to come"),
        }
        None
    }

    pub fn admin(&self) -> SocketAddr {
        self.at.expect("it serves").1
    }

    /// Tells it where to stop. Returns where it has stopped meanwhile.
    pub fn stop(&mut self, when: &str) -> Option<String> {
        writeln!(self.child.stdin.as_mut().unwrap(), "{when}").unwrap();
        let mut stopped = None;
        loop {
            match self.next() {
                Comes::Told => return stopped,
                Comes::Stopped(place) => stopped = Some(place),
                other => panic!("{other:?} was not to come"),
            }
        }
    }

    /// Lets it go on where it has stopped.
    pub fn go_on(&mut self) {
        assert_eq!(self.stop(GO), None);
    }

    /// Puts its wall clock ahead.
    pub fn put_ahead(&mut self, by: Duration) {
        assert_eq!(self.stop(&format!("{AHEAD}{}", by.as_secs())), None);
    }

    /// Kills it, and waits until it is gone.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Who of some users gets to the new version.
    pub fn users(&self) -> BTreeSet<usize> {
        let mut wire = Wire::new(TcpStream::connect(self.at.expect("it serves").0).unwrap());
        let gets = |user: &usize| {
            wire.send(format!("GET / HTTP/1.1\r\nHost: x\r\nx-user: {user}\r\n\r\n"));
            let head = wire.read_head().expect("its workers live");
            assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
            wire.read_length(2) == b"v2"
        };
        (0..40).filter(gets).collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that has ended cannot be killed.
        let _ended = self.child.kill();
        let _waited = self.child.wait();
    }
}
