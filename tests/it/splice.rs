//! Large bodies, which take a short way through the kernel: not a byte of them may differ, be
//! missing, or belong to somebody else.

use crate::support::{Backend, Raw, Tidegate, Web, reply};

/// A body in which each position of each target looks different.
fn body(target: &str) -> Vec<u8> {
    let (name, length) = target[1..].split_once('-').unwrap();
    let seed: u32 = name.bytes().map(u32::from).sum();
    (0..length.parse::<u32>().unwrap())
        .map(|i| ((i + seed).wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

fn backend() -> Backend {
    Backend::answering(|seen| reply("200 OK", &[], body(seen.target())))
}

#[track_caller]
fn check(client: &mut Raw, target: &str) {
    let response = client.response();
    assert!(response.whole && response.body == body(target), "{target}: {} bytes", response.body.len());
}

#[test]
fn bodies_of_every_size_arrive_as_they_were_sent() {
    let backend = backend();
    let tidegate = Tidegate::start(Web::new(backend.address));
    let mut client = tidegate.client();
    for round in 0..3 {
        for size in [1, 8_191, 65_535, 65_536, 65_537, 131_072, 200_003, 1_048_576, 5_000_011] {
            let target = format!("/{round}-{size}");
            client.send(format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n"));
            check(&mut client, &target);
        }
    }
    assert_eq!(backend.connections(), 1);
}

#[test]
fn small_and_large_responses_follow_each_other_in_order() {
    let backend = backend();
    let tidegate = Tidegate::start(Web::new(backend.address));
    let mut client = tidegate.client();
    let targets: Vec<String> =
        (0..30).map(|i| format!("/{i}-{}", [10, 300_000, 70_000, 0, 1_000_000][i % 5])).collect();
    let requests: String =
        targets.iter().map(|target| format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n")).collect();
    client.send(requests);
    for target in &targets {
        check(&mut client, target);
    }
}

#[test]
fn many_clients_get_their_own_bodies() {
    let backend = backend();
    let tidegate = Tidegate::start(Web::new(backend.address));
    std::thread::scope(|scope| {
        for name in 'a'..='h' {
            let mut client = tidegate.client();
            scope.spawn(move || {
                for i in 0..10 {
                    let target = format!("/{name}-{}", 900_000 + i);
                    client.send(format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n"));
                    check(&mut client, &target);
                }
            });
        }
    });
    tidegate.wait_for_outcome("2xx", 80);
}

#[test]
fn what_is_left_of_a_client_that_went_away_reaches_nobody_else() {
    let backend = backend();
    let tidegate = Tidegate::start(Web::new(backend.address));
    for _ in 0..10 {
        let mut gone = tidegate.client();
        gone.send("GET /gone-30000000 HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(gone.wire.skip(500_000), 500_000);
        drop(gone);
        let mut client = tidegate.client();
        client.send("GET /next-700000 HTTP/1.1\r\nHost: x\r\n\r\n");
        check(&mut client, "/next-700000");
    }
    tidegate.wait_for_outcome("client_abort", 10);
}

#[test]
fn a_body_that_breaks_off_is_cut_and_counts_against_the_backend() {
    let backend = Backend::scripted(|mut peer| {
        if peer.request().is_some() {
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n");
            peer.send(vec![7; 600_000]);
        }
    });
    let tidegate = Tidegate::start(Web::new(backend.address));
    let mut client = tidegate.client();
    client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(client.wire.read_head().unwrap().contains("1000000"));
    let got = client.wire.read_to_end();
    assert!(got.len() <= 600_000 && got.iter().all(|byte| *byte == 7), "{} bytes", got.len());
    tidegate.wait_for_outcome("reset", 1);
}

#[test]
fn what_a_backend_sends_beyond_its_length_goes_nowhere() {
    let backend = Backend::scripted(|mut peer| {
        while peer.request().is_some() {
            let mut answer = reply("200 OK", &[], vec![1; 300_000]);
            answer.extend_from_slice(&[2; 50_000]);
            peer.send(answer);
        }
    });
    let tidegate = Tidegate::start(Web::new(backend.address));
    for _ in 0..5 {
        let mut client = tidegate.client();
        for _ in 0..2 {
            client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
            let response = client.response();
            assert!(response.whole && response.body == vec![1; 300_000], "{} bytes", response.body.len());
        }
    }
}

/// What a request says whose body is that of `target`.
fn upload(target: &str) -> Vec<u8> {
    let body = body(target);
    let head = format!("POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
    [head.into_bytes(), body].concat()
}

/// Answers with what has come, if it is what it should be.
fn collector() -> Backend {
    Backend::answering(|seen| match seen.body == body(seen.target()) {
        true => reply("200 OK", &[], seen.body.clone()),
        false => reply("500 Broken", &[], ""),
    })
}

#[test]
fn uploads_of_every_size_arrive_as_they_were_sent_and_so_do_the_answers() {
    let backend = collector();
    let tidegate = Tidegate::start(Web::new(backend.address));
    let mut client = tidegate.client();
    for round in 0..3 {
        for size in [1, 8_191, 65_535, 65_536, 65_537, 131_072, 200_003, 1_048_576, 5_000_011] {
            let target = format!("/{round}-{size}");
            client.send(upload(&target));
            check(&mut client, &target);
        }
    }
    assert_eq!(backend.connections(), 1);
}

#[test]
fn uploads_that_may_be_sent_again_arrive_as_they_were_sent() {
    let backend = collector();
    let web = Web::new(backend.address).table("retry", "attempts = 1\nmax_body = \"64KiB\"");
    let tidegate = Tidegate::start(web);
    let mut client = tidegate.client();
    for size in [1, 65_535, 65_536, 65_537, 131_072, 200_003, 5_000_011] {
        let target = format!("/again-{size}");
        // One that may be, and one that may not.
        for method in ["PUT", "POST"] {
            client.send([method.as_bytes(), &upload(&target)["POST".len()..]].concat());
            check(&mut client, &target);
        }
    }
    assert_eq!(backend.connections(), 1);
}

/// A pipe that has been used is kept for the next body, so it can be seen.
#[test]
#[cfg(target_os = "linux")]
fn what_will_not_be_sent_again_goes_through_a_pipe_and_what_may_be_does_not() {
    // A large response would have a pipe of its own.
    let backend = Backend::answering(|_| reply("200 OK", &[], ""));
    for (kept, more) in [("4KiB", 2), ("1MiB", 0)] {
        let web = Web::new(backend.address).table("retry", &format!("attempts = 1\nmax_body = '{kept}'"));
        let (_folder, program) = crate::cli::Program::run(web.workers(1));
        let pipes = || {
            let descriptors = std::fs::read_dir(format!("/proc/{}/fd", program.id())).unwrap();
            let targets = descriptors.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
            targets.filter(|target| target.to_string_lossy().starts_with("pipe:")).count()
        };
        let before = pipes();
        let mut client = Raw::connect(program.listener);
        client.send([b"PUT", &upload("/large-500000")["POST".len()..]].concat());
        let status = client.response().status;
        assert_eq!((status, pipes()), (200, before + more), "{kept}");
    }
}

#[test]
fn uploads_follow_each_other_in_order_whatever_stands_between_them() {
    let backend = collector();
    let tidegate = Tidegate::start(Web::new(backend.address));
    let mut client = tidegate.client();
    let targets: Vec<String> =
        (0..20).map(|i| format!("/{i}-{}", [300_000, 10, 70_000, 0, 1_000_000][i % 5])).collect();
    std::thread::scope(|scope| {
        let mut sender = client.wire.socket().try_clone().unwrap();
        let requests: Vec<u8> = targets.iter().flat_map(|target| upload(target)).collect();
        scope.spawn(move || std::io::Write::write_all(&mut sender, &requests).unwrap());
        for target in &targets {
            check(&mut client, target);
        }
    });
}

#[test]
fn many_clients_uploads_are_not_mixed_up() {
    let backend = collector();
    let tidegate = Tidegate::start(Web::new(backend.address));
    std::thread::scope(|scope| {
        for name in 'a'..='h' {
            let mut client = tidegate.client();
            scope.spawn(move || {
                for i in 0..10 {
                    let target = format!("/{name}-{}", 900_000 + i);
                    client.send(upload(&target));
                    check(&mut client, &target);
                }
            });
        }
    });
    tidegate.wait_for_outcome("2xx", 80);
}

#[test]
fn what_is_left_of_an_upload_that_was_broken_off_reaches_nobody_else() {
    let backend = collector();
    let tidegate = Tidegate::start(Web::new(backend.address));
    for _ in 0..10 {
        let mut gone = tidegate.client();
        gone.send(&upload("/gone-3000000")[..500_000]);
        drop(gone);
        let mut client = tidegate.client();
        client.send(upload("/next-700000"));
        check(&mut client, "/next-700000");
    }
    tidegate.wait_for_outcome("client_abort", 10);
}

#[test]
fn a_backend_that_answers_before_it_has_read_all_is_believed() {
    // It has had as much as goes through a pipe, and more is on the way.
    let backend = Backend::scripted(|mut peer| {
        if peer.head().is_some() {
            peer.wire.read_length(200_000);
            peer.send("HTTP/1.1 413 Too Much\r\nContent-Length: 4\r\nConnection: close\r\n\r\nmuch");
            peer.wait_for_end();
        }
    });
    let tidegate = Tidegate::start(Web::new(backend.address));
    for _ in 0..5 {
        let mut client = tidegate.client();
        client.send(&upload("/much-30000000")[..1_000_000]);
        let response = client.response();
        assert_eq!((response.status, response.text().as_str()), (413, "much"));
    }
}

#[test]
fn a_backend_that_reads_nothing_of_an_upload_is_to_blame() {
    let backend = Backend::scripted(|mut peer| {
        if peer.head().is_some() {
            peer.wait_for_end();
        }
    });
    let web = Web::new(backend.address).table("timeouts", "response = \"300ms\"\nidle = \"300ms\"");
    let tidegate = Tidegate::start(web);
    let mut client = tidegate.client();
    std::thread::scope(|scope| {
        let mut sender = client.wire.socket().try_clone().unwrap();
        // It may be cut off in the middle.
        scope.spawn(move || std::io::Write::write_all(&mut sender, &upload("/stuck-30000000")).err());
        assert_eq!(client.response().status, 504);
        client.wire.socket().shutdown(std::net::Shutdown::Both).unwrap();
    });
    tidegate.wait_for_outcome("timeout", 1);
}
