//! The PROXY protocol to backends: what they are told, and that nobody gets another's connection.

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
};

use crate::{
    nginx::Nginx,
    support::{
        Backend, H2, Raw, Tidegate, Web,
        backend::{Seen, serve},
        certificates::{Authority, Files},
        eventually, eventually_is,
        external::program,
        reply, runtime,
    },
};

/// The headers that connections began with, in their order.
type Headers = Arc<Mutex<Vec<Vec<u8>>>>;

/// A backend whose connections begin with a header of this version, and go on as HTTP.
fn backend(listener: TcpListener, version: &str) -> (Backend, Headers) {
    let headers = Headers::default();
    let (noted, is_line) = (Arc::clone(&headers), version == "v1");
    let backend = Backend::on(listener, move |mut peer| {
        peer.wire.socket().set_read_timeout(None).unwrap();
        let header = if is_line {
            let Some(line) = peer.wire.read_line() else { return };
            line.into_bytes()
        } else {
            let mut header = peer.wire.read_length(16);
            let Some(length) = header.get(15) else { return };
            header.extend(peer.wire.read_length(usize::from(*length)));
            header
        };
        noted.lock().unwrap().push(header);
        serve(|_: &Seen| reply("200 OK", &[], "v1"))(peer);
    });
    (backend, headers)
}

fn local(ip: &str) -> TcpListener {
    TcpListener::bind((ip, 0)).unwrap()
}

fn web(address: SocketAddr, version: &str) -> Web {
    let keys = format!("endpoints = ['http://{address}']\nsend_proxy_protocol = '{version}'");
    Web::bare().table("backends.v1", &keys)
}

/// A backend of version 1 and a proxy before it.
fn lines(pool: &str) -> (Backend, Headers, Tidegate) {
    let (backend, headers) = backend(local("127.0.0.1"), "v1");
    let tidegate = Tidegate::start(web(backend.address, "v1").table("pool", pool));
    (backend, headers, tidegate)
}

/// What version 1 has for the connection of a client.
fn line_of(client: &Raw) -> String {
    let (from, to) = addresses(client);
    let family = if from.is_ipv4() { "TCP4" } else { "TCP6" };
    format!("PROXY {family} {} {} {} {}", from.ip(), to.ip(), from.port(), to.port())
}

fn addresses(client: &Raw) -> (SocketAddr, SocketAddr) {
    let socket = client.wire.socket();
    (socket.local_addr().unwrap(), socket.peer_addr().unwrap())
}

