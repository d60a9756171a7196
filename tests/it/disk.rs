//! What becomes of rollouts on a disk that is full, read-only, corrupt or taken.

use std::fs;

use serde_json::Value;

use crate::{
    restart::{BY_HAND, Site},
    rollout::{Load, events, may_rise},
    support::{Backend, Tidegate, Web, eventually, reply},
};

#[test]
fn a_corrupt_record_gives_way_to_the_one_before_and_it_is_said() {
    let site = Site::new();
    let tidegate = site.stepping();
    site.stop(tidegate);
    // The last save was of evidence alone, so the one before says the same.
    fs::write(site.file("state.json"), "{\"schema\":1,").unwrap();
    let tidegate = site.start(BY_HAND);
    let status = tidegate.status();
    assert_eq!((&status["rollout"]["phase"], &status["weight"]), (&"stepping".into(), &20.0.into()));
    let said = events(&status);
    assert!(said.iter().any(|event| event.contains("state.json is corrupt at byte 0")), "{said:#?}");
    tidegate.api("POST", "web/promote", "");
    site.stop(tidegate);
    // With the record of a transition lost nobody knows what the canary may have: it goes back.
    fs::write(site.file("state.json"), "").unwrap();
    let older = fs::read(site.file("state.json.last")).unwrap();
    let tidegate = site.start(BY_HAND);
    let went_on = tidegate.status();
    assert_eq!(went_on["weight"], 50.0, "evidence alone was lost");
    tidegate.api("POST", "web/pause", "");
    site.stop(tidegate);
    fs::write(site.file("state.json"), "").unwrap();
    fs::write(site.file("state.json.last"), older).unwrap();
    let tidegate = site.start(BY_HAND);
    let status = tidegate.status();
    assert_eq!((&status["rollout"]["phase"], &status["weight"]), (&"rolled_back".into(), &0.0.into()));
    assert_eq!(status["rollout"]["reason"]["kind"], "cannot_go_on");
    site.stop(tidegate);
    // Without any record the roles are those of the history.
    fs::write(site.file("state.json"), "").unwrap();
    fs::write(site.file("state.json.last"), "").unwrap();
    let tidegate = site.start(BY_HAND);
    let status = tidegate.status();
    assert_eq!(
        (&status["stable"], &status["rollout"], &status["weight"]),
        (&"v1".into(), &Value::Null, &0.0.into())
    );
}

#[test]
fn a_line_of_the_history_that_is_torn_is_passed_over_and_it_is_said() {
    let site = Site::new();
    let tidegate = site.stepping();
    let numbers = |tidegate: &Tidegate| -> Vec<u64> {
        let page = tidegate.api("GET", "web/history", "");
        page["entries"].as_array().unwrap().iter().map(|entry| entry["seq"].as_u64().unwrap()).collect()
    };
    let torn = numbers(&tidegate)[0];
    site.stop(tidegate);
    let file = fs::OpenOptions::new().write(true).open(site.file("history-000000000001.jsonl")).unwrap();
    file.set_len(file.metadata().unwrap().len() - 10).unwrap();
    let tidegate = site.start(BY_HAND);
    let status = tidegate.status();
    assert_eq!((&status["rollout"]["phase"], &status["weight"]), (&"stepping".into(), &20.0.into()));
    let said = events(&status);
    let says = |event: &String| {
        event.contains("history-000000000001.jsonl is corrupt at byte")
            && event.contains("the last line has no end")
    };
    assert!(said.iter().any(says), "{said:#?}");
    tidegate.api("POST", "web/promote", "");
    let numbers = numbers(&tidegate);
    assert!(!numbers.contains(&torn) && numbers.contains(&(torn - 1)) && numbers[0] > torn, "{numbers:?}");
}

