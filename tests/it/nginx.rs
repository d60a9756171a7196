//! The same with somebody else's servers behind it: two nginx of Debian.

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    thread,
};

use tempfile::TempDir;

use crate::support::{Tidegate, Web, eventually, external::program};

/// A running nginx that answers with its name.
pub struct Nginx {
    child: Child,
    pub address: SocketAddr,
    _folder: TempDir,
}

impl Nginx {
    fn start(nginx: &Path, name: &str) -> Self {
        Self::serve(nginx, "", "", name)
    }

    /// The same with more words after its address and more lines in its server.
    pub fn serve(nginx: &Path, listen: &str, lines: &str, name: &str) -> Self {
        // Free a moment ago; nginx cannot be given a socket, and cannot say which port it got.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().display();
        let config = format!(
            "daemon off; master_process off; pid {at}/pid; error_log {at}/error.log;
             events {{ worker_connections 256; }}
             http {{
                 access_log off;
                 client_body_temp_path {at}/body; proxy_temp_path {at}/proxy;
                 fastcgi_temp_path {at}/fastcgi; uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;
                 server {{ listen {address} {listen}; {lines} location / {{ return 200 '{name}'; }} }}
             }}"
        );
        fs::write(folder.path().join("nginx.conf"), config).unwrap();
        let child = Command::new(nginx)
            .args([
                "-e",
                &format!("{at}/error.log"),
                "-p",
                &at.to_string(),
                "-c",
                &format!("{at}/nginx.conf"),
            ])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        eventually(|| TcpStream::connect(address).map_err(|e| e.kind()).err(), Option::is_none);
        Self { child, address, _folder: folder }
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // One that was killed cannot be killed again.
        let _ended = self.child.kill();
        let _waited = self.child.wait();
    }
}

#[test]
fn a_killed_nginx_fails_its_share_and_nothing_else() {
    let Some(nginx) = program("nginx") else { return };
    let (stable, mut canary) = (Nginx::start(&nginx, "v1"), Nginx::start(&nginx, "v2"));
    let toml = Web::new(stable.address).canary(canary.address).weight(20.0).workers(2);
    let tidegate = Tidegate::start(toml);
    let mut client = tidegate.client();
    let canaries = (0..1000).filter(|_| client.get("/").text() == "v2").count();
    // 1,000 draws at 20 %: standard deviation 12.6; five of them.
    assert!((137..=263).contains(&canaries), "{canaries}");
    let (over, failures) = (AtomicBool::new(false), AtomicUsize::new(0));
    let stable_of_failing = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut client = tidegate.client();
                while !over.load(SeqCst) {
                    let response = client.get("/");
                    match response.status {
                        200 if failures.load(SeqCst) > 0 && response.text() == "v1" => {
                            stable_of_failing.fetch_add(1, SeqCst);
                        }
                        200 => {}
                        502 | 504 => {
                            failures.fetch_add(1, SeqCst);
                        }
                        other => panic!("{other}"),
                    }
                }
            });
        }
        canary.kill();
        eventually(|| failures.load(SeqCst), |failures| *failures >= 50);
        over.store(true, SeqCst);
    });
    assert!(stable_of_failing.load(SeqCst) > 0, "the other goes on");
    let scrape = tidegate.wait_until_idle();
    for status in ["5xx", "connect_failure", "timeout", "reset", "client_abort"] {
        scrape.expect("tidegate_requests_total", &[("backend", "v1"), ("status", status)], 0.0);
    }
    let of_canary = |status| scrape.sum("tidegate_requests_total", &[("backend", "v2"), ("status", status)]);
    assert_eq!(of_canary("connect_failure") + of_canary("reset"), failures.load(SeqCst) as f64);
    // With its weight gone, so are the failures.
    tidegate.set_weight(0.0);
    for _ in 0..100 {
        assert_eq!(client.get("/").text(), "v1");
    }
}
