//! What a request must have beside its host and path: a method, header fields, query parameters,
//! cookies.

use http::{HeaderMap, HeaderName, Method, header};

use super::{path::digit, pattern::Pattern};

/// A request as routes see it.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// Host with or without port.
    pub authority: &'a str,
    /// The path as it will be forwarded.
    pub path: &'a str,
    /// What follows the `?`, if there is one.
    pub query: Option<&'a str>,
    /// The method.
    pub method: &'a Method,
    /// The fields.
    pub headers: &'a HeaderMap,
}

/// What a value must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Test {
    /// Byte for byte this.
    Exact(Box<str>),
    /// Something that matches as a whole.
    Regex(Pattern),
    /// Anything, if it is there.
    Present,
    /// It must not be there.
    Absent,
}

impl Test {
    /// Whether the values that there are pass: one of them must, or there must be none.
    fn passes<V: IntoIterator<Item = u8>>(&self, mut values: impl Iterator<Item = V>) -> bool {
        match self {
            Self::Exact(exact) => values.any(|value| value.into_iter().eq(exact.bytes())),
            Self::Regex(pattern) => values.any(|value| pattern.matches(value)),
            Self::Present => values.next().is_some(),
            Self::Absent => values.next().is_none(),
        }
    }
}

/// A header field and what its value must be. Where a field stands several times, one of them suffices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderTest {
    /// The field's name.
    pub name: HeaderName,
    /// What its value must be.
    pub test: Test,
}

impl HeaderTest {
    /// Whether a request's fields pass.
    pub fn passes(&self, headers: &HeaderMap) -> bool {
        self.test.passes(headers.get_all(&self.name).iter().map(|value| value.as_bytes().iter().copied()))
    }
}

/// A query parameter or a cookie, and what its value must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairTest {
    /// Its name; case matters.
    pub name: Box<str>,
    /// What its value must be.
    pub test: Test,
}

impl PairTest {
    /// Whether a query passes. Names and values are compared as they are meant, with escapes undone; of
    /// several parameters of one name the first counts (as Gateway API advises).
    pub fn passes_in_query(&self, query: Option<&str>) -> bool {
        let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        let pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let mut named = pairs.filter(|(name, _)| unescape(name).eq(self.name.bytes()));
        self.test.passes(named.next().into_iter().map(|(_, value)| unescape(value)))
    }

    /// Whether the cookies that a request brings pass; of several of one name one suffices.
    pub fn passes_in_cookies(&self, headers: &HeaderMap) -> bool {
        self.test.passes(cookies(headers, &self.name).map(|value| value.iter().copied()))
    }
}

/// What a request must have beside its host and path: all of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Conditions {
    /// One of these methods; any if there are none.
    pub methods: Box<[Method]>,
    /// Header fields.
    pub headers: Box<[HeaderTest]>,
    /// Query parameters.
    pub query: Box<[PairTest]>,
}

impl Conditions {
    /// Whether every request has it.
    pub fn is_empty(&self) -> bool {
        self.methods.is_empty() && self.headers.is_empty() && self.query.is_empty()
    }

    /// Orders two routes with the same host and path, the greater one first: a method counts for more
    /// than any header, and headers for more than any query (Gateway API's order).
    pub fn precedence(&self) -> (bool, usize, usize) {
        (!self.methods.is_empty(), self.headers.len(), self.query.len())
    }

    /// Whether a request has it all.
    pub fn hold(&self, head: &Head<'_>) -> bool {
        (self.methods.is_empty() || self.methods.contains(head.method))
            && self.headers.iter().all(|test| test.passes(head.headers))
            && self.query.iter().all(|test| test.passes_in_query(head.query))
    }
}

/// The values of the cookies of one name, in the order of the fields.
pub fn cookies<'h>(headers: &'h HeaderMap, name: &str) -> impl Iterator<Item = &'h [u8]> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .flat_map(|cookies| cookies.as_bytes().split(|b| *b == b';'))
        .filter_map(move |cookie| cookie.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"="))
}

