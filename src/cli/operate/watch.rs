//! `tidegate watch`: how things stand, drawn anew as they change; where there is no terminal, a line for each thing
//! that happens.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use http::Method;
use ratatui::crossterm::{
    cursor::{Hide, MoveTo, Show},
    event::{self, KeyCode, KeyModifiers},
    execute, queue,
    style::Print,
    terminal::{
        self, BeginSynchronizedUpdate, Clear, ClearType, DisableLineWrap, EnableLineWrap,
        EndSynchronizedUpdate, EnterAlternateScreen, LeaveAlternateScreen,
    },
};
use serde::Deserialize as _;
use serde_json::json;
use tokio::{
    signal::unix::{SignalKind, signal},
    time,
};

use super::{
    api::{Api, Failure},
    ending::Ending,
    news::News,
    options::{Connection, Target},
    print, say,
    seen::{Service, Services},
    view,
};
use crate::cli::args::Output;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(500);
/// Between two looks at the keyboard.
const KEYS: Duration = Duration::from_millis(50);
/// What stands below.
const HINT: &str = "q or Ctrl-C ends this, and nothing else";

/// Watches until it is told to stop.
pub(super) async fn watch(target: &Target, api: &Api, connection: &Connection) -> Result<Ending, Failure> {
    let name = match &target.service {
        Some(name) => Some(api.service(Some(name)).await?),
        None => None,
    };
    // Before the terminal is taken, so that a wrong address is told as always.
    let first = look(name.as_deref(), api).await?;
    if io::stdout().is_terminal() && connection.output == Output::Table {
        return on_screen(name.as_deref(), first, api).await;
    }
    let mut news = BTreeMap::<String, News>::new();
    let mut services = first;
    let mut answers = true;
    loop {
        for service in &services {
            for event in news.entry(service.name.clone()).or_default().of(service) {
                let line = match connection.output {
                    Output::Json => {
                        let mut event = serde_json::to_value(event).map_err(Failure::not_understood)?;
                        event["service"] = json!(service.name);
                        event.to_string()
                    }
                    Output::Table if name.is_some() => view::event_line(event),
                    Output::Table => format!("{}: {}", service.name, view::event_line(event)),
                };
                // Nobody reads on.
                if writeln!(anstream::stdout(), "{line}").is_err() {
                    return Ok(Ending::Done);
                }
            }
        }
        time::sleep(PAUSE).await;
        match look(name.as_deref(), api).await {
            Ok(seen) => {
                services = seen;
                answers = true;
            }
            Err(Failure::Unreachable(why) | Failure::Broken(why)) => {
                if std::mem::take(&mut answers) {
                    say(&format!("{why}; trying again"));
                }
            }
            Err(other) => return Err(other),
        }
    }
}

/// How the service stands, or all of them.
async fn look(name: Option<&str>, api: &Api) -> Result<Vec<Service>, Failure> {
    match name {
        Some(name) => {
            let one = api.call(Method::GET, &format!("/services/{name}"), None).await?;
            Ok(vec![Service::deserialize(&one).map_err(Failure::not_understood)?])
        }
        None => {
            let all = api.call(Method::GET, "/services", None).await?;
            Ok(Services::deserialize(&all).map_err(Failure::not_understood)?.services)
        }
    }
}

async fn on_screen(name: Option<&str>, first: Vec<Service>, api: &Api) -> Result<Ending, Failure> {
    let broken = |error: io::Error| Failure::Broken(format!("the terminal cannot be used: {error}"));
    let mut terminated = signal(SignalKind::terminate()).map_err(broken)?;
    let screen = Screen::new().map_err(broken)?;
    let mut last = String::new();
    let follow = async {
        let mut services = first;
        let mut trouble = None;
        loop {
            last = frame(&services);
            screen.draw(&last, trouble.as_deref()).map_err(broken)?;
            time::sleep(PAUSE).await;
            match look(name, api).await {
                Ok(seen) => (services, trouble) = (seen, None),
                Err(Failure::Unreachable(why) | Failure::Broken(why)) => trouble = Some(why),
                Err(other) => break Err(other),
            }
        }
    };
    let result = tokio::select! {
        result = follow => result,
        pressed = pressed() => pressed.map_err(broken),
        _ = terminated.recv() => Ok(()),
    };
    drop(screen);
    // What was seen last stays to be read.
    print(&last);
    result.map(|()| Ending::Done)
}

