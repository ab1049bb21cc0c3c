//! The rate of every stage in this process, one thread, as one JSON line a stage: what `benches/compare` reads. Of selectors also what
//! they cost of the scoring (`fast`, the fastest kernel) of as many of the documents.
//!
//! `cargo bench --bench rates [-- ROUNDS]`. The stages take turns, so that a slow moment of the machine hits all of them.

mod support;
#[path = "support/stages.rs"]
mod way;

use std::time::Instant;

use support::Corpus;
use way::{SELECT, Work, stages};

const SCORING: &str = "score/fast";

fn main() {
    // Cargo passes `--bench`.
    let rounds = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(5);
    let corpus: &Corpus = Box::leak(Box::new(Corpus::load()));
    let mut stages = stages(corpus);
    stages.iter_mut().for_each(|stage| (stage.pass)());
    let mut seconds = vec![Vec::new(); stages.len()];
    for _ in 0..rounds {
        for (stage, seconds) in stages.iter_mut().zip(&mut seconds) {
            let began = Instant::now();
            (stage.pass)();
            seconds.push(began.elapsed().as_secs_f64());
        }
    }
    seconds.iter_mut().for_each(|seconds| seconds.sort_by(f64::total_cmp));
    let scoring =
        stages.iter().zip(&seconds).rfind(|(stage, _)| stage.name == SCORING).map(|(_, seconds)| seconds.clone());
    for (stage, seconds) in stages.into_iter().zip(seconds) {
        let median = seconds[seconds.len() / 2];
        let (unit, work) = match stage.work {
            Work::TextBytes(bytes) => ("mb_per_s", bytes as f64 / 1e6),
            Work::Documents(documents) => ("documents_per_s", documents as f64),
        };
        let rate = |seconds: f64| (work / seconds).round();
        let line = serde_json::json!({
            "stage": stage.name, "kernel": stage.kernel, "unit": unit,
            "median": rate(median), "best": rate(seconds[0]),
        });
        println!("{line}");
        if let (SELECT, Some(scoring)) = (stage.name, &scoring) {
            let percent =
                |selecting: f64, scoring: f64| 100.0 * (selecting / work) / (scoring / corpus.records.len() as f64);
            let line = serde_json::json!({
                "stage": stage.name, "kernel": stage.kernel, "unit": "percent_of_scoring",
                "median": percent(median, scoring[scoring.len() / 2]), "best": percent(seconds[0], scoring[0]),
            });
            println!("{line}");
        }
    }
}
