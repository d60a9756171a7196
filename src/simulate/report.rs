//! What came of it, for people: a table, and what was promised beside what was kept.

use std::fmt::Write as _;

use super::{Row, Rule};

/// A table with a line for each row, its columns aligned.
pub fn table(rows: &[Row]) -> String {
    let head = [
        "scenario",
        "req/s",
        "rule",
        "rolled back",
        "after, s",
        "95 %, s",
        "baking",
        "promoted",
        "after, s",
        "harmed",
    ];
    let mut lines = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        if index > 0 && row.scenario != rows[index - 1].scenario {
            lines.push([const { String::new() }; 10]);
        }
        lines.push(cells(row));
    }
    aligned(head, &[0, 2], &lines)
}

/// Lines in columns of equal width; words, in the columns `left`, stand to the left, numbers to the right.
pub fn aligned<const N: usize>(head: [&str; N], left: &[usize], lines: &[[String; N]]) -> String {
    let width = |column: usize| {
        let cells = lines.iter().map(|line| line[column].chars().count());
        cells.chain([head[column].len()]).max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for cells in std::iter::once(head).chain(lines.iter().map(|line| line.each_ref().map(String::as_str))) {
        let mut line = String::new();
        for (column, (cell, width)) in cells.iter().zip(widths).enumerate() {
            let _infallible = if left.contains(&column) {
                write!(line, "{cell:<width$}  ")
            } else {
                write!(line, "{cell:>width$}  ")
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn cells(row: &Row) -> [String; 10] {
    let share = |count: u32| percent(f64::from(count) / f64::from(row.runs.max(1)));
    let seconds = |seconds: Option<f64>| seconds.map_or_else(|| "-".to_owned(), |s| format!("{s:.0}"));
    [
        row.scenario.clone(),
        format!("{}", row.rate),
        row.rule.as_str().to_owned(),
        share(row.rolled_back),
        seconds(row.delay_seconds.map(|delay| delay[0])),
        seconds(row.delay_seconds.map(|delay| delay[1])),
        share(row.rolled_back_baking),
        share(row.promoted),
        seconds(row.promoted_seconds),
        if row.bad { format!("{:.0}", row.harmed) } else { "-".to_owned() },
    ]
}

/// How often harmless canaries were rolled back, and how often that may be.
pub fn promise(rows: &[Row], alpha: f64) -> Option<String> {
    let harmless = || rows.iter().filter(|row| row.rule == Rule::Tidegate && !row.bad);
    let worst = harmless().max_by(|a, b| share(a).total_cmp(&share(b)))?;
    let (runs, back) = harmless().fold((0, 0), |(runs, back), row| (runs + row.runs, back + row.rolled_back));
    Some(format!(
        "Harmless canaries rolled back: {back} of {runs} ({}), and {} in the worst row ({} at {} requests \
         a second). Promised: at most {}.",
        percent(f64::from(back) / f64::from(runs.max(1))),
        percent(share(worst)),
        worst.scenario,
        worst.rate,
        percent(alpha),
    ))
}

fn share(row: &Row) -> f64 {
    f64::from(row.rolled_back) / f64::from(row.runs.max(1))
}

fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent > 0.0 && percent < 9.95 { format!("{percent:.2} %") } else { format!("{percent:.0} %") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(scenario: &str, rule: Rule, rolled_back: u32) -> Row {
        Row {
            scenario: scenario.to_owned(),
            what: String::new(),
            rate: 20.0,
            rule,
            bad: scenario != "same",
            runs: 1_000,
            rolled_back,
            rolled_back_baking: 0,
            promoted: 1_000 - rolled_back,
            delay_seconds: (rolled_back > 0).then_some([31.0, 68.4]),
            promoted_seconds: None,
            harmed: 7.6,
            endpoint_blamed: None,
            rollbacks: Vec::new(),
        }
    }

    #[test]
    fn columns_are_aligned() {
        let rows = [row("same", Rule::Tidegate, 0), row("0.1-to-5", Rule::Tidegate, 1_000)];
        assert_eq!(
            table(&rows),
            "\
scenario  req/s  rule      rolled back  after, s  95 %, s  baking  promoted  after, s  harmed
same         20  tidegate          0 %         -        -     0 %     100 %         -       -

0.1-to-5     20  tidegate        100 %        31       68     0 %       0 %         -       8
"
        );
    }

    #[test]
    fn the_promise_is_about_ours_and_harmless_ones() {
        let rival = Rule::Rival(super::super::rivals::Rival::Argo);
        let rows =
            [row("same", Rule::Tidegate, 2), row("same", rival, 900), row("bad", Rule::Tidegate, 1_000)];
        assert_eq!(
            promise(&rows, 0.01).unwrap(),
            "Harmless canaries rolled back: 2 of 1000 (0.20 %), and 0.20 % in the worst row (same at 20 \
             requests a second). Promised: at most 1.00 %."
        );
        assert_eq!(promise(&rows[1..], 0.01), None);
    }
}
