//! `[services.NAME.rollout.analysis]`: what is watched, and how sure it has to be.

use std::{fmt, ops::RangeInclusive, time::Duration};

use serde::{
    Deserialize, Deserializer,
    de::{Error, Unexpected, Visitor},
};
use toml::Spanned;

use super::{
    report::Report,
    rollout::lower_word,
    written::{Section, Text, Time, time},
};
use crate::analysis::{settings::Settings, users::Unit};

/// Limits of a latency guard: latencies are known up to 71 minutes (`model::histogram`).
const GUARD: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(3600);

/// `[services.NAME.rollout.analysis]` as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAnalysis {
    alpha: Option<Spanned<f64>>,
    ratio_tolerance: Option<Spanned<f64>>,
    absolute_tolerance: Option<Spanned<f64>>,
    promotion_margin: Option<Spanned<f64>>,
    promotion_alpha: Option<Spanned<f64>>,
    prove_each_step: Option<bool>,
    minimum_requests: Option<Spanned<i64>>,
    latency_margin: Option<Spanned<RawMargin>>,
    max_error_rate: Option<Spanned<f64>>,
    max_p99: Option<Time>,
    dispersion: Option<Spanned<f64>>,
    max_harm: Option<Spanned<f64>>,
    unit: Option<Text>,
}

impl Section for RawAnalysis {
    const HEADER: &'static str = "[services.NAME.rollout.analysis]";
}

/// A number, or `false`.
#[derive(Debug)]
enum RawMargin {
    Off,
    Margin(f64),
}

impl<'de> Deserialize<'de> for RawMargin {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Written;
        impl Visitor<'_> for Written {
            type Value = RawMargin;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number such as 0.2, or `false` to switch the comparison off")
            }
            fn visit_bool<E: Error>(self, on: bool) -> Result<RawMargin, E> {
                if on { Err(E::invalid_value(Unexpected::Bool(on), &self)) } else { Ok(RawMargin::Off) }
            }
            fn visit_i64<E: Error>(self, number: i64) -> Result<RawMargin, E> {
                Ok(RawMargin::Margin(number as f64))
            }
            fn visit_f64<E: Error>(self, number: f64) -> Result<RawMargin, E> {
                Ok(RawMargin::Margin(number))
            }
        }
        deserializer.deserialize_any(Written)
    }
}

/// Words for what is counted.
const UNITS: [(&str, Unit); 2] = [("request", Unit::Request), ("user", Unit::User)];

/// The settings of the analysis of one service, whose clients are pinned or not.
pub(super) fn lower(raw: RawAnalysis, is_sticky: bool, report: &mut Report<'_>) -> Settings {
    let default = Settings::default();
    let RawAnalysis {
        alpha,
        ratio_tolerance,
        absolute_tolerance,
        promotion_margin,
        promotion_alpha,
        prove_each_step,
        minimum_requests,
        latency_margin,
        max_error_rate,
        max_p99,
        dispersion,
        max_harm,
        unit,
    } = raw;
    let number = |written: &Option<Spanned<f64>>| written.as_ref().map(|written| *written.get_ref());
    let settings = Settings {
        alpha: number(&alpha).unwrap_or(default.alpha),
        ratio_tolerance: number(&ratio_tolerance).unwrap_or(default.ratio_tolerance),
        absolute_tolerance: number(&absolute_tolerance).unwrap_or(default.absolute_tolerance),
        promotion_margin: number(&promotion_margin).unwrap_or(default.promotion_margin),
        promotion_alpha: number(&promotion_alpha).unwrap_or(default.promotion_alpha),
        prove_each_step: prove_each_step.unwrap_or(default.prove_each_step),
        minimum_requests: minimum_requests
            .and_then(|written| lower_count(&written, report))
            .unwrap_or(default.minimum_requests),
        latency_margin: match latency_margin.as_ref().map(Spanned::get_ref) {
            None => default.latency_margin,
            Some(RawMargin::Off) => None,
            Some(RawMargin::Margin(margin)) => Some(*margin),
        },
        max_error_rate: number(&max_error_rate),
        max_p99: max_p99.and_then(|written| time(&written, "max_p99", GUARD, report)),
        dispersion: number(&dispersion),
        max_harm: number(&max_harm),
        unit: lower_unit(unit, is_sticky, report),
    };
    let place = |written: &Option<Spanned<f64>>| written.as_ref().map(Spanned::span);
    let places = [
        ("alpha", place(&alpha)),
        ("ratio_tolerance", place(&ratio_tolerance)),
        ("absolute_tolerance", place(&absolute_tolerance)),
        ("promotion_margin", place(&promotion_margin)),
        ("promotion_alpha", place(&promotion_alpha)),
        ("latency_margin", latency_margin.as_ref().map(Spanned::span)),
        ("max_error_rate", place(&max_error_rate)),
        ("dispersion", place(&dispersion)),
        ("max_harm", place(&max_harm)),
    ];
    for fault in settings.faults() {
        let place = places.iter().find(|(key, _)| *key == fault.key);
        let place = place.and_then(|(_, place)| place.clone()).unwrap_or_default();
        report.error(place, fault.to_string()).help(remedy(fault.key, &default));
    }
    settings
}

