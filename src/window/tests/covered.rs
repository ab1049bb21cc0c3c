//! Windows over strata, beside the selection of files.

use std::convert::Infallible;

use super::*;
use crate::select::{
    BudgetRounding, CoverageRequest, CoverageSelector, CoverageSettings, Criterion, Cutoff, DocumentScores, Tail,
    Within, select_coverage,
};

/// `cutoff`: by the weight, by the importance itself or by another field.
pub(super) fn covering(within: Within, cutoff: Option<Criterion>, strata: u32, fraction: &str) -> SelectorSettings {
    let (tail, cutoff_by) = (Tail::Low, cutoff.clone().unwrap_or(Criterion::Weight));
    let cutoff = cutoff.map(|_| Cutoff { rate: "0.2".parse().unwrap(), tail });
    let settings = CoverageSettings { strata, cutoff, within, clip: 0.0 };
    let importance = Criterion::Field("hard".to_owned());
    let coverage = Some(CoverageSelector { settings, importance, cutoff_by });
    SelectorSettings { coverage, ..selector(fraction) }
}

fn criterion() -> impl Strategy<Value = Criterion> {
    let field = |name: &str| Just(Criterion::Field(name.to_owned()));
    prop_oneof![Just(Criterion::Weight), field("hard"), field("noisy")]
}

proptest! {
    /// The same documents, probabilities and strata as the pure selection that files use, with the noise of the positions.
    #[test]
    fn a_window_over_strata_equals_the_selection_of_files(
        hard in proptest::collection::vec(proptest::option::weighted(0.9, -3i32..9), 0..20),
        is_uniform in any::<bool>(),
        cutoff in proptest::option::of(criterion()),
        has_pools in any::<bool>(),
        strata in 1u32..6,
        tenths in 1u32..=10,
    ) {
        let model = model();
        let weight = weight(&model);
        let within = if is_uniform { Within::Uniform } else { Within::Weighted };
        let selector = covering(within, cutoff.clone(), strata, &format!("{}.{}", tenths / 10, tenths % 10));
        let shares = if has_pools { vec![("s1".to_owned(), 0.5)] } else { vec![] };
        let quotas = Quotas { sources: shares.into_iter().collect(), ..Quotas::default() };
        let division = Arc::new(Division::of(&quotas, &model));
        let at = TopicPartition::new("docs", 1);
        let noise = Noise::new(selector.seed, &at);
        let mut window = OpenWindow::new(at, 100, &policy(), &selector, opening(&division));
        let mut rows = Vec::new();
        let mut candidates = Vec::new();
        for (offset, hard) in (100..).zip(&hard) {
            let text = "good bad noise ".repeat(1 + offset as usize % 4);
            let mut record = record(offset, &text, &model);
            let scored = record.outcome.as_mut().unwrap();
            let hard = hard.map(f64::from);
            let noisy = (offset * 7 % 5) as f64;
            let of_field = |field: &str| if field == "hard" { hard.unwrap_or(f64::NAN) } else { noisy };
            let fields = selector.coverage.as_ref().unwrap().fields();
            scored.numbers = fields.map(|field| field.map_or(f64::NAN, of_field));
            let total = selector.total_log_weight(&scored.score, &model.featuriser);
            if let Some(hard) = hard {
                let by = match &cutoff {
                    Some(Criterion::Field(field)) => of_field(field),
                    _ => total,
                };
                candidates.push((offset, hard, total, by));
            }
            rows.extend(window.push(record, &weight, &selector, &noise));
        }
        prop_assert_eq!(rows.len(), candidates.len());
        prop_assert!(window.might_select(f64::MIN) && window.is_divided());
        let target = model.target_distribution();
        let mut kept = Vec::new();
        let show = |numbers: &[u32], look: &mut dyn FnMut(&SpooledRow)| -> Result<_, Infallible> {
            kept = numbers.iter().map(|number| rows[*number as usize].clone()).collect();
            kept.iter().for_each(look);
            Ok(())
        };
        let Ok(closed) = window.close_with(CloseReason::Idle, &selector, &noise, &target, show);
        prop_assert!(closed.selected.is_empty() && closed.waiting.len() == kept.len());
        let joined = closed.waiting.iter().zip(kept).map(|(decision, row)| decision.of(row, &selector));
        let selected: Vec<SelectedDocument> = joined.collect();

        let coverage = selector.coverage.as_ref().unwrap().settings;
        let pool = |offset: i64| usize::from(has_pools && offset % 3 == 1);
        let mut pools = vec![Vec::new(); 1 + usize::from(has_pools)];
        let numbered = candidates.iter().enumerate();
        numbered.for_each(|(i, (offset, ..))| pools[pool(*offset)].push(i as u32));
        let count = selector.fraction.of(hard.len() as u64, noise.rounding(100));
        let pool_shares = if has_pools { vec![0.5, 0.5] } else { vec![1.0] };
        let request = CoverageRequest {
            count,
            settings: coverage,
            pool_shares: &pool_shares,
            target_shares: &[1.0],
            rounding: BudgetRounding::Random { noise: &noise, from: 100 },
        };
        let key = |i: u32, _| {
            let (offset, _, total, _) = candidates[i as usize];
            (if is_uniform { 0.0 } else { total }) + noise.gumbel(offset)
        };
        let scores = DocumentScores {
            cutoff: &|i| candidates[i as usize].3,
            importance: &|i| candidates[i as usize].1,
            key: &key,
        };
        let expected = select_coverage(&request, pools, &scores);
        let expected_picks: Vec<_> =
            expected.selection.picks.iter().map(|pick| (candidates[pick.document as usize].0, pick.key)).collect();
        let picks: Vec<_> = selected.iter().map(|row| (row.offset, row.selection_key)).collect();
        prop_assert_eq!(picks, expected_picks);
        let chances = division.chances(selector.fraction, hard.len() as u64, &expected.sizes());
        for (row, pick) in selected.iter().zip(&expected.selection.picks) {
            let (offset, hard, total, _) = candidates[pick.document as usize];
            let cell = expected.cell(pool(offset), hard).unwrap();
            let probability = expected.inclusion_probability(&selector, within, cell, |_| total);
            prop_assert_eq!(row.inclusion_probability, chances[pool(offset)] * probability);
            prop_assert_eq!(&row.document.id, &offset.to_string());
        }
        let mut counts = NgramCounts::zero(BUCKETS as usize);
        for row in &selected {
            counts.add_text(&row.document.text, &model.featuriser, &mut Scratch::default());
        }
        prop_assert_eq!(&closed.selected_counts, &[counts]);
        let s = &closed.summary;
        let summary = s.coverage.as_ref().unwrap();
        prop_assert_eq!(summary.n_without_number as usize, hard.len() - candidates.len());
        prop_assert_eq!((summary.n_cut as usize, summary.cut_at), (expected.cut.len(), expected.cut_at));
        prop_assert_eq!(summary.shortfall, expected.shortfall);
        let sums = summary.pools.iter().flat_map(|pool| &pool.strata);
        let sums = sums.fold((0, 0), |(n, m), stratum| (n + stratum.n_documents, m + stratum.n_selected));
        prop_assert_eq!(sums, (candidates.len() as u64 - summary.n_cut, s.n_selected));
        let of_pool = |source: Option<&str>| s.selected_of_pools().filter(|of| of.0 == source).map(|of| of.1).sum::<u64>();
        let n_selected = |number| selected.iter().filter(|row| pool(row.offset) == number).count() as u64;
        prop_assert_eq!((of_pool(None), of_pool(Some("s1"))), (n_selected(0), n_selected(1)));
        prop_assert_eq!(s.n_records, s.n_selected + s.n_rejected + s.n_dead_letters);
    }
}

