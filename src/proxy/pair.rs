//! One request that both stable and, as a copy, the canary have had: what each has answered, compared.
//!
//! Whoever has a part in it holds the pair: the attempt at stable, the copy while it waits for its body, the
//! attempt at the canary. When the last of them lets go, however that comes about, it is counted.

use std::{
    cell::Cell,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use http::StatusCode;

use super::context::Endpoint;
use crate::{
    clock,
    model::{outcome::Outcome, role::Role},
    routing::mirror::Mirror,
    telemetry::mirror::{FailedBy, MirrorCells, MirrorResult},
};

/// What a copy may take longer in any case: for that much, who is first on a busy worker may be to blame.
const SLACK: Duration = Duration::from_millis(1);

/// A request at both backends.
#[derive(Debug)]
pub(super) struct Pair {
    cells: Arc<MirrorCells>,
    /// In thousandths of what stable took, what the canary may take.
    tolerated: Option<u32>,
    /// Whether another status than stable's is a failure of the canary.
    mismatch_fails: bool,
    /// One of the endpoints is so new to its work that the two are not compared.
    warming: Cell<bool>,
    /// When each had the whole request: stable as it came, and the canary when its copy was begun.
    sent: [Cell<Option<Instant>>; Role::ALL.len()],
    /// What became of the copy if the canary never says anything.
    unanswered: Cell<MirrorResult>,
    sides: [Side; Role::ALL.len()],
}

/// What one of the two has said.
#[derive(Debug, Default)]
struct Side {
    head: Cell<Option<(StatusCode, Instant)>>,
    outcome: Cell<Option<Outcome>>,
    failed: Cell<bool>,
}

impl Pair {
    /// A request that is to be copied, as these rules say.
    pub(super) fn new(cells: Arc<MirrorCells>, rules: &Mirror) -> Rc<Self> {
        Rc::new(Self {
            cells,
            tolerated: rules.tolerated,
            mismatch_fails: rules.mismatch_fails,
            warming: Cell::new(false),
            sent: Default::default(),
            unanswered: Cell::new(MirrorResult::DroppedIncomplete),
            sides: Default::default(),
        })
    }

    /// The part of the attempt at the backend in this role.
    pub(super) fn half(self: &Rc<Self>, role: Role) -> Half {
        Half { pair: Rc::clone(self), role }
    }

    /// The request is complete, and the copy is sent.
    pub(super) fn send(&self, now: Instant) {
        self.sent[Role::Stable.index()].set(Some(now));
    }

    /// It is the copy's turn.
    pub(super) fn begin_copy(&self, now: Instant) {
        self.sent[Role::Canary.index()].set(Some(now));
    }

    /// One of the two goes to this endpoint.
    pub(super) fn look_at(&self, endpoint: &Endpoint, now: Instant) {
        self.warming.set(self.warming.get() || endpoint.is_warming(now));
    }

    /// The copy is not sent, or goes no further.
    pub(super) fn give_up(&self, why: MirrorResult) {
        self.unanswered.set(why);
    }

    /// The status of a side that has answered, and how it ended; nothing if it has not ended, or was ended
    /// by its client.
    fn heard(&self, role: Role) -> Option<(Option<StatusCode>, Outcome)> {
        let side = &self.sides[role.index()];
        let outcome = side.outcome.get().filter(|outcome| outcome.counts())?;
        Some((side.head.get().map(|(status, _)| status), outcome))
    }

    /// How long a side took to begin its answer. Stable may have begun before the request was complete.
    fn took(&self, role: Role) -> Option<Duration> {
        let (_, at) = self.sides[role.index()].head.get()?;
        Some(at.saturating_duration_since(self.sent[role.index()].get()?))
    }

    /// Whether the canary took longer than it may. Nothing can be said where stable began to answer before
    /// the request was complete, which its copy cannot be.
    fn is_slower(&self, stable: Duration, canary: Duration) -> Option<bool> {
        let tolerated = self.tolerated.filter(|_| !stable.is_zero())?;
        let most = stable.as_nanos() * u128::from(tolerated) / 1_000 + SLACK.as_nanos();
        Some(canary.as_nanos() > most)
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        let Some(canary) = self.heard(Role::Canary) else { return self.cells.count(self.unanswered.get()) };
        let stable = self.heard(Role::Stable);
        self.cells.count(compare(stable, canary));
        let Some(stable) = stable.filter(|_| !self.warming.get()) else { return };
        let [by_stable, by_canary] = Role::ALL.map(|role| self.sides[role.index()].failed.get());
        let deviates = self.mismatch_fails && !by_stable && deviates(stable, canary);
        self.cells.count_pair(FailedBy::of(by_stable, by_canary || deviates));
        if let (Some(stable), Some(canary)) = (self.took(Role::Stable), self.took(Role::Canary)) {
            self.cells.record(stable, canary);
            if let Some(slower) = self.is_slower(stable, canary) {
                self.cells.compare(slower);
            }
        }
    }
}

/// Whether both have said the same. An outcome says more than a status where a call has failed in a 200.
fn compare(
    stable: Option<(Option<StatusCode>, Outcome)>,
    canary: (Option<StatusCode>, Outcome),
) -> MirrorResult {
    if !has_answered(canary.1) {
        return MirrorResult::Failed;
    }
    match stable {
        None => MirrorResult::Unpaired,
        Some(stable) if stable == canary => MirrorResult::Match,
        Some(_) => MirrorResult::Mismatch,
    }
}

/// Whether the canary has answered otherwise than it should have, as far as stable's answer tells. One that is an
/// error tells nothing, even if it is written that it is no failure: the canary may have mended it.
fn deviates(stable: (Option<StatusCode>, Outcome), canary: (Option<StatusCode>, Outcome)) -> bool {
    if stable.1.is_failure() || !has_answered(canary.1) {
        return false;
    }
    match (stable.0, canary.0) {
        // The client has all or some of what stable would send, and says so. Of another version's content it may
        // have nothing, and then gets the whole.
        (Some(StatusCode::NOT_MODIFIED | StatusCode::PARTIAL_CONTENT), Some(StatusCode::OK)) => false,
        (stable, canary) => stable != canary,
    }
}

/// Whether there was a whole response.
fn has_answered(outcome: Outcome) -> bool {
    use Outcome::{ClientAbort, ConnectFailure, Cut, Reset, Timeout};
    !matches!(outcome, ConnectFailure | Timeout | Reset | ClientAbort | Cut)
}

/// An attempt's part in a pair.
#[derive(Debug)]
pub(super) struct Half {
    pair: Rc<Pair>,
    role: Role,
}

impl Half {
    /// Whether it is that of the copy.
    pub(super) fn is_copy(&self) -> bool {
        self.role == Role::Canary
    }

    /// The head of a response has come.
    pub(super) fn answered(&self, status: StatusCode) {
        self.pair.sides[self.role.index()].head.set(Some((status, clock::monotonic())));
    }

    /// What became of the attempt, and whether that counts against its backend.
    pub(super) fn ended(&self, outcome: Outcome, failed: bool) {
        let side = &self.pair.sides[self.role.index()];
        side.outcome.set(Some(outcome));
        side.failed.set(failed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::{ledger::Hub, mirror::MirrorTotals};

    const OK: (Option<StatusCode>, Outcome) = (Some(StatusCode::OK), Outcome::Success);

    #[test]
    fn the_same_status_and_the_same_end_are_a_match() {
        let created = (Some(StatusCode::CREATED), Outcome::Success);
        let failed_call = (Some(StatusCode::OK), Outcome::GrpcFailure);
        let broken = (Some(StatusCode::OK), Outcome::Reset);
        let error = (Some(StatusCode::INTERNAL_SERVER_ERROR), Outcome::ServerError);
        assert_eq!(compare(Some(OK), OK), MirrorResult::Match);
        assert_eq!(compare(Some(error), error), MirrorResult::Match);
        for (stable, canary) in [(OK, created), (OK, failed_call), (OK, error), (error, OK), (broken, OK)] {
            assert_eq!(compare(Some(stable), canary), MirrorResult::Mismatch, "{stable:?} {canary:?}");
        }
        assert_eq!(compare(Some(OK), broken), MirrorResult::Failed);
        assert_eq!(compare(None, (None, Outcome::ConnectFailure)), MirrorResult::Failed);
        assert_eq!(compare(None, OK), MirrorResult::Unpaired);
    }

    /// What is counted of a pair whose sides have had these ends.
    fn counted(stable: Option<Outcome>, canary: Option<Outcome>) -> MirrorTotals {
        let hub = Hub::new(1);
        let web = "web".parse().unwrap();
        let pair = Pair::new(hub.mirror_cells(0, &web), &Mirror::default());
        let now = clock::monotonic().checked_sub(Duration::from_secs(1)).unwrap();
        pair.send(now);
        pair.begin_copy(now);
        for (role, end) in [(Role::Stable, stable), (Role::Canary, canary)] {
            let half = pair.half(role);
            if let Some(outcome) = end {
                half.answered(StatusCode::OK);
                half.ended(outcome, outcome.is_failure());
            }
        }
        drop(pair);
        hub.mirrors().remove(&web).unwrap()
    }

    #[test]
    fn the_canary_may_take_a_little_longer() {
        let cells = || Hub::new(1).mirror_cells(0, &"web".parse().unwrap());
        let slower = |tolerated, stable: u64, canary: u64| {
            let (stable, canary) = (Duration::from_micros(stable), Duration::from_micros(canary));
            Pair::new(cells(), &Mirror { tolerated, ..Mirror::default() }).is_slower(stable, canary)
        };
        assert_eq!(slower(Some(1_200), 10_000, 13_000), Some(false));
        assert_eq!(slower(Some(1_200), 10_000, 13_001), Some(true));
        // Under a millisecond it may be our own doing.
        assert_eq!(slower(Some(1_200), 100, 900), Some(false));
        assert_eq!((slower(Some(1_200), 0, 900_000), slower(None, 1, 900_000)), (None, None));
    }

    #[test]
    fn each_is_counted_once_and_a_pair_only_if_both_have_ended() {
        let ended = counted(Some(Outcome::Success), Some(Outcome::GrpcFailure));
        assert_eq!((ended.results[MirrorResult::Mismatch as usize], ended.pairs), (1, [0, 0, 1, 0]));
        assert_eq!(ended.latency.map(|latency| latency.total()), [1, 1]);
        assert_eq!(ended.compared, [1, 0]);
        for gone in [None, Some(Outcome::ClientAbort)] {
            let alone = counted(gone, Some(Outcome::Success));
            assert_eq!((alone.results[MirrorResult::Unpaired as usize], alone.pairs), (1, [0; 4]));
            let cut = counted(Some(Outcome::Success), gone);
            assert_eq!((cut.results[MirrorResult::DroppedIncomplete as usize], cut.pairs), (1, [0; 4]));
            assert_eq!(cut.results.iter().sum::<u64>(), 1);
        }
    }

    /// Whom it counts against that both have answered, with these statuses.
    fn failed_by(mismatch_fails: bool, warming: bool, statuses: [u16; 2]) -> Option<FailedBy> {
        let hub = Hub::new(1);
        let web = "web".parse().unwrap();
        let rules = Mirror { mismatch_fails, ..Mirror::default() };
        let pair = Pair::new(hub.mirror_cells(0, &web), &rules);
        pair.warming.set(warming);
        for (role, status) in Role::ALL.into_iter().zip(statuses) {
            let status = StatusCode::from_u16(status).unwrap();
            // As if it were written that 501 is no failure.
            let failed = status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED;
            let half = pair.half(role);
            half.answered(status);
            half.ended(Outcome::of_status(status), failed);
        }
        drop(pair);
        let totals = hub.mirrors().remove(&web).unwrap();
        let result = if statuses[0] == statuses[1] { MirrorResult::Match } else { MirrorResult::Mismatch };
        assert_eq!(totals.results[result as usize], 1, "{statuses:?}");
        FailedBy::ALL.into_iter().find(|by| totals.pairs[*by as usize] == 1)
    }

    #[test]
    fn another_status_than_stables_is_a_failure_of_the_canary() {
        for statuses in [[200, 404], [200, 201], [200, 302], [404, 200], [404, 403], [200, 304], [200, 501]] {
            assert_eq!(failed_by(true, false, statuses), Some(FailedBy::Canary), "{statuses:?}");
            assert_eq!(failed_by(false, false, statuses), Some(FailedBy::None), "{statuses:?}");
            assert_eq!(failed_by(true, true, statuses), None, "{statuses:?}");
        }
        // Neither the same, nor the whole of what is new to its client, nor a mended error.
        for statuses in [[200, 200], [404, 404], [304, 200], [206, 200], [501, 200], [501, 501]] {
            assert_eq!(failed_by(true, false, statuses), Some(FailedBy::None), "{statuses:?}");
        }
        for mismatch_fails in [true, false] {
            let failed_by = |statuses| failed_by(mismatch_fails, false, statuses);
            assert_eq!(failed_by([500, 200]), Some(FailedBy::Stable));
            assert_eq!(failed_by([500, 404]), Some(FailedBy::Stable));
            assert_eq!(failed_by([200, 500]), Some(FailedBy::Canary));
            assert_eq!(failed_by([500, 503]), Some(FailedBy::Both));
        }
    }

    #[test]
    fn what_is_broken_off_is_no_answer_to_compare() {
        let missing = (Some(StatusCode::NOT_FOUND), Outcome::ClientError);
        assert!(deviates(OK, missing));
        for outcome in [Outcome::Reset, Outcome::Timeout, Outcome::ConnectFailure] {
            assert!(!deviates((None, outcome), OK), "{outcome:?}");
            assert!(!deviates((Some(StatusCode::ACCEPTED), outcome), OK), "{outcome:?}");
            assert!(!deviates(OK, (None, outcome)), "{outcome:?}");
        }
        let failed_call = (Some(StatusCode::OK), Outcome::GrpcFailure);
        assert!(!deviates(failed_call, OK) && !deviates(OK, failed_call), "which calls fail, the rules say");
    }
}