#[test]
fn what_cannot_be_saved_is_no_advance_and_a_way_back_all_the_same() {
    let site = Site::new();
    let tidegate = site.stepping();
    // A file cannot be written where a folder is.
    let in_the_way = site.file("state.json.next");
    eventually(|| fs::create_dir(&in_the_way).is_ok(), |made| *made);
    let refused = tidegate.ask("POST", "/api/v1/services/web/promote", "");
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(refused.text().contains("this cannot be saved, so nothing has changed"), "{}", refused.text());
    let status = tidegate.status();
    assert_eq!((&status["weight"], &status["rollout"]["step"]), (&20.0.into(), &0.into()));
    assert!(status["unsaved"].as_str().unwrap().contains("state.json.next"), "{status:#}");
    tidegate.scrape().expect("tidegate_store_unsaved", &[("service", "web")], 1.0);
    assert_eq!(tidegate.ask("GET", "/readyz", "").status, 200);
    assert_eq!(tidegate.client().get("/").status, 200);
    let said = events(&status);
    assert!(
        said.last().unwrap().starts_with("this cannot be saved, and so does not happen: step 2 began"),
        "{said:#?}"
    );
    // The way back happens, and is saved as soon as that works.
    let status = tidegate.api("POST", "web/rollback", "");
    assert_eq!((&status["weight"], &status["stable"]), (&0.0.into(), &"v1".into()));
    let status = tidegate.wait_for_phase("rolled_back");
    assert!(status["unsaved"].is_string());
    let refused = tidegate.ask("POST", "/api/v1/services/web/start", "");
    assert_eq!(refused.status, 503);
    assert_eq!(tidegate.status()["rollout"]["phase"], "rolled_back", "as before");
    let refused = tidegate.ask("PUT", "/api/v1/services/web/weight", "{\"canary\": 10}");
    assert_eq!((refused.status, &tidegate.status()["weight"]), (503, &0.0.into()));
    fs::remove_dir(&in_the_way).unwrap();
    let status = eventually(|| tidegate.status(), |status| status["unsaved"].is_null());
    assert_eq!(events(&status).last().unwrap(), "what happens can be saved again");
    tidegate.scrape().expect("tidegate_store_unsaved", &[("service", "web")], 0.0);
    tidegate.set_weight(10.0);
    site.stop(tidegate);
    let tidegate = site.start(BY_HAND);
    let status = tidegate.status();
    assert_eq!((&status["weight"], &status["rollout"]["phase"]), (&10.0.into(), &"rolled_back".into()));
}

#[test]
fn a_start_that_cannot_be_saved_has_never_been() {
    let (site, outside) = (Site::new(), Backend::answering(|_| reply("204 No Content", &[], "")));
    let hook = format!("[[services.web.rollout.hooks]]\nat = 'event'\nurl = 'http://{}/'", outside.address);
    let tidegate = site.start(&format!("{BY_HAND}\n{hook}\n"));
    let before = tidegate.api("PUT", "web/weight", "{\"canary\": 10}");
    let start = |seen: &Value| {
        let fields = format!("If-Match: \"{}\"\r\n", seen["revision"]);
        tidegate.ask_with(&fields, "POST", "/api/v1/services/web/start", "")
    };
    let in_the_way = site.file("state.json.next");
    eventually(|| fs::create_dir(&in_the_way).is_ok(), |made| *made);
    for _ in 0..2 {
        // With the revision that it had before the first try.
        assert_eq!(start(&before).status, 503);
        let status = tidegate.status();
        assert_eq!(["revision", "weight", "rollout"].map(|field| status[field] == before[field]), [true; 3]);
    }
    fs::remove_dir(&in_the_way).unwrap();
    eventually(|| tidegate.status(), |status| status["unsaved"].is_null());
    let started = start(&before);
    assert_eq!(started.status, 200, "{}", started.text());
    let status = tidegate.wait_for_phase("stepping");
    assert!(status["revision"].as_u64() > before["revision"].as_u64());
    let id = status["rollout"]["id"].clone();
    let seen = eventually(|| outside.requests(), |seen| seen.len() >= 2);
    let told = seen.iter().map(|seen| serde_json::from_slice::<Value>(&seen.body).unwrap());
    let told: Vec<_> = told.map(|call| (call["event"].clone(), call["rollout"].clone())).collect();
    assert_eq!(told, [("started".into(), id.clone()), ("stepped".into(), id)]);
}

#[test]
fn a_flip_back_waits_for_no_disk_where_there_has_been_no_rollout() {
    let site = Site::new();
    let tidegate = site.start(BY_HAND);
    tidegate.api("POST", "web/flip", "");
    site.stop(tidegate);
    let tidegate = site.start(BY_HAND);
    assert_eq!(tidegate.status()["stable"], "v2");
    let in_the_way = site.file("state.json.next");
    eventually(|| fs::create_dir(&in_the_way).is_ok(), |made| *made);
    let status = tidegate.api("POST", "web/flip", "");
    assert_eq!((&status["stable"], &status["rollout"]), (&"v1".into(), &Value::Null));
    assert_eq!(tidegate.client().get("/").text(), "v1");
    // Forward again is an advance.
    let refused = tidegate.ask("POST", "/api/v1/services/web/flip", "");
    assert_eq!((refused.status, &tidegate.status()["stable"]), (503, &"v1".into()));
    fs::remove_dir(&in_the_way).unwrap();
    eventually(|| tidegate.status(), |status| status["unsaved"].is_null());
    site.stop(tidegate);
    assert_eq!(site.saved()["position"]["stable"], "v1");
}

