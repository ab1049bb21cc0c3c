//! The last warnings and errors of this process, for the page.

use std::collections::VecDeque;
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// What a person reads; the log has all.
const MAX_LINES: usize = 50;
/// Of one line. Longer ones quote data.
const MAX_LINE_BYTES: usize = 600;

/// Of the process, like the log that it is a part of.
pub static LOGBOOK: Logbook = Logbook::new();

/// A line of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LogLine {
    /// Milliseconds since 1970, of the last time.
    pub at_ms: u64,
    pub level: &'static str,
    pub text: String,
    /// How often it came without another one in between.
    pub times: u64,
}

/// The last lines that warn, in bounded memory.
pub struct Logbook {
    lines: Mutex<VecDeque<LogLine>>,
}

impl Logbook {
    pub const fn new() -> Self {
        Logbook { lines: Mutex::new(VecDeque::new()) }
    }

    /// Newest first.
    pub fn lines(&self) -> Vec<LogLine> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).iter().rev().cloned().collect()
    }

    fn note(&self, at_ms: u64, level: &'static str, text: String) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = lines.back_mut().filter(|last| last.level == level && last.text == text) {
            (last.at_ms, last.times) = (at_ms, last.times + 1);
            return;
        }
        if lines.len() == MAX_LINES {
            lines.pop_front();
        }
        lines.push_back(LogLine { at_ms, level, text, times: 1 });
    }
}

impl Default for Logbook {
    fn default() -> Self {
        Logbook::new()
    }
}

impl<S: Subscriber> Layer<S> for &'static Logbook {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warning",
            _ => return,
        };
        let mut text = Text::default();
        event.record(&mut text);
        self.note(now_ms(), level, text.0);
    }
}

/// Milliseconds since 1970; 0 if the clock stands before.
pub(super) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// The message, then the fields.
#[derive(Default)]
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // A string takes everything; what is too long is cut.
        let _ = match field.name() {
            "message" => write!(Bounded(&mut self.0), "{value:?}"),
            name => write!(Bounded(&mut self.0), " {name}={value:?}"),
        };
    }
}

/// Takes so much and no more, however long a value's text is.
struct Bounded<'a>(&'a mut String);

impl Write for Bounded<'_> {
    fn write_str(&mut self, part: &str) -> std::fmt::Result {
        if self.0.len() >= MAX_LINE_BYTES {
            return Ok(());
        }
        let room = MAX_LINE_BYTES - self.0.len();
        let fits = part.floor_char_boundary(room);
        self.0.push_str(&part[..fits]);
        if fits < part.len() {
            self.0.push('…');
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[test]
    fn warnings_and_errors_are_kept_newest_first_each_as_often_as_it_came() {
        static BOOK: Logbook = Logbook::new();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(&BOOK), || {
            tracing::info!("nobody is woken by this");
            tracing::warn!("disk {} is full", 7);
            tracing::warn!("disk {} is full", 7);
            tracing::error!(code = 69, "the end");
        });
        let lines: Vec<_> = BOOK.lines().into_iter().map(|line| (line.level, line.text, line.times)).collect();
        let expected = [("error", "the end code=69".to_owned(), 1), ("warning", "disk 7 is full".to_owned(), 2)];
        assert_eq!(lines, expected);
        assert!(BOOK.lines().iter().all(|line| line.at_ms > 1_600_000_000_000));
    }

    #[test]
    fn memory_is_bounded_whatever_is_logged() {
        static BOOK: Logbook = Logbook::new();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(&BOOK), || {
            for i in 0..2 * MAX_LINES {
                tracing::warn!(more = "ä".repeat(MAX_LINE_BYTES), "line {i}: {}", "ö".repeat(i * 10));
            }
        });
        let lines = BOOK.lines();
        assert_eq!(lines.len(), MAX_LINES);
        assert!(lines[0].text.starts_with("line 99: ö") && lines[0].text.ends_with('…'), "{:?}", lines[0]);
        assert!(lines.iter().all(|line| line.text.len() <= MAX_LINE_BYTES + "…".len()));
    }
}