/// The same in version 2.
fn block_of(client: &Raw) -> Vec<u8> {
    let (from, to) = addresses(client);
    let octets = |address: SocketAddr| match address.ip() {
        std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
        std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let ports = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    let (family, length) = if from.is_ipv4() { (0x11, 12) } else { (0x21, 36) };
    let begin = [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[0x21, family, 0, length]].concat();
    [begin, octets(from), octets(to), ports].concat()
}

fn said(headers: &Headers) -> Vec<String> {
    let headers = headers.lock().unwrap();
    headers.iter().map(|header| String::from_utf8_lossy(header).into_owned()).collect()
}

#[test]
fn a_backend_is_told_whose_a_connection_is_in_both_versions_and_families() {
    for version in ["v1", "v2"] {
        for ip in ["127.0.0.1", "::1"] {
            // The family is the client's, not the backend's.
            for backend_ip in ["127.0.0.1", "::1"] {
                let (backend, headers) = backend(local(backend_ip), version);
                let toml = web(backend.address, version).to_string();
                let any = SocketAddr::new(ip.parse().unwrap(), 0);
                let toml = toml.replacen("'127.0.0.1:0'", &format!("'{any}'"), 1);
                let tidegate = Tidegate::start(toml);
                let mut client = tidegate.client();
                assert_eq!(client.get("/").text(), "v1");
                let expected = match version {
                    "v1" => line_of(&client).into_bytes(),
                    _ => block_of(&client),
                };
                assert_eq!(*headers.lock().unwrap(), [expected]);
            }
        }
    }
}

#[test]
fn a_connection_is_used_again_by_its_client_alone() {
    let (backend, headers, tidegate) = lines("idle_timeout = '1h'");
    let (mut one, mut other) = (tidegate.client(), tidegate.client());
    for _ in 0..3 {
        assert_eq!((one.get("/").status, other.get("/").status), (200, 200));
    }
    assert_eq!(said(&headers), [line_of(&one), line_of(&other)]);
    assert_eq!((backend.connections(), backend.count()), (2, 6));
}

#[test]
fn requests_of_one_http_2_connection_are_of_one_client() {
    let (backend, headers, tidegate) = lines("idle_timeout = '1h'");
    runtime().block_on(async {
        let client = H2::connect(tidegate.address());
        for _ in 0..3 {
            assert_eq!(client.get("/").await.unwrap().0, 200);
        }
    });
    assert_eq!((backend.connections(), said(&headers).len()), (1, 1));
}

#[test]
fn a_client_that_goes_leaves_no_connection_behind() {
    let (backend, _, tidegate) = lines("idle_timeout = '1h'\nmax_connections = 1");
    let mut client = tidegate.client();
    assert_eq!(client.get("/").status, 200);
    eventually_is(1, || backend.open());
    drop(client);
    eventually_is(0, || backend.open());
}

#[test]
fn those_that_are_idle_make_room_for_others() {
    for limit in ["max_connections = 1", "max_idle = 1"] {
        let (_backend, headers, tidegate) = lines(&format!("idle_timeout = '1h'\n{limit}"));
        let (mut one, mut other) = (tidegate.client(), tidegate.client());
        assert_eq!(one.get("/").status, 200);
        // The newer one is kept.
        for _ in 0..2 {
            assert_eq!(other.get("/").status, 200);
        }
        assert_eq!(one.get("/").status, 200);
        assert_eq!(said(&headers), [line_of(&one), line_of(&other), line_of(&one)], "{limit}");
    }
}

#[test]
fn what_a_balancer_says_is_passed_on() {
    let (backend, headers) = backend(local("127.0.0.1"), "v1");
    let listener = "proxy_protocol = { from = ['127.0.0.1'] }\n";
    let tidegate = Tidegate::start(web(backend.address, "v1").listener(listener));
    for line in ["PROXY TCP4 192.0.2.7 192.0.2.1 1234 80", "PROXY TCP6 2001:db8::7 2001:db8::1 1234 80"] {
        let mut client = tidegate.client();
        client.send(format!("{line}\r\n"));
        assert_eq!(client.get("/").status, 200);
        assert_eq!(said(&headers).last().unwrap(), line);
    }
    // Its own connections are its own.
    let mut own = tidegate.client();
    own.send("PROXY UNKNOWN\r\n");
    assert_eq!(own.get("/").status, 200);
    assert_eq!(*said(&headers).last().unwrap(), line_of(&own));
}

#[test]
fn a_client_that_came_before_a_backend_was_told_is_known_by_its_address() {
    let (plain, (told, headers)) = (Backend::named("v1"), backend(local("127.0.0.1"), "v1"));
    let files = Files::new();
    let file = files.write("tidegate.toml", &Web::new(plain.address).to_string());
    let tidegate = Tidegate::start_from(&file, false);
    let mut client = tidegate.client();
    assert_eq!(client.get("/").status, 200);
    fs::write(&file, web(told.address, "v1").to_string()).unwrap();
    assert_eq!(tidegate.ask("POST", "/api/v1/reload", "").status, 200);
    assert_eq!(client.get("/").status, 200);
    let mut later = tidegate.client();
    assert_eq!(later.get("/").status, 200);
    assert_eq!(said(&headers), ["PROXY TCP4 127.0.0.1 0.0.0.0 0 0".to_owned(), line_of(&later)]);
}

#[test]
fn a_health_check_is_nobody_s() {
    for (version, own) in [("v1", &b"PROXY UNKNOWN"[..]), ("v2", b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0")] {
        let (backend, headers) = backend(local("127.0.0.1"), version);
        let check = "interval = '20ms'\nunhealthy_threshold = 1\nhealthy_threshold = 1";
        let tidegate = Tidegate::start(web(backend.address, version).table("health_check", check));
        eventually(|| backend.count(), |count| *count > 3);
        tidegate.scrape().expect("tidegate_endpoint_healthy", &[], 1.0);
        assert!(headers.lock().unwrap().iter().all(|header| header == own));
    }
}

#[test]
fn nginx_believes_it_with_tls_and_without() {
    let Some(nginx) = program("nginx") else { return };
    let (authority, files) = (Authority::new("backends"), Files::new());
    files.pair("nginx", &authority.issue(&["127.0.0.1"]));
    let [certificate, key] = ["nginx.pem", "nginx.key"].map(|name| files.path(name).display().to_string());
    let ca = format!("ca = '{}'", files.write("ca.pem", &authority.pem).display());
    let pair = format!("ssl_certificate {certificate}; ssl_certificate_key {key};");
    let told =
        "$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_addr $proxy_protocol_server_port";
    for (listen, lines) in [("proxy_protocol", ""), ("ssl proxy_protocol", pair.as_str())] {
        let nginx = Nginx::serve(&nginx, listen, lines, told);
        for version in ["v1", "v2"] {
            let mut toml = web(nginx.address, version);
            if !lines.is_empty() {
                toml = toml.table("backends.v1.tls", &ca);
            }
            let scheme = if lines.is_empty() { "http" } else { "https" };
            let tidegate = Tidegate::start(toml.to_string().replace("http://", &format!("{scheme}://")));
            for _ in 0..2 {
                let mut client = tidegate.client();
                let (from, to) = addresses(&client);
                let expected = format!("{} {} {} {}", from.ip(), from.port(), to.ip(), to.port());
                assert_eq!(client.get("/").text(), expected, "{listen} {version}");
                assert_eq!(client.get("/").text(), expected, "{listen} {version}");
            }
        }
    }
}

/// A running HAProxy that answers with whom it takes the client for.
struct Haproxy(Child);

impl Haproxy {
    fn start(haproxy: &Path, files: &Files, address: SocketAddr) -> Self {
        let config = format!(
            "defaults\n mode http\n timeout connect 5s\n timeout client 60s\n timeout server 5s\n\
             frontend web\n bind {address} accept-proxy\n\
             http-request return status 200 content-type text/plain lf-string \"%ci %cp %fi %fp\"\n"
        );
        let file = files.write("haproxy.cfg", &config);
        let mut command = Command::new(haproxy);
        command.arg("-db").arg("-f").arg(&file).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().unwrap();
        eventually(|| TcpStream::connect(address).map_err(|e| e.kind()).err(), Option::is_none);
        Self(child)
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        // One that has ended cannot be killed.
        let _ended = self.0.kill();
        let _waited = self.0.wait();
    }
}

#[test]
fn haproxy_believes_it() {
    let Some(haproxy) = program("haproxy") else { return };
    let files = Files::new();
    // Free a moment ago; HAProxy cannot say which port it got.
    let address = local("127.0.0.1").local_addr().unwrap();
    let _haproxy = Haproxy::start(&haproxy, &files, address);
    for version in ["v1", "v2"] {
        for ip in ["127.0.0.1", "::1"] {
            let toml = web(address, version).to_string();
            let any = SocketAddr::new(ip.parse().unwrap(), 0);
            let tidegate = Tidegate::start(toml.replacen("'127.0.0.1:0'", &format!("'{any}'"), 1));
            let mut client = tidegate.client();
            let (from, to) = addresses(&client);
            let expected = format!("{} {} {} {}", from.ip(), from.port(), to.ip(), to.port());
            assert_eq!((client.get("/").text(), client.get("/").text()), (expected.clone(), expected));
        }
    }
}
