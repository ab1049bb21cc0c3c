//! Selections are samples with the probabilities that they say: checked against enumeration, over 20,000 seeds.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::Arc;

use winnowd::features::{BucketList, Featuriser};
use winnowd::record::{Document, TopicPartition};
use winnowd::score::{ImportanceWeight, Model, NgramCounts, Score, Side, Target, VersionedWeight, WeightVersion};
use winnowd::select::{Division, Noise, Quotas, SelectorKind, SelectorSettings};
use winnowd::window::{
    CloseReason, ClosedWindow, Content, OpenWindow, Opening, ScoredDocument, ScoredRecord, WindowPolicy,
};

const SEEDS: u64 = 20_000;
const TEMPERATURE: f64 = 2.0;
/// Two are equal, and the heaviest is e² times as likely as the lightest at the temperature above.
const LOG_WEIGHTS: [f64; 8] = [-1.0, 0.5, 3.0, 0.0, 1.5, 1.5, -0.5, 2.0];

struct Setting {
    division: Arc<Division>,
    /// Of every document, for the targets but the first.
    other_weights: Vec<Vec<f64>>,
    model: Model,
    weight: Arc<VersionedWeight>,
    policy: WindowPolicy,
    /// Of every document.
    buckets: BucketList,
}

impl Setting {
    fn new() -> Self {
        let featuriser = Featuriser { buckets: 2, ..Featuriser::default() };
        let side = || Side::of(NgramCounts::from_vec(vec![1, 1]));
        let model = Model::of_one_target(featuriser, side(), side()).unwrap();
        let weight = VersionedWeight::pinned(ImportanceWeight::of_targets(&model).remove(0));
        let division = Arc::new(Division::whole());
        let other_weights = vec![Vec::new(); LOG_WEIGHTS.len()];
        let policy = WindowPolicy { max_documents: 100, max_bytes: u64::MAX, max_age_ms: i64::MAX };
        let mut buckets = BucketList::new(2);
        buckets.extend(&[0]);
        Setting { division, other_weights, model, weight, policy, buckets }
    }

    /// With a second target of the same share, to which the heaviest document of the first is the lightest.
    fn of_two_targets() -> Self {
        let one = Setting::new();
        let side = || Side::of(NgramCounts::from_vec(vec![1, 1]));
        let target = |name: &str| Target { name: name.into(), proportion: 0.5, side: side() };
        let model = Model { targets: vec![target("a"), target("b")], ..one.model };
        let division = Arc::new(Division::of(&Quotas::default(), &model));
        let weights = ImportanceWeight::of_targets(&model);
        let weight = VersionedWeight::of_targets(WeightVersion::default(), weights, None);
        let other_weights = LOG_WEIGHTS.map(|weight| vec![2.0 - weight]).to_vec();
        Setting { division, other_weights, model, weight, ..one }
    }

    /// One window of the eight documents, selected with this seed.
    fn select(&self, seed: u64, fraction: &str) -> ClosedWindow {
        let kind = SelectorKind::ImportanceResampling;
        let fraction = fraction.parse().unwrap();
        let selector = SelectorSettings {
            kind,
            fraction,
            unit: Default::default(),
            temperature: TEMPERATURE,
            length_normalise: false,
            min_tokens: 0,
            seed,
            quotas: Quotas::default(),
            loss: None,
            filter: None,
            holdout: None,
            coverage_sample: 0,
            coverage: None,
            sensitivity: None,
        };
        let at = TopicPartition::new("documents", 0);
        let noise = Noise::new(seed, &at);
        let opening = Opening { division: &self.division, clusters: None, edges: None, buckets: 2 };
        let mut window = OpenWindow::new(at, 0, &self.policy, &selector, opening);
        for ((offset, log_importance_weight), other_weights) in (0..).zip(LOG_WEIGHTS).zip(&self.other_weights) {
            let document =
                Document { id: String::new(), text: "x".into(), source: None, timestamp_ms: None, metadata: None };
            let score = Score { n_tokens: 1, log_importance_weight, ..Score::default() };
            let outcome = Ok(ScoredDocument {
                content: Content::Whole(document),
                score,
                other_weights: other_weights.clone(),
                numbers: [f64::NAN; 2],
                pool: None,
                point: None,
                buckets: Some(self.buckets.clone()),
                is_counted: false,
                refused_by: None,
                fingerprint: None,
            });
            let record = ScoredRecord { offset, record_timestamp_ms: None, payload_bytes: 1, outcome };
            window.push(record, &self.weight, &selector, &noise);
        }
        window.close(CloseReason::Idle, &selector, &noise, &self.model.target_distribution())
    }
}

fn weights() -> [f64; 8] {
    LOG_WEIGHTS.map(|w| (w / TEMPERATURE).exp())
}

/// Probability of every set of three, drawn one after the other without replacement in proportion to the weights: by
/// enumeration of all orders. Sets are bit masks.
fn sets_of_three() -> BTreeMap<u32, f64> {
    let w = weights();
    let total: f64 = w.iter().sum();
    let mut sets = BTreeMap::new();
    for a in 0..8 {
        for b in (0..8).filter(|&b| b != a) {
            for c in (0..8).filter(|&c| c != a && c != b) {
                let probability = w[a] / total * w[b] / (total - w[a]) * w[c] / (total - w[a] - w[b]);
                *sets.entry(1 << a | 1 << b | 1 << c).or_default() += probability;
            }
        }
    }
    sets
}

