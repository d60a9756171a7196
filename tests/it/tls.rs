//! TLS between clients and the proxy: which certificate, which version, who is let in, and what happens
//! when the files change.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::fs::symlink,
    process::Command,
};

use rustls::HandshakeKind;

use crate::support::{
    Backend, Raw, Tidegate, Web,
    certificates::{Authority, Dialect, Files, Issued, secure_get, shown},
    eventually,
    external::program,
    reply,
};

const FAILURES: &str = "tidegate_tls_handshake_failures_total";
const RELOADS: &str = "tidegate_tls_reloads_total";
const EXPIRY: &str = "tidegate_tls_certificate_expiry_timestamp_seconds";

/// A proxy with TLS in front of a backend.
struct Setup {
    authority: Authority,
    files: Files,
    backend: Backend,
}

impl Setup {
    fn new() -> Self {
        let backend = Backend::named("v1");
        Self { authority: Authority::new("servers"), files: Files::new(), backend }
    }

    fn start(&self, certificates: &[&Issued], more: &str) -> Tidegate {
        let pairs = certificates.iter().enumerate();
        let pairs: Vec<_> =
            pairs.map(|(i, issued)| format!("{{ {} }}", self.files.pair(&format!("c{i}"), issued))).collect();
        self.start_with(&format!("certificates = [{}]{more}", pairs.join(", ")))
    }

    fn start_with(&self, tls: &str) -> Tidegate {
        Tidegate::start(Web::new(self.backend.address).listener(&format!("tls = {{ {tls} }}\n")))
    }
}

fn wait_for_failure(tidegate: &Tidegate, reason: &str) {
    let count = || tidegate.scrape().sum(FAILURES, &[("reason", reason)]);
    eventually(count, |count| *count == 1.0);
}

#[test]
fn the_certificate_is_chosen_by_name() {
    let setup = Setup::new();
    let [first, exact, wild] =
        [&["web.test"][..], &["a.test", "b.a.test"], &["*.a.test"]].map(|names| setup.authority.issue(names));
    let tidegate = setup.start(&[&first, &exact, &wild], "");
    let dialect = Dialect::trusting(&setup.authority);
    for (name, expected) in
        [("web.test", &first), ("a.test", &exact), ("b.a.test", &exact), ("c.a.test", &wild)]
    {
        let stream = dialect.connect(tidegate.address(), name).unwrap();
        assert_eq!(shown(&stream), expected.der(), "{name}");
    }
    // Nobody has one for it, so it gets the first, and says itself that this is not what it wants.
    let refused = dialect.connect(tidegate.address(), "other.test").unwrap_err();
    assert!(refused.contains("not valid for name"), "{refused}");
    wait_for_failure(&tidegate, "certificate_rejected");
}

#[test]
fn backends_are_told_that_it_was_https() {
    let setup = Setup::new();
    let tidegate = setup.start(&[&setup.authority.issue(&["web.test"])], "");
    let mut stream = Dialect::trusting(&setup.authority).connect(tidegate.address(), "web.test").unwrap();
    let response = secure_get(&mut stream, "/x").unwrap();
    assert!(response.starts_with("HTTP/1.1 200 OK\r\n") && response.ends_with("v1"), "{response}");
    let seen = setup.backend.only_request();
    assert_eq!(seen.fields("x-forwarded-proto"), ["https"]);
    assert_eq!(seen.fields("x-forwarded-for"), ["127.0.0.1"]);
}

