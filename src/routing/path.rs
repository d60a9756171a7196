//! A request's path in its one normal form: what routes are matched on, and what the backend gets.
//!
//! Two readers of one path must not see two paths. So a path is brought into the normal form of RFC
//! 3986, section 6.2.2 (dot segments removed, `%41` written as `A`, hexadecimal digits in capitals),
//! and it is the normal form that goes on. What has no one meaning is refused: a malformed escape, a
//! NUL, and a `..` that only some readers see as one (`..%2F`, `..;x`).
//!
//! The keys and their words are Envoy's. The order is ours: empty segments go first where they are
//! merged, as a file system would have it.

use std::borrow::Cow;

/// What is done to a path before it is matched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathRules {
    /// Bring it into normal form (default true).
    pub normalize_path: bool,
    /// Make one slash of several (default true).
    pub merge_slashes: bool,
    /// What an escaped slash or a backslash means (default: the request is refused).
    pub escaped_slashes: EscapedSlashes,
}

/// What `%2F`, `%5C` and `\` in a path mean. A backend may take any of them for a slash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EscapedSlashes {
    /// They are what they are: characters of a segment.
    KeepUnchanged,
    /// The request is refused.
    #[default]
    RejectRequest,
    /// They are slashes, and the client is sent to the path that says so.
    UnescapeAndRedirect,
    /// They are slashes, and the backend gets the path that says so.
    UnescapeAndForward,
}

impl Default for PathRules {
    fn default() -> Self {
        Self { normalize_path: true, merge_slashes: true, escaped_slashes: EscapedSlashes::default() }
    }
}

/// What became of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Normalized<'p> {
    /// The path to match and to forward.
    Forward(Cow<'p, str>),
    /// The path that the client should ask for instead.
    Redirect(String),
}

/// Why a path is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused;

impl PathRules {
    /// Brings a path into the form in which it is matched and forwarded. `*` and a path that does not
    /// begin with a slash stay as they are.
    ///
    /// # Errors
    /// For a path that two readers could read in two ways.
    #[inline]
    pub fn apply<'p>(&self, path: &'p str) -> Result<Normalized<'p>, Refused> {
        if is_plain(path) { Ok(Normalized::Forward(Cow::Borrowed(path))) } else { self.apply_slowly(path) }
    }

    #[cold]
    fn apply_slowly<'p>(&self, path: &'p str) -> Result<Normalized<'p>, Refused> {
        if !path.starts_with('/') {
            return Ok(Normalized::Forward(Cow::Borrowed(path)));
        }
        let mut bytes = Cow::Borrowed(path.as_bytes());
        let mut redirect = false;
        match self.escaped_slashes {
            EscapedSlashes::KeepUnchanged => {}
            EscapedSlashes::RejectRequest => {
                if has_escaped_slash(&bytes) {
                    return Err(Refused);
                }
            }
            EscapedSlashes::UnescapeAndRedirect | EscapedSlashes::UnescapeAndForward => {
                if has_escaped_slash(&bytes) {
                    redirect = self.escaped_slashes == EscapedSlashes::UnescapeAndRedirect;
                    bytes = Cow::Owned(unescape_slashes(&bytes));
                }
            }
        }
        if self.normalize_path {
            bytes = Cow::Owned(normal_escapes(&bytes)?);
        }
        if self.merge_slashes {
            bytes = Cow::Owned(merge_slashes(&bytes));
        }
        if self.normalize_path {
            bytes = Cow::Owned(remove_dot_segments(&bytes)?);
        }
        if *bytes == *path.as_bytes() {
            return Ok(Normalized::Forward(Cow::Borrowed(path)));
        }
        let path = String::from_utf8(bytes.into_owned()).map_err(|_| Refused)?;
        Ok(if redirect { Normalized::Redirect(path) } else { Normalized::Forward(Cow::Owned(path)) })
    }
}

/// Whether a path is in normal form for sure: no escape, no backslash, no empty segment and none that
/// begins with a dot. Nearly every path ends here, so it is looked at without a branch for each byte,
/// which compiles to a few vector instructions.
#[inline]
fn is_plain(path: &str) -> bool {
    let bytes = path.as_bytes();
    let after = bytes.get(1..).unwrap_or_default();
    let escapes = bytes.iter().fold(false, |found, b| found | (*b == b'%') | (*b == b'\\'));
    let begins_oddly = |a: u8, b: u8| (a == b'/') & ((b == b'/') | (b == b'.'));
    let odd = bytes.iter().zip(after).fold(false, |found, (a, b)| found | begins_oddly(*a, *b));
    !(escapes | odd)
}

