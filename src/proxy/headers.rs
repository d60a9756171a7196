//! What changes in a head on its way through: fields that belong to one connection stay behind, and
//! fields that say where a request came from are added.

use http::{
    HeaderMap, HeaderName, HeaderValue, Uri, Version,
    header::{self, Entry},
    request, response,
    uri::{Authority, PathAndQuery, Scheme},
};

use super::{client::Client, error::ProxyError, forwarded};
use crate::routing::{edge::Edge, snapshot::Endpoint};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const VIA_1_1: HeaderValue = HeaderValue::from_static("1.1 tidegate");
const VIA_2: HeaderValue = HeaderValue::from_static("2 tidegate");

/// The host (with port, if given) that a request is for: the target's own, else the one `Host`.
///
/// Empty for an HTTP/1.0 request that has none.
///
/// # Errors
/// When there is no `Host`, several, one that is not a host, or another than the target's. RFC 9112,
/// section 3.2.2, has the target win; somebody in front or behind may read the field, and then two
/// hosts have been asked for.
pub(super) fn authority(parts: &request::Parts) -> Result<&str, ProxyError> {
    let host = parts.headers.get(header::HOST);
    // Only where some name stands twice need one look whether it is this one.
    if parts.headers.len() != parts.headers.keys_len()
        && parts.headers.get_all(header::HOST).iter().nth(1).is_some()
    {
        return Err(ProxyError::BadHost);
    }
    if let Some(authority) = parts.uri.authority() {
        let agrees = match host {
            Some(host) => is_same(host.as_bytes(), authority.as_str(), &parts.uri),
            // HTTP/2 has the authority in its stead, and HTTP/1.0 need not have one.
            None => parts.version != Version::HTTP_11,
        };
        return Some(authority.as_str()).filter(|a| agrees && is_authority(a)).ok_or(ProxyError::BadHost);
    }
    match host {
        Some(host) => host.to_str().ok().filter(|h| is_authority(h)).ok_or(ProxyError::BadHost),
        None if parts.version == Version::HTTP_10 => Ok(""),
        None => Err(ProxyError::BadHost),
    }
}

/// Whether a `Host` is the target's authority, but for a port that need not be written.
fn is_same(host: &[u8], authority: &str, uri: &Uri) -> bool {
    if host.eq_ignore_ascii_case(authority.as_bytes()) {
        return true;
    }
    let default: &[u8] = if uri.scheme_str() == Some("https") { b":443" } else { b":80" };
    let bare = |text: &[u8]| text.strip_suffix(default).unwrap_or(text).to_ascii_lowercase();
    bare(host) == bare(authority.as_bytes())
}

/// Whether a `Host` has only characters that a host and a port can have. A user name in it, a path
/// or a list would let two readers see two hosts.
fn is_authority(host: &str) -> bool {
    let allowed = |b: u8| {
        b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'~' | b':' | b'[' | b']' | b'%')
    };
    !host.is_empty() && host.bytes().all(allowed)
}

/// Refuses what cannot be forwarded faithfully.
///
/// # Errors
/// For CONNECT without a protocol to switch to, for transfer codings that hyper lets through without decoding them, and for a head
/// that is larger than the listener takes.
pub(super) fn check(parts: &request::Parts, edge: &Edge) -> Result<(), ProxyError> {
    if parts.headers.len() > edge.max_headers {
        return Err(ProxyError::TooManyHeaders);
    }
    let (authority, path) = (parts.uri.authority(), parts.uri.path_and_query());
    let length = authority.map_or(0, |a| a.as_str().len()) + path.map_or(0, |p| p.as_str().len());
    if length > edge.max_uri_length {
        return Err(ProxyError::UriTooLong);
    }
    if parts.method == http::Method::CONNECT && parts.extensions.get::<hyper::ext::Protocol>().is_none() {
        return Err(ProxyError::ConnectMethod);
    }
    if parts.headers.contains_key(header::TRANSFER_ENCODING) {
        let mut codings = parts.headers.get_all(header::TRANSFER_ENCODING).iter();
        let chunked = |v: &HeaderValue| v.as_bytes().eq_ignore_ascii_case(b"chunked");
        if !codings.next().is_some_and(chunked) || codings.next().is_some() {
            return Err(ProxyError::UnknownTransferCoding);
        }
    }
    Ok(())
}

