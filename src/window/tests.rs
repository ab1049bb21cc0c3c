mod by_field;
mod covered;
mod divided;
mod sensitive;
mod spread;
mod tokens;

use proptest::prelude::*;

use super::*;
use crate::features::Featuriser;
use crate::record::RejectReason;
use crate::score::{ImportanceWeight, Model, NgramCounts, Side};
use crate::score::{LossStrategy, LossTerm, WeightVersion};
use crate::select::{Quotas, SelectorKind};

const BUCKETS: u32 = 64;

fn opening(division: &Arc<Division>) -> Opening<'_> {
    Opening { division, clusters: None, edges: None, buckets: BUCKETS as usize }
}

fn model() -> Model {
    let featuriser = Featuriser { buckets: BUCKETS, ..Featuriser::default() };
    let count = |text: &str| {
        let mut counts = NgramCounts::zero(BUCKETS as usize);
        counts.add_text(text, &featuriser, &mut Scratch::default());
        Side::of(counts)
    };
    Model::of_one_target(featuriser, count("good words only"), count("bad noise good words noise")).unwrap()
}

fn weight(model: &Model) -> Arc<VersionedWeight> {
    VersionedWeight::pinned(ImportanceWeight::of_targets(model).remove(0))
}

fn selector(fraction: &str) -> SelectorSettings {
    let kind = SelectorKind::ImportanceResampling;
    let fraction = fraction.parse().unwrap();
    SelectorSettings {
        kind,
        fraction,
        unit: Default::default(),
        temperature: 1.0,
        length_normalise: false,
        min_tokens: 2,
        seed: 11,
        quotas: Quotas::default(),
        loss: None,
        filter: None,
        holdout: None,
        coverage_sample: 0,
        coverage: None,
        sensitivity: None,
    }
}

fn policy() -> WindowPolicy {
    WindowPolicy { max_documents: 20, max_bytes: 10_000, max_age_ms: 1_000 }
}

fn record(offset: i64, text: &str, model: &Model) -> ScoredRecord {
    let mut buckets = BucketList::new(BUCKETS);
    model.featuriser.for_each_chunk(text, &mut Scratch::default(), |c| buckets.extend(c));
    let score = ImportanceWeight::of_targets(model)[0].score(text, &mut Scratch::default());
    let source = Some(format!("s{}", offset % 3));
    let document = Document { id: offset.to_string(), text: text.into(), source, timestamp_ms: None, metadata: None };
    let outcome = Ok(ScoredDocument {
        content: Content::Whole(document),
        score,
        other_weights: Vec::new(),
        numbers: [f64::NAN; 2],
        pool: None,
        point: None,
        is_counted: false,
        refused_by: None,
        fingerprint: None,
        buckets: (offset % 2 == 0).then_some(buckets),
    });
    ScoredRecord { offset, record_timestamp_ms: Some(offset * 10), payload_bytes: text.len() as u64, outcome }
}

fn dead(offset: i64) -> ScoredRecord {
    let reject = Reject::new(RejectReason::MalformedJson, "EOF");
    let dead_letter =
        DeadLetter { offset, record_timestamp_ms: None, reject, payload_bytes: 3, payload: Some(b"{\"a".into()) };
    ScoredRecord { offset, record_timestamp_ms: None, payload_bytes: 3, outcome: Err(dead_letter) }
}

fn open(selector: &SelectorSettings) -> (OpenWindow, Noise) {
    let at = TopicPartition::new("docs", 1);
    let noise = Noise::new(selector.seed, &at);
    (OpenWindow::new(at, 100, &policy(), selector, opening(&Arc::new(Division::whole()))), noise)
}

#[derive(Debug, Clone)]
enum Kind {
    Text(String),
    Dead,
    Gap(u8),
}

fn kinds() -> impl Strategy<Value = Vec<Kind>> {
    let kind = prop_oneof![
        5 => "(good|bad|noise| ){1,12}".prop_map(Kind::Text),
        1 => Just(Kind::Dead),
        1 => (1u8..4).prop_map(Kind::Gap),
    ];
    proptest::collection::vec(kind, 0..20)
}

