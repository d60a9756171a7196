//! The tests that look at Tidegate from outside, in one binary, because each binary is linked anew. Only the demo's
//! and those of memory have one of their own.
//!
//! | module | what is tested |
//! | --- | --- |
//! | `access_log` | what is written about each exchange, and that nobody waits for it |
//! | `admin_access` | who may use the admin API, and for what |
//! | `admin_api` | the admin API: every route, and every way to be told off by it |
//! | `balance` | which endpoint of a backend gets a request |
//! | `admin_events` | events as they happen, and how many may watch |
//! | `admin_openapi` | the document of the admin API, held against what there is |
//! | `admin_writes` | writes through it: recorded, on condition, once; and whoever waits for a change |
//! | `assignment` | who decides which version a request gets, before any weight does |
//! | `checks` | checks of what is measured elsewhere, and of providers that do not answer |
//! | `cli` | the program as people start it: words, exit codes, signals |
//! | `clocks` | a wall clock that goes ahead under a rollout |
//! | `combinations` | the same exchanges with HTTP/1.1 and HTTP/2 on either side |
//! | `config` | what a user is told about each mistake in a configuration |
//! | `dark` | canaries that are judged by copies before they have any user |
//! | `disk` | rollouts on a disk that is full, read-only, corrupt or taken |
//! | `drain` | how it ends: nobody who behaves is cut off |
//! | `evidence` | what a rollout is judged by, as far as the data plane tells it |
//! | `failures` | what happens when a connection breaks, and who is blamed for it |
//! | `grpc` | gRPC calls, and what becomes of those that fail |
//! | `filters` | what a route changes on the way, and where it sends clients |
//! | `floods` | HTTP/2 as a weapon: the connection ends, the process does not grow |
//! | `freezes` | windows in which nothing moves forward, and what does nevertheless |
//! | `forwarding` | whose word is taken on who the client is |
//! | `guards_only` | a fix that goes out while stable is down |
//! | `h1` | HTTP/1.1 and 1.0 on both sides: framing, reuse, streaming |
//! | `h2` | HTTP/2 with prior knowledge, on the same port as HTTP/1.1 |
//! | `h2_backends` | connections to HTTP/2 backends: shared, limited, left |
//! | `hanging` | rollouts on a disk that does not answer |
//! | `headers` | what changes in a head on its way through, and what is refused |
//! | `health` | endpoints are asked whether they are well |
//! | `lost_answers` | verbs of the command line whose answers are lost, or that are refused for now |
//! | `manual` | what the command line says of itself: help in docs/cli.md, completions, manual pages |
//! | `hook_programs` | programs in the place of hooks' URLs |
//! | `hooks` | who is asked before a rollout goes on, and who is told |
//! | `mirror` | copies of requests to stable, for the canary, and that nobody waits for them |
//! | `injection` | the process is killed at each place in turn where a kill might matter, and goes on |
//! | `interop` | other people's clients in front of it, and other people's servers behind it |
//! | `notifications` | people are told what happens to rollouts, and nobody waits for it |
//! | `nginx` | the same with somebody else's servers behind it |
//! | `manifests` | the manifests in k8s/ and the configuration that they mount fit together |
//! | `operate` | the verbs of the command line, and the exit codes that pipelines go by |
//! | `outlier` | endpoints whose requests fail are passed over for a while |
//! | `plan` | what a plan can show with the traffic there is |
//! | `killing` | the process is killed at any instant, and goes on where it was |
//! | `limits` | how much is let in: of connections, heads, bodies and requests |
//! | `proxy_protocol` | who may say whose connection it is, and who is believed |
//! | `retry` | requests that have failed and are tried again |
//! | `readme` | what README.md tells people to copy |
//! | `probes` | what a canary has to answer before anybody is sent there |
//! | `pipelines` | docs/pipelines.md, its commands run as GitHub and GitLab would |
//! | `pool` | how much a backend is given at a time |
//! | `recording` | rollouts that are recorded, and that their replays come to the same verdicts |
//! | `reload` | a configuration that changes while requests are on |
//! | `reload_rollouts` | the same while a rollout is on: which goes on, and what it does not allow |
//! | `resending` | what is sent again when a request is tried again |
//! | `resolve` | names of endpoints, and endpoints that come and go |
//! | `rest` | connections that have been idle for a while, and what they cost |
//! | `restart` | what outlives the process |
//! | `rollout` | whole rollouts with real requests |
//! | `routing` | which service a request gets to |
//! | `schemas` | what every version has saved is gone on with |
//! | `shielding` | users who are shielded from the canary's failures |
//! | `spans` | spans of sampled exchanges: what they tell, what backends are told, and that nobody waits |
//! | `splice` | large bodies, which take a short way through the kernel |
//! | `simulate` | plans in simulated time, and recordings judged again |
//! | `send_proxy_protocol` | backends that are told whose each connection is |
//! | `smuggling` | requests that two readers could read in two ways |
//! | `sticky` | clients that stay where they were put |
//! | `support` | what the tests are made of |
//! | `telemetry` | what is counted: exactly what happened |
//! | `tidy` | the rules of the source: who may use whom, and what a file looks like |
//! | `timeouts` | what happens to those who take too long |
//! | `upgrade` | WebSockets and other tunnels |
//! | `tls` | TLS between clients and the proxy: certificates, versions, client certificates, reload |
//! | `upstream_tls` | TLS between the proxy and its backends: whom it believes, and who is blamed |
//! | `users` | pinned clients: one counts once, however many requests it makes |
//! | `waiting` | what a rollout waits for beside evidence: people, time |
//! | `weights` | the split: how even it is, and when a change of it is seen |

