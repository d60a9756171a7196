//! TLS between the proxy and its backends: whom it believes, what it shows, and who is blamed.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response};
use http_body_util::BodyExt as _;

use crate::{
    nginx::Nginx,
    support::{
        Backend, H2, HyperBackend, Limits, Tidegate, Web,
        certificates::{Authority, Files},
        client::{full, h2_request},
        eventually, eventually_is,
        external::program,
        python::{Server, python, run_client},
        runtime,
    },
};

const PEER: &str = "tests/peers/grpc_peer.py";

/// A nginx that speaks TLS, and its authority.
struct Setup {
    authority: Authority,
    files: Files,
    nginx: Nginx,
}

impl Setup {
    /// `names` are those of its certificate, `lines` more of its configuration.
    fn new(names: &[&str], lines: impl Fn(&Files) -> String) -> Option<Self> {
        Self::speaking("ssl", names, lines)
    }

    /// The same with other words in `listen`.
    fn speaking(speaks: &str, names: &[&str], lines: impl Fn(&Files) -> String) -> Option<Self> {
        let nginx = program("nginx")?;
        let (authority, files) = (Authority::new("backends"), Files::new());
        files.pair("nginx", &authority.issue(names));
        files.write("ca.pem", &authority.pem);
        let [certificate, key] = ["nginx.pem", "nginx.key"].map(|name| files.path(name));
        let lines = format!(
            "ssl_certificate {}; ssl_certificate_key {}; {}",
            certificate.display(),
            key.display(),
            lines(&files)
        );
        // The number of the connection shows which requests share one.
        let nginx = Nginx::serve(&nginx, speaks, &lines, "$connection $ssl_server_name $ssl_client_verify");
        Some(Self { authority, files, nginx })
    }

    fn start(&self, tls: &str) -> Tidegate {
        let web = Web::new(self.nginx.address).table("backends.v1.tls", tls);
        Tidegate::start(web.to_string().replace("http://", "https://"))
    }

    /// A proxy that speaks HTTP/2 to it.
    fn start_h2(&self) -> Tidegate {
        let web = Web::new(self.nginx.address).table("backends.v1.tls", &self.ca());
        Tidegate::start(web.to_string().replace("http://", "h2://"))
    }

    fn ca(&self) -> String {
        format!("ca = '{}'\n", self.files.path("ca.pem").display())
    }
}

/// Asks once, and checks what is said about a failure.
fn expect_failure(tidegate: &Tidegate, status: u16, error: &str, reason: &str) {
    let response = tidegate.client().get("/");
    assert_eq!(response.status, status);
    assert_eq!(response.fields("proxy-status"), [format!("tidegate; error={error}")]);
    let scrape = tidegate.wait_until_idle();
    scrape.expect("tidegate_local_replies_total", &[("reason", reason)], 1.0);
    scrape.expect("tidegate_requests_total", &[("backend", "v1"), ("status", "connect_failure")], 1.0);
    scrape.expect("tidegate_upstream_connect_failures_total", &[("backend", "v1")], 1.0);
}

#[test]
fn a_verified_connection_is_kept_and_used_again() {
    let Some(setup) = Setup::new(&["app.test"], |_| String::new()) else { return };
    let tidegate = setup.start(&format!("{}server_name = 'app.test'", setup.ca()));
    let mut client = tidegate.client();
    let (first, second) = (client.get("/"), client.get("/"));
    assert_eq!(first.status, 200);
    assert!(first.text().ends_with(" app.test NONE"), "{}", first.text());
    assert_eq!(first.text(), second.text(), "one connection");
}

#[test]
fn http_2_is_agreed_on_and_its_connection_is_shared() {
    let named = |_: &Files| "add_header x-protocol $server_protocol;".to_owned();
    let Some(setup) = Setup::speaking("ssl http2", &["127.0.0.1"], named) else { return };
    let tidegate = setup.start_h2();
    let (first, second) = (tidegate.client().get("/"), tidegate.client().get("/"));
    assert_eq!((first.status, first.fields("x-protocol")), (200, vec!["HTTP/2.0"]));
    assert_eq!(first.text(), second.text(), "one connection");
    tidegate.wait_until_idle().expect("tidegate_requests_total", &[("status", "2xx")], 2.0);
}

