//! docs/rollouts.md has tables of what follows from what. Each of their cells is a case here, and each case
//! one of their cells.

use std::fmt::Write as _;

use super::*;

const DOCS: &str = include_str!("../../../docs/rollouts.md");

/// Rows: where a rollout stands, by the words of the tables, and under which plan.
fn rows() -> Vec<(&'static str, Phase, Plan)> {
    let with = |change: fn(&mut Draft)| {
        let mut draft = draft();
        change(&mut draft);
        Plan::new(draft).unwrap()
    };
    let gate = || with(|draft| draft.steps[0].gate = true);
    let hook = || with(|draft| draft.hooks.step = true);
    let both = || {
        with(|draft| {
            draft.steps[0].gate = true;
            draft.hooks.step = true;
        })
    };
    let dark = || with(|draft| draft.steps[0] = Step::dark(Weight::FULL, Duration::from_millis(10)));
    let flip = |change: fn(&mut Draft)| {
        let mut draft = Draft { strategy: Strategy::BlueGreen, steps: vec![], ..draft() };
        change(&mut draft);
        Plan::new(draft).unwrap()
    };
    let since = at(100);
    let preparing = |full| Phase::Preparing { since, full };
    let reason = RollBackReason::Verdict;
    vec![
        ("idle", Phase::Idle, plan()),
        ("preparing", preparing(false), plan()),
        ("preparing, blue-green", preparing(false), flip(|_| ())),
        ("preparing, blue-green with a gate", preparing(false), flip(|draft| draft.promotion_gate = true)),
        ("preparing, blue-green with a hook", preparing(false), flip(|draft| draft.hooks.promotion = true)),
        ("preparing, in a hurry", preparing(true), plan()),
        ("preparing, before a dark step", preparing(false), dark()),
        ("stepping, dark", stepping(0), dark()),
        ("stepping", stepping(0), plan()),
        ("stepping, before a gate", stepping(0), gate()),
        ("stepping, before a hook", stepping(0), hook()),
        ("stepping, before both", stepping(0), both()),
        ("stepping, last step", stepping(1), plan()),
        ("paused by a person", paused(0, PauseReason::Command), plan()),
        ("paused by a person, dark", paused(0, PauseReason::Command), dark()),
        ("paused without a verdict", paused(0, PauseReason::Inconclusive), plan()),
        ("paused at a gate", paused(0, PauseReason::Gate), gate()),
        ("paused at a gate, before a hook", paused(0, PauseReason::Gate), both()),
        ("paused for a hook", paused(0, PauseReason::Hook), hook()),
        (
            "paused for a hook by evidence",
            Phase::Paused { step: 0, since, reason: PauseReason::Hook, earned: true },
            hook(),
        ),
        ("paused after a hook's yes", paused(0, PauseReason::HookAllowed), hook()),
        ("paused by a hook's no", paused(0, PauseReason::HookFailed), hook()),
        ("paused by a freeze", paused(0, PauseReason::Freeze), plan()),
        ("promoting", Phase::Promoting { since }, plan()),
        ("baking", Phase::Baking { since }, plan()),
        ("succeeded", Phase::Succeeded { at: since }, plan()),
        ("rolling back", Phase::RollingBack { since, reason: reason.clone() }, plan()),
        ("rolled back", Phase::RolledBack { at: since, reason: reason.clone() }, plan()),
        (
            "rolled back, cooling down",
            Phase::RolledBack { at: since, reason },
            with(|draft| draft.cool_down = Duration::from_secs(1)),
        ),
    ]
}