#[test]
fn a_canary_that_became_ready_when_nothing_could_be_saved_is_not_forgotten() {
    let site = Site::new();
    let tidegate = site.stepping();
    tidegate.api("POST", "web/rollback", "");
    tidegate.wait_for_phase("rolled_back");
    site.stop(tidegate);
    // In preparing at the restart, and then nothing can be saved for a while.
    let refusing = crate::support::Refusing::new();
    let web = |canary| {
        let web = Web::new(site.stable.address).canary(canary);
        site.toml(&web.table("rollout", BY_HAND))
    };
    let tidegate = Tidegate::start(web(refusing.address));
    tidegate.api("POST", "web/start", "");
    tidegate.wait_for_phase("preparing");
    site.stop(tidegate);
    let tidegate = Tidegate::start(web(refusing.address));
    let in_the_way = site.file("state.json.next");
    eventually(|| fs::create_dir(&in_the_way).is_ok(), |made| *made);
    let canary = refusing.open("v2");
    eventually(|| tidegate.status(), |status| status["unsaved"].is_string());
    assert_eq!(tidegate.status()["rollout"]["phase"], "preparing");
    fs::remove_dir(&in_the_way).unwrap();
    tidegate.wait_for_phase("stepping");
    drop((tidegate, canary));
}

#[test]
fn a_bad_canary_is_rolled_back_while_nothing_can_be_saved() {
    let site = Site::new();
    let bad = Backend::answering(|_| reply("500 Internal Server Error", &[], "bad"));
    let web = Web::new(site.stable.address).canary(bad.address).table("rollout", BY_HAND);
    let tidegate = Tidegate::start(site.toml(&web));
    tidegate.api("POST", "web/start", "");
    tidegate.wait_for_phase("stepping");
    let in_the_way = site.file("state.json.next");
    eventually(|| fs::create_dir(&in_the_way).is_ok(), |made| *made);
    let load = Load::on(&tidegate);
    let status = tidegate.wait_for_phase("rolled_back");
    drop(load);
    assert_eq!((&status["weight"], &status["rollout"]["reason"]["kind"]), (&0.0.into(), &"verdict".into()));
    fs::remove_dir(&in_the_way).unwrap();
    site.stop(tidegate);
    assert_eq!(site.saved()["rollout"]["phase"]["phase"], "rolled_back");
}

#[test]
fn a_weight_that_the_budget_lets_rise_is_saved_before_it_is_given() {
    let site = Site::new();
    let web = Web::new(site.stable.address).canary(site.canary.address);
    let web = web.table("rollout", "steps = [{ weight = 50, hold = '1h' }]");
    let tidegate =
        Tidegate::start(site.toml(&web.table("rollout.analysis", "latency_margin = false\nmax_harm = 1")));
    tidegate.api("POST", "web/start", "");
    tidegate.wait_for_phase("stepping");
    let in_the_way = site.file("state.json.next");
    eventually(|| fs::create_dir(&in_the_way).is_ok(), |made| *made);
    // At first a bad canary could cost more than there is: it gets less, at once. Then more is known, and it may have
    // more; but that cannot be saved.
    let load = Load::on(&tidegate);
    let lowered = eventually(|| tidegate.status(), may_rise)["weight"].as_f64().unwrap();
    let failures = || tidegate.scrape().sum("tidegate_store_saves_total", &[("result", "failure")]);
    let failed = failures();
    eventually(failures, |failures| *failures > failed + 3.0);
    assert!(tidegate.status()["weight"].as_f64().unwrap() <= lowered);
    fs::remove_dir(&in_the_way).unwrap();
    let status = eventually(|| tidegate.status(), |status| status["weight"].as_f64() > Some(lowered));
    drop(load);
    assert!(status["unsaved"].is_null(), "{status:#}");
    // For a moment in each save there is no file.
    let saved = eventually(|| fs::read(site.file("state.json")).ok(), Option::is_some).unwrap();
    let saved: Value = serde_json::from_slice(&saved).unwrap();
    assert!(saved["body"]["record"]["position"]["weight"].as_f64() > Some(lowered), "{saved:#}");
}

