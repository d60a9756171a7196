//! A whole Tidegate inside the test's process.

use std::{
    fmt::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    thread::{self, JoinHandle},
    time::Duration,
};

use serde_json::Value;
use tidegate::{
    app::{self, Options},
    config::{
        Config,
        diagnostic::render,
        load::{load, parse},
    },
};
use tokio::sync::oneshot;

use super::{
    client::{Raw, Response, runtime},
    eventually::eventually,
    metrics::Scrape,
};

/// How often it looks at counts and files.
const OPTIONS: Options = Options {
    tick: Duration::from_millis(50),
    certificates: Duration::from_millis(20),
    configuration: Duration::from_millis(20),
    spans: Duration::from_millis(20),
};

/// A running Tidegate. It is drained when it is dropped, and a panic in it fails the test.
#[derive(Debug)]
pub struct Tidegate {
    pub listeners: Vec<SocketAddr>,
    pub admin: SocketAddr,
    stop: Option<oneshot::Sender<Duration>>,
    thread: Option<JoinHandle<()>>,
}

impl Tidegate {
    /// Starts it with a configuration.
    #[track_caller]
    pub fn start(toml: impl ToString) -> Self {
        let (config, _) = parse("test.toml", &toml.to_string()).unwrap_or_else(|e| panic!("{}", render(&e)));
        Self::run(config, None, OPTIONS)
    }

    /// Starts it with the configuration in a file, whose changes it takes up when it is told to, or also
    /// when it `notices` them.
    #[track_caller]
    pub fn start_from(file: &Path, notices: bool) -> Self {
        let (config, _) = load(file).unwrap_or_else(|e| panic!("{}", render(&e)));
        let never = Options { configuration: Duration::from_secs(24 * 60 * 60), ..OPTIONS };
        Self::run(config, Some(file.to_owned()), if notices { OPTIONS } else { never })
    }

    #[track_caller]
    fn run(config: Config, file: Option<PathBuf>, options: Options) -> Self {
        let (stop, stopped) = oneshot::channel::<Duration>();
        let (give, take) = std::sync::mpsc::channel();
        let thread = thread::spawn(move || {
            runtime().block_on(async {
                let mut running = app::start(&config, file.as_deref(), options).await.unwrap();
                give.send((running.listeners.clone(), running.admin.unwrap())).unwrap();
                let delay = tokio::select! {
                    delay = stopped => delay.unwrap(),
                    panicked = running.failed() => panic!("{panicked}"),
                };
                running.drain(delay).await.unwrap();
            });
        });
        let (listeners, admin) = take.recv().expect("it starts");
        Self { listeners, admin, stop: Some(stop), thread: Some(thread) }
    }

    /// Where requests come in.
    pub fn address(&self) -> SocketAddr {
        self.listeners[0]
    }

    /// A connection to it.
    pub fn client(&self) -> Raw {
        Raw::connect(self.address())
    }

    /// Begins to drain, with this long for announcing it.
    pub fn drain(&mut self, delay: Duration) {
        self.stop.take().expect("it is drained once").send(delay).unwrap();
    }

    /// Waits until it has ended.
    #[track_caller]
    pub fn wait_for_end(&mut self) {
        self.thread.take().expect("it ends once").join().expect("it ends well");
    }

    /// Asks the admin side; the body is sent as it is.
    #[track_caller]
    pub fn ask(&self, method: &str, path: &str, body: &str) -> Response {
        self.ask_with("", method, path, body)
    }

    /// The same with more fields, each with its line break.
    #[track_caller]
    pub fn ask_with(&self, fields: &str, method: &str, path: &str, body: &str) -> Response {
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n{fields}\r\n"
        );
        let mut client = Raw::connect(self.admin);
        client.send(head + body);
        client.response_to(method)
    }

    /// Asks the API, which must agree.
    #[track_caller]
    pub fn api(&self, method: &str, path: &str, body: &str) -> Value {
        let response = self.ask(method, &format!("/api/v1/services/{path}"), body);
        assert_eq!(response.status, 200, "{method} {path} {body}: {}", response.text());
        serde_json::from_slice(&response.body).unwrap()
    }

    /// Gives the canary of `web` a weight.
    #[track_caller]
    pub fn set_weight(&self, percent: f64) {
        self.api("PUT", "web/weight", &format!("{{\"canary\": {percent}}}"));
    }

    pub fn status(&self) -> Value {
        self.api("GET", "web", "")
    }

    /// Waits until the rollout of `web` is in this phase.
    #[track_caller]
    pub fn wait_for_phase(&self, phase: &str) -> Value {
        eventually(|| self.status(), |status| status["rollout"]["phase"] == phase)
    }

    #[track_caller]
    pub fn scrape(&self) -> Scrape {
        Scrape::of(self.admin)
    }

    /// Waits until as many attempts as this ended so, over all backends.
    #[track_caller]
    pub fn wait_for_outcome(&self, status: &str, wanted: usize) {
        let count = || self.scrape().sum("tidegate_requests_total", &[("status", status)]);
        eventually(count, |count| *count == wanted as f64);
    }

    /// Waits until nothing is in flight.
    #[track_caller]
    pub fn wait_until_idle(&self) -> Scrape {
        eventually(|| self.scrape(), |scrape| scrape.sum("tidegate_requests_in_flight", &[]) == 0.0)
    }
}