#[test]
fn one_that_does_not_agree_on_http_2_is_blamed() {
    let Some(setup) = Setup::new(&["127.0.0.1"], |_| String::new()) else { return };
    expect_failure(&setup.start_h2(), 502, "tls_protocol_error; details=\"alpn\"", "tls_protocol_error");
}

/// A backend that speaks HTTP/2 with TLS, agrees on these protocols, and is well as gRPC has it; and the
/// configuration of a proxy before it.
fn h2_backend(files: &Files, protocols: &[&[u8]]) -> (HyperBackend, Web) {
    let authority = Authority::new("backends");
    let tls = authority.issue(&["127.0.0.1"]).server(protocols);
    let backend = HyperBackend::serving_tls(tls, Limits::default(), |request| async move {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        let body = match request.uri().path() {
            "/grpc.health.v1.Health/Check" => Bytes::from_static(b"\0\0\0\0\x02\x08\x01"),
            _ => request.into_body().collect().await.unwrap().to_bytes(),
        };
        Response::new(full(body).with_trailers(async { Some(Ok(trailers)) }).boxed())
    });
    let ca = format!("ca = '{}'", files.write("ca.pem", &authority.pem).display());
    let web = Web::at(&[&format!("h2://{}", backend.address)]).table("backends.v1.tls", &ca);
    (backend, web)
}

#[test]
fn bodies_and_trailers_pass_over_http_2_with_tls() {
    let files = Files::new();
    let (backend, web) = h2_backend(&files, &[b"h2", b"http/1.1"]);
    let tidegate = Tidegate::start(web);
    let client = H2::connect(tidegate.address());
    let body = Bytes::from(vec![b'x'; 1024 * 1024]);
    runtime().block_on(async {
        for _ in 0..3 {
            let request = h2_request("POST", "/").body(full(body.clone())).unwrap();
            let echoed = client.send(request).await.unwrap().into_body().collect().await.unwrap();
            assert_eq!(echoed.trailers().unwrap()["grpc-status"], "0");
            assert!(echoed.to_bytes() == body);
        }
    });
    assert_eq!(backend.connections(), 1);
}

#[test]
fn http_2_has_to_be_agreed_on() {
    let files = Files::new();
    let (_backend, web) = h2_backend(&files, &[]);
    let error = "tls_protocol_error; details=\"alpn\"";
    expect_failure(&Tidegate::start(web), 502, error, "tls_protocol_error");
}

#[test]
fn a_grpc_check_speaks_tls_too() {
    let files = Files::new();
    for (protocols, healthy) in [(&[&b"h2"[..]][..], 1.0), (&[b"http/1.1"], 0.0)] {
        let (backend, web) = h2_backend(&files, protocols);
        let check = "kind = 'grpc'\ninterval = '20ms'\nunhealthy_threshold = 1\nhealthy_threshold = 1\n";
        let tidegate = Tidegate::start(web.table("health_check", check));
        eventually_is(true, || backend.connections() > 3);
        eventually_is(healthy, || tidegate.scrape().sum("tidegate_endpoint_healthy", &[]));
    }
}

#[test]
fn calls_of_every_shape_go_to_google_s_own_server_with_tls() {
    let Some(python) = python("grpc") else { return };
    let (authority, files) = (Authority::new("backends"), Files::new());
    files.pair("grpc", &authority.issue(&["127.0.0.1"]));
    let ca = files.write("ca.pem", &authority.pem);
    let pair = ["grpc.pem", "grpc.key"].map(|name| files.path(name).display().to_string());
    let server = Server::start_with(&python, PEER, &["0", &pair[0], &pair[1]]);
    let web = Web::new(server.address).table("backends.v1.tls", &format!("ca = '{}'", ca.display()));
    let tidegate = Tidegate::start(web.to_string().replace("http://", "h2://"));
    run_client(&python, PEER, &["client", &tidegate.address().to_string()]);
}

