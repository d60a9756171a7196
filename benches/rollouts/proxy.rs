//! The Tidegate that is looked at: a process of its own, which is this program again, so that it can tick
//! faster than anybody would have it tick in earnest.

use std::{
    env, io,
    net::{SocketAddr, TcpListener},
    path::Path,
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use rand::{RngExt as _, rngs::StdRng};
use tidegate::{
    app::{self, Options},
    config::{diagnostic::render, load::load},
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    time::timeout,
};

/// The argument by which this program knows that it is the proxy.
pub(crate) const SERVE: &str = "--serve";

/// How often counts are looked at, but where a rollout is to be as in earnest. With a plan of steps of as few
/// milliseconds, a rollout takes a second or two.
pub(crate) const TICK: Duration = Duration::from_millis(50);

/// How long a start may take on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(20);

/// Is the proxy, until it is killed.
pub(crate) fn serve(file: &Path, tick: &str) -> anyhow::Result<()> {
    let tick = Duration::from_millis(tick.parse()?);
    let (config, _) = load(file).map_err(|errors| anyhow!("{}", render(&errors)))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let options = Options { tick, ..Options::default() };
        let mut running = app::start(&config, Some(file), options).await?;
        println!("ready");
        Err(running.failed().await.into())
    })
}

/// What the configuration of each begins with: where it listens, and what it keeps in a folder, if it keeps anything.
/// More keys of the store may follow.
pub(crate) fn head(address: SocketAddr, admin: SocketAddr, folder: Option<&Path>) -> String {
    let store = folder.map(|folder| format!("[store]\npath = '{}'\n", folder.join("state").display()));
    let store = store.unwrap_or_default();
    format!("workers = 2\n[[listeners]]\naddress = '{address}'\n[admin]\naddress = '{admin}'\n{store}")
}

/// A proxy that was started. It is killed when it is dropped.
pub(crate) struct Proxy(Child);

impl Proxy {
    pub(crate) fn spawn(config: &Path, tick: Duration) -> io::Result<Self> {
        let child = Command::new(env::current_exe()?)
            .arg(SERVE)
            .arg(config)
            .arg(tick.as_millis().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        Ok(Self(child))
    }

    /// Waits until it serves.
    pub(crate) async fn ready(&mut self) -> anyhow::Result<()> {
        let said = self.0.stdout.take().context("it is waited for once")?;
        let mut lines = BufReader::new(said).lines();
        let line = timeout(PATIENCE, lines.next_line()).await.context("it does not start")??;
        line.map(|_| ()).context("it ended instead of starting")
    }

    /// Kills it with SIGKILL, and waits until it is gone.
    pub(crate) async fn kill(mut self) -> anyhow::Result<()> {
        if let Some(status) = self.0.try_wait()? {
            return Err(anyhow!("it had ended by itself: {status}"));
        }
        self.0.start_kill()?;
        self.0.wait().await?;
        Ok(())
    }
}

/// Ports that nothing listens on, and that no client's connection is given either: Linux takes those from
/// 32768 on.
pub(crate) fn free_ports<const N: usize>(random: &mut StdRng) -> anyhow::Result<[SocketAddr; N]> {
    let mut found = Vec::new();
    for _ in 0..1000 {
        let address = SocketAddr::from(([127, 0, 0, 1], random.random_range(20_000..32_000)));
        // Each is held until there are enough, so that none is found twice.
        found.extend(TcpListener::bind(address).ok().map(|listener| (address, listener)));
        if found.len() == N {
            break;
        }
    }
    let addresses: Vec<_> = found.iter().map(|(address, _)| *address).collect();
    addresses.try_into().map_err(|_| anyhow!("no {N} ports between 20000 and 32000 are free"))
}
