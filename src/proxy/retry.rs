//! A request that has failed, tried again: at another endpoint of its backend, or, if the canary has
//! failed it and the service shields its users from that, or it was rolled back meanwhile, at stable.
//!
//! Each try is an attempt of its own, and is scored against the backend that it was made at. A try is only
//! made again as long as the client has heard nothing, and what failed is let go only once there is
//! an endpoint that takes its place: else the client gets what there is. [`crate::routing::retry`] has the
//! rules.

use std::{
    cell::RefCell,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;

use super::{
    attempt::Attempt,
    budget::Budget,
    client::Client,
    context::{Context, Endpoint},
    error::ProxyError,
    exchange::{self, Held, Routed, copy_head, outcome_of_head},
    grpc::{self, CallDeadline},
    kept::Kept,
    upload::RequestBody,
};
use crate::{
    clock,
    model::{outcome::Outcome, protocol::Protocol, role::Role},
    routing::{
        retry::{Failure, Retry as Rules},
        split::Assignment,
    },
    telemetry::retries::{RetryCells, RetryResult},
};

/// What a request comes to at a backend.
type Answered = Result<(Held, Response<Incoming>), ProxyError>;

/// What one worker has for the retries of a service.
#[derive(Debug)]
pub(super) struct Retries {
    rules: Arc<Rules>,
    budget: RefCell<Budget>,
    cells: Arc<RetryCells>,
    began: Instant,
}

impl Retries {
    /// By these rules, for one of so many workers.
    pub(super) fn new(rules: &Arc<Rules>, workers: usize, cells: Arc<RetryCells>) -> Self {
        let budget = RefCell::new(Budget::new(rules.budget, workers));
        Self { rules: Arc::clone(rules), budget, cells, began: clock::monotonic() }
    }

    /// Whether these are its rules.
    pub(super) fn follow(&self, rules: &Rules) -> bool {
        *self.rules == *rules
    }

    fn second(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.began).as_secs()
    }
}

/// What a request is tried again with.
#[derive(Debug)]
pub(super) struct Retry {
    service: Rc<Retries>,
    client: Rc<Client>,
    /// The request as it was when it was ready to be sent, without its body.
    head: Request<RequestBody>,
    /// Its body, if it has one.
    kept: Option<Rc<Kept>>,
    /// What it is hashed on, if it is.
    key: Option<u64>,
    /// Where it has failed, of the backend that it is at.
    tried: Vec<Rc<Endpoint>>,
    /// Tries that are left.
    left: u32,
    /// Tries made beyond the first.
    made: u32,
    /// It is at a canary that its users are shielded from.
    shields: bool,
    /// When the first try began, and how long all of them may take.
    began: Instant,
    response: Duration,
}

impl Retry {
    /// Prepares a request that is ready to be sent for being sent again, if it may be.
    pub(super) fn prepare(
        service: &Rc<Retries>,
        client: &Rc<Client>,
        routed: &mut Routed,
        key: Option<u64>,
        now: Instant,
    ) -> Option<Box<Self>> {
        let rules = &service.rules;
        service.budget.borrow_mut().earn(service.second(now));
        let response = routed.wait.timeouts.response;
        routed.wait.timeouts.response = rules.for_one_try(response);
        let Assignment { backend: _, role, reason, .. } = routed.way.assignment();
        // Whoever asks for the canary wants to see what it does.
        let shields = rules.shield && role == Role::Canary && reason.is_drawn();
        if rules.attempts == 0 && !shields {
            return None;
        }
        let head = copy_head(&routed.request);
        // What has begun to go to HTTP/1.1 may have been seen.
        let may_be_unseen = routed.attempt.endpoint().address().protocol == Protocol::Http2;
        let most = if may_be_unseen || head.method().is_idempotent() { rules.max_body } else { 0 };
        let (body, kept) = std::mem::take(routed.request.body_mut()).kept(most);
        *routed.request.body_mut() = body;
        Some(Box::new(Self {
            head,
            kept,
            key,
            tried: Vec::new(),
            left: rules.attempts,
            made: 0,
            shields,
            began: now,
            response,
            service: Rc::clone(service),
            client: Rc::clone(client),
        }))
    }

