//! A changed configuration is taken up while requests are on: all of it or nothing, and nobody notices but
//! by what has changed.

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::symlink,
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    thread,
};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{
    Backend, H2, Raw, Tidegate, Web,
    certificates::{Authority, Dialect, Files, secure_get, shown},
    client::Response,
    eventually, eventually_is, get, reply, runtime,
};

/// A proxy whose configuration is in a file.
pub struct Filed {
    folder: TempDir,
    pub tidegate: Tidegate,
}

impl Filed {
    pub fn start(toml: impl ToString) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tidegate.toml");
        fs::write(&file, toml.to_string()).unwrap();
        Self { tidegate: Tidegate::start_from(&file, false), folder }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("tidegate.toml")
    }

    /// Writes another configuration and has it read.
    fn reload(&self, toml: impl ToString) -> Response {
        // In one step, so that it is read whole whoever reads it.
        let new = self.folder.path().join("new.toml");
        fs::write(&new, toml.to_string()).unwrap();
        fs::rename(new, self.file()).unwrap();
        self.tidegate.ask("POST", "/api/v1/reload", "")
    }

    /// The same; it has to be taken up. Says what has changed.
    #[track_caller]
    pub fn take_up(&self, toml: impl ToString) -> Vec<String> {
        let response = self.reload(toml);
        assert_eq!(response.status, 200, "{}", response.text());
        let json: Value = serde_json::from_slice(&response.body).unwrap();
        serde_json::from_value(json["changes"].clone()).unwrap()
    }

    /// The same; it must not be taken up, for this reason.
    #[track_caller]
    pub fn is_refused(&self, toml: impl ToString, status: u16, why: &str) {
        let response = self.reload(toml);
        assert_eq!(response.status, status, "{}", response.text());
        let json: Value = serde_json::from_slice(&response.body).unwrap();
        let detail = json["detail"].as_str().unwrap();
        assert!(detail.contains(why), "{detail}");
    }
}

/// A configuration with one more listener.
fn with_listener(web: &Web, address: SocketAddr, keys: &str) -> String {
    format!("{web}[[listeners]]\naddress = '{address}'\n{keys}\n")
}

/// An address at which nobody listens.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A second service behind a path.
fn with_api(web: &Web, backend: SocketAddr) -> String {
    format!(
        "{web}[[routes]]\nservice = 'api'\npath_prefix = '/api'\n[services.api]\nstable = 'a1'\n\
         [services.api.backends.a1]\nendpoints = ['http://{backend}']\n"
    )
}

/// Tells the load to stop, whatever has become of the test.
struct StopAtEnd<'s>(&'s AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

#[test]
fn under_load_no_request_fails_and_no_connection_is_closed() {
    let (one, two, api) = (Backend::named("one"), Backend::named("two"), Backend::named("api"));
    let filed = Filed::start(Web::new(one.address).workers(2));
    let (stop, done) = (AtomicBool::new(false), AtomicUsize::new(0));
    let address = filed.tidegate.address();
    thread::scope(|scope| {
        let _stops = StopAtEnd(&stop);
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = Raw::connect(address);
                while !stop.load(SeqCst) {
                    let response = client.get("/");
                    assert_eq!(response.status, 200, "{}", response.text());
                    assert!(["one", "two"].contains(&response.text().as_str()));
                    done.fetch_add(1, SeqCst);
                }
            });
        }
        for round in 0..20 {
            let before = done.load(SeqCst);
            let backend = if round % 2 == 0 { &two } else { &one };
            let changes = filed.take_up(with_api(&Web::new(backend.address).workers(2), api.address));
            assert!(changes.contains(&"service `web` changed".to_owned()), "{changes:?}");
            let name = if round % 2 == 0 { "two" } else { "one" };
            assert_eq!(get(address, "/").text(), name, "the next request sees it");
            assert_eq!(get(address, "/api").text(), "api");
            eventually(|| done.load(SeqCst), |now| *now > before + 4);
        }
    });
    let scrape = filed.tidegate.wait_until_idle();
    // Counts outlive a change of the endpoints.
    scrape.expect("tidegate_requests_total", &[("service", "web")], done.load(SeqCst) as f64 + 20.0);
    scrape.expect("tidegate_config_reloads_total", &[("result", "success")], 20.0);
}

