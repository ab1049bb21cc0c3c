//! Windows that quotas and several targets divide.

use std::collections::BTreeMap;

use super::*;
use crate::score::Target;
use crate::select::{BudgetRounding, chance_in_turns, select_within_budgets};

const TARGETS: [(&str, f64, &str); 2] = [("good", 0.7, "good words only"), ("bad", 0.3, "bad noise only bad")];

fn model_of_two() -> Model {
    let one = model();
    let target = |(name, proportion, text): (&str, f64, &str)| {
        let mut counts = NgramCounts::zero(BUCKETS as usize);
        counts.add_text(text, &one.featuriser, &mut Scratch::default());
        Target { name: name.into(), proportion, side: Side::of(counts) }
    };
    Model { targets: TARGETS.map(target).to_vec(), ..one }.validated().unwrap()
}

fn of_all(model: &Model) -> Arc<VersionedWeight> {
    VersionedWeight::of_targets(WeightVersion::default(), ImportanceWeight::of_targets(model), None)
}

fn quotas(sources: &[(&str, f64)]) -> Quotas {
    let sources = sources.iter().map(|(name, share)| ((*name).to_owned(), *share)).collect();
    Quotas { sources, ..Quotas::default() }
}

/// A document from source `s0`, `s1` or `s2` by its offset, scored with these weights.
fn scored(offset: i64, text: &str, weight: &VersionedWeight, scratch: &mut Scratch) -> ScoredRecord {
    let mut buckets = BucketList::new(BUCKETS);
    let n_tokens = weight.weight.featuriser().for_each_chunk(text, scratch, |chunk| buckets.extend(chunk));
    let score = weight.score_list(&buckets, n_tokens);
    let other_weights = weight.for_others(text, Some(&buckets), scratch);
    let source = Some(format!("s{}", offset % 3));
    let document = Document { id: offset.to_string(), text: text.into(), source, timestamp_ms: None, metadata: None };
    // One of them comes without, as a long text does.
    let buckets = (offset != 117).then_some(buckets);
    let content = Content::Whole(document);
    let outcome = Ok(ScoredDocument {
        content,
        score,
        other_weights,
        numbers: [f64::NAN; 2],
        pool: None,
        point: None,
        buckets,
        is_counted: false,
        refused_by: None,
        fingerprint: None,
    });
    ScoredRecord { offset, record_timestamp_ms: None, payload_bytes: text.len() as u64, outcome }
}

/// The window of these documents from offset 100 on, and the bytes that it held before it was decided.
fn divided(
    texts: &[String],
    selector: &SelectorSettings,
    division: &Arc<Division>,
    model: &Model,
) -> (ClosedWindow, usize) {
    divided_by(texts, selector, division, model, &of_all(model), &mut Scratch::default())
}

fn divided_by(
    texts: &[String],
    selector: &SelectorSettings,
    division: &Arc<Division>,
    model: &Model,
    weight: &Arc<VersionedWeight>,
    scratch: &mut Scratch,
) -> (ClosedWindow, usize) {
    let at = TopicPartition::new("docs", 1);
    let noise = Noise::new(selector.seed, &at);
    let policy = WindowPolicy { max_documents: texts.len().max(1) as u64, max_bytes: u64::MAX, max_age_ms: i64::MAX };
    let mut window = OpenWindow::new(at, 100, &policy, selector, opening(division));
    for (offset, text) in (100..).zip(texts) {
        window.push(scored(offset, text, weight, scratch), weight, selector, &noise);
    }
    let held = window.held_bytes();
    (window.close(CloseReason::Idle, selector, &noise, &model.target_distribution()), held)
}

