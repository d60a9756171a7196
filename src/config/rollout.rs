//! `[services.NAME.rollout]`: how a rollout of the service goes.
//!
//! What makes a plan wrong is decided by [`Plan::new`], which the API shares; here each fault only
//! gets its place and a remedy.

use std::ops::{Range, RangeInclusive};

use serde::Deserialize;
use toml::Spanned;

use super::{
    Recordings, Rollout,
    analysis::{self, RawAnalysis},
    checks::{self, RawCheck},
    hook::{self, At, RawHook},
    probe::{self, RawProbe},
    report::Report,
    schedule::{self, RawSchedule},
    steps::{self, RawStep},
    suggest::suggest,
    written::{Section, TIMEOUT, Table, Text, Time, WAIT, count, time, time_or},
};
use crate::rollout::plan::{Draft, Hooks, OnHookFailure, Plan, Strategy, WhenInconclusive};

/// `[services.NAME.rollout]` as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRollout {
    strategy: Option<Text>,
    steps: Option<Spanned<Vec<Spanned<Table<RawStep>>>>>,
    bake: Option<Time>,
    deadline: Option<Time>,
    when_inconclusive: Option<Text>,
    schedule: Option<Spanned<Table<RawSchedule>>>,
    promotion_gate: Option<bool>,
    cool_down: Option<Time>,
    drain: Option<Time>,
    rollback_window: Option<Time>,
    warmup: Option<Time>,
    aa_test: Option<bool>,
    prepare_deadline: Option<Time>,
    drained_after: Option<Time>,
    probes: Option<Vec<Table<RawProbe>>>,
    hooks: Option<Vec<Spanned<Table<RawHook>>>>,
    on_hook_failure: Option<Text>,
    analysis: Option<Table<RawAnalysis>>,
    checks: Option<Vec<Spanned<Table<RawCheck>>>>,
    record: Option<Text>,
    keep_recordings: Option<Spanned<i64>>,
}

impl Section for RawRollout {
    const HEADER: &'static str = "[services.NAME.rollout]";
}

/// What must be known of what stands around it.
pub(super) struct Around {
    /// Whether the canary gets requests without having a weight.
    pub(super) unweighted: bool,
    /// Whether hooks may be programs.
    pub(super) allow_exec: bool,
    /// Whether clients are pinned.
    pub(super) is_sticky: bool,
    /// The place of the service's name.
    pub(super) place: Range<usize>,
}

/// How a rollout of one service goes.
pub(super) fn lower(
    mut raw: RawRollout,
    Around { unweighted, allow_exec, is_sticky, place: service }: Around,
    report: &mut Report<'_>,
) -> Option<Rollout> {
    let RawRollout {
        strategy,
        steps,
        schedule,
        when_inconclusive,
        warmup,
        probes,
        hooks,
        on_hook_failure,
        analysis,
        checks,
        ..
    } = &mut raw;
    let probes = probe::lower(probes.take().unwrap_or_default(), report);
    let hooks = hook::lower(hooks.take().unwrap_or_default(), allow_exec, report);
    let on_failure = lower_word(on_hook_failure.take(), "on_hook_failure", &ON_HOOK_FAILURE, report);
    let blocks = |at| hooks.iter().any(|hook| hook.is_blocking && hook.at == at);
    let waits = Hooks {
        step: blocks(At::Step),
        promotion: blocks(At::PrePromotion),
        on_failure: on_failure.unwrap_or_default(),
    };
    let (steps, schedule) = (steps.take(), schedule.take());
    let warmup = warmup.take().and_then(|written| time(&written, "warmup", WAIT, report));
    let checks = checks.take().unwrap_or_default();
    let named = checks::names(&checks);
    let checks = checks::lower(checks, report);
    let analysis = analysis::lower(analysis.take().unwrap_or_default().0, is_sticky, report);
    let strategy = lower_word(strategy.take(), "strategy", &STRATEGIES, report);
    let inconclusive = lower_word(when_inconclusive.take(), "when_inconclusive", &WHEN_INCONCLUSIVE, report);
    let steps_place = steps.as_ref().map(Spanned::span);
    let schedule_place = schedule.as_ref().map(Spanned::span);
    if let (Some(_), Some(place)) = (&steps, &schedule_place) {
        report
            .error(place.clone(), "`steps` and `schedule` both say how the weight rises")
            .help("remove one of the two");
    }
    let written = steps.as_ref().map(|steps| steps.get_ref().len());
    let placed = steps::lower(steps, &named, report);
    let scheduled = schedule.map(|raw| schedule::lower(raw, analysis.max_harm.is_some(), report));
    // Whoever wrote a strategy that does not exist meant one that fits the steps.
    let strategy = strategy.unwrap_or(match (written, &scheduled) {
        (Some(1..), _) | (_, Some(_)) => Strategy::Canary,
        _ => Strategy::BlueGreen,
    });
    let steps = match (written, scheduled, strategy) {
        (None, Some(Some(steps)), _) => steps,
        // Steps that are all wrong are not the same as no steps.
        (None, None | Some(None), Strategy::Canary) => Draft::default_steps(),
        (Some(1..), _, Strategy::Canary) if placed.is_empty() => Draft::default_steps(),
        (_, _, Strategy::BlueGreen) if written.is_none_or(|steps| steps == 0) => Vec::new(),
        _ => placed.iter().map(|placed| placed.step.clone()).collect(),
    };
    let recordings = lower_recordings(raw.record.as_ref(), raw.keep_recordings.as_ref(), report);
    let written = raw.prepare_deadline.as_ref();
    let prepare_deadline =
        time_or(Rollout::default().prepare_deadline, written, "prepare_deadline", TIMEOUT, report);
    let written = raw.drained_after.as_ref();
    let drained_after = time_or(Rollout::default().drained_after, written, "drained_after", WAIT, report);
    let draft = Draft {
        strategy,
        steps,
        unweighted,
        when_inconclusive: inconclusive.unwrap_or_default(),
        hooks: waits,
        ..times(&raw, report)
    };
    let place = steps_place.or(schedule_place).unwrap_or(service);
    match Plan::new(draft) {
        Ok(plan) => {
            steps::warn_if_mute(&plan, &analysis, &placed, place, report);
            let aa_test = raw.aa_test.unwrap_or(true);
            let freezes = Vec::new();
            Some(Rollout {
                plan,
                analysis,
                checks,
                aa_test,
                warmup,
                freezes,
                probes,
                prepare_deadline,
                drained_after,
                hooks,
                recordings,
            })
        }
        Err(faults) => {
            faults.iter().for_each(|fault| steps::report_fault(fault, &placed, place.clone(), report));
            None
        }
    }
}

