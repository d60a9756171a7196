//! Times at which nothing may move forward: weekends, holidays, the end of a quarter.
//!
//! Windows are in civil time: `Fri 16:00` is 16:00 in summer and in winter. The rules of time zones are
//! those of the IANA database that this program was built with.

use std::{fmt, str::FromStr};

use jiff::{
    civil::{Date, DateTime, Time, Weekday},
    tz::TimeZone,
};

use crate::model::time::Timestamp;

/// A window in which nothing may move forward.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Freeze {
    span: Span,
    zone: TimeZone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Span {
    /// Each week, from one time to the next occurrence of the other.
    Weekly { from: WeekTime, to: WeekTime },
    /// Once.
    Once { from: DateTime, to: DateTime },
}

/// A time of the week.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct WeekTime {
    day: Weekday,
    time: Time,
}

/// One end of a window as written: `Fri 16:00`, `2026-12-24` or `2026-12-24 16:00`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment(Written);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Written {
    Week(WeekTime),
    Date(DateTime),
}

/// Why something is no window.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FreezeFault {
    /// One end is a day of the week, the other a date.
    #[error("one end is a day of the week and the other a date")]
    Mixed,
    /// The end is not after the beginning.
    #[error("the window ends before it begins")]
    Backwards,
    /// Both ends are the same time of the week.
    #[error("a window that ends when it begins is either nothing or always")]
    Empty,
}

/// Why a text is no [`Moment`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a day and time")]
pub struct InvalidMoment;

impl Freeze {
    /// The window between two moments.
    ///
    /// # Errors
    /// When they enclose none.
    pub fn new(from: Moment, to: Moment, zone: TimeZone) -> Result<Self, FreezeFault> {
        let span = match (from.0, to.0) {
            (Written::Week(from), Written::Week(to)) if from == to => return Err(FreezeFault::Empty),
            (Written::Week(from), Written::Week(to)) => Span::Weekly { from, to },
            (Written::Date(from), Written::Date(to)) if to <= from => return Err(FreezeFault::Backwards),
            (Written::Date(from), Written::Date(to)) => Span::Once { from, to },
            _ => return Err(FreezeFault::Mixed),
        };
        Ok(Self { span, zone })
    }

    /// When the window ends that `now` is in; nothing if it is in none. What no calendar reaches counts as the last
    /// moment that there is: a window without an end in sight is one all the same.
    pub fn until(&self, now: Timestamp) -> Option<Timestamp> {
        let millis = i64::try_from(now.as_millis()).unwrap_or(i64::MAX);
        let instant = jiff::Timestamp::from_millisecond(millis).unwrap_or(jiff::Timestamp::MAX);
        let civil = self.zone.to_datetime(instant);
        let end = match self.span {
            Span::Once { from, to } => (from <= civil && civil < to).then_some(to)?,
            Span::Weekly { from, to } => {
                let at = WeekTime { day: civil.weekday(), time: civil.time() };
                let (length, passed) = (from.until(to), from.until(at));
                if passed >= length {
                    return None;
                }
                let day = (0..=7).map(|days| civil.date().saturating_add(jiff::Span::new().days(days)));
                let ends = day.filter(|day| day.weekday() == to.day).map(|day| day.to_datetime(to.time));
                ends.into_iter().find(|end| *end > civil).unwrap_or(DateTime::MAX)
            }
        };
        let end = self.zone.to_timestamp(end).unwrap_or(jiff::Timestamp::MAX);
        Some(Timestamp::from_millis(u64::try_from(end.as_millisecond()).unwrap_or_default()))
    }
}

impl WeekTime {
    /// Nanoseconds from this to the next occurrence of `other`; less than a week.
    fn until(self, other: Self) -> i64 {
        const DAY: i64 = 24 * 3600 * 1_000_000_000;
        let nanos = |at: Self| {
            let time = i64::from(at.time.hour()) * 3600
                + i64::from(at.time.minute()) * 60
                + i64::from(at.time.second());
            i64::from(at.day.to_monday_zero_offset()) * DAY
                + time * 1_000_000_000
                + i64::from(at.time.subsec_nanosecond())
        };
        (nanos(other) - nanos(self)).rem_euclid(7 * DAY)
    }
}

impl FromStr for Moment {
    type Err = InvalidMoment;

    fn from_str(text: &str) -> Result<Self, InvalidMoment> {
        let text = text.trim();
        let (day, time) = text.split_once([' ', 'T']).unwrap_or((text, "00:00"));
        let time = time.parse::<Time>().map_err(|_| InvalidMoment)?;
        if let Ok(date) = day.parse::<Date>() {
            return Ok(Self(Written::Date(date.to_datetime(time))));
        }
        let day = DAYS
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(day) || name[..3].eq_ignore_ascii_case(day));
        let (_, day) = day.ok_or(InvalidMoment)?;
        Ok(Self(Written::Week(WeekTime { day: *day, time })))
    }
}

impl fmt::Display for Freeze {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = |time: Time| time.strftime("%H:%M").to_string();
        match self.span {
            Span::Weekly { from, to } => {
                let text = |at: WeekTime| format!("{} {}", &name(at.day)[..3], time(at.time));
                write!(f, "{} to {}", text(from), text(to))?;
            }
            Span::Once { from, to } => {
                write!(f, "{} to {}", from.strftime("%Y-%m-%d %H:%M"), to.strftime("%Y-%m-%d %H:%M"))?;
            }
        }
        write!(f, " ({})", self.zone.iana_name().unwrap_or("UTC"))
    }
}

fn name(day: Weekday) -> &'static str {
    DAYS[usize::from(day.to_monday_zero_offset().unsigned_abs())].0
}

