//! What a selection covers: measured as it is defined, of a sample that depends on positions alone.

use proptest::prelude::*;

use super::*;
use crate::features::{PointScratch, Projection};

const SAMPLE: u32 = 6;

/// With the fingerprint that scoring gives it where it is asked for.
fn sampled(offset: i64, text: &str, model: &Model, window: &OpenWindow, noise: &Noise) -> ScoredRecord {
    let mut record = record(offset, text, model);
    if let Ok(scored) = &mut record.outcome
        && window.might_sample(noise.sampling(offset))
    {
        let (list, mut features) = (scored.buckets.as_ref(), Scratch::default());
        scored.fingerprint = Some(Fingerprint::of(list, text, &model.featuriser, &mut features));
    }
    record
}

fn close(texts: &[String], selector: &SelectorSettings, closed_by: CloseReason) -> ClosedWindow {
    let model = model();
    let weight = weight(&model);
    let (mut window, noise) = open(selector);
    for (offset, text) in (100..).zip(texts) {
        let record = sampled(offset, text, &model, &window, &noise);
        window.push(record, &weight, selector, &noise);
    }
    window.close(closed_by, selector, &noise, &model.target_distribution())
}

/// Straight from the definition.
fn expected(texts: &[String], selector: &SelectorSettings, closed: &ClosedWindow) -> Option<[f64; 4]> {
    let (model, noise) = (model(), Noise::new(selector.seed, &TopicPartition::new("docs", 1)));
    let point = |offset: i64| {
        Projection::OF_TEXTS.of_text(&texts[(offset - 100) as usize], &model.featuriser, &mut Scratch::default())
    };
    let long_enough = |offset: &i64| texts[(offset - 100) as usize].split_whitespace().count() >= 2;
    let mut candidates: Vec<i64> = (100..100 + texts.len() as i64).filter(long_enough).collect();
    candidates.sort_by(|a, b| noise.sampling(*b).total_cmp(&noise.sampling(*a)));
    candidates.truncate(SAMPLE as usize);
    let mut selected: Vec<i64> = closed.selected.iter().map(|row| row.offset).collect();
    let n = selected.len().min(candidates.len() / 2);
    selected.sort_by(|a, b| noise.comparing(*b).total_cmp(&noise.comparing(*a)));
    selected.truncate(n);
    let half = |rest: usize| -> Vec<i64> { candidates.iter().copied().skip(rest).step_by(2).collect() };
    let distance = |a: i64, b: i64| -> f64 {
        point(a).iter().zip(point(b)).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
    };
    let others = |from: i64| selected.iter().copied().filter(move |to| *to != from).collect::<Vec<i64>>();
    // The only selected document has no other one.
    let of =
        |rest: usize| half(rest).into_iter().filter(|from| !others(*from).is_empty()).map(move |from| (rest, from));
    let sampled: Vec<(usize, i64)> = (0..2).flat_map(of).collect();
    let mean = |to: &dyn Fn(usize, i64) -> Vec<i64>| {
        let nearest = |(rest, from): &(usize, i64)| {
            to(*rest, *from).into_iter().map(|to| distance(*from, to)).fold(f64::INFINITY, f64::min)
        };
        sampled.iter().map(nearest).sum::<f64>() / sampled.len() as f64
    };
    let to_random = |rest: usize, from| half(1 - rest).into_iter().take(others(from).len()).collect();
    (n > 0).then(|| [sampled.len() as f64, n as f64, mean(&|_, from| others(from)), mean(&to_random)])
}