#[test]
fn large_bodies_pass_whole() {
    let body: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    let sent = body.clone();
    let backend = Backend::answering(move |_| reply("200 OK", &[], &sent));
    let setup = Setup { backend, ..Setup::new() };
    let tidegate = setup.start(&[&setup.authority.issue(&["web.test"])], "");
    let Some(curl) = program("curl") else { return };
    let ca = setup.files.write("ca.pem", &setup.authority.pem);
    fs::write(setup.files.path("upload"), &body).unwrap();
    for version in ["--http1.1", "--http2"] {
        let port = tidegate.address().port();
        let output = Command::new(&curl)
            .args(["-sS", version, "--max-time", "20", "--cacert"])
            .arg(&ca)
            .args(["--resolve", &format!("web.test:{port}:127.0.0.1")])
            .args(["--data-binary", &format!("@{}", setup.files.path("upload").display())])
            .arg(format!("https://web.test:{port}/"))
            .env("NO_PROXY", "*")
            .output()
            .unwrap();
        assert!(output.status.success(), "{version}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stdout == body, "{version}: {} bytes came back", output.stdout.len());
        assert!(setup.backend.requests().last().unwrap().body == body, "{version}");
    }
}

#[test]
fn curl_gets_the_version_that_it_asks_for() {
    let Some(curl) = program("curl") else { return };
    let setup = Setup::new();
    let tidegate = setup.start(&[&setup.authority.issue(&["web.test"])], "");
    let ca = setup.files.write("ca.pem", &setup.authority.pem);
    let port = tidegate.address().port();
    for (options, expected) in [
        (&["--http2"][..], "2 200"),
        (&["--http1.1"], "1.1 200"),
        (&["--no-alpn"], "1.1 200"),
        (&["--http2-prior-knowledge", "--no-alpn"], "2 200"),
        (&["--http2", "--tls-max", "1.2"], "2 200"),
        (&["--http2", "--tlsv1.3"], "2 200"),
    ] {
        let output = Command::new(&curl)
            .args(["-sS", "--max-time", "20", "-o", "/dev/null", "-w", "%{http_version} %{http_code}"])
            .args(options)
            .arg("--cacert")
            .arg(&ca)
            .args(["--resolve", &format!("web.test:{port}:127.0.0.1")])
            .arg(format!("https://web.test:{port}/"))
            .env("NO_PROXY", "*")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(said, expected, "{options:?} {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn a_session_is_resumed_on_any_worker() {
    let setup = Setup::new();
    let issued = setup.authority.issue(&["web.test"]);
    let pair = setup.files.pair("web", &issued);
    let tls = format!("tls = {{ certificates = [{{ {pair} }}] }}\n");
    let tidegate = Tidegate::start(Web::new(setup.backend.address).workers(2).listener(&tls));
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let dialect = Dialect::of_version(&setup.authority, version);
        for i in 0..8 {
            let mut stream = dialect.connect(tidegate.address(), "web.test").unwrap();
            secure_get(&mut stream, "/").unwrap();
            let wanted = if i == 0 { HandshakeKind::Full } else { HandshakeKind::Resumed };
            assert_eq!(stream.conn.handshake_kind(), Some(wanted), "{version:?} {i}");
        }
    }
}

#[test]
fn openssl_resumes_too() {
    let Some(openssl) = program("openssl") else { return };
    let setup = Setup::new();
    let tidegate = setup.start(&[&setup.authority.issue(&["web.test"])], "");
    let output = Command::new(openssl)
        .args(["s_client", "-connect", &tidegate.address().to_string(), "-servername", "web.test"])
        .args(["-tls1_2", "-reconnect"])
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said.matches("\nReused, TLSv1.2").count(), 5, "{said}");
}

#[test]
fn the_oldest_version_can_be_raised() {
    let setup = Setup::new();
    let tidegate = setup.start(&[&setup.authority.issue(&["web.test"])], ", min_version = '1.3'");
    let old = Dialect::of_version(&setup.authority, &rustls::version::TLS12);
    old.connect(tidegate.address(), "web.test").unwrap_err();
    wait_for_failure(&tidegate, "version");
    Dialect::trusting(&setup.authority).connect(tidegate.address(), "web.test").unwrap();
}

#[test]
fn clients_show_a_certificate_where_they_have_to() {
    let setup = Setup::new();
    let clients = Authority::new("clients");
    let ca = setup.files.write("clients.pem", &clients.pem);
    let issued = setup.authority.issue(&["web.test"]);
    let start = |wanted: &str| {
        setup.start(&[&issued], &format!(", client_auth = '{wanted}', client_ca = '{}'", ca.display()))
    };
    let ask = |tidegate: &Tidegate, dialect: &Dialect| {
        let mut stream = dialect.connect(tidegate.address(), "web.test")?;
        secure_get(&mut stream, "/")
    };
    let nothing = Dialect::trusting(&setup.authority);
    let right = Dialect::showing(&setup.authority, &clients.issue(&["somebody"]));
    let wrong = Dialect::showing(&setup.authority, &Authority::new("strangers").issue(&["somebody"]));
    for (wanted, missing) in [("required", true), ("optional", false)] {
        let tidegate = start(wanted);
        assert!(ask(&tidegate, &right).unwrap().ends_with("v1"));
        ask(&tidegate, &wrong).unwrap_err();
        wait_for_failure(&tidegate, "client_certificate_invalid");
        assert_eq!(ask(&tidegate, &nothing).is_err(), missing, "{wanted}");
        if missing {
            wait_for_failure(&tidegate, "client_certificate_missing");
        }
    }
}

#[test]
fn a_handshake_has_to_be_over_in_time() {
    let setup = Setup::new();
    let tidegate = setup.start(&[&setup.authority.issue(&["web.test"])], ", handshake_timeout = '100ms'");
    let mut stalled = tidegate.client();
    // The beginning of a record.
    stalled.send([0x16, 3, 1]);
    stalled.expect_end();
    wait_for_failure(&tidegate, "timeout");
}

#[test]
fn plain_http_is_not_tls() {
    let setup = Setup::new();
    let tidegate = setup.start(&[&setup.authority.issue(&["web.test"])], "");
    let mut plain = tidegate.client();
    plain.send("GET / HTTP/1.1\r\nHost: web.test\r\n\r\n");
    plain.wire.wait_for_end();
    wait_for_failure(&tidegate, "not_tls");
    assert_eq!(setup.backend.count(), 0);
}

#[test]
fn a_new_certificate_is_taken_up_and_a_bad_one_is_not() {
    let setup = Setup::new();
    // As Kubernetes mounts a secret: the files are links into `..data`, which is a link itself.
    let put = |version: &str, certificate: &str, key: &str| {
        fs::create_dir(setup.files.path(version)).unwrap();
        setup.files.write(&format!("{version}/tls.crt"), certificate);
        setup.files.write(&format!("{version}/tls.key"), key);
        symlink(version, setup.files.path("..new")).unwrap();
        fs::rename(setup.files.path("..new"), setup.files.path("..data")).unwrap();
    };
    let names = &["web.test"];
    let first = setup.authority.issue(names);
    put("..1", &first.certificate, &first.key);
    for file in ["tls.crt", "tls.key"] {
        symlink(format!("..data/{file}"), setup.files.path(file)).unwrap();
    }
    let (certificate, key) = (setup.files.path("tls.crt"), setup.files.path("tls.key"));
    let pair = format!("{{ certificate = '{}', key = '{}' }}", certificate.display(), key.display());
    let tidegate = setup.start_with(&format!("certificates = [{pair}]"));
    let dialect = Dialect::trusting(&setup.authority);
    // Each time somebody new: who comes back by a ticket is not shown anything.
    let now_shown = || {
        let somebody = Dialect::trusting(&setup.authority);
        shown(&somebody.connect(tidegate.address(), "web.test").unwrap())
    };
    let reloads = |result: &'static str| {
        let tidegate = &tidegate;
        move |wanted: f64| {
            eventually(|| tidegate.scrape().sum(RELOADS, &[("result", result)]), |count| *count == wanted);
        }
    };
    let mut before = dialect.connect(tidegate.address(), "web.test").unwrap();

    let second = setup.authority.issue(names);
    put("..2", &second.certificate, &second.key);
    reloads("success")(1.0);
    assert_eq!(now_shown(), second.der());
    assert!(secure_get(&mut before, "/").unwrap().ends_with("v1"), "who is connected stays so");

    // A key of another certificate; one that has expired; no certificate at all; nothing.
    let third = setup.authority.issue(names);
    put("..3", &third.certificate, &second.key);
    reloads("failure")(1.0);
    let expired = setup.authority.expired(names);
    put("..4", &expired.certificate, &expired.key);
    reloads("failure")(2.0);
    put("..5", "hello", &third.key);
    reloads("failure")(3.0);
    fs::remove_file(setup.files.path("..data")).unwrap();
    reloads("failure")(4.0);
    assert_eq!(now_shown(), second.der());

    put("..6", &third.certificate, &third.key);
    reloads("success")(2.0);
    assert_eq!(now_shown(), third.der());
    let label = certificate.display().to_string();
    // 4096-01-01.
    tidegate.scrape().expect(EXPIRY, &[("certificate", &label)], 67_090_118_400.0);
}

