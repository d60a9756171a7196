//! How much is let in: of connections, heads, bodies and requests.

use std::{
    sync::{
        atomic::{AtomicBool, Ordering::SeqCst},
        mpsc,
    },
    thread,
    time::Duration,
};

use crate::{
    reload::Filed,
    support::{
        Backend, H2, Raw, Tidegate, Web,
        client::{full, h2_request},
        eventually, exchange, get, patience, reply, runtime,
    },
};

fn local_replies(tidegate: &Tidegate, reason: &str, wanted: f64) {
    let scrape = || tidegate.scrape().sum("tidegate_local_replies_total", &[("reason", reason)]);
    eventually(scrape, |sum| *sum == wanted);
}

#[test]
fn a_head_has_limits_and_each_refusal_is_counted() {
    let backend = Backend::named("v1");
    let keys = "max_uri_length = '256B'\nmax_headers = 10\nmax_header_bytes = '1KiB'\n";
    let tidegate = Tidegate::start(Web::new(backend.address).listener(keys));
    let with = |target: &str, fields: &str| {
        exchange(tidegate.address(), format!("GET {target} HTTP/1.1\r\nHost: x\r\n{fields}\r\n")).status
    };
    let fields = |n: usize| (0..n).map(|i| format!("X-{i}: {i}\r\n")).collect::<String>();
    assert_eq!(with(&format!("/{}", "a".repeat(255)), &fields(9)), 200);
    assert_eq!(with(&format!("/{}", "a".repeat(256)), ""), 414);
    assert_eq!(with("/", &fields(10)), 431);
    assert_eq!(with("/", &format!("X-Long: {}\r\n", "a".repeat(1024))), 431);
    assert_eq!(exchange(tidegate.address(), "GET / HTTP/1.1\r\nHost x\r\n\r\n").status, 400);
    assert_eq!(backend.count(), 1);
    local_replies(&tidegate, "uri_too_long", 1.0);
    local_replies(&tidegate, "head_too_large", 2.0);
    local_replies(&tidegate, "bad_request", 1.0);
}

#[test]
fn more_headers_than_usual_can_be_asked_for() {
    let backend = Backend::named("v1");
    let tidegate = Tidegate::start(Web::new(backend.address).listener("max_headers = 300\n"));
    let fields: String = (0..290).map(|i| format!("X-{i}: {i}\r\n")).collect();
    assert_eq!(
        exchange(tidegate.address(), format!("GET / HTTP/1.1\r\nHost: x\r\n{fields}\r\n")).status,
        200
    );
}