/// Where rollouts are recorded, if they are.
fn lower_recordings(
    record: Option<&Text>,
    keep: Option<&Spanned<i64>>,
    report: &mut Report<'_>,
) -> Option<Recordings> {
    let keep = match (keep, record) {
        (Some(written), None) => {
            report
                .error(
                    written.span(),
                    "`keep_recordings` says how many recordings are kept, and there are none",
                )
                .help("name a directory for them: `record = \"/var/lib/tidegate/recordings\"`");
            None
        }
        (Some(written), Some(_)) => count(written, "keep_recordings", RECORDINGS, report),
        (None, _) => None,
    };
    let record = record?;
    let text = record.get_ref();
    if text.is_empty() || text.contains('\0') {
        report
            .error(record.span(), format!("`{}` is not the path of a directory", text.escape_debug()))
            .help("write a path such as `\"/var/lib/tidegate/recordings\"`, or leave `record` out");
        return None;
    }
    Some(Recordings { directory: text.into(), keep: keep.unwrap_or(20) })
}

/// What stands beside the steps.
fn times(raw: &RawRollout, report: &mut Report<'_>) -> Draft {
    let default = Draft::default();
    let mut time =
        |default, written: &Option<Time>, key| time_or(default, written.as_ref(), key, WAIT, report);
    Draft {
        bake: time(default.bake, &raw.bake, "bake"),
        deadline: time(default.deadline, &raw.deadline, "deadline"),
        cool_down: time(default.cool_down, &raw.cool_down, "cool_down"),
        drain: time(default.drain, &raw.drain, "drain"),
        rollback_window: time(default.rollback_window, &raw.rollback_window, "rollback_window"),
        promotion_gate: raw.promotion_gate.unwrap_or(default.promotion_gate),
        ..default
    }
}

/// Recordings that may be kept of a service.
const RECORDINGS: RangeInclusive<u32> = 1..=10_000;

/// Words for strategies.
const STRATEGIES: [(&str, Strategy); 2] = [("canary", Strategy::Canary), ("blue-green", Strategy::BlueGreen)];

/// Words for what happens at the deadline.
const WHEN_INCONCLUSIVE: [(&str, WhenInconclusive); 3] = [
    ("hold", WhenInconclusive::Hold),
    ("pause", WhenInconclusive::Pause),
    ("roll_back", WhenInconclusive::RollBack),
];

