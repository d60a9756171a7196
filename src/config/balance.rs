//! `[services.NAME.balance]`: how an endpoint is chosen among those of a backend.

use std::ops::RangeInclusive;

use http::HeaderName;
use serde::Deserialize;
use toml::Spanned;

use super::{
    report::Report,
    sticky,
    suggest::suggest,
    written::{Section, TIMEOUT, Text, Time, count, time},
};
use crate::routing::policy::{Algorithm, Balance, HashOn};

const ALGORITHMS: [&str; 4] = ["least-request", "peak-ewma", "round-robin", "consistent-hash"];
const PERCENT: RangeInclusive<u32> = 0..=100;

/// `[services.NAME.balance]` as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawBalance {
    algorithm: Option<Text>,
    hash_on: Option<Text>,
    slow_start: Option<Time>,
    panic_threshold: Option<Spanned<i64>>,
}

impl Section for RawBalance {
    const HEADER: &'static str = "[services.NAME.balance]";
}

/// How the endpoints of one service's backends are chosen.
pub(super) fn lower(raw: RawBalance, report: &mut Report<'_>) -> Balance {
    let RawBalance { algorithm, hash_on, slow_start, panic_threshold } = raw;
    let default = Balance::default();
    let key = hash_on.as_ref().and_then(|written| lower_key(written, report));
    let name = algorithm.as_ref().map_or(ALGORITHMS[0], |written| written.get_ref());
    let algorithm = match name {
        "least-request" => Algorithm::LeastRequest,
        "peak-ewma" => Algorithm::PeakEwma,
        "round-robin" => Algorithm::RoundRobin,
        "consistent-hash" => Algorithm::ConsistentHash(key.unwrap_or(HashOn::ClientAddress)),
        other => {
            let place = algorithm.as_ref().map(Spanned::span).unwrap_or_default();
            let remedy = suggest(other, &ALGORITHMS, "algorithms");
            report.error(place, format!("`{other}` is not a way to balance")).help_if(remedy);
            return default;
        }
    };
    let hashes = matches!(algorithm, Algorithm::ConsistentHash(_));
    if let Some(written) = hash_on.filter(|_| !hashes) {
        report
            .error(written.span(), format!("`hash_on` means nothing to `{name}`"))
            .help("write `algorithm = \"consistent-hash\"`, or remove `hash_on`");
    }
    if let Some(written) = slow_start.as_ref().filter(|_| hashes) {
        report
            .error(written.span(), "`slow_start` means nothing to `consistent-hash`")
            .help("remove it: a key goes to its endpoint, new or not");
    }
    Balance {
        algorithm,
        slow_start: slow_start.and_then(|written| time(&written, "slow_start", TIMEOUT, report)),
        panic_threshold: panic_threshold
            .and_then(|written| count(&written, "panic_threshold", PERCENT, report))
            .and_then(|percent| u8::try_from(percent).ok())
            .unwrap_or(default.panic_threshold),
    }
}

/// What requests are hashed on.
fn lower_key(written: &Text, report: &mut Report<'_>) -> Option<HashOn> {
    let text = written.get_ref();
    let key = match text.split_once(':') {
        None if text == "client-address" => Some(HashOn::ClientAddress),
        Some(("header", name)) => HeaderName::try_from(name).ok().map(HashOn::Header),
        Some(("cookie", name)) if sticky::is_cookie_name(name) => Some(HashOn::Cookie(name.to_owned())),
        _ => None,
    };
    if key.is_none() {
        report
            .error(written.span(), format!("`{text}` is nothing that a request could be hashed on"))
            .help("write `\"client-address\"`, `\"header:NAME\"` or `\"cookie:NAME\"`");
    }
    key
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{errors, parsed},
        *,
    };

    fn balance(written: &str) -> Balance {
        parsed(&format!("[services.web.balance]\n{written}")).services.remove(0).policy.balance
    }

    #[test]
    fn every_key_has_a_default() {
        assert_eq!(parsed("").services[0].policy.balance, Balance::default());
        assert_eq!(balance(""), Balance::default());
    }

    #[test]
    fn a_key_is_an_address_a_field_or_a_cookie() {
        for (written, key) in [
            ("", HashOn::ClientAddress),
            ("hash_on = 'client-address'", HashOn::ClientAddress),
            ("hash_on = 'header:X-User'", HashOn::Header(HeaderName::from_static("x-user"))),
            ("hash_on = 'cookie:sid'", HashOn::Cookie("sid".to_owned())),
        ] {
            let found = balance(&format!("algorithm = 'consistent-hash'\n{written}"));
            assert_eq!(found.algorithm, Algorithm::ConsistentHash(key), "{written}");
        }
        for wrong in ["x-user", "header:", "header:a b", "cookie:a;b", "query:q"] {
            let text = format!("[services.web.balance]\nalgorithm = 'consistent-hash'\nhash_on = '{wrong}'");
            assert_eq!(errors(&text).len(), 1, "{wrong}");
        }
    }

    #[test]
    fn every_mistake_is_named() {
        let wrong = "[services.web.balance]\nhash_on = 'cookie:a'\nslow_start = '0s'\npanic_threshold = 101";
        assert_eq!(errors(wrong).len(), 3);
        let wrong = "[services.web.balance]\nalgorithm = 'consistent-hash'\nslow_start = '5s'";
        assert_eq!(errors(wrong), ["`slow_start` means nothing to `consistent-hash`"]);
    }
}
