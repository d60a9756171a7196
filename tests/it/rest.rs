//! Connections that have been idle for a while give their buffers back, and nobody notices but the
//! memory.

use std::{
    io::{Read, Write},
    time::Duration,
};

use crate::support::{
    Backend, Raw, Tidegate, Web,
    certificates::{Authority, Dialect, Files},
    eventually_is, reply,
};

/// Longer than it takes for a connection to be put to rest; nothing shows that it was.
fn rest() {
    std::thread::sleep(Duration::from_millis(1300));
}

#[test]
fn who_comes_back_is_served_again_and_again() {
    let backend = Backend::named("v1");
    let tidegate = Tidegate::start(Web::new(backend.address));
    let mut client = tidegate.client();
    for _ in 0..3 {
        for _ in 0..2 {
            assert_eq!(client.get("/").text(), "v1");
        }
        rest();
    }
    assert_eq!(client.get("/").text(), "v1");
}

#[test]
fn half_a_head_from_before_is_not_forgotten() {
    let backend = Backend::answering(|seen| reply("200 OK", &[], seen.target()));
    let tidegate = Tidegate::start(Web::new(backend.address));
    let mut client = tidegate.client();
    client.send("GET /first HTTP/1.1\r\nHost: x\r\n\r\nGET /sec");
    assert_eq!(client.response().text(), "/first");
    rest();
    client.send("ond HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(client.response().text(), "/second");
}

#[test]
fn the_time_to_be_idle_in_is_neither_shorter_nor_longer() {
    let backend = Backend::named("v1");
    let tidegate = Tidegate::start(Web::new(backend.address).listener("idle_timeout = '2s'"));
    let mut client = tidegate.client();
    assert_eq!(client.get("/").status, 200);
    let begin = tidegate::clock::monotonic();
    rest();
    eventually_is(1.0, || tidegate.scrape().sum("tidegate_connections_open", &[]));
    client.expect_end();
    let lasted = begin.elapsed();
    assert!(lasted >= Duration::from_millis(1900) && lasted < Duration::from_secs(4), "{lasted:?}");
}

#[test]
fn a_head_that_does_not_come_wholly_is_cut_as_ever() {
    let backend = Backend::named("v1");
    let tidegate = Tidegate::start(Web::new(backend.address).listener("header_timeout = '200ms'"));
    let mut client = tidegate.client();
    assert_eq!(client.get("/").status, 200);
    rest();
    client.send("GET / HT");
    client.expect_end();
}

#[test]
fn who_rests_is_let_go_when_the_proxy_ends() {
    let backend = Backend::named("v1");
    let mut tidegate = Tidegate::start(Web::new(backend.address));
    let mut client = tidegate.client();
    assert_eq!(client.get("/").status, 200);
    rest();
    tidegate.drain(Duration::ZERO);
    client.expect_end();
    tidegate.wait_for_end();
}

#[test]
fn it_is_the_same_with_tls() {
    let (authority, files) = (Authority::new("authority"), Files::new());
    let pair = files.pair("web", &authority.issue(&["web.test"]));
    let backend = Backend::named("v1");
    let toml = Web::new(backend.address).listener(&format!("tls = {{ certificates = [{{ {pair} }}] }}"));
    let mut tidegate = Tidegate::start(toml);
    let mut stream = Dialect::trusting(&authority).connect(tidegate.address(), "web.test").unwrap();
    let mut ask = || {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: web.test\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"v1") {
            let mut some = [0; 1024];
            let n = stream.read(&mut some).unwrap();
            assert_ne!(n, 0, "{}", String::from_utf8_lossy(&answer));
            answer.extend_from_slice(&some[..n]);
        }
    };
    ask();
    rest();
    ask();
    rest();
    // A farewell of TLS, without which this would be an error.
    tidegate.drain(Duration::ZERO);
    assert_eq!(stream.read(&mut [0; 16]).unwrap(), 0);
    tidegate.wait_for_end();
}

/// It would be no gain if it were not less.
#[test]
#[cfg(target_os = "linux")]
fn buffers_are_given_back() {
    use crate::support::eventually;

    const CLIENTS: usize = 500;
    let backend = Backend::named("v1");
    let (_folder, program) = crate::cli::Program::run(Web::new(backend.address).workers(1));
    let kib = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", program.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.split_whitespace().next().unwrap().parse::<usize>().unwrap()
    };
    let clients: Vec<Raw> = (0..CLIENTS)
        .map(|_| {
            let mut client = Raw::connect(program.listener);
            assert_eq!(client.get("/").status, 200);
            client
        })
        .collect();
    let busy = kib();
    eventually(kib, |now| now + CLIENTS * 8 < busy);
    drop(clients);
}

/// The kernel would make of a few objects as many times 2 MiB.
#[test]
#[cfg(target_os = "linux")]
fn its_memory_is_not_in_huge_pages() {
    let backend = Backend::named("v1");
    let (_folder, program) = crate::cli::Program::run(Web::new(backend.address).workers(1));
    let status = std::fs::read_to_string(format!("/proc/{}/status", program.id())).unwrap();
    assert!(status.contains("THP_enabled:\t0\n"), "{status}");
}
