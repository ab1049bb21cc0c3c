//! Windows over strata, beside the selection of files.

use std::collections::BTreeMap;
use std::convert::Infallible;

use super::*;
use crate::score::Target;
use crate::select::{
    BudgetRounding, CoverageRequest, CoverageSelector, CoverageSettings, CoveredPool, Criterion, Cutoff,
    DocumentScores, EdgeTally, Edges, EdgesFrom, FixedCutoff, FixedEdges, QuantileSketch, SketchVersion,
    StrataRounding, Tail, Within, select_coverage,
};

/// `cutoff`: by the weight, by the importance itself or by another field.
pub(super) fn covering(within: Within, cutoff: Option<Criterion>, strata: u32, fraction: &str) -> SelectorSettings {
    let (tail, cutoff_by) = (Tail::Low, cutoff.clone().unwrap_or(Criterion::Weight));
    let cutoff = cutoff.map(|_| Cutoff { rate: "0.2".parse().unwrap(), tail });
    let settings = CoverageSettings { strata, cutoff, within, clip: 0.0 };
    let importance = Criterion::Field("hard".to_owned());
    let coverage = Some(CoverageSelector {
        settings,
        importance,
        cutoff_by,
        edges_from: EdgesFrom::Window,
        strata_rounding: StrataRounding::Random,
    });
    SelectorSettings { coverage, ..selector(fraction) }
}

