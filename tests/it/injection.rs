//! The process is killed in each place in turn where a kill might matter: before and after each write, sync and
//! rename, each effect of a rollout and each answer. The machine may go down with it, so that of what was not synced
//! any part is missing. It has to go on as if nothing had been. `src/failpoint.rs` has the places.
//!
//! A story is what people do to a service, over and over. Each time, each of its steps is cut off in the next of
//! its places, so that every one has its turn and all that follows is what comes of a recovery.
//!
//! `cargo test` kills in a sample of the places, in the others as well with `TIDEGATE_TEST_PLACES=all`.

pub mod process;

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    thread,
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::Value;

use self::process::{Comes, Process, Stop};
use crate::{
    killing::{ask, ask_for, event, history, position},
    support::{Backend, Web, eventually, reply, wire::Wire},
};

/// What somebody does.
#[derive(Debug, Clone, Copy)]
enum Does {
    /// Asks this of the service, with more fields in the body.
    Asks(&'static str, &'static str, &'static str),
    /// Writes these keys of the service, or this table, at the end of the configuration, and has it read.
    Writes(&'static str),
    /// Kills it and starts it anew.
    Restarts,
}

use Does::{Asks, Restarts, Writes};

/// What somebody does, and how the service then stands.
type Step = (Does, &'static str);

/// How a service stands: its phase, its step, why it waits, who is stable, and what the canary gets.
pub fn stands(status: &Value) -> String {
    let rollout = &status["rollout"];
    let phase = rollout["phase"].as_str().unwrap_or("idle");
    let step = rollout["step"].as_u64().map(|step| format!(" {step}")).unwrap_or_default();
    let why = rollout["reason"].as_str().map(|why| format!(" {why}")).unwrap_or_default();
    format!("{phase}{step}{why}, {} {}", status["stable"].as_str().unwrap(), status["weight"])
}

/// The world in which a story happens.
struct World {
    config: PathBuf,
    toml: String,
    process: Process,
    /// All of the history that was there after the step before.
    known: BTreeMap<u64, Value>,
    random: StdRng,
    /// Counts what was asked.
    asked: u64,
    /// How often it was killed in each place.
    killed: BTreeMap<String, usize>,
    _folder: tempfile::TempDir,
    _backends: [Backend; 3],
}

impl World {
    fn new(rollout: &str) -> Self {
        let backends = [
            Backend::named("v1"),
            Backend::named("v2"),
            Backend::answering(|_| reply("204 No Content", &[], "")),
        ];
        let hook = format!("url = 'http://{}/'", backends[2].address);
        let rollout = rollout.replace("HOOK", &hook);
        let folder = tempfile::tempdir().unwrap();
        let web = Web::new(backends[0].address)
            .canary(backends[1].address)
            .table("sticky", "header = 'x-user'")
            .table(
                "rollout.analysis",
                "minimum_requests = 5\nlatency_margin = false\npromotion_margin = 0.9\npromotion_alpha = 0.5",
            )
            .table("rollout", &rollout);
        let store = folder.path().join("state");
        let toml = format!("{web}[store]\npath = '{}'\nmax_history = '64KiB'\n", store.display());
        let config = folder.path().join("tidegate.toml");
        fs::write(&config, &toml).unwrap();
        let process = Process::start(&config);
        Self {
            config,
            toml,
            process,
            known: BTreeMap::new(),
            random: StdRng::seed_from_u64(1),
            asked: 0,
            killed: BTreeMap::new(),
            _folder: folder,
            _backends: backends,
        }
    }

    /// A step, in which it is killed where it stops. Returns whether it has come there.
    fn play(&mut self, (does, then): Step, stop: Stop) -> bool {
        let stop = stop.line(self.random.random_range(0..=1000));
        self.asked += 1;
        let reason = format!("number {}", self.asked);
        if let Writes(more) = does {
            let toml = match more.split_once('[') {
                Some(_) => format!("{}{more}\n", self.toml),
                None => self.toml.replace("[services.web]\n", &format!("[services.web]\n{more}\n")),
            };
            fs::write(&self.config, toml).unwrap();
        }
        let stopped = if let Restarts = does {
            self.process = Process::spawn(&self.config, &stop);
            self.process.serves()
        } else {
            self.process.stop(&stop)
        };
        let (stopped, answered) = match stopped {
            None => self.watch(does, then, &reason),
            stopped => {
                self.go_down(does);
                (stopped, false)
            }
        };
        if let Some(place) = &stopped {
            self.recover((does, then), &reason, answered, place);
            *self.killed.entry(place.to_owned()).or_default() += 1;
        }
        self.known = self.whole(then);
        stopped.is_some()
    }

    /// Does it, and looks what comes of it. Returns where it has stopped, if it has, and whether whoever asked was
    /// answered; then it has been started anew.
    fn watch(&mut self, does: Does, then: &str, reason: &str) -> (Option<String>, bool) {
        let at = self.process.at.expect("it serves");
        let done = self.process.done.clone();
        thread::scope(|scope| {
            let somebody = scope.spawn(move || {
                let answered = act(at.1, does, reason);
                if answered.is_some() && come_to(at, then).is_some() {
                    // Gone if it was killed meanwhile.
                    let _gone = done.send(Comes::Done);
                }
                answered == Some(200)
            });
            let stopped = match self.process.next() {
                Comes::Stopped(place) => Some(place),
                Comes::Done => self.process.stop(&Stop::Nowhere.line(0)),
                other => panic!("{other:?} was not to come"),
            };
            if stopped.is_some() {
                self.go_down(does);
            }
            (stopped, somebody.join().unwrap())
        })
    }

    /// It has stopped, so who gets to the new version is as it was published. It is killed, and started anew.
    fn go_down(&mut self, does: Does) {
        let before = self.process.at.map(|_| self.process.users()).unwrap_or_default();
        self.process.kill();
        self.process = Process::start(&self.config);
        let after = self.process.users();
        // Another weight that is written takes effect with the file, whatever is saved.
        if !matches!(does, Writes(_)) {
            assert!(
                before.is_subset(&after),
                "{does:?}: {before:?} got to v2, and {after:?} by what is saved"
            );
        }
    }

    /// It has been killed in a place, and started anew: nothing that anybody was told is lost, and it goes on.
    fn recover(&self, (does, then): Step, reason: &str, answered: bool, place: &str) {
        let at = self.process.at.expect("it serves");
        let times = history(at.1).iter().filter(|entry| entry["reason"] == reason).count();
        assert!(times <= 1, "{place}: {does:?} is there {times} times");
        if let Asks(..) = does
            && times == 0
        {
            assert!(!answered, "{place}: {does:?} was answered, and is lost");
            // Nobody was told that it has happened, so it is asked again.
            assert_eq!(act(at.1, does, &format!("{reason} again")), Some(200), "{place}: {does:?}");
        }
        assert!(come_to(at, then).is_some(), "it lives");
        let entries = self.whole(then);
        let oldest = entries.keys().next().copied().unwrap_or_default();
        for (number, known) in self.known.range(oldest..) {
            assert_eq!(entries.get(number), Some(known), "{place}: {number} is lost");
        }
        let told: Vec<_> = entries.values().map(event).collect();
        let once: BTreeSet<_> = told.iter().collect();
        assert_eq!(once.len(), told.len(), "{place}: something is there twice");
        // A rollout goes on where it was.
        let entries: Vec<_> = entries.values().filter(|entry| entry["kind"] != "store").collect();
        for pair in entries.windows(2).filter(|pair| pair[1]["kind"] == "restart") {
            let stood = |entry: &Value| {
                let phase = &entry["phase"];
                (position(entry), entry["rollout"].clone(), phase["phase"].clone(), phase["step"].clone())
            };
            assert_eq!(stood(pair[0]), stood(pair[1]), "{place}");
        }
    }

    /// The history by its numbers, once all is saved; the service stands as the last of it says.
    fn whole(&self, then: &str) -> BTreeMap<u64, Value> {
        let admin = self.process.admin();
        let look = || (ask(admin, "GET", "", "").expect("it answers").1, history(admin));
        let is_recorded = |(status, history): &(Value, Vec<Value>)| {
            let last = status["events"].as_array().unwrap().last().map(event);
            last.is_none_or(|last| history.iter().any(|entry| event(entry) == last))
        };
        let (status, history) = eventually(look, is_recorded);
        assert_eq!((stands(&status).as_str(), &status["unsaved"]), (then, &Value::Null));
        assert_eq!(history.first().map(position), Some(position(&status)));
        let numbers: Vec<_> = history.iter().map(|entry| entry["seq"].as_u64().unwrap()).collect();
        let gaps: Vec<_> = numbers.windows(2).filter(|pair| pair[0] != pair[1] + 1).collect();
        assert!(gaps.is_empty(), "{gaps:?}");
        numbers.into_iter().zip(history).collect()
    }
}

/// Does something. Returns the status of the answer, if there was one.
fn act(admin: SocketAddr, does: Does, reason: &str) -> Option<u16> {
    match does {
        Asks(method, path, more) => {
            let (status, answer) = ask(admin, method, path, &format!("{{{more}\"reason\": \"{reason}\"}}"))?;
            assert_eq!(status, 200, "{does:?}: {answer}");
            Some(status)
        }
        Writes(_) => Some(ask_for(admin, "POST", "/reload", "")?.0),
        Restarts => Some(200),
    }
}

/// Waits until the service stands like this, with requests meanwhile. Returns nothing if there is nobody to ask.
fn come_to((address, admin): (SocketAddr, SocketAddr), then: &str) -> Option<()> {
    static USERS: AtomicU64 = AtomicU64::new(1000);
    let look = || {
        let mut wire = Wire::new(TcpStream::connect(address).ok()?);
        for _ in 0..20 {
            let user = USERS.fetch_add(1, Relaxed);
            wire.send(format!("GET / HTTP/1.1\r\nHost: x\r\nx-user: {user}\r\n\r\n"));
            wire.read_head()?;
            wire.read_length(2);
        }
        Some(stands(&ask(admin, "GET", "", "")?.1))
    };
    eventually(look, |stands| stands.as_deref().is_none_or(|stands| stands == then)).map(|_| ())
}

/// Plays a story until each of its steps has been cut off in each of its places; or a few times, in places drawn by
/// chance, unless all are wanted.
fn tell(rollout: &str, story: &[Step]) {
    let mut world = World::new(rollout);
    if env::var("TIDEGATE_TEST_PLACES").is_ok_and(|places| places == "all") {
        // Nothing for a step that has no more.
        let mut next = vec![Some(1); story.len()];
        while next.iter().any(Option::is_some) {
            for (step, next) in story.iter().zip(&mut next) {
                let stop = next.map_or(Stop::Nowhere, Stop::In);
                let has_stopped = world.play(*step, stop);
                *next = next.filter(|_| has_stopped).map(|place| place + 1);
            }
        }
        let mut missing = places();
        missing.retain(|place| !RARE.contains(&place.as_str()) && !world.killed.contains_key(place));
        assert!(missing.is_empty(), "nobody was killed there: {missing:?}");
    } else {
        for step in [story; SAMPLE].concat() {
            let place = world.random.random_range(1..MOST);
            world.play(step, Stop::In(place));
        }
    }
    assert!(!world.killed.is_empty(), "it never came to a place where it was to be killed");
}

/// The places that there are in the source.
fn places() -> BTreeSet<String> {
    let files = [
        "store",
        "store/file",
        "store/history",
        "controller/execute",
        "controller/save",
        "controller/service",
    ];
    let read = |file| fs::read_to_string(format!("src/{file}.rs")).unwrap();
    let source: String = files.map(read).concat();
    source.split("failpoint::pass").skip(1).map(|call| call.split('"').nth(1).unwrap().to_owned()).collect()
}

/// Places that a rollout comes to once in a long while, which have a test of their own.
const RARE: [&str; 3] =
    ["a service's folder is made", "a history's new file is synced", "a history's oldest file is removed"];

/// How often a story is played in a sample, and the number of places that a step has about.
const SAMPLE: usize = 3;
const MOST: i64 = 25;

#[test]
fn steps_by_hand_survive_a_kill_in_every_place() {
    let plan = "steps = [{ mirror = 50, hold = '1h' }, { weight = 20, hold = '1h' }, { weight = 50, hold = '1h', gate = true }]\n\
        bake = '60ms'\ndeadline = '1h'";
    let story = [
        (Asks("POST", "/start", ""), "stepping 0, v1 0.0"),
        (Restarts, "stepping 0, v1 0.0"),
        (Asks("POST", "/promote", ""), "stepping 1, v1 20.0"),
        (Asks("POST", "/pause", ""), "paused 1 command, v1 20.0"),
        (Asks("POST", "/resume", ""), "stepping 1, v1 20.0"),
        (Writes("[[freeze]]\nfrom = '2000-01-01'\nto = '2100-01-01'"), "paused 1 freeze, v1 20.0"),
        (Writes(""), "stepping 1, v1 20.0"),
        (Asks("POST", "/promote", ""), "stepping 2, v1 50.0"),
        (Asks("POST", "/promote", "\"full\": true, "), "succeeded, v2 0.0"),
        (Asks("POST", "/flip", ""), "succeeded, v1 0.0"),
        (Asks("PUT", "/weight", "\"canary\": 30, "), "succeeded, v1 30.0"),
        (Writes("weight = 10"), "succeeded, v1 10.0"),
        (Writes("weight = 0"), "succeeded, v1 0.0"),
    ];
    tell(plan, &story);
}

#[test]
fn rollbacks_survive_a_kill_in_every_place() {
    let plan =
        "steps = [{ weight = 20, hold = '1h' }, { weight = 50, hold = '1h' }]\nbake = '1h'\ndrain = '60ms'";
    let story = [
        (Asks("POST", "/start", ""), "stepping 0, v1 20.0"),
        (Asks("POST", "/promote", ""), "stepping 1, v1 50.0"),
        (Asks("POST", "/rollback", ""), "rolled_back, v1 0.0"),
        (Asks("POST", "/start", ""), "stepping 0, v1 20.0"),
        (Asks("POST", "/promote", "\"full\": true, "), "baking, v2 0.0"),
        (Restarts, "baking, v2 0.0"),
        (Asks("POST", "/rollback", ""), "rolled_back, v1 0.0"),
    ];
    tell(plan, &story);
}

#[test]
fn blue_green_with_a_gate_and_hooks_survives_a_kill_in_every_place() {
    let hook = |at: &str| format!("[[services.web.rollout.hooks]]\nat = '{at}'\nHOOK\n");
    let hooks: String = ["pre-rollout", "pre-promotion", "post-promotion", "rollback"].map(hook).concat();
    let plan =
        format!("strategy = 'blue-green'\npromotion_gate = true\nbake = '1h'\ndrain = '60ms'\n{hooks}");
    let story = [
        (Asks("POST", "/start", ""), "paused 0 gate, v1 0.0"),
        (Asks("POST", "/resume", ""), "baking, v2 0.0"),
        (Asks("POST", "/rollback", ""), "rolled_back, v1 0.0"),
    ];
    tell(&plan, &story);
}

#[test]
fn a_rollout_by_evidence_survives_a_kill_in_every_place() {
    let plan = "steps = [{ mirror = 50, hold = '60ms' }, { weight = 20, hold = '60ms' }, { weight = 50, hold = '60ms' }]\n\
        bake = '60ms'\nwhen_inconclusive = 'hold'";
    let story =
        [(Asks("POST", "/start", ""), "succeeded, v2 0.0"), (Asks("POST", "/flip", ""), "succeeded, v1 0.0")];
    tell(plan, &story);
}

#[test]
fn a_history_survives_a_kill_while_it_begins_and_while_it_loses_its_oldest_file() {
    let plan = "steps = [{ weight = 20, hold = '1h' }]\nbake = '1h'";
    let weights = [("\"canary\": 20, ", "idle, v1 20.0"), ("\"canary\": 40, ", "idle, v1 40.0")];
    let weights = weights.map(|(weight, then)| (Asks("PUT", "/weight", weight), then));
    let mut world = World::new(plan);
    for place in [RARE[0], RARE[1], "a history is written", RARE[1], RARE[2]] {
        let mut steps = weights.iter().cycle().take(1000);
        assert!(steps.any(|step| world.play(*step, Stop::At(place))), "it never came to this: {place}");
    }
    assert!(*world.known.keys().next().unwrap() > 1, "the oldest file is gone");
}