impl Drop for Tidegate {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // Gone only if it panicked, which the join below says.
            let _gone = stop.send(Duration::ZERO);
        }
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join)
            && !thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

/// A configuration with one service, `web`, that gets every request.
#[derive(Debug, Clone, Default)]
pub struct Web {
    workers: usize,
    listener: String,
    admin: String,
    shutdown: String,
    service: String,
    backends: String,
    more: String,
}

impl Web {
    /// With `v1` as its stable backend.
    pub fn new(stable: SocketAddr) -> Self {
        Self::bare().backend("v1", "http", stable)
    }

    /// The same with a backend that speaks HTTP/2.
    pub fn h2c(stable: SocketAddr) -> Self {
        let web = Self::new(stable);
        let backends = web.backends.replace("http://", "h2c://");
        Self { backends, ..web }
    }

    /// With `v1` as its stable backend, which is yet to be said.
    pub fn bare() -> Self {
        // So that a test that fails with a request in flight does not take long to say so.
        let shutdown = "deadline = '3s'\n".to_owned();
        Self { workers: 1, shutdown, ..Self::default() }.keys("stable = 'v1'")
    }

    /// With `v1` as its stable backend, at these endpoints.
    pub fn of(endpoints: &[SocketAddr]) -> Self {
        let urls: Vec<_> = endpoints.iter().map(|address| format!("http://{address}")).collect();
        Self::at(&urls.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// The same as they are written.
    pub fn at(urls: &[&str]) -> Self {
        Self::bare().table("backends.v1", &format!("endpoints = {urls:?}"))
    }

    /// With `v2` as its canary.
    pub fn canary(self, canary: SocketAddr) -> Self {
        self.keys("canary = 'v2'").backend("v2", "http", canary)
    }

    pub fn weight(self, percent: f64) -> Self {
        self.keys(&format!("weight = {percent}"))
    }

    pub fn workers(self, workers: usize) -> Self {
        Self { workers, ..self }
    }

    /// More keys of the listener.
    pub fn listener(mut self, keys: &str) -> Self {
        self.listener += keys;
        self
    }

    /// More keys of the admin side.
    pub fn admin(mut self, keys: &str) -> Self {
        writeln!(self.admin, "{keys}").unwrap();
        self
    }

    /// How long requests in flight may take after a drain.
    pub fn deadline(self, deadline: &str) -> Self {
        Self { shutdown: format!("deadline = '{deadline}'\n"), ..self }
    }

    /// How long clients are asked to go before idle connections are closed.
    pub fn delay(mut self, delay: &str) -> Self {
        writeln!(self.shutdown, "delay = '{delay}'").unwrap();
        self
    }

    /// The keys of a table of the service.
    pub fn table(mut self, name: &str, keys: &str) -> Self {
        writeln!(self.more, "[services.web.{name}]\n{keys}").unwrap();
        self
    }

    /// More keys of the service.
    pub fn keys(mut self, keys: &str) -> Self {
        writeln!(self.service, "{keys}").unwrap();
        self
    }

    /// Another backend, whose role the keys say.
    pub fn backend(mut self, name: &str, scheme: &str, address: SocketAddr) -> Self {
        let endpoints = format!("endpoints = ['{scheme}://{address}']");
        writeln!(self.backends, "[services.web.backends.{name}]\n{endpoints}").unwrap();
        self
    }
}

impl std::fmt::Display for Web {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { workers, listener, admin, shutdown, service, backends, more } = self;
        writeln!(f, "workers = {workers}\n[shutdown]\n{shutdown}")?;
        writeln!(f, "[[listeners]]\naddress = '127.0.0.1:0'\n{listener}")?;
        writeln!(f, "[admin]\naddress = '127.0.0.1:0'\n{admin}[[routes]]\nservice = 'web'")?;
        writeln!(f, "[services.web]\n{service}{backends}{more}")
    }
}
