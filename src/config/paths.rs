//! `[paths]`: what is done to a request's path before a route is looked for.

use serde::Deserialize;

use super::{
    report::Report,
    suggest::suggest,
    written::{Section, Text},
};
use crate::routing::path::{EscapedSlashes, PathRules};

/// `[paths]` as written. The names are Envoy's.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPaths {
    normalize_path: Option<bool>,
    merge_slashes: Option<bool>,
    path_with_escaped_slashes_action: Option<Text>,
}

impl Section for RawPaths {
    const HEADER: &'static str = "[paths]";
}

const ACTIONS: [(&str, EscapedSlashes); 4] = [
    ("keep_unchanged", EscapedSlashes::KeepUnchanged),
    ("reject_request", EscapedSlashes::RejectRequest),
    ("unescape_and_redirect", EscapedSlashes::UnescapeAndRedirect),
    ("unescape_and_forward", EscapedSlashes::UnescapeAndForward),
];

/// What is done to paths.
pub(super) fn lower(raw: RawPaths, report: &mut Report<'_>) -> PathRules {
    let RawPaths { normalize_path, merge_slashes, path_with_escaped_slashes_action } = raw;
    let default = PathRules::default();
    let action = path_with_escaped_slashes_action.and_then(|written| lower_action(&written, report));
    PathRules {
        normalize_path: normalize_path.unwrap_or(default.normalize_path),
        merge_slashes: merge_slashes.unwrap_or(default.merge_slashes),
        escaped_slashes: action.unwrap_or(default.escaped_slashes),
    }
}

fn lower_action(written: &Text, report: &mut Report<'_>) -> Option<EscapedSlashes> {
    let text = written.get_ref();
    let known = ACTIONS.iter().find(|(name, _)| name == text);
    if known.is_none() {
        let remedy = suggest(&text.to_ascii_lowercase(), &ACTIONS.map(|(name, _)| name), "actions");
        let problem = format!("`{text}` is nothing that can be done to an escaped slash");
        report.error(written.span(), problem).help_if(remedy);
    }
    known.map(|(_, action)| *action)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{errors, parsed};
    use crate::routing::path::{EscapedSlashes, PathRules};

    #[test]
    fn paths_are_normal_unless_it_is_switched_off() {
        assert_eq!(parsed("").paths, PathRules::default());
        let off = "[paths]\nnormalize_path = false\nmerge_slashes = false\npath_with_escaped_slashes_action = 'keep_unchanged'";
        let expected = PathRules {
            normalize_path: false,
            merge_slashes: false,
            escaped_slashes: EscapedSlashes::KeepUnchanged,
        };
        assert_eq!(parsed(off).paths, expected);
        let wrong = errors("[paths]\npath_with_escaped_slashes_action = 'reject'");
        assert_eq!(wrong, ["`reject` is nothing that can be done to an escaped slash"]);
    }
}
