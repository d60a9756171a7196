//! What gRPC says inside HTTP: how a call ended, how long it may take, and that it failed here.
//!
//! A call that fails is an HTTP 200 with a `grpc-status` in the trailers, or in the head if there is
//! nothing else to say (gRPC over HTTP/2, "Responses"). Only requests over HTTP/2 are looked at: gRPC
//! needs it, and HTTP/1.1 shall not pay for it.

use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header};

use crate::{
    clock,
    model::{failure::GrpcStatuses, outcome::Outcome},
    net::timers::{Deadline, Timers},
};

const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/grpc");

const DEADLINE_EXCEEDED: u16 = 4;
const UNAVAILABLE: u16 = 14;

/// How much sooner than its deadline a client may give a call up and still have kept to it: its clock
/// began before ours, and tells time differently.
const SLACK: Duration = Duration::from_millis(50);

/// Whether a request is a gRPC call.
pub(super) fn is_call<B>(request: &Request<B>) -> bool {
    request.version() == Version::HTTP_2
        && request.method() == Method::POST
        && request.headers().get(header::CONTENT_TYPE).is_some_and(is_grpc)
}

/// `application/grpc`, alone or with a message format or parameters; not `application/grpc-web`.
fn is_grpc(content_type: &HeaderValue) -> bool {
    let value = content_type.as_bytes();
    let Some((begin, rest)) = value.split_at_checked(CONTENT_TYPE.len()) else { return false };
    begin.eq_ignore_ascii_case(CONTENT_TYPE.as_bytes())
        && matches!(rest.first(), None | Some(b'+' | b';' | b' '))
}

/// A call's deadline, where its client has given one.
#[derive(Debug)]
pub(super) struct CallDeadline {
    /// When the call is over.
    due: Instant,
    /// Wakes whoever waits then.
    pub(super) deadline: Deadline,
}

impl CallDeadline {
    /// The deadline of a call that began at `started`, at most `max` later. A value that is not in the
    /// protocol's form is passed on and means nothing here.
    pub(super) fn of(
        headers: &HeaderMap,
        started: Instant,
        max: Option<Duration>,
        timers: &std::rc::Rc<Timers>,
    ) -> Option<Self> {
        let asked = parse_timeout(headers.get(TIMEOUT)?.as_bytes())?;
        let granted = max.map_or(asked, |max| asked.min(max));
        let due = started.checked_add(granted)?;
        let deadline = timers.deadline();
        deadline.arm(granted);
        Some(Self { due, deadline })
    }

    /// From when on it is the call's end if its client gives it up.
    pub(super) fn kept_from(&self) -> Instant {
        self.due.checked_sub(SLACK).unwrap_or(self.due)
    }

    /// What is left of it.
    pub(super) fn left(&self, now: Instant) -> Duration {
        self.due.saturating_duration_since(now)
    }

    /// Tells the backend what is left.
    pub(super) fn forward(&self, headers: &mut HeaderMap) {
        headers.insert(TIMEOUT, format_timeout(self.left(clock::monotonic())));
    }
}

/// Reads `grpc-timeout`: up to eight digits and a unit.
pub(super) fn parse_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if !(1..=8).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let n = digits.iter().fold(0, |n, digit| n * 10 + u64::from(digit - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(n * 3600),
        b'M' => Duration::from_secs(n * 60),
        b'S' => Duration::from_secs(n),
        b'm' => Duration::from_millis(n),
        b'u' => Duration::from_micros(n),
        b'n' => Duration::from_nanos(n),
        _ => return None,
    })
}

/// Writes a time in the finest unit that eight digits hold, rounded down.
pub(super) fn format_timeout(time: Duration) -> HeaderValue {
    let units: [(u128, char); 6] = [
        (1, 'n'),
        (1_000, 'u'),
        (1_000_000, 'm'),
        (1_000_000_000, 'S'),
        (60 * 1_000_000_000, 'M'),
        (3600 * 1_000_000_000, 'H'),
    ];
    let nanos = time.as_nanos();
    let fits = |(size, _): &&(u128, char)| nanos / size <= MAX_DIGITS;
    let (size, unit) = units.iter().find(fits).unwrap_or(&units[5]);
    let text = format!("{}{unit}", (nanos / size).min(MAX_DIGITS));
    HeaderValue::try_from(text).expect("digits and a letter are visible ASCII")
}

/// The most that eight digits can say.
const MAX_DIGITS: u128 = 99_999_999;

/// How a call ended, as its response's head says: what the trailers may say otherwise is not there
/// yet, and no status at all is the server's failure.
pub(super) fn outcome_of_head(status: StatusCode, headers: &HeaderMap, failures: GrpcStatuses) -> Outcome {
    if status == StatusCode::OK { outcome(headers, failures) } else { Outcome::of_status(status) }
}

