//! Tests of one value, shared by routes and by rules that force a role:
//! `{ name = "x-beta", value = "1" }`.

use http::HeaderName;
use serde::Deserialize;
use toml::Spanned;

use super::{
    report::Report,
    written::{Section, Table, Text},
};
use crate::routing::{
    condition::{HeaderTest, PairTest, Test},
    pattern::{InvalidPattern, Pattern},
};

/// A test as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTest {
    name: Option<Text>,
    value: Option<Text>,
    regex: Option<Text>,
    present: Option<Spanned<bool>>,
}

impl Section for RawTest {
    const HEADER: &'static str = "{ name = \"…\", value = \"…\" }";
}

/// A test, and where it stands.
pub(super) type WrittenTest = Spanned<Table<RawTest>>;

/// What names the value that is tested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subject {
    Header,
    Cookie,
    Parameter,
}

impl Subject {
    fn in_words(self) -> &'static str {
        match self {
            Self::Header => "header",
            Self::Cookie => "cookie",
            Self::Parameter => "query parameter",
        }
    }
}

/// A test of a header field.
pub(super) fn header(raw: WrittenTest, report: &mut Report<'_>) -> Option<HeaderTest> {
    let (name, test) = lower(raw, Subject::Header, report)?;
    Some(HeaderTest { name: field_name(&name, report)?, test })
}

/// A test of a query parameter or a cookie.
pub(super) fn pair(raw: WrittenTest, subject: Subject, report: &mut Report<'_>) -> Option<PairTest> {
    let (name, test) = lower(raw, subject, report)?;
    if name.get_ref().is_empty() {
        let problem = format!("the name of a {} cannot be empty", subject.in_words());
        report.error(name.span(), problem).help("write its name");
        return None;
    }
    Some(PairTest { name: name.into_inner().into(), test })
}

fn lower(raw: WrittenTest, subject: Subject, report: &mut Report<'_>) -> Option<(Text, Test)> {
    let place = raw.span();
    let RawTest { name, value, regex, present } = raw.into_inner().0;
    let subject = subject.in_words();
    if name.is_none() {
        report
            .error(place.clone(), format!("this test does not say which {subject} it is about"))
            .help("add `name = \"…\"`");
    }
    let test = match (value, regex, present) {
        (Some(value), None, None) => Some(Test::Exact(value.into_inner().into())),
        (None, Some(regex), None) => pattern(&regex, report).map(Test::Regex),
        (None, None, Some(present)) => Some(if *present.get_ref() { Test::Present } else { Test::Absent }),
        (None, None, None) => {
            report
                .error(place, format!("this test does not say what the {subject} must be"))
                .help("add one of `value = \"…\"`, `regex = \"…\"` and `present = true`");
            None
        }
        _ => {
            report
                .error(place, format!("this test says more than once what the {subject} must be"))
                .help("keep one of `value`, `regex` and `present`");
            None
        }
    };
    Some((name?, test?))
}

/// A regular expression; nothing, and a fault, if it is wrong.
pub(super) fn pattern(written: &Text, report: &mut Report<'_>) -> Option<Pattern> {
    match Pattern::new(written.get_ref()) {
        Ok(pattern) => Some(pattern),
        Err(fault) => {
            bad_pattern(written, &fault, report);
            None
        }
    }
}

/// Says what is wrong with a regular expression.
pub(super) fn bad_pattern(written: &Text, fault: &InvalidPattern, report: &mut Report<'_>) {
    let text = written.get_ref();
    let (problem, remedy) = match fault {
        InvalidPattern::Syntax(_) => (
            format!("`{text}` is not a regular expression: {fault}"),
            "see https://docs.rs/regex for how one is written",
        ),
        InvalidPattern::TooComplex => (
            format!("the regular expression `{text}` cannot be used: {fault}"),
            "use shorter counts in `{…}`, or several simpler ones",
        ),
    };
    report.error(written.span(), problem).help(remedy);
}

/// The name of a header field; nothing, and a fault, if it is wrong.
pub(super) fn field_name(written: &Text, report: &mut Report<'_>) -> Option<HeaderName> {
    let name = HeaderName::try_from(written.get_ref().as_str());
    if name.is_err() {
        report
            .error(written.span(), format!("`{}` cannot name a header", written.get_ref()))
            .help("use letters, digits, `-` and `_`, such as `\"x-version\"`");
    }
    name.ok()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{errors, parsed};

    fn with_header(test: &str) -> String {
        format!("[[routes]]\nservice = 'web'\nheaders = [{test}]")
    }

    #[test]
    fn a_test_is_of_one_kind() {
        for good in ["value = '1'", "regex = '[0-9]+'", "present = true", "present = false", "value = ''"] {
            let config = parsed(&with_header(&format!("{{ name = 'x-a', {good} }}")));
            assert_eq!(config.routes[1].conditions.headers.len(), 1, "{good}");
        }
        for (bad, problem) in [
            ("{ name = 'x-a' }", "this test does not say what the header must be"),
            (
                "{ name = 'x-a', value = '1', regex = '1' }",
                "this test says more than once what the header must be",
            ),
            ("{ value = '1' }", "this test does not say which header it is about"),
            ("{ name = 'x a', value = '1' }", "`x a` cannot name a header"),
            ("{ name = 'x-a', regex = '(' }", "`(` is not a regular expression: unclosed group"),
            (
                "{ name = 'x-a', regex = '(a|b)*a(a|b){40}' }",
                "the regular expression `(a|b)*a(a|b){40}` cannot be used: it is too complex",
            ),
        ] {
            assert_eq!(errors(&with_header(bad)), [problem]);
        }
        let query = "[[routes]]\nservice = 'web'\nquery = [{ name = '', present = true }]";
        assert_eq!(errors(query), ["the name of a query parameter cannot be empty"]);
    }
}
