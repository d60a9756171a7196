//! Revisions of a service as entity tags (RFC 9110): what was looked at, and what is to be changed.
//!
//! A tag is that of what a write cares about: roles, weight and rollout. Counts and figures change under it
//! with every request.

use http::{HeaderMap, HeaderName, HeaderValue, header};

/// Tags that a request names.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Tags {
    /// `*`.
    Any,
    /// The revisions of those that can be one.
    These(Vec<u64>),
}

/// A revision's `ETag`.
pub(super) fn tag(revision: u64) -> HeaderValue {
    HeaderValue::try_from(format!("\"{revision}\"")).expect("digits in quotes are a value")
}

/// The revisions that `If-Match` asks for; nothing if it is not there, or any will do.
pub(super) fn to_match(headers: &HeaderMap) -> Option<Vec<u64>> {
    match tags(headers, header::IF_MATCH, false)? {
        Tags::Any => None,
        Tags::These(revisions) => Some(revisions),
    }
}

/// Whether `If-None-Match` says that this revision is known.
pub(super) fn is_known(headers: &HeaderMap, revision: u64) -> bool {
    match tags(headers, header::IF_NONE_MATCH, true) {
        None => false,
        Some(Tags::Any) => true,
        Some(Tags::These(revisions)) => revisions.contains(&revision),
    }
}

/// Whether it names revisions, another one than which could come.
pub(super) fn names_known(headers: &HeaderMap) -> bool {
    matches!(tags(headers, header::IF_NONE_MATCH, true), Some(Tags::These(_)))
}

/// A weak tag is only ever as good as another where nothing is changed.
fn tags(headers: &HeaderMap, name: HeaderName, weak: bool) -> Option<Tags> {
    let mut values = headers.get_all(name).iter().map(|value| value.to_str().unwrap_or_default()).peekable();
    values.peek()?;
    let mut revisions = Vec::new();
    for tag in values.flat_map(|value| value.split(',')).map(str::trim) {
        if tag == "*" {
            return Some(Tags::Any);
        }
        let tag = if weak { tag.strip_prefix("W/").unwrap_or(tag) } else { tag };
        let digits = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"'));
        // What is no tag of ours matches nothing.
        revisions.extend(digits.and_then(|digits| digits.parse::<u64>().ok()));
    }
    Some(Tags::These(revisions))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: HeaderName, values: &[&'static str]) -> HeaderMap {
        values.iter().map(|value| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn a_condition_is_a_list_of_tags_or_any() {
        let condition = |values: &[&'static str]| to_match(&headers(header::IF_MATCH, values));
        assert_eq!(condition(&[]), None);
        assert_eq!(condition(&["*"]), None);
        assert_eq!(condition(&["\"7\", \"8\"", "\"9\""]), Some(vec![7, 8, 9]));
        assert_eq!(condition(&["W/\"7\""]), Some(vec![]));
        assert_eq!(condition(&["7, \"x\", \""]), Some(vec![]));
        assert_eq!(condition(&[tag(7).to_str().unwrap().to_owned().leak()]), Some(vec![7]));
    }

    #[test]
    fn what_is_known_may_be_weak() {
        let known = |value: &'static str| is_known(&headers(header::IF_NONE_MATCH, &[value]), 7);
        assert!(known("W/\"7\"") && known("\"6\", \"7\"") && known("*"));
        assert!(!known("\"8\"") && !known("") && !is_known(&HeaderMap::new(), 7));
        let names = |value: &'static str| names_known(&headers(header::IF_NONE_MATCH, &[value]));
        assert!(names("\"7\"") && !names("*") && !names_known(&HeaderMap::new()));
    }
}