#[test]
fn a_body_that_says_it_is_too_large_is_refused_before_it_comes() {
    let backend = Backend::named("v1");
    let tidegate = Tidegate::start(Web::new(backend.address).table("limits", "max_body_size = '10B'"));
    let post = |fields: &str| exchange(tidegate.address(), format!("POST / HTTP/1.1\r\nHost: x\r\n{fields}"));
    assert_eq!(post("Content-Length: 10\r\n\r\n0123456789").status, 200);
    // Nothing of the body is sent: it was not asked for.
    let refused = post("Content-Length: 11\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!((refused.status, refused.fields("connection")), (413, vec!["close"]));
    assert_eq!(backend.count(), 1);
    local_replies(&tidegate, "body_too_large", 1.0);
}

#[test]
fn a_body_that_turns_out_too_large_is_the_clients_fault() {
    let backend = Backend::named("v1");
    let tidegate = Tidegate::start(Web::new(backend.address).table("limits", "max_body_size = '10B'"));
    let chunks = |n: usize| "4\r\nabcd\r\n".repeat(n);
    let post = |n: usize| {
        let head = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
        exchange(tidegate.address(), format!("{head}{}0\r\n\r\n", chunks(n)))
    };
    assert_eq!(post(2).status, 200);
    assert_eq!(post(3).status, 413);
    let h2 = H2::connect(tidegate.address());
    let request = h2_request("POST", "/").body(full(vec![0; 11])).unwrap();
    let status = runtime().block_on(h2.send(request)).unwrap().status();
    assert_eq!(status.as_u16(), 413);
    local_replies(&tidegate, "body_too_large", 2.0);
    tidegate.wait_for_outcome("2xx", 1);
    tidegate.scrape().expect("tidegate_requests_total", &[("status", "reset")], 0.0);
}

#[test]
fn a_reply_reaches_a_client_that_goes_on_sending() {
    let backend = Backend::named("v1");
    let tidegate = Tidegate::start(Web::new(backend.address).table("limits", "max_body_size = '1KiB'"));
    for _ in 0..20 {
        let mut client = tidegate.client();
        client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 600000\r\n\r\n");
        // Into a socket that nobody would read: without a wait, its closing resets the connection.
        client.send(vec![0; 600_000]);
        assert_eq!(client.response().status, 413);
        client.wire.wait_for_end();
    }
}

/// Sends a body that is refused at its head, `pieces` of it with a pause after each, and reads the answer only then.
#[track_caller]
fn upload_whole(tidegate: &Tidegate, head: &str, pieces: usize, pause: Duration) -> u16 {
    let mut client = tidegate.client();
    let piece = vec![0; 100_000];
    let length = pieces * piece.len();
    client.send(format!("POST /a HTTP/1.1\r\n{head}\r\nContent-Length: {length}\r\n\r\n"));
    for n in 0..pieces {
        assert!(client.send(&piece), "the connection was reset after {n} pieces");
        // A slow client; nothing waits for this to be over.
        thread::sleep(pause);
    }
    let status = client.response().status;
    client.expect_end();
    status
}

#[test]
fn a_client_that_sends_its_whole_body_first_reads_its_refusal_after_it() {
    let backend = Backend::named("v1");
    let web = Web::new(backend.address).table("limits", "max_body_size = '1KiB'").to_string();
    let only = web.replace("[[routes]]", "[[routes]]\nhostnames = ['web.test']");
    let tidegate = Tidegate::start(only);
    for (head, status) in [("Host: web.test", 413), ("Host: other.test", 404)] {
        assert_eq!(upload_whole(&tidegate, head, 100, Duration::ZERO), status, "at once");
        assert_eq!(upload_whole(&tidegate, head, 25, Duration::from_millis(60)), status, "slowly");
    }
    assert_eq!(backend.count(), 0);
}

#[test]
fn a_body_has_a_time_in_which_to_come() {
    let backend = Backend::scripted(|mut peer| while peer.request().is_some() {});
    let tidegate = Tidegate::start(Web::new(backend.address).table("limits", "body_timeout = '100ms'"));
    let mut client = tidegate.client();
    client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf");
    assert_eq!(client.response().status, 408);
    local_replies(&tidegate, "request_timeout", 1.0);
    tidegate.scrape().expect("tidegate_requests_total", &[("status", "timeout")], 0.0);
}

#[test]
fn a_service_takes_so_many_requests_at_a_time() {
    let (go, wait) = mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let backend = Backend::answering(move |seen| {
        if seen.target() == "/slow" {
            wait.lock().unwrap().recv().unwrap();
        }
        reply("200 OK", &[], "done")
    });
    let tidegate = Tidegate::start(Web::new(backend.address).workers(2).table("limits", "max_in_flight = 1"));
    let mut slow = tidegate.client();
    slow.send("GET /slow HTTP/1.1\r\nHost: x\r\n\r\n");
    eventually(|| backend.count(), |count| *count == 1);
    let refused = get(tidegate.address(), "/");
    assert_eq!((refused.status, refused.fields("retry-after")), (503, vec!["1"]));
    assert_eq!(refused.fields("proxy-status"), ["tidegate; error=connection_limit_reached"]);
    go.send(()).unwrap();
    assert_eq!(slow.response().status, 200);
    eventually(|| get(tidegate.address(), "/").status, |status| *status == 200);
    tidegate.scrape().expect("tidegate_requests_total", &[("status", "5xx")], 0.0);
}

#[test]
fn a_declined_upgrade_counts_until_its_response_has_ended() {
    let (go, wait) = mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let backend = Backend::scripted(move |mut peer| {
        while let Some(seen) = peer.request() {
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nha");
            if !seen.fields("upgrade").is_empty() {
                wait.lock().unwrap().recv_timeout(patience()).unwrap();
            }
            peer.send("lf");
        }
    });
    let tidegate = Tidegate::start(Web::new(backend.address).table("limits", "max_in_flight = 1"));
    let mut client = tidegate.client();
    client.send("GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n");
    assert!(client.wire.read_head().is_some());
    assert_eq!(client.wire.read_length(2), b"ha");
    assert_eq!(get(tidegate.address(), "/").status, 503);
    go.send(()).unwrap();
    assert_eq!(client.wire.read_length(2), b"lf");
    eventually(|| get(tidegate.address(), "/").status, |status| *status == 200);
}

#[test]
fn a_tunnel_counts_until_it_ends() {
    let backend = Backend::scripted(|mut peer| {
        if peer.request().is_some_and(|seen| !seen.fields("upgrade").is_empty()) {
            peer.send(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
            );
            peer.wait_for_end();
        } else {
            peer.send(reply("200 OK", &[("Connection", "close")], ""));
        }
    });
    let tidegate = Tidegate::start(Web::new(backend.address).table("limits", "max_in_flight = 1"));
    let mut client = tidegate.client();
    client.send("GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n");
    assert_eq!(client.response().status, 101);
    assert_eq!(get(tidegate.address(), "/").status, 503);
    drop(client);
    eventually(|| get(tidegate.address(), "/").status, |status| *status == 200);
}

#[test]
fn a_service_takes_so_many_requests_over_time() {
    let backend = Backend::named("v1");
    let limits = "rate = { per_second = 1, burst = 3 }";
    let tidegate = Tidegate::start(Web::new(backend.address).workers(2).table("limits", limits));
    // However slow this machine is, it asks more often than once a second.
    let responses: Vec<_> = (0..100).map(|_| get(tidegate.address(), "/")).collect();
    let refused: Vec<_> = responses.iter().filter(|response| response.status == 429).collect();
    assert!(responses[..3].iter().all(|response| response.status == 200), "the burst passes");
    assert_eq!(refused[0].fields("retry-after"), ["1"]);
    local_replies(&tidegate, "rate_limited", refused.len() as f64);
}

#[test]
fn clients_are_told_apart_by_what_a_trusted_proxy_says() {
    let backend = Backend::named("v1");
    let web = Web::new(backend.address).listener("trusted_proxies = ['127.0.0.1']\n");
    let tidegate = Tidegate::start(web.table("limits", "client_rate = { per_second = 1 }"));
    let mut proxy = tidegate.client();
    let mut from = |client: &str| {
        proxy.send(format!("GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 6.6.6.6, {client}\r\n\r\n"));
        proxy.response().status
    };
    assert_eq!(["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8:0:1::1"].map(&mut from), [200; 4]);
    for again in ["192.0.2.1", "2001:db8::2"] {
        assert!((0..100).any(|_| from(again) == 429), "{again}");
    }
}

/// A second route to the service of `web`, with limits of its own.
fn with_route(web: &Web, path: &str, limits: &str) -> String {
    format!("{web}[[routes]]\nservice = 'web'\npath = '{path}'\n[routes.limits]\n{limits}\n")
}

/// How many of so many requests are answered with 429; all others have to be with 200.
#[track_caller]
fn limited(client: &mut Raw, path: &str, requests: usize) -> usize {
    let statuses: Vec<_> = (0..requests).map(|_| client.get(path).status).collect();
    assert!(statuses.iter().all(|status| [200, 429].contains(status)), "{statuses:?}");
    statuses.iter().filter(|status| **status == 429).count()
}

#[test]
fn a_route_has_a_largest_body_of_its_own() {
    let backend = Backend::named("v1");
    let web = Web::new(backend.address).table("limits", "max_body_size = '10B'");
    let web = with_route(&web, "/upload", "max_body_size = '20B'");
    let more = "[[routes]]\nservice = 'web'\npath = '/login'\nlimits = { max_body_size = '5B' }\n";
    let tidegate = Tidegate::start(format!("{web}{more}"));
    let post = |path: &str, length: usize| {
        let (head, body) = (format!("POST {path} HTTP/1.1\r\nHost: x\r\n"), "x".repeat(length));
        let said = exchange(tidegate.address(), format!("{head}Content-Length: {length}\r\n\r\n{body}"));
        let chunk = format!("{head}Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n{body}\r\n0\r\n\r\n");
        let h2 = H2::connect(tidegate.address());
        let request = h2_request("POST", path).body(full(body.into_bytes())).unwrap();
        let over_h2 = runtime().block_on(h2.send(request)).unwrap().status().as_u16();
        [said.status, exchange(tidegate.address(), chunk).status, over_h2]
    };
    for (path, most) in [("/", 10), ("/upload", 20), ("/login", 5)] {
        assert_eq!(post(path, most), [200; 3], "{path}");
        assert_eq!(post(path, most + 1), [413; 3], "{path}");
    }
    local_replies(&tidegate, "body_too_large", 9.0);
}

#[test]
fn a_route_takes_so_many_requests_over_time_and_its_service_more() {
    let backend = Backend::named("v1");
    let web = Web::new(backend.address).workers(2).table("limits", "rate = { per_second = 1, burst = 50 }");
    let tidegate = Tidegate::start(with_route(&web, "/login", "rate = { per_second = 1, burst = 3 }"));
    // However slow this machine is, it asks more often than once a second.
    let responses: Vec<_> = (0..100).map(|_| get(tidegate.address(), "/login")).collect();
    assert!(responses[..3].iter().all(|response| response.status == 200), "the burst passes");
    let refused: Vec<_> = responses.iter().filter(|response| response.status == 429).collect();
    assert_eq!(refused[0].fields("retry-after"), ["1"]);
    local_replies(&tidegate, "rate_limited", refused.len() as f64);
    // Those have not used up what the service has for its other routes.
    let passed = responses.len() - refused.len();
    let mut client = tidegate.client();
    assert_eq!(limited(&mut client, "/", 50 - passed), 0);
    assert!(limited(&mut client, "/", 100) > 0, "the service has a rate, too");
}

#[test]
fn clients_of_a_route_are_told_apart_and_other_routes_do_not_know_them() {
    let backend = Backend::named("v1");
    let web = Web::new(backend.address).listener("trusted_proxies = ['127.0.0.1']\n");
    let rate = "client_rate = { per_second = 1, burst = 2 }";
    let more = format!("[[routes]]\nservice = 'web'\npath = '/b'\n[routes.limits]\n{rate}\n");
    let tidegate = Tidegate::start(with_route(&web, "/a", rate) + &more);
    let mut proxy = tidegate.client();
    let mut from = |client: &str, path: &str| {
        proxy.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: {client}\r\n\r\n"));
        proxy.response().status
    };
    assert!((0..100).any(|_| from("192.0.2.1", "/a") == 429));
    for (client, path) in [("192.0.2.2", "/a"), ("192.0.2.1", "/b")] {
        assert_eq!([from(client, path), from(client, path)], [200; 2], "{client} {path}");
    }
    assert!((0..100).all(|_| from("192.0.2.1", "/") == 200));
}

#[test]
fn what_a_route_has_let_in_is_remembered_over_a_reload_while_its_rates_stay() {
    let backend = Backend::named("v1");
    let web = Web::new(backend.address).workers(2);
    let limits = |burst: usize, more: &str| {
        let rate = format!("{{ per_second = 1, burst = {burst} }}");
        with_route(&web, "/a", &format!("rate = {rate}\nmax_body_size = '{burst}KiB'\n"))
            + &format!(
                "[[routes]]\nservice = 'web'\npath = '/b'\nlimits = {{ client_rate = {rate} }}\n{more}"
            )
    };
    let filed = Filed::start(limits(60, ""));
    let mut client = filed.tidegate.client();
    let mut limited = |path: &str| limited(&mut client, path, 60);
    for path in ["/a", "/b"] {
        assert_eq!(limited(path), 0, "the burst passes");
        // Else they would pass again; meanwhile one passes each second.
        assert!(limited(path) > 0, "{path}");
    }
    filed.take_up(limits(60, "[[routes]]\nservice = 'web'\npath = '/c'\n"));
    assert!(limited("/a") > 0 && limited("/b") > 0);
    filed.take_up(limits(61, ""));
    assert_eq!((limited("/a"), limited("/b")), (0, 0), "other rates begin anew");
}

#[test]
fn a_listener_has_room_for_so_many_and_others_wait() {
    let backend = Backend::named("v1");
    let tidegate = Tidegate::start(Web::new(backend.address).listener("max_connections = 1\n"));
    let mut first = tidegate.client();
    assert_eq!(first.get("/").status, 200);
    let mut second = tidegate.client();
    second.send("GET /second HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(first.get("/").status, 200);
    assert_eq!(backend.requests().iter().filter(|seen| seen.target() == "/second").count(), 0);
    tidegate.scrape().expect("tidegate_connections_open", &[], 1.0);
    drop(first);
    assert_eq!(second.response().status, 200, "it was not thrown out");
}

#[test]
fn a_client_address_has_so_many_connections() {
    let backend = Backend::named("v1");
    let web = Web::new(backend.address).workers(2).listener("max_connections_per_client = 2\n");
    let tidegate = Tidegate::start(web);
    let mut open: Vec<Raw> = (0..2).map(|_| tidegate.client()).collect();
    for client in &mut open {
        assert_eq!(client.get("/").status, 200);
    }
    tidegate.client().wire.wait_for_end();
    tidegate.scrape().expect("tidegate_connections_refused_total", &[], 1.0);
    drop(open);
    eventually(|| tidegate.scrape().sum("tidegate_connections_open", &[]), |open| *open == 0.0);
    assert_eq!(get(tidegate.address(), "/").status, 200);
}

#[test]
fn a_connection_has_so_many_requests() {
    let backend = Backend::named("v1");
    let tidegate = Tidegate::start(Web::new(backend.address).listener("max_requests_per_connection = 2\n"));
    let mut client = tidegate.client();
    assert_eq!(client.get("/").fields("connection").len(), 0);
    assert_eq!(client.get("/").fields("connection"), ["close"]);
    client.expect_end();
    let h2 = H2::connect(tidegate.address());
    runtime().block_on(async {
        for _ in 0..2 {
            assert_eq!(h2.get("/").await.unwrap().0, 200);
        }
    });
    eventually(|| h2.is_closed(), |closed| *closed);
}

#[test]
fn an_adaptive_limit_begins_low_and_grows_as_it_is_needed() {
    let backend = Backend::named("v1");
    let web = Web::new(backend.address).workers(2);
    let tidegate = Tidegate::start(web.table("limits", "adaptive_in_flight = { min = 2, max = 7 }"));
    tidegate.scrape().expect("tidegate_in_flight_limit", &[("service", "web")], 2.0);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                let mut client = tidegate.client();
                while !stop.load(SeqCst) {
                    let response = client.get("/");
                    match response.status {
                        200 => {}
                        503 => assert_eq!(response.fields("retry-after"), ["1"]),
                        other => panic!("{other}"),
                    }
                }
            });
        }
        let grown = eventually(|| tidegate.scrape(), |s| s.sum("tidegate_in_flight_limit", &[]) == 7.0);
        assert!(grown.sum("tidegate_in_flight_rejections_total", &[("service", "web")]) > 0.0);
        stop.store(true, SeqCst);
    });
}

#[test]
fn a_fixed_limit_is_shown_and_a_service_without_one_is_not() {
    let backend = Backend::named("v1");
    let tidegate = Tidegate::start(Web::new(backend.address).table("limits", "max_in_flight = 5"));
    tidegate.scrape().expect("tidegate_in_flight_limit", &[("service", "web")], 5.0);
    let without = Tidegate::start(Web::new(backend.address));
    let text = without.ask("GET", "/metrics", "").text();
    assert!(!text.contains("tidegate_in_flight_limit"));
}
