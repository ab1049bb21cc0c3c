//! A broker, a daemon in a process of its own, and what can be asked of both from outside.

#![allow(dead_code, unused_imports, reason = "each test binary uses its own part")]

mod broker;
mod collector;
mod database;
mod deployment;
mod http_proxy;
mod kafka_servers;
mod listener;
mod patient;
mod postgres_server;
mod published;
mod python;
mod registry;
mod tcp_proxy;
mod weights;

use std::hash::BuildHasher;
use std::process::Command;
use std::time::{Duration, Instant};

use winnowd::features::{Featuriser, Scratch};
use winnowd::score::{Model, NgramCounts, Side};

pub use broker::*;
pub use collector::*;
pub use database::Database;
pub use deployment::*;
pub use http_proxy::*;
pub use kafka_servers::KafkaServers;
pub use patient::*;
pub use postgres_server::PostgresServer;
pub use published::*;
pub use python::{python, python_of};
pub use registry::*;
pub use tcp_proxy::*;
pub use weights::*;

/// Far beyond what anything here takes.
pub const DEADLINE: Duration = Duration::from_secs(240);

/// Waits until `done` gives something, looking often.
pub fn wait_for<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(Instant::now() < deadline, "timed out waiting for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A document of a few dozen tokens whose importance varies.
pub fn document(n: u64) -> Vec<u8> {
    const WORDS: [&str; 8] = ["select", "table", "index", "king", "thou", "query", "night", "vacuum"];
    let mut state = n.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut text = String::new();
    for _ in 0..24 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        text.push_str(WORDS[(state >> 61) as usize]);
        text.push(' ');
    }
    serde_json::json!({ "id": format!("d{n}"), "source": format!("s{}", n % 3), "text": text, "n": n })
        .to_string()
        .into_bytes()
}

/// A model that likes databases better than Shakespeare.
pub fn model_bytes() -> Vec<u8> {
    let featuriser = Featuriser::default();
    let count = |text: &str| {
        let mut counts = NgramCounts::zero(featuriser.buckets as usize);
        counts.add_text(text, &featuriser, &mut Scratch::default());
        counts
    };
    let target = count("select index from table query vacuum table index select query night");
    let raw = count("king thou night select thou king table index night query vacuum king thou select");
    Model::of_one_target(featuriser, Side::of(target), Side::of(raw)).expect("both sides have n-grams").to_bytes()
}

/// Runs one of `tests/services`; gives what it prints.
pub fn service(script: &str, arguments: &[&str]) -> String {
    let output = Command::new(script).args(arguments).output().expect("the script runs");
    let problem = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script} {}: {problem}", arguments.join(" "));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

pub fn block_on<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(future)
}

/// From `WINNOWD_TEST_SEED`, or fresh; print it with what it was used for.
pub fn random_seed() -> u64 {
    let given = std::env::var("WINNOWD_TEST_SEED").ok().and_then(|s| s.parse().ok());
    given.unwrap_or_else(|| std::collections::hash_map::RandomState::new().hash_one(0) & 0xFFFF_FFFF)
}

/// A small generator for the moments of faults.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// The line of `tests/README.md` for one kind of fault. Whoever prints it has asserted that nothing was lost or decided twice.
pub fn report_fault(fault: &str, injected: usize, documents: u64, recovery: Duration) {
    println!(
        "fault: {fault} | injected {injected} | documents {documents} | lost 0 | twice 0 | longest recovery {:.1} s",
        recovery.as_secs_f64()
    );
}
