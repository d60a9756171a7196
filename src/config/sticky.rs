//! `[services.NAME.sticky]`: keeps a user on the side that they were first given, and says by what
//! they are recognised.

use std::{ops::RangeInclusive, time::Duration};

use serde::Deserialize;
use toml::Spanned;

use super::{
    Sticky, condition,
    files::Noted,
    report::Report,
    written::{Section, Text, Time, time_or},
};
use crate::{routing::snapshot::StickyCookie, tls::signing::Secrets};

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
    secret_file: Option<Text>,
    header: Option<Text>,
    client_address: Option<Spanned<bool>>,
}

impl Section for RawSticky {
    const HEADER: &'static str = "[services.NAME.sticky]";
}

/// Stickiness of one service: by cookie, unless something else is written; and what signs the cookie.
pub(super) fn lower(raw: RawSticky, report: &mut Report<'_>) -> (Sticky, Option<Secrets>) {
    let RawSticky { cookie, max_age, secret_file, header, client_address } = raw;
    let by_address = client_address.as_ref().filter(|written| *written.get_ref()).map(Spanned::span);
    let of_cookie = [
        cookie.as_ref().map(Spanned::span),
        max_age.as_ref().map(Spanned::span),
        secret_file.as_ref().map(Spanned::span),
    ];
    let of_cookie = of_cookie.into_iter().flatten().next();
    let places = [of_cookie, header.as_ref().map(Spanned::span), by_address.clone()];
    let mut places = places.into_iter().flatten();
    if let (Some(_), Some(second)) = (places.next(), places.next()) {
        report
            .error(
                second,
                "a user is recognised by a cookie, by a header or by the address, not by two of them",
            )
            .help(
                "keep the keys of one: `cookie`, `max_age` and `secret_file`; `header`; or `client_address`",
            );
    }
    if let Some(name) = header.and_then(|written| condition::field_name(&written, report)) {
        return (Sticky::Header(name), None);
    }
    if by_address.is_some() {
        return (Sticky::ClientAddress, None);
    }
    let name = cookie.and_then(|written| lower_cookie(&written, report));
    let name = name.unwrap_or_else(|| "tidegate".to_owned());
    let max_age = time_or(DAY, max_age.as_ref(), "max_age", MAX_AGE, report);
    let secrets = secret_file.map(|written| {
        let secrets = Secrets(written.get_ref().into());
        report.note(Noted::Secrets(secrets.clone(), written.span()));
        secrets
    });
    (Sticky::Cookie(StickyCookie { name, max_age }), secrets)
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
    use http::HeaderName;

    use super::{
        super::testing::{errors, parsed},
        *,
    };

    #[test]
    fn stickiness_is_off_unless_asked_for() {
        assert_eq!(parsed("").services[0].sticky, None);
        let sticky = |keys: &str| parsed(&format!("[services.web.sticky]\n{keys}")).services.remove(0).sticky;
        let cookie = StickyCookie { name: "tidegate".to_owned(), max_age: DAY };
        assert_eq!(sticky(""), Some(Sticky::Cookie(cookie.clone())));
        assert_eq!(sticky("client_address = false"), Some(Sticky::Cookie(cookie)));
        assert_eq!(sticky("client_address = true"), Some(Sticky::ClientAddress));
        let secrets =
            |keys: &str| parsed(&format!("[services.web.sticky]\n{keys}")).services.remove(0).cookie_secrets;
        assert_eq!(secrets(""), None);
        assert_eq!(secrets("secret_file = 'a'"), Some(Secrets("a".into())));
        let header = HeaderName::from_static("x-user-id");
        assert_eq!(sticky("header = 'X-User-Id'"), Some(Sticky::Header(header)));
    }

    #[test]
    fn users_are_recognised_by_one_thing() {
        for two in [
            "cookie = 'a'\nheader = 'b'",
            "max_age = '1h'\nclient_address = true",
            "secret_file = 'a'\nclient_address = true",
            "header = 'b'\nclient_address = true",
        ] {
            assert_eq!(errors(&format!("[services.web.sticky]\n{two}")).len(), 1, "{two}");
        }
    }

    #[test]
    fn cookies_have_a_name_and_an_age_that_browsers_take() {
        let bad = "[services.web.sticky]\ncookie = 'a;b'\nmax_age = '10ms'";
        assert_eq!(errors(bad), ["`a;b` cannot name a cookie", "`max_age` of 10ms is too short"]);
    }
}
