//! The program as people start it: words, exit codes, signals.

use std::{
    io::{BufRead, BufReader, Read},
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    thread,
};

use tempfile::TempDir;

use crate::support::{Backend, Raw, Web, patience};

fn tidegate(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.args(arguments).env_remove("RUST_LOG").env_remove("TIDEGATE_CONFIG").stdin(Stdio::null());
    command
}

fn output(arguments: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = tidegate(arguments).output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

/// How a program ends that does not start, and what it says.
pub fn ends(toml: impl ToString) -> (Option<i32>, String) {
    let (_folder, path) = file(toml);
    let (code, _, said) = output(&["run", "--config", &path]);
    (code, said)
}

/// A file with this configuration, for as long as the folder is kept.
fn file(toml: impl ToString) -> (TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("tidegate.toml");
    std::fs::write(&path, toml.to_string()).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (folder, path)
}

#[test]
fn help_and_version_are_there() {
    let (code, help, _) = output(&["--help"]);
    assert_eq!(code, Some(0));
    for word in ["run", "check", "demo", "--version"] {
        assert!(help.contains(word), "`{word}` is not in\n{help}");
    }
    let (code, version, _) = output(&["--version"]);
    assert_eq!((code, version), (Some(0), format!("tidegate {}\n", env!("CARGO_PKG_VERSION"))));
    let (code, _, said) = output(&["runn"]);
    assert_eq!(code, Some(64));
    assert!(said.contains("run"), "{said}");
    assert_eq!(output(&["run"]).0, Some(64), "a configuration is needed");
}

#[test]
fn check_says_what_is_wrong_and_where() {
    // Not the reference: the certificates that it names are nobody's.
    for good in ["minimal", "canary", "blue-green"] {
        let path = format!("config/{good}.toml");
        if std::fs::exists(&path).unwrap() {
            let (code, said, complaints) = output(&["check", "--config", &path]);
            assert_eq!(code, Some(0), "{complaints}");
            assert!(said.starts_with(&format!("{path}: fine (")), "{said}");
        }
    }
    let (_folder, path) = file("workers = 0\n");
    let (code, said, complaints) = output(&["check", "--config", &path]);
    assert_eq!((code, said.as_str()), (Some(78), ""));
    assert!(complaints.contains("tidegate.toml") && complaints.contains("`workers` must be"), "{complaints}");
    assert_eq!(output(&["run", "--config", &path]).0, Some(78));
    assert_eq!(output(&["check", "--config", "/nowhere/x.toml"]).0, Some(78));
}

#[test]
fn a_port_that_is_taken_is_said_so() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let backend = Backend::named("v1");
    let toml = Web::new(backend.address).to_string();
    let listener = toml.replacen("127.0.0.1:0", &address.to_string(), 1);
    let (_folder, path) = file(listener);
    let (code, _, said) = output(&["run", "--config", &path]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&format!("error: cannot listen on {address}")), "{said}");
    assert!(said.contains("\n  caused by: Address already in use"), "{said}");
    let admin = format!("[admin]\naddress = '{address}'");
    let admin = toml.replace("[admin]\naddress = '127.0.0.1:0'", &admin);
    let (_folder, path) = file(admin);
    let (code, _, said) = output(&["run", "--config", &path]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("for the admin API"), "{said}");
}

/// A running program, killed if the test does not end it.
pub struct Program {
    pub child: Child,
    pub listener: SocketAddr,
    /// Where its admin side is, if it has one.
    pub admin: Option<SocketAddr>,
}

impl Program {
    /// Starts it, and waits until it says where it listens.
    pub fn run(toml: impl ToString) -> (TempDir, Self) {
        let (folder, path) = file(toml);
        (folder, Self::of(&path))
    }

    /// Starts it with the configuration in a file.
    pub fn of(path: &str) -> Self {
        Self::watched(tidegate(&["run", "--config", path]).stderr(Stdio::piped()).spawn().unwrap())
    }

    /// One that has been started, with its log piped; waits until it says where it listens.
    pub fn watched(mut child: Child) -> Self {
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let (give, take) = mpsc::channel();
        thread::spawn(move || {
            let mut line = String::new();
            while log.read_line(&mut line).is_ok_and(|n| n > 0) {
                let said = ["\"listening on ", "\"admin API and metrics on ", "\"no admin API"];
                if let Some(rest) = said.iter().find_map(|said| Some(line.split_once(said)?.1)) {
                    // Gone only if the test is over.
                    let _gone = give.send(rest.split('"').next().unwrap().parse().ok());
                }
                line.clear();
            }
        });
        let next = || take.recv_timeout(patience()).expect("it says where it listens");
        let listener = next().expect("an address");
        Self { child, listener, admin: next() }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    fn wait_for_code(&mut self) -> Option<i32> {
        crate::support::eventually(|| self.child.try_wait().unwrap(), Option::is_some).unwrap().code()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // One that has ended cannot be killed.
        let _ended = self.child.kill();
        let _waited = self.child.wait();
    }
}

#[test]
fn a_terminated_program_finishes_and_exits_well() {
    let backend = Backend::named("v1");
    let toml = Web::new(backend.address).to_string().replacen("[shutdown]", "[shutdown]\ndelay = '300ms'", 1);
    let (_folder, mut program) = Program::run(toml);
    let mut client = Raw::connect(program.listener);
    assert_eq!(client.get("/").text(), "v1");
    program.signal("TERM");
    // Asked to close within the delay, and served until then.
    crate::support::eventually(
        || Raw::connect(program.listener).get("/").fields("connection").len(),
        |fields| *fields == 1,
    );
    assert_eq!(program.wait_for_code(), Some(0));
    client.expect_end();
}

#[test]
fn an_interrupted_program_does_not_wait() {
    let backend = Backend::named("v1");
    let toml = Web::new(backend.address).to_string().replacen("[shutdown]", "[shutdown]\ndelay = '1h'", 1);
    let (_folder, mut program) = Program::run(&toml);
    program.signal("INT");
    assert_eq!(program.wait_for_code(), Some(0));
    // And a second signal ends even a program that waits for its delay.
    let (_folder, mut program) = Program::run(&toml);
    program.signal("TERM");
    crate::support::eventually(
        || Raw::connect(program.listener).get("/").fields("connection").len(),
        |fields| *fields == 1,
    );
    program.signal("TERM");
    assert_eq!(program.wait_for_code(), Some(1));
}

#[test]
fn a_hangup_opens_the_access_log_anew() {
    let backend = Backend::named("v1");
    let logs = tempfile::tempdir().unwrap();
    let path = logs.path().join("access.log");
    let web = Web::new(backend.address);
    let (_folder, mut program) = Program::run(format!("{web}[access_log]\noutput = '{}'\n", path.display()));
    std::fs::rename(&path, logs.path().join("access.log.1")).unwrap();
    program.signal("HUP");
    // Before there is anything to write, when it would be noticed anyway.
    crate::support::eventually_is(true, || path.exists());
    assert_eq!(Raw::connect(program.listener).get("/").status, 200);
    program.signal("INT");
    assert_eq!(program.wait_for_code(), Some(0));
    assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 1);
    assert_eq!(std::fs::read_to_string(logs.path().join("access.log.1")).unwrap(), "");
}