    /// What takes the place of a try that has failed so, if anything may and does.
    fn next(
        &mut self,
        Failed { failure, counts }: Failed,
        routed: &Routed,
        context: &Context,
    ) -> Option<Next> {
        let (rules, method) = (&self.service.rules, self.head.method());
        let shields = self.shields && counts && rules.shields(failure, method);
        if !shields && (self.left == 0 || !rules.covers(failure, method)) {
            return None;
        }
        let next = self.reserve(shields, routed, context);
        next.inspect_err(|result| self.service.cells.count(*result, shields)).ok()
    }

    fn reserve(&mut self, shields: bool, routed: &Routed, context: &Context) -> Result<Next, RetryResult> {
        if self.kept.as_ref().is_some_and(|kept| !kept.is_whole()) {
            return Err(RetryResult::BodyTooLarge);
        }
        let last = routed.way.assignment();
        let to = if shields { routed.way.shielded() } else { routed.way.again(last, &context.view()) };
        // At another backend there is nothing to wait for.
        let wait = if to.backend == last.backend {
            self.service.rules.backoff.wait(self.made + 1, context.random())
        } else {
            Duration::ZERO
        };
        let now = clock::monotonic();
        let (second, begins) = (self.service.second(now), now + wait);
        let call = routed.wait.call.as_deref();
        let left = self.response.saturating_sub(begins.saturating_duration_since(self.began));
        if left.is_zero() || call.is_some_and(|call| call.left(begins).is_zero()) {
            return Err(RetryResult::NoTime);
        }
        if !self.service.budget.borrow_mut().allows(second) {
            return Err(RetryResult::BudgetExhausted);
        }
        self.tried.push(Rc::clone(routed.attempt.endpoint()));
        let attempt = self.attempt(to, begins, routed, context).ok_or(RetryResult::NoEndpoint)?;
        self.service.budget.borrow_mut().spend(second);
        self.left = self.left.saturating_sub(1);
        self.made += 1;
        let response = self.service.rules.for_one_try(left);
        let made = Made { service: Rc::clone(&self.service), shields, ended: false };
        Ok(Next { attempt, assignment: to, wait, response, made })
    }

    /// An attempt at an endpoint that has not been tried, if there is one.
    fn attempt(
        &mut self,
        to: Assignment,
        begins: Instant,
        routed: &Routed,
        context: &Context,
    ) -> Option<Attempt> {
        let (way, now) = (&routed.way, clock::monotonic());
        if to.backend != way.assignment().backend {
            self.tried.clear();
        }
        let backend = way.view().backend(to.backend);
        let endpoint = backend.choose_other(&self.tried, self.key, now, || context.random())?;
        let writer = way.writer(to, &endpoint, now);
        let mut attempt = Attempt::reserve(writer, endpoint, &self.client, begins);
        attempt.keep_from(routed.wait.call.as_deref().map(CallDeadline::kept_from));
        self.shields &= to.role == Role::Canary;
        Some(attempt)
    }

    /// The request, to be sent from its beginning.
    fn request(&self) -> Request<RequestBody> {
        let mut request = copy_head(&self.head);
        if let Some(kept) = &self.kept {
            *request.body_mut() = RequestBody::Kept(Box::new(kept.send()));
        }
        request
    }
}

impl Drop for Retry {
    fn drop(&mut self) {
        if let Some(kept) = &self.kept {
            kept.let_go();
        }
    }
}

/// The next try.
struct Next {
    attempt: Attempt,
    assignment: Assignment,
    /// How long it waits.
    wait: Duration,
    /// How long the head of its response may take.
    response: Duration,
    made: Made,
}

/// A retry, counted once whatever happens to it.
struct Made {
    service: Rc<Retries>,
    shields: bool,
    ended: bool,
}

impl Made {
    fn end(mut self, result: RetryResult) {
        self.ended = true;
        self.service.cells.count(result, self.shields);
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if !self.ended {
            self.service.cells.count(RetryResult::ClientAbort, self.shields);
        }
    }
}

