//! Progress of long work: a bar on a terminal, a line every few seconds elsewhere.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};

const PLAIN_INTERVAL: Duration = Duration::from_secs(10);
const BAR_INTERVAL: Duration = Duration::from_millis(100);

/// Documents and bytes done so far, from any number of threads, a few thousand documents at a time.
pub struct Progress {
    what: String,
    /// Of the files; 0 when it is not known.
    total_bytes: u64,
    state: Mutex<State>,
    bar: Option<ProgressBar>,
}

struct State {
    documents: u64,
    bytes: u64,
    began: Instant,
    said: Instant,
}

impl Progress {
    pub fn new(what: &str, total_bytes: u64) -> Self {
        let now = Instant::now();
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            bar.set_style(
                ProgressStyle::with_template("{spinner} {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner()),
            );
            bar.enable_steady_tick(BAR_INTERVAL);
            bar
        });
        let state = Mutex::new(State { documents: 0, bytes: 0, began: now, said: now });
        Progress { what: what.to_owned(), total_bytes, state, bar }
    }

    /// So many documents more, from so many bytes of the files.
    pub fn add(&self, documents: u64, bytes: u64) {
        let mut state = self.lock();
        state.documents += documents;
        state.bytes += bytes;
        let interval = if self.bar.is_some() { BAR_INTERVAL } else { PLAIN_INTERVAL };
        if state.said.elapsed() < interval {
            return;
        }
        state.said = Instant::now();
        match &self.bar {
            Some(bar) => bar.set_message(self.line(&state, true)),
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

    fn line(&self, state: &State, is_running: bool) -> String {
        let seconds = state.began.elapsed().as_secs_f64().max(0.001);
        let (documents, bytes) = (HumanCount(state.documents), HumanBytes(state.bytes));
        let rate = HumanBytes((state.bytes as f64 / seconds) as u64);
        let share = match self.total_bytes {
            total if is_running && total > 0 => format!(" ({:.0} %)", 100.0 * state.bytes as f64 / total as f64),
            _ => String::new(),
        };
        format!("{}: {documents} documents, {bytes}{share}, {seconds:.1} s, {rate}/s", self.what)
    }
}
