//! Programs that a test needs and a machine may lack.

use std::{
    env, fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command},
};

use tempfile::TempDir;

use super::eventually::eventually;

/// Where a program is. Where it is missing, the test is skipped at a desk and fails in CI.
///
/// # Panics
/// When it is missing and `CI` is set.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    // Debian has daemons in a directory that only root looks in.
    let folders = env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    let found = folders.map(|folder| folder.join(name)).find(|file| file.is_file());
    if found.is_none() {
        missing(name);
    }
    found
}

/// Says that a test is skipped.
///
/// # Panics
/// When `CI` is set.
#[expect(clippy::print_stderr, reason = "a skipped test must be seen to be skipped")]
pub fn missing(name: &str) {
    assert!(env::var_os("CI").is_none(), "{name} is missing, and CI has to have it");
    eprintln!("SKIPPED: {name} is not installed");
}

/// A program that serves, until it is dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    pub address: SocketAddr,
    folder: TempDir,
}

impl Daemon {
    /// Starts what `command` makes of an address and a folder of its own; once it takes connections, it
    /// is there.
    pub fn start(command: impl FnOnce(SocketAddr, &Path) -> Command) -> Self {
        // Free a moment ago; it cannot be given a socket, and could not say which port it got.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let child = command(address, folder.path()).spawn().unwrap();
        eventually(|| TcpStream::connect(address).map_err(|e| e.kind()).err(), Option::is_none);
        Self { child, address, folder }
    }

    /// What it has written into a file of its folder.
    pub fn read(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.folder.path().join(name)).unwrap()).into_owned()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // One that has ended by itself cannot be ended again.
        let _ended = self.child.kill();
        let _waited = self.child.wait();
    }
}