/// Makes a request ready for an HTTP/1.1 backend. Returns what it would switch to, if it offers one
/// thing and says so as it should.
pub(super) fn prepare_request(
    parts: &mut request::Parts,
    client: &Client,
    endpoint: &Endpoint,
) -> Option<HeaderValue> {
    let via = if parts.version == Version::HTTP_2 { VIA_2 } else { VIA_1_1 };
    set_host(parts, endpoint);
    if parts.headers.contains_key(header::TRANSFER_ENCODING) {
        // The length counts for nothing beside it (RFC 9112, section 6.3), and hyper would believe it.
        parts.headers.remove(header::CONTENT_LENGTH);
    }
    if parts.version == Version::HTTP_2 {
        join_cookies(&mut parts.headers);
    }
    let headers = &mut parts.headers;
    // `Forwarded` stands last, and a trusted proxy's stays.
    let upgrade = strip(headers, if client.is_trusted() { OURS.len() - 1 } else { OURS.len() });
    forwarded::say(headers, client);
    headers.append(header::VIA, via);
    parts.version = Version::HTTP_11;
    upgrade
}

/// Makes a request for HTTP/2 of one that is ready for HTTP/1.1: the host goes from its field into the
/// target. Cookies stay in one field, which is as good.
///
/// # Errors
/// When the host cannot be one in a target.
pub(super) fn for_http2(parts: &mut request::Parts) -> Result<(), ProxyError> {
    let host = parts.headers.remove(header::HOST).ok_or(ProxyError::BadHost)?;
    let mut uri = std::mem::take(&mut parts.uri).into_parts();
    uri.scheme = Some(Scheme::HTTP);
    uri.authority = Some(Authority::try_from(host.as_bytes()).map_err(|_| ProxyError::BadHost)?);
    parts.uri = Uri::from_parts(uri).map_err(|_| ProxyError::BadHost)?;
    parts.version = Version::HTTP_2;
    Ok(())
}

/// Puts the target into origin form and the host into `Host`.
fn set_host(parts: &mut request::Parts, endpoint: &Endpoint) {
    if parts.uri.authority().is_some() {
        let mut uri = std::mem::take(&mut parts.uri).into_parts();
        let authority = uri.authority.take().expect("there is one");
        uri.scheme = None;
        let path = uri.path_and_query.take().unwrap_or_else(|| PathAndQuery::from_static("/"));
        parts.uri = Uri::from(path);
        if let Ok(host) = HeaderValue::from_str(authority.as_str()) {
            parts.headers.insert(header::HOST, host);
        }
    } else if let Entry::Vacant(entry) = parts.headers.entry(header::HOST)
        && let Ok(host) = HeaderValue::try_from(endpoint.to_string())
    {
        entry.insert(host);
    }
}

/// Makes one field of several `Cookie` fields, which HTTP/2 allows and HTTP/1.1 does not (RFC 9113,
/// section 8.2.3): a backend may read the first one only.
fn join_cookies(headers: &mut HeaderMap) {
    let mut cookies = headers.get_all(header::COOKIE).iter();
    if cookies.nth(1).is_none() {
        return;
    }
    let joined: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&joined.join(&b"; "[..])) {
        headers.insert(header::COOKIE, joined);
    }
}

/// Makes a response ready for the client.
pub(super) fn prepare_response(head: &mut response::Parts) {
    // The version is that of the connection, not of the message that came on another.
    head.version = Version::HTTP_11;
    let _upgrade = strip(&mut head.headers, HOP_BY_HOP);
}

/// Removes from trailers what decides how a message is framed, routed or trusted, and so comes too
/// late in them (RFC 9110, section 6.5.1): somebody may have merged them into the head.
pub(super) fn prepare_trailers(trailers: &mut HeaderMap) {
    let forbidden: Vec<_> = trailers.keys().filter(|name| is_forbidden_in_trailers(name)).cloned().collect();
    for name in forbidden {
        trailers.remove(name);
    }
}

fn is_forbidden_in_trailers(name: &HeaderName) -> bool {
    const FORBIDDEN: [HeaderName; 18] = [
        header::AUTHORIZATION,
        header::CACHE_CONTROL,
        header::CONTENT_ENCODING,
        header::CONTENT_LENGTH,
        header::CONTENT_RANGE,
        header::CONTENT_TYPE,
        header::COOKIE,
        header::EXPECT,
        header::HOST,
        header::LOCATION,
        header::MAX_FORWARDS,
        header::RANGE,
        header::SET_COOKIE,
        header::TRAILER,
        header::VIA,
        header::WWW_AUTHENTICATE,
        header::PROXY_AUTHENTICATE,
        header::FORWARDED,
    ];
    OURS.contains(name) || FORBIDDEN.contains(name) || name.as_str().starts_with("x-forwarded-")
}

