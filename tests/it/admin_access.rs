//! Who may use the admin API, and for what: tokens, certificates, and what keeps web pages out.

use std::{
    io::{Read as _, Write as _},
    path::Path,
};

use serde_json::Value;
use tempfile::TempDir;
use tidegate::{
    admin::token::{Hex, Token},
    config::{Scope, diagnostic::render, load::load},
};

use crate::{
    admin_api::problem,
    support::{
        Backend, Raw, Tidegate, Web,
        certificates::{Authority, Dialect, Files, Secure},
        client::Response,
        eventually,
    },
};

/// Two services behind a proxy that asks who is there.
struct Setup {
    _backend: Backend,
    folder: TempDir,
    tidegate: Tidegate,
}

/// A credential as it stands in the file.
fn credential(name: &str, token: &Token, scope: &str, more: &str) -> String {
    let hash = Hex(&token.sha256()).to_string();
    format!("[[credentials]]\nname = '{name}'\ntoken_sha256 = '{hash}'\nscope = '{scope}'\n{more}\n")
}

fn config(backend: &Backend, folder: &Path, admin: &str) -> String {
    let file = folder.join("credentials.toml");
    let web = Web::new(backend.address).canary(backend.address);
    let api = format!(
        "[services.api]\nstable = 'v1'\ncanary = 'v2'\n[services.api.backends]\nv1.endpoints = ['http://{0}']\nv2.endpoints = ['http://{0}']\n",
        backend.address
    );
    web.admin(&format!("credentials = '{}'\n{admin}", file.display())).to_string() + &api
}

impl Setup {
    fn new(credentials: &str) -> Self {
        Self::with(credentials, "", false)
    }

    fn with(credentials: &str, admin: &str, notices: bool) -> Self {
        let (backend, folder) = (Backend::named("v1"), tempfile::tempdir().unwrap());
        std::fs::write(folder.path().join("credentials.toml"), credentials).unwrap();
        let file = folder.path().join("tidegate.toml");
        std::fs::write(&file, config(&backend, folder.path(), admin)).unwrap();
        Self { tidegate: Tidegate::start_from(&file, notices), _backend: backend, folder }
    }

    fn ask(&self, token: &Token, method: &str, path: &str, body: &str) -> Response {
        self.tidegate.ask_with(&bearer(token.reveal()), method, path, body)
    }