#[test]
fn a_listener_may_only_send_clients_to_https() {
    let backend = Backend::named("v1");
    let tidegate =
        Tidegate::start(Web::new(backend.address).listener("redirect_to_https = true\nhttps_port = 8443\n"));
    let mut client = tidegate.client();
    client.send("POST /a?b HTTP/1.1\r\nHost: web.test:80\r\nContent-Length: 0\r\n\r\n");
    let response = client.response();
    assert_eq!(response.status, 308);
    assert_eq!(response.fields("location"), ["https://web.test:8443/a?b"]);
    client.expect_end();
    assert_eq!(crate::support::exchange(tidegate.address(), "GET / HTTP/1.1\r\n\r\n").status, 400);
    let scrape = tidegate.scrape();
    scrape.expect("tidegate_local_replies_total", &[("reason", "redirect_to_https")], 1.0);
    assert_eq!(backend.connections(), 0);
}

#[test]
fn a_client_that_goes_on_sending_reads_where_it_is_sent() {
    let backend = Backend::named("v1");
    let tidegate = Tidegate::start(Web::new(backend.address).listener("redirect_to_https = true\n"));
    for _ in 0..20 {
        let mut client = tidegate.client();
        client.send("POST / HTTP/1.1\r\nHost: web.test\r\nContent-Length: 600000\r\n\r\n");
        client.send(vec![0; 600_000]);
        assert_eq!(client.response().status, 308);
        client.wire.wait_for_end();
    }
}

