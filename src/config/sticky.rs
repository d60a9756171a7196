//! `[services.NAME.sticky]`: keeps a user on the side that they were first given.

use std::{ops::RangeInclusive, time::Duration};

use serde::Deserialize;

use super::{
    Sticky,
    report::Report,
    written::{Section, Text, Time, time_or},
};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Browsers cut a longer life to 400 days (RFC 6265bis, section 5.5), and whole seconds are all
/// that `Max-Age` can say.
const MAX_AGE: RangeInclusive<Duration> = Duration::from_secs(1)..=DAY.saturating_mul(400);

/// `[services.NAME.sticky]` as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawSticky {
    cookie: Option<Text>,
    max_age: Option<Time>,
}

impl Section for RawSticky {
    const HEADER: &'static str = "[services.NAME.sticky]";
}

/// Stickiness of one service.
pub(super) fn lower(raw: RawSticky, report: &mut Report<'_>) -> Sticky {
    let RawSticky { cookie, max_age } = raw;
    let cookie = cookie.and_then(|written| lower_cookie(&written, report));
    let cookie = cookie.unwrap_or_else(|| "tidegate".to_owned());
    Sticky { cookie, max_age: time_or(DAY, max_age.as_ref(), "max_age", MAX_AGE, report) }
}

fn lower_cookie(written: &Text, report: &mut Report<'_>) -> Option<String> {
    let name = written.get_ref();
    if !is_cookie_name(name) {
        report
            .error(written.span(), format!("`{name}` cannot name a cookie"))
            .help("use letters, digits, `-` and `_`, such as `\"tidegate\"`");
        return None;
    }
    Some(name.clone())
}

/// Whether a text can name a cookie.
pub(super) fn is_cookie_name(name: &str) -> bool {
    // RFC 6265, section 4.1.1: a cookie's name is a token of RFC 2616.
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !name.is_empty() && name.bytes().all(token)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{errors, parsed};

    #[test]
    fn stickiness_is_off_unless_asked_for() {
        assert_eq!(parsed("").services[0].sticky, None);
        let sticky = parsed("[services.web.sticky]").services.remove(0).sticky.unwrap();
        assert_eq!((sticky.cookie.as_str(), sticky.max_age), ("tidegate", super::DAY));
    }

    #[test]
    fn cookies_have_a_name_and_an_age_that_browsers_take() {
        let bad = "[services.web.sticky]\ncookie = 'a;b'\nmax_age = '10ms'";
        assert_eq!(errors(bad), ["`a;b` cannot name a cookie", "`max_age` of 10ms is too short"]);
    }
}