#[test]
fn health_checks_speak_tls_too() {
    let Some(setup) = Setup::new(&["127.0.0.1"], |_| String::new()) else { return };
    for (scheme, kind, healthy) in
        [("https", "path = '/'", 1.0), ("https", "kind = 'tcp'", 1.0), ("h2", "kind = 'tcp'", 0.0)]
    {
        let check = format!("interval = '20ms'\nunhealthy_threshold = 1\n{kind}\n");
        let web = Web::new(setup.nginx.address).table("backends.v1.tls", &setup.ca());
        let web = web.table("health_check", &check).to_string();
        let tidegate = Tidegate::start(web.replace("http://", &format!("{scheme}://")));
        eventually_is(healthy, || tidegate.scrape().sum("tidegate_endpoint_healthy", &[]));
    }
    // It is not believed, and so not well.
    setup.files.write("ca.pem", &Authority::new("others").pem);
    let web = Web::new(setup.nginx.address).table("backends.v1.tls", &setup.ca());
    let web = web.table("health_check", "interval = '20ms'\nunhealthy_threshold = 1\n").to_string();
    let tidegate = Tidegate::start(web.replace("http://", "https://"));
    eventually_is(0.0, || tidegate.scrape().sum("tidegate_endpoint_healthy", &[]));
}

#[test]
fn an_address_is_verified_without_a_name() {
    let Some(setup) = Setup::new(&["127.0.0.1"], |_| String::new()) else { return };
    let response = setup.start(&setup.ca()).client().get("/");
    assert_eq!(response.status, 200);
    assert!(response.text().ends_with("  NONE"), "no name is asked for: {}", response.text());
}

#[test]
fn a_certificate_for_another_name_is_not_believed() {
    let Some(setup) = Setup::new(&["app.test"], |_| String::new()) else { return };
    let tidegate = setup.start(&format!("{}server_name = 'other.test'", setup.ca()));
    expect_failure(&tidegate, 502, "tls_certificate_error", "tls_certificate_error");
}

#[test]
fn a_certificate_of_another_authority_is_not_believed() {
    let Some(setup) = Setup::new(&["127.0.0.1"], |_| String::new()) else { return };
    setup.files.write("ca.pem", &Authority::new("others").pem);
    let tidegate = setup.start(&setup.ca());
    expect_failure(&tidegate, 502, "tls_certificate_error", "tls_certificate_error");
    // Once the file names the right one, it is.
    setup.files.write("ca.pem", &setup.authority.pem);
    eventually(|| tidegate.client().get("/").status, |status| *status == 200);
}

#[test]
fn verification_can_be_given_up() {
    let Some(setup) = Setup::new(&["app.test"], |_| String::new()) else { return };
    let tidegate = setup.start("insecure_skip_verify = true");
    assert_eq!(tidegate.client().get("/").status, 200);
}

#[test]
fn a_backend_is_shown_our_certificate() {
    let clients = Authority::new("clients");
    let lines = |files: &Files| {
        files.write("clients.pem", &clients.pem);
        format!("ssl_client_certificate {}; ssl_verify_client on;", files.path("clients.pem").display())
    };
    let Some(setup) = Setup::new(&["127.0.0.1"], lines) else { return };
    // nginx' own answer to whoever shows nothing.
    assert_eq!(setup.start(&setup.ca()).client().get("/").status, 400);
    let shown = setup.files.pair("proxy", &clients.issue(&["proxy"])).replace(", ", "\n");
    let response = setup.start(&format!("{}{shown}", setup.ca())).client().get("/");
    assert_eq!(response.status, 200);
    assert!(response.text().ends_with("SUCCESS"), "{}", response.text());
}

#[test]
fn a_backend_that_speaks_no_tls_is_blamed() {
    let backend = Backend::named("v1");
    let web = Web::new(backend.address).table("backends.v1.tls", "insecure_skip_verify = true");
    let refusing = Backend::scripted(|mut peer| {
        peer.send("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        peer.wait_for_end();
    });
    let web = web
        .to_string()
        .replace(&format!("http://{}", backend.address), &format!("https://{}", refusing.address));
    expect_failure(&Tidegate::start(web), 502, "tls_protocol_error", "tls_protocol_error");
}

#[test]
fn the_handshake_is_part_of_connecting_in_time() {
    let silent = Backend::scripted(|mut peer| peer.wait_for_end());
    let web = Web::new(silent.address)
        .table("backends.v1.tls", "insecure_skip_verify = true")
        .table("timeouts", "connect = '100ms'");
    let tidegate = Tidegate::start(web.to_string().replace("http://", "https://"));
    expect_failure(&tidegate, 504, "connection_timeout", "connect_timeout");
}
