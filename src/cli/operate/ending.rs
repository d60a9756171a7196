//! How a verb ends: what is said, and the exit code that a pipeline decides by.

use std::process::ExitCode;

use serde_json::json;

use super::{api::Failure, options::Connection, print, say};
use crate::cli::{EXIT_CONFIG, EXIT_USAGE, args::Output};

/// How it ended.
#[derive(Debug)]
pub(super) enum Ending {
    /// It was done, or the rollout that was waited for succeeded.
    Done,
    /// The rollout that was waited for was rolled back.
    RolledBack(String),
    /// Nobody could tell, a person has to decide, or time ran out.
    Undecided(String),
    /// It makes no sense as the service stands.
    Refused(String),
    /// It makes no sense however it stands.
    Usage(String),
    /// Nobody answers there.
    Unreachable(String),
    /// The token does not allow it.
    Forbidden(String),
    /// The configuration that was to be taken up is wrong.
    Misconfigured(String),
    /// Something went wrong on the way.
    Broken(String),
}

impl Ending {
    /// Says what there is to say, and returns the exit code. docs/cli.md has a table of them.
    pub(super) fn tell(self, connection: &Connection) -> ExitCode {
        let (code, kind, text) = match self {
            Self::Done => return ExitCode::SUCCESS,
            Self::RolledBack(text) => (1, "rolled_back", text),
            Self::Undecided(text) => (2, "undecided", text),
            Self::Refused(text) => (3, "refused", text),
            Self::Usage(text) => (EXIT_USAGE, "usage", text),
            Self::Unreachable(text) => (69, "unreachable", text),
            Self::Broken(text) => (70, "broken", text),
            Self::Forbidden(text) => (77, "forbidden", text),
            Self::Misconfigured(text) => (EXIT_CONFIG, "misconfigured", text),
        };
        match connection.output {
            Output::Table => say(&format!("{ERROR}error:{ERROR:#} {text}")),
            Output::Json => print(&format!("{}\n", json!({ "error": kind, "detail": text }))),
        }
        ExitCode::from(code)
    }
}

impl From<Failure> for Ending {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Unreachable(text) => Self::Unreachable(text),
            Failure::Refused { status: 401 | 403 | 429, detail } => Self::Forbidden(detail),
            Failure::Refused { status: 409 | 412, detail } => Self::Refused(detail),
            // One answers, but not to this name.
            Failure::Refused { status: 421, detail } => Self::Unreachable(detail),
            Failure::Refused { status: 500.., detail } => Self::Broken(detail),
            Failure::Refused { detail, .. } | Failure::Usage(detail) => Self::Usage(detail),
            Failure::Broken(text) => Self::Broken(text),
        }
    }
}

/// How the word `error` looks.
const ERROR: anstyle::Style = anstyle::AnsiColor::Red.on_default().bold();
