//! Header names with an underscore, which an application may take for another field: CGI and its
//! heirs give `X_Forwarded_For` and `X-Forwarded-For` to it under one name.

use http::{HeaderMap, HeaderName};

use super::error::ProxyError;
use crate::routing::edge::{Edge, Underscores};

/// Fields that an application believes because a proxy sets or checks them; those that begin with
/// `x-forwarded-` and the one with the request's id belong to them.
const OURS: [&str; 8] = [
    "content-length",
    "content-type",
    "transfer-encoding",
    "keep-alive",
    "proxy-connection",
    "proxy-authorization",
    "x-real-ip",
    "x-request-id",
];

/// Lets names with an underscore pass or not, as the listener says.
///
/// # Errors
/// When there is one and the listener refuses such requests.
pub(super) fn screen(headers: &mut HeaderMap, edge: &Edge) -> Result<(), ProxyError> {
    if edge.underscores == Underscores::Allow || !headers.keys().any(has_underscore) {
        return Ok(());
    }
    let is_dropped = |name: &HeaderName| match edge.underscores {
        Underscores::DropAliases => has_underscore(name) && is_alias(name, edge),
        Underscores::DropHeader => has_underscore(name),
        Underscores::Allow | Underscores::RejectRequest => false,
    };
    if edge.underscores == Underscores::RejectRequest {
        return Err(ProxyError::Underscore);
    }
    let dropped: Vec<_> = headers.keys().filter(|name| is_dropped(name)).cloned().collect();
    for name in dropped {
        headers.remove(name);
    }
    Ok(())
}

fn has_underscore(name: &HeaderName) -> bool {
    name.as_str().as_bytes().contains(&b'_')
}

fn is_alias(name: &HeaderName, edge: &Edge) -> bool {
    let meant = name.as_str().replace('_', "-");
    OURS.contains(&meant.as_str())
        || meant.starts_with("x-forwarded-")
        || edge.request_id.as_ref().is_some_and(|id| *id == *meant)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const NAMES: [&str; 6] =
        ["x_forwarded_for", "x-forwarded_proto", "content_length", "trace_no", "x_custom", "x-kept"];

    fn left(underscores: Underscores, request_id: Option<&'static str>) -> Vec<String> {
        let mut headers = HeaderMap::new();
        for name in NAMES {
            headers.insert(name, HeaderValue::from_static("1"));
        }
        let edge =
            Edge { underscores, request_id: request_id.map(HeaderName::from_static), ..Edge::default() };
        screen(&mut headers, &edge).unwrap();
        let mut left: Vec<_> = headers.keys().map(|name| name.as_str().to_owned()).collect();
        left.sort_unstable();
        left
    }

    #[test]
    fn aliases_of_what_a_proxy_says_are_dropped() {
        assert_eq!(left(Underscores::DropAliases, None), ["trace_no", "x-kept", "x_custom"]);
        assert_eq!(left(Underscores::DropAliases, Some("trace-no")), ["x-kept", "x_custom"]);
        assert_eq!(left(Underscores::DropHeader, None), ["x-kept"]);
        assert_eq!(left(Underscores::Allow, None).len(), NAMES.len());
    }

    #[test]
    fn a_request_without_one_is_never_refused() {
        let edge = Edge { underscores: Underscores::RejectRequest, ..Edge::default() };
        let mut headers = HeaderMap::new();
        headers.insert("x-kept", HeaderValue::from_static("1"));
        assert_eq!(screen(&mut headers, &edge), Ok(()));
        headers.insert("x_custom", HeaderValue::from_static("1"));
        assert_eq!(screen(&mut headers, &edge), Err(ProxyError::Underscore));
    }
}