#[test]
fn what_is_in_flight_ends_where_it_began() {
    let (seen, wait_for_request) = mpsc::channel();
    let (answer, leave) = mpsc::channel::<()>();
    let leave = Mutex::new(leave);
    let slow = Backend::answering(move |_| {
        seen.send(()).unwrap();
        leave.lock().unwrap().recv().unwrap();
        reply("200 OK", &[], "old")
    });
    let new = Backend::named("new");
    let filed = Filed::start(Web::new(slow.address));
    let mut client = filed.tidegate.client();
    client.send("GET / HTTP/1.1\r\nHost: web.test\r\n\r\n");
    wait_for_request.recv().unwrap();
    filed.take_up(Web::new(new.address));
    assert_eq!(get(filed.tidegate.address(), "/").text(), "new");
    answer.send(()).unwrap();
    assert_eq!(client.response().text(), "old");
    assert_eq!(client.get("/").text(), "new", "on the same connection");
}

#[test]
fn a_wrong_file_is_told_with_its_place_and_changes_nothing() {
    let backend = Backend::named("v1");
    let web = Web::new(backend.address);
    let filed = Filed::start(&web);
    let wrong = web.to_string().replace("stable = 'v1'", "stabel = 'v1'");
    let line = wrong.lines().position(|line| line.contains("stabel")).unwrap() + 1;
    filed.is_refused(&wrong, 422, "unknown key `stabel`");
    filed.is_refused(&wrong, 422, &format!("tidegate.toml:{line}:1"));
    filed.is_refused(&wrong, 422, "did you mean `stable`?");
    assert_eq!(get(filed.tidegate.address(), "/").text(), "v1");
    let scrape = filed.tidegate.scrape();
    scrape.expect("tidegate_config_reloads_total", &[("result", "failure")], 3.0);
    scrape.expect("tidegate_config_last_reload_successful", &[], 0.0);
    let since = scrape.sum("tidegate_config_last_reload_success_timestamp_seconds", &[]);
    assert_eq!(filed.take_up(&web), [""; 0]);
    let scrape = filed.tidegate.scrape();
    scrape.expect("tidegate_config_last_reload_successful", &[], 1.0);
    assert!(scrape.sum("tidegate_config_last_reload_success_timestamp_seconds", &[]) > since);
}

/// As Kubernetes mounts a ConfigMap: the file is a link through a link that is swapped.
#[test]
fn a_change_is_noticed_without_being_told_through_links_too() {
    let (one, two) = (Backend::named("one"), Backend::named("two"));
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for (version, backend) in [("1", &one), ("2", &two)] {
        fs::create_dir(at(version)).unwrap();
        fs::write(at(version).join("tidegate.toml"), Web::new(backend.address).to_string()).unwrap();
    }
    symlink("1", at("..data")).unwrap();
    symlink("..data/tidegate.toml", at("tidegate.toml")).unwrap();
    let tidegate = Tidegate::start_from(&at("tidegate.toml"), true);
    assert_eq!(get(tidegate.address(), "/").text(), "one");
    symlink("2", at("..new")).unwrap();
    fs::rename(at("..new"), at("..data")).unwrap();
    eventually_is("two".to_owned(), || get(tidegate.address(), "/").text());
    // What is wrong is tried once, not again and again.
    fs::write(at("2").join("tidegate.toml"), "workers = 0").unwrap();
    let failures = || tidegate.scrape().sum("tidegate_config_reloads_total", &[("result", "failure")]);
    eventually_is(1.0, failures);
    assert_eq!(tidegate.ask("POST", "/api/v1/reload", "").status, 422);
    assert_eq!(failures(), 2.0);
    assert_eq!(get(tidegate.address(), "/").text(), "two");
}

#[test]
fn roles_and_weight_stay_as_they_have_become_unless_they_are_written_anew() {
    let (one, two) = (Backend::named("v1"), Backend::named("v2"));
    let web = |weight: f64| Web::new(one.address).canary(two.address).weight(weight);
    let filed = Filed::start(web(10.0));
    let standing = || {
        let status = filed.tidegate.status();
        (status["stable"].clone(), status["weight"].clone())
    };
    filed.tidegate.set_weight(100.0);
    filed.take_up(web(10.0).table("timeouts", "response = '9s'"));
    assert_eq!(standing(), ("v1".into(), 100.0.into()));
    assert_eq!(get(filed.tidegate.address(), "/").text(), "v2");
    filed.tidegate.api("POST", "web/flip", "");
    filed.take_up(web(10.0).table("timeouts", "response = '8s'"));
    assert_eq!(standing(), ("v2".into(), 0.0.into()));
    assert_eq!(get(filed.tidegate.address(), "/").text(), "v2");
    filed.take_up(web(0.0));
    eventually(&standing, |standing| *standing == ("v1".into(), 0.0.into()));
    assert_eq!(get(filed.tidegate.address(), "/").text(), "v1");
    filed.tidegate.scrape().expect("tidegate_weight_ratio", &[("backend", "v1"), ("role", "stable")], 1.0);
}