/// A source whose share is less than a document of every window gets it over many of them, and what was selected stands for all that
/// came.
#[test]
fn a_small_share_is_kept_over_many_windows() {
    let model = model();
    let (weight, target) = (weight(&model), model.target_distribution());
    let quotas = Quotas { sources: [("s1".to_owned(), 0.05)].into_iter().collect(), ..Quotas::default() };
    let division = Arc::new(Division::of(&quotas, &model));
    let score = weight.weight.score("good words", &mut Scratch::default());
    let record = |offset: i64| {
        let source = Some(format!("s{}", offset % 3));
        let (id, text) = (offset.to_string(), "good words".to_owned());
        let scored = ScoredDocument {
            content: Content::Whole(Document { id, text, source, timestamp_ms: None, metadata: None }),
            score,
            other_weights: Vec::new(),
            numbers: [1.0, f64::NAN],
            point: None,
            pool: None,
            is_counted: true,
            refused_by: None,
            fingerprint: None,
            buckets: None,
        };
        ScoredRecord { offset, record_timestamp_ms: None, payload_bytes: 1, outcome: Ok(scored) }
    };
    const WINDOWS: u64 = 1_000;
    let (mut selected, mut estimated) = (0.0, 0.0);
    for seed in 0..WINDOWS {
        let selector = SelectorSettings { seed, ..covering(Within::Uniform, None, 1, "0.1") };
        let at = TopicPartition::new("docs", 1);
        let noise = Noise::new(seed, &at);
        let mut window = OpenWindow::new(at, 100, &policy(), &selector, opening(&division));
        let rows: Vec<_> = (100..150).filter_map(|n| window.push(record(n), &weight, &selector, &noise)).collect();
        let show = |numbers: &[u32], look: &mut dyn FnMut(&SpooledRow)| -> Result<_, Infallible> {
            numbers.iter().for_each(|number| look(&rows[*number as usize]));
            Ok(())
        };
        let Ok(closed) = window.close_with(CloseReason::Idle, &selector, &noise, &target, show);
        assert_eq!(closed.waiting.len(), 5);
        for decision in closed.waiting.iter().filter(|decision| decision.offset % 3 == 1) {
            selected += 1.0 / WINDOWS as f64;
            estimated += decision.sample_weight / WINDOWS as f64;
        }
    }
    // One in four windows selects one of its 17 documents. Five standard errors: 0.0137 of the number, 0.93 of the sum.
    assert!((selected - 0.25f64).abs() < 0.0685, "{selected} a window instead of 0.25");
    assert!((estimated - 17.0f64).abs() < 4.65, "{estimated} instead of 17");
}