proptest! {
    /// What a window keeps on the way is enough: as if all its documents had been looked at in the end, by what files do.
    #[test]
    fn a_divided_window_selects_as_files_do(
        texts in proptest::collection::vec("(good|bad|noise|only|words| ){1,12}", 0..60),
        percent in 1u32..=100,
        share in 0.01f64..=1.0,
        kind in prop_oneof![Just(SelectorKind::ImportanceResampling), Just(SelectorKind::TopK)],
        length_normalise in any::<bool>(),
    ) {
        let model = model_of_two();
        let selector = SelectorSettings { kind, length_normalise, ..selector(&format!("{}.{:02}", percent / 100, percent % 100)) };
        let division = Arc::new(Division::of(&quotas(&[("s0", share * 0.6), ("s2", share * 0.4)]), &model));
        let (closed, _) = divided(&texts, &selector, &division, &model);

        let noise = Noise::new(selector.seed, &TopicPartition::new("docs", 1));
        let mut scratch = Scratch::default();
        let weights = ImportanceWeight::of_targets(&model);
        let scores: Vec<[Score; 2]> =
            texts.iter().map(|text| [0, 1].map(|target| weights[target].score(text, &mut scratch))).collect();
        let score = |document: u32, target: usize| scores[document as usize][target];
        let total = |document, target| selector.total_log_weight(&score(document, target), &model.featuriser);
        let key = |document: u32, target| selector.key(&noise, 100 + i64::from(document), total(document, target));
        let mut pools = vec![Vec::new(); 3];
        // Sources `s0`, `s1` and `s2`, of which the second has no share of its own.
        let pool_of = |document: u32| [1, 0, 2][(100 + document as usize) % 3];
        let candidates = (0..texts.len() as u32).filter(|&document| score(document, 0).n_tokens >= 2);
        candidates.for_each(|document| pools[pool_of(document)].push(document));
        let sizes: Vec<u64> = pools.iter().map(|pool| pool.len() as u64).collect();
        let count = selector.fraction.of(texts.len() as u64, noise.rounding(100));
        let budgets = division.budgets(count, &sizes, BudgetRounding::Random { noise: &noise, from: 100 });
        let expected = select_within_budgets(pools, &budgets, key);
        let chances = division.chances(selector.fraction, texts.len() as u64, &sizes);

        prop_assert_eq!(closed.selected.len() as u64, count.min(sizes.iter().sum()), "as many as with one target");
        prop_assert_eq!(closed.selected.len(), expected.picks.len());
        for (row, pick) in closed.selected.iter().zip(&expected.picks) {
            prop_assert_eq!((row.offset, row.target, row.selection_key), (100 + i64::from(pick.document), pick.target, pick.key));
            let all = [0, 1].map(|target| score(pick.document, target).log_importance_weight);
            prop_assert_eq!(&row.log_importance_weights, &all);
            prop_assert_eq!(row.score.log_importance_weight, all[pick.target]);
            let pool = pool_of(pick.document);
            let of_target = |target| total(pick.document, target);
            let chance = chance_in_turns(&selector, expected.turns_of(pool), Some(pick.target), of_target);
            prop_assert!(row.inclusion_probability > 0.0);
            prop_assert!((row.inclusion_probability - chances[pool] * chance).abs() < 1e-12);
        }
        let summary = &closed.summary;
        let turns: Vec<_> = summary.turns.iter().map(|turn| (turn.n_candidates, turn.n_selected, turn.threshold)).collect();
        prop_assert_eq!(turns, expected.turns.iter().map(|t| (sizes[t.pool], t.count, t.threshold)).collect::<Vec<_>>());
        let named: Vec<_> = summary.turns.iter().map(|turn| (turn.source.as_deref(), turn.target.as_deref().unwrap())).collect();
        prop_assert_eq!(&named[..3], &[(None, "good"), (None, "bad"), (Some("s0"), "good")]);
        prop_assert_eq!((summary.threshold, summary.diagnostics), (None, None));
        for (pool, source) in [None, Some("s0"), Some("s2")].into_iter().enumerate() {
            let of_pool = summary.selected_of_pools().filter(|of| of.0 == source).map(|of| of.1).sum::<u64>();
            let n = expected.picks.iter().filter(|pick| pool_of(pick.document) == pool).count() as u64;
            prop_assert_eq!(of_pool, n);
        }
        for (number, of) in summary.targets.iter().enumerate() {
            let n = closed.selected.iter().filter(|row| row.target == number).count() as u64;
            prop_assert_eq!((of.target.as_str(), of.diagnostics.n_selected), (TARGETS[number].0, n));
            prop_assert_eq!(of.diagnostics.n_candidates, sizes.iter().sum::<u64>());
            prop_assert_eq!(of.kl_reduction.is_some(), n > 0);
            let ngrams: u64 = closed.selected.iter().filter(|row| row.target == number).map(|row| model.featuriser.n_ngrams(row.score.n_tokens)).sum();
            prop_assert_eq!(closed.selected_counts[number].total(), ngrams);
        }
        let back: WindowSummary = serde_json::from_value(serde_json::to_value(summary).unwrap()).unwrap();
        prop_assert_eq!(&back, summary);
    }
}