#[test]
fn a_hangup_has_the_configuration_read_anew() {
    let (one, two) = (Backend::named("one"), Backend::named("two"));
    let logs = tempfile::tempdir().unwrap();
    let audit = logs.path().join("audit.log");
    let web = |backend: &Backend| {
        Web::new(backend.address).admin(&format!("audit_log = '{}'", audit.display())).to_string()
    };
    let (folder, mut program) = Program::run(web(&one));
    assert_eq!(Raw::connect(program.listener).get("/").text(), "one");
    std::fs::write(folder.path().join("tidegate.toml"), web(&two)).unwrap();
    program.signal("HUP");
    crate::support::eventually_is("two".to_owned(), || Raw::connect(program.listener).get("/").text());
    let recorded = || std::fs::read_to_string(&audit).unwrap_or_default();
    crate::support::eventually(recorded, |line| line.contains(r#""actor":"SIGHUP","by":"process""#));
    program.signal("INT");
    assert_eq!(program.wait_for_code(), Some(0));
}

#[test]
fn the_access_log_goes_to_stdout_and_nothing_else_does() {
    let backend = Backend::named("v1");
    let (_folder, path) = file(format!("{}[access_log]\n", Web::new(backend.address)));
    let piped = tidegate(&["run", "-c", &path]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut program = Program::watched(piped.unwrap());
    let mut lines = BufReader::new(program.child.stdout.take().unwrap());
    assert_eq!(Raw::connect(program.listener).get("/a").status, 200);
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    let parsed: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&parsed["path"], &parsed["outcome"]), (&"/a".into(), &"2xx".into()));
    program.signal("INT");
    assert_eq!(program.wait_for_code(), Some(0));
    let mut rest = String::new();
    lines.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "");
}

#[test]
fn a_log_that_cannot_be_opened_ends_the_start() {
    let web = Web::new(([127, 0, 0, 1], 9).into());
    let (_folder, path) = file(format!("{web}[access_log]\noutput = '/nowhere/access.log'\n"));
    let (code, _, said) = output(&["run", "--config", &path]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("error: cannot write the access log to /nowhere/access.log\n"), "{said}");
    assert!(said.contains("\n  caused by: No such file or directory"), "{said}");
}

#[test]
fn the_log_is_json_where_nobody_watches() {
    let backend = Backend::named("v1");
    let (_folder, path) = file(Web::new(backend.address));
    let mut child = tidegate(&["run", "-c", &path]).stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    log.read_line(&mut line).unwrap();
    let parsed: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(parsed["level"], "INFO");
    child.kill().unwrap();
    child.wait().unwrap();
    let mut rest = String::new();
    log.read_to_string(&mut rest).unwrap();
    assert!(rest.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()), "{rest}");
}

#[test]
fn a_new_token_is_one_and_its_credential_is_right() {
    let (code, said, _) =
        output(&["token", "new", "ci", "--scope", "operate", "--service", "web", "--service", "api"]);
    assert_eq!(code, Some(0));
    let token = said.lines().find(|line| line.starts_with("tidegate_")).unwrap();
    let token = tidegate::admin::token::Token::parse(token).unwrap();
    let (folder, _) = file("");
    let credentials = folder.path().join("credentials.toml");
    std::fs::write(&credentials, said.split_once("\n\n").unwrap().1).unwrap();
    let backend = Backend::named("v1");
    let web = Web::new(backend.address).admin(&format!("credentials = '{}'", credentials.display()));
    let (_folder, path) = file(web);
    let (config, _) = tidegate::config::load::load(path.as_ref()).unwrap();
    let list = config.admin.unwrap().credentials.unwrap().list;
    assert_eq!(list[0].proof, tidegate::config::Proof::Token(token.sha256()));
    assert_eq!((list[0].name.as_str(), list[0].scope.name()), ("ci", "operate"));
    assert_eq!(list[0].services.as_ref().unwrap().len(), 2);
    assert_ne!(output(&["token", "new", "ci"]).1, output(&["token", "new", "ci"]).1);
    assert_eq!(output(&["token", "new", "ci", "--scope", "write"]).0, Some(64));
}
