//! Playing: sets the backends, begins a rollout through the admin API like anybody else, and watches
//! until it has ended.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use anyhow::Context as _;
use http::Method;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    time::{self, Instant, MissedTickBehavior},
};

use super::{
    backend::Backends,
    load::{Counts, Load},
    scene::{Releases, Scenery},
    stage::{Say, Stage},
    story::{Ending, Incident, STORIES, Story},
    summary::Played,
};
use crate::{
    admin::client,
    controller::{
        Controller,
        status::{Occurrence, ServiceStatus},
    },
    model::{time::Timestamp, weight::Weight},
    rollout::phase::Phase,
};

/// Time between two looks.
const FRAME: Duration = Duration::from_millis(100);
/// To read what a story is about, and to let the load settle.
const OVERTURE: Duration = Duration::from_secs(4);
/// To see how a story ended.
const CURTAIN: Duration = Duration::from_secs(3);
/// What the whole play may take. Stories that would begin later are not played.
const ALL: Duration = Duration::from_secs(205);

/// Everything that the stories are played with.
#[derive(Debug)]
pub(super) struct Play {
    pub(super) backends: Backends,
    pub(super) load: Load,
    pub(super) controller: Controller,
    pub(super) admin: SocketAddr,
    pub(super) stage: Stage,
    pub(super) interrupts: Interrupts,
    pub(super) began: Instant,
    /// Which version each service's backends run.
    pub(super) releases: BTreeMap<&'static str, BTreeMap<String, u32>>,
}

/// The signals that end the demo.
#[derive(Debug)]
pub(super) struct Interrupts {
    terminate: Signal,
    interrupt: Signal,
}

