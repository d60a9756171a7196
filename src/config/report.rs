//! Collects what is to be said about one file while it is lowered: byte ranges in, places out.

use std::ops::Range;

use super::{
    diagnostic::{Diagnostic, Line, Place, Severity, is_harmful},
    files::Noted,
    hidden::without_secrets,
};

/// Most characters of a line that are quoted: about what a terminal shows in one row or two.
const MAX_QUOTE: usize = 140;
/// Characters kept before the place where a line is too long.
const LEAD: usize = 40;

/// What stands for a line that may hold a secret.
const HIDDEN: &str = "(not shown)";

/// What was found so far in one file.
pub(super) struct Report<'a> {
    file: &'a str,
    text: &'a str,
    found: Vec<Diagnostic>,
    noted: Vec<Noted>,
    is_secret: bool,
}

impl<'a> Report<'a> {
    /// Nothing found yet.
    pub(super) fn new(file: &'a str, text: &'a str) -> Self {
        Self { file, text, found: Vec::new(), noted: Vec::new(), is_secret: false }
    }

    /// The same about a file that is never quoted, because there may be a secret in it.
    pub(super) fn secret(file: &'a str, text: &'a str) -> Self {
        Self { is_secret: true, ..Self::new(file, text) }
    }

    /// Whether nothing of the text may be said.
    pub(super) fn is_secret(&self) -> bool {
        self.is_secret
    }

    /// Something that makes the configuration unusable.
    pub(super) fn error(&mut self, span: Range<usize>, problem: impl Into<String>) -> &mut Diagnostic {
        let line = Some(self.line(span));
        self.push(Severity::Error, line, problem.into())
    }

    /// The same, about the file as a whole.
    pub(super) fn error_in_file(&mut self, problem: impl Into<String>) -> &mut Diagnostic {
        self.push(Severity::Error, None, problem.into())
    }

    /// Something that is probably not what was meant.
    pub(super) fn warning(&mut self, span: Range<usize>, problem: impl Into<String>) -> &mut Diagnostic {
        let line = Some(self.line(span));
        self.push(Severity::Warning, line, problem.into())
    }

    /// Something that is to be read once all of the text has been.
    pub(super) fn note(&mut self, noted: Noted) {
        self.noted.push(noted);
    }

    /// What is to be read.
    pub(super) fn take_noted(&mut self) -> Vec<Noted> {
        std::mem::take(&mut self.noted)
    }

    /// What stands at `span`, without what may be secret in it; nothing if that is not to be said.
    pub(super) fn quoted(&self, span: Range<usize>) -> String {
        if self.is_secret {
            return String::new();
        }
        without_secrets(self.text.get(span).unwrap_or_default())
    }

    /// Number of the line that `span` begins in, from 1.
    pub(super) fn line_number(&self, span: &Range<usize>) -> usize {
        let before = &self.text[..self.text.floor_char_boundary(span.start)];
        before.matches('\n').count() + 1
    }

    /// If `span` is in the header of a table: what stands in the brackets, and the line of the same
    /// header further up.
    pub(super) fn header_and_earlier(&self, span: &Range<usize>) -> (Option<&'a str>, Option<usize>) {
        let number = self.line_number(span);
        let mut headers = self.text.lines().map(header_of).take(number);
        let Some(header) = headers.clone().last().flatten() else { return (None, None) };
        let earlier = headers.position(|other| other == Some(header)).map(|index| index + 1);
        (Some(header), earlier.filter(|earlier| *earlier < number))
    }

    /// Whether the configuration is unusable.
    pub(super) fn has_errors(&self) -> bool {
        self.found.iter().any(|diagnostic| diagnostic.severity == Severity::Error)
    }

    /// What was found of one severity, in the order of the file.
    pub(super) fn into_sorted(mut self, severity: Severity) -> Vec<Diagnostic> {
        self.found.retain(|diagnostic| diagnostic.severity == severity);
        self.found
            .sort_by_key(|diagnostic| diagnostic.place.line.as_ref().map(|line| (line.number, line.column)));
        self.found
    }

    fn push(&mut self, severity: Severity, line: Option<Line>, problem: String) -> &mut Diagnostic {
        let place = Place { file: self.file.to_owned(), line };
        self.found.push(Diagnostic { severity, place, problem, remedy: None });
        self.found.last_mut().expect("one was just pushed")
    }

