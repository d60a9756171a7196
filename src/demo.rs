//! `tidegate demo`: the whole loop on this machine, with real sockets.
//!
//! Two backends, the proxy, its admin API and five hundred users a second, all on loopback and all in
//! this process; six rollouts, one after the other. Nothing is staged: the backends only fail or
//! dawdle as told, and what comes of it is the proxy's own doing.

mod backend;
mod load;
mod plain;
mod play;
mod scene;
mod screen;
mod stage;
mod story;
mod summary;
mod thread;
mod words;

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    time::Duration,
};

use anyhow::Context as _;
use tokio::time::Instant;

use self::{
    backend::{Backends, NAMES},
    load::{Load, RATE},
    play::{Interrupts, Play},
    stage::{Say, Stage},
};
use crate::{
    app::{self, Options, Running},
    config::{Config, diagnostic, load as config_load},
};

/// How often the proxy decides: four times as often as usual, since a step lasts only seconds.
const TICK: Duration = Duration::from_millis(250);
/// The load ends by then, whatever happens.
const LOAD_LIMIT: Duration = Duration::from_secs(215);
/// The ports that are tried for a proxy that is to be kept.
const PREFERRED: [u16; 2] = [8080, 9090];

/// Plays the demo: on a screen where there is one, unless `plain` lines are wanted. With `keep`,
/// everything goes on running afterwards, until it is interrupted.
///
/// # Errors
/// When anything went otherwise than it should, or somebody interrupted.
pub fn main(keep: bool, plain: bool) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the control half")?;
    runtime.block_on(demo(keep, plain))
}

async fn demo(keep: bool, plain: bool) -> anyhow::Result<()> {
    let interrupts = Interrupts::new().context("cannot listen to signals")?;
    let backends = Backends::start().context("cannot start the backends")?;
    let config = configuration(keep, backends.addresses)?;
    let running = app::start(&config, None, Options { tick: TICK, ..Options::default() }).await?;
    let (proxy, admin) = (running.listeners[0], running.admin.context("the configuration has an admin API")?);
    let load = Load::start(proxy, (!keep).then_some(LOAD_LIMIT)).context("cannot start the load")?;
    let mut play = Play {
        backends,
        load,
        controller: running.controller.clone(),
        admin,
        stage: Stage::new(plain),
        interrupts,
        began: Instant::now(),
        releases: BTreeMap::new(),
    };
    introduce(&mut play, proxy)?;
    let played = play.all().await?;

    // The table goes where the screen was.
    play.stage = Stage::new(true);
    play.stage.say(Say::Title("Summary"))?;
    for line in summary::table(&played) {
        play.stage.say(Say::Line(&line))?;
    }
    play.stage.say(Say::Line(""))?;
    for line in summary::LEGEND {
        play.stage.say(Say::Line(line))?;
    }
    play.stage.say(Say::Line(""))?;
    let conclusion = summary::conclusion(&played, play.began.elapsed());
    if let Ok(conclusion) = &conclusion {
        play.stage.say(Say::Line(conclusion))?;
    }
    if keep {
        invite(&mut play, proxy)?;
        play.interrupts.any().await;
    }
    finish(play, running).await?;
    conclusion.map(|_| ())
}

/// The configuration, on free ports, or on ports that are easy to remember.
fn configuration(keep: bool, backends: [SocketAddr; 2]) -> anyhow::Result<Config> {
    let address = |preferred| {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, preferred));
        // If it is taken in the next moment, starting fails and says so.
        let free = keep && TcpListener::bind(address).is_ok();
        if free { address } else { SocketAddr::from((Ipv4Addr::LOCALHOST, 0)) }
    };
    let [proxy, admin] = PREFERRED.map(address);
    let text = story::configuration(proxy, admin, backends);
    match config_load::parse("demo", &text) {
        Ok((config, _)) => Ok(config),
        Err(errors) => anyhow::bail!("the demo's configuration is wrong:\n{}", diagnostic::render(&errors)),
    }
}

fn introduce(play: &mut Play, proxy: SocketAddr) -> anyhow::Result<()> {
    let [blue, green] = play.backends.addresses;
    for line in [
        format!("tidegate demo: two backends, the proxy and {RATE} requests/s, on real sockets"),
        format!("  backends   {} http://{blue}, {} http://{green}", NAMES[0], NAMES[1]),
        format!("  proxy      http://{proxy}"),
        format!("  admin API  http://{}", play.admin),
        "  settings   the defaults: at most 1 % false rollbacks, 20 % slower is too slow.".to_owned(),
        "             But steps last seconds, and promotion asks for proof of \"at most 2".to_owned(),
        "             percentage points worse\" instead of half a point: this is a demo".to_owned(),
    ] {
        play.stage.say(Say::Line(&line))?;
    }
    Ok(())
}

/// What can be done with a demo that goes on.
fn invite(play: &mut Play, proxy: SocketAddr) -> anyhow::Result<()> {
    for name in NAMES {
        play.backends.set(name, backend::Behaviour::PERFECT);
    }
    play.load.ask_for(["/", "/web"]);
    let [_, green] = play.backends.addresses;
    // As it was called: it need not be where a shell looks.
    let tidegate = std::env::args().next().unwrap_or_else(|| "tidegate".to_owned());
    for line in [
        String::new(),
        "Everything goes on running until Ctrl-C; both backends behave well again. Try:".to_owned(),
        String::new(),
        format!("  curl -i http://{proxy}/"),
        format!("  export TIDEGATE_ADDRESS=http://{}", play.admin),
        format!("  {tidegate} watch shop"),
        format!("  {tidegate} start shop"),
        format!("  curl -s http://{green}/behave/badly     # or slowly, well"),
        format!("  {tidegate} rollback shop"),
        format!("  {tidegate} weight shop 20"),
        format!("  {tidegate} flip web"),
        format!("  curl -s http://{}/metrics", play.admin),
    ] {
        play.stage.say(Say::Line(&line))?;
    }
    Ok(())
}

/// Ends the load first, then the proxy, then the backends: nobody misses what goes.
async fn finish(play: Play, running: Running) -> anyhow::Result<()> {
    let Play { backends, load, controller: _, admin: _, stage: _, interrupts: _, began: _, releases: _ } =
        play;
    drop(load);
    running.drain(Duration::ZERO).await?;
    drop(backends);
    Ok(())
}
