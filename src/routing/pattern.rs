//! A regular expression that the whole of a text must match.
//!
//! It is compiled into a finished automaton: one step in a table for each byte, whatever the
//! expression and whatever the text. There is nothing to allocate, lock or warm up on a request's way,
//! as a lazily built automaton or a cache of scratch space would need; the price is that an expression
//! whose automaton is large is refused when the configuration is read, instead of being slow later.
//!
//! The syntax is that of the `regex` crate. Texts are bytes, and classes such as `\w`, `.` and `(?i)`
//! mean ASCII: what arrives in a path is percent-encoded anyway.

use std::{fmt, sync::Arc};

use regex_automata::{
    Anchored, MatchKind,
    dfa::{Automaton, StartKind, dense},
    nfa::thompson,
    util::{primitives::StateID, start, syntax},
};

/// Bytes that the automaton of one expression may have: hundreds of times what usual ones need.
const MAX_AUTOMATON: usize = 1 << 18;
/// Bytes that its building may take.
const MAX_BUILDING: usize = 1 << 21;
/// Characters that one expression may have.
const MAX_LENGTH: usize = 1024;

/// A regular expression that the whole of a text must match. Cheap to clone.
#[derive(Clone)]
pub struct Pattern(Arc<Compiled>);

struct Compiled {
    text: Box<str>,
    automaton: dense::DFA<Vec<u32>>,
    start: StateID,
}

/// Why a text is not a pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPattern {
    /// It is no regular expression; what is wrong with it.
    #[error("{0}")]
    Syntax(String),
    /// It would need an automaton that is too large.
    #[error("it is too complex")]
    TooComplex,
}

impl Pattern {
    /// Compiles a regular expression.
    ///
    /// # Errors
    /// For one that is malformed, longer than 1024 characters, or too complex.
    pub fn new(text: &str) -> Result<Self, InvalidPattern> {
        if text.len() > MAX_LENGTH {
            return Err(InvalidPattern::TooComplex);
        }
        let syntax = syntax::Config::new().unicode(false).utf8(false);
        syntax::parse_with(text, &syntax).map_err(|error| InvalidPattern::Syntax(said(&error)))?;
        let automaton = dense::Builder::new()
            .syntax(syntax)
            .thompson(thompson::Config::new().utf8(false).nfa_size_limit(Some(MAX_BUILDING)))
            .configure(
                dense::Config::new()
                    .start_kind(StartKind::Anchored)
                    // Every way to match is followed to the end, not only the first one.
                    .match_kind(MatchKind::All)
                    .dfa_size_limit(Some(MAX_AUTOMATON))
                    .determinize_size_limit(Some(MAX_BUILDING)),
            )
            .build(text)
            .map_err(|_| InvalidPattern::TooComplex)?;
        let start = automaton
            .start_state(&start::Config::new().anchored(Anchored::Yes))
            .map_err(|_| InvalidPattern::TooComplex)?;
        Ok(Self(Arc::new(Compiled { text: text.into(), automaton, start })))
    }

    /// Whether all of `text` matches.
    pub fn matches(&self, text: impl IntoIterator<Item = u8>) -> bool {
        let Compiled { automaton, start, text: _ } = &*self.0;
        let mut state = *start;
        for byte in text {
            state = automaton.next_state(state, byte);
            if automaton.is_dead_state(state) {
                return false;
            }
        }
        automaton.is_match_state(automaton.next_eoi_state(state))
    }

    /// The expression as it is written.
    pub fn as_str(&self) -> &str {
        &self.0.text
    }
}

/// The last line of what the parser says, which is the reason; what comes before draws the place.
fn said(error: &impl fmt::Display) -> String {
    let error = error.to_string();
    let reason = error.lines().last().unwrap_or_default();
    reason.strip_prefix("error: ").unwrap_or(reason).to_owned()
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.text == other.0.text
    }
}

impl Eq for Pattern {}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pattern({:?})", self.0.text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(pattern: &str, text: &str, expected: bool) {
        let compiled = Pattern::new(pattern).unwrap();
        assert_eq!(compiled.matches(text.bytes()), expected, "{pattern} on {text}");
    }

    #[test]
    fn the_whole_text_must_match() {
        check("/a+", "/aaa", true);
        check("/a+", "/aaab", false);
        check("/a+", "x/aaa", false);
        check("a|ab", "ab", true);
        check("(a|ab)(c|bcd)?", "abcd", true);
        check("^/x$", "/x", true);
        check(".*", "", true);
        check("(?i)/API/[0-9]{1,3}", "/api/42", true);
        check("(?x) /a  # a comment", "/a", true);
        check("a)|(?:b".replace(")|(?:", "|").as_str(), "b", true);
    }

    #[test]
    fn what_is_no_expression_is_refused_with_its_reason() {
        assert_eq!(Pattern::new("a)|(b").unwrap_err(), InvalidPattern::Syntax("unopened group".to_owned()));
        assert_eq!(Pattern::new("(a").unwrap_err(), InvalidPattern::Syntax("unclosed group".to_owned()));
        assert!(matches!(Pattern::new("(a)\\1"), Err(InvalidPattern::Syntax(_))));
    }

    #[test]
    fn what_would_be_large_is_refused() {
        for large in ["(a|b)*a(a|b){40}", "((a{100}){100}){100}", &"a".repeat(2000)] {
            assert_eq!(Pattern::new(large).unwrap_err(), InvalidPattern::TooComplex);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_pattern_or_refused(text in "[ab(){}|*+?^$\\[\\]\\\\.,0-9-]{0,24}", subject in "[ab]{0,8}") {
            if let Ok(pattern) = Pattern::new(&text) {
                let _decided = pattern.matches(subject.bytes());
            }
        }

        #[test]
        fn alternatives_are_tried_to_the_end(words in prop::collection::vec("[ab]{1,4}", 1..5), subject in "[ab]{0,5}") {
            let pattern = Pattern::new(&words.join("|")).unwrap();
            prop_assert_eq!(pattern.matches(subject.bytes()), words.contains(&subject));
        }
    }
}