/// Removes those of the first `count` of [`OURS`] that are there, and the fields that `Connection`
/// names. Returns what the message would switch to.
///
/// Most messages have at most one of them, so what is there is found in one pass over the names.
fn strip(headers: &mut HeaderMap, count: usize) -> Option<HeaderValue> {
    let mut found = 0u32;
    for name in headers.keys() {
        if LENGTHS & (1 << (name.as_str().len() & 31)) != 0
            && let Some(i) = OURS[..count].iter().position(|ours| ours == name)
        {
            found |= 1 << i;
        }
    }
    if found == 0 {
        return None;
    }
    let upgrade = if found & (1 << UPGRADE) != 0 { upgrade(headers) } else { None };
    if found & 1 != 0 {
        strip_named(headers);
    }
    // `TE: trailers` is the one value that may go on (RFC 9110, section 10.1.4); gRPC needs it.
    let trailers = headers.get(header::TE).is_some_and(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers"));
    for (i, name) in OURS.iter().enumerate() {
        if found & (1 << i) != 0 {
            headers.remove(name);
        }
    }
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    upgrade
}

/// The one protocol that a message switches to, if `Connection` says so too.
fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut offered = headers.get_all(header::UPGRADE).iter();
    let (Some(offer), None) = (offered.next(), offered.next()) else { return None };
    let mut options =
        headers.get_all(header::CONNECTION).iter().flat_map(|v| v.as_bytes().split(|b| *b == b','));
    options.any(|option| option.trim_ascii().eq_ignore_ascii_case(b"upgrade")).then(|| offer.clone())
}

/// Removes the fields that the `Connection` fields name, all of them.
fn strip_named(headers: &mut HeaderMap) {
    let is_option =
        |name: &[u8]| name.eq_ignore_ascii_case(b"close") || name.eq_ignore_ascii_case(b"keep-alive");
    if headers.get_all(header::CONNECTION).iter().all(|value| is_option(value.as_bytes())) {
        return;
    }
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|b| *b == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|name| !is_option(name))
        .filter_map(|name| HeaderName::from_bytes(name).ok())
        .filter(|name| !is_protected(name))
        .collect();
    for name in named {
        headers.remove(name);
    }
}

/// Fields that go no further: `Connection` first, then the others that belong to one connection
/// ([`HOP_BY_HOP`] of them), then those that only requests have: `Expect`, which hyper has answered
/// or will when the body is asked for, and `Forwarded`, unless who is in front is trusted to say who
/// the client is.
static OURS: [HeaderName; 10] = [
    header::CONNECTION,
    KEEP_ALIVE,
    PROXY_CONNECTION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::PROXY_AUTHORIZATION,
    header::PROXY_AUTHENTICATE,
    header::EXPECT,
    header::FORWARDED,
];

/// The place of `Upgrade` in [`OURS`].
const UPGRADE: usize = 5;

/// How many of [`OURS`] belong to one connection.
const HOP_BY_HOP: usize = 8;

/// The lengths of their names as a set of bits: most other names are told apart by it.
const LENGTHS: u32 = 1 << 2 | 1 << 6 | 1 << 7 | 1 << 9 | 1 << 10 | 1 << 16 | 1 << 17 | 1 << 18 | 1 << 19;

/// Fields that a `Connection` field cannot take away: a client could otherwise have the host, the
/// length or its own credentials dropped between here and the backend.
fn is_protected(name: &HeaderName) -> bool {
    *name == header::HOST
        || *name == header::CONTENT_LENGTH
        || *name == header::AUTHORIZATION
        || *name == header::COOKIE
        || *name == header::VIA
        || *name == header::TE
        || name.as_str().starts_with("x-forwarded-")
}

