//! Where the demo is shown: on a screen where there is one, as plain lines where there is none.

use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};

use super::{plain::Plain, scene::Scene, screen::Screen, words};

/// Where the demo is shown. Dropping it gives the terminal back as it was.
#[derive(Debug)]
pub(super) enum Stage {
    Screen(Screen),
    Plain(Plain),
}

/// Something to be said once.
#[derive(Debug, Clone, Copy)]
pub(super) enum Say<'a> {
    /// A story begins.
    Title(&'a str),
    /// Something happened, so long after the demo began.
    Event(Duration, &'a str),
    /// A sentence.
    Text(&'a str),
    /// A line that is already laid out.
    Line(&'a str),
}

impl Stage {
    /// The screen, unless that is not wanted or there is none that will do.
    pub(super) fn new(plain: bool) -> Self {
        if plain || !io::stdout().is_terminal() || !io::stdin().is_terminal() {
            return Self::Plain(Plain::default());
        }
        // A terminal that is too small or answers no questions still shows lines.
        Screen::new().map_or_else(|_| Self::Plain(Plain::default()), Self::Screen)
    }

    /// Shows how things stand.
    ///
    /// # Errors
    /// When nobody can see it any more.
    pub(super) fn show(&mut self, scene: &Scene) -> io::Result<()> {
        match self {
            Self::Screen(screen) => screen.show(scene),
            Self::Plain(plain) => plain.show(scene),
        }
    }

    /// Says something.
    ///
    /// # Errors
    /// When nobody can see it any more.
    pub(super) fn say(&mut self, what: Say<'_>) -> io::Result<()> {
        let lines = |width| match what {
            Say::Title(text) => vec![String::new(), text.to_owned()],
            Say::Event(at, text) => words::wrap(&format!("{}  ", words::clock(at)), text, width),
            Say::Text(text) => words::wrap("", text, width),
            Say::Line(text) => vec![text.to_owned()],
        };
        match self {
            Self::Screen(screen) => {
                let lines = lines(screen.width()?);
                screen.say(&lines, matches!(what, Say::Title(_)))
            }
            // Whoever reads lines by program wants each thing in one.
            Self::Plain(_) => lines(usize::MAX).iter().try_for_each(|line| Plain::say(line)),
        }
    }

    /// Whether Ctrl-C was pressed. Where there is a screen it comes as a key; elsewhere as a signal,
    /// which others wait for.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub(super) fn interrupted(&self) -> io::Result<bool> {
        match self {
            Self::Screen(_) => Screen::interrupted(),
            Self::Plain(_) => Ok(false),
        }
    }
}