/// Words for what happens if a hook does not let a rollout go on.
const ON_HOOK_FAILURE: [(&str, OnHookFailure); 2] =
    [("pause", OnHookFailure::Pause), ("roll_back", OnHookFailure::RollBack)];

/// The meaning of one word out of a few, under `key`; the default where none is written, nothing where the word
/// is not among them.
pub(super) fn lower_word<T: Copy + Default>(
    written: Option<Text>,
    key: &str,
    words: &[(&str, T)],
    report: &mut Report<'_>,
) -> Option<T> {
    let Some(written) = written else { return Some(T::default()) };
    let word = written.get_ref();
    let meaning = words.iter().find(|(known, _)| known == word).map(|(_, meaning)| *meaning);
    if meaning.is_none() {
        let known: Vec<_> = words.iter().map(|(known, _)| *known).collect();
        // Other programs write `bluegreen`, `blue_green` and `rollback`.
        let remedy = suggest(&word.to_ascii_lowercase(), &known, "choices");
        report.error(written.span(), format!("`{key}` cannot be `{word}`")).help_if(remedy);
    }
    meaning
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{
        super::testing::{errors, parsed, warnings},
        *,
    };
    use crate::config::steps::DEFAULT_HOLD;

    fn rollout(written: &str) -> String {
        format!("[services.web.rollout]\n{written}")
    }

    fn plan(written: &str) -> Plan {
        parsed(&rollout(written)).services.remove(0).rollout.plan
    }

    #[test]
    fn everything_has_a_default() {
        assert_eq!(parsed("").services.remove(0).rollout, Rollout::default());
        assert_eq!(plan(""), Rollout::default().plan);
        assert_eq!(plan("steps = [{ weight = 5 }]").steps()[0].hold, DEFAULT_HOLD);
    }

    #[test]
    fn the_warmup_is_the_slow_start_unless_it_is_written() {
        let warmup = |written: &str| parsed(written).services.remove(0).policy.warmup;
        let slow = "[services.web.balance]\nslow_start = '30s'\n";
        assert_eq!((warmup(""), warmup(slow)), (None, Some(Duration::from_secs(30))));
        let written = |time: &str| warmup(&format!("{slow}{}", rollout(&format!("warmup = '{time}'"))));
        assert_eq!((written("5s"), written("0s")), (Some(Duration::from_secs(5)), None));
        assert_eq!(errors(&rollout("warmup = '31d'")), ["`warmup` of 31d is too long"]);
    }

    #[test]
    fn rollouts_are_recorded_where_it_is_written() {
        let recordings = |written: &str| parsed(&rollout(written)).services.remove(0).rollout.recordings;
        assert_eq!(recordings(""), None);
        let kept = |keep| Some(Recordings { directory: "/var/lib/x".into(), keep });
        assert_eq!(recordings("record = '/var/lib/x'"), kept(20));
        assert_eq!(recordings("record = '/var/lib/x'\nkeep_recordings = 3"), kept(3));
        for (written, problem) in [
            ("record = ''", "`` is not the path of a directory"),
            ("record = 'x'\nkeep_recordings = 0", "`keep_recordings` cannot be 0"),
            (
                "keep_recordings = 5",
                "`keep_recordings` says how many recordings are kept, and there are none",
            ),
        ] {
            assert_eq!(errors(&rollout(written)), [problem]);
        }
    }

    #[test]
    fn both_strategies_can_be_written() {
        let canary = plan("strategy = 'canary'\nsteps = [{ weight = 1, hold = '5m' }, { weight = 50.5 }]");
        assert_eq!(canary.steps().len(), 2);
        assert_eq!(canary.steps()[1].weight.hundredths(), 5050);
        let blue_green = plan("strategy = 'blue-green'\nbake = '0s'\nwhen_inconclusive = 'roll_back'");
        assert_eq!(blue_green.strategy(), Strategy::BlueGreen);
        assert_eq!(blue_green.when_inconclusive(), WhenInconclusive::RollBack);
    }

    #[test]
    fn faults_of_the_plan_carry_the_number_of_the_written_step() {
        let steps =
            "steps = [{ weight = 0 }, { weight = 101 }, { weight = 10, hold = 'x' }, { weight = 5 }, {}]";
        assert_eq!(
            errors(&rollout(steps)),
            [
                "step 1 has weight 0, in which nothing would be seen of the canary",
                "101 is not a weight",
                "`x` is not a duration",
                "step 4 has weight 5 %, which is not above the 10 % of the step before it",
                "step 5 has no `weight`",
            ]
        );
    }

    #[test]
    fn a_wrong_strategy_is_the_only_fault_reported_for_it() {
        assert_eq!(errors(&rollout("strategy = 'bluegreen'")).len(), 1);
        assert_eq!(errors(&rollout("strategy = 'cannary'\nsteps = [{ weight = 1 }]")).len(), 1);
    }

    #[test]
    fn a_plan_that_says_nothing_is_warned_of() {
        let said = |written: &str| warnings(&rollout(written));
        assert_eq!(said(""), [""; 0]);
        assert_eq!(said("strategy = 'blue-green'"), [""; 0]);
        let full = "this step leaves stable nothing that the canary could be compared with";
        assert_eq!(said("steps = [{ weight = 50 }, { weight = 100 }]"), [full]);
        let many = said("steps = [{ weight = 0.01 }, { weight = 50 }]\ndeadline = '10s'");
        assert_eq!(many.len(), 1);
        assert!(many[0].starts_with("this plan needs 14286 requests a second"), "{many:?}");
        let never = "this plan cannot reach a verdict, whatever the traffic";
        assert_eq!(said("steps = [{ weight = 50, hold = '0s' }]\ndeadline = '0s'"), [never]);
    }

    #[test]
    fn steps_belong_to_canaries_only() {
        assert_eq!(errors(&rollout("steps = []")), ["a canary plan needs at least one step"]);
        assert_eq!(
            errors(&rollout("strategy = 'blue-green'\nsteps = [{ weight = 1 }]")),
            ["a blue-green plan has no steps: all traffic moves at once"]
        );
        assert_eq!(errors(&rollout("strategy = 'blue-green'\nsteps = []")), [""; 0]);
    }

    #[test]
    fn steps_may_have_gates_and_numbers_of_requests() {
        let none = plan("steps = [{ weight = 5, checks = [] }, { weight = 50 }]");
        assert_eq!((none.checks_in(0), none.checks_in(1)), (Some(&[][..]), None));
        let unknown = errors(&rollout("steps = [{ weight = 5, checks = ['memory'] }]"));
        assert_eq!(unknown, ["there is no check `memory` of this service's rollouts"]);
        let steps = plan("steps = [{ weight = 5, gate = true }, { weight = 50, minimum_requests = 5000 }]");
        assert!(steps.has_gate_after(0) && !steps.has_gate_after(1));
        assert_eq!(steps.steps()[1].minimum_requests, Some(5000));
        assert!(plan("strategy = 'blue-green'\npromotion_gate = true").has_gate_after(0));
        assert_eq!(
            errors(&rollout("promotion_gate = true")),
            ["`promotion_gate` is for blue-green; a canary plan has `gate = true` at its last step"]
        );
    }

    #[test]
    fn copies_come_before_users() {
        let said = |steps: &str| errors(&rollout(&format!("steps = [{steps}]")));
        let dark = plan("steps = [{ mirror = 12.5, hold = '2m', minimum_requests = 50 }, { weight = 1 }]");
        assert!(dark.has_dark_steps());
        assert_eq!(dark.steps()[0].minimum_requests, Some(50));
        assert_eq!(said("{ mirror = 100, weight = 0 }, { weight = 1 }"), [""; 0]);
        assert_eq!(said("{ mirror = 100.5 }, { weight = 1 }"), ["`mirror` cannot be 100.5"]);
        assert_eq!(
            said("{ mirror = 0 }, { weight = 1 }"),
            ["step 1 has `mirror` 0, in which nothing would be seen of the canary"]
        );
        assert_eq!(
            said("{ mirror = 10, weight = 1 }, { weight = 10 }"),
            ["step 1 has both `weight` and `mirror`: the canary gets either users or copies in it"]
        );
        assert_eq!(
            said("{ weight = 1 }, { mirror = 10 }, { weight = 10 }"),
            ["step 2 has `mirror`, and the one before it has users already: copies come first"]
        );
        assert_eq!(
            said("{ mirror = 10 }"),
            [
                "every step has `mirror`: what copies show may open the first step with users, and nothing more"
            ]
        );
    }

    #[test]
    fn a_first_step_of_zero_is_for_those_who_are_sent_to_the_canary_by_rules() {
        let steps = rollout("steps = [{ weight = 0 }, { weight = 10 }]");
        assert_eq!(errors(&steps).len(), 1);
        let forced = "[[services.web.force]]\nrole = 'canary'\nheader = { name = 'x-canary', value = 'yes' }";
        assert_eq!(errors(&format!("{steps}\n{forced}")), [""; 0]);
        let to_stable = forced.replace("'canary'", "'stable'");
        assert_eq!(errors(&format!("{steps}\n{to_stable}")).len(), 1);
    }
}
