//! `[services.NAME.failures]` and `[routes.failures]`: what counts against a backend.

use std::ops::RangeInclusive;

use serde::Deserialize;

use super::{
    report::Report,
    suggest::suggest,
    written::{Section, Text},
};
use crate::model::failure::{Failures, GrpcStatuses, Statuses};

/// The table as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawFailures {
    statuses: Option<Vec<Text>>,
    except: Option<Vec<Text>>,
    grpc_statuses: Option<Vec<Text>>,
}

impl Section for RawFailures {
    const HEADER: &'static str = "failures = { statuses = [\"5xx\"] }";
}

/// What counts against a backend; what is left out is as it is by default.
pub(super) fn lower(raw: RawFailures, report: &mut Report<'_>) -> Failures {
    let RawFailures { statuses, except, grpc_statuses } = raw;
    let mut failures = Failures::default();
    if let Some(written) = statuses {
        failures.statuses = Statuses::default();
        written
            .iter()
            .filter_map(|text| lower_statuses(text, report))
            .for_each(|range| failures.statuses.insert(range));
    }
    for text in except.unwrap_or_default() {
        let Some(range) = lower_statuses(&text, report) else { continue };
        if !failures.statuses.remove(range) {
            report
                .warning(text.span(), format!("`{}` is no failure anyway", text.get_ref()))
                .help("`except` takes away from `statuses`: remove it here, or add it there");
        }
    }
    if let Some(written) = grpc_statuses {
        failures.grpc = lower_grpc_statuses(&written, report);
    }
    failures
}

/// A class (`4xx`), a status (`404`) or a range (`400-403`).
fn lower_statuses(written: &Text, report: &mut Report<'_>) -> Option<RangeInclusive<u16>> {
    let text = written.get_ref().as_str();
    let class = text.strip_suffix("xx").and_then(|class| class.parse::<u16>().ok());
    let status = |text: &str| text.parse::<u16>().ok();
    let (first, last) = match class {
        // Whatever comes after them is for the server to explain as well.
        Some(5) => return Some(Statuses::CLASS_5XX),
        Some(class) => {
            (class.checked_mul(100), class.checked_mul(100).and_then(|first| first.checked_add(99)))
        }
        None => match text.split_once('-') {
            Some((first, last)) => (status(first), status(last)),
            None => (status(text), status(text)),
        },
    };
    match (first, last) {
        (Some(first), Some(last)) if first <= last && first >= 200 && last <= 999 => Some(first..=last),
        _ => {
            report
                .error(written.span(), format!("`{text}` is not a status, nor a class or range of them"))
                .help("write `\"404\"`, `\"4xx\"` or `\"400-403\"`, from 200 on");
            None
        }
    }
}

fn lower_grpc_statuses(written: &[Text], report: &mut Report<'_>) -> GrpcStatuses {
    let mut statuses = GrpcStatuses::NONE;
    for text in written {
        let name = text.get_ref().as_str();
        match GrpcStatuses::NAMES.iter().position(|known| *known == name) {
            Some(0) => {
                report
                    .error(text.span(), "a call that ends with `OK` has not failed")
                    .help("remove it: those that are named are the failures");
            }
            Some(code) => statuses.insert(code),
            None => {
                let remedy = suggest(&name.to_ascii_uppercase(), &GrpcStatuses::NAMES, "statuses");
                let remedy = remedy.unwrap_or_else(|| "write a name, such as `\"UNAVAILABLE\"`".to_owned());
                report.error(text.span(), format!("`{name}` is not a gRPC status")).help(remedy);
            }
        }
    }
    statuses
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{errors, parsed, warnings},
        *,
    };

    fn of_service(keys: &str) -> String {
        format!("[services.web.failures]\n{keys}")
    }

    fn failures(keys: &str) -> Option<Failures> {
        parsed(&of_service(keys)).services.remove(0).failures
    }

    #[test]
    fn the_usual_is_nothing_written() {
        assert_eq!(parsed("").services[0].failures, None);
        for usual in ["", "statuses = ['5xx']", "except = []"] {
            assert_eq!(failures(usual), None, "{usual}");
        }
    }

    #[test]
    fn statuses_are_classes_ranges_and_single_ones() {
        let failures = failures("statuses = ['4xx', '500', '502-504']\nexcept = ['429', '503']").unwrap();
        let counted = |status: &u16| failures.statuses.contains(*status);
        let some: Vec<_> = [200, 399, 400, 404, 429, 499, 500, 501, 502, 503, 504, 505].into();
        assert_eq!(some.into_iter().filter(counted).collect::<Vec<_>>(), [400, 404, 499, 500, 502, 504]);
        assert_eq!(failures.grpc, GrpcStatuses::default());
    }

    #[test]
    fn calls_have_statuses_of_their_own() {
        let failures = failures("grpc_statuses = ['UNAVAILABLE', 'NOT_FOUND']").unwrap();
        let counted = (0..17u8).filter(|code| failures.grpc.contains(code.to_string().as_bytes()));
        assert_eq!(counted.collect::<Vec<_>>(), [5, 14]);
    }

    #[test]
    fn a_route_may_say_it_for_itself() {
        let of = |keys: &str| format!("[[routes]]\nservice = 'web'\npath = '/a'\n{keys}");
        let route = |keys: &str| parsed(&of(keys)).routes.remove(1).filters.failures;
        assert_eq!(route(""), None);
        // Written is written: the service may say otherwise.
        assert_eq!(route("failures = {}"), Some(Failures::default()));
        let not_found = route("failures = { statuses = ['404'] }").unwrap();
        assert!(not_found.statuses.contains(404) && !not_found.statuses.contains(500));
    }

    #[test]
    fn every_mistake_is_named() {
        let wrong = "statuses = ['5x', '40', '1xx', '500-400', '200-1000', '99xx']\ngrpc_statuses = ['OK', 'not_found', '5']";
        let errors = errors(&of_service(wrong));
        assert_eq!(errors.len(), 9, "{errors:#?}");
        assert_eq!(errors[0], "`5x` is not a status, nor a class or range of them");
        assert_eq!(errors[6], "a call that ends with `OK` has not failed");
        assert_eq!(warnings(&of_service("except = ['404']")), ["`404` is no failure anyway"]);
    }
}