/// Only numbers are held, open and closed.
#[test]
fn what_waits_elsewhere_is_not_held() {
    let model = model();
    let weight = weight(&model);
    let selector = covering(Within::Weighted, None, 3, "0.05");
    let (mut window, noise) = open(&selector);
    let empty = window.held_bytes();
    let text = "good words ".repeat(2_000);
    let mut rows = Vec::new();
    for offset in 100..120 {
        let mut record = record(offset, &text, &model);
        record.outcome.as_mut().unwrap().numbers[0] = 1.0;
        rows.extend(window.push(record, &weight, &selector, &noise));
    }
    let held = window.held_bytes() - empty;
    assert!(rows.len() == 20 && held < 20 * 200, "{held} bytes are held of 20 texts of {}", text.len());
    let show = |numbers: &[u32], look: &mut dyn FnMut(&SpooledRow)| -> Result<_, Infallible> {
        numbers.iter().for_each(|number| look(&rows[*number as usize]));
        Ok(())
    };
    let Ok(closed) = window.close_with(CloseReason::Idle, &selector, &noise, &model.target_distribution(), show);
    let held = closed.held_bytes();
    assert!(closed.waiting.len() == 1 && held < 20 * 200, "{held} bytes are held of a text of {}", text.len());
}

/// However many there are: numbers of a candidate, what deciding takes, and an eighth of the numbers for more.
#[test]
fn a_candidate_takes_some_fifty_bytes() {
    let model = model();
    let weight = weight(&model);
    let selector = covering(Within::Weighted, None, 3, "0.1");
    let (mut window, noise) = open(&selector);
    let empty = window.held_bytes();
    let n = 50_000;
    let score = weight.weight.score("good words", &mut Scratch::default());
    for offset in 100..100 + n {
        let (id, text) = (offset.to_string(), "good words".to_owned());
        let document = Document { id, text, source: None, timestamp_ms: None, metadata: None };
        let scored = ScoredDocument {
            content: Content::Whole(document),
            score,
            other_weights: Vec::new(),
            numbers: [1.0, f64::NAN],
            pool: None,
            point: None,
            is_counted: true,
            refused_by: None,
            fingerprint: None,
            buckets: None,
        };
        let record = ScoredRecord { offset, record_timestamp_ms: None, payload_bytes: 1, outcome: Ok(scored) };
        assert!(window.push(record, &weight, &selector, &noise).is_some());
    }
    let a_candidate = (window.held_bytes() - empty) as f64 / n as f64;
    assert!((45.0..50.0).contains(&a_candidate), "{a_candidate} bytes");
}

#[test]
fn rows_that_cannot_be_read_decide_nothing() {
    let model = model();
    let selector = covering(Within::Uniform, None, 3, "1");
    let (mut window, noise) = open(&selector);
    let mut record = record(100, "good words", &model);
    record.outcome.as_mut().unwrap().numbers[0] = 1.0;
    assert!(window.push(record, &weight(&model), &selector, &noise).is_some());
    let fail = |_: &[u32], _: &mut dyn FnMut(&SpooledRow)| Err("gone");
    let closed = window.close_with(CloseReason::Idle, &selector, &noise, &model.target_distribution(), fail);
    assert_eq!(closed.err(), Some("gone"));
}