proptest! {
    /// Held-out documents compete as all others do, and do not count in what was selected.
    #[test]
    fn what_is_held_out_is_chosen_and_not_counted(
        texts in proptest::collection::vec("(good|bad|noise| ){1,12}", 0..20),
        share in 1u32..100,
    ) {
        let model = model();
        let weight = weight(&model);
        let decide = |holdout| {
            let selector = SelectorSettings { holdout, ..selector("0.5") };
            let (mut window, noise) = open(&selector);
            for (offset, text) in (100..).zip(&texts) {
                window.push(record(offset, text, &model), &weight, &selector, &noise);
            }
            window.close(CloseReason::Idle, &selector, &noise, &model.target_distribution())
        };
        let share = format!("0.{share:02}").parse().unwrap();
        let (without, with) = (decide(None), decide(Some(share)));
        let key = |d: &SelectedDocument| (d.offset, d.selection_key.to_bits(), d.inclusion_probability.to_bits());
        prop_assert_eq!(without.selected.iter().map(key).collect::<Vec<_>>(), with.selected.iter().map(key).collect::<Vec<_>>());
        prop_assert_eq!(&without.raw_counts, &with.raw_counts);
        let mut counts = NgramCounts::zero(BUCKETS as usize);
        for selected in &with.selected {
            prop_assert_eq!(selected.held_out, crate::select::is_held_out(&selected.document.id, share));
            if !selected.held_out {
                counts.add_text(&selected.document.text, &model.featuriser, &mut Scratch::default());
            }
        }
        prop_assert_eq!(&with.selected_counts[0], &counts);
        prop_assert!(without.selected.iter().all(|d| !d.held_out));
        prop_assert_eq!(with.summary.kl_reduction.is_some(), counts.total() > 0);
    }
}

proptest! {
    /// Every record is decided once, the interval covers all of it, and no more is held than can be chosen.
    #[test]
    fn every_record_is_decided_once(kinds in kinds(), tenths in 1u32..=10) {
        let model = model();
        let weight = weight(&model);
        let selector = selector(&format!("{}.{}", tenths / 10, tenths % 10));
        let (mut window, noise) = open(&selector);
        let mut offset = 100;
        let (mut n_texts, mut n_dead) = (0, 0);
        for kind in &kinds {
            match kind {
                Kind::Text(text) => { window.push(record(offset, text, &model), &weight, &selector, &noise); n_texts += 1; offset += 1 }
                Kind::Dead => { window.push(dead(offset), &weight, &selector, &noise); n_dead += 1; offset += 1 }
                Kind::Gap(n) => { offset += i64::from(*n); window.advance_to(offset) }
            }
        }
        let closed = window.close(CloseReason::Idle, &selector, &noise, &model.target_distribution());
        let s = &closed.summary;
        prop_assert_eq!(s.interval, Interval { from: 100, to: offset });
        prop_assert_eq!(s.n_records, n_texts + n_dead);
        prop_assert_eq!(s.n_records, s.n_selected + s.n_rejected + s.n_dead_letters);
        prop_assert_eq!(s.n_dead_letters, n_dead);
        prop_assert_eq!(closed.selected.len() as u64, s.n_selected);
        prop_assert!(s.n_selected <= selector.fraction.at_most(n_texts));
        prop_assert!(closed.selected.windows(2).all(|w| w[0].offset < w[1].offset));
        prop_assert!(closed.selected.iter().all(|d| d.score.n_tokens >= 2 && s.threshold.is_none_or(|t| d.selection_key >= t)));
        prop_assert_eq!(closed.selected.is_empty(), s.kl_reduction.is_none());
        let d = s.diagnostics.unwrap();
        prop_assert_eq!((d.n_candidates, d.n_selected), (n_texts - s.n_too_short, s.n_selected));
        prop_assert_eq!(d.effective_sample_size.is_some(), d.n_candidates > 0);
        let sources = closed.sources.top(20);
        let (documents, accepted) = sources.sources.iter().fold((0, 0), |(d, a), s| (d + s.documents, a + s.selected));
        prop_assert_eq!((documents, accepted), (n_texts, s.n_selected));
        prop_assert_eq!((s.raw_version, s.against_selected), (None, None));
    }
}

#[test]
fn held_bytes_fall_back_when_candidates_are_beaten() {
    let model = model();
    let weight = weight(&model);
    let selector = selector("0.1");
    let (mut window, noise) = open(&selector);
    let mut largest = 0;
    for offset in 100..120 {
        window.push(record(offset, "good noise words", &model), &weight, &selector, &noise);
        largest = largest.max(window.held_bytes());
    }
    // Two can be chosen and one sets the threshold, whatever the number of documents.
    let one = size_of::<Candidate>() + size_of::<Document>() + "100good noise wordss1".len();
    let statistics = window.statistics.held_bytes();
    assert!(statistics >= 2 * BUCKETS as usize * 8 + 20 * (8 + 4), "{statistics}");
    // Every other record comes with its buckets, two bytes for each of five n-grams.
    let buckets = window.held_bytes() - statistics - 3 * one;
    assert!([0, 10, 20, 30].contains(&buckets), "{buckets}");
    assert!(largest <= statistics + 3 * (one + 10), "{largest}");
    assert_eq!(window.extent().closes_now(&policy()), Some(CloseReason::Documents));
}

