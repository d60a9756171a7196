//! What can be the matter with a store: where, what, and what to do instead.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::sealed::SCHEMA;

/// Why something could not be saved, or could not be read as it was saved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// What is there is not what was written.
    #[error("{} is corrupt at byte {offset}: {what}", file.display())]
    Corrupt {
        /// The file.
        file: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// It was written by a version that knows more.
    #[error(
        "a newer version of Tidegate wrote {} (schema {schema}, and this one knows up to {SCHEMA}): run that version, or move the service's folder away to begin with what is configured",
        file.display()
    )]
    NewerSchema {
        /// The file.
        file: PathBuf,
        /// Its schema.
        schema: u32,
    },
    /// Another process has the directory.
    #[error(
        "another process ({process}) uses the store {}: end that one first, or give each a `path` of its own",
        directory.display()
    )]
    Locked {
        /// The directory.
        directory: PathBuf,
        /// Who has it, as far as they have said.
        process: String,
    },
    /// There is no space left.
    #[error("no space is left to write {}: free some, or raise the quota", file.display())]
    Full {
        /// The file.
        file: PathBuf,
    },
    /// It may be read, but not written.
    #[error("{} cannot be written, its file system is read-only: remount it, or set another `path`", file.display())]
    ReadOnly {
        /// The file.
        file: PathBuf,
    },
    /// Everything else that a system says no to.
    #[error("cannot {doing} {}: {error}", file.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        file: PathBuf,
        /// What the system said.
        error: String,
    },
    /// More is to be saved than the disk can take.
    #[error("the store is busy: what was to be saved before is not on the disk yet")]
    Busy,
    /// It has been waited for longer than a disk that is well takes.
    #[error("the disk does not answer: see whether it, or the network that it is on, hangs")]
    Silent,
    /// Whoever saves has stopped.
    #[error("the store has stopped")]
    Stopped,
}

impl StoreError {
    /// What the system has said, in the store's words.
    pub(super) fn io(doing: &'static str, file: &Path, error: &io::Error) -> Self {
        let file = file.to_owned();
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { file },
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly { file },
            _ => Self::Io { doing, file, error: error.to_string() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_system_are_told_apart() {
        let of = |code| {
            StoreError::io("write", Path::new("/s/x"), &io::Error::from_raw_os_error(code)).to_string()
        };
        assert_eq!(of(28), "no space is left to write /s/x: free some, or raise the quota");
        assert!(of(122).starts_with("no space is left"));
        assert!(of(30).starts_with("/s/x cannot be written, its file system is read-only"));
        assert_eq!(of(13), "cannot write /s/x: Permission denied (os error 13)");
    }
}
