//! A verdict in one English sentence, the same in the log, the API and on the command line.

use super::{
    evidence::Window,
    verdict::{ArmUsers, Arms, Check, CheckReport, Incident, Pairs, Reason, Scope, Stage, Verdict},
};

/// What was decided, and the numbers why. Lower case, without a full stop.
pub fn explain(verdict: &Verdict) -> String {
    let who = match verdict.stage {
        Stage::Dark | Stage::Stepping => "canary",
        Stage::Baking => "promoted version",
    };
    let is_dark = verdict.stage == Stage::Dark;
    let needed = needed(verdict);
    let evidence = evidence(verdict.evidence, verdict.threshold);
    let promotion = self::evidence(verdict.promotion_evidence, verdict.promotion_threshold);
    let rates = || rates(verdict);
    let sentence = of_copies(verdict).unwrap_or_else(|| match &verdict.reason {
        Reason::Worse(check) => {
            format!("{who} {}{}{}: rolling back ({evidence})", finding(check), lately(verdict, check), users(verdict))
        }
        Reason::OnlyFailures { failures, unserved: 0 } => {
            format!("{who} failed {failures} requests in a row and answered none: rolling back")
        }
        Reason::OnlyFailures { failures, unserved } if unserved == failures => {
            format!("no endpoint of the {who} could take {failures} requests in a row: rolling back")
        }
        Reason::OnlyFailures { failures, unserved } => format!(
            "{who} failed {failures} requests in a row and answered none, {unserved} of them for want of an endpoint: \
             rolling back"
        ),
        Reason::HarmSpent(harm) => format!(
            "canary has failed about {:.0} requests that stable would not have, and may {:.0}: rolling back",
            harm.spent, harm.budget
        ),
        Reason::BothFailing { stable, canary } => format!(
            "canary fails {} of requests and stable {}: holding, both are in trouble",
            percent(*canary),
            percent(*stable)
        ),
        Reason::CheckFailed { name, why } => format!("check {name} fails, {why}: rolling back"),
        Reason::CheckInconclusive { name, why } => {
            format!("{}, but check {name} is inconclusive, {why}: holding", rates())
        }
        Reason::OneEndpoint { endpoint, error_rate, others } => format!(
            "endpoint {endpoint} of the canary fails {} of requests and the others {}: holding, it is not the version",
            percent(*error_rate),
            percent(*others)
        ),
        Reason::NoCanaryTraffic { ticks } => {
            let what = if is_dark { "copy of a request was answered" } else { "canary request ended" };
            format!("no {what} in the last {ticks} ticks: holding, nothing to judge by")
        }
        Reason::NoStableTraffic { ticks } => {
            format!(
                "no stable request ended in the last {ticks} ticks: holding, nothing to compare with; \
                 `guards-only` goes on without"
            )
        }
        Reason::WarmingUp { role, ticks: _ } => format!(
            "{role}'s endpoints are warming up, and the {} requests that they have ended so far do not count: \
             holding until they are warm",
            verdict.warming.of(*role).requests
        ),
        Reason::OnlySent { role, ticks } => format!(
            "{role} got no request by chance in the last {ticks} ticks, only such as were sent to it: holding, \
             nothing to judge by"
        ),
        Reason::Healthy { requests } => {
            format!("{} in {requests} canary requests{users}: ready for the next step", rates(), users = users(verdict))
        }
        Reason::NonInferior { margin } => {
            format!("{}, within {} of it: ready to promote ({promotion})", rates(), points(*margin))
        }
        Reason::WithinLimits { requests } => format!(
            "canary fails {} of {requests} {}, {} and compared with nothing: ready for more",
            percent(verdict.step.canary.error_rate.unwrap_or(0.0)),
            if is_dark { "copied requests" } else { "requests" },
            within_limits(verdict)
        ),
        Reason::Suspicious(check) => {
            let users = users(verdict);
            let (finding, lately) = (finding(check), lately(verdict, check));
            format!("{who} {finding}{lately}{users}: not certain yet ({evidence} to roll back{needed})")
        }
        Reason::TooFewRequests { requests, minimum } => {
            let (ended, what) = if is_dark { ("answered", "copies") } else { ("ended", "requests") };
            format!("canary has {ended} {requests} of the {minimum} {what} that the step needs: waiting{needed}")
        }
        Reason::TooFewUsers { users, minimum } => {
            format!("canary has had about {users} of the {minimum} users that it takes to go on: waiting{needed}")
        }
        Reason::HarmPossible(harm) => format!(
            "{}: not certain yet that more of them cost no more than {:.0} requests{}",
            rates(),
            harm.budget,
            harm.weight_cap.map(|cap| format!(" (at most {cap} now)")).unwrap_or_default()
        ),
        Reason::NotYetNonInferior { margin } => format!(
            "{}: not certain yet that it stays within {} ({promotion} to go on{needed})",
            rates(),
            points(*margin)
        ),
        Reason::Baking { requests, failures } => format!(
            "{who} fails {} of {requests} requests since promotion: {}",
            percent(if *requests == 0 { 0.0 } else { *failures as f64 / *requests as f64 }),
            within_limits(verdict)
        ),
    });
    sentence + &offer(verdict)
}