#[test]
fn closes_by_bytes_and_by_record_time() {
    let model = model();
    let weight = weight(&model);
    let selector = selector("0.5");
    let (mut window, noise) = open(&selector);
    assert!(!window.extent().closes_before(Some(5_000_000), &policy()), "an empty window has no age");
    window.push(record(100, "good words", &model), &weight, &selector, &noise);
    assert!(!window.extent().closes_before(Some(2_000), &policy()));
    assert!(window.extent().closes_before(Some(2_001), &policy()));
    assert!(!window.extent().closes_before(Some(-5), &policy()), "time that runs backwards does not close a window");
    assert!(!window.extent().closes_before(None, &policy()));
    assert_eq!(window.extent().closes_now(&policy()), None);
    window.push(record(101, &"x ".repeat(5_000), &model), &weight, &selector, &noise);
    assert_eq!(window.extent().closes_now(&policy()), Some(CloseReason::Bytes));
}

#[test]
#[should_panic(expected = "docs/1: offset 100 after 101")]
fn an_offset_is_never_taken_twice() {
    let (model, selector) = (model(), selector("0.5"));
    let weight = weight(&model);
    let (mut window, noise) = open(&selector);
    window.push(record(100, "good", &model), &weight, &selector, &noise);
    window.push(record(100, "good", &model), &weight, &selector, &noise);
}

#[test]
fn a_summary_reads_well_as_json() {
    let (model, selector) = (model(), selector("1"));
    let weight = weight(&model);
    let (mut window, noise) = open(&selector);
    window.push(dead(100), &weight, &selector, &noise);
    let closed = window.close(CloseReason::Idle, &selector, &noise, &model.target_distribution());
    assert_eq!(closed.summary.id(), "docs/1/100-101");
    let json = serde_json::to_value(&closed.summary).unwrap();
    assert_eq!((&json["topic"], &json["partition"], &json["from_offset"]), (&"docs".into(), &1.into(), &100.into()));
    let back: WindowSummary = serde_json::from_value(json).unwrap();
    assert_eq!(back, closed.summary);
}

/// A window too small for a whole document selects one by chance; the weight of that document says so.
#[test]
fn weights_of_tiny_windows_are_unbiased() {
    let model = model();
    let weight = weight(&model);
    let n_windows = 4_000;
    let mut total = 0.0;
    for seed in 0..n_windows {
        let selector = SelectorSettings { seed, ..selector("0.25") };
        let (mut window, noise) = open(&selector);
        window.push(record(100, "good words", &model), &weight, &selector, &noise);
        let closed = window.close(CloseReason::Idle, &selector, &noise, &model.target_distribution());
        total += closed.selected.iter().map(|row| row.inclusion_probability.recip()).sum::<f64>();
    }
    // Each window holds one document; five standard errors of 4 × Bernoulli(1/4) over 4,000 windows are 0.137.
    let mean = total / n_windows as f64;
    assert!((mean - 1.0).abs() < 0.137, "mean of the estimated counts {mean}");
}

