//! What can be asked, and of whom.

use std::{path::PathBuf, time::Duration};

use clap::ValueHint;

use crate::{cli::args::Output, model::units::parse_duration};

/// Which Tidegate is asked, and how it is made to answer.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Connection and output")]
pub(in crate::cli) struct Access {
    /// Where the admin API is of the Tidegate that is asked.
    #[arg(long, value_name = "URL", env = "TIDEGATE_ADDRESS", default_value = "http://127.0.0.1:9090")]
    pub(super) address: String,
    /// A file with the token to show. The variable TIDEGATE_TOKEN may have the token itself.
    #[arg(long, value_name = "FILE", env = "TIDEGATE_TOKEN_FILE", value_hint = ValueHint::FilePath)]
    pub(super) token_file: Option<PathBuf>,
    /// Whom the certificate of an https:// address has to come from, as PEM; the system's authorities, if left
    /// out.
    #[arg(long, value_name = "FILE", env = "TIDEGATE_CA", value_hint = ValueHint::FilePath)]
    pub(super) ca: Option<PathBuf>,
    /// The certificate to show, as PEM.
    #[arg(long, value_name = "FILE", env = "TIDEGATE_CERTIFICATE", requires = "key", value_hint = ValueHint::FilePath)]
    pub(super) certificate: Option<PathBuf>,
    /// Its private key, as PEM.
    #[arg(long, value_name = "FILE", env = "TIDEGATE_KEY", requires = "certificate", value_hint = ValueHint::FilePath)]
    pub(super) key: Option<PathBuf>,
}

/// Which Tidegate is asked, and how the answer is written.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Connection and output")]
pub(in crate::cli) struct Connection {
    #[command(flatten)]
    pub(super) access: Access,
    /// How the answer is written.
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    pub(super) output: Output,
    /// Whether to use colours.
    #[arg(long, value_name = "WHEN", value_enum, default_value = "auto")]
    pub(super) color: Color,
    /// Why this is done, for whoever reads the history.
    #[arg(long, value_name = "TEXT")]
    pub(super) reason: Option<String>,
}

/// When to use colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Color {
    /// Where it is read in a terminal, unless NO_COLOR is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl Color {
    pub(super) fn write_global(self) {
        match self {
            Self::Auto => anstream::ColorChoice::Auto,
            Self::Always => anstream::ColorChoice::Always,
            Self::Never => anstream::ColorChoice::Never,
        }
        .write_global();
    }
}

/// The service of a verb that can do with all.
const ONE_OR_ALL: &str = "The service; all of them, if left out";

/// What can be asked.
#[derive(Debug, clap::Subcommand)]
pub(in crate::cli) enum Verb {
    /// Show how all services stand, or one of them.
    #[command(mut_arg("service", |service| service.help(ONE_OR_ALL)))]
    Status {
        #[command(flatten)]
        look: Look,
        #[command(flatten)]
        target: Target,
    },
    /// Show how things stand, and go on showing it; where there is no terminal, what happens, line by line.
    #[command(mut_arg("service", |service| service.help(ONE_OR_ALL)))]
    Watch {
        #[command(flatten)]
        target: Target,
    },
    /// Give the canary this share of the requests; only while no rollout runs.
    Weight {
        /// The service.
        service: String,
        /// The canary's share, in percent, with at most two decimals.
        #[arg(value_name = "PERCENT")]
        percent: f64,
        #[command(flatten)]
        connection: Connection,
    },
    /// Begin a rollout; after one that was rolled back, try again.
    #[command(visible_alias = "retry")]
    Start {
        /// Begin also in a freeze, and soon after a rollback.
        #[arg(long)]
        force: bool,
        /// Judge the canary by its limits and by checks alone, as `guards-only` does. Say why with --reason.
        #[arg(long, requires = "reason")]
        guards_only: bool,
        #[command(flatten)]
        look: Look,
        #[command(flatten)]
        target: Target,
    },
    /// Go to the next step now; open the gate at which the rollout waits.
    Promote {
        /// Give the canary everything, past all steps, gates and hooks that are left: for hot fixes. Say why with
        /// --reason.
        #[arg(long, requires = "reason")]
        full: bool,
        #[command(flatten)]
        look: Look,
        #[command(flatten)]
        target: Target,
    },
    /// Judge the canary by its limits and by checks alone until the rollout ends, and compare nothing with stable:
    /// for a fix that has to go out while stable is down. Say why with --reason.
    GuardsOnly {
        #[command(flatten)]
        look: Look,
        #[command(flatten)]
        target: Target,
    },
    /// Give everything back to stable at once.
    #[command(visible_alias = "abort")]
    Rollback {
        /// Only if this rollout is the service's, and no other has begun since. Its id stands in the answer to `start`.
        #[arg(long, value_name = "ID")]
        rollout: Option<String>,
        #[command(flatten)]
        look: Look,
        #[command(flatten)]
        target: Target,
    },
    /// Stay at this step until somebody says otherwise.
    Pause {
        #[command(flatten)]
        target: Target,
    },
    /// Go on with the step.
    Resume {
        #[command(flatten)]
        look: Look,
        #[command(flatten)]
        target: Target,
    },
    /// Swap the roles at once: the way back after a rollout has succeeded.
    #[command(visible_alias = "undo")]
    Flip {
        /// Swap even if no endpoint of the other backend takes a connection.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        target: Target,
    },
    /// Show what has happened to a service.
    History {
        /// How many of the latest events, the oldest of them first.
        #[arg(long, value_name = "NUMBER", default_value_t = 50)]
        events: usize,
        #[command(flatten)]
        target: Target,
    },
    /// Have the configuration read anew.
    Reload {
        #[command(flatten)]
        connection: Connection,
    },
}

impl Verb {
    /// Whom it is asked of.
    pub(super) fn connection(&self) -> &Connection {
        match self {
            Self::Weight { connection, .. } | Self::Reload { connection } => connection,
            Self::Status { target, .. }
            | Self::Start { target, .. }
            | Self::Promote { target, .. }
            | Self::GuardsOnly { target, .. }
            | Self::Rollback { target, .. }
            | Self::Watch { target }
            | Self::Pause { target }
            | Self::Resume { target, .. }
            | Self::Flip { target, .. }
            | Self::History { target, .. } => &target.connection,
        }
    }

    /// Whether it stays until it is over.
    pub(super) fn look(&self) -> Option<&Look> {
        match self {
            Self::Status { look, .. }
            | Self::Start { look, .. }
            | Self::Promote { look, .. }
            | Self::GuardsOnly { look, .. }
            | Self::Rollback { look, .. }
            | Self::Resume { look, .. } => Some(look),
            Self::Watch { .. }
            | Self::Weight { .. }
            | Self::Pause { .. }
            | Self::Flip { .. }
            | Self::History { .. }
            | Self::Reload { .. } => None,
        }
    }
}

/// Which service, and whose.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Target {
    /// The service; may be left out where only one has a canary.
    pub(super) service: Option<String>,
    #[command(flatten)]
    pub(super) connection: Connection,
}

/// Whether to stay until it is over.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Look {
    /// Wait until the rollout has ended, and exit with 0 if the canary was promoted, 1 if it was rolled back, and
    /// 2 if nobody could tell or time ran out.
    #[arg(long)]
    pub(super) wait: bool,
    /// How long to wait in all, such as 30m; as long as it takes, if left out.
    #[arg(long, value_name = "TIME", requires = "wait", value_parser = parse_duration)]
    pub(super) timeout: Option<Duration>,
}
