//! Peers in Python: somebody else's implementation at the other end.

use std::{
    env,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
};

use super::{eventually::patience, external::missing};

/// A Python that has a module: `TIDEGATE_TEST_PYTHON`, the one that CI installs, or the machine's. Found from
/// any folder.
pub fn python(module: &str) -> Option<PathBuf> {
    let given = env::var_os("TIDEGATE_TEST_PYTHON").map(PathBuf::from);
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/python/bin/python3");
    let candidates = given.into_iter().chain([installed, "python3".into()]);
    let has = |python: &PathBuf| {
        let import = format!("import {module}");
        let tried = Command::new(python).args(["-c", &import]).stderr(Stdio::null()).status();
        tried.is_ok_and(|status| status.success())
    };
    let found = candidates.into_iter().find(has);
    if found.is_none() {
        missing(&format!("Python with the module {module}"));
    }
    found
}

/// A server that says which port it has, and perhaps more.
#[derive(Debug)]
pub struct Server {
    child: Child,
    pub address: SocketAddr,
    said: Receiver<String>,
}

impl Server {
    pub fn start(python: &Path, script: &str) -> Self {
        Self::start_with(python, script, &[])
    }

    /// The same with more arguments.
    pub fn start_with(python: &Path, script: &str, arguments: &[&str]) -> Self {
        let mut child = Command::new(python)
            .args([script, "server"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (say, said) = channel();
        // Ends with the server.
        thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| say.send(line)));
        let line = said.recv().expect("it says its port");
        let port: u16 = line.trim().parse().expect("it says its port");
        Self { child, address: ([127, 0, 0, 1], port).into(), said }
    }

    /// What it says next.
    #[track_caller]
    pub fn next_line(&self) -> String {
        self.said.recv_timeout(patience()).expect("it says something in time")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Its standard input ends, and so does it; if it does not, it is ended.
        drop(self.child.stdin.take());
        let _ended = self.child.kill();
        let _waited = self.child.wait();
    }
}

/// Runs a client, which has to find everything fine.
#[track_caller]
pub fn run_client(python: &Path, script: &str, arguments: &[&str]) {
    let output = Command::new(python).arg(script).args(arguments).output().unwrap();
    let (said, wrong) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.trim() == "fine", "{said}\n{wrong}");
}