/// However records were scored before they came, a window's weights are those of the version it opened with.
#[test]
fn a_window_keeps_the_version_that_it_opened_with() {
    let model = model();
    let selector = selector("1");
    let target = model.target_distribution();
    let version = |raw_version, raw: &str| {
        let mut counts = NgramCounts::zero(BUCKETS as usize);
        counts.add_text(raw, &model.featuriser, &mut Scratch::default());
        let raw = counts.probabilities();
        let weight = ImportanceWeight::new(model.featuriser, target.probabilities(), &raw, model.smoothing);
        let version = WeightVersion { raw: Some(raw_version), ..WeightVersion::default() };
        VersionedWeight::of_targets(version, vec![weight], None)
    };
    let (old, new) = (version(7, "bad noise good words noise"), version(8, "good good good words only noise bad"));
    let texts = ["good words only", "bad noise", "good noise bad words", "only bad words", "noise noise only"];
    // Odd offsets come without their buckets, as long texts do.
    let scored_with = |offset: i64, weight: &VersionedWeight| {
        let mut record = record(offset, texts[(offset - 100) as usize], &model);
        if let Ok(scored) = &mut record.outcome {
            let text = texts[(offset - 100) as usize];
            scored.score = weight.weight.score(text, &mut Scratch::default());
        }
        record
    };
    let weights_of = |versions: &[&Arc<VersionedWeight>]| {
        let (mut window, noise) = open(&selector);
        for (offset, weight) in (100..).zip(versions) {
            window.push(scored_with(offset, weight), weight, &selector, &noise);
        }
        let closed = window.close(CloseReason::Idle, &selector, &noise, &target);
        let weights: Vec<_> = closed.selected.iter().map(|row| row.score.log_importance_weight).collect();
        (closed.summary.raw_version, weights, closed.summary.diagnostics.unwrap().log_weights)
    };
    let all_old = weights_of(&[&old; 5]);
    assert_eq!(all_old.0, Some(7));
    assert_eq!(weights_of(&[&old, &old, &new, &new, &old]), all_old);
    let all_new = weights_of(&[&new; 5]);
    assert_ne!(all_new.1, all_old.1);
    assert_eq!(weights_of(&[&new, &old, &old, &new, &old]), all_new);
}

/// The random sample that a selection is compared with has its share of the documents, whatever is selected.
#[test]
fn the_baseline_is_a_sample_of_all_documents() {
    let model = model();
    let weight = weight(&model);
    let selector = selector("0.25");
    let policy = WindowPolicy { max_documents: 4_000, ..policy() };
    let at = TopicPartition::new("docs", 1);
    let noise = Noise::new(selector.seed, &at);
    let mut window = OpenWindow::new(at, 100, &policy, &selector, opening(&Arc::new(Division::whole())));
    for offset in 100..4_100 {
        let text = if offset % 4 == 0 { "good words only" } else { "bad noise bad" };
        window.push(record(offset, text, &model), &weight, &selector, &noise);
    }
    // Five n-grams each; five standard errors of a sum of 4,000 Bernoulli(0.25) are 137.
    let sampled = window.statistics.baseline.total() / 5;
    assert!((863..1_137).contains(&sampled), "{sampled} of 4,000");
    let summary = window.close(CloseReason::Documents, &selector, &noise, &model.target_distribution()).summary;
    let (selected, random) = (summary.kl_reduction.unwrap(), summary.random_kl_reduction.unwrap());
    assert!(selected > random + 0.1 && random.abs() < 0.05, "{selected} against {random}");
}

/// A window with losses is the one without, whose log weights have what losses add: the same documents, keys and probabilities.
#[test]
fn what_a_loss_adds_counts_as_if_it_were_of_the_text() {
    let model = model();
    let weight = weight(&model);
    let term = LossTerm { coefficient: 1.5, strategy: LossStrategy::Quadratic, low: 0.0, high: 8.0 };
    let plain = selector("0.3");
    let decided = |selector: &SelectorSettings, change: &dyn Fn(i64, &mut Score)| {
        let (mut window, noise) = open(selector);
        for offset in 100..120 {
            let mut record = record(offset, "good words only in bad noise", &model);
            if let Ok(scored) = &mut record.outcome {
                change(offset, &mut scored.score);
            }
            window.push(record, &weight, selector, &noise);
        }
        window.close(CloseReason::Idle, selector, &noise, &model.target_distribution())
    };
    let loss = |offset: i64| (offset % 4 != 0).then_some((offset - 100) as f64 / 2.0);
    let with_losses =
        decided(&SelectorSettings { loss: Some(term), ..plain.clone() }, &|offset, score| score.loss = loss(offset));
    let added = decided(&plain, &|offset, score| score.log_importance_weight += term.added(loss(offset)));
    assert_eq!(with_losses.summary.threshold, added.summary.threshold);
    assert_eq!(with_losses.summary.diagnostics, added.summary.diagnostics);
    assert_eq!((with_losses.selected.len(), added.selected.len()), (6, 6));
    for (with_loss, added) in with_losses.selected.iter().zip(&added.selected) {
        assert_eq!((with_loss.offset, with_loss.selection_key), (added.offset, added.selection_key));
        assert_eq!(with_loss.inclusion_probability, added.inclusion_probability);
        assert_eq!(with_loss.loss_weight, Some(term.log_weight(loss(with_loss.offset))));
        assert_eq!((added.loss_weight, with_loss.score.loss), (None, loss(with_loss.offset)));
    }
}

