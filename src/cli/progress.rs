//! Progress of long work: a bar on a terminal, a line every few seconds elsewhere.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};

const PLAIN_INTERVAL: Duration = Duration::from_secs(10);

/// Documents and bytes done so far, from any number of threads.
pub struct Progress {
    what: String,
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
    pub fn new(what: &str) -> Self {
        let now = Instant::now();
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            bar.set_style(
                ProgressStyle::with_template("{spinner} {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner()),
            );
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        let state = Mutex::new(State { documents: 0, bytes: 0, began: now, said: now });
        Progress { what: what.to_owned(), state, bar }
    }

    /// One more document.
    pub fn add(&self, bytes: u64) {
        let mut state = self.lock();
        state.documents += 1;
        state.bytes += bytes;
        match &self.bar {
            Some(bar) if state.documents.is_multiple_of(256) => bar.set_message(self.line(&state)),
            None if state.said.elapsed() >= PLAIN_INTERVAL => {
                state.said = Instant::now();
                eprintln!("{}", self.line(&state));
            }
            _ => {}
        }
    }

    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        eprintln!("{}", self.line(&self.lock()));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn line(&self, state: &State) -> String {
        let rate = state.bytes as f64 / state.began.elapsed().as_secs_f64().max(0.001);
        let (documents, bytes, rate) = (HumanCount(state.documents), HumanBytes(state.bytes), HumanBytes(rate as u64));
        format!("{}: {documents} documents, {bytes}, {rate}/s", self.what)
    }
}
