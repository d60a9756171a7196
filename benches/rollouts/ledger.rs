//! What one service's history has to be, whatever happens to the process that writes it.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

/// A request that came to a backend. Times are wall clock, in milliseconds, as the history's are.
#[derive(Clone, Copy)]
pub(crate) struct Arrival {
    /// When its client sent it.
    pub(crate) sent: u64,
    /// When the backend had it.
    pub(crate) arrived: u64,
    /// Which backend: 1 for `v1`, 2 for `v2`.
    pub(crate) version: usize,
}

/// Something that was asked of a service.
pub(crate) struct Command {
    /// Its reason, by which its entry is recognised.
    pub(crate) token: String,
    /// In which life of the process it was sent.
    pub(crate) life: u64,
    /// Whether it was answered with 200.
    pub(crate) acknowledged: bool,
}

/// All that is known of a service.
#[derive(Default)]
pub(crate) struct Ledger {
    /// Its history: the entry of number n is at n - 1.
    pub(crate) entries: Vec<Entry>,
    /// Entries that somebody was shown, and that are still to be looked for.
    pub(crate) seen: BTreeMap<u64, Value>,
    pub(crate) commands: Vec<Command>,
    /// Which rollouts there have been, and who was on trial in each.
    began: HashMap<String, String>,
}

/// An entry of a history.
pub(crate) struct Entry {
    value: Value,
    /// When it happened, and not before what stands before it.
    pub(crate) at: u64,
    /// The backend on trial, if there is one, and the most that it may get, in percent.
    trial: Option<(String, f64)>,
}

impl Entry {
    pub(crate) fn phase(&self) -> &str {
        self.value["phase"]["phase"].as_str().unwrap_or("idle")
    }

    fn rollout(&self) -> Option<&str> {
        self.value["rollout"].as_str()
    }

    fn kind(&self) -> &str {
        self.value["kind"].as_str().unwrap_or_default()
    }

    fn runs(&self) -> bool {
        !["idle", "succeeded", "rolled_back"].contains(&self.phase())
    }

    /// How traffic and rollout stood after it.
    fn standing(&self) -> [&Value; 6] {
        let Value::Object(phase) = &self.value["phase"] else { return [&Value::Null; 6] };
        let of = |key: &str| phase.get(key).unwrap_or(&Value::Null);
        let [stable, canary, weight] = ["stable", "canary", "weight"].map(|key| &self.value[key]);
        [stable, canary, weight, &self.value["rollout"], of("phase"), of("step")]
    }
}

fn seq(entry: &Value) -> u64 {
    entry["seq"].as_u64().unwrap_or_default()
}

/// How far a phase is on the way forward; nothing for the way back.
fn rank(phase: &str) -> Option<u8> {
    match phase {
        "preparing" => Some(0),
        "stepping" | "paused" => Some(1),
        "promoting" => Some(2),
        "baking" => Some(3),
        "succeeded" => Some(4),
        _ => None,
    }
}

impl Ledger {
    /// Takes up the newest entries, the newest first, down to one that is known already. `kills` are the times
    /// of the kills so far.
    ///
    /// # Errors
    /// With what is wrong: something lost, doubled, altered, or in an order in which it cannot have happened.
    pub(crate) fn take_up(&mut self, newest: Vec<Value>, kills: &[u64]) -> Result<(), String> {
        for pair in newest.windows(2) {
            if seq(&pair[0]) != seq(&pair[1]) + 1 {
                return Err(format!("entry {} stands after {}", seq(&pair[0]), seq(&pair[1])));
            }
        }
        let reaches = |number: u64| newest.first().is_some_and(|entry| seq(entry) >= number);
        let known = self.entries.len() as u64;
        if !reaches(known) && known > 0 {
            return Err(format!("entry {known} is lost"));
        }
        if newest.last().is_some_and(|entry| seq(entry) > known + 1) {
            return Err(format!("entry {} is lost", known + 1));
        }
        for entry in newest.into_iter().rev() {
            match self.entries.get(seq(&entry) as usize - 1) {
                Some(known) if known.value != entry => {
                    return Err(format!("this was {}\nand is {entry}", known.value));
                }
                Some(_) => {}
                None => self.add(entry, kills)?,
            }
        }
        Ok(())
    }

    /// Looks for what somebody was shown or told before life `life`.
    ///
    /// # Errors
    /// With what is not there, or is there twice.
    pub(crate) fn look_for(&mut self, life: u64) -> Result<usize, String> {
        let later = self.seen.split_off(&(self.entries.len() as u64 + 1));
        let seen = std::mem::replace(&mut self.seen, later);
        if let Some((number, entry)) =
            seen.iter().find(|(number, entry)| self.entries[**number as usize - 1].value != **entry)
        {
            let now = &self.entries[*number as usize - 1].value;
            return Err(format!("this was shown: {entry}\nand is {now}"));
        }
        let (before, now) = self.commands.drain(..).partition(|command| command.life < life);
        self.commands = now;
        let before: Vec<Command> = before;
        for Command { token, acknowledged, .. } in &before {
            let times = self.entries.iter().filter(|entry| entry.value["reason"] == **token).count();
            if times > 1 || (*acknowledged && times == 0) {
                return Err(format!("{token} (acknowledged: {acknowledged}) is there {times} times"));
            }
        }
        Ok(before.iter().filter(|command| command.acknowledged).count())
    }

