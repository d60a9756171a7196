//! Text to raw shapes: syntax, unknown keys and wrong types, of which the first one is reported.
//!
//! toml and serde speak of Rust (`invalid type: map, expected a sequence`) to someone who writes
//! TOML. Their messages are the only form in which they hand out what they know, so they are taken
//! apart here; one of an unknown form is passed on as it is.

use std::ops::Range;

use serde::de::DeserializeOwned;

use super::{diagnostic::Diagnostic, hidden::without_secrets, report::Report, suggest::suggest};

/// The document as written; nothing, and one fault, if it has not the right structure.
pub(super) fn read<T: DeserializeOwned>(text: &str, report: &mut Report<'_>) -> Option<T> {
    let deserializer = match toml::Deserializer::parse(text) {
        Ok(deserializer) => deserializer,
        Err(error) => {
            syntax(error.message(), error.span().unwrap_or_default(), report);
            return None;
        }
    };
    match T::deserialize(deserializer) {
        Ok(document) => Some(document),
        Err(error) => {
            shape(error.message(), error.span().unwrap_or_default(), report);
            None
        }
    }
}

/// Text that is not TOML.
fn syntax(message: &str, span: Range<usize>, report: &mut Report<'_>) {
    let (message, expected) = match message.split_once(", expected ") {
        Some((message, expected)) => (message, Some(expected)),
        None => (message, None),
    };
    let is_blank = report.quoted(span.clone()).trim().is_empty();
    let (problem, remedy) = match (message, expected) {
        ("duplicate key", _) => return duplicate(span, report),
        ("string values must be quoted", _) if is_blank => {
            ("the value is missing", "write a value after `=`".to_owned())
        }
        // toml takes what begins with a digit for a number: a time without quotes, an address.
        ("string values must be quoted", _) | ("invalid integer" | "invalid float", Some("nothing")) => {
            ("this is neither a number nor text in quotes", "put text in quotes: `\"…\"`".to_owned())
        }
        ("invalid basic string" | "invalid literal string", Some(quote)) => {
            ("this text has no end", format!("close it with {quote}"))
        }
        ("missing escaped value", _) => (
            "there is no such escape",
            "write `\\\\` for a backslash, or put the text in single quotes".to_owned(),
        ),
        ("unexpected key or value", _) => {
            ("something follows the value", "begin a new line here, or a comment with `#`".to_owned())
        }
        (other, _) if other.starts_with("cannot extend value of type") => {
            ("this is a value further up, so it cannot be a table", "remove one of the two".to_owned())
        }
        ("key with no value", _) => ("this key has no value", "write it as `key = value`".to_owned()),
        (other, Some("nothing")) => (other, "remove what stands here".to_owned()),
        (other, Some(expected)) => (other, format!("expected here: {expected}")),
        (other, None) => (other, "see https://toml.io for how TOML is written".to_owned()),
    };
    report.error(span, format!("this is not TOML: {problem}")).help(remedy);
}

/// A key or table that is already there.
fn duplicate(span: Range<usize>, report: &mut Report<'_>) {
    let (header, earlier) = report.header_and_earlier(&span);
    let key = header.map_or_else(|| report.quoted(span.clone()), str::to_owned);
    let place = earlier.map_or_else(|| "above".to_owned(), |line| format!("on line {line}"));
    report
        .error(span, format!("`{key}` is already defined {place}"))
        .help("define it once: rename this one, or merge the two");
}

/// TOML that is not a configuration.
fn shape(message: &str, span: Range<usize>, report: &mut Report<'_>) {
    if let Some(rest) = message.strip_prefix("unknown field `")
        && let Some((key, allowed)) = rest.rsplit_once("`, expected ")
    {
        // Names of keys have no backtick, so every second piece is one.
        let allowed: Vec<_> = allowed.split('`').skip(1).step_by(2).collect();
        let remedy = suggest(key, &allowed, "keys here");
        let problem =
            if report.is_secret() { "unknown key".to_owned() } else { format!("unknown key `{key}`") };
        report.error(span, problem).help_if(remedy);
        return;
    }
    let rest = ["invalid type: ", "invalid value: "].iter().find_map(|prefix| message.strip_prefix(prefix));
    let Some((found, expected)) = rest.and_then(|rest| rest.split_once(", expected ")) else {
        report.error(span, message);
        return;
    };
    // Text that was found may contain the separator; types that are expected do not.
    let (found, expected) = match rest.and_then(|rest| rest.rsplit_once(", expected ")) {
        Some(last) if found.starts_with("string ") => last,
        _ => (found, expected),
    };
    let quoted = report.quoted(span.clone());
    let described =
        if report.is_secret() { "something else".to_owned() } else { without_secrets(&describe(found)) };
    let fault = report.error(span, format!("expected {}, found {described}", of_toml(expected)));
    wrong_type_remedy(found, expected, &quoted, fault);
}

