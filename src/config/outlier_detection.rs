//! `[services.NAME.outlier_detection]`: when an endpoint is ejected for what requests have seen of it.

use std::ops::RangeInclusive;

use serde::Deserialize;
use toml::Spanned;

use super::{
    report::Report,
    written::{Section, TIMEOUT, Time, count, time_or},
};
use crate::routing::policy::OutlierDetection;

const IN_A_ROW: RangeInclusive<u32> = 1..=1_000_000;
const PERCENT: RangeInclusive<u32> = 0..=100;

/// `[services.NAME.outlier_detection]` as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawOutlierDetection {
    consecutive_5xx: Option<Spanned<i64>>,
    base_ejection_time: Option<Time>,
    max_ejection_time: Option<Time>,
    max_ejection_percent: Option<Spanned<i64>>,
}

impl Section for RawOutlierDetection {
    const HEADER: &'static str = "[services.NAME.outlier_detection]";
}

/// When endpoints of one service are ejected.
pub(super) fn lower(raw: RawOutlierDetection, report: &mut Report<'_>) -> OutlierDetection {
    let RawOutlierDetection { consecutive_5xx, base_ejection_time, max_ejection_time, max_ejection_percent } =
        raw;
    let default = OutlierDetection::default();
    let base = base_ejection_time.as_ref();
    let base = time_or(default.base_ejection_time, base, "base_ejection_time", TIMEOUT, report);
    let most = max_ejection_time.as_ref();
    let most = time_or(default.max_ejection_time.max(base), most, "max_ejection_time", TIMEOUT, report);
    if let Some(written) = max_ejection_time.filter(|_| most < base) {
        report
            .error(written.span(), "`max_ejection_time` is shorter than `base_ejection_time`")
            .help("write a longer time, or a shorter `base_ejection_time`");
    }
    OutlierDetection {
        consecutive_5xx: consecutive_5xx
            .and_then(|written| count(&written, "consecutive_5xx", IN_A_ROW, report))
            .unwrap_or(default.consecutive_5xx),
        base_ejection_time: base,
        max_ejection_time: most,
        max_ejection_percent: max_ejection_percent
            .and_then(|written| count(&written, "max_ejection_percent", PERCENT, report))
            .and_then(|percent| u8::try_from(percent).ok())
            .unwrap_or(default.max_ejection_percent),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{errors, parsed},
        *,
    };

    #[test]
    fn it_is_off_unless_asked_for() {
        assert_eq!(parsed("").services[0].policy.outlier_detection, None);
        let on = parsed("[services.web.outlier_detection]").services.remove(0).policy.outlier_detection;
        assert_eq!(on, Some(OutlierDetection::default()));
    }

    #[test]
    fn every_mistake_is_named() {
        let wrong = "[services.web.outlier_detection]\nconsecutive_5xx = 0\nbase_ejection_time = '10m'\n\
                     max_ejection_time = '5m'\nmax_ejection_percent = 101";
        assert_eq!(errors(wrong).len(), 3);
    }

    #[test]
    fn a_long_first_ejection_raises_the_longest() {
        let text = "[services.web.outlier_detection]\nbase_ejection_time = '10m'";
        let detection = parsed(text).services.remove(0).policy.outlier_detection.unwrap();
        assert_eq!(detection.max_ejection_time, detection.base_ejection_time);
    }
}