#[test]
fn listeners_come_and_go() {
    let backend = Backend::named("v1");
    let web = Web::new(backend.address).workers(2);
    let filed = Filed::start(&web);
    let address = free_address();
    for _ in 0..3 {
        let changes = filed.take_up(with_listener(&web, address, ""));
        assert_eq!(changes, [format!("listener {address} added")]);
        let mut old = filed.tidegate.client();
        let mut new = Raw::connect(address);
        assert_eq!((old.get("/").text(), new.get("/").text()), ("v1".to_owned(), "v1".to_owned()));
        assert_eq!(filed.take_up(&web), [format!("listener {address} removed")]);
        assert!(TcpStream::connect(address).is_err(), "nobody listens there any more");
        let last = new.get("/");
        assert_eq!((last.text().as_str(), last.fields("connection")), ("v1", vec!["close"]));
        new.expect_end();
        assert_eq!(old.get("/").text(), "v1", "whoever came in elsewhere stays");
    }
}

#[test]
fn who_came_through_a_listener_that_is_gone_and_asks_for_nothing_is_closed() {
    let backend = Backend::named("v1");
    let web = Web::new(backend.address).delay("100ms");
    let address = free_address();
    let filed = Filed::start(with_listener(&web, address, ""));
    let mut idle = Raw::connect(address);
    assert_eq!(idle.get("/").text(), "v1");
    filed.take_up(&web);
    idle.expect_end();
}

#[test]
fn who_speaks_http_2_to_a_listener_that_is_gone_is_asked_to_go_at_once() {
    let backend = Backend::named("v1");
    let web = Web::new(backend.address).delay("1h");
    let address = free_address();
    let filed = Filed::start(with_listener(&web, address, ""));
    let client = H2::connect(address);
    assert_eq!(runtime().block_on(client.get("/")).unwrap().1, "v1");
    filed.take_up(&web);
    eventually(|| client.is_closed(), |closed| *closed);
}

#[test]
fn a_request_that_came_through_a_listener_that_is_gone_is_answered() {
    let (seen, wait_for_request) = mpsc::channel();
    let (answer, leave) = mpsc::channel::<()>();
    let leave = Mutex::new(leave);
    let backend = Backend::answering(move |_| {
        seen.send(()).unwrap();
        leave.lock().unwrap().recv().unwrap();
        reply("200 OK", &[], "late")
    });
    let web = Web::new(backend.address);
    let address = free_address();
    let filed = Filed::start(with_listener(&web, address, ""));
    let mut client = Raw::connect(address);
    client.send("GET / HTTP/1.1\r\nHost: web.test\r\n\r\n");
    wait_for_request.recv().unwrap();
    filed.take_up(&web);
    answer.send(()).unwrap();
    let response = client.response();
    assert_eq!((response.text().as_str(), response.fields("connection")), ("late", vec!["close"]));
    client.expect_end();
}

#[test]
fn a_listener_is_changed_for_the_next_connection_and_keeps_its_socket() {
    let backend = Backend::named("v1");
    let authority = Authority::new("servers");
    let files = Files::new();
    let issued = authority.issue(&["web.test"]);
    let pair = files.pair("one", &issued);
    let plain = Web::new(backend.address);
    let filed = Filed::start(&plain);
    let address = filed.tidegate.address();
    let mut old = filed.tidegate.client();
    assert_eq!(old.get("/").text(), "v1");
    let secure = Web::new(backend.address).listener(&format!("tls = {{ certificates = [{{ {pair} }}] }}\n"));
    assert_eq!(filed.take_up(&secure), ["listener 127.0.0.1:0 changed"]);
    let mut stream = Dialect::trusting(&authority).connect(address, "web.test").unwrap();
    assert!(secure_get(&mut stream, "/").unwrap().ends_with("v1"));
    assert_eq!(shown(&stream), issued.der());
    assert_eq!(old.get("/").text(), "v1", "the connection without TLS goes on");
    let series = || filed.tidegate.scrape().sum("tidegate_tls_certificate_expiry_timestamp_seconds", &[]);
    assert!(series() > 0.0);
    // Fewer fields, and no TLS again.
    assert_eq!(filed.take_up(Web::new(backend.address).listener("max_headers = 1\n")).len(), 1);
    let refused = crate::support::exchange(address, "GET / HTTP/1.1\r\nHost: web.test\r\nA: b\r\n\r\n");
    assert_eq!(refused.status, 431);
    drop(stream);
    eventually_is(0.0, series);
}

