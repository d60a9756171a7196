//! Numbers and sentences as they are written on the screen and in plain lines.

use std::time::Duration;

use super::load::Counts;
use crate::analysis::interval::Score;

/// A share as a percentage, with as many decimals as a small one needs.
pub(super) fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent >= 9.95 { format!("{percent:.0} %") } else { format!("{percent:.1} %") }
}

/// A share that was measured, with its bounds.
pub(super) fn score(score: Option<Score>) -> String {
    let Some(Score { low, rate, high }) = score else { return "-".to_owned() };
    let number = |share| percent(share).trim_end_matches(" %").to_owned();
    format!("{} (95 %: {} to {})", percent(rate), number(low), number(high))
}

/// A latency.
pub(super) fn millis(seconds: Option<f64>) -> String {
    match seconds {
        None => "-".to_owned(),
        Some(seconds) if seconds < 0.009_95 => format!("{:.1} ms", seconds * 1e3),
        Some(seconds) => format!("{:.0} ms", seconds * 1e3),
    }
}

/// How long something took.
pub(super) fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

/// Minutes and seconds since the beginning.
pub(super) fn clock(elapsed: Duration) -> String {
    format!("{}:{:02}", elapsed.as_secs() / 60, elapsed.as_secs() % 60)
}

/// How many requests failed of how many.
pub(super) fn failed(Counts { requests, failures }: Counts) -> String {
    let share = if requests == 0 { 0.0 } else { failures as f64 / requests as f64 };
    format!("{} of {} ({})", thousands(failures), thousands(requests), percent(share))
}

/// A count with its thousands set apart.
pub(super) fn thousands(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A sentence in lines of at most `width` characters; the first begins with `prefix`, and the others
/// are indented by as much.
pub(super) fn wrap(prefix: &str, text: &str, width: usize) -> Vec<String> {
    let indent = prefix.chars().count();
    let mut lines = Vec::new();
    let mut line = prefix.to_owned();
    let mut empty = true;
    for word in text.split_whitespace() {
        if !empty && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(std::mem::replace(&mut line, " ".repeat(indent)));
            empty = true;
        }
        if !empty {
            line.push(' ');
        }
        line.push_str(word);
        empty = false;
    }
    lines.push(line);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_people_would() {
        assert_eq!([0.0, 0.0123, 0.0996, 1.0].map(percent), ["0.0 %", "1.2 %", "10 %", "100 %"]);
        assert_eq!([Some(0.0041), Some(0.0123), None].map(millis), ["4.1 ms", "12 ms", "-"]);
        assert_eq!([7, 1_234, 1_234_567].map(thousands), ["7", "1,234", "1,234,567"]);
        let bounds = Score { low: 0.031, rate: 0.052, high: 0.1 };
        assert_eq!(score(Some(bounds)), "5.2 % (95 %: 3.1 to 10)");
        assert_eq!(failed(Counts { requests: 1000, failures: 12 }), "12 of 1,000 (1.2 %)");
        assert_eq!(failed(Counts::default()), "0 of 0 (0.0 %)");
        assert_eq!(clock(Duration::from_secs(65)), "1:05");
    }

    #[test]
    fn sentences_wrap_at_words_and_keep_them_all() {
        let lines = wrap("  0:07  ", "the canary gets 25 % of requests", 20);
        assert_eq!(lines, ["  0:07  the canary", "        gets 25 % of", "        requests"]);
        assert_eq!(wrap("- ", "unbreakablyverylongword", 5), ["- unbreakablyverylongword"]);
        assert_eq!(wrap("", "", 5), [""]);
    }
}
