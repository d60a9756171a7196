//! A regular expression and a text, one to a line: the expression is refused, or decides whatever the
//! text is, and agrees with itself written as an alternative.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate::routing::pattern::Pattern;

fuzz_target!(|text: &str| {
    let Some((expression, subject)) = text.split_once('\n') else { return };
    let Ok(pattern) = Pattern::new(expression) else { return };
    let decided = pattern.matches(subject.bytes());
    // A group of its own changes nothing; it may take the expression over its limits.
    if let Ok(grouped) = Pattern::new(&format!("(?:{expression})")) {
        assert_eq!(grouped.matches(subject.bytes()), decided, "{expression:?} on {subject:?}");
    }
});