/// The 99.9 % point of chi-square (Wilson and Hilferty 1931).
fn chi_square_limit(degrees: usize) -> f64 {
    let k = degrees as f64;
    k * (1.0 - 2.0 / (9.0 * k) + 3.09 * (2.0 / (9.0 * k)).sqrt()).powi(3)
}

#[test]
fn windows_are_samples_without_replacement_in_proportion_to_the_weights() {
    let expected = sets_of_three();
    assert!((expected.values().sum::<f64>() - 1.0).abs() < 1e-12 && expected.len() == 56);
    let setting = Setting::new();
    let mut seen: BTreeMap<u32, u64> = BTreeMap::new();
    for seed in 0..SEEDS {
        let selected = setting.select(seed, "0.375").selected;
        assert_eq!(selected.len(), 3);
        *seen.entry(selected.iter().map(|row| 1 << row.offset).sum()).or_default() += 1;
    }
    // Of sets, because the documents of one selection are not independent of each other.
    let n = SEEDS as f64;
    let cells: Vec<(f64, f64)> =
        expected.iter().map(|(set, p)| (seen.get(set).copied().unwrap_or(0) as f64, n * p)).collect();
    assert!(cells.iter().all(|(_, expected)| *expected > 5.0), "too few seeds for a chi-square test");
    let chi_square: f64 = cells.iter().map(|(seen, expected)| (seen - expected).powi(2) / expected).sum();
    let limit = chi_square_limit(cells.len() - 1);
    assert!(chi_square < limit, "chi-square of sets {chi_square}, 99.9 % of samples stay below {limit}");

    for document in 0..8 {
        let holds = |set: u32| set & 1 << document != 0;
        let inclusion: f64 = expected.iter().filter(|(set, _)| holds(**set)).map(|(_, p)| p).sum();
        let times: u64 = seen.iter().filter(|(set, _)| holds(**set)).map(|(_, n)| n).sum();
        let errors = (times as f64 - n * inclusion) / (n * inclusion * (1.0 - inclusion)).sqrt();
        assert!(errors.abs() < 4.0, "document {document} was selected {times} times, {errors} standard errors off");
    }
}

/// The Horvitz–Thompson total of any number of the documents, with the probabilities of the shard, which are conditional
/// on the threshold: right on average (Duffield, Lund and Thorup 2007, "Priority sampling for estimation of arbitrary
/// subset sums"; Kool et al. 2019), also where the share is not a whole number of documents.
#[test]
fn the_horvitz_thompson_total_is_unbiased() {
    let setting = Setting::new();
    // Numbers that have nothing to do with the weights, and one document alone, the least likely one.
    let lengths = [120.0, 80.0, 15.0, 300.0, 42.0, 7.0, 999.0, 60.0];
    let lightest = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
    for fraction in ["0.375", "0.3", "0.55"] {
        let (mut sums, mut squares) = ([0.0; 2], [0.0; 2]);
        for seed in 0..SEEDS {
            let selected = setting.select(seed, fraction).selected;
            for (i, numbers) in [lengths, lightest].iter().enumerate() {
                let estimate: f64 =
                    selected.iter().map(|row| numbers[row.offset as usize] / row.inclusion_probability).sum();
                sums[i] += estimate;
                squares[i] += estimate * estimate;
            }
        }
        let n = SEEDS as f64;
        for (i, numbers) in [lengths, lightest].iter().enumerate() {
            let (mean, total) = (sums[i] / n, numbers.iter().sum::<f64>());
            let standard_error = ((squares[i] / n - mean * mean) / n).sqrt();
            let errors = (mean - total) / standard_error;
            // Tight enough to see a bias of a few per cent.
            assert!(standard_error < 0.05 * total, "fraction {fraction}: {standard_error} of {total}");
            assert!(errors.abs() < 4.0, "fraction {fraction}: {mean} instead of {total}, {errors} standard errors");
        }
    }
}

/// The same of two targets that choose in turn, two documents each: all that one window leaves to chance is the noise.
#[test]
fn the_horvitz_thompson_total_of_two_targets_is_unbiased() {
    let setting = Setting::of_two_targets();
    let (mut sum, mut squares) = (0.0, 0.0);
    for seed in 0..SEEDS {
        let selected = setting.select(seed, "0.5").selected;
        let of_first = selected.iter().filter(|row| row.target == 0).count();
        assert_eq!((selected.len(), of_first), (4, 2));
        let estimate: f64 = selected.iter().map(|row| row.inclusion_probability.recip()).sum();
        sum += estimate;
        squares += estimate * estimate;
    }
    let n = SEEDS as f64;
    let mean = sum / n;
    let standard_error = ((squares / n - mean * mean) / n).sqrt();
    // By the thresholds alone it would be 4 % too low.
    assert!(4.0 * standard_error < 0.02 * 8.0, "{standard_error} of 8 documents");
    assert!((mean - 8.0).abs() < 4.0 * standard_error, "{mean} instead of 8, standard error {standard_error}");
}