/// Sends a request, and sends it again as long as that fails and may be done.
pub(super) async fn send(routed: &mut Routed, context: &Context) -> Answered {
    let Some(mut retry) = routed.retry.take() else { return exchange::send(routed).await };
    let mut made: Option<Made> = None;
    loop {
        let answered = exchange::send(routed).await;
        let failed = failed(&answered, routed);
        if let Some(made) = made.take() {
            made.end(result(&answered, failed.is_some()));
        }
        let next = failed.and_then(|failed| retry.next(failed, routed, context));
        let Some(next) = next else { return answered };
        let entry = routed.attempt.entry().cloned();
        let_go(answered, routed);
        made = Some(next.made);
        let (mut attempt, mut assignment) = (next.attempt, next.assignment);
        // Before waiting: whoever has not noticed yet that it was given up gets no more of the body.
        let mut request = retry.request();
        if !next.wait.is_zero() {
            tokio::time::sleep(next.wait).await;
            let to = routed.way.again(assignment, &context.view());
            if to.backend != assignment.backend
                && let Some(other) = retry.attempt(to, clock::monotonic(), routed, context)
            {
                (attempt, assignment) = (other, to);
            }
        }
        attempt.go();
        if let Some(entry) = &entry {
            let (topology, service) = (routed.way.view().snapshot.topology(), routed.way.service());
            entry.assigned(topology, service, assignment);
            attempt.log_to(entry);
            if let Some(trace) = entry.trace() {
                trace.pass_again(request.headers_mut());
            }
        }
        routed.attempt = attempt;
        routed.way.assign(assignment);
        routed.wait.timeouts.response = next.response;
        routed.request = request;
    }
}

/// How a try has failed, and whether that counts against the backend.
#[derive(Clone, Copy)]
struct Failed {
    failure: Failure,
    counts: bool,
}

/// How a try has failed, if it is the backend that has failed.
fn failed(answered: &Answered, routed: &Routed) -> Option<Failed> {
    let response = match answered {
        // What was cut counts against nobody, and its user is shielded from that like from a failure.
        Err(error) => return error.failure().map(|failure| Failed { failure, counts: true }),
        Ok((_, response)) => response,
    };
    let (status, headers, way) = (response.status(), response.headers(), &routed.way);
    if routed.wait.is_call && status == StatusCode::OK {
        // Without a status, the trailers are still to say how it ended.
        let counts =
            grpc::has_status(headers) && grpc::outcome(headers, way.grpc_failures()) == Outcome::GrpcFailure;
        let failure = if grpc::is_unavailable(headers) { Failure::Unavailable } else { Failure::Call };
        return (counts || failure == Failure::Unavailable).then_some(Failed { failure, counts });
    }
    let is_error = Outcome::of_status(status).is_failure();
    let counts = way.fails(status, routed.wait.is_call).unwrap_or(is_error);
    (counts || is_error).then_some(Failed { failure: Failure::Status(status.as_u16()), counts })
}

/// What became of a retry.
fn result(answered: &Answered, failed: bool) -> RetryResult {
    match answered {
        _ if failed => RetryResult::Failure,
        Ok(_) => RetryResult::Success,
        Err(error) if error.is_limit() => RetryResult::NoEndpoint,
        Err(_) => RetryResult::ClientAbort,
    }
}

/// Ends a try that another takes the place of. Its connection can be used again if all of the response
/// is there.
fn let_go(answered: Answered, routed: &mut Routed) {
    let attempt = &mut routed.attempt;
    match answered {
        Err(error) => {
            if let Some(outcome) = error.outcome() {
                attempt.end(outcome);
            }
        }
        Ok((held, response)) => {
            let (way, is_call) = (&routed.way, routed.wait.is_call);
            attempt.answered(response.status(), way.fails(response.status(), is_call));
            if let Some(entry) = attempt.entry().filter(|_| is_call) {
                entry.called(response.headers());
            }
            let call = is_call.then(|| way.grpc_failures());
            let now = attempt.end(outcome_of_head(response.status(), response.headers(), call));
            drop(response);
            // One on which the request is still being sent cannot take another.
            if routed.wait.progress.as_ref().is_none_or(|progress| progress.done.get()) {
                held.release(attempt.endpoint(), now);
            }
        }
    }
}
