//! The demo on a terminal: the last lines show how things stand, and what happened scrolls up above
//! them and stays, so that it can be read when the demo is over.

use std::{
    io::{self, Stdout},
    time::Duration,
};

use ratatui::{
    Terminal, TerminalOptions, Viewport,
    backend::CrosstermBackend,
    buffer::Buffer,
    crossterm::{
        event::{self, Event, KeyCode, KeyModifiers},
        terminal,
    },
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style, Stylize as _},
    text::{Line, Span},
    widgets::{Block, Paragraph, Widget as _},
};

use super::{
    load::RATE,
    scene::{Arm, Evidence, Mark, Scene},
    story::STORIES,
    words,
};

/// Lines that show how things stand.
const HEIGHT: u16 = 17;
/// The smallest terminal that is worth it: the lines above, and some of what happened.
const SMALLEST: (u16, u16) = (78, HEIGHT + 3);
/// Columns before what a row is about.
const LABEL: usize = 11;

const STABLE: Color = Color::Blue;
const CANARY: Color = Color::Yellow;
const GOOD: Color = Color::Green;
const BAD: Color = Color::Red;

/// The terminal, as long as it is ours.
#[derive(Debug)]
pub(super) struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
}

impl Screen {
    /// Takes the terminal.
    ///
    /// # Errors
    /// When it is too small, or does not say where its cursor is.
    pub(super) fn new() -> io::Result<Self> {
        let (width, height) = terminal::size()?;
        if width < SMALLEST.0 || height < SMALLEST.1 {
            return Err(io::Error::other("the terminal is too small"));
        }
        terminal::enable_raw_mode()?;
        let options = TerminalOptions { viewport: Viewport::Inline(HEIGHT) };
        match Terminal::with_options(CrosstermBackend::new(io::stdout()), options) {
            Ok(terminal) => Ok(Self { terminal }),
            Err(error) => {
                terminal::disable_raw_mode()?;
                Err(error)
            }
        }
    }

    /// Columns.
    pub(super) fn width(&self) -> io::Result<usize> {
        Ok(usize::from(self.terminal.size()?.width))
    }

    /// Shows how things stand.
    pub(super) fn show(&mut self, scene: &Scene) -> io::Result<()> {
        self.terminal.draw(|frame| draw(scene, frame.area(), frame.buffer_mut()))?;
        Ok(())
    }

    /// Puts lines above, where they stay.
    pub(super) fn say(&mut self, lines: &[String], bold: bool) -> io::Result<()> {
        let style = if bold { Style::new().bold() } else { Style::new() };
        let text: Vec<_> = lines.iter().map(|line| Line::styled(line.as_str(), style)).collect();
        let height = u16::try_from(lines.len()).unwrap_or(u16::MAX);
        self.terminal.insert_before(height, |buffer| Paragraph::new(text).render(buffer.area, buffer))
    }