    fn write(&self, credentials: &str) {
        let new = self.folder.path().join("new.toml");
        std::fs::write(&new, credentials).unwrap();
        std::fs::rename(new, self.folder.path().join("credentials.toml")).unwrap();
    }
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

/// Everything that there is to be asked, and the scope that it needs.
const ASKED: [(&str, &str, &str, &str); 16] = [
    ("read", "GET", "/api/v1/services", ""),
    ("read", "GET", "/api/v1/services/web", ""),
    ("read", "GET", "/metrics", ""),
    ("read", "GET", "/nothing", ""),
    ("operate", "PUT", "/api/v1/services/web/weight", r#"{"canary": 1}"#),
    ("operate", "POST", "/api/v1/services/web/start", ""),
    ("operate", "POST", "/api/v1/services/web/retry", ""),
    ("operate", "POST", "/api/v1/services/web/guards-only", ""),
    ("operate", "POST", "/api/v1/services/web/promote", ""),
    ("operate", "POST", "/api/v1/services/web/pause", ""),
    ("operate", "POST", "/api/v1/services/web/resume", ""),
    ("operate", "POST", "/api/v1/services/web/rollback", ""),
    ("operate", "POST", "/api/v1/services/web/abort", ""),
    ("operate", "POST", "/api/v1/services/web/flip", ""),
    ("operate", "POST", "/api/v1/services/web/undo", ""),
    ("admin", "POST", "/api/v1/reload", ""),
];

#[test]
fn a_token_opens_what_its_scope_covers_and_nothing_else_does() {
    let tokens = Scope::ALL.map(|scope| (scope.name(), Token::new().unwrap()));
    let credentials: String =
        tokens.iter().map(|(scope, token)| credential(scope, token, scope, "")).collect();
    let setup = Setup::with(&credentials, "open = ['/livez']", false);
    for (needed, method, path, body) in ASKED {
        let nobody = setup.tidegate.ask_with("", method, path, body);
        // Some requests without a token are all that an address gets an answer in words to.
        assert!([401, 429].contains(&nobody.status), "{method} {path}: {}", nobody.status);
        for (scope, token) in &tokens {
            let status = setup.ask(token, method, path, body).status;
            let rank = |name: &str| Scope::ALL.iter().position(|scope| scope.name() == name);
            let may = rank(scope) >= rank(needed);
            assert_eq!(status != 403, may, "{scope} {method} {path}: {status}");
            assert!(status != 401 && status != 429, "{scope} {method} {path}: {status}");
        }
    }
    assert_eq!(setup.tidegate.ask("GET", "/livez", "").status, 200);
    assert_ne!(setup.tidegate.ask("GET", "/readyz", "").status, 200);
    let detail = problem(&setup.ask(&tokens[0].1, "POST", "/api/v1/services/web/flip", ""), 403);
    assert_eq!(detail, "`read` has the scope `read`, and this needs `operate`");
}

#[test]
fn whoever_is_not_known_is_told_how_to_be_and_no_secret_is_said_again() {
    let (right, wrong) = (Token::new().unwrap(), Token::new().unwrap());
    let setup = Setup::new(&credential("ci", &right, "read", ""));
    let ask = |fields: &str| setup.tidegate.ask_with(fields, "GET", "/api/v1/services", "");
    let nothing = ask("");
    problem(&nothing, 401);
    assert_eq!(nothing.fields("www-authenticate"), ["Bearer realm=\"tidegate\""]);
    for fields in [
        bearer(wrong.reveal()),
        bearer(&right.reveal()[..70]),
        bearer(""),
        format!("Authorization: Basic {}\r\n", right.reveal()),
        format!("Authorization: {}\r\n", right.reveal()),
    ] {
        let response = ask(&fields);
        problem(&response, 401);
        assert_eq!(
            response.fields("www-authenticate"),
            ["Bearer realm=\"tidegate\", error=\"invalid_token\""]
        );
        assert!(!response.head.contains(right.reveal()) && !response.text().contains("tidegate_"));
    }
    assert_eq!(ask(&bearer(right.reveal())).status, 200);
    let scrape = setup.tidegate.scrape();
    assert_eq!(scrape.sum("tidegate_admin_refused_total", &[("reason", "no_credentials")]), 1.0);
    assert_eq!(scrape.sum("tidegate_admin_refused_total", &[("reason", "wrong_credentials")]), 5.0);
}

#[test]
fn failures_are_limited_and_the_right_token_is_always_heard() {
    let right = Token::new().unwrap();
    let setup = Setup::new(&credential("ci", &right, "operate", ""));
    let statuses: Vec<_> = (0..30).map(|_| setup.tidegate.ask("GET", "/api/v1/services", "")).collect();
    let refused = statuses.iter().filter(|response| response.status == 401).count();
    // One more may be due for each six seconds that this takes.
    assert!((10..15).contains(&refused), "{refused}");
    let last = statuses.last().unwrap();
    problem(last, 429);
    assert!(last.fields("retry-after")[0].parse::<u64>().unwrap() <= 6);
    assert_eq!(setup.ask(&right, "POST", "/api/v1/services/web/flip", "").status, 200);
}

#[test]
fn a_credential_can_be_for_some_services() {
    let token = Token::new().unwrap();
    let setup = Setup::with(&credential("ci", &token, "admin", "services = ['web']"), "open = []", false);
    let list: Value = serde_json::from_slice(&setup.ask(&token, "GET", "/api/v1/services", "").body).unwrap();
    let names: Vec<_> = list["services"].as_array().unwrap().iter().map(|s| s["name"].clone()).collect();
    assert_eq!(names, ["web"]);
    assert_eq!(setup.ask(&token, "POST", "/api/v1/services/web/flip", "").status, 200);
    // Whether there is one or not.
    for (method, path) in [
        ("GET", "/api/v1/services/api"),
        ("POST", "/api/v1/services/api/flip"),
        ("POST", "/api/v1/services/%61pi/flip"),
        ("POST", "/api/v1/services/nobody/flip"),
    ] {
        let detail = problem(&setup.ask(&token, method, path, ""), 403);
        assert!(detail.starts_with("`ci` may have nothing to do with service `"), "{detail}");
    }
    // What is about all of them.
    problem(&setup.ask(&token, "GET", "/metrics", ""), 403);
    problem(&setup.ask(&token, "POST", "/api/v1/reload", ""), 403);
}

#[test]
fn credentials_change_by_a_reload_and_a_wrong_file_changes_nothing() {
    let (old, new) = (Token::new().unwrap(), Token::new().unwrap());
    let setup = Setup::new(&credential("ci", &old, "admin", ""));
    setup.write(&format!("{}x = 1\n", credential("ci", &new, "admin", "")));
    let said = problem(&setup.ask(&old, "POST", "/api/v1/reload", ""), 422);
    assert!(said.contains("credentials.toml") && said.contains("unknown key"), "{said}");
    assert_eq!(setup.ask(&new, "GET", "/api/v1/services", "").status, 401);
    setup.write(&credential("ci", &new, "admin", ""));
    let changes = setup.ask(&old, "POST", "/api/v1/reload", "");
    assert_eq!(changes.text(), r#"{"changes":["[admin] changed"]}"#);
    assert_eq!(setup.ask(&new, "GET", "/api/v1/services", "").status, 200);
    assert_eq!(setup.ask(&old, "GET", "/api/v1/services", "").status, 401);
}

#[test]
fn nobody_goes_on_listening_with_a_token_that_is_not_valid_any_more() {
    let [revoked, narrowed, kept] = [(); 3].map(|()| Token::new().unwrap());
    let file = |revoked: &str, services: &str| {
        revoked.to_owned()
            + &credential("anna", &narrowed, "read", services)
            + &credential("ci", &kept, "admin", "")
    };
    let setup = Setup::new(&file(&credential("bob", &revoked, "read", ""), ""));
    let open = |token: &Token, fields: &str, path: &str| {
        let mut client = Raw::connect(setup.tidegate.admin);
        client.send(format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\n{fields}{}\r\n",
            bearer(token.reveal())
        ));
        client
    };
    let stream = |token: &Token| {
        let mut client = open(token, "", "/api/v1/events");
        let head = client.wire.read_head().unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
        client
    };
    let [mut of_bob, mut of_anna, mut of_ci] = [&revoked, &narrowed, &kept].map(stream);
    let service = setup.ask(&revoked, "GET", "/api/v1/services/web", "");
    let fields = format!("If-None-Match: {}\r\n", service.fields("etag")[0]);
    let mut waits = open(&revoked, &fields, "/api/v1/services/web?wait=60s");
    setup.write(&file("", "services = ['web']"));
    assert_eq!(setup.ask(&kept, "POST", "/api/v1/reload", "").status, 200);
    for ended in [&mut of_bob, &mut of_anna] {
        // The last of its chunks.
        while ended.wire.read_line().unwrap() != "0" {}
    }
    assert_eq!(setup.ask(&kept, "POST", "/api/v1/services/web/flip", "").status, 200);
    problem(&waits.response(), 401);
    loop {
        let line = of_ci.wire.read_line().expect("it goes on");
        if line.contains("flipped") {
            break;
        }
    }
}

#[test]
fn a_changed_file_of_credentials_is_noticed() {
    let (old, new) = (Token::new().unwrap(), Token::new().unwrap());
    let setup = Setup::with(&credential("ci", &old, "read", ""), "", true);
    setup.write(&credential("ci", &new, "read", ""));
    eventually(|| setup.ask(&new, "GET", "/api/v1/services", "").status, |status| *status == 200);
    assert_ne!(setup.ask(&old, "GET", "/api/v1/services", "").status, 200);
}

#[test]
fn a_page_whose_name_leads_here_gets_nothing() {
    let backend = Backend::named("v1");
    let tidegate = Tidegate::start(Web::new(backend.address).admin("hosts = ['tidegate.test']"));
    let ask = |target: &str, host: &str| {
        let mut client = Raw::connect(tidegate.admin);
        client.send(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        client.response()
    };
    for host in
        ["localhost", "localhost:9090", "127.0.0.1:80", "[::1]:9090", "tidegate.test", "TIDEGATE.test:1"]
    {
        assert_eq!(ask("/api/v1/services", host).status, 200, "{host}");
    }
    for host in ["evil.test", "localhost.evil.test", "evil.test:80", "user@evil.test", "a b", ""] {
        let response = ask("/api/v1/services", host);
        assert!([400, 421].contains(&response.status), "{host}: {}", response.status);
    }
    problem(&ask("/livez", "evil.test"), 421);
    problem(&ask("http://evil.test/api/v1/services", "localhost"), 421);
    assert_eq!(ask("http://localhost/api/v1/services", "localhost").status, 200);
    let refused = tidegate.scrape().sum("tidegate_admin_refused_total", &[("reason", "host")]);
    assert!(refused >= 3.0, "{refused}");
}

#[test]
fn no_answer_is_anything_for_a_browser() {
    let backend = Backend::named("v1");
    let tidegate = Tidegate::start(Web::new(backend.address));
    for (method, path) in [
        ("GET", "/api/v1/services"),
        ("GET", "/livez"),
        ("GET", "/metrics"),
        ("GET", "/no"),
        ("POST", "/livez"),
    ] {
        let response = tidegate.ask(method, path, "");
        let policy = response.fields("content-security-policy");
        assert!(policy.len() == 1 && policy[0].starts_with("default-src 'none'; "), "{path}: {policy:?}");
        assert_eq!(response.fields("x-content-type-options"), ["nosniff"], "{path}");
        assert_eq!(response.fields("x-frame-options"), ["DENY"], "{path}");
        assert_eq!(response.fields("referrer-policy"), ["no-referrer"], "{path}");
        assert_eq!(response.fields("cache-control"), ["no-store"], "{path}");
        assert_eq!(response.fields("cross-origin-resource-policy"), ["same-origin"], "{path}");
    }
}

/// An admin side that speaks TLS, and the authority that operators' certificates come from.
struct Secured {
    _backend: Backend,
    servers: Authority,
    operators: Authority,
    tidegate: Tidegate,
    _files: Files,
}

impl Secured {
    fn new(client_auth: &str, credentials: &str) -> Self {
        let (servers, operators) = (Authority::new("servers"), Authority::new("operators"));
        let (files, backend) = (Files::new(), Backend::named("v1"));
        let pair = files.pair("admin", &servers.issue(&["web.test"]));
        let ca = files.write("operators.pem", &operators.pem);
        let who = match credentials {
            "" => String::new(),
            text => format!("credentials = '{}'\n", files.write("credentials.toml", text).display()),
        };
        let tls = format!(
            "tls = {{ certificates = [{{ {pair} }}], client_auth = '{client_auth}', client_ca = '{}' }}",
            ca.display()
        );
        let web = Web::new(backend.address).canary(backend.address);
        let web = web.admin(&format!("hosts = ['web.test']\n{who}{tls}")).admin("open = []");
        let file = files.write("tidegate.toml", &web.to_string());
        let tidegate = Tidegate::start_from(&file, false);
        Self { _backend: backend, servers, operators, tidegate, _files: files }
    }

    fn ask(&self, dialect: &Dialect, fields: &str, method: &str, path: &str) -> Result<String, String> {
        let mut stream: Secure = dialect.connect(self.tidegate.admin, "web.test")?;
        let head = format!("{method} {path} HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n{fields}\r\n");
        stream.write_all(head.as_bytes()).map_err(|error| error.to_string())?;
        let mut response = Vec::new();
        stream.read_to_end(&mut response).map_err(|error| error.to_string())?;
        let response = String::from_utf8_lossy(&response).into_owned();
        Ok(response.split(' ').nth(1).unwrap_or_default().to_owned())
    }
}

#[test]
fn with_an_authority_alone_whoever_it_knows_may_do_everything() {
    let secured = Secured::new("required", "");
    let known = Dialect::showing(&secured.servers, &secured.operators.issue(&["anna"]));
    let reload = secured.ask(&known, "", "POST", "/api/v1/services/web/flip");
    assert_eq!(reload.as_deref(), Ok("200"));
    let stranger = Dialect::showing(&secured.servers, &Authority::new("others").issue(&["anna"]));
    secured.ask(&stranger, "", "GET", "/livez").unwrap_err();
    secured.ask(&Dialect::trusting(&secured.servers), "", "GET", "/livez").unwrap_err();
    // The side that speaks TLS speaks nothing else.
    let mut plain = Raw::connect(secured.tidegate.admin);
    plain.send("GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(plain.try_response_to("GET").is_none());
}

#[test]
fn certificates_and_tokens_can_stand_side_by_side() {
    let token = Token::new().unwrap();
    let credentials = credential("ci", &token, "read", "")
        + "[[credentials]]\nname = 'anna'\ncertificate = 'anna.test'\nscope = 'operate'\n";
    let secured = Secured::new("optional", &credentials);
    let show = |name: &str| Dialect::showing(&secured.servers, &secured.operators.issue(&[name]));
    let flip = |dialect: &Dialect, fields: &str| {
        secured.ask(dialect, fields, "POST", "/api/v1/services/web/flip").unwrap()
    };
    assert_eq!(flip(&show("anna.test"), ""), "200");
    assert_eq!(flip(&show("bob.test"), ""), "401");
    // Who shows a token is who it says, certificate or not.
    assert_eq!(flip(&show("anna.test"), &bearer(token.reveal())), "403");
    let nobody = Dialect::trusting(&secured.servers);
    assert_eq!(flip(&nobody, ""), "401");
    let read = |fields: &str| secured.ask(&nobody, fields, "GET", "/api/v1/services").unwrap();
    assert_eq!(read(&bearer(token.reveal())), "200");
    assert_eq!(read(""), "401");
}

#[test]
fn an_address_that_others_reach_is_not_opened_by_mistake() {
    let backend = Backend::named("v1");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tidegate.toml");
    let far = Web::new(backend.address)
        .to_string()
        .replace("[admin]\naddress = '127.0.0.1:0'", "[admin]\naddress = '0.0.0.0:0'");
    std::fs::write(&file, &far).unwrap();
    let said = render(&load(&file).unwrap_err());
    assert!(said.contains("lets anyone who reaches it move traffic"), "{said}");
    std::fs::write(&file, far.replace("[admin]", "[admin]\nanyone_may_move_traffic = true")).unwrap();
    let tidegate = Tidegate::start_from(&file, false);
    assert_eq!(tidegate.ask("GET", "/api/v1/services", "").status, 200);
}
