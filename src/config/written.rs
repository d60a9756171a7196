//! Single values as they are written, and the checks that every section shares.

use std::{fmt, marker::PhantomData, num::NonZeroU32, ops::RangeInclusive, str::FromStr, time::Duration};

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, Visitor, value::MapAccessDeserializer},
};
use toml::Spanned;

use super::report::Report;
use crate::{
    model::{
        name::InvalidName,
        units::{format_duration, format_size, parse_duration, parse_size},
        weight::Weight,
    },
    rollout::plan::MAX_TIME,
};

/// Text, and where it stands.
pub(super) type Text = Spanned<String>;

/// A duration as it is written, and where it stands.
pub(super) type Time = Spanned<DurationText>;

/// Times that a timeout may have. Zero would fail every request, and "never" lets one client hold
/// on to a connection for good.
pub(super) const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(1)..=MAX_TIME;

/// Times that a wait may have: nothing, if need be.
pub(super) const WAIT: RangeInclusive<Duration> = Duration::ZERO..=MAX_TIME;

/// A raw shape that is written as a table.
pub(super) trait Section {
    /// How its header is written.
    const HEADER: &'static str;
}

/// A section that is only ever a table. By itself serde also takes an array for a struct, value by
/// value in the order of the fields, which nobody means and no key is checked in.
#[derive(Debug, Default)]
pub(super) struct Table<T>(pub(super) T);

impl<'de, T: Section + Deserialize<'de>> Deserialize<'de> for Table<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Written<T>(PhantomData<T>);
        impl<'de, T: Section + Deserialize<'de>> Visitor<'de> for Written<T> {
            type Value = Table<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a table, `{}`", T::HEADER)
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Table<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Table)
            }
        }
        deserializer.deserialize_map(Written(PhantomData))
    }
}

/// What a duration is written as; a type of its own so that `5` is answered with `"5s"`.
#[derive(Debug)]
pub(super) struct DurationText(String);

impl<'de> Deserialize<'de> for DurationText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Written;
        impl Visitor<'_> for Written {
            type Value = DurationText;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a time with its unit in quotes, such as `\"250ms\"`, `\"30s\"` or `\"5m\"`")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<DurationText, E> {
                Ok(DurationText(text.to_owned()))
            }
        }
        deserializer.deserialize_str(Written)
    }
}

/// The duration under `key`, which has to be in `allowed`; nothing, and a fault, if it is wrong.
pub(super) fn time(
    written: &Time,
    key: &str,
    allowed: RangeInclusive<Duration>,
    report: &mut Report<'_>,
) -> Option<Duration> {
    match parse_duration(&written.get_ref().0) {
        Err(fault) => {
            report
                .error(written.span(), format!("`{}` is not a duration", fault.0))
                .help("write a number with a unit, such as `250ms`, `30s`, `5m` or `1h`");
            None
        }
        Ok(time) if !allowed.contains(&time) => {
            let (least, most) = (in_words(*allowed.start()), in_words(*allowed.end()));
            let which = if time < *allowed.start() { "too short" } else { "too long" };
            let given = &written.get_ref().0;
            report
                .error(written.span(), format!("`{key}` of {given} is {which}"))
                .help(format!("write a time from {least} to {most}"));
            None
        }
        Ok(time) => Some(time),
    }
}

/// The same with a default, which also stands in for a wrong one.
pub(super) fn time_or(
    default: Duration,
    written: Option<&Time>,
    key: &str,
    allowed: RangeInclusive<Duration>,
    report: &mut Report<'_>,
) -> Duration {
    written.and_then(|written| time(written, key, allowed, report)).unwrap_or(default)
}

/// The whole number under `key`, which has to be in `allowed`; nothing, and a fault, if it is wrong.
pub(super) fn count(
    written: &Spanned<i64>,
    key: &str,
    allowed: RangeInclusive<u32>,
    report: &mut Report<'_>,
) -> Option<u32> {
    let number = *written.get_ref();
    let count = u32::try_from(number).ok().filter(|count| allowed.contains(count));
    if count.is_none() {
        let (least, most) = (allowed.start(), allowed.end());
        report
            .error(written.span(), format!("`{key}` cannot be {number}"))
            .help(format!("write a whole number from {least} to {most}"));
    }
    count
}

/// A size as it is written, and where it stands.
pub(super) type Size = Spanned<SizeText>;

/// What a size is written as; a type of its own so that `16` is answered with what it lacks.
#[derive(Debug)]
pub(super) struct SizeText(String);

