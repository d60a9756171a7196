//! Other people's clients in front of it, and other people's servers behind it: what they make of each
//! other through the proxy. `docs/protocols.md` has the list, those tests included that stand beside
//! their subject.

use std::{
    fs::{self, File},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tempfile::TempDir;

use crate::{
    nginx::Nginx,
    support::{
        Raw, Tidegate, Web,
        browser::Browser,
        certificates::{Authority, Files},
        eventually,
        external::{Daemon, program},
        python::{Server, python, run_client},
        tonic_peer::{self, TonicServer},
    },
};

const WEB_PEER: &str = "tests/peers/web_peer.py";
const GRPC_PEER: &str = "tests/peers/grpc_peer.py";

/// The listener's keys for TLS, the authority's file, and what has to be kept.
fn tls() -> (String, PathBuf, Files) {
    let (authority, files) = (Authority::new("servers"), Files::new());
    let pair = files.pair("web", &authority.issue(&["web.test"]));
    let ca = files.write("ca.pem", &authority.pem);
    (format!("tls = {{ certificates = [{{ {pair} }}] }}\n"), ca, files)
}

/// nghttp2's server: it sends uploads back, adds a trailer, and writes down what it sees.
fn start_nghttpd(nghttpd: &Path) -> Daemon {
    Daemon::start(|address, folder| {
        fs::write(folder.join("file"), vec![b'x'; 300_000]).unwrap();
        let mut command = Command::new(nghttpd);
        command
            .args(["--no-tls", "--verbose", "--echo-upload", "--trailer=x-served: t", "--address=127.0.0.1"])
            .arg(format!("--htdocs={}", folder.display()))
            .arg(address.port().to_string())
            .stdout(File::create(folder.join("log")).unwrap());
        command
    })
}

/// HAProxy in front of a server, with more words on what it speaks to its clients, and to the server.
fn start_haproxy(haproxy: &Path, to_clients: &str, server: SocketAddr, to_server: &str) -> Daemon {
    Daemon::start(|address, folder| {
        let config = format!(
            "defaults\n mode http\n timeout connect 5s\n timeout client 20s\n timeout server 20s\n\
             listen front\n bind {address} {to_clients}\n server behind {server} {to_server}\n"
        );
        fs::write(folder.join("haproxy.cfg"), config).unwrap();
        let mut command = Command::new(haproxy);
        command.arg("-db").arg("-f").arg(folder.join("haproxy.cfg"));
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    })
}

/// What a program has written, which has to end well.
#[track_caller]
fn run(program: &Path, arguments: &[&str], address: SocketAddr, path: &str) -> Vec<u8> {
    let url = format!("http://{address}{path}");
    let output = Command::new(program).args(arguments).arg(url).env("NO_PROXY", "*").output().unwrap();
    let wrong = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?} {path}: {wrong}");
    output.stdout
}

/// A file to be sent, and what is in it.
fn upload(folder: &TempDir) -> (String, Vec<u8>) {
    let (path, body) = (folder.path().join("upload"), (0..=255).cycle().take(2_000_000).collect());
    fs::write(&path, &body).unwrap();
    (path.to_str().unwrap().to_owned(), body)
}

/// What curl speaks without TLS; `tls.rs` has it with.
const DIALECTS: [(&str, &str); 4] =
    [("--http1.0", "1"), ("--http1.1", "1.1"), ("--http2", "1.1"), ("--http2-prior-knowledge", "2")];