/// What copies say in a dark step, where they have words of their own.
fn of_copies(verdict: &Verdict) -> Option<String> {
    let Pairs { pairs, stable_only, canary_only, .. } = verdict.pairs?;
    let promotion = evidence(verdict.promotion_evidence, verdict.promotion_threshold);
    let alone = format!(
        "of {pairs} copied requests the canary alone failed {canary_only} and stable alone {stable_only}"
    );
    Some(match &verdict.reason {
        Reason::Worse(check) => format!(
            "canary {}: rolling back ({}), no user has been there",
            finding(check),
            evidence(verdict.evidence, verdict.threshold)
        ),
        Reason::NotYetNonInferior { margin } => format!(
            "{alone}: not certain yet that it stays within {} ({promotion} for users{})",
            points(*margin),
            needed(verdict)
        ),
        Reason::NonInferior { margin } => {
            format!("{alone}, within {}: ready for users ({promotion})", points(*margin))
        }
        _ => return None,
    })
}

/// What is missing until more can be decided, as an addition to a sentence.
fn needed(verdict: &Verdict) -> String {
    let Some(requests) = verdict.requests_needed else { return String::new() };
    let ticks = verdict.ticks_needed.map(|ticks| format!(", {ticks} ticks at this rate")).unwrap_or_default();
    let what = if verdict.stage == Stage::Dark { "copies" } else { "requests" };
    format!(", about {requests} more {what}{ticks}")
}

/// How many users a comparison rests on, as an addition to what it found; nothing where it is of requests.
fn users(verdict: &Verdict) -> String {
    let Some(Arms { stable, canary }) = verdict.users else { return String::new() };
    let of = |ArmUsers { seen, first_failures }: ArmUsers| {
        format!("{first_failures} of about {} users", seen.max(first_failures))
    };
    format!(" (first failures: {}, stable's {})", of(canary), of(stable))
}

/// How a version stands to limits that it does not break for certain.
fn within_limits(verdict: &Verdict) -> String {
    let is_over = |report: &&CheckReport| report.canary.or(report.stable) > report.limit;
    match verdict.checks.iter().filter(|report| report.limit.is_some()).find(is_over) {
        Some(CheckReport { check: Check::MaxP99, limit: Some(limit), .. }) => {
            format!("not surely over its limit of {} at the 99th percentile", seconds(*limit))
        }
        Some(CheckReport { limit: Some(limit), .. }) => {
            format!("not surely over its limit of {}", percent(*limit))
        }
        _ => "within its limits".to_owned(),
    }
}

/// What a person may want to do, as an addition to a sentence.
fn offer(verdict: &Verdict) -> String {
    match verdict.incident {
        Some(Incident { scope: Scope::StableOnly, stable, canary }) if !verdict.guards_only => format!(
            "; stable alone is in trouble and fails {} of requests lately, the canary {}: \
             `promote` takes users off it sooner, and with `guards-only` the rollout goes on without comparing",
            percent(stable),
            percent(canary)
        ),
        _ => String::new(),
    }
}

/// What a check found, as the end of a sentence that begins with the version.
fn finding(report: &CheckReport) -> String {
    let (verb, unit, of): (_, fn(f64) -> String, _) = match report.check {
        Check::ErrorRate | Check::MaxErrorRate | Check::RouteErrorRate => ("fails", percent, "of requests"),
        Check::PairedErrorRate => ("fails", percent, "of copied requests"),
        // There is no time to name: it is a share, and what it may be is known.
        Check::PairedLatency => {
            let share = report.canary.map_or_else(|| "none".to_owned(), percent);
            return format!("takes longer than it may for {share} of copied requests, limit 50 %");
        }
        Check::LatencyP50 => ("takes", seconds, "at the median"),
        Check::LatencyP99 | Check::MaxP99 => ("takes", seconds, "at the 99th percentile"),
    };
    let shown = |value: Option<f64>| value.map_or_else(|| "nothing yet".to_owned(), unit);
    // In baking there is no canary: stable is the promoted version.
    let observed = shown(report.canary.or(report.stable));
    let on = report.route.as_ref().map(|route| format!(" on route {route}")).unwrap_or_default();
    match report.limit {
        Some(limit) => format!("{verb} {observed} {of}{on}, limit {}", unit(limit)),
        None => format!("{verb} {observed} {of}{on}, stable {}", shown(report.stable)),
    }
}