/// Thriftily: documents are passed over by what the window held before their batch, and counted beside it. Also how many.
fn close_in_batches(
    texts: &[String],
    per_batch: usize,
    selector: &SelectorSettings,
    is_thrifty: bool,
) -> (ClosedWindow, usize) {
    let model = model();
    let weight = weight(&model);
    let (mut window, noise) = open(selector);
    let mut n_passed_over = 0;
    for (batch, texts) in texts.chunks(per_batch).enumerate() {
        let mut tallies = [(); 2].map(|()| WindowTally::zero(BUCKETS as usize));
        let records = texts.iter().zip(100 + (batch * per_batch) as i64..).map(|(text, offset)| {
            let mut record = record(offset, text, &model);
            let Ok(scored) = &mut record.outcome else { panic!("a document") };
            if is_thrifty {
                let tally = tallies[offset as usize % 2].of_document(offset, selector, &noise);
                model.featuriser.for_each_chunk(text, &mut Scratch::default(), |buckets| tally.add_buckets(buckets));
                scored.is_counted = true;
                let total_log_weight = selector.total_log_weight(&scored.score, &model.featuriser);
                if !window.might_select(selector.key(&noise, offset, total_log_weight)) {
                    let source = scored.content.source().map(str::to_owned);
                    (scored.content, scored.buckets) = (Content::PassedOver { source }, None);
                    n_passed_over += 1;
                }
            }
            record
        });
        let records: Vec<_> = records.collect();
        tallies.iter().for_each(|tally| window.add(tally));
        records.into_iter().for_each(|record| drop(window.push(record, &weight, selector, &noise)));
    }
    (window.close(CloseReason::Idle, selector, &noise, &model.target_distribution()), n_passed_over)
}

#[test]
fn most_documents_of_a_full_window_are_passed_over() {
    let texts: Vec<String> = (1..=20).map(|n| format!("good{}", " bad".repeat(n))).collect();
    let (closed, n_passed_over) = close_in_batches(&texts, 4, &selector("0.1"), true);
    // Three are held, and the best come first.
    assert!((8..=16).contains(&n_passed_over), "{n_passed_over} of 20");
    assert_eq!(closed.summary.n_rejected, 18);
}

proptest! {
    #[test]
    fn what_was_passed_over_would_not_have_been_selected(
        texts in proptest::collection::vec("(good|bad|noise| ){1,12}", 1..20),
        per_batch in 1usize..6,
    ) {
        let selector = selector("0.1");
        let (plain, _) = close_in_batches(&texts, texts.len(), &selector, false);
        let (thrifty, _) = close_in_batches(&texts, per_batch, &selector, true);
        prop_assert_eq!(&thrifty.summary, &plain.summary);
        prop_assert_eq!(&thrifty.selected, &plain.selected);
        prop_assert_eq!((&thrifty.raw_counts, &thrifty.selected_counts), (&plain.raw_counts, &plain.selected_counts));
        prop_assert_eq!(thrifty.sources.top(20), plain.sources.top(20));
    }

    /// A forecast from the index alone names the windows that the records come to belong to.
    #[test]
    fn windows_are_known_before_the_records(
        records in proptest::collection::vec((proptest::option::of(0i64..6_000), 0u64..4_000), 1..80),
        from in 0usize..40,
    ) {
        let (policy, selector) = (policy(), selector("0.1"));
        let weight = weight(&model());
        let (mut window, noise) = open(&selector);
        let (mut forecast, mut n_closed) = (None, 0);
        for (i, &(record_timestamp_ms, payload_bytes)) in records.iter().enumerate() {
            if i == from.min(records.len() - 1) {
                (forecast, n_closed) = (Some(Forecast::from(window.extent())), 0);
            }
            if window.extent().closes_before(record_timestamp_ms, &policy) {
                (window, n_closed) = (open(&selector).0, n_closed + 1);
            }
            if let Some(forecast) = &mut forecast {
                prop_assert_eq!(forecast.next(record_timestamp_ms, payload_bytes, &policy), n_closed);
            }
            let record = ScoredRecord { record_timestamp_ms, payload_bytes, ..dead(100 + i as i64) };
            window.push(record, &weight, &selector, &noise);
            if window.extent().closes_now(&policy).is_some() {
                (window, n_closed) = (open(&selector).0, n_closed + 1);
            }
        }
    }
}