#[test]
fn curl_in_every_dialect_is_understood_by_servers_of_either_version() {
    let Some(curl) = program("curl") else { return };
    let Some(python) = python("hypercorn") else { return };
    let server = Server::start(&python, WEB_PEER);
    let folder = tempfile::tempdir().unwrap();
    let (file, body) = upload(&folder);
    for web in [Web::new(server.address), Web::h2c(server.address)] {
        let tidegate = Tidegate::start(web);
        let curl = |arguments: &[&str], path: &str| run(&curl, arguments, tidegate.address(), path);
        for (dialect, answered) in DIALECTS {
            let common = ["-sS", "--max-time", "20", dialect];
            let with = |more: &[&'static str]| [&common[..], more].concat();
            let facts = curl(&with(&["-o", "/dev/null", "-w", "%{http_version} %{http_code}"]), "/echo");
            assert_eq!(String::from_utf8_lossy(&facts), format!("{answered} 200"), "{dialect}");
            let head = curl(&with(&["--head"]), "/nothing");
            assert!(String::from_utf8_lossy(&head).contains(" 404"), "{dialect}");
            // With `Expect: 100-continue`, as curl does with large ones.
            let data = format!("@{file}");
            let posted = curl(&[&common[..], &["--data-binary", &data]].concat(), "/echo");
            assert!(posted == body, "{dialect}: {} bytes came back", posted.len());
            if dialect != "--http1.0" {
                let chunked = ["--upload-file", &file, "-H", "Transfer-Encoding: chunked"];
                let put = curl(&[&common[..], &chunked].concat(), "/echo");
                assert!(put == body, "{dialect}: {} bytes came back in chunks", put.len());
            }
        }
        tidegate.wait_until_idle().expect("tidegate_requests_total", &[("status", "2xx")], 11.0);
    }
}

#[test]
fn nghttp2_s_client_and_server_understand_each_other() {
    let (Some(nghttp), Some(nghttpd)) = (program("nghttp"), program("nghttpd")) else { return };
    let server = start_nghttpd(&nghttpd);
    let tidegate = Tidegate::start(Web::h2c(server.address));
    let nghttp = |arguments: &[&str], path: &str| {
        let said = run(&nghttp, &[&["-t", "20"], arguments].concat(), tidegate.address(), path);
        String::from_utf8_lossy(&said).into_owned()
    };
    let many = nghttp(&["-nv", "-m", "50"], "/file");
    assert_eq!(many.matches(":status: 200").count(), 50, "{many}");
    // Windows that are smaller than a frame.
    assert_eq!(nghttp(&["-w", "10", "-W", "16"], "/file"), "x".repeat(300_000));

    let folder = tempfile::tempdir().unwrap();
    let (file, _) = upload(&folder);
    for more in [&[][..], &["--expect-continue"], &["-b", "255"]] {
        let said = nghttp(&[&["-nv", "-d", &file, "--trailer", "x-sum: 7"], more].concat(), "/echo");
        assert!(said.contains(":status: 200") && said.contains("x-served: t"), "{more:?}: {said}");
    }
    assert_eq!(server.read("log").matches("x-sum: 7").count(), 3);
    // It asks for HTTP/2 by `Upgrade`, which is not to be had that way, and says so.
    tidegate.wait_until_idle().expect("tidegate_requests_total", &[("status", "2xx")], 54.0);
}

#[test]
fn nghttp2_s_load_is_carried_to_nginx_and_to_nghttp2_with_tls_and_without() {
    let (Some(h2load), Some(nginx)) = (program("h2load"), program("nginx")) else { return };
    let Some(nghttpd) = program("nghttpd") else { return };
    let (h1, h2) = (Nginx::serve(&nginx, "", "", "v1"), start_nghttpd(&nghttpd));
    let (keys, _ca, _files) = tls();
    for web in [Web::new(h1.address), Web::h2c(h2.address)] {
        for listener in ["", keys.as_str()] {
            let tidegate = Tidegate::start(web.clone().workers(2).listener(listener));
            let scheme = if listener.is_empty() { "http" } else { "https" };
            let ways = [&["-m", "32"][..], &["-m", "32", "-w", "12", "-W", "16"], &["--h1"]];
            for (more, total) in ways.into_iter().zip([400.0, 800.0, 1200.0]) {
                let output = Command::new(&h2load)
                    .args(["-n", "400", "-c", "4"])
                    .args(more)
                    .arg(format!("{scheme}://{}/file", tidegate.address()))
                    .output()
                    .unwrap();
                let said = String::from_utf8_lossy(&output.stdout);
                assert!(said.contains(" 400 succeeded, 0 failed, 0 errored"), "{scheme} {more:?}: {said}");
                let scrape = tidegate.wait_until_idle();
                let answered = scrape.sum("tidegate_requests_total", &[("status", "2xx")]);
                assert_eq!(answered, total, "{scheme} {more:?}: {scrape:?}");
            }
        }
    }
}

#[test]
fn haproxy_in_front_speaks_either_version() {
    let (Some(haproxy), Some(nginx)) = (program("haproxy"), program("nginx")) else { return };
    let server = Nginx::serve(&nginx, "", "", "v1");
    let tidegate = Tidegate::start(Web::new(server.address));
    for version in ["proto h1", "proto h2"] {
        let front = start_haproxy(&haproxy, "", tidegate.address(), version);
        let mut client = Raw::connect(front.address);
        for _ in 0..10 {
            assert_eq!(client.get("/").text(), "v1", "{version}");
        }
    }
    tidegate.wait_until_idle().expect("tidegate_requests_total", &[("status", "2xx")], 20.0);
}

#[test]
fn grpc_by_tonic_and_by_google_in_front_and_behind() {
    let tonic = TonicServer::start();
    let tidegate = Tidegate::start(Web::h2c(tonic.address));
    tonic_peer::check(tidegate.address());
    // As between Google's own: `grpc.rs`.
    let scrape = tidegate.wait_until_idle();
    let count = |status| scrape.sum("tidegate_requests_total", &[("status", status)]);
    assert!(count("grpc_failure") >= 3.0, "{scrape:#?}");
    assert_eq!((count("reset"), count("5xx")), (0.0, 0.0), "{scrape:#?}");

    let Some(python) = python("grpc") else { return };
    run_client(&python, GRPC_PEER, &["client", &tidegate.address().to_string()]);
    let google = Server::start(&python, GRPC_PEER);
    let (keys, ca, _files) = tls();
    let tidegate = Tidegate::start(Web::h2c(google.address));
    tonic_peer::check(tidegate.address());
    // With TLS in front.
    for server in [google.address, tonic.address] {
        let tidegate = Tidegate::start(Web::h2c(server).listener(&keys));
        let address = tidegate.address().to_string();
        run_client(&python, GRPC_PEER, &["client", &address, ca.to_str().unwrap()]);
    }
}

#[test]
fn a_browser_opens_websockets_over_either_version_on_either_side() {
    let Some(chromium) = program("chromium") else { return };
    let (Some(haproxy), Some(python)) = (program("haproxy"), python("hypercorn")) else { return };
    let server = Server::start(&python, WEB_PEER);
    // Hypercorn takes WebSockets over HTTP/2, too, but stumbles over what comes after their end.
    let h2 = start_haproxy(&haproxy, "proto h2", server.address, "");
    let (keys, _ca, _files) = tls();
    for web in [Web::new(server.address), Web::h2c(h2.address)] {
        for (listener, scheme, front) in [("", "http", "http/1.1"), (&*keys, "https", "h2")] {
            let folder = tempfile::tempdir().unwrap();
            let log = folder.path().join("access.log");
            let output = format!("[access_log]\noutput = '{}'\n", log.display());
            let tidegate = Tidegate::start(format!("{}{output}", web.clone().listener(listener)));
            let port = tidegate.address().port();
            let browser = Browser::open(&chromium, &format!("{scheme}://web.test:{port}/"));
            let said = server.next_line();
            assert_eq!(said, format!("4 chat.v1 1000 done true {front}"));
            drop(browser);
            // Over HTTP/2 it is a stream beside the page's (RFC 8441), no connection of its own.
            tidegate.wait_for_outcome("1xx", 1);
            let protocol = if front == "h2" { "HTTP/2" } else { "HTTP/1.1" };
            let is_chat = |line: &&str| line.contains("\"path\":\"/chat\"");
            let lines = eventually(|| fs::read_to_string(&log).unwrap(), |l| l.lines().any(|l| is_chat(&l)));
            let line = lines.lines().find(is_chat).unwrap();
            assert!(line.contains(&format!("\"protocol\":\"{protocol}\"")), "{line}");
        }
    }
}