/// As it is, and as it was before it was recorded.
fn strata_rounding() -> impl Strategy<Value = StrataRounding> {
    prop_oneof![3 => Just(StrataRounding::Random), 1 => Just(StrataRounding::Down)]
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
        strata_rounding in strata_rounding(),
    ) {
        let model = model();
        let weight = weight(&model);
        let within = if is_uniform { Within::Uniform } else { Within::Weighted };
        let mut selector = covering(within, cutoff.clone(), strata, &format!("{}.{}", tenths / 10, tenths % 10));
        selector.coverage.as_mut().unwrap().strata_rounding = strata_rounding;
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
            strata_rounding,
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
        let n_documents = hard.len() as u64;
        let mut chances = expected.chances(strata_rounding, &division, selector.fraction, n_documents);
        if strata_rounding == StrataRounding::Down {
            let of_pool = |pool: &CoveredPool| pool.strata.iter().map(|stratum| stratum.documents).sum::<u64>();
            let sizes: Vec<u64> = expected.pools.iter().map(of_pool).collect();
            let of_pools = division.chances(selector.fraction, n_documents, &sizes);
            chances = of_pools.into_iter().flat_map(|chance| vec![chance; strata as usize]).collect();
        }
        for (row, pick) in selected.iter().zip(&expected.selection.picks) {
            let (offset, hard, total, _) = candidates[pick.document as usize];
            let cell = expected.cell(pool(offset), hard).unwrap();
            let probability = expected.inclusion_probability(&selector, within, cell, Some(pick.target), |_| total);
            prop_assert_eq!(row.inclusion_probability, chances[cell] * probability);
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

/// How the documents of a window are, and what divides it.
#[derive(Debug, Clone)]
struct Case {
    hard: Vec<Option<f64>>,
    selector: SelectorSettings,
    has_pools: bool,
    n_targets: usize,
}

fn case() -> impl Strategy<Value = Case> {
    let hard = proptest::collection::vec(proptest::option::weighted(0.9, (-30i32..90).prop_map(f64::from)), 0..100);
    let cutoff = proptest::option::of(criterion());
    let shape = (any::<bool>(), any::<bool>(), 1usize..3, 1u32..6, 1u32..=10);
    let importance = prop_oneof![3 => Just(Criterion::Field("hard".to_owned())), 1 => Just(Criterion::Weight)];
    (hard, cutoff, importance, shape, any::<bool>(), 0.0f64..0.4, strata_rounding()).prop_map(
        |(hard, cutoff, importance, shape, is_held_out, clip, strata_rounding)| {
            let (is_uniform, has_pools, n_targets, strata, tenths) = shape;
            let within = if is_uniform { Within::Uniform } else { Within::Weighted };
            let mut selector = covering(within, cutoff, strata, &format!("{}.{}", tenths / 10, tenths % 10));
            let coverage = selector.coverage.as_mut().unwrap();
            (coverage.importance, coverage.settings.clip, coverage.edges_from) = (importance, clip, EdgesFrom::Stream);
            coverage.strata_rounding = strata_rounding;
            // As the daemon refuses it.
            let n_targets = if coverage.problem_of_targets().is_some() { 1 } else { n_targets };
            selector.holdout = is_held_out.then(|| "0.3".parse().unwrap());
            Case { hard, selector, has_pools, n_targets }
        },
    )
}

impl Case {
    fn model(&self) -> Model {
        let model = model();
        let target = |i: usize| Target { name: format!("t{i}"), proportion: [0.3, 0.7][i], ..model.targets[0].clone() };
        match self.n_targets {
            1 => model,
            n => Model { targets: (0..n).map(target).collect(), ..model },
        }
    }

    fn division(&self) -> Arc<Division> {
        let shares = if self.has_pools { vec![("s1".to_owned(), 0.5)] } else { vec![] };
        let quotas = Quotas { sources: shares.into_iter().collect(), ..Quotas::default() };
        Arc::new(Division::of(&quotas, &self.model()))
    }

    fn noise(&self) -> Noise {
        Noise::new(self.selector.seed, &TopicPartition::new("docs", 1))
    }

    /// The window, and what it has selected, wherever that has waited.
    fn decide(&self, edges: Option<&Arc<FixedEdges>>) -> (ClosedWindow, Vec<SelectedDocument>) {
        let (model, division, noise, selector) = (self.model(), self.division(), self.noise(), &self.selector);
        let weights = ImportanceWeight::of_targets(&model);
        let weight = VersionedWeight::of_targets(WeightVersion::default(), weights, None);
        let policy = WindowPolicy { max_documents: 100, ..policy() };
        let opening = Opening { edges, ..opening(&division) };
        let mut window = OpenWindow::new(TopicPartition::new("docs", 1), 100, &policy, selector, opening);
        let mut rows = Vec::new();
        let fields = selector.coverage.as_ref().unwrap().fields();
        for (offset, hard) in (100..).zip(&self.hard) {
            let mut record = record(offset, &"good bad noise ".repeat(1 + offset as usize % 4), &model);
            let scored = record.outcome.as_mut().unwrap();
            let of_field =
                |field: &str| if field == "hard" { hard.unwrap_or(f64::NAN) } else { (offset * 37 % 101) as f64 };
            scored.numbers = fields.map(|field| field.map_or(f64::NAN, of_field));
            scored.other_weights = vec![-1.0 / offset as f64; self.n_targets - 1];
            scored.refused_by = (offset % 11 == 3).then_some(0);
            rows.extend(window.push(record, &weight, selector, &noise));
        }
        assert!(window.is_divided() && window.held_bytes() > 0);
        assert!(edges.is_none() || rows.is_empty());
        let mut kept = Vec::new();
        let show = |numbers: &[u32], look: &mut dyn FnMut(&SpooledRow)| -> Result<_, Infallible> {
            kept = numbers.iter().map(|number| rows[*number as usize].clone()).collect();
            kept.iter().for_each(look);
            Ok(())
        };
        let Ok(mut closed) = window.close_with(CloseReason::Idle, selector, &noise, &model.target_distribution(), show);
        let mut selected = std::mem::take(&mut closed.selected);
        selected.extend(closed.waiting.drain(..).zip(kept).map(|(decision, row)| decision.of(row, selector)));
        (closed, selected)
    }

    /// What the exact window has come to, as if it had been known before; any edges of pools without documents.
    fn edges_of(&self, summary: &CoverageSummary) -> Arc<FixedEdges> {
        let of = SketchVersion { version: 7, n_documents: 5_000 };
        let mut summary = CoverageSummary { edges: Some(of), ..summary.clone() };
        summary.pools.iter_mut().for_each(|pool| pool.range = pool.range.or(Some((0.0, 1.0))));
        Arc::new(summary.fixed_edges(&self.selector.coverage.as_ref().unwrap().settings).unwrap())
    }
}

proptest! {
    /// Decided in one pass, with the edges and the cut-off that the exact form has: the same documents, keys, probabilities, splits,
    /// counts and strata, and the same addition to the sketches. Documents with the score of the cut-off stay together in one pass:
    /// such windows are left out.
    #[test]
    fn one_pass_with_the_edges_of_the_exact_form_is_the_exact_form(case in case()) {
        let (exact, expected) = case.decide(None);
        let summary = exact.summary.coverage.clone().unwrap();
        prop_assert_eq!(summary.edges, None);
        let edges = case.edges_of(&summary);
        let (one_pass, selected) = case.decide(Some(&edges));
        let now = one_pass.summary.coverage.clone().unwrap();
        prop_assert_eq!(now.edges, Some(edges.of));
        prop_assume!(now.n_cut == summary.n_cut);
        prop_assert_eq!(&selected, &expected);
        prop_assert_eq!(&one_pass.selected_counts, &exact.selected_counts);
        prop_assert_eq!(&one_pass.edges, &exact.edges);
        let n_placed = now.pools.iter().flat_map(|pool| &pool.strata).map(|stratum| stratum.n_documents).sum::<u64>();
        prop_assert_eq!(one_pass.edges.map(|tally| tally.n_documents()), Some(now.n_cut + n_placed));
        let with_ranges = |of: &CoverageSummary| {
            let mut of = CoverageSummary { edges: None, ..of.clone() };
            of.pools.iter_mut().for_each(|pool| pool.range = pool.range.or(Some((0.0, 1.0))));
            of
        };
        prop_assert_eq!(with_ranges(&now), with_ranges(&summary));
        let without = |summary: &WindowSummary| WindowSummary { coverage: None, ..summary.clone() };
        prop_assert_eq!(without(&one_pass.summary), without(&exact.summary));
        // What is recorded is enough to decide it again.
        let recorded = now.fixed_edges(&case.selector.coverage.as_ref().unwrap().settings).unwrap();
        prop_assert_eq!(&recorded, &*edges);
        prop_assert_eq!(&case.decide(Some(&Arc::new(recorded))).1, &selected);
    }

    /// Whatever the edges are: documents beyond them are in the outermost strata, as if their numbers ended there.
    #[test]
    fn documents_beyond_the_edges_are_in_the_outermost_strata(case in case(), low in -30i32..90, width in 0i32..60) {
        let mut case = case;
        let coverage = case.selector.coverage.as_mut().unwrap();
        coverage.importance = Criterion::Field("hard".to_owned());
        coverage.settings.clip = 0.0;
        if coverage.settings.cutoff.is_some() {
            coverage.cutoff_by = Criterion::Field("noisy".to_owned());
        }
        let (low, high) = (f64::from(low), f64::from(low + width));
        let ended = Case { hard: case.hard.iter().map(|hard| hard.map(|hard| hard.clamp(low, high))).collect(), ..case.clone() };
        let (exact, expected) = ended.decide(None);
        let edges = case.edges_of(exact.summary.coverage.as_ref().unwrap());
        let (one_pass, selected) = case.decide(Some(&edges));
        prop_assert_eq!(selected, expected);
        let strata = |of: &ClosedWindow| of.summary.coverage.as_ref().unwrap().pools.iter().map(|pool| pool.strata.clone()).collect::<Vec<_>>();
        prop_assert_eq!(strata(&one_pass), strata(&exact));
    }
}

/// What was selected of a stratum stands for all its documents, however small it is: also where a window selects fewer
/// documents than it has strata, of which some go empty then.
#[test]
fn the_horvitz_thompson_total_of_every_stratum_is_its_size() {
    const SEEDS: u64 = 3_000;
    let cases = [
        // Strata of 6 and 5 documents, one more is refused by the filter; one document is selected, or at times two.
        (12, [0, 1, 1, 0, 1, 0, 1, 0, 1, 0, 1], Within::Uniform, false, 1),
        (12, [0, 1, 1, 0, 1, 0, 1, 0, 1, 0, 1], Within::Weighted, false, 1),
        (29, [0, 1, 1, 2, 1, 2, 3, 0, 1, 1, 1], Within::Uniform, false, 1),
        (29, [0, 1, 1, 2, 1, 2, 3, 0, 1, 1, 1], Within::Uniform, true, 1),
        (29, [0, 1, 1, 2, 1, 2, 3, 0, 1, 1, 1], Within::Weighted, true, 2),
    ];
    for (n, pattern, within, has_pools, n_targets) in cases {
        let hard = |i: usize| pattern[i % 11];
        let numbers = (0..n).map(|i| Some(f64::from(hard(i)))).collect();
        let mut case = Case { hard: numbers, selector: covering(within, None, 4, "0.1"), has_pools, n_targets };
        // Weights are some hundred nats apart: by much less the heaviest would always be chosen, and 1 / p of the others never be seen.
        case.selector.temperature = 400.0;
        let mut sizes: BTreeMap<(bool, i32), f64> = BTreeMap::new();
        let cell = |offset: i64| (has_pools && offset % 3 == 1, hard((offset - 100) as usize));
        let candidates = (100..100 + n as i64).filter(|offset| offset % 11 != 3);
        candidates.for_each(|offset| *sizes.entry(cell(offset)).or_default() += 1.0);
        let mut sums: BTreeMap<(bool, i32), (f64, f64)> = BTreeMap::new();
        for seed in 0..SEEDS {
            case.selector.seed = seed;
            let mut totals: BTreeMap<(bool, i32), f64> = BTreeMap::new();
            for row in case.decide(None).1 {
                *totals.entry(cell(row.offset)).or_default() += row.inclusion_probability.recip();
            }
            for (cell, total) in totals {
                let (sum, squares) = sums.entry(cell).or_default();
                *sum += total;
                *squares += total * total;
            }
        }
        for (cell, size) in sizes {
            let (sum, squares) = sums.get(&cell).copied().unwrap_or_default();
            let mean = sum / SEEDS as f64;
            let standard_error = ((squares / SEEDS as f64 - mean * mean).max(0.0) / SEEDS as f64).sqrt();
            // Where one document is drawn by weight, 1 / p has no finite variance, and what is seen of it is too
            // little.
            let limit = match within {
                Within::Uniform => 4.0 * standard_error + 1e-9,
                Within::Weighted => 5.0 * standard_error + 0.05 * size,
            };
            let is_near = (mean - size).abs() <= limit;
            assert!(is_near, "{cell:?} of {within:?}: {mean} of {size}, standard error {standard_error}");
        }
    }
}

/// As of a plain selector: what is beaten in its stratum is given up at once, and what the cut-off removes never held.
#[test]
fn one_pass_holds_what_may_still_be_selected() {
    let model = model();
    let weight = weight(&model);
    let mut selector = covering(Within::Weighted, Some(Criterion::Field("noisy".to_owned())), 3, "0.05");
    selector.coverage.as_mut().unwrap().edges_from = EdgesFrom::Stream;
    let noise = Noise::new(selector.seed, &TopicPartition::new("docs", 1));
    let division = Arc::new(Division::whole());
    let edges = Arc::new(FixedEdges {
        of: SketchVersion { version: 0, n_documents: 1_000 },
        cutoff: Some(FixedCutoff { tail: Tail::Low, at: 10.0 }),
        pools: vec![Edges::new(0.0, 9.0, 3)],
    });
    let opening = Opening { edges: Some(&edges), ..opening(&division) };
    let at = TopicPartition::new("docs", 1);
    let mut window = OpenWindow::new(at, 100, &policy(), &selector, opening);
    let empty = window.held_bytes();
    let text = "good words ".repeat(2_000);
    for offset in 100..120 {
        let mut record = record(offset, &text, &model);
        let scored = record.outcome.as_mut().unwrap();
        (scored.numbers, scored.buckets) = ([offset as f64 % 9.0, (offset - 100) as f64], None);
        assert!(window.push(record, &weight, &selector, &noise).is_none());
        assert!(offset > 110 || window.held_bytes() - empty < text.len(), "what is cut off is held");
    }
    // One can be selected and one sets the threshold, of each stratum.
    let held = window.held_bytes() - empty;
    assert!((2 * text.len()..7 * text.len()).contains(&held), "{held} bytes are held, a text has {}", text.len());
    let closed = window.close(CloseReason::Idle, &selector, &noise, &model.target_distribution());
    let summary = closed.summary.coverage.unwrap();
    assert_eq!((closed.selected.len(), summary.n_cut, summary.cut_at), (1, 11, Some(10.0)));
}

/// The sketches of two windows with the same edges say what one of all their documents would.
#[test]
fn windows_add_all_that_they_have_seen() {
    let case = |hard: &[f64]| Case {
        hard: hard.iter().copied().map(Some).collect(),
        selector: {
            let mut selector = covering(Within::Uniform, Some(Criterion::Field("hard".to_owned())), 3, "0.5");
            selector.coverage.as_mut().unwrap().edges_from = EdgesFrom::Stream;
            selector
        },
        has_pools: false,
        n_targets: 1,
    };
    // The third of them is refused by the filter.
    let (closed, _) = case(&[1.0, 2.0, 99.0, 3.0, 4.0, 5.0]).decide(None);
    let sketch = |numbers: &[f64]| {
        let mut sketch = QuantileSketch::default();
        numbers.iter().for_each(|number| sketch.add(*number));
        sketch
    };
    let all = sketch(&[1.0, 2.0, 3.0, 4.0, 5.0]);
    let expected = EdgeTally::new(&Division::whole(), all, vec![sketch(&[2.0, 3.0, 4.0, 5.0])]);
    assert_eq!((closed.summary.coverage.unwrap().cut_at, closed.edges), (Some(1.0), Some(expected)));
    let mut window = case(&[1.0]);
    window.selector.coverage.as_mut().unwrap().edges_from = EdgesFrom::Window;
    assert_eq!(window.decide(None).0.edges, None);
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
