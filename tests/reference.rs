//! Agreement with the published DSIR package (`data-selection` 1.0.3) on the bundled sample.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{HashMap, HashSet};
use std::path::Path;

use winnowd::features::{Featuriser, Scratch};
use winnowd::record::{Decoder, Document, DocumentRef};
use winnowd::score::{ImportanceWeight, Model, NgramCounts, Side};
use winnowd::source::files::for_each_document;

struct Corpus {
    target: Vec<Document>,
    raw: Vec<Document>,
}

fn corpus() -> Corpus {
    let target_ids: HashSet<&str> = include_str!("reference/target_ids.txt").lines().collect();
    let mut corpus = Corpus { target: Vec::new(), raw: Vec::new() };
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cli/demo/sample.jsonl.zst");
    let place = |document: &DocumentRef<'_>, _| {
        let is_target = target_ids.contains(&*document.id());
        let side = if is_target { &mut corpus.target } else { &mut corpus.raw };
        side.push(document.to_document());
    };
    let decoder = Decoder::for_files();
    for_each_document(&sample, &decoder, place).unwrap();
    assert_eq!(corpus.target.len(), target_ids.len());
    corpus
}

fn count(documents: &[Document]) -> NgramCounts {
    let mut counts = NgramCounts::zero(10_000);
    let mut scratch = Scratch::default();
    for document in documents {
        counts.add_text(&document.text, &Featuriser::default(), &mut scratch);
    }
    counts
}

#[test]
fn counts_are_equal_and_weights_within_1e_9() {
    let corpus = corpus();
    let (target, raw) = (count(&corpus.target), count(&corpus.raw));
    for line in include_str!("reference/counts.tsv").lines().skip(1) {
        let numbers: Vec<u64> = line.split('\t').map(|field| field.parse().unwrap()).collect();
        let bucket = numbers[0] as usize;
        assert_eq!((raw.as_slice()[bucket], target.as_slice()[bucket]), (numbers[1], numbers[2]), "bucket {bucket}");
    }

    let model = Model::of_one_target(Featuriser::default(), Side::of(target), Side::of(raw)).unwrap();
    // As the daemon has it: through the bytes of a model file.
    let model = Model::from_bytes(&model.to_bytes()).unwrap();
    let weight = &ImportanceWeight::of_targets(&model)[0];
    let texts: HashMap<&str, &str> = corpus.raw.iter().map(|d| (d.id.as_str(), d.text.as_str())).collect();
    let mut scratch = Scratch::default();
    let (mut n_weights, mut worst) = (0, 0f64);
    for line in include_str!("reference/weights.tsv").lines().skip(1) {
        let fields: Vec<&str> = line.split('\t').collect();
        let score = weight.score(texts[fields[0]], &mut scratch);
        assert_eq!(score.n_tokens, fields[1].parse::<u32>().unwrap(), "tokens of {}", fields[0]);
        worst = worst.max((score.log_importance_weight - fields[2].parse::<f64>().unwrap()).abs());
        n_weights += 1;
    }
    assert_eq!(n_weights, corpus.raw.len());
    println!("{n_weights} weights, largest difference {worst:.2e}");
    assert!(worst <= 1e-9, "largest difference {worst:e}");
}