#[test]
fn a_hooks_answer_that_came_when_nothing_could_be_saved_is_not_forgotten() {
    let site = Site::new();
    let (answer, answered) = std::sync::mpsc::channel::<()>();
    let answered = std::sync::Mutex::new(answered);
    let hook = Backend::answering(move |_| {
        answered.lock().unwrap().recv().expect("the test says when it answers");
        reply("204 No Content", &[], "")
    });
    let url = format!("http://{}/", hook.address);
    let hooks =
        format!("{BY_HAND}\n[[services.web.rollout.hooks]]\nat = 'step'\nurl = '{url}'\ntimeout = '1h'\n");
    let tidegate = site.start(&hooks);
    tidegate.api("POST", "web/start", "");
    tidegate.wait_for_phase("stepping");
    tidegate.api("POST", "web/promote", "");
    eventually(|| hook.count(), |asked| *asked == 1);
    let in_the_way = site.file("state.json.next");
    eventually(|| fs::create_dir(&in_the_way).is_ok(), |made| *made);
    answer.send(()).unwrap();
    let refused = "this cannot be saved, and so does not happen: step 2 began";
    let is_refused = |status: &Value| events(status).iter().any(|event| event.starts_with(refused));
    let status = eventually(|| tidegate.status(), is_refused);
    assert_eq!((&status["rollout"]["phase"], &status["weight"]), (&"paused".into(), &20.0.into()));
    fs::remove_dir(&in_the_way).unwrap();
    let status = eventually(|| tidegate.status(), |status| status["rollout"]["step"] == 1);
    assert_eq!((&status["rollout"]["phase"], &status["weight"]), (&"stepping".into(), &50.0.into()));
    assert_eq!(hook.count(), 1, "what was answered is not asked again");
    tidegate.scrape().expect("tidegate_hooks_total", &[("at", "step"), ("result", "success")], 1.0);
}

#[test]
fn a_directory_that_cannot_be_made_ends_the_start() {
    let site = Site::new();
    let file = site.folder.path().join("file");
    fs::write(&file, "").unwrap();
    // Not even root can make a folder in either.
    for path in [file.join("state"), "/proc/tidegate".into()] {
        let toml = format!("{}[store]\npath = '{}'\n", site.web(BY_HAND), path.display());
        let (code, said) = crate::cli::ends(toml);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("error: cannot use the store"), "{said}");
        assert!(said.contains(&format!("cannot make the directory {}", path.display())), "{said}");
    }
}

/// A directory on a disk that is read-only from the start, for the process alone, which takes root.
#[test]
fn what_can_only_be_read_is_gone_on_with_and_goes_back_but_not_forward() {
    let Some(unshare) = crate::support::external::program("unshare") else { return };
    let site = Site::new();
    site.stop(site.stepping());
    let before = fs::read(site.file("state.json")).unwrap();
    let config = site.folder.path().join("tidegate.toml");
    fs::write(&config, site.toml(&site.web(BY_HAND))).unwrap();
    let store = site.store();
    let script = r#"mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && exec "${@:2}""#;
    let within = |command: &[&std::ffi::OsStr]| {
        let mut shell = std::process::Command::new(&unshare);
        shell.args(["-m", "bash", "-c", script, "bash"]).arg(&store).args(command);
        shell
    };
    if !within(&["true".as_ref()]).output().is_ok_and(|tried| tried.status.success()) {
        return crate::support::external::missing("the right to mount a file system, which");
    }
    let exe = env!("CARGO_BIN_EXE_tidegate");
    let mut command = within(&[exe.as_ref(), "run".as_ref(), "--config".as_ref(), config.as_ref()]);
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped());
    let program = crate::cli::Program::watched(command.spawn().unwrap());
    let admin = program.admin.unwrap();
    let api = |method: &str, verb: &str| {
        let mut client = crate::support::Raw::connect(admin);
        let path = format!("/api/v1/services/web{verb}");
        client.send(format!("{method} {path} HTTP/1.1\r\nHost: {admin}\r\nContent-Length: 0\r\n\r\n"));
        client.response_to(method)
    };
    let status = || serde_json::from_slice::<Value>(&api("GET", "").body).unwrap();
    let stood = eventually(status, |status| status["unsaved"].is_string());
    assert_eq!((&stood["rollout"]["phase"], &stood["weight"]), (&"stepping".into(), &20.0.into()));
    assert!(stood["unsaved"].as_str().unwrap().contains("read-only"), "{stood:#}");
    let refused = api("POST", "/promote");
    assert!(refused.status == 503 && refused.text().contains("read-only"), "{}", refused.text());
    assert_eq!(crate::support::Raw::connect(program.listener).get("/").status, 200);
    let back = api("POST", "/rollback");
    assert_eq!((back.status, &status()["weight"]), (200, &0.0.into()));
    assert_eq!(fs::read(site.file("state.json")).unwrap(), before);
}

