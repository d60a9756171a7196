//! A path's normal form. The first byte chooses the rules; the rest is the path. What comes out is
//! normal, holds no dot segment for any reader, and may stand in a request.

#![no_main]

use http::uri::PathAndQuery;
use libfuzzer_sys::fuzz_target;
use tidegate::routing::path::{EscapedSlashes, Normalized, PathRules};

fuzz_target!(|text: &str| {
    let Some(first) = text.chars().next() else { return };
    let path = &text[first.len_utf8()..];
    // As hyper hands it on.
    let Some(target) = PathAndQuery::try_from(path).ok().filter(|_| path.starts_with('/')) else { return };
    let rules = PathRules {
        normalize_path: first as u32 & 1 == 0,
        merge_slashes: first as u32 & 2 == 0,
        escaped_slashes: match first as u32 >> 2 & 3 {
            0 => EscapedSlashes::RejectRequest,
            1 => EscapedSlashes::KeepUnchanged,
            2 => EscapedSlashes::UnescapeAndRedirect,
            _ => EscapedSlashes::UnescapeAndForward,
        },
    };
    let normal = match rules.apply(target.path()) {
        Ok(Normalized::Forward(normal)) => normal.into_owned(),
        Ok(Normalized::Redirect(normal)) => normal,
        Err(_) => return,
    };
    assert_eq!(rules.apply(&normal), Ok(Normalized::Forward((&*normal).into())), "{path:?}");
    assert_eq!(PathAndQuery::try_from(&*normal).map(|p| p.path() == normal).ok(), Some(true), "{normal:?}");
    if rules.normalize_path {
        let slashes = normal.replace("%2F", "/").replace("%5C", "/").replace('\\', "/");
        let mut segments = slashes.split('/').map(|segment| segment.split(';').next().unwrap_or_default());
        assert!(!segments.any(|segment| matches!(segment, "." | "..")), "{path:?} became {normal:?}");
    }
    if rules.merge_slashes {
        assert!(!normal.contains("//"), "{path:?} became {normal:?}");
    }
});
