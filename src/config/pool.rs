//! `[services.NAME.pool]`: how many connections and requests a backend may have.

use std::{ops::RangeInclusive, time::Duration};

use serde::Deserialize;
use toml::Spanned;

use super::{
    report::Report,
    written::{Section, TIMEOUT, Time, count, time, time_or},
};
use crate::routing::policy::Pool;

/// More than any machine carries; beyond it a slip is likelier.
const MANY: u32 = 10_000_000;
const FROM_ONE: RangeInclusive<u32> = 1..=MANY;
const FROM_NONE: RangeInclusive<u32> = 0..=MANY;
/// Idle connections are looked at each second.
const IDLE: RangeInclusive<Duration> = Duration::from_secs(1)..=*TIMEOUT.end();

/// `[services.NAME.pool]` as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPool {
    max_connections: Option<Spanned<i64>>,
    max_concurrent_streams: Option<Spanned<i64>>,
    max_pending_requests: Option<Spanned<i64>>,
    pending_timeout: Option<Time>,
    max_requests: Option<Spanned<i64>>,
    idle_timeout: Option<Time>,
    max_idle: Option<Spanned<i64>>,
    max_requests_per_connection: Option<Spanned<i64>>,
    max_connection_age: Option<Time>,
}

impl Section for RawPool {
    const HEADER: &'static str = "[services.NAME.pool]";
}

/// What each backend of one service may have.
pub(super) fn lower(raw: RawPool, report: &mut Report<'_>) -> Pool {
    let RawPool {
        max_connections,
        max_concurrent_streams,
        max_pending_requests,
        pending_timeout,
        max_requests,
        idle_timeout,
        max_idle,
        max_requests_per_connection,
        max_connection_age,
    } = raw;
    let default = Pool::default();
    let mut number = |written: Option<Spanned<i64>>, key, allowed| {
        written.and_then(|written| count(&written, key, allowed, report))
    };
    let max_connections = number(max_connections, "max_connections", FROM_ONE);
    let max_concurrent_streams = number(max_concurrent_streams, "max_concurrent_streams", FROM_ONE);
    let max_pending_requests = number(max_pending_requests, "max_pending_requests", FROM_NONE);
    let max_requests = number(max_requests, "max_requests", FROM_ONE);
    let max_idle = number(max_idle, "max_idle", FROM_NONE);
    let max_requests_per_connection =
        number(max_requests_per_connection, "max_requests_per_connection", FROM_ONE);
    let pending = pending_timeout.as_ref();
    Pool {
        max_connections,
        max_concurrent_streams: max_concurrent_streams.unwrap_or(default.max_concurrent_streams),
        max_pending_requests: max_pending_requests.unwrap_or(default.max_pending_requests),
        pending_timeout: time_or(default.pending_timeout, pending, "pending_timeout", TIMEOUT, report),
        max_requests,
        idle_timeout: time_or(default.idle_timeout, idle_timeout.as_ref(), "idle_timeout", IDLE, report),
        max_idle: max_idle.unwrap_or(default.max_idle),
        max_requests_per_connection,
        max_connection_age: max_connection_age
            .and_then(|written| time(&written, "max_connection_age", TIMEOUT, report)),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{errors, parsed},
        *,
    };

    #[test]
    fn every_key_has_a_default() {
        assert_eq!(parsed("").services[0].policy.pool, Pool::default());
        assert_eq!(parsed("[services.web.pool]").services[0].policy.pool, Pool::default());
    }

    #[test]
    fn every_mistake_is_named() {
        let wrong = "[services.web.pool]\nmax_connections = 0\nmax_concurrent_streams = 0\nmax_pending_requests = -1\n\
                     pending_timeout = '0s'\nmax_requests = 0\nidle_timeout = '10ms'\nmax_idle = -1\n\
                     max_requests_per_connection = 0\nmax_connection_age = '0s'";
        assert_eq!(errors(wrong).len(), 9);
    }
}