    /// Whether Ctrl-C (or `q`) was pressed since the last look.
    pub(super) fn interrupted() -> io::Result<bool> {
        while event::poll(Duration::ZERO)? {
            if let Event::Key(key) = event::read()? {
                let control = key.modifiers.contains(KeyModifiers::CONTROL);
                if key.code == KeyCode::Char('q') || (control && key.code == KeyCode::Char('c')) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}

impl Drop for Screen {
    /// Gives the terminal back, whatever the reason; nothing can be done about a failure.
    fn drop(&mut self) {
        let origin = self.terminal.get_frame().area().as_position();
        let _left_as_is = self.terminal.clear();
        let _left_below = self.terminal.set_cursor_position(origin);
        let _left_hidden = self.terminal.show_cursor();
        let _left_raw = terminal::disable_raw_mode();
    }
}

fn draw(scene: &Scene, area: Rect, buffer: &mut Buffer) {
    let rows: [Rect; 8] = Layout::vertical([1, 1, 1, 6, 1, 2, 3, 2].map(Constraint::Length)).areas(area);
    let [rule, title, what, arms, way, evidence, why, users] = rows;
    Line::from("─".repeat(usize::from(rule.width)).dark_gray()).render(rule, buffer);
    draw_title(scene, title, buffer);
    Line::from(format!(" {}", scene.story.what)).render(what, buffer);
    let [stable, other] = Layout::horizontal([Constraint::Fill(1); 2]).areas(arms);
    draw_arm(&scene.stable, STABLE, stable, buffer);
    draw_arm(&scene.other, CANARY, other, buffer);
    draw_way(&scene.way, way, buffer);
    let [back, forth] = Layout::vertical([Constraint::Length(1); 2]).areas(evidence);
    gauge(" roll back", scene.rollback, BAD).render(back, buffer);
    gauge(" promote", scene.promotion, GOOD).render(forth, buffer);
    let width = usize::from(why.width).saturating_sub(1);
    let lines = words::wrap(&format!("{:LABEL$}", " why"), &scene.why, width);
    Paragraph::new(lines.into_iter().map(Line::from).collect::<Vec<_>>()).render(why, buffer);
    let counts = format!("{:LABEL$}{} requests failed", " users", words::failed(scene.users));
    let hint = format!("{:LABEL$}real sockets, {RATE} requests/s. Ctrl-C or q ends it.", "");
    Paragraph::new(vec![Line::from(counts), Line::from(hint).dark_gray()]).render(users, buffer);
}

fn draw_title(scene: &Scene, area: Rect, buffer: &mut Buffer) {
    let done = scene.way.iter().filter(|(_, mark)| matches!(mark, Mark::Done | Mark::Back)).count();
    let within = done as f64 / scene.way.len().max(1) as f64;
    let progress = (scene.number as f64 - 1.0 + within.min(1.0)) / STORIES.len() as f64;
    let title = format!(" Story {} of {}: {}", scene.number, STORIES.len(), scene.story.title);
    Line::from(title.bold()).render(area, buffer);
    let (full, empty) = bar(progress, 20);
    let right = [full.into(), empty.dark_gray(), format!("  {} ", words::clock(scene.elapsed)).into()];
    Line::from_iter::<[Span<'_>; 3]>(right).right_aligned().render(area, buffer);
}

fn draw_arm(arm: &Arm, color: Color, area: Rect, buffer: &mut Buffer) {
    let title = format!(" {}: {}, release {} ", arm.role, arm.name, arm.release);
    let block = Block::bordered().border_style(color).title(title.bold());
    let inner = block.inner(area);
    block.render(area, buffer);
    let (full, empty) = bar(arm.weight.percent() / 100.0, 14);
    let row = |label: &str| Span::from(format!(" {label:9}")).dark_gray();
    let weight = format!("{:<7}", arm.weight.to_string());
    let (p50, p99) = (words::millis(arm.latency.p50_seconds), words::millis(arm.latency.p99_seconds));
    let lines = vec![
        Line::from(vec![row("weight"), weight.bold(), Span::styled(full, color), empty.dark_gray()]),
        Line::from(vec![row("requests"), format!("{:.0}/s", arm.pace).into()]),
        Line::from(vec![row("errors"), words::score(arm.errors).into()]),
        Line::from(vec![row("latency"), format!("p50 {p50}, p99 {p99}").into()]),
    ];
    Paragraph::new(lines).render(inner, buffer);
}

fn draw_way(way: &[(String, Mark)], area: Rect, buffer: &mut Buffer) {
    let mut spans = vec![Span::from(format!("{:LABEL$}", " plan"))];
    for (i, (point, mark)) in way.iter().enumerate() {
        if i > 0 {
            spans.push(" › ".dark_gray());
        }
        let style = match mark {
            Mark::Done => Style::new().fg(GOOD),
            Mark::Now => Style::new().add_modifier(Modifier::REVERSED | Modifier::BOLD),
            Mark::Later => Style::new().dark_gray(),
            Mark::Back => Style::new().fg(BAD).bold(),
        };
        spans.push(Span::styled(format!(" {point} "), style));
    }
    Line::from(spans).render(area, buffer);
}

fn gauge(label: &str, evidence: Option<Evidence>, color: Color) -> Line<'static> {
    let label = Span::from(format!("{label:LABEL$}"));
    let Some(evidence) = evidence else { return Line::from(vec![label, "-".dark_gray()]) };
    let (full, empty) = bar(evidence.share(), 36);
    let numbers = format!("  evidence {:.1} of {:.1}", evidence.value.max(0.0), evidence.needed);
    Line::from(vec![label, Span::styled(full, color), empty.dark_gray(), numbers.into()])
}

/// A bar of `width` columns, in its full and its empty part.
fn bar(share: f64, width: usize) -> (String, String) {
    let full = ((share * width as f64).round() as usize).min(width);
    ("━".repeat(full), "─".repeat(width - full))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::{interval::Score, verdict::ArmLatency};

    fn arm(role: &'static str) -> Arm {
        let latency = ArmLatency { p50_seconds: Some(0.0041), p99_seconds: Some(0.0123) };
        let errors = Some(Score { low: 0.031, rate: 0.052, high: 0.088 });
        let (name, weight) = ("green".to_owned(), crate::model::weight::Weight::FULL);
        Arm { role, name, release: 2, weight, pace: 500.0, errors, latency }
    }

    #[test]
    fn everything_fits_the_smallest_terminal() {
        let point = |name: &str, mark| (name.to_owned(), mark);
        let scene = Scene {
            number: 4,
            story: &STORIES[2],
            elapsed: Duration::from_secs(71),
            stable: arm("stable"),
            other: arm("kept warm"),
            way: ["prepare", "5 %", "25 %", "50 %", "promote", "bake", "done"]
                .map(|p| point(p, Mark::Done))
                .into(),
            rollback: Some(Evidence { value: 5.0, needed: 4.6 }),
            promotion: None,
            why: "canary takes 11 ms at the median, stable 4.8 ms: rolling back (evidence 6.7 of 4.6 needed)"
                .into(),
            users: super::super::load::Counts { requests: 12_345, failures: 143 },
        };
        let area = Rect::new(0, 0, SMALLEST.0, HEIGHT);
        let mut buffer = Buffer::empty(area);
        draw(&scene, area, &mut buffer);
        let rows: Vec<String> = (0..HEIGHT)
            .map(|y| (0..area.width).map(|x| buffer[(x, y)].symbol().to_owned()).collect::<String>())
            .collect();
        let all = rows.join("\n");
        for expected in [
            "Story 4 of 6: slow release",
            "1:11",
            "To be rolled back.",
            "kept warm: green, release 2",
            "5.2 % (95 %: 3.1 to 8.8)",
            "p50 4.1 ms, p99 12 ms",
            " done ",
            "evidence 5.0 of 4.6",
            "needed)",
            "143 of 12,345 (1.2 %)",
            "Ctrl-C or q ends it.",
        ] {
            assert!(all.contains(expected), "{expected} is not in\n{all}");
        }
    }

    #[test]
    fn a_bar_is_always_as_wide_as_it_should_be() {
        for share in [0.0, 0.01, 0.5, 1.0, 1.7] {
            let (full, empty) = bar(share, 10);
            assert_eq!(full.chars().count() + empty.chars().count(), 10);
        }
    }
}
