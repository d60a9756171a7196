//! Columns, aligned.

use std::fmt::Write as _;

use anstyle::Style;

/// A table: words to the left, numbers (columns whose head begins with a blank) to the right. Trailing blanks
/// are left out.
pub(super) fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let is_number = head.map(|head| head.starts_with(' '));
    let head = head.map(str::trim_start);
    let widths: [usize; N] = std::array::from_fn(|column| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].len()]).max().unwrap_or(0)
    });
    let mut text = String::new();
    let mut put = |cells: [&str; N], style: Style| {
        let mut line = String::new();
        for (cell, (width, is_number)) in cells.iter().zip(widths.into_iter().zip(is_number)) {
            let _infallible = match is_number {
                true => write!(line, "{cell:>width$}  "),
                false => write!(line, "{cell:<width$}  "),
            };
        }
        let _infallible = writeln!(text, "{style}{}{style:#}", line.trim_end());
    };
    put(head, Style::new().bold());
    rows.iter().for_each(|row| put(row.each_ref().map(String::as_str), Style::new()));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stand_left_and_numbers_right() {
        let rows = [["web", "5 %"], ["checkout", "100 %"]].map(|row| row.map(str::to_owned));
        let text = anstream::adapter::strip_str(&table(["SERVICE", " WEIGHT"], &rows)).to_string();
        assert_eq!(text, "SERVICE   WEIGHT\nweb          5 %\ncheckout   100 %\n");
    }
}
