//! `[store]`: where that is kept which outlives the process.

use std::ops::RangeInclusive;

use serde::Deserialize;
use toml::Spanned;

use super::{
    Store,
    report::Report,
    written::{Section, Size, Table, Text, size},
};

/// Below it, a history would not hold one rollout.
const HISTORY: RangeInclusive<u64> = (64 << 10)..=(10 << 30);

/// `[store]` as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawStore {
    path: Option<Text>,
    max_history: Option<Size>,
}

impl Section for RawStore {
    const HEADER: &'static str = "[store]";
}

/// The store, if its place is known.
pub(super) fn lower(raw: Spanned<Table<RawStore>>, report: &mut Report<'_>) -> Option<Store> {
    let place = raw.span();
    let RawStore { path, max_history } = raw.into_inner().0;
    let max_history = max_history.and_then(|written| size(&written, "max_history", HISTORY, report));
    let Some(path) = path else {
        report
            .error(place, "`[store]` has no `path`")
            .help("name a directory that outlives the process: `path = \"/var/lib/tidegate\"`");
        return None;
    };
    let text = path.get_ref();
    if text.is_empty() || text.contains('\0') {
        report
            .error(path.span(), format!("`{}` is not the path of a directory", text.escape_debug()))
            .help("write a path such as `\"/var/lib/tidegate\"`, or leave `[store]` out to keep nothing");
        return None;
    }
    Some(Store { path: text.into(), max_history: max_history.unwrap_or(Store::MAX_HISTORY) })
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{errors, parsed},
        *,
    };

    #[test]
    fn nothing_is_kept_unless_asked_for() {
        assert_eq!(parsed("").store, None);
        let store = parsed("[store]\npath = '/var/lib/tidegate'").store.unwrap();
        assert_eq!(store, Store { path: "/var/lib/tidegate".into(), max_history: 16 << 20 });
        let small = parsed("[store]\npath = 'state'\nmax_history = '64KiB'").store.unwrap();
        assert_eq!(small, Store { path: "state".into(), max_history: 64 << 10 });
    }

    #[test]
    fn every_mistake_is_named() {
        for (keys, problem) in [
            ("", "`[store]` has no `path`"),
            ("path = ''", "`` is not the path of a directory"),
            ("path = 'x'\nmax_history = '1KiB'", "`max_history` of 1KiB is too small"),
        ] {
            assert_eq!(errors(&format!("[store]\n{keys}")), [problem]);
        }
    }
}
