//! The PROXY protocol: who may say whose connection it is, and who is believed.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    process::{Command, Stdio},
};

use crate::support::{
    Backend, Tidegate, Web,
    certificates::{Authority, Dialect, Files},
    eventually, exchange,
    external::program,
};

const GET: &str = "GET / HTTP/1.1\r\nHost: web.test\r\n\r\n";
const LINE: &str = "PROXY TCP4 192.0.2.7 192.0.2.1 1234 80\r\n";

fn start(backend: &Backend, keys: &str) -> Tidegate {
    let listener = format!("proxy_protocol = {{ {keys} }}\n");
    Tidegate::start(Web::new(backend.address).listener(&listener))
}

fn wait_for_failure(tidegate: &Tidegate, reason: &str) {
    let count = || tidegate.scrape().sum("tidegate_tls_handshake_failures_total", &[("reason", reason)]);
    eventually(count, |count| *count == 1.0);
}

/// The address that the backend was told of each request so far.
fn told(backend: &Backend) -> Vec<String> {
    backend.requests().iter().map(|seen| seen.fields("x-forwarded-for").join("|")).collect()
}

#[test]
fn the_address_is_the_one_that_the_balancer_names() {
    let backend = Backend::named("v1");
    let tidegate = start(&backend, "from = ['127.0.0.0/8']");
    let signature = b"\r\n\r\n\0\r\nQUIT\n";
    let v4 = [&signature[..], &[0x21, 0x11, 0, 12], &[192, 0, 2, 8, 192, 0, 2, 1, 4, 210, 0, 80]].concat();
    let mut v6 = [&signature[..], &[0x21, 0x21, 0, 36], &[0; 36]].concat();
    v6[31] = 1;
    let local = [&signature[..], &[0x20, 0, 0, 0]].concat();
    for header in [LINE.as_bytes(), &v4, &v6, &local, b"PROXY UNKNOWN\r\n"] {
        let response = exchange(tidegate.address(), [header, GET.as_bytes()].concat());
        assert_eq!(response.status, 200);
    }
    assert_eq!(told(&backend), ["192.0.2.7", "192.0.2.8", "::1", "127.0.0.1", "127.0.0.1"]);
}

#[test]
fn a_header_may_come_in_pieces() {
    let backend = Backend::named("v1");
    let tidegate = start(&backend, "from = ['127.0.0.1']");
    let mut client = tidegate.client();
    for byte in LINE.bytes().chain(GET.bytes()) {
        client.send([byte]);
    }
    assert_eq!(client.response().status, 200);
    assert_eq!(told(&backend), ["192.0.2.7"]);
    // It is said once, at the beginning.
    client.send(LINE.to_owned() + GET);
    assert_eq!(client.response().status, 400);
}

#[test]
fn a_balancer_has_to_say_it_and_in_time() {
    let backend = Backend::named("v1");
    let tidegate = start(&backend, "from = ['127.0.0.1'], timeout = '100ms'");
    for (bytes, reason) in [
        (GET, "proxy_missing"),
        ("PROXY TCP4 nobody\r\n", "proxy_malformed"),
        ("PROXY TCP4 192.0.2.7", "proxy_timeout"),
    ] {
        let mut client = tidegate.client();
        client.send(bytes);
        client.wire.wait_for_end();
        wait_for_failure(&tidegate, reason);
    }
    assert_eq!(backend.count(), 0);
}

#[test]
fn nobody_else_is_believed() {
    let backend = Backend::named("v1");
    let tidegate = start(&backend, "from = ['192.0.2.0/24', '::1']");
    assert_eq!(tidegate.client().get("/").status, 200);
    let mut liar = tidegate.client();
    liar.send(LINE.to_owned() + GET);
    assert_eq!(liar.response().status, 400);
    assert_eq!(told(&backend), ["127.0.0.1"]);
}

#[test]
fn curl_says_it_before_tls() {
    let Some(curl) = program("curl") else { return };
    let (backend, authority, files) = (Backend::named("v1"), Authority::new("servers"), Files::new());
    let ca = files.write("ca.pem", &authority.pem);
    let pair = files.pair("web", &authority.issue(&["web.test"]));
    let listener =
        format!("proxy_protocol = {{ from = ['127.0.0.1'] }}\ntls = {{ certificates = [{{ {pair} }}] }}\n");
    let tidegate = Tidegate::start(Web::new(backend.address).listener(&listener));
    let port = tidegate.address().port();
    let output = Command::new(curl)
        .args(["-sS", "--max-time", "20", "--haproxy-protocol", "--cacert"])
        .arg(ca)
        .args(["--resolve", &format!("web.test:{port}:127.0.0.1")])
        .arg(format!("https://web.test:{port}/"))
        .env("NO_PROXY", "*")
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "v1", "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(backend.only_request().fields("x-forwarded-proto"), ["https"]);
}