/// What the last ticks were like, as an addition to a finding about failures whose averages do not show it: by them, what
/// is too much is less than half of what it is lately.
fn lately(verdict: &Verdict, report: &CheckReport) -> String {
    let Arms { stable, canary } = verdict.recent;
    let judged = if verdict.stage == Stage::Baking { stable } else { canary };
    let excess = |judged: Option<f64>, stable: Option<f64>| Some(judged? - report.limit.or(stable)?);
    let on_average = excess(report.canary.or(report.stable), report.stable).unwrap_or(0.0).max(0.0);
    let (Some(rate), Some(excess)) = (judged.error_rate, excess(judged.error_rate, stable.error_rate)) else {
        return String::new();
    };
    if !matches!(report.check, Check::ErrorRate | Check::MaxErrorRate) || excess <= 2.0 * on_average {
        return String::new();
    }
    let beside = match (report.limit, stable.error_rate) {
        (None, Some(stable)) => format!(", stable {}", percent(stable)),
        _ => String::new(),
    };
    format!(", in the last {} ticks {} of {}{beside}", Window::TICKS, percent(rate), judged.requests)
}

/// Both failure rates of the step; in a dark one, of its copies.
fn rates(verdict: &Verdict) -> String {
    if let Some(report) = verdict.checks.get(Check::PairedErrorRate) {
        return format!("canary {}", finding(report));
    }
    let shown = |rate: Option<f64>| rate.map_or_else(|| "nothing yet".to_owned(), percent);
    let (canary, stable) = (verdict.step.canary.error_rate, verdict.step.stable.error_rate);
    format!("canary fails {} of requests, stable {}", shown(canary), shown(stable))
}

fn evidence(value: f64, needed: f64) -> String {
    // Less than none is only more of none.
    let value = value.max(0.0);
    let (short, long) = (format!("{value:.1}"), format!("{needed:.1}"));
    if value < needed && short == long {
        return format!("evidence {value:.3} of {needed:.3} needed");
    }
    format!("evidence {short} of {long} needed")
}

fn percent(share: f64) -> String {
    let percent = share * 100.0;
    match percent {
        0.0 => "0 %".to_owned(),
        ..0.01 => "under 0.01 %".to_owned(),
        ..0.0995 => format!("{} %", short(percent, 2)),
        ..9.95 => format!("{} %", short(percent, 1)),
        _ => format!("{percent:.0} %"),
    }
}

fn points(share: f64) -> String {
    format!("{} percentage points", short(share * 100.0, 2))
}

fn seconds(seconds: f64) -> String {
    match seconds {
        ..0.000_999_5 => format!("{:.0} µs", seconds * 1e6),
        ..0.009_95 => format!("{} ms", short(seconds * 1e3, 1)),
        ..0.999_5 => format!("{:.0} ms", seconds * 1e3),
        _ => format!("{} s", short(seconds, 1)),
    }
}

/// So many decimals at most, without idle zeros.
fn short(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_written_as_people_would() {
        let shares = [0.0, 0.000_01, 0.000_4, 0.001, 0.0514, 0.05, 0.0995, 0.5, 1.0];
        let written = ["0 %", "under 0.01 %", "0.04 %", "0.1 %", "5.1 %", "5 %", "10 %", "50 %", "100 %"];
        assert_eq!(shares.map(percent), written);
    }

    #[test]
    fn times_are_written_as_people_would() {
        let times = [0.000_25, 0.0015, 0.0099, 0.12, 1.0, 2.25];
        assert_eq!(times.map(seconds), ["250 µs", "1.5 ms", "9.9 ms", "120 ms", "1 s", "2.2 s"]);
    }

    #[test]
    fn evidence_that_falls_short_looks_short() {
        assert_eq!(evidence(4.71, 4.605), "evidence 4.7 of 4.6 needed");
        assert_eq!(evidence(4.59, 4.605), "evidence 4.590 of 4.605 needed");
        assert_eq!(evidence(-0.7, 2.996), "evidence 0.0 of 3.0 needed");
    }
}
