//! Asking for the configuration to be read anew. Who does it is elsewhere.

use tokio::sync::{mpsc, oneshot};

use crate::controller::context::Context;

/// What a reload came to: what has changed, a line for each, or why nothing has.
pub type Outcome = Result<Vec<String>, NotReloaded>;

/// Who asks, and who is to be told of it.
pub type Asked = (By, oneshot::Sender<Outcome>);

/// Who has the configuration read anew.
#[derive(Debug, Clone)]
pub enum By {
    /// Somebody over the API, which has it in the audit like any write.
    Caller(Context),
    /// A signal to the process.
    Signal,
    /// The file, which has changed.
    File,
}

impl By {
    /// Who it is, as the services' events are to say it.
    pub fn context(&self) -> Context {
        match self {
            Self::Caller(context) => context.clone(),
            Self::Signal => Context::of("SIGHUP"),
            Self::File => Context::of("file"),
        }
    }
}

/// Why the running configuration stayed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotReloaded {
    /// The file is wrong: what is wrong, where, and what would be right.
    #[error("{0}")]
    Wrong(String),
    /// It is right, and cannot be taken up by this process now.
    #[error("{0}")]
    Refused(String),
    /// There is no file, or nobody who reads it any more.
    #[error("this process does not read its configuration anew")]
    Unavailable,
}

/// Asks for the configuration to be read anew. Clones ask the same one.
#[derive(Debug, Clone)]
pub struct Reload(mpsc::Sender<Asked>);

impl Reload {
    /// Something to ask, and where it is heard.
    pub fn channel() -> (Self, mpsc::Receiver<Asked>) {
        let (asks, asked) = mpsc::channel(1);
        (Self(asks), asked)
    }

    /// Asks, and waits until it is done.
    ///
    /// # Errors
    /// When the running configuration stays.
    pub async fn ask(&self, by: By) -> Outcome {
        let (answer, answered) = oneshot::channel();
        self.0.send((by, answer)).await.map_err(|_| NotReloaded::Unavailable)?;
        answered.await.unwrap_or(Err(NotReloaded::Unavailable))
    }
}