#[test]
fn a_directory_that_is_taken_ends_the_start() {
    let site = Site::new();
    let tidegate = site.start(BY_HAND);
    let toml = site.toml(&site.web(BY_HAND));
    let (code, said) = crate::cli::ends(toml);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("error: cannot use the store"), "{said}");
    let process = std::process::id();
    assert!(said.contains(&format!("another process (number {process}) uses the store")), "{said}");
    site.stop(tidegate);
}

/// A real disk, of 256 KiB: a file system in memory that the process alone sees, which takes root.
#[test]
fn a_disk_that_is_full_or_read_only_stops_no_request() {
    let Some(unshare) = crate::support::external::program("unshare") else { return };
    let site = Site::new();
    let (disk, config) = (site.folder.path().join("disk"), site.folder.path().join("tidegate.toml"));
    fs::create_dir(&disk).unwrap();
    let web = site.web(BY_HAND);
    fs::write(&config, format!("{web}[store]\npath = '{}/state'\n", disk.display())).unwrap();
    // The shell does what it is told on its input, in the same view of the file systems.
    let script = format!(
        "mount -t tmpfs -o size=256k tidegate '{disk}' || exit 9
         '{exe}' run --config '{config}' 2>&1 >/dev/null 3>&- & tidegate=$!
         while read -r command; do eval \"$command\"; echo done >&3; done
         kill -s INT $tidegate; wait $tidegate",
        disk = disk.display(),
        exe = env!("CARGO_BIN_EXE_tidegate"),
        config = config.display(),
    );
    let tried =
        std::process::Command::new(&unshare).args(["-m", "mount", "-t", "tmpfs", "x"]).arg(&disk).output();
    if !tried.is_ok_and(|tried| tried.status.success()) {
        return crate::support::external::missing("the right to mount a file system, which");
    }
    let shell = std::process::Command::new(unshare)
        .args(["-m", "bash", "-c", &format!("exec 3>&1 1>&2; {script}")])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut program = crate::cli::Program::watched(shell);
    let mut to = program.child.stdin.take().unwrap();
    let mut from = std::io::BufReader::new(program.child.stdout.take().unwrap());
    let mut tell = |command: String| {
        use std::io::{BufRead as _, Write as _};
        writeln!(to, "{command}").unwrap();
        let mut line = String::new();
        from.read_line(&mut line).unwrap();
        assert_eq!(line, "done\n", "{command}");
    };
    let admin = program.admin.unwrap();
    let ask = |method: &str, path: &str| {
        let mut client = crate::support::Raw::connect(admin);
        client.send(format!("{method} {path} HTTP/1.1\r\nHost: {admin}\r\nContent-Length: 0\r\n\r\n"));
        client.response_to(method)
    };
    let api = |method: &str, verb: &str| ask(method, &format!("/api/v1/services/web{verb}"));
    let status = || serde_json::from_slice::<Value>(&api("GET", "").body).unwrap();
    assert_eq!(api("POST", "/start").status, 200);
    eventually(status, |status| status["rollout"]["phase"] == "stepping");
    let full = format!("head -c 1m /dev/zero > '{}/ballast' || true", disk.display());
    let remount = |how: &str| format!("mount -o remount,{how} '{}'", disk.display());
    for (spoil, mend, words) in [
        (full, format!("rm '{}/ballast'", disk.display()), "no space is left"),
        (remount("ro"), remount("rw"), "read-only"),
    ] {
        tell(spoil);
        let refused = api("POST", "/promote");
        assert_eq!(refused.status, 503, "{}", refused.text());
        assert!(refused.text().contains(words), "{}", refused.text());
        let now = status();
        assert_eq!(now["weight"], 20.0);
        assert!(now["unsaved"].as_str().unwrap().contains(words), "{now:#}");
        assert_eq!(ask("GET", "/readyz").status, 200);
        assert_eq!(crate::support::Raw::connect(program.listener).get("/").status, 200);
        let back = api("POST", "/rollback");
        assert_eq!((back.status, &status()["weight"]), (200, &0.0.into()));
        tell(mend);
        eventually(status, |status| status["unsaved"].is_null());
        eventually(|| api("POST", "/start").status, |status| *status == 200);
        eventually(status, |status| status["rollout"]["phase"] == "stepping");
    }
    drop(to);
    eventually(|| program.child.try_wait().unwrap(), Option::is_some);
}