/// What Rust expected, in the words of TOML.
fn of_toml(expected: &str) -> &str {
    match expected {
        "a string" => "text in quotes",
        "i64" => "a whole number",
        "f64" => "a number",
        "a sequence" => "an array",
        "a map" => "a table",
        other => other,
    }
}

/// What was found, in the words of TOML.
fn describe(found: &str) -> String {
    match found.split_once(' ') {
        _ if found == "sequence" => "an array".to_owned(),
        _ if found == "map" => "a table".to_owned(),
        Some(("string", text)) => format!("the text {text}"),
        Some(("integer", number)) => format!("the number {number}"),
        Some(("floating", number)) => format!("the number {}", number.trim_start_matches("point ")),
        Some(("boolean", value)) => value.to_owned(),
        _ => found.to_owned(),
    }
}

/// Where one can guess how the wrong type came about.
fn wrong_type_remedy(found: &str, expected: &str, quoted: &str, fault: &mut Diagnostic) {
    let is_number = found.starts_with("integer") || found.starts_with("floating");
    let header = quoted.trim_matches(['[', ']']).trim();
    let is_header = quoted.starts_with('[') && !header.contains(['"', ',', '{', '\n']);
    match (found, expected) {
        ("map", "a sequence") if is_header => {
            fault.help(format!("there can be several, so write two brackets: `[[{header}]]`"));
        }
        ("sequence", _) if quoted.starts_with("[[") && is_header => {
            fault.help(format!("there is only one, so write one bracket: `[{header}]`"));
        }
        (_, "a sequence") if found.starts_with("string") => fault.help(format!("write `[{quoted}]`")),
        ("map", "a sequence") => fault.help("write it in brackets: `[…]`"),
        (_, "a string") if is_number => fault.help(format!("write `\"{quoted}\"`")),
        (_, "i64") if found.starts_with("floating") => fault.help("write it without a fraction"),
        (_, "i64") if is_number => fault.help("write a smaller number"),
        (_, "i64" | "f64") if found.starts_with("string") => fault.help("write the number without quotes"),
        (_, time) if is_number && time.starts_with("a time") => {
            fault.help(format!("if seconds were meant, write `\"{quoted}s\"`"));
        }
        (_, header) if header.starts_with("a table, `[") => {
            fault.help("write the header on a line of its own, and the settings below it");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::errors_of;
    use crate::config::load::parse;

    fn remedy(text: &str) -> Option<String> {
        parse("x.toml", text).unwrap_err().remove(0).remedy
    }

    #[test]
    fn unknown_keys_are_named_even_if_they_hold_backticks() {
        assert_eq!(errors_of("\"a`, expected `b\" = 1"), ["unknown key `a`, expected `b`"]);
        assert_eq!(remedy("[[listener]]"), Some("did you mean `listeners`?".to_owned()));
    }

    #[test]
    fn a_table_cannot_be_written_as_an_array() {
        for text in ["shutdown = ['1s', '2s']", "[services]\nweb = ['v1']", "[[admin]]\naddress = '[::1]:1'"]
        {
            assert!(errors_of(text)[0].ends_with(", found an array"), "{text}");
        }
    }

    #[test]
    fn types_are_told_in_the_words_of_toml() {
        for (text, problem, help) in [
            (
                "workers = '2'",
                "expected a whole number, found the text \"2\"",
                "write the number without quotes",
            ),
            (
                "[listeners]",
                "expected an array, found a table",
                "there can be several, so write two brackets: `[[listeners]]`",
            ),
            (
                "[[admin]]",
                "expected a table, `[admin]`, found an array",
                "there is only one, so write one bracket: `[admin]`",
            ),
            (
                "[shutdown]\ndelay = 5",
                "expected a time with its unit in quotes, such as `\"250ms\"`, `\"30s\"` or `\"5m\"`, found the number `5`",
                "if seconds were meant, write `\"5s\"`",
            ),
            ("[[routes]]\nhostnames = 'a'", "expected an array, found the text \"a\"", "write `['a']`"),
            ("[[routes]]\nservice = 1", "expected text in quotes, found the number `1`", "write `\"1\"`"),
        ] {
            assert_eq!(errors_of(text), [problem]);
            assert_eq!(remedy(text), Some(help.to_owned()), "{text}");
        }
    }
}