/// Of windows that are too small for whole documents of every source, each has its share over many of them, and the weights of
/// what was selected add up to all that came.
#[test]
fn shares_of_tiny_windows_are_kept_on_average_and_their_weights_unbiased() {
    let (model, n_windows) = (model_of_two(), 6_000u64);
    let (weight, mut scratch) = (of_all(&model), Scratch::default());
    let division = Arc::new(Division::of(&quotas(&[("s0", 0.5), ("s2", 0.2)]), &model));
    // Three documents of every source, of which 1.8 are selected: 0.9, 0.36 and 0.54.
    let texts: Vec<String> =
        (0..9).map(|i| if i % 2 == 0 { "good words only" } else { "bad noise bad" }.to_owned()).collect();
    let (mut selected, mut estimated): (BTreeMap<String, f64>, BTreeMap<String, f64>) = Default::default();
    let mut for_good = 0.0;
    for seed in 0..n_windows {
        // Weights of these texts are some ninety nats apart, so that without it none would ever be drawn against the odds.
        let selector = SelectorSettings { seed, temperature: 60.0, ..selector("0.2") };
        let (closed, _) = divided_by(&texts, &selector, &division, &model, &weight, &mut scratch);
        assert!((1..=2).contains(&closed.selected.len()));
        for row in closed.selected {
            let source = row.document.source.unwrap();
            *selected.entry(source.clone()).or_default() += 1.0 / n_windows as f64;
            *estimated.entry(source).or_default() += row.inclusion_probability.recip() / n_windows as f64;
            for_good += f64::from(u8::from(row.target == 0)) / n_windows as f64;
        }
    }
    for (source, share) in [("s0", 0.9), ("s1", 0.54), ("s2", 0.36)] {
        // At most one Bernoulli a window: five standard errors are 0.032.
        let (selected, estimated) = (selected[source], estimated[source]);
        assert!((selected - share).abs() < 0.033, "{selected} of {source} a window instead of {share}");
        // Estimates are up to a few times as wide as three documents.
        assert!((estimated - 3.0).abs() < 0.35, "{estimated} of {source} estimated instead of 3");
    }
    assert!((for_good - 1.8 * 0.7).abs() < 0.05, "{for_good} a window for the first target");
}

/// One target with quotas has no columns or numbers of targets; what nobody divides has no turns.
#[test]
fn what_is_not_divided_says_nothing_of_it() {
    let model = model();
    let texts: Vec<String> = (0..40).map(|i| format!("good words {}", "noise ".repeat(i % 5))).collect();
    let selector = selector("0.25");
    let by_source = Arc::new(Division::of(&quotas(&[("s1", 0.8)]), &model));
    let (closed, _) = divided(&texts, &selector, &by_source, &model);
    let turns: Vec<_> =
        closed.summary.turns.iter().map(|t| (t.source.as_deref(), t.target.as_deref(), t.n_selected)).collect();
    assert_eq!(turns, [(None, None, 2), (Some("s1"), None, 8)]);
    assert!(closed.selected.iter().all(|row| row.target == 0 && row.log_importance_weights.is_empty()));
    assert!(closed.summary.targets.is_empty() && closed.summary.diagnostics.is_some());
    assert_eq!(closed.selected_counts.len(), 1);
    let (whole, _) = divided(&texts, &selector, &Arc::new(Division::whole()), &model);
    assert!(whole.summary.turns.is_empty() && whole.summary.threshold.is_some());
    let json = serde_json::to_value(&whole.summary).unwrap();
    assert_eq!((json.get("turns"), json.get("targets")), (None, None));
}