    fn add(&mut self, value: Value, kills: &[u64]) -> Result<(), String> {
        let before = self.entries.iter().rev().find(|entry| entry.kind() != "store");
        let at = value["at"].as_u64().unwrap_or_default().max(self.entries.last().map_or(0, |last| last.at));
        let mut entry = Entry { value, at, trial: None };
        if let (Some(id), "preparing") = (entry.rollout(), entry.phase()) {
            let canary = entry.value["canary"].as_str().unwrap_or_default().to_owned();
            self.began.entry(id.to_owned()).or_insert(canary);
        }
        entry.trial = match entry.rollout() {
            Some(id) => {
                let trial = self.began.get(id).ok_or_else(|| format!("{id} was never begun"))?;
                (entry.phase() != "succeeded").then(|| (trial.clone(), exposure(trial, &entry.value)))
            }
            // Roles that were swapped by hand have nobody on trial.
            None if entry.kind() == "flip" => None,
            None => before
                .and_then(|before| before.trial.as_ref())
                .map(|(trial, _)| (trial.clone(), exposure(trial, &entry.value))),
        };
        if let Some(before) = before {
            follows(before, &entry, kills)?;
        }
        self.entries.push(entry);
        Ok(())
    }

    /// Whether any backend on trial has had more than is recorded; `arrivals` in the order of their coming.
    /// Returns how many requests went to one.
    ///
    /// # Errors
    /// With what is too much.
    pub(crate) fn exposed(&self, arrivals: &[Arrival]) -> Result<u64, String> {
        // For each entry, the requests that came while it alone was in force, and those of them on trial.
        let mut counts = vec![(0_u64, 0_u64); self.entries.len()];
        let mut on_trial = 0;
        for arrival in arrivals {
            // Everything that can have been in force when it was assigned. A canary's weight rises after it is
            // recorded, and falls before.
            let first = self.entries.partition_point(|entry| entry.at < arrival.sent).saturating_sub(1);
            let end = self.entries.partition_point(|entry| entry.at <= arrival.arrived);
            let name = format!("v{}", arrival.version);
            let had = |entry: &Entry| match &entry.trial {
                Some((trial, most)) if *trial == name => Some(*most),
                _ => None,
            };
            let candidates = &self.entries[first.min(end)..end];
            on_trial += u64::from(candidates.last().and_then(had).is_some());
            if let [_, ..] = candidates
                && candidates.iter().all(|entry| had(entry) == Some(0.0))
            {
                let [sent, arrived] = [arrival.sent, arrival.arrived];
                let by = &candidates[0].value;
                return Err(format!(
                    "a request from {sent} came to {name} at {arrived}, which by {by} had nothing"
                ));
            }
            if let [only] = candidates
                && only.at < arrival.sent
            {
                let (all, of_trial) = &mut counts[first];
                *all += 1;
                *of_trial += u64::from(had(only).is_some());
            }
        }
        for ((all, of_trial), entry) in counts.into_iter().zip(&self.entries) {
            let Some((trial, most)) = &entry.trial else { continue };
            if is_too_many(of_trial, all, most / 100.0) {
                return Err(format!("{of_trial} of {all} requests came to {trial}, by {}", entry.value));
            }
        }
        Ok(on_trial)
    }

    /// The phase at a time.
    pub(crate) fn phase_at(&self, at: u64) -> &str {
        let next = self.entries.partition_point(|entry| entry.at <= at);
        next.checked_sub(1).map_or("idle", |last| self.entries[last].phase())
    }

    /// How many rollouts ended in a phase.
    pub(crate) fn ended(&self, phase: &str) -> usize {
        let ended = |entry: &&Entry| entry.kind() == "transition" && entry.phase() == phase;
        self.entries.iter().filter(ended).count()
    }
}

/// What a backend may get of all requests, in percent.
fn exposure(backend: &str, entry: &Value) -> f64 {
    let weight = entry["weight"].as_f64().unwrap_or_default();
    if entry["stable"] == backend { 100.0 - weight } else { weight }
}

/// Whether so many of so many are more than chance explains at this share: by Chernoff's bound, which is above
/// the probability of as many or more. One in 10^12, as there are thousands of entries.
fn is_too_many(some: u64, all: u64, share: f64) -> bool {
    let had = some as f64 / all as f64;
    if all == 0 || had <= share || share <= 0.0 {
        return some > 0 && share <= 0.0;
    }
    let part = |p: f64, q: f64| if p > 0.0 { p * (p / q).ln() } else { 0.0 };
    all as f64 * (part(had, share) + part(1.0 - had, 1.0 - share)) > 12.0 * std::f64::consts::LN_10
}

/// Whether one entry may stand after another.
fn follows(before: &Entry, entry: &Entry, kills: &[u64]) -> Result<(), String> {
    let wrong = |what: &str| Err(format!("{what}: {}\nafter {}", entry.value, before.value));
    let was_killed = kills.iter().any(|kill| (before.at..entry.at).contains(kill));
    if entry.kind() == "restart" {
        if !was_killed {
            return wrong("a restart without a kill");
        }
        if entry.standing() != before.standing() {
            return wrong("it went on elsewhere");
        }
        let since = |entry: &Entry| entry.value["phase"]["since"].as_u64();
        if since(entry) < since(before) {
            return wrong("time passed that nobody watched");
        }
    } else if was_killed && before.runs() && entry.kind() != "store" {
        return wrong("the rollout did not go on");
    }
    let (was, is) = (before.phase(), entry.phase());
    if before.rollout().is_some() && before.rollout() == entry.rollout() {
        let step = |entry: &Entry| entry.value["phase"]["step"].as_u64();
        let went_back = match (rank(was), rank(is)) {
            (None, Some(_)) => true,
            (Some(was), Some(is)) => is < was || (is == was && step(entry) < step(before)),
            _ => false,
        };
        if went_back {
            return wrong("it cannot have gone back");
        }
        if !before.runs() {
            return wrong("it was over");
        }
    } else if entry.rollout().is_some() && (before.runs() || is != "preparing") {
        return wrong("two rollouts at a time");
    }
    Ok(())
}