#[test]
fn a_client_that_goes_on_sending_reads_its_refusal() {
    let (authority, files, backend) = (Authority::new("servers"), Files::new(), Backend::named("v1"));
    let pair = files.pair("web", &authority.issue(&["web.test"]));
    let web = Web::new(backend.address).listener(&format!("tls = {{ certificates = [{{ {pair} }}] }}\n"));
    let tidegate = Tidegate::start(web.table("limits", "max_body_size = '1KiB'"));
    let dialect = Dialect::trusting(&authority);
    for _ in 0..20 {
        let mut stream = dialect.connect(tidegate.address(), "web.test").unwrap();
        let head = "POST / HTTP/1.1\r\nHost: web.test\r\nContent-Length: 600000\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&[0; 600_000]).unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        assert!(response.starts_with("HTTP/1.1 413 "), "{response}");
    }
}

#[test]
fn a_connection_is_ended_with_a_farewell() {
    let setup = Setup::new();
    let mut tidegate = setup.start(&[&setup.authority.issue(&["web.test"])], "");
    let mut stream = Dialect::trusting(&setup.authority).connect(tidegate.address(), "web.test").unwrap();
    let request = "GET / HTTP/1.1\r\nHost: web.test\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut response = vec![0; 1024];
    let read = stream.read(&mut response).unwrap();
    assert!(read > 0);
    tidegate.drain(std::time::Duration::ZERO);
    let mut rest = Vec::new();
    // rustls makes an error of an end without a farewell.
    stream.read_to_end(&mut rest).unwrap();
    tidegate.wait_for_end();
}

#[test]
fn what_is_wrong_with_a_file_is_said_where_it_is_named() {
    let (authority, files) = (Authority::new("servers"), Files::new());
    let [one, other] = [(); 2].map(|()| authority.issue(&["web.test"]));
    let said = |issued: &Issued| {
        let pair = files.pair("web", issued);
        let listener = format!("tls = {{ certificates = [{{ {pair} }}] }}\n");
        let config = Web::new("127.0.0.1:1".parse().unwrap()).listener(&listener);
        let path = files.write("tidegate.toml", &config.to_string());
        let loaded = tidegate::config::load::load(&path);
        let said = loaded.map_or_else(|errors| errors, |(_, warnings)| warnings);
        said.iter()
            .map(|d| {
                let problem = d.problem.replace(files.path("").to_str().unwrap(), "");
                format!("{} {}: {problem}", d.severity, d.place.line.as_ref().unwrap().number)
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(said(&one), [""; 0]);
    let mismatch = Issued { key: other.key, ..one.clone() };
    let problem = "error 7: the key in `web.key` does not belong to the certificate in `web.pem`";
    assert_eq!(said(&mismatch), [problem]);
    let expired = authority.expired(&["web.test"]);
    assert_eq!(said(&expired), ["warning 7: the certificate in `web.pem` has expired"]);
    let encrypted = one.key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    assert_eq!(
        said(&Issued { key: encrypted, ..one.clone() }),
        ["error 7: the private key in `web.key` is encrypted"]
    );
    let none = Issued { certificate: one.key.clone(), ..one };
    assert_eq!(said(&none), ["error 7: there is no certificate in `web.pem`"]);
}

#[test]
fn a_plain_listener_beside_it_stays_plain() {
    let setup = Setup::new();
    let pair = setup.files.pair("web", &setup.authority.issue(&["web.test"]));
    let more = format!("[[listeners]]\naddress = '127.0.0.1:0'\ntls = {{ certificates = [{{ {pair} }}] }}\n");
    let tidegate = Tidegate::start(Web::new(setup.backend.address).listener(&more));
    assert_eq!(Raw::connect(tidegate.listeners[0]).get("/").status, 200);
    assert_eq!(setup.backend.only_request().fields("x-forwarded-proto"), ["http"]);
    Dialect::trusting(&setup.authority).connect(tidegate.listeners[1], "web.test").unwrap();
}
