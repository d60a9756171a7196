//! What became of the stories: the table at the end, and what differed from what should have been.

use std::time::Duration;

use super::{
    load::Counts,
    story::{Ending, STORIES, Story},
    words,
};
use crate::model::weight::Weight;

/// What became of a story.
#[derive(Debug, Clone)]
pub(super) struct Played {
    pub(super) story: &'static Story,
    pub(super) ending: Ending,
    /// From the command that began it to its end.
    pub(super) took: Duration,
    /// From the first bad request of the new version to the decision to roll back.
    pub(super) detected: Option<Duration>,
    /// The largest share of requests that the new version had.
    pub(super) reached: Weight,
    /// The users' requests meanwhile.
    pub(super) users: Counts,
}

impl Played {
    /// A story that was never begun.
    pub(super) fn never(story: &'static Story) -> Self {
        Self {
            story,
            ending: Ending::Unfinished,
            took: Duration::ZERO,
            detected: None,
            reached: Weight::ZERO,
            users: Counts::default(),
        }
    }

    /// What differed from what should have been, if anything did.
    pub(super) fn difference(&self) -> Option<String> {
        let Self { story, ending, users, .. } = self;
        if *ending != story.expected {
            let (was, should) = (ending.words(), story.expected.words());
            return Some(format!(
                "the {} was {was} after {}, not {should}",
                story.title,
                words::seconds(self.took)
            ));
        }
        (story.flawless && users.failures > 0)
            .then(|| format!("the {} lost {} requests", story.title, words::failed(*users)))
    }
}

/// The table of all stories.
pub(super) fn table(played: &[Played]) -> Vec<String> {
    let header = ["story", "what happened", "detection", "weight", "failed requests"].map(str::to_owned);
    let rows = played.iter().map(|played| {
        [
            played.story.title.to_owned(),
            format!("{} in {}", played.ending.words(), words::seconds(played.took)),
            played.detected.map_or_else(|| "-".to_owned(), words::seconds),
            played.reached.to_string(),
            words::failed(played.users),
        ]
    });
    let rows: Vec<_> = [header].into_iter().chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 5] = std::array::from_fn(width);
    let line = |row: &[String; 5]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// How to read the table.
pub(super) const LEGEND: [&str; 3] = [
    "Detection is the time from the new version's first bad request to the rollback;",
    "weight is the largest share of requests that it had. The shop's versions fail",
    "1 % of requests on an ordinary day, and those are counted too.",
];

/// What there is to say under the table.
///
/// # Errors
/// What differed from what should have been.
pub(super) fn conclusion(played: &[Played], took: Duration) -> anyhow::Result<String> {
    let differences: Vec<_> = played.iter().filter_map(Played::difference).collect();
    if differences.is_empty() {
        return Ok(format!("All {} went as they should, in {:.0} s.", STORIES.len(), took.as_secs_f64()));
    }
    anyhow::bail!("the demo went otherwise than it should: {}", differences.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn played(story: &'static Story) -> Played {
        Played {
            story,
            ending: story.expected,
            took: Duration::from_millis(6_120),
            detected: story.sign.map(|_| Duration::from_millis(4_300)),
            reached: Weight::from_percent(25.0).unwrap(),
            users: Counts { requests: 3_400, failures: if story.flawless { 0 } else { 61 } },
        }
    }

    #[test]
    fn the_table_fits_eighty_columns() {
        let table = table(&STORIES.each_ref().map(played));
        assert_eq!(table[2], "bad release      rolled back in 6.1 s  4.3 s      25 %    61 of 3,400 (1.8 %)");
        assert!(table.iter().all(|line| line.chars().count() <= 79), "{table:#?}");
    }

    #[test]
    fn whatever_differs_is_named() {
        let mut all = STORIES.each_ref().map(played);
        assert!(conclusion(&all, Duration::from_secs(60)).is_ok());
        all[0].ending = Ending::RolledBack;
        all[2] = Played::never(&STORIES[2]);
        all[5].users.failures = 2;
        let error = conclusion(&all, Duration::from_secs(60)).unwrap_err().to_string();
        assert_eq!(
            error,
            "the demo went otherwise than it should: the good release was rolled back after 6.1 s, not promoted; \
             the slow release was not finished after 0.0 s, not rolled back; \
             the blue/green flip lost 2 of 3,400 (0.1 %) requests"
        );
    }
}