    fn line(&self, span: Range<usize>) -> Line {
        let text = self.text;
        let start = text.floor_char_boundary(span.start);
        let from = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
        let to = text[start..].find('\n').map_or(text.len(), |newline| start + newline);
        let end = text.floor_char_boundary(span.end).clamp(start, to);
        // A byte order mark belongs to the file, not to its first line.
        let from = if text[from..].starts_with('\u{feff}') { from + '\u{feff}'.len_utf8() } else { from };
        let start = start.max(from);

        let column = text[from..start].chars().count();
        let width = text[start..end.max(start)].chars().count().max(1);
        let line = without_secrets(text[from..to.max(from)].trim_end_matches('\r'));
        let mut quote: Vec<char> = line
            .chars()
            .map(|c| if c != '\t' && is_harmful(c) { char::REPLACEMENT_CHARACTER } else { c })
            .collect();
        let mut marked = column..column + width;
        if quote.len() > MAX_QUOTE {
            let cut = column.saturating_sub(LEAD);
            quote.drain(..cut);
            quote.truncate(MAX_QUOTE);
            marked = (column - cut)..(column - cut + width).min(MAX_QUOTE);
        }
        let number = self.line_number(&(start..end));
        if self.is_secret {
            let quote = HIDDEN.to_owned();
            return Line { number, column: column + 1, quote, marked: 0..HIDDEN.len() };
        }
        Line { number, column: column + 1, quote: quote.into_iter().collect(), marked }
    }
}

/// What stands in the brackets, where a line is the header of a table.
fn header_of(line: &str) -> Option<&str> {
    let rest = line.trim_start().trim_start_matches('\u{feff}').strip_prefix('[')?;
    let end = rest.find(']')?;
    Some(rest[..end].trim_start_matches('[').trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str, span: Range<usize>) -> Line {
        Report::new("x.toml", text).line(span)
    }

    #[test]
    fn what_may_be_secret_is_not_quoted() {
        let text = "[a]\nhooks = [{ at = 'x', url = 'https://a/b' }]";
        let found = line(text, 20..23);
        assert_eq!(
            (found.quote.as_str(), found.marked),
            ("hooks = [{ at = 'x', url = '***********' }]", 16..19)
        );
        assert_eq!(Report::new("x.toml", text).quoted(31..44), "'https://a/*'");
    }

    #[test]
    fn columns_count_characters() {
        let found = line("a = 1\r\nö = \"x\"\r\n", 12..15);
        assert_eq!(found, Line { number: 2, column: 5, quote: "ö = \"x\"".to_owned(), marked: 4..7 });
    }

    #[test]
    fn a_span_of_several_lines_is_marked_to_the_end_of_the_first() {
        assert_eq!(line("a = [\n1]\n", 4..8).marked, 4..5);
    }

    #[test]
    fn the_end_of_the_file_is_a_place() {
        let found = line("a = [\n", 6..6);
        assert_eq!(found, Line { number: 2, column: 1, quote: String::new(), marked: 0..1 });
        assert_eq!(line("", 5..9).number, 1);
    }

    #[test]
    fn a_byte_order_mark_takes_no_column() {
        assert_eq!(line("\u{feff}a = 1", 3..4).column, 1);
        assert_eq!(line("\u{feff}a = 1", 0..0).column, 1);
    }

    #[test]
    fn a_long_line_is_cut_around_the_place() {
        let text = format!("a = \"{}\" # {}", "x".repeat(500), "y".repeat(500));
        let found = line(&text, 507..510);
        assert_eq!((found.column, found.marked, found.quote.len()), (508, 40..43, MAX_QUOTE));
        assert_eq!(line(&text, 4..507).marked, 4..MAX_QUOTE);
    }

    #[test]
    fn headers_know_their_first_place() {
        let report = Report::new("x.toml", "[a]\nb = 1\n[c]\n[a] # again\nb = 1\n");
        assert_eq!(report.header_and_earlier(&(15..16)), (Some("a"), Some(1)));
        assert_eq!(report.header_and_earlier(&(1..2)), (Some("a"), None));
        assert_eq!(report.header_and_earlier(&(4..5)), (None, None));
    }

    #[test]
    fn what_was_found_comes_in_the_order_of_the_file() {
        let mut report = Report::new("x.toml", "a = 1\nb = 2\n");
        report.error(6..7, "second");
        report.warning(0..1, "a warning");
        report.error(0..1, "first").help("help");
        report.error_in_file("whole");
        assert!(report.has_errors());
        let problems: Vec<_> = report.into_sorted(Severity::Error).into_iter().map(|d| d.problem).collect();
        assert_eq!(problems, ["whole", "first", "second"]);
    }
}
