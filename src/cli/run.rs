//! `tidegate run`.

use std::{io::IsTerminal as _, path::Path, process::ExitCode, time::Duration};

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

use super::{EXIT_CONFIG, args::ConfigFile, check};
use crate::{
    access_log::Reopen,
    admin::reload::{By, Reload},
    app::{self, Options, Running},
    config::Config,
    model::units::format_duration,
};

/// Runs the proxy until it is told to stop.
pub(super) fn run(args: &ConfigFile) -> ExitCode {
    // Before there is much memory to have them.
    let refused = app::refuse_huge_pages();
    let Some(config) = check::load(args) else { return ExitCode::from(EXIT_CONFIG) };
    log();
    if let Err(error) = refused {
        tracing::debug!(%error, "the kernel may put memory into huge pages");
    }
    finish(serve(&config, &args.config))
}

/// Turns the end of a command into an exit code, and says what went wrong.
#[expect(clippy::print_stderr, reason = "the last words of a failing program")]
pub(super) fn finish(result: anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    eprintln!("error: {error}");
    for cause in error.chain().skip(1) {
        eprintln!("  caused by: {cause}");
    }
    ExitCode::FAILURE
}

/// Log lines on stderr: for people where that is a terminal, as JSON where it is not. `RUST_LOG` says
/// how much (default `info`).
fn log() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::io::stderr().is_terminal() {
        log.with_target(false).init();
    } else {
        log.json().flatten_event(true).init();
    }
}

fn serve(config: &Config, file: &Path) -> anyhow::Result<()> {
    match app::raise_open_files_limit() {
        Ok(limit) if limit < 4096 => {
            tracing::warn!(limit, "few open files are allowed; each client needs two");
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "cannot raise the limit of open files"),
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the control half")?;
    runtime.block_on(async {
        let mut signals = Signals::new().context("cannot listen to signals")?;
        let mut running = app::start(config, Some(file), Options::default()).await?;
        heed_hangups(running.reload.clone(), running.reopen_access_log())?;
        announce(&running);
        let delay = tokio::select! {
            delay = signals.stop(running.drain_delay()) => delay,
            panicked = running.failed() => return Err(panicked.into()),
        };
        tracing::info!(delay = %format_duration(delay), "stopping: requests in flight are finished first");
        tokio::select! {
            drained = running.drain(delay) => drained?,
            _ = signals.stop(Duration::ZERO) => anyhow::bail!("stopped at once by a second signal"),
        }
        tracing::info!("stopped");
        Ok(())
    })
}

/// SIGHUP is what rotates logs, and what tells a daemon that its configuration has changed.
fn heed_hangups(reload: Reload, log: Option<Reopen>) -> anyhow::Result<()> {
    let mut hangups = signal(SignalKind::hangup()).context("cannot listen to signals")?;
    tokio::spawn(async move {
        while hangups.recv().await.is_some() {
            log.iter().for_each(Reopen::ask);
            // Whatever comes of it is logged where it is done.
            let _logged = reload.ask(By::Signal).await;
        }
    });
    Ok(())
}

fn announce(running: &Running) {
    for address in &running.listeners {
        tracing::info!("listening on {address}");
    }
    match running.admin {
        Some(address) => tracing::info!("admin API and metrics on {address}"),
        None => tracing::info!("no admin API: the configuration has no [admin]"),
    }
}

/// The signals that end the process.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for a signal; returns for how long new connections are still to be taken. Whoever sends
    /// SIGTERM (Kubernetes, systemd) has others to tell first; whoever presses Ctrl-C waits for the
    /// prompt.
    async fn stop(&mut self, delay: Duration) -> Duration {
        tokio::select! {
            _ = self.terminate.recv() => delay,
            _ = self.interrupt.recv() => Duration::ZERO,
        }
    }
}