#![allow(unreachable_pub, reason = "`pub` marks what a module of a test binary offers to the others")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails, helpers included")]

mod access_log;
mod admin_access;
mod admin_api;
mod admin_events;
mod admin_openapi;
mod admin_writes;
mod assignment;
mod balance;
mod checks;
mod cli;
mod clocks;
mod combinations;
mod config;
mod dark;
mod disk;
mod drain;
mod evidence;
mod failures;
mod filters;
mod floods;
mod forwarding;
mod freezes;
mod grpc;
mod guards_only;
mod h1;
mod h2;
mod h2_backends;
mod hanging;
mod headers;
mod health;
mod hook_programs;
mod hooks;
mod injection;
mod interop;
mod killing;
mod limits;
mod lost_answers;
mod manifests;
mod manual;
mod mirror;
mod nginx;
mod notifications;
mod operate;
mod outlier;
mod pipelines;
mod plan;
mod pool;
mod probes;
mod proxy_protocol;
mod readme;
mod recording;
mod reload;
mod reload_rollouts;
mod resending;
mod resolve;
mod rest;
mod restart;
mod retry;
mod rollout;
mod routing;
mod schemas;
mod send_proxy_protocol;
mod shielding;
mod simulate;
mod smuggling;
mod spans;
mod splice;
mod sticky;
mod support;
mod telemetry;
mod tidy;
mod timeouts;
mod tls;
mod upgrade;
mod upstream_tls;
mod users;
mod waiting;
mod weights;

use std::{collections::BTreeSet, fs, path::Path};

#[test]
fn every_file_here_is_a_module_and_in_the_table() {
    let here = Path::new("tests/it");
    let main = fs::read_to_string(here.join("main.rs")).unwrap();
    let entries = here.read_dir().unwrap().map(|entry| entry.unwrap().path());
    let names = entries.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned());
    for name in names.filter(|name| name != "main").collect::<BTreeSet<_>>() {
        assert!(main.contains(&format!("\nmod {name};\n")), "`mod {name};` is missing in tests/it/main.rs");
        assert!(main.contains(&format!("\n//! | `{name}` |")), "`{name}` is missing in the table");
    }
}