/// The bytes of a part of a query with escapes undone; one that is malformed stands for itself.
fn unescape(text: &str) -> impl Iterator<Item = u8> {
    let mut rest = text.as_bytes();
    std::iter::from_fn(move || {
        let (byte, after) = rest.split_first()?;
        rest = after;
        Some(match byte {
            b'+' => b' ',
            b'%' => match after {
                [high, low, after @ ..] => match (digit(*high), digit(*low)) {
                    (Some(high), Some(low)) => {
                        rest = after;
                        high << 4 | low
                    }
                    _ => b'%',
                },
                _ => b'%',
            },
            other => *other,
        })
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn exact(value: &str) -> Test {
        Test::Exact(value.into())
    }

    fn regex(pattern: &str) -> Test {
        Test::Regex(Pattern::new(pattern).unwrap())
    }

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn one_of_several_fields_suffices() {
        let sent = headers(&[("x-beta", "no"), ("x-beta", "yes"), ("x-empty", "")]);
        let passes = |name, test| HeaderTest { name: HeaderName::from_static(name), test }.passes(&sent);
        assert!(passes("x-beta", exact("yes")) && !passes("x-beta", exact("ye")));
        assert!(passes("x-beta", regex("y.*")) && !passes("x-beta", regex("e")));
        assert!(passes("x-empty", Test::Present) && !passes("x-other", Test::Present));
        assert!(passes("x-other", Test::Absent) && !passes("x-empty", Test::Absent));
        assert!(!passes("x-other", regex(".*")));
    }

    #[test]
    fn parameters_are_compared_as_they_are_meant() {
        let passes = |query, test| PairTest { name: "a b".into(), test }.passes_in_query(query);
        for query in ["a+b=c d", "a%20b=c%20d", "x=1&a%20b=c+d", "&&%61+b=c%20%64&a+b=other"] {
            assert!(passes(Some(query), exact("c d")), "{query}");
        }
        for query in ["a+b=c", "A+b=c+d", "a+b=other&a+b=c+d", "a%2Bb=c+d", ""] {
            assert!(!passes(Some(query), exact("c d")), "{query}");
        }
        assert!(passes(Some("a+b"), exact("")) && passes(Some("a+b"), Test::Present));
        assert!(passes(None, Test::Absent) && !passes(None, Test::Present));
        assert!(passes(Some("a+b=100%"), exact("100%")) && passes(Some("a+b=%zz"), exact("%zz")));
        assert!(passes(Some("a+b=v17"), regex("v[0-9]+")));
    }

    #[test]
    fn cookies_are_found_by_their_whole_name() {
        let sent = headers(&[("cookie", "xside=1; side=2;side=3"), ("cookie", " side = 4; side=")]);
        let found: Vec<_> = cookies(&sent, "side").collect();
        assert_eq!(found, [&b"2"[..], b"3", b""]);
        let passes = |test| PairTest { name: "side".into(), test }.passes_in_cookies(&sent);
        assert!(passes(exact("3")) && !passes(exact("1")) && passes(regex("[0-9]")) && !passes(Test::Absent));
    }

    #[test]
    fn all_conditions_must_hold() {
        let conditions = Conditions {
            methods: [Method::GET, Method::HEAD].into(),
            headers: [HeaderTest { name: HeaderName::from_static("x-beta"), test: Test::Present }].into(),
            query: [PairTest { name: "v".into(), test: exact("2") }].into(),
        };
        let sent = headers(&[("x-beta", "")]);
        let holds = |method: Method, headers: &HeaderMap, query| {
            conditions.hold(&Head { authority: "x", path: "/", query, method: &method, headers })
        };
        assert!(holds(Method::GET, &sent, Some("v=2")) && holds(Method::HEAD, &sent, Some("v=2")));
        assert!(!holds(Method::POST, &sent, Some("v=2")));
        assert!(!holds(Method::GET, &HeaderMap::new(), Some("v=2")));
        assert!(!holds(Method::GET, &sent, Some("v=3")));
        assert!(Conditions::default().is_empty() && !conditions.is_empty());
    }
}