/// All sources in one pool for one target, by the way of the divided: the documents that the other way selects.
#[test]
fn one_pool_selects_the_same_either_way() {
    let model = model();
    let texts: Vec<String> =
        (0..200).map(|i| format!("good {} {}", "bad ".repeat(i % 7), "noise ".repeat(i % 5))).collect();
    let selector = selector("0.1");
    let none_of_these = Arc::new(Division::of(&quotas(&[("another", 0.8)]), &model));
    let (divided_way, held) = divided(&texts, &selector, &none_of_these, &model);
    let (whole, held_whole) = divided(&texts, &selector, &Arc::new(Division::whole()), &model);
    assert_eq!(divided_way.selected, whole.selected);
    assert_eq!(divided_way.summary.turns[0].threshold, whole.summary.threshold);
    assert!(held <= held_whole, "{held} bytes held, {held_whole} by one reservoir");
}

/// Weights for all targets are those of the version that the window opened with.
#[test]
fn all_targets_keep_the_version_that_the_window_opened_with() {
    let model = model_of_two();
    let selector = selector("1");
    let division = Arc::new(Division::of(&Quotas::default(), &model));
    let version = |raw_version, text: &str| {
        let mut counts = NgramCounts::zero(BUCKETS as usize);
        counts.add_text(text, &model.featuriser, &mut Scratch::default());
        let raw = Side::of(counts);
        let weights = ImportanceWeight::of_targets(&Model { raw, ..model.clone() });
        VersionedWeight::of_targets(WeightVersion { raw: Some(raw_version), ..WeightVersion::default() }, weights, None)
    };
    let (old, new) = (version(7, "bad noise good words"), version(8, "good good good words only noise bad"));
    let weights_of = |versions: [&Arc<VersionedWeight>; 4]| {
        let mut scratch = Scratch::default();
        let at = TopicPartition::new("docs", 1);
        let noise = Noise::new(selector.seed, &at);
        let mut window = OpenWindow::new(at, 100, &policy(), &selector, opening(&division));
        for (offset, weight) in (100..).zip(versions) {
            let text =
                ["good words only", "bad noise", "noise good bad words", "only bad words"][offset as usize - 100];
            window.push(scored(offset, text, weight, &mut scratch), weight, &selector, &noise);
        }
        let closed = window.close(CloseReason::Idle, &selector, &noise, &model.target_distribution());
        (
            closed.summary.raw_version,
            closed.selected.into_iter().map(|row| row.log_importance_weights).collect::<Vec<_>>(),
        )
    };
    let all_old = weights_of([&old; 4]);
    assert_eq!((all_old.0, all_old.1.len()), (Some(7), 4));
    assert_ne!(weights_of([&new; 4]).1, all_old.1);
    assert_eq!(weights_of([&old, &new, &new, &old]), all_old);
}

/// Documents that two targets might still choose are held once.
#[test]
fn bytes_are_given_back_when_no_target_can_choose_a_document() {
    let model = model_of_two();
    let texts: Vec<String> = (0..400).map(|i| format!("{} {i}", ["good words", "bad noise"][i % 2])).collect();
    let division = Arc::new(Division::of(&Quotas::default(), &model));
    let (closed, held) = divided(&texts, &selector("0.1"), &division, &model);
    assert_eq!(closed.selected.len(), 40);
    let one = size_of::<Candidate>() + size_of::<Document>() + 100;
    let statistics = 2 * BUCKETS as usize * 8 + 512 * (8 + 4 + 8) + 4096;
    assert!(held <= statistics + (41 + 31) * one, "{held} bytes are held of 400 documents");
}
