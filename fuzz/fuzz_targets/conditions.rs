//! What a route may ask of a request beside host and path, against a plain reading of it. A line for
//! the test (`?`, `;` or `:` for a query parameter, a cookie or a header field; a name; `=` and a
//! value, `~` and a regular expression, `+` or `-`), one for the query, then a field to a line.

#![no_main]

use http::{HeaderMap, HeaderName, HeaderValue, Method, header::COOKIE};
use libfuzzer_sys::fuzz_target;
use tidegate::routing::{
    condition::{Conditions, Head, HeaderTest, PairTest, Test},
    pattern::Pattern,
};

fuzz_target!(|text: &str| {
    let mut lines = text.split('\n');
    let (Some(test), Some(query)) = (lines.next(), lines.next()) else { return };
    let fields = lines.filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        Some((HeaderName::try_from(name).ok()?, HeaderValue::try_from(value.trim()).ok()?))
    });
    let mut headers = HeaderMap::new();
    fields.for_each(|(name, value)| _ = headers.append(name, value));
    let head = Head { authority: "", path: "/", query: Some(query), method: &Method::GET, headers: &headers };

    let Some((kind, rest)) = test.split_at_checked(1) else { return };
    let Some(at) = rest.find(['=', '~', '+', '-']) else { return };
    let (name, test) = rest.split_at(at);
    let Some(test) = wanted(test) else { return };
    let (passes, values) = match kind {
        "?" => {
            let pair = PairTest { name: name.into(), test: test.clone() };
            let conditions = Conditions { query: [pair].into(), ..Conditions::default() };
            let first = parameters(query).into_iter().find(|(key, _)| key == name.as_bytes());
            (conditions.hold(&head), first.map(|(_, value)| value).into_iter().collect())
        }
        ";" => {
            let pair = PairTest { name: name.into(), test: test.clone() };
            (pair.passes_in_cookies(&headers), cookies(&headers, name))
        }
        ":" => {
            let Ok(name) = HeaderName::try_from(name) else { return };
            let values = headers.get_all(&name).iter().map(|value| value.as_bytes().to_vec()).collect();
            let field = HeaderTest { name, test: test.clone() };
            let conditions = Conditions { headers: [field].into(), ..Conditions::default() };
            (conditions.hold(&head), values)
        }
        _ => return,
    };
    let values: Vec<Vec<u8>> = values;
    let expected = match &test {
        Test::Exact(exact) => values.iter().any(|value| value == exact.as_bytes()),
        Test::Regex(pattern) => values.iter().any(|value| pattern.matches(value.iter().copied())),
        Test::Present => !values.is_empty(),
        Test::Absent => values.is_empty(),
    };
    assert_eq!(passes, expected, "{test:?} of {values:?}");
});

fn wanted(text: &str) -> Option<Test> {
    Some(match text.split_at(1) {
        ("=", value) => Test::Exact(value.into()),
        ("~", expression) => Test::Regex(Pattern::new(expression).ok()?),
        ("+", _) => Test::Present,
        _ => Test::Absent,
    })
}

/// Names and values as they are meant.
fn parameters(query: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| match pair.find('=') {
            Some(at) => (meant(&pair[..at]), meant(&pair[at + 1..])),
            None => (meant(pair), Vec::new()),
        })
        .collect()
}

fn meant(text: &str) -> Vec<u8> {
    let text = text.replace('+', " ").into_bytes();
    let mut meant = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let escape = text.get(at + 1..at + 3).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        match escape {
            Some(digits) if text[at] == b'%' => {
                let digits = str::from_utf8(digits).expect("hexadecimal digits are ASCII");
                meant.push(u8::from_str_radix(digits, 16).expect("they are hexadecimal digits"));
                at += 3;
            }
            _ => {
                meant.push(text[at]);
                at += 1;
            }
        }
    }
    meant
}

fn cookies(headers: &HeaderMap, name: &str) -> Vec<Vec<u8>> {
    let all = headers.get_all(COOKIE).iter().flat_map(|field| field.as_bytes().split(|b| *b == b';'));
    let begin = [name.as_bytes(), b"="].concat();
    all.map(<[u8]>::trim_ascii)
        .filter(|cookie| cookie.starts_with(&begin))
        .map(|cookie| cookie[begin.len()..].to_vec())
        .collect()
}