/// Columns: what happens, and when, after a hold of 10 ms from 100 ms on and before or after a deadline.
fn columns() -> Vec<(&'static str, Event, u64)> {
    let commands = Command::ALL.map(|command| {
        let word = match command {
            Command::Start { force: false, .. } => "start",
            Command::Start { force: true, .. } => "start --force",
            Command::Promote { full: false } => "promote",
            Command::Promote { full: true } => "promote --full",
            Command::RollBack => "rollback",
            Command::Pause => "pause",
            Command::Resume => "resume",
            Command::GuardsOnly => "guards-only",
        };
        (word, Event::Command(command), 105)
    });
    let no = || "no".to_owned();
    let events = [
        ("ready", Event::Prepared, 105),
        ("not ready", Event::PrepareFailed(no()), 105),
        ("enough evidence", Event::Tick(Decision::Advance), 110),
        ("the canary is worse", Event::Tick(Decision::RollBack), 105),
        ("time is up", Event::Tick(Decision::Continue), 1_000),
        ("the hook says yes", Event::HookAnswered(Ok(())), 105),
        ("the hook says no", Event::HookAnswered(Err(no())), 105),
        ("a freeze begins", Event::Frozen, 105),
        ("the freeze ends", Event::Thawed, 105),
        ("drained", Event::Drained, 105),
    ];
    commands.into_iter().chain(events).collect()
}

/// Where it stands, as the tables say it. Steps count from 1.
fn in_words(phase: &Phase) -> String {
    match phase {
        Phase::Stepping { step, .. } => format!("step {}", step + 1),
        Phase::Paused { reason, earned, .. } => match reason {
            PauseReason::Command => "paused by a person",
            PauseReason::Inconclusive => "paused without a verdict",
            PauseReason::Gate => "paused at a gate",
            PauseReason::Hook if *earned => "paused for a hook by evidence",
            PauseReason::Hook => "paused for a hook",
            PauseReason::HookAllowed => "paused after a hook's yes",
            PauseReason::HookFailed => "paused by a hook's no",
            PauseReason::Freeze => "paused by a freeze",
        }
        .to_owned(),
        Phase::Preparing { full: true, .. } => "preparing, in a hurry".to_owned(),
        other => other.name().replace('_', " "),
    }
}

/// What a cell has to say: where it stands afterwards; nothing where nothing follows, and a dash where a
/// command is refused.
fn cell(phase: &Phase, plan: &Plan, event: &Event, now: u64) -> String {
    match machine::step(phase.clone(), plan, event.clone(), at(now)) {
        Err(_) => "–".to_owned(),
        Ok(transition) if transition.effects.is_empty() => String::new(),
        Ok(transition) => in_words(&transition.phase),
    }
}

/// A table of the docs: the words of its columns, then of each row its words and cells.
type Table = (Vec<String>, Vec<(String, Vec<String>)>);

/// The tables whose corner says `in`.
fn tables() -> Vec<Table> {
    let cells = |line: &str| {
        let line = line.trim().trim_start_matches('|').trim_end_matches('|');
        line.split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect::<Vec<_>>()
    };
    let mut lines = DOCS.lines();
    let mut tables = Vec::new();
    while let Some(head) = lines.find(|line| line.starts_with("| in |")) {
        let rows = lines.by_ref().take_while(|line| line.starts_with('|')).skip(1).map(cells);
        let rows = rows.map(|mut row| (row.remove(0), row)).collect();
        tables.push((cells(head).split_off(1), rows));
    }
    tables
}

#[test]
fn the_tables_say_what_follows_from_what() {
    let (rows, columns) = (rows(), columns());
    let mut seen = 0;
    let mut wrong = String::new();
    for (heads, lines) in tables() {
        for (name, cells) in lines {
            let row = rows.iter().find(|(known, ..)| *known == name);
            let (_, phase, plan) = row.unwrap_or_else(|| panic!("no row is called `{name}`"));
            assert_eq!(cells.len(), heads.len(), "{name}");
            for (head, said) in heads.iter().zip(cells) {
                let column = columns.iter().find(|(known, ..)| known == head);
                let (_, event, now) = column.unwrap_or_else(|| panic!("no column is called `{head}`"));
                let follows = cell(phase, plan, event, *now);
                if follows != said {
                    writeln!(wrong, "{name}, {head}: `{follows}`, and the table says `{said}`").unwrap();
                }
                seen += 1;
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert_eq!(seen, rows.len() * columns.len(), "every row and column is in a table, once");
}