impl<'de> Deserialize<'de> for SizeText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Written;
        impl Visitor<'_> for Written {
            type Value = SizeText;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size with its unit in quotes, such as `\"16KiB\"` or `\"10MiB\"`")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<SizeText, E> {
                Ok(SizeText(text.to_owned()))
            }
        }
        deserializer.deserialize_str(Written)
    }
}

/// The bytes under `key`, which have to be in `allowed`; nothing, and a fault, if they are wrong.
pub(super) fn size(
    written: &Size,
    key: &str,
    allowed: RangeInclusive<u64>,
    report: &mut Report<'_>,
) -> Option<u64> {
    let given = &written.get_ref().0;
    match parse_size(given) {
        Err(_) => {
            report
                .error(written.span(), format!("`{given}` is not a size"))
                .help("write a whole number with a unit, such as `512B`, `16KiB` or `10MiB`");
            None
        }
        Ok(bytes) if !allowed.contains(&bytes) => {
            let (least, most) = (format_size(*allowed.start()), format_size(*allowed.end()));
            let which = if bytes < *allowed.start() { "too small" } else { "too large" };
            report
                .error(written.span(), format!("`{key}` of {given} is {which}"))
                .help(format!("write a size from {least} to {most}"));
            None
        }
        Ok(bytes) => Some(bytes),
    }
}

/// The whole number under `key`, from 1 to `most`; nothing, and a fault, if it is wrong.
pub(super) fn positive(
    written: &Spanned<i64>,
    key: &str,
    most: u32,
    report: &mut Report<'_>,
) -> Option<NonZeroU32> {
    let count = u32::try_from(*written.get_ref()).ok().filter(|count| *count <= most);
    let count = count.and_then(NonZeroU32::new);
    if count.is_none() {
        report
            .error(written.span(), format!("`{key}` must be from 1 to {most}, not {}", written.get_ref()))
            .help("leave it out for the default");
    }
    count
}

/// A percentage; nothing, and a fault, if it is wrong.
pub(super) fn weight(written: &Spanned<f64>, report: &mut Report<'_>) -> Option<Weight> {
    let percent = *written.get_ref();
    let weight = Weight::from_percent(percent);
    if weight.is_err() {
        report
            .error(written.span(), format!("{percent} is not a weight"))
            .help("write a percentage from 0 to 100 with at most two decimals, such as 2.5");
    }
    weight.ok()
}

/// A name; nothing, and a fault, if it is wrong. `what` is what it names.
pub(super) fn name<N>(written: &Text, what: &str, report: &mut Report<'_>) -> Option<N>
where
    N: FromStr<Err = InvalidName>,
{
    match written.get_ref().parse() {
        Ok(name) => Some(name),
        Err(fault) => {
            let problem = match fault {
                InvalidName::Empty => format!("the name of a {what} cannot be empty"),
                InvalidName::TooLong(_) => format!("the name of a {what} is too long: {fault}"),
                InvalidName::Characters(_) => format!("`{}` cannot name a {what}", written.get_ref()),
            };
            report.error(written.span(), problem).help(
                "a name has up to 63 letters, digits, `-`, `_` and `.`, and begins and ends with a letter or digit",
            );
            None
        }
    }
}

/// A limit as a person would say it. Many days are said in days, not in years, months and hours.
pub(super) fn in_words(time: Duration) -> String {
    let days = time.as_secs() / (24 * 3600);
    if days > 1 { format!("{days} days") } else { format_duration(time) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::diagnostic::Severity;

    fn times(text: &str) -> (Option<Duration>, Vec<String>) {
        let mut report = Report::new("x.toml", text);
        let written = Spanned::new(0..text.len(), DurationText(text.to_owned()));
        let time = time(&written, "connect", TIMEOUT, &mut report);
        let said = report.into_sorted(Severity::Error).into_iter().map(|d| d.problem).collect();
        (time, said)
    }

    #[test]
    fn a_time_is_right_or_is_reported() {
        assert_eq!(times("250ms"), (Some(Duration::from_millis(250)), vec![]));
        assert_eq!(times("soon"), (None, vec!["`soon` is not a duration".to_owned()]));
        assert_eq!(times("0s"), (None, vec!["`connect` of 0s is too short".to_owned()]));
        assert_eq!(times("31days"), (None, vec!["`connect` of 31days is too long".to_owned()]));
    }
}
