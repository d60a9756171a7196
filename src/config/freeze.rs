//! `[[freeze]]`: times at which no rollout moves forward.

use jiff::tz::TimeZone;
use serde::Deserialize;
use toml::Spanned;

use super::{
    Service,
    report::Report,
    suggest::suggest,
    written::{Section, Table, Text},
};
use crate::rollout::freeze::{Freeze, Moment};

/// One of `[[freeze]]` as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawFreeze {
    from: Option<Text>,
    to: Option<Text>,
    time_zone: Option<Text>,
    services: Option<Vec<Text>>,
}

impl Section for RawFreeze {
    const HEADER: &'static str = "[[freeze]]";
}

/// Gives each service the windows that hold for it. `names` are those of all services as written: one with a
/// fault elsewhere is not among `services`.
pub(super) fn lower(
    raw: Vec<Spanned<Table<RawFreeze>>>,
    names: &[&str],
    services: &mut [Service],
    report: &mut Report<'_>,
) {
    for raw in raw {
        let place = raw.span();
        let RawFreeze { from, to, time_zone, services: held } = raw.into_inner().0;
        let mut end = |written: Option<Text>, key: &str| match written {
            Some(written) => moment(&written, report),
            None => {
                report
                    .error(place.clone(), format!("this window has no `{key}`"))
                    .help("write both ends, such as `from = \"Fri 16:00\"` and `to = \"Mon 08:00\"`");
                None
            }
        };
        let (from, to) = (end(from, "from"), end(to, "to"));
        let zone = time_zone.map_or(Some(TimeZone::UTC), |written| lower_zone(&written, report));
        for name in held.iter().flatten().filter(|name| !names.contains(&name.get_ref().as_str())) {
            let remedy = suggest(name.get_ref(), names, "services");
            report.error(name.span(), format!("there is no service `{}`", name.get_ref())).help_if(remedy);
        }
        let (Some(from), Some(to), Some(zone)) = (from, to, zone) else { continue };
        match Freeze::new(from, to, zone) {
            Ok(freeze) => {
                let holds = |service: &Service| {
                    let is_it = |name: &Text| name.get_ref() == service.name.as_str();
                    held.as_ref().is_none_or(|held| held.iter().any(is_it))
                };
                for service in services.iter_mut().filter(|service| holds(service)) {
                    service.rollout.freezes.push(freeze.clone());
                }
            }
            Err(fault) => {
                report
                    .error(place, fault.to_string())
                    .help("write two times of the week, or two dates with the later one as `to`");
            }
        }
    }
}

fn moment(written: &Text, report: &mut Report<'_>) -> Option<Moment> {
    let moment = written.get_ref().parse().ok();
    if moment.is_none() {
        report
            .error(
                written.span(),
                format!("`{}` is neither a time of the week nor a date", written.get_ref()),
            )
            .help(
                "write a day and a time, such as `\"Fri 16:00\"`, or a date, such as `\"2026-12-24 16:00\"`",
            );
    }
    moment
}

fn lower_zone(written: &Text, report: &mut Report<'_>) -> Option<TimeZone> {
    let zone = TimeZone::get(written.get_ref()).ok();
    if zone.is_none() {
        report
            .error(written.span(), format!("there is no time zone `{}`", written.get_ref()))
            .help("write its IANA name, such as `\"Europe/Berlin\"` or `\"UTC\"`");
    }
    zone
}

#[cfg(test)]
mod tests {
    use super::super::testing::{errors, parsed};

    #[test]
    fn a_window_holds_for_all_services_or_for_those_it_names() {
        let all = "[[freeze]]\nfrom = 'Fri 16:00'\nto = 'Mon 08:00'\ntime_zone = 'Europe/Berlin'";
        let freezes = parsed(all).services.remove(0).rollout.freezes;
        assert_eq!(freezes[0].to_string(), "Fri 16:00 to Mon 08:00 (Europe/Berlin)");
        let named = "[[freeze]]\nfrom = '2026-12-24'\nto = '2027-01-02'\nservices = ['web']";
        assert_eq!(parsed(named).services.remove(0).rollout.freezes.len(), 1);
        let nobody = "[[freeze]]\nfrom = '2026-12-24'\nto = '2027-01-02'\nservices = []";
        assert_eq!(parsed(nobody).services.remove(0).rollout.freezes.len(), 0);
    }

    #[test]
    fn each_fault_of_a_window_has_its_sentence() {
        assert_eq!(
            errors("[[freeze]]\nto = 'Fr'\ntime_zone = 'Berlin'\nservices = ['wep']"),
            [
                "this window has no `from`",
                "`Fr` is neither a time of the week nor a date",
                "there is no time zone `Berlin`",
                "there is no service `wep`"
            ]
        );
        let mixed = "[[freeze]]\nfrom = 'Fri 16:00'\nto = '2026-12-24'";
        assert_eq!(errors(mixed), ["one end is a day of the week and the other a date"]);
    }
}