/// Asks the client to close the connection after this response (HTTP/1.1 only).
pub(super) fn ask_to_close(headers: &mut HeaderMap) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(uri: &str, headers: &[(&str, &str)]) -> request::Parts {
        let mut request = http::Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn left(parts: &request::Parts) -> Vec<&str> {
        let mut left: Vec<_> = parts.headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        left
    }

    #[test]
    fn every_connection_field_is_heard() {
        let mut parts = parts(
            "/",
            &[
                ("connection", "close, X-One"),
                ("connection", "x-two,, keep-alive"),
                ("x-one", "1"),
                ("x-two", "2"),
                ("x-three", "3"),
                ("te", "trailers"),
                ("keep-alive", "5"),
                ("upgrade", "h2c"),
            ],
        );
        let _upgrade = strip(&mut parts.headers, OURS.len());
        assert_eq!(left(&parts), ["te", "x-three"]);
    }

    #[test]
    fn the_connection_field_cannot_take_what_a_backend_relies_on() {
        let names = "host, content-length, authorization, cookie, x-forwarded-for, x-mine";
        let mut parts =
            parts("/", &[("connection", names), ("host", "a"), ("authorization", "b"), ("x-mine", "c")]);
        let _upgrade = strip(&mut parts.headers, OURS.len());
        assert_eq!(left(&parts), ["authorization", "host"]);
    }

    #[test]
    fn every_field_of_ours_has_its_length_in_the_set() {
        let lengths = OURS.iter().fold(0, |set, name| set | 1 << name.as_str().len());
        assert_eq!(LENGTHS, lengths);
    }

    #[test]
    fn the_host_is_the_targets_or_the_one_host_field() {
        let absolute =
            |host| authority(&parts("http://a.example:8080/x", &[("host", host)])).map(str::to_owned);
        assert_eq!(absolute("A.example:8080"), Ok("a.example:8080".to_owned()));
        for other in ["b", "a.example", "a.example:80", "", "a.example:8080 "] {
            assert_eq!(absolute(other), Err(ProxyError::BadHost), "{other}");
        }
        assert_eq!(authority(&parts("http://a.example/x", &[("host", "a.example:80")])), Ok("a.example"));
        assert_eq!(authority(&parts("http://a.example/x", &[])), Err(ProxyError::BadHost));
        assert_eq!(authority(&parts("/", &[("host", "b:1")])), Ok("b:1"));
        for bad in [
            &[][..],
            &[("host", "")],
            &[("host", "a"), ("host", "a")],
            &[("host", "a b")],
            &[("host", "u@a")],
            &[("host", "a/b")],
        ] {
            assert_eq!(authority(&parts("/", bad)), Err(ProxyError::BadHost), "{bad:?}");
        }
    }

    #[test]
    fn an_upgrade_is_one_protocol_that_connection_names() {
        let upgrade = |headers: &[(&str, &str)]| strip(&mut parts("/", headers).headers, OURS.len());
        let offer = ("upgrade", "websocket");
        assert_eq!(upgrade(&[offer, ("connection", "keep-alive, Upgrade")]).unwrap(), "websocket");
        assert_eq!(OURS[UPGRADE], header::UPGRADE);
        for none in
            [&[offer][..], &[offer, ("connection", "close")], &[offer, offer, ("connection", "upgrade")]]
        {
            assert_eq!(upgrade(none), None, "{none:?}");
        }
    }

    #[test]
    fn the_host_goes_into_the_target_for_http_2() {
        let mut head = parts("/a?b", &[("host", "a.example:1")]);
        for_http2(&mut head).unwrap();
        assert_eq!((head.uri.to_string().as_str(), left(&head).len()), ("http://a.example:1/a?b", 0));
        let mut star = parts("*", &[("host", "a")]);
        for_http2(&mut star).unwrap();
        assert_eq!(star.uri.path(), "*");
    }

    #[test]
    fn trailers_cannot_say_what_only_a_head_may() {
        let names = ["content-length", "Host", "authorization", "connection", "x-forwarded-for", "cookie"];
        let names = names.iter().map(|name| (*name, "1"));
        let names: Vec<_> = names.chain([("grpc-status", "0"), ("x-sum", "1")]).collect();
        let mut trailers = parts("/", &names);
        prepare_trailers(&mut trailers.headers);
        assert_eq!(left(&trailers), ["grpc-status", "x-sum"]);
    }

    #[test]
    fn only_chunked_is_understood() {
        let check = |parts: request::Parts| check(&parts, &Edge::default());
        assert_eq!(check(parts("/", &[("transfer-encoding", "Chunked")])), Ok(()));
        for bad in [&["gzip, chunked"][..], &["chunked", "chunked"], &["identity"], &["chunked\t"]] {
            let headers: Vec<_> = bad.iter().map(|v| ("transfer-encoding", *v)).collect();
            assert_eq!(check(parts("/", &headers)), Err(ProxyError::UnknownTransferCoding), "{bad:?}");
        }
    }
}
