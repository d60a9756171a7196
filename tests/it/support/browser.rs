//! A browser without a window: Debian's Chromium.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

/// A browser that shows a page until it is dropped.
#[derive(Debug)]
pub struct Browser {
    child: Child,
    _profile: TempDir,
}

impl Browser {
    /// Opens a page. `web.test` is this machine, and every certificate will do: whether it should is
    /// tested elsewhere.
    pub fn open(chromium: &Path, url: &str) -> Self {
        let profile = tempfile::tempdir().unwrap();
        let child = Command::new(chromium)
            // Root, as which containers run tests, has no sandbox.
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--no-proxy-server"])
            .args(["--ignore-certificate-errors", "--host-resolver-rules=MAP web.test 127.0.0.1"])
            // Without it, it leaves as soon as the page is there.
            .arg("--remote-debugging-port=0")
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg(url)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, _profile: profile }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _waited = self.child.wait();
    }
}
