//! What is said about a wrong configuration: where, what, and what instead.
//!
//! A diagnostic renders as plain text in the manner of rustc, because that layout is known to be
//! readable and editors already find `file:line:column` in it. It carries no colour: it also goes
//! to logs and into JSON. It quotes what somebody wrote, so nothing that would steer a terminal is
//! passed on.

use std::{fmt, ops::Range};

use serde::Serialize;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The configuration cannot be used.
    Error,
    /// The configuration can be used, but probably does not do what was meant.
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

/// Where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Place {
    /// The file, as it was named by whoever asked for it.
    pub file: String,
    /// The line; nothing where the whole file is meant.
    pub line: Option<Line>,
}

/// A place in a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// Number of the line, from 1.
    pub number: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The line as it stands there, or the part of a long one around the place.
    pub quote: String,
    /// What of the quote is meant, in characters from 0; never empty.
    pub marked: Range<usize>,
}

/// Something to be said about a configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// Where it is.
    pub place: Place,
    /// What is wrong.
    pub problem: String,
    /// What would be right, if that can be said.
    pub remedy: Option<String>,
}

impl Diagnostic {
    /// Adds what would be right.
    pub(super) fn help(&mut self, remedy: impl Into<String>) {
        self.remedy = Some(remedy.into());
    }

    /// Adds what would be right, where there is something to say.
    pub(super) fn help_if(&mut self, remedy: Option<String>) {
        self.remedy = remedy;
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { severity, place: Place { file, line }, problem, remedy } = self;
        writeln!(f, "{severity}: {}", Harmless(problem))?;
        let gutter = line.as_ref().map_or(1, |line| line.number.to_string().len());
        match line {
            None => writeln!(f, "{:gutter$}--> {}", "", Harmless(file))?,
            Some(Line { number, column, quote, marked }) => {
                writeln!(f, "{:gutter$}--> {}:{number}:{column}", "", Harmless(file))?;
                writeln!(f, "{:gutter$} |", "")?;
                writeln!(f, "{}", format!("{number} | {quote}").trim_end())?;
                // A tab is repeated, so that the mark stands right however wide tabs are.
                let before = quote.chars().chain(std::iter::repeat(' ')).take(marked.start);
                let indent: String = before.map(|c| if c == '\t' { c } else { ' ' }).collect();
                writeln!(f, "{:gutter$} | {indent}{}", "", "^".repeat(marked.len().max(1)))?;
            }
        }
        if let Some(remedy) = remedy {
            writeln!(f, "{:gutter$} = help: {}", "", Harmless(remedy))?;
        }
        Ok(())
    }
}

/// All of them as text, with an empty line between two.
pub fn render(diagnostics: &[Diagnostic]) -> String {
    let texts: Vec<_> = diagnostics.iter().map(Diagnostic::to_string).collect();
    texts.join("\n")
}

/// Whether a character could hide or reorder others, or steer a terminal.
pub(super) fn is_harmful(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Text that may quote anything, with harmful characters escaped.
struct Harmless<'a>(&'a str);

impl fmt::Display for Harmless<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            if is_harmful(c) {
                write!(f, "{}", c.escape_default())?;
            } else {
                write!(f, "{c}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn diagnostic(line: Option<Line>) -> Diagnostic {
        Diagnostic {
            severity: Severity::Error,
            place: Place { file: "tidegate.toml".to_owned(), line },
            problem: "unknown key `stbale`".to_owned(),
            remedy: Some("did you mean `stable`?".to_owned()),
        }
    }

    #[test]
    fn a_line_is_quoted_and_marked() {
        let quote = "\tstbale = \"v1\"".to_owned();
        let shown = diagnostic(Some(Line { number: 12, column: 2, quote, marked: 1..7 })).to_string();
        let expected = "error: unknown key `stbale`
  --> tidegate.toml:12:2
   |
12 | \tstbale = \"v1\"
   | \t^^^^^^
   = help: did you mean `stable`?
";
        assert_eq!(shown, expected);
    }

    #[test]
    fn a_whole_file_has_no_quote() {
        let expected = "error: unknown key `stbale`\n --> tidegate.toml\n  = help: did you mean `stable`?\n";
        assert_eq!(diagnostic(None).to_string(), expected);
    }

    #[test]
    fn nothing_steers_the_terminal() {
        let problem = "`\u{1b}[31m\u{202e}`".to_owned();
        let shown = Diagnostic { problem, ..diagnostic(None) }.to_string();
        assert!(shown.starts_with("error: `\\u{1b}[31m\\u{202e}`\n"), "{shown}");
    }
}