fn lower_unit(written: Option<Text>, is_sticky: bool, report: &mut Report<'_>) -> Unit {
    let Some(written) = written else { return if is_sticky { Unit::User } else { Unit::Request } };
    let place = written.span();
    let unit = lower_word(Some(written), "unit", &UNITS, report).unwrap_or_default();
    if unit == Unit::User && !is_sticky {
        report
            .error(place, "`unit = \"user\"` counts users, and this service knows none")
            .help("add `[services.NAME.sticky]`, so that users stay on one side, or leave `unit` out");
    }
    unit
}

fn lower_count(written: &Spanned<i64>, report: &mut Report<'_>) -> Option<u64> {
    let count = u64::try_from(*written.get_ref());
    if count.is_err() {
        let problem = format!("`minimum_requests` must be 0 or more, not {}", written.get_ref());
        report.error(written.span(), problem).help("the default is 100");
    }
    count.ok()
}

/// What to write instead of a setting that is out of its range.
fn remedy(key: &str, default: &Settings) -> String {
    let default = match key {
        "alpha" => Some(default.alpha),
        "ratio_tolerance" => Some(default.ratio_tolerance),
        "absolute_tolerance" => Some(default.absolute_tolerance),
        "promotion_margin" => Some(default.promotion_margin),
        "promotion_alpha" => Some(default.promotion_alpha),
        "latency_margin" => default.latency_margin,
        _ => None,
    };
    match (default, key) {
        (Some(default), _) => format!("the default is {default}"),
        (None, "dispersion") => "leave it out to have it estimated from stable's requests".to_owned(),
        (None, "max_harm") => "it is a number of failed requests; leave it out for no limit".to_owned(),
        (None, _) => "it is a share of requests: 0.05 is 5 %".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{errors, parsed},
        *,
    };

    fn settings(written: &str) -> Settings {
        parsed(&analysis(written)).services.remove(0).rollout.analysis
    }

    fn analysis(written: &str) -> String {
        format!("[services.web.rollout.analysis]\n{written}")
    }

    #[test]
    fn every_setting_has_a_default() {
        assert_eq!(parsed("").services[0].rollout.analysis, Settings::default());
        assert_eq!(settings(""), Settings::default());
    }

    #[test]
    fn each_step_can_be_told_to_wait_for_proof() {
        assert!(settings("prove_each_step = true").prove_each_step);
        assert!(!settings("prove_each_step = false").prove_each_step);
    }

    #[test]
    fn the_latency_comparison_can_be_switched_off() {
        assert_eq!(settings("latency_margin = false").latency_margin, None);
        assert_eq!(settings("latency_margin = 1").latency_margin, Some(1.0));
    }

    #[test]
    fn users_are_counted_where_they_are_pinned() {
        let unit = |written: &str| settings(written).unit;
        let sticky = "[services.web.sticky]\n";
        assert_eq!((unit(""), unit("unit = 'request'")), (Unit::Request, Unit::Request));
        let pinned = |written: &str| {
            parsed(&format!("{}\n{sticky}", analysis(written))).services.remove(0).rollout.analysis.unit
        };
        assert_eq!(parsed(sticky).services[0].rollout.analysis.unit, Unit::User);
        assert_eq!((pinned(""), pinned("unit = 'user'")), (Unit::User, Unit::User));
        assert_eq!(pinned("unit = 'request'"), Unit::Request);
        assert_eq!(
            errors(&analysis("unit = 'user'")),
            ["`unit = \"user\"` counts users, and this service knows none"]
        );
        assert_eq!(errors(&analysis("unit = 'users'")), ["`unit` cannot be `users`"]);
    }

    #[test]
    fn every_setting_out_of_range_is_named() {
        let all = "alpha = 1\nratio_tolerance = 0\nabsolute_tolerance = -1\npromotion_margin = 1\n\
                   promotion_alpha = nan\nminimum_requests = -1\nlatency_margin = 0\n\
                   max_error_rate = 5\nmax_p99 = '0s'\ndispersion = 0.5\nmax_harm = 0";
        let errors = errors(&analysis(all));
        assert_eq!(errors.len(), 11, "{errors:#?}");
        assert_eq!(errors[0], "`alpha` must be over 0 and at most 0.5, not 1");
    }
}
