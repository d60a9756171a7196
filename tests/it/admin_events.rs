//! Events of the admin API as they happen, and how many may watch.

use std::{
    io::{BufRead as _, BufReader},
    net::TcpStream,
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    admin_api::problem,
    admin_writes::Setup,
    support::{Raw, Tidegate, eventually, patience},
};

/// A stream of events, read line by line.
struct Stream(BufReader<TcpStream>);

impl Stream {
    fn open(tidegate: &Tidegate, path: &str, fields: &str) -> Self {
        let mut socket = TcpStream::connect(tidegate.admin).unwrap();
        socket.set_read_timeout(Some(patience())).unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n");
        std::io::Write::write_all(&mut socket, head.as_bytes()).unwrap();
        let mut stream = Self(BufReader::new(socket));
        assert_eq!(stream.line().as_deref(), Some("HTTP/1.1 200 OK"));
        while stream.line().is_some_and(|line| !line.starts_with("retry:")) {}
        stream
    }

    /// The next line; nothing at the end.
    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        (self.0.read_line(&mut line).unwrap() > 0).then(|| line.trim_end().to_owned())
    }

    /// The next event and its id.
    fn next(&mut self) -> Option<(u64, Value)> {
        let mut id = None;
        loop {
            let line = self.line()?;
            if let Some(number) = line.strip_prefix("id: ") {
                id = Some(number.parse().unwrap());
            }
            if let Some(data) = line.strip_prefix("data: ") {
                return Some((id.expect("the id comes first"), serde_json::from_str(data).unwrap()));
            }
        }
    }
}

#[test]
fn events_come_as_they_happen_and_are_taken_up_where_they_were_left() {
    let setup = Setup::new();
    setup.flip_with("");
    for path in ["/api/v1/events", "/api/v1/services/web/events"] {
        let mut stream = Stream::open(&setup.tidegate, path, "");
        setup.flip_with("");
        let (first, event) = stream.next().unwrap();
        assert_eq!((&event["service"], &event["id"]), (&"web".into(), &json!(first)));
        assert!(event["what"].as_str().unwrap().starts_with("flipped"), "{event}");
        assert!(event["by"].as_str().unwrap().starts_with("127.0.0.1:"));
        drop(stream);
        setup.tidegate.set_weight(1.0);
        setup.tidegate.set_weight(0.0);
        let mut stream = Stream::open(&setup.tidegate, path, &format!("Last-Event-ID: {first}\r\n"));
        let [(second, one), (third, none)] = [stream.next().unwrap(), stream.next().unwrap()];
        assert!(first < second && second < third);
        assert_eq!((&one["what"], &none["what"]), (&"weight set to 1 %".into(), &"weight set to 0 %".into()));
    }
    let mut all = Stream::open(&setup.tidegate, "/api/v1/events", "Last-Event-ID: 0\r\n");
    assert!(all.next().unwrap().1["what"].as_str().unwrap().starts_with("flipped"));
    problem(&setup.tidegate.ask("GET", "/api/v1/services/nobody/events", ""), 404);
    problem(&setup.tidegate.ask_with("Last-Event-ID: x\r\n", "GET", "/api/v1/events", ""), 400);
}

#[test]
fn a_stream_ends_when_the_process_drains() {
    let mut setup = Setup::new();
    let mut stream = Stream::open(&setup.tidegate, "/api/v1/events", "");
    setup.tidegate.drain(Duration::ZERO);
    assert!(stream.next().is_none());
}

#[test]
fn no_more_wait_than_there_are_places() {
    let setup = Setup::new();
    let mut streams: Vec<_> = (0..64).map(|_| Stream::open(&setup.tidegate, "/api/v1/events", "")).collect();
    problem(&setup.tidegate.ask("GET", "/api/v1/events", ""), 503);
    // Others are served as ever.
    assert_eq!(setup.flip_with("").status, 200);
    streams.pop();
    let freed = || {
        let mut client = Raw::connect(setup.tidegate.admin);
        client.send("HEAD /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n");
        client.response_to("HEAD").status
    };
    eventually(freed, |status| *status == 200);
}

#[test]
fn idle_connections_keep_nobody_out_and_end_no_stream() {
    let setup = Setup::new();
    let mut stream = Stream::open(&setup.tidegate, "/api/v1/events", "");
    let idle: Vec<_> = (0..300).map(|_| TcpStream::connect(setup.tidegate.admin).unwrap()).collect();
    assert_eq!(setup.tidegate.ask("GET", "/livez", "").status, 200);
    assert_eq!(setup.flip_with("").status, 200);
    assert!(stream.next().is_some());
    let turned_away =
        setup.tidegate.scrape().sum("tidegate_admin_refused_total", &[("reason", "connections")]);
    assert!(turned_away >= 300.0 - 128.0, "{turned_away}");
    drop(idle);
}