/// Whether it is the trailers that say how a call ended, of which the head says so much.
pub(super) fn awaits_trailers(outcome: Outcome, headers: &HeaderMap) -> bool {
    outcome == Outcome::GrpcFailure && !has_status(headers)
}

/// The name of the status that these fields say.
pub(super) fn name_of_status(fields: &HeaderMap) -> Option<&'static str> {
    let code: usize = fields.get(STATUS)?.to_str().ok()?.parse().ok()?;
    GrpcStatuses::NAMES.get(code).copied()
}

/// Whether a response's head ends the call.
pub(super) fn has_status(headers: &HeaderMap) -> bool {
    headers.contains_key(STATUS)
}

/// How a call ended, as the fields say that end it, where these statuses are failures.
pub(super) fn outcome(fields: &HeaderMap, failures: GrpcStatuses) -> Outcome {
    match fields.get(STATUS).map(HeaderValue::as_bytes) {
        Some(code) if !failures.contains(code) => Outcome::Success,
        _ => Outcome::GrpcFailure,
    }
}

/// Whether a response's head ends the call with UNAVAILABLE.
pub(super) fn is_unavailable(headers: &HeaderMap) -> bool {
    headers.get(STATUS).is_some_and(|code| code == "14")
}

/// The trailers of a call that took too long after its response had begun.
pub(super) fn too_late() -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert(STATUS, HeaderValue::from(DEADLINE_EXCEEDED));
    trailers.insert(MESSAGE, HeaderValue::from_static("the call took longer than its deadline"));
    trailers
}

/// The trailers of a call that ends because its backend was rolled back: another try is another backend's.
pub(super) fn rolled_back() -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert(STATUS, HeaderValue::from(UNAVAILABLE));
    trailers.insert(MESSAGE, HeaderValue::from_static("the version that served this call was rolled back"));
    trailers
}

/// Turns a local reply into what a gRPC client understands: an HTTP 200 that has only trailers.
pub(super) fn dress<B>(response: &mut Response<B>, text: &'static str) {
    let code = code_of(response.status());
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, CONTENT_TYPE);
    headers.insert(STATUS, HeaderValue::from(code));
    headers.insert(MESSAGE, HeaderValue::from_static(text));
}

/// The code for a status, as linkerd has it for its own replies; where it has none, as gRPC says that
/// clients shall take a status without code. No route is UNIMPLEMENTED, since NOT_FOUND is for
/// applications to say.
fn code_of(status: StatusCode) -> u16 {
    match status.as_u16() {
        400 | 500 => 13,
        401 => 16,
        403 => 7,
        404 | 405 | 501 => 12,
        408 | 504 => DEADLINE_EXCEEDED,
        429 => 8,
        502 | 503 => 14,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_call_is_told_by_its_content_type() {
        for (content_type, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("Application/gRPC; x=y", true),
            ("application/grpc-web", false),
            ("application/grp", false),
            ("text/plain", false),
        ] {
            assert_eq!(is_grpc(&HeaderValue::from_static(content_type)), expected, "{content_type}");
        }
    }

    #[test]
    fn a_call_ends_as_its_status_says() {
        let ended = |code: Option<&str>| {
            let fields = HeaderMap::from_iter(code.map(|code| (STATUS, code.parse().unwrap())));
            outcome(&fields, GrpcStatuses::default())
        };
        assert_eq!(ended(Some("5")), Outcome::Success);
        for failed in [Some("13"), Some("17"), Some(""), None] {
            assert_eq!(ended(failed), Outcome::GrpcFailure, "{failed:?}");
        }
        let of_head = |status| outcome_of_head(status, &HeaderMap::new(), GrpcStatuses::default());
        assert_eq!(of_head(StatusCode::NOT_FOUND), Outcome::ClientError);
        assert_eq!(of_head(StatusCode::OK), Outcome::GrpcFailure);
    }

    #[test]
    fn timeouts_are_read_as_the_protocol_has_them() {
        assert_eq!(parse_timeout(b"99999999n"), Some(Duration::from_nanos(99_999_999)));
        assert_eq!(parse_timeout(b"2H"), Some(Duration::from_secs(7200)));
        assert_eq!(parse_timeout(b"3M"), Some(Duration::from_secs(180)));
        assert_eq!(parse_timeout(b"0m"), Some(Duration::ZERO));
        for odd in [&b""[..], b"S", b"1", b"123456789n", b"1s", b"-1S", b"1 S", b"1.5S"] {
            assert_eq!(parse_timeout(odd), None, "{odd:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_left_is_written_as_it_is_read(nanos in 0u64..u64::MAX) {
            let time = Duration::from_nanos(nanos);
            let read = parse_timeout(format_timeout(time).as_bytes()).unwrap();
            prop_assert!(read <= time);
            // Eight digits, and at least five of them where it is not written exactly.
            prop_assert!(time - read <= time / 10_000 || time < Duration::from_millis(100));
        }
    }
}