impl Interrupts {
    /// From now on, these signals do not end the process by themselves.
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for one.
    pub(super) async fn any(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// What was seen of a rollout until it ended.
#[derive(Debug, Default)]
struct Seen {
    ending: Option<Ending>,
    reached: Weight,
    turned: Option<Timestamp>,
}

impl Seen {
    fn look(&mut self, phase: &Phase, weight: Weight) {
        self.ending = Ending::of(phase);
        self.reached = self.reached.max(match phase {
            Phase::Promoting { .. } | Phase::Baking { .. } | Phase::Succeeded { .. } => Weight::FULL,
            _ => weight,
        });
        // The phase in between lasts only a tick.
        if let Phase::RollingBack { since: at, .. } | Phase::RolledBack { at, .. } = phase {
            self.turned.get_or_insert(*at);
        }
    }
}

impl Play {
    /// Plays all stories, one after the other.
    ///
    /// # Errors
    /// When somebody interrupts, or what it is played with breaks; not for what a rollout does.
    pub(super) async fn all(&mut self) -> anyhow::Result<Vec<Played>> {
        let mut played = Vec::new();
        for (story, number) in STORIES.iter().zip(1..) {
            played.push(match ALL.checked_sub(self.began.elapsed() + OVERTURE) {
                Some(left) => self.one(number, story, story.patience.min(left)).await?,
                None => Played::never(story),
            });
        }
        Ok(played)
    }

    /// Plays one story, for at most `patience`.
    async fn one(
        &mut self,
        number: usize,
        story: &'static Story,
        patience: Duration,
    ) -> anyhow::Result<Played> {
        let mut status = self.controller.watch(story.service)?;
        let (stable, canary) = roles(&status.borrow());
        self.backends.set(&stable, story.old);
        self.backends.set(&canary, story.new);
        self.load.ask_for([story.path; 2]);
        let title = format!("Story {number} of {}: {}", STORIES.len(), story.title);
        self.stage.say(Say::Title(&title))?;
        self.stage.say(Say::Text(story.what))?;
        let releases = self.release(story.service, &stable, &canary);
        let mut watched =
            Watched::new(Scenery::new(number, story, releases), self.load.counts(), &status.borrow());

        self.watch(&mut watched, &mut status, OVERTURE, |_| false).await?;
        if let Some(sign) = story.sign {
            self.load.suspect(&canary, sign);
        }
        watched.before = self.load.counts();
        let started = Instant::now();
        self.command(story, "start").await?;
        watched.scenery.begin();
        let (mut seen, ground, mut shaken) = (Seen::default(), self.backends.ground(), false);
        let mut befall = || {
            let Some(Incident { after, lasts, both }) = story.incident else { return };
            let shakes = (after..after + lasts).contains(&started.elapsed());
            if shakes != shaken {
                shaken = shakes;
                ground.set(if shakes { both } else { story.old });
            }
        };
        let ended = self.watch(&mut watched, &mut status, patience, |status| {
            befall();
            if let Some(rollout) = &status.rollout {
                seen.look(&rollout.phase, status.weight);
            }
            seen.ending.is_some()
        });
        if !ended.await? {
            let gave_up = format!("given up after {} s", patience.as_secs());
            self.stage.say(Say::Event(self.began.elapsed(), &gave_up))?;
            // Whatever it was doing, the next story begins with nothing running. It may just have ended.
            let _refused = self.command(story, "rollback").await;
        }
        let users = self.load.counts().since(watched.before);
        let took = started.elapsed();
        self.watch(&mut watched, &mut status, CURTAIN, |_| false).await?;
        let detected = story.sign.and_then(|_| Some(seen.turned?.since(self.load.first_bad()?)));
        let ending = seen.ending.unwrap_or(Ending::Unfinished);
        Ok(Played { story, ending, took, detected, reached: seen.reached, users })
    }

    /// Gives the canary a version that the service has not had yet; says which backend runs which.
    fn release(&mut self, service: &'static str, stable: &str, canary: &str) -> Releases {
        let releases = self.releases.entry(service).or_default();
        let first = releases.len() as u32 + 1;
        let of_stable = *releases.entry(stable.to_owned()).or_insert(first);
        let newest = releases.values().max().copied().unwrap_or(of_stable);
        releases.insert(canary.to_owned(), newest + 1);
        [(stable.to_owned(), of_stable), (canary.to_owned(), newest + 1)]
    }

    /// Asks the admin API, as `curl` would.
    async fn command(&self, story: &Story, verb: &str) -> anyhow::Result<()> {
        let path = format!("/services/{}/{verb}", story.service);
        client::call(self.admin, Method::POST, &path, None).await.with_context(|| format!("POST {path}"))?;
        Ok(())
    }

    /// Watches and shows a service until `enough` says so, or for `limit`; says whether it was enough.
    async fn watch(
        &mut self,
        watched: &mut Watched,
        status: &mut watch::Receiver<ServiceStatus>,
        limit: Duration,
        mut enough: impl FnMut(&ServiceStatus) -> bool,
    ) -> anyhow::Result<bool> {
        let mut frames = time::interval(FRAME);
        frames.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let began = Instant::now();
        loop {
            tokio::select! {
                _ = frames.tick() => {}
                () = self.interrupts.any() => anyhow::bail!("interrupted"),
            }
            if self.stage.interrupted()? {
                anyhow::bail!("interrupted");
            }
            let now = status.borrow_and_update().clone();
            for event in watched.news(&now) {
                self.stage.say(Say::Event(self.began.elapsed(), &event))?;
            }
            let users = self.load.counts().since(watched.before);
            let time = (Instant::now(), self.began.elapsed());
            self.stage.show(&watched.scenery.scene(&now, users, time))?;
            if enough(&now) {
                return Ok(true);
            }
            if began.elapsed() >= limit {
                return Ok(false);
            }
        }
    }
}

/// What is remembered while a story is watched.
#[derive(Debug)]
struct Watched {
    scenery: Scenery,
    /// The users' requests before the story, and then before its rollout.
    before: Counts,
    last: Option<(Timestamp, String)>,
}

impl Watched {
    fn new(scenery: Scenery, before: Counts, status: &ServiceStatus) -> Self {
        let last = status.events.last().map(|event| (event.at, event.what.clone()));
        Self { scenery, before, last }
    }

    /// What happened since the last look.
    fn news(&mut self, status: &ServiceStatus) -> Vec<String> {
        let known = |event: &Occurrence| {
            self.last.as_ref().is_some_and(|(at, what)| *at == event.at && *what == event.what)
        };
        let new = status.events.iter().rposition(known).map_or(0, |last| last + 1);
        let news: Vec<_> = status.events[new..].iter().map(|event| event.what.clone()).collect();
        self.last = status.events.last().map(|event| (event.at, event.what.clone()));
        news
    }
}

/// Which backend is stable, and which canary.
fn roles(status: &ServiceStatus) -> (String, String) {
    (status.stable.to_string(), status.canary.as_ref().map(ToString::to_string).unwrap_or_default())
}