/// One service with all that is known of it; several as a table, and what has happened last.
fn frame(services: &[Service]) -> String {
    if let [one] = services {
        return view::service(one);
    }
    let mut latest: Vec<_> = services
        .iter()
        .flat_map(|service| service.events.iter().map(move |event| (service, event)))
        .collect();
    latest.sort_by_key(|(_, event)| event.id);
    let mut text = view::services(services) + "\n";
    for (service, event) in latest.iter().rev().take(LATEST).rev() {
        text.push_str(&format!("{} {}\n", view::event_line(event), service.name));
    }
    text
}

/// Events shown below a table of services.
const LATEST: usize = 10;

/// Ends when somebody wants to leave.
async fn pressed() -> io::Result<()> {
    loop {
        while event::poll(Duration::ZERO)? {
            if let event::Event::Key(key) = event::read()? {
                let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
                if key.code == KeyCode::Char('q') || (is_control && key.code == KeyCode::Char('c')) {
                    return Ok(());
                }
            }
        }
        time::sleep(KEYS).await;
    }
}

/// The terminal, as long as it is ours.
struct Screen;

impl Screen {
    fn new() -> io::Result<Self> {
        terminal::enable_raw_mode()?;
        // From here on it is given back, whatever comes.
        let screen = Self;
        execute!(io::stdout(), EnterAlternateScreen, DisableLineWrap, Hide)?;
        Ok(screen)
    }

    /// Draws a text as far as it fits. What was there is written over and not cleared first, so nothing flickers.
    fn draw(&self, text: &str, trouble: Option<&str>) -> io::Result<()> {
        // One that does not know its size is one of old.
        let (width, height) = Some(terminal::size()?).filter(|size| *size != (0, 0)).unwrap_or((80, 24));
        let colourless = anstream::AutoStream::choice(&io::stdout()) == anstream::ColorChoice::Never;
        let mut out = io::stdout().lock();
        queue!(out, BeginSynchronizedUpdate, MoveTo(0, 0))?;
        let lines = text.lines().flat_map(|line| wrapped(line, usize::from(width)));
        for line in lines.take(usize::from(height.saturating_sub(2))) {
            let line = if colourless { anstream::adapter::strip_str(&line).to_string() } else { line };
            queue!(out, Print(line), Clear(ClearType::UntilNewLine), Print("\r\n"))?;
        }
        queue!(out, Clear(ClearType::FromCursorDown), MoveTo(0, height.saturating_sub(1)))?;
        queue!(out, Print(trouble.unwrap_or(HINT)), EndSynchronizedUpdate)?;
        out.flush()
    }
}

impl Drop for Screen {
    /// Gives the terminal back; nothing can be done about a failure.
    fn drop(&mut self) {
        let _left_as_is = execute!(io::stdout(), Show, EnableLineWrap, LeaveAlternateScreen);
        let _left_raw = terminal::disable_raw_mode();
    }
}

/// What is indented is text: lines of at most this width, broken at blanks. What is not is a table or has colours,
/// and is left as it is: the terminal cuts it off.
fn wrapped(line: &str, width: usize) -> Vec<String> {
    if !line.starts_with("  ") || line.chars().count() <= width {
        return vec![line.to_owned()];
    }
    let indent: String = line.chars().take_while(|c| *c == ' ').collect();
    let mut lines = vec![indent.clone()];
    for word in line.split_whitespace() {
        let last = lines.last_mut().expect("there is one from the beginning");
        let is_first = last.len() == indent.len();
        if !is_first && last.chars().count() + 1 + word.chars().count() > width {
            lines.push(format!("{indent}{word}"));
        } else {
            last.push_str(if is_first { "" } else { " " });
            last.push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_broken_at_blanks() {
        assert_eq!(wrapped("  short", 20), ["  short"]);
        assert_eq!(wrapped("  one two three", 9), ["  one two", "  three"]);
        assert_eq!(wrapped("  averyverylongword and", 5), ["  averyverylongword", "  and"]);
        assert_eq!(wrapped("web      v1      v2", 5), ["web      v1      v2"]);
    }
}