/// Length of the backslash, or of the escape of a slash or a backslash, that `bytes` begin with.
fn escaped_slash(bytes: &[u8]) -> usize {
    match bytes {
        [b'\\', ..] => 1,
        [b'%', b'2', b'f' | b'F', ..] | [b'%', b'5', b'c' | b'C', ..] => 3,
        _ => 0,
    }
}

fn has_escaped_slash(bytes: &[u8]) -> bool {
    (0..bytes.len()).any(|at| escaped_slash(&bytes[at..]) > 0)
}

fn unescape_slashes(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let length = escaped_slash(&bytes[at..]);
        out.push(if length > 0 { b'/' } else { bytes[at] });
        at += length.max(1);
    }
    out
}

/// Escapes of unreserved characters undone, those of all others in capitals.
fn normal_escapes(bytes: &[u8]) -> Result<Vec<u8>, Refused> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let [byte, after @ ..] = rest {
        rest = after;
        if *byte != b'%' {
            out.push(*byte);
            continue;
        }
        let [high, low, after @ ..] = rest else { return Err(Refused) };
        rest = after;
        match (digit(*high), digit(*low)) {
            (Some(0), Some(0)) | (None, _) | (_, None) => return Err(Refused),
            (Some(h), Some(l)) if is_unreserved(h << 4 | l) => out.push(h << 4 | l),
            _ => out.extend([b'%', high.to_ascii_uppercase(), low.to_ascii_uppercase()]),
        }
    }
    Ok(out)
}

/// The value of a hexadecimal digit.
pub(super) fn digit(byte: u8) -> Option<u8> {
    (byte as char).to_digit(16).map(|digit| digit as u8)
}

/// RFC 3986, section 2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

fn merge_slashes(bytes: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    out.dedup_by(|after, before| *after == b'/' && *before == b'/');
    out
}

/// RFC 3986, section 5.2.4: `.` is left out, and `..` takes the segment before it along.
fn remove_dot_segments(bytes: &[u8]) -> Result<Vec<u8>, Refused> {
    let mut out: Vec<u8> = Vec::with_capacity(bytes.len());
    let mut segments = bytes[1..].split(|b| *b == b'/').peekable();
    while let Some(segment) = segments.next() {
        if hides_dots(segment) {
            return Err(Refused);
        }
        if segment == b".." {
            out.truncate(out.iter().rposition(|b| *b == b'/').unwrap_or(0));
        }
        let is_dots = matches!(segment, b"." | b"..");
        if !is_dots {
            out.push(b'/');
            out.extend_from_slice(segment);
        } else if segments.peek().is_none() {
            out.push(b'/');
        }
    }
    Ok(out)
}