proptest! {
    #[test]
    fn coverage_is_measured_as_it_is_defined(
        texts in proptest::collection::vec("((good|bad|noise|words|only) ){1,9}", 1..20),
        tenths in 1u32..=10,
        seed in 0u64..1_000,
    ) {
        let selector = SelectorSettings {
            coverage_sample: SAMPLE, seed, ..selector(&format!("{}.{}", tenths / 10, tenths % 10))
        };
        let closed = close(&texts, &selector, CloseReason::Idle);
        let found = closed.summary.spread;
        match expected(&texts, &selector, &closed) {
            None => prop_assert_eq!(found, None),
            Some([n_sampled, n_selected, auc_pr, of_random]) => {
                let found = found.unwrap();
                prop_assert_eq!((found.n_sampled as f64, found.n_selected as f64), (n_sampled, n_selected));
                prop_assert!((found.auc_pr - auc_pr).abs() < 1e-5, "{} for {}", found.auc_pr, auc_pr);
                prop_assert!((found.auc_pr_of_random - of_random).abs() < 1e-5);
                let by_sources = closed.sources.entropies();
                prop_assert_eq!((found.source_entropy_of_documents, found.source_entropy_of_selected), by_sources);
            }
        }
        // It decides nothing.
        let unmeasured = close(&texts, &SelectorSettings { coverage_sample: 0, ..selector }, CloseReason::Idle);
        prop_assert_eq!(unmeasured.summary.spread, None);
        prop_assert_eq!(unmeasured.selected, closed.selected);
    }
}

/// However many of the sampled documents are selected ones, a random selection comes to what random documents come to.
#[test]
fn a_random_selection_covers_as_random_documents_do() {
    let words = |i: u32| format!("w{i} w{} w{} w{}", i * i % 7, i % 5, i % 3);
    let texts: Vec<String> = (0..20).map(words).collect();
    for (sample, fraction) in [(32, "0.1"), (32, "0.5"), (32, "1"), (6, "0.05"), (6, "0.5")] {
        let n = 400;
        let differences: Vec<f64> = (0..n)
            .map(|seed| {
                // All weigh the same.
                let selector =
                    SelectorSettings { coverage_sample: sample, seed, temperature: 1e12, ..selector(fraction) };
                let spread = close(&texts, &selector, CloseReason::Idle).summary.spread.unwrap();
                assert!(spread.auc_pr > 0.0 && spread.auc_pr_of_random > 0.0, "{spread:?}");
                spread.auc_pr - spread.auc_pr_of_random
            })
            .collect();
        let mean = differences.iter().sum::<f64>() / n as f64;
        let variance = differences.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / (n - 1) as f64;
        let error = (variance / n as f64).sqrt();
        assert!(mean.abs() < 4.0 * error, "{sample} of 20, {fraction} selected: {mean} ± {error}");
    }
}

/// A full window of few documents is measured in proportion to them, a quiet one always.
#[test]
fn windows_that_are_small_for_the_sample_are_measured_now_and_then() {
    let selector = SelectorSettings { coverage_sample: 2, ..selector("0.25") };
    let (sample, noise) = (Sample::new(&selector).unwrap(), Noise::new(selector.seed, &TopicPartition::new("docs", 1)));
    let measured = |closed_by, n| (0..4_000).filter(|from| sample.is_measured(closed_by, n, 20 * from, &noise)).count();
    for reason in [CloseReason::Documents, CloseReason::Bytes, CloseReason::Memory] {
        // 20 / (2 · 300) of 4,000; five standard errors are 57.
        let found = measured(reason, 20);
        assert!((76..=190).contains(&found), "{found} of 4,000");
        assert_eq!(measured(reason, 600), 4_000);
    }
    assert_eq!([CloseReason::Idle, CloseReason::Age].map(|reason| measured(reason, 20)), [4_000; 2]);
    assert!(
        [0, 1].iter().all(|n| Sample::new(&SelectorSettings { coverage_sample: *n, ..selector.clone() }).is_none())
    );
}

/// Texts that are too long to be kept become points, which are the same.
#[test]
fn long_texts_have_the_points_of_their_buckets() {
    let model = model();
    let mut features = Scratch::default();
    for words in [10usize, 3_000] {
        let text = (0..words).map(|i| format!("w{}", i * i % 977)).collect::<Vec<_>>().join(" ");
        let mut list = BucketList::new(BUCKETS);
        model.featuriser.for_each_chunk(&text, &mut features, |chunk| list.extend(chunk));
        let expected = Projection::OF_TEXTS.of_list(&list, &mut PointScratch::default());
        let kept = Fingerprint::of(Some(&list), &text, &model.featuriser, &mut features);
        assert_eq!(matches!(kept, Fingerprint::Buckets(_)), words == 10);
        let found = Fingerprint::of(None, &text, &model.featuriser, &mut features);
        assert_eq!(found, Fingerprint::Point(expected.clone()));
        if let Fingerprint::Point(point) = kept {
            assert_eq!(point, expected);
        }
    }
}