/// Monday first.
const DAYS: [(&str, Weekday); 7] = [
    ("Monday", Weekday::Monday),
    ("Tuesday", Weekday::Tuesday),
    ("Wednesday", Weekday::Wednesday),
    ("Thursday", Weekday::Thursday),
    ("Friday", Weekday::Friday),
    ("Saturday", Weekday::Saturday),
    ("Sunday", Weekday::Sunday),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn freeze(from: &str, to: &str, zone: &str) -> Freeze {
        Freeze::new(from.parse().unwrap(), to.parse().unwrap(), TimeZone::get(zone).unwrap()).unwrap()
    }

    fn at(text: &str) -> Timestamp {
        let instant: jiff::Timestamp = text.parse().unwrap();
        Timestamp::from_millis(u64::try_from(instant.as_millisecond()).unwrap())
    }

    #[test]
    fn a_weekend_is_one_window_in_civil_time() {
        let weekend = freeze("Fri 16:00", "Mon 08:00", "Europe/Berlin");
        // CET: an hour before UTC.
        assert_eq!(weekend.until(at("2026-11-27T14:59:59Z")), None);
        assert_eq!(weekend.until(at("2026-11-27T15:00:00Z")), Some(at("2026-11-30T07:00:00Z")));
        assert_eq!(weekend.until(at("2026-11-29T12:00:00Z")), Some(at("2026-11-30T07:00:00Z")));
        assert_eq!(weekend.until(at("2026-11-30T06:59:59.999Z")), Some(at("2026-11-30T07:00:00Z")));
        assert_eq!(weekend.until(at("2026-11-30T07:00:00Z")), None);
        // CEST: two.
        assert_eq!(weekend.until(at("2026-07-03T14:00:00Z")), Some(at("2026-07-06T06:00:00Z")));
        assert_eq!(weekend.to_string(), "Fri 16:00 to Mon 08:00 (Europe/Berlin)");
    }

    #[test]
    fn a_window_may_lie_within_a_day_or_around_the_week() {
        let lunch = freeze("wednesday 12:00", "WED 13:00", "UTC");
        assert_eq!(lunch.until(at("2026-11-25T12:30:00Z")), Some(at("2026-11-25T13:00:00Z")));
        assert_eq!(lunch.until(at("2026-11-25T13:00:00Z")), None);
        let but_lunch = freeze("wed 13:00", "wed 12:00", "UTC");
        assert_eq!(but_lunch.until(at("2026-11-25T13:00:00Z")), Some(at("2026-12-02T12:00:00Z")));
        assert_eq!(but_lunch.until(at("2026-11-25T12:30:00Z")), None);
    }

    #[test]
    fn dates_happen_once() {
        let holidays = freeze("2026-12-24", "2027-01-02 06:30", "America/New_York");
        assert_eq!(holidays.until(at("2026-12-24T04:59:59Z")), None);
        assert_eq!(holidays.until(at("2026-12-24T05:00:00Z")), Some(at("2027-01-02T11:30:00Z")));
        assert_eq!(holidays.until(at("2027-12-24T05:00:00Z")), None);
        assert_eq!(holidays.to_string(), "2026-12-24 00:00 to 2027-01-02 06:30 (America/New_York)");
    }

    #[test]
    fn what_is_no_window_says_why() {
        let fault = |from: &str, to: &str| {
            Freeze::new(from.parse().unwrap(), to.parse().unwrap(), TimeZone::UTC).unwrap_err()
        };
        assert_eq!(fault("Fri 16:00", "2026-12-24"), FreezeFault::Mixed);
        assert_eq!(fault("2026-12-24", "2026-12-23"), FreezeFault::Backwards);
        assert_eq!(fault("Fri 16:00", "Friday 16:00"), FreezeFault::Empty);
        for wrong in ["", "Fr", "Fri 25:00", "16:00", "2026-13-01", "someday 12:00"] {
            assert_eq!(wrong.parse::<Moment>(), Err(InvalidMoment), "{wrong}");
        }
    }

    #[test]
    fn an_end_that_no_calendar_reaches_is_far_away_and_no_reason_to_move() {
        let last = Timestamp::from_millis(u64::try_from(jiff::Timestamp::MAX.as_millisecond()).unwrap());
        for zone in ["UTC", "Pacific/Kiritimati", "Pacific/Pago_Pago"] {
            let ever = freeze("2020-01-01", "9999-12-31 23:59", zone);
            for now in [at("2026-11-27T12:00:00Z"), last, Timestamp::from_millis(u64::MAX)] {
                assert_eq!(ever.until(now), Some(last), "{zone}, {now:?}");
            }
            assert_eq!(ever.until(at("2019-12-30T00:00:00Z")), None);
            let begun = freeze("0001-01-01", "2100-01-01", zone);
            assert!(begun.until(at("2026-11-27T12:00:00Z")).is_some(), "{zone}");
        }
        // The last moment is a Thursday, 22:00 in UTC.
        assert_eq!(freeze("Wed 16:00", "Mon 08:00", "UTC").until(last), Some(last));
        assert_eq!(freeze("Fri 16:00", "Mon 08:00", "UTC").until(last), None);
    }

    #[test]
    fn no_time_makes_it_panic() {
        for freeze in [freeze("Fri 16:00", "Mon 08:00", "UTC"), freeze("2026-12-24", "2027-01-01", "UTC")] {
            for millis in [0, 1, u64::MAX, u64::MAX / 2, 253_402_207_200_000, 253_402_300_799_999] {
                let _ = freeze.until(Timestamp::from_millis(millis));
            }
        }
    }
}