/// Whether a segment is none of dots, and some readers take it, or a part of it, for one: those to whom
/// an escaped slash is a slash, and those who cut parameters off (`..;x`).
fn hides_dots(segment: &[u8]) -> bool {
    if matches!(segment, b"." | b"..") {
        return false;
    }
    let slashes = unescape_slashes(segment);
    let mut parts = slashes.split(|b| *b == b'/');
    parts.any(|part| matches!(part.split(|b| *b == b';').next(), Some(b"." | b"..")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rules(escaped_slashes: EscapedSlashes) -> PathRules {
        PathRules { escaped_slashes, ..PathRules::default() }
    }

    /// What is forwarded; nothing if the path is refused.
    fn forwarded(rules: PathRules, path: &str) -> Option<String> {
        match rules.apply(path) {
            Ok(Normalized::Forward(path)) => Some(path.into_owned()),
            Ok(Normalized::Redirect(path)) => Some(format!("redirect {path}")),
            Err(Refused) => None,
        }
    }

    #[test]
    fn paths_get_their_normal_form() {
        for (path, normal) in [
            ("/", "/"),
            ("*", "*"),
            ("", ""),
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/a/..", "/"),
            ("/a/b/..", "/a/"),
            ("/a/.", "/a/"),
            ("/../../a", "/a"),
            ("/..", "/"),
            ("/a/%2e%2E/b", "/b"),
            ("/a/.%2e/b", "/b"),
            ("//a///b//", "/a/b/"),
            ("/a//../b", "/b"),
            ("/%61dmin%c3%a9", "/admin%C3%A9"),
            ("/.well-known/x", "/.well-known/x"),
            ("/.../..a", "/.../..a"),
            ("/a;x=1/b", "/a;x=1/b"),
            ("/a%3Bb%20c", "/a%3Bb%20c"),
        ] {
            assert_eq!(forwarded(PathRules::default(), path).as_deref(), Some(normal), "{path}");
        }
    }

    #[test]
    fn what_has_two_meanings_is_refused() {
        for path in [
            "/a%",
            "/a%4",
            "/a%zz",
            "/a%00",
            "/a%2Fb",
            "/a%5cb",
            "/a\\b",
            "/a/..;/b",
            "/a/.;x/b",
            "/%2e%2e;/b",
        ] {
            assert_eq!(forwarded(PathRules::default(), path), None, "{path}");
        }
        for path in ["/a/..%2fb", "/a/..\\b", "/a/b%2F..", "/%2E%2E%5Cb"] {
            assert_eq!(forwarded(rules(EscapedSlashes::KeepUnchanged), path), None, "{path}");
        }
    }

    #[test]
    fn escaped_slashes_are_what_they_are_said_to_be() {
        let of = |escaped| forwarded(rules(escaped), "/a%2fb\\c%5C../d");
        assert_eq!(of(EscapedSlashes::RejectRequest), None);
        assert_eq!(of(EscapedSlashes::KeepUnchanged), None);
        assert_eq!(of(EscapedSlashes::UnescapeAndForward).as_deref(), Some("/a/b/d"));
        assert_eq!(of(EscapedSlashes::UnescapeAndRedirect).as_deref(), Some("redirect /a/b/d"));
        let kept = forwarded(rules(EscapedSlashes::KeepUnchanged), "/@scope%2fname");
        assert_eq!(kept.as_deref(), Some("/@scope%2Fname"));
    }

    #[test]
    fn each_rule_can_be_switched_off() {
        let off = PathRules {
            normalize_path: false,
            merge_slashes: false,
            escaped_slashes: EscapedSlashes::KeepUnchanged,
        };
        let odd = "/a//../%2e%2E/%zz\\;..%2f";
        assert_eq!(forwarded(off, odd).as_deref(), Some(odd));
        let merged = forwarded(PathRules { merge_slashes: true, ..off }, "/a//../b");
        assert_eq!(merged.as_deref(), Some("/a/../b"));
        let normal = forwarded(PathRules { normalize_path: true, ..off }, "/a//../b");
        assert_eq!(normal.as_deref(), Some("/a/b"));
    }

    fn any_rules() -> impl Strategy<Value = PathRules> {
        let escaped = prop::sample::select(vec![
            EscapedSlashes::KeepUnchanged,
            EscapedSlashes::RejectRequest,
            EscapedSlashes::UnescapeAndRedirect,
            EscapedSlashes::UnescapeAndForward,
        ]);
        (any::<bool>(), any::<bool>(), escaped).prop_map(
            |(normalize_path, merge_slashes, escaped_slashes)| PathRules {
                normalize_path,
                merge_slashes,
                escaped_slashes,
            },
        )
    }

    fn odd_path() -> impl Strategy<Value = String> {
        let part = prop::sample::select(vec![
            "/", "/", ".", "..", "%2e", "%2E", "%2f", "%2F", "%5c", "\\", "a", "b", "%61", "%", "%25",
            "%252e", ";", "é", "%c3",
        ]);
        prop::collection::vec(part, 0..12).prop_map(|parts| format!("/{}", parts.concat()))
    }

    proptest! {
        #[test]
        fn the_normal_form_is_normal(rules in any_rules(), path in odd_path()) {
            let once = match rules.apply(&path) {
                Ok(Normalized::Forward(once)) => once.into_owned(),
                Ok(Normalized::Redirect(once)) => once,
                Err(Refused) => return Ok(()),
            };
            prop_assert_eq!(rules.apply(&once), Ok(Normalized::Forward(Cow::Borrowed(&*once))), "{}", path);
        }

        #[test]
        fn no_reader_finds_a_dot_segment(rules in any_rules(), path in odd_path()) {
            let rules = PathRules { normalize_path: true, ..rules };
            if let Some(normal) = forwarded(rules, &path) {
                let mut decoded = normal.replace("%2F", "/").replace("%5C", "/").replace('\\', "/");
                decoded = decoded.replace("%2E", ".").replace("%2e", ".");
                let mut segments = decoded.split('/').map(|segment| segment.split(';').next().unwrap());
                prop_assert!(!segments.any(|s| s == "." || s == ".."), "{} became {}", path, normal);
            }
        }

        #[test]
        fn slashes_are_single_where_they_are_merged(path in odd_path()) {
            if let Some(normal) = forwarded(PathRules::default(), &path) {
                prop_assert!(normal.starts_with('/') && !normal.contains("//"), "{}", normal);
            }
        }
    }
}