#[test]
fn a_trusted_proxy_behind_a_balancer_is_the_one_that_is_named() {
    let (backend, authority, files) = (Backend::named("v1"), Authority::new("servers"), Files::new());
    let pair = files.pair("web", &authority.issue(&["web.test"]));
    let listener = format!(
        "trusted_proxies = ['192.0.2.0/24']\nproxy_protocol = {{ from = ['127.0.0.1'] }}\n\
         tls = {{ certificates = [{{ {pair} }}] }}\n"
    );
    let tidegate = Tidegate::start(Web::new(backend.address).listener(&listener));
    let dialect = Dialect::trusting(&authority);
    let stranger = "PROXY TCP4 198.51.100.9 192.0.2.1 1234 443\r\n";
    for (line, fields) in [
        (LINE, "X-Forwarded-For: 203.0.113.5\r\nX-Forwarded-Proto: http\r\n"),
        (LINE, ""),
        (stranger, "X-Forwarded-For: 203.0.113.5\r\nX-Forwarded-Proto: http\r\n"),
    ] {
        let mut stream = dialect.connect_after(line, tidegate.address(), "web.test").unwrap();
        let head = format!("GET / HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n{fields}\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
    }
    assert_eq!(told(&backend), ["203.0.113.5, 192.0.2.7", "192.0.2.7", "198.51.100.9"]);
    let protos: Vec<_> =
        backend.requests().iter().map(|seen| seen.fields("x-forwarded-proto").join("|")).collect();
    assert_eq!(protos, ["http", "https", "https"]);
}

#[test]
fn limits_count_the_client_that_is_named() {
    let backend = Backend::named("v1");
    let keys = "max_connections_per_client = 1\nproxy_protocol = { from = ['127.0.0.1'] }\n";
    let tidegate = Tidegate::start(Web::new(backend.address).listener(keys));
    let named = |line: &str| {
        let mut client = tidegate.client();
        client.send(line.to_owned() + GET);
        client
    };
    let mut first = named(LINE);
    assert_eq!(first.response().status, 200);
    named(LINE).wire.wait_for_end();
    tidegate.scrape().expect("tidegate_connections_refused_total", &[], 1.0);
    // The balancer's own are not counted, and other clients have room of their own.
    let mut others: Vec<_> =
        ["PROXY UNKNOWN\r\n", "PROXY UNKNOWN\r\n", "PROXY TCP4 192.0.2.8 192.0.2.1 1234 80\r\n"]
            .into_iter()
            .map(named)
            .collect();
    assert!(others.iter_mut().all(|client| client.response().status == 200));
}

#[test]
fn haproxy_in_front_names_its_clients() {
    let Some(haproxy) = program("haproxy") else { return };
    let (backend, files) = (Backend::named("v1"), Files::new());
    let tidegate = start(&backend, "from = ['127.0.0.1']");
    // Free a moment ago; HAProxy cannot say which port it got.
    let front = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for version in ["send-proxy", "send-proxy-v2"] {
        let config = format!(
            "defaults\n mode tcp\n timeout connect 5s\n timeout client 5s\n timeout server 5s\n\
             listen front\n bind {front}\n source 127.0.0.1\n server tidegate {} {version}\n",
            tidegate.address()
        );
        let file = files.path("haproxy.cfg");
        fs::write(&file, config).unwrap();
        let mut child = Command::new(&haproxy)
            .arg("-db")
            .arg("-f")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // From an address of its own, so that it can be told from HAProxy's.
        let connect = || {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.bind(&"127.0.0.9:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
            socket.connect(&front.into()).map(|()| TcpStream::from(socket)).map_err(|error| error.kind())
        };
        let stream = eventually(connect, Result::is_ok).unwrap();
        let mut client = crate::support::Raw { wire: crate::support::wire::Wire::new(stream) };
        let status = client.get("/").status;
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(status, 200);
    }
    assert_eq!(told(&backend), ["127.0.0.9", "127.0.0.9"]);
}
