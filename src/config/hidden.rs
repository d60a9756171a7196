//! What is not for everybody in a line that is quoted: quotes go to terminals, logs and answers of the API.
//!
//! The line is wrong, so what it means cannot be gone by: a key may be misspelt, and a quote may have no end. What
//! looks like a secret is hidden, rather too much than too little.

/// A line without what may be secret in it. It is as long as before, so that places in it stay where they are.
pub(super) fn without_secrets(line: &str) -> String {
    let mut chars: Vec<char> = line.chars().collect();
    for at in 0..chars.len() {
        let (before, rest) = chars.split_at_mut(at);
        if rest[0] == '=' && is_secret(&last_key(before)) {
            hide_value(&mut rest[1..]);
        } else if rest.starts_with(&[':', '/', '/']) {
            hide_in_url(&mut rest[3..]);
        } else if let Some(scheme) = SCHEMES.iter().find(|scheme| is_scheme(rest, scheme)) {
            let credentials = &mut rest[scheme.len()..];
            let end = credentials.iter().position(is_quote).unwrap_or(credentials.len());
            hide(&mut credentials[..end]);
        }
    }
    chars.into_iter().collect()
}

/// Schemes of `Authorization`.
const SCHEMES: [&str; 2] = ["bearer ", "basic "];

fn is_scheme(chars: &[char], scheme: &str) -> bool {
    chars.len() > scheme.len() && scheme.chars().zip(chars).all(|(wanted, c)| c.eq_ignore_ascii_case(&wanted))
}

/// The key that ends here.
fn last_key(before: &[char]) -> String {
    let end = before.iter().rposition(|c| !c.is_whitespace() && !is_quote(c)).map_or(0, |last| last + 1);
    let is_of_key = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    let start = before[..end].iter().rposition(|c| !is_of_key(c)).map_or(0, |last| last + 1);
    before[start..end].iter().map(char::to_ascii_lowercase).collect()
}

/// Whether what a key is set to may be as good as a password, such as the value of a header. The name of a file is
/// not.
fn is_secret(key: &str) -> bool {
    let words = ["token", "secret", "password", "authorization"];
    // `urll`, but not `url_rewrite`.
    let is_url = key.starts_with("url") && !key.contains('_');
    let may_be = is_url || key == "value" || words.iter().any(|word| key.contains(word));
    may_be && !key.ends_with("_file")
}

/// What is in quotes; all that is left where they have no end, or there are none.
fn hide_value(rest: &mut [char]) {
    let start = rest.iter().position(|c| !c.is_whitespace()).unwrap_or(rest.len());
    let value = &mut rest[start..];
    let quote = value.first().copied().filter(is_quote);
    let is_long = quote.is_some_and(|quote| value.starts_with(&[quote; 3]));
    let (mut end, mut is_escaped) = (value.len(), false);
    if let Some(quote) = quote.filter(|_| !is_long) {
        for (at, c) in value.iter().enumerate().skip(1) {
            if *c == quote && !is_escaped {
                end = at;
                break;
            }
            is_escaped = *c == '\\' && quote == '"' && !is_escaped;
        }
    }
    hide(&mut value[..end]);
}

/// Whose it is, and what is asked of the host.
fn hide_in_url(rest: &mut [char]) {
    let end = rest.iter().position(|c| is_quote(c) || c.is_whitespace()).unwrap_or(rest.len());
    let url = &mut rest[..end];
    let host = url.iter().rposition(|c| *c == '@').unwrap_or(0);
    hide(&mut url[..host]);
    let path = url[host..].iter().position(|c| matches!(c, '/' | '?' | '#')).map_or(end, |at| host + at + 1);
    hide(&mut url[path..]);
}

fn is_quote(c: &char) -> bool {
    matches!(c, '"' | '\'')
}

fn hide(chars: &mut [char]) {
    chars.iter_mut().filter(|c| !is_quote(c) && !c.is_whitespace()).for_each(|c| *c = '*');
}

#[cfg(test)]
mod tests {
    use super::without_secrets;

    #[test]
    fn what_a_secret_is_set_to_is_hidden() {
        for (line, shown) in [
            ("url = \"https://a/b\" # c", "url = \"***********\" # c"),
            ("a = { at = 'x', url =\"a\\\"b\", b = 1 }", "a = { at = 'x', url =\"**\"*\", b = 1 }"),
            ("urll = 'a b", "urll = '* *"),
            ("url_rewrite = { hostname = 'a' }", "url_rewrite = { hostname = 'a' }"),
            ("url = https://a/b", "url = ***********"),
            ("url = '''https://a/b", "url = '''***********"),
            ("\"URL\" = 'x', y = 1", "\"URL\" = '*', y = 1"),
            ("set = [{ name = 'x', value = '\u{e4}' }]", "set = [{ name = 'x', value = '*' }]"),
            ("auth.api_token = 'x'", "auth.api_token = '*'"),
            ("{ Authorization = \"x\" }", "{ Authorization = \"*\" }"),
            ("url_file = 'a', secret_file = 'b'", "url_file = 'a', secret_file = 'b'"),
            ("curl = 1, values = 'x', a = 'url'", "curl = 1, values = 'x', a = 'url'"),
        ] {
            assert_eq!(without_secrets(line), shown);
        }
    }

    #[test]
    fn what_looks_like_a_secret_is_hidden_under_any_key() {
        for (line, shown) in [
            ("ulr = 'https://a.b:1/c?d', e = 2", "ulr = 'https://a.b:1/***', e = 2"),
            ("a = \"http://u:p@b\"", "a = \"http://***@b\""),
            ("a = \"http://u:p/@b/c\"", "a = \"http://****@b/*\""),
            ("a = 'http://[::1]:80?b", "a = 'http://[::1]:80?*"),
            ("a = ['http://b:1', \"h2c://c:1\"]", "a = ['http://b:1', \"h2c://c:1\"]"),
            ("headers = 'Authorization: bearer a b' # c", "headers = 'Authorization: bearer * *' # c"),
            ("vaule = \"Basic a\"", "vaule = \"Basic *\""),
            ("://", "://"),
            ("", ""),
        ] {
            assert_eq!(without_secrets(line), shown);
        }
    }
}