#[test]
fn limits_of_connections_hold_over_a_change() {
    let backend = Backend::named("v1");
    let limited =
        |most: u32| Web::new(backend.address).listener(&format!("max_connections_per_client = {most}\n"));
    let filed = Filed::start(limited(2));
    let mut clients: Vec<_> = (0..2).map(|_| filed.tidegate.client()).collect();
    clients.iter_mut().for_each(|client| assert_eq!(client.get("/").text(), "v1"));
    filed.take_up(limited(3));
    let mut third = filed.tidegate.client();
    assert_eq!(third.get("/").text(), "v1");
    filed.tidegate.client().expect_end();
    filed.tidegate.scrape().expect("tidegate_connections_refused_total", &[], 1.0);
}

#[test]
fn an_address_that_is_taken_refuses_all_of_it() {
    let (one, two) = (Backend::named("one"), Backend::named("two"));
    let filed = Filed::start(Web::new(one.address));
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let why = format!("cannot listen on {address}");
    filed.is_refused(with_listener(&Web::new(two.address), address, ""), 409, &why);
    assert_eq!(get(filed.tidegate.address(), "/").text(), "one");
}

#[test]
fn what_needs_a_restart_says_so() {
    let backend = Backend::named("v1");
    let filed = Filed::start(Web::new(backend.address));
    filed.is_refused(Web::new(backend.address).workers(2), 409, "a change of `workers` needs a restart");
    let log = format!("{}[access_log]\n", Web::new(backend.address));
    filed.is_refused(log, 409, "a change of `[access_log]` needs a restart");
}

#[test]
fn services_come_and_go_with_their_series() {
    let (one, api) = (Backend::named("one"), Backend::named("api"));
    let web = Web::new(one.address);
    let filed = Filed::start(&web);
    let changes = filed.take_up(with_api(&web, api.address));
    assert_eq!(changes, ["service `api` added", "routes changed"]);
    assert_eq!(get(filed.tidegate.address(), "/api").text(), "api");
    assert_eq!(filed.tidegate.ask("GET", "/api/v1/services/api", "").status, 200);
    let series = || {
        let scrape = filed.tidegate.scrape();
        let of = |name: &str| scrape.sum(name, &[("service", "api")]);
        [of("tidegate_requests_total"), of("tidegate_weight_ratio"), of("tidegate_endpoint_addresses")]
    };
    eventually_is([1.0, 1.0, 1.0], series);
    assert_eq!(filed.take_up(&web), ["service `api` removed", "routes changed"]);
    assert_eq!(get(filed.tidegate.address(), "/api").text(), "one");
    assert_eq!(filed.tidegate.ask("GET", "/api/v1/services/api", "").status, 404);
    eventually_is([0.0, 0.0, 0.0], series);
}

#[test]
fn a_new_name_has_its_addresses_at_once() {
    let one = Backend::named("one");
    let filed = Filed::start(Web::new(one.address));
    let named = Web::at(&[&format!("http://localhost:{}", one.address.port())]);
    filed.take_up(named);
    for _ in 0..5 {
        assert_eq!(get(filed.tidegate.address(), "/").text(), "one");
    }
}

#[test]
fn connections_of_http_2_go_on() {
    let (one, two) = (Backend::named("one"), Backend::named("two"));
    let filed = Filed::start(Web::new(one.address));
    let client = H2::connect(filed.tidegate.address());
    let get = || runtime().block_on(client.get("/")).unwrap().1;
    assert_eq!(get(), "one");
    filed.take_up(Web::new(two.address));
    assert_eq!(get(), "two");
    assert!(!client.is_closed());
}

#[test]
fn who_has_no_file_says_so() {
    let backend = Backend::named("v1");
    let tidegate = Tidegate::start(Web::new(backend.address));
    let response = tidegate.ask("POST", "/api/v1/reload", "");
    assert_eq!(response.status, 503, "{}", response.text());
}
