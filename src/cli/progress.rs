//! Progress of long work: a bar on a terminal, a line every few seconds elsewhere.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};

const PLAIN_INTERVAL: Duration = Duration::from_secs(10);
const BAR_INTERVAL: Duration = Duration::from_millis(100);
const BAR: &str = "{bar:24} {percent:>3} %, {eta} left  {wide_msg}";
/// Where nobody knows how much there is.
const SPINNER: &str = "{spinner} {wide_msg}";

/// Documents and bytes done so far, from any number of threads, a few thousand documents at a time.
pub struct Progress {
    what: String,
    unit: Unit,
    /// In its unit; 0 when it is not known.
    total: u64,
    state: Mutex<State>,
    bar: Option<ProgressBar>,
}

/// What tells how far the work is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    /// Of the files.
    Bytes,
    Documents,
}

struct State {
    documents: u64,
    bytes: u64,
    began: Instant,
    said: Instant,
}

impl Progress {
    /// Of work on files of so many bytes, as they are stored; 0: nobody knows.
    pub fn new(what: &str, total_bytes: u64) -> Self {
        Progress::on(terminal(), what, Unit::Bytes, total_bytes)
    }

    /// Of work on so many documents that reads no files; 0: nobody knows.
    pub fn of_documents(what: &str, total: u64) -> Self {
        Progress::on(terminal(), what, Unit::Documents, total)
    }

    /// `None`: in lines.
    fn on(terminal: Option<ProgressDrawTarget>, what: &str, unit: Unit, total: u64) -> Self {
        let now = Instant::now();
        let bar = terminal.map(|terminal| {
            let (length, template, or) = match total {
                0 => (None, SPINNER, ProgressStyle::default_spinner()),
                total => (Some(total), BAR, ProgressStyle::default_bar()),
            };
            let style = ProgressStyle::with_template(template).unwrap_or(or).progress_chars("█·");
            let bar = ProgressBar::with_draw_target(length, terminal).with_style(style).with_message(what.to_owned());
            bar.enable_steady_tick(BAR_INTERVAL);
            bar
        });
        let state = Mutex::new(State { documents: 0, bytes: 0, began: now, said: now });
        Progress { what: what.to_owned(), unit, total, state, bar }
    }

    /// So many documents more, from so many bytes of the files.
    pub fn add(&self, documents: u64, bytes: u64) {
        let mut state = self.lock();
        state.documents += documents;
        state.bytes += bytes;
        if let Some(bar) = &self.bar {
            // Nothing more can be done of files that have grown.
            bar.set_position(self.done(&state).min(bar.length().unwrap_or(u64::MAX)));
        }
        let interval = if self.bar.is_some() { BAR_INTERVAL } else { PLAIN_INTERVAL };
        if state.said.elapsed() < interval {
            return;
        }
        state.said = Instant::now();
        match &self.bar {
            Some(bar) => bar.set_message(self.line(&state, false)),
            None => eprintln!("{}", self.line(&state, true)),
        }
    }

    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        eprintln!("{}", self.line(&self.lock(), false));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn done(&self, state: &State) -> u64 {
        match self.unit {
            Unit::Bytes => state.bytes,
            Unit::Documents => state.documents,
        }
    }

    fn line(&self, state: &State, says_share: bool) -> String {
        let seconds = state.began.elapsed().as_secs_f64().max(0.001);
        let share = match self.total {
            total if says_share && total > 0 => {
                format!(" ({:.0} %)", (100.0 * self.done(state) as f64 / total as f64).min(100.0))
            }
            _ => String::new(),
        };
        let rate = (self.done(state) as f64 / seconds) as u64;
        let documents = HumanCount(state.documents);
        match self.unit {
            Unit::Bytes => {
                let (bytes, rate) = (HumanBytes(state.bytes), HumanBytes(rate));
                format!("{}: {documents} documents, {bytes}{share}, {seconds:.1} s, {rate}/s", self.what)
            }
            Unit::Documents => {
                format!("{}: {documents} documents{share}, {seconds:.1} s, {}/s", self.what, HumanCount(rate))
            }
        }
    }
}

/// Standard error, if somebody looks at it.
fn terminal() -> Option<ProgressDrawTarget> {
    std::io::stderr().is_terminal().then(ProgressDrawTarget::stderr)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, PoisonError};

    use indicatif::TermLike;

    use super::*;

    /// A terminal that keeps what is written to it.
    #[derive(Debug, Clone, Default)]
    struct Screen(Arc<Mutex<String>>);

    impl TermLike for Screen {
        fn width(&self) -> u16 {
            120
        }

        fn move_cursor_up(&self, _: usize) -> std::io::Result<()> {
            Ok(())
        }

        fn move_cursor_down(&self, _: usize) -> std::io::Result<()> {
            Ok(())
        }

        fn move_cursor_right(&self, _: usize) -> std::io::Result<()> {
            Ok(())
        }

        fn move_cursor_left(&self, _: usize) -> std::io::Result<()> {
            Ok(())
        }

        fn write_line(&self, text: &str) -> std::io::Result<()> {
            self.write_str(text)
        }

        fn write_str(&self, text: &str) -> std::io::Result<()> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push_str(text);
            Ok(())
        }

        fn clear_line(&self) -> std::io::Result<()> {
            Ok(())
        }

        fn flush(&self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// What stands on the screen when so much was done.
    fn screen(unit: Unit, total: u64, documents: u64, bytes: u64) -> String {
        let screen = Screen::default();
        let terminal = ProgressDrawTarget::term_like(Box::new(screen.clone()));
        let progress = Progress::on(Some(terminal), "work", unit, total);
        progress.add(documents, bytes);
        // Draws at once.
        progress.bar.as_ref().unwrap().abandon();
        screen.0.lock().unwrap().clone()
    }

    #[test]
    fn a_terminal_shows_a_bar_where_the_total_is_known() {
        let bytes = screen(Unit::Bytes, 1_000, 7, 500);
        let bar =
            |filled: usize, percent: u32| format!("{}{} {percent:>3} %, ", "█".repeat(filled), "·".repeat(24 - filled));
        assert!(bytes.contains(&bar(12, 50)) && bytes.contains(" left  work"), "{bytes}");
        let documents = screen(Unit::Documents, 1_000, 250, 0);
        assert!(documents.contains(&bar(6, 25)), "{documents}");
        let grown = screen(Unit::Bytes, 1_000, 7, 5_000);
        assert!(grown.contains(&bar(24, 100)), "{grown}");
        let unknown = screen(Unit::Bytes, 0, 7, 500);
        assert!(unknown.contains(" work") && !unknown.contains('%'), "{unknown}");
    }

    #[test]
    fn lines_count_in_the_unit_of_the_work() {
        let line = |unit, total, says_share| {
            let progress = Progress::on(None, "work", unit, total);
            progress.add(1_500, 2_048);
            progress.line(&progress.lock(), says_share)
        };
        let documents = line(Unit::Documents, 6_000, true);
        assert!(documents.starts_with("work: 1,500 documents (25 %), "), "{documents}");
        assert!(!documents.contains('B') && documents.ends_with("/s"), "{documents}");
        let bytes = line(Unit::Bytes, 4_096, true);
        assert!(bytes.starts_with("work: 1,500 documents, 2.00 KiB (50 %), ") && bytes.ends_with("B/s"), "{bytes}");
        assert!(!line(Unit::Documents, 0, true).contains('%') && !line(Unit::Bytes, 4_096, false).contains('%'));
    }
}
