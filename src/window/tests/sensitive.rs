//! Windows that are drawn by sensitivity, beside the definition.

use std::convert::Infallible;

use super::*;
use crate::record::{Base64Floats, EmbeddingField};
use crate::select::{
    BudgetRounding, CentreSettings, Centres, CentresFrom, ClusterVersion, LossSource, SamplePoint, SensitivitySelector,
    StreamClusters, with_floor,
};

const FLOOR: f64 = 0.2;

pub(super) fn sensitive(losses: LossSource, fraction: &str, seed: u64) -> SelectorSettings {
    let embedding = Some(EmbeddingField { field: "e".to_owned(), base64: Base64Floats::F16 });
    let sensitivity = Some(SensitivitySelector {
        centres: 3,
        exponent: 2,
        floor: FLOOR,
        embedding,
        losses,
        centres_from: CentresFrom::Window,
    });
    SelectorSettings { sensitivity, seed, ..selector(fraction) }
}

/// What a document comes with.
#[derive(Debug, Clone)]
struct Given {
    point: Option<Vec<f32>>,
    loss: Option<f64>,
}

fn given() -> impl Strategy<Value = Given> {
    let number = || (-40i8..40).prop_map(|x| f32::from(x) / 8.0);
    let point = prop_oneof![
        8 => proptest::collection::vec(number(), 4).prop_map(Some),
        1 => proptest::collection::vec(number(), 3).prop_map(Some),
        1 => Just(None),
    ];
    let loss = proptest::option::weighted(0.6, (0u8..40).prop_map(|x| f64::from(x) / 4.0));
    (point, loss).prop_map(|(point, loss)| Given { point, loss })
}

fn decide(documents: &[Given], selector: &SelectorSettings, quotas: &Quotas) -> (ClosedWindow, Vec<SelectedDocument>) {
    decide_with(documents, selector, quotas, None)
}

fn decide_with(
    documents: &[Given],
    selector: &SelectorSettings,
    quotas: &Quotas,
    clusters: Option<&StreamClusters>,
) -> (ClosedWindow, Vec<SelectedDocument>) {
    let model = model();
    let (weight, division) = (weight(&model), Arc::new(Division::of(quotas, &model)));
    let at = TopicPartition::new("docs", 1);
    let noise = Noise::new(selector.seed, &at);
    let mut window = OpenWindow::new(at, 100, &policy(), selector, Opening { clusters, ..opening(&division) });
    let mut rows = Vec::new();
    for (offset, given) in (100..).zip(documents) {
        let mut record = record(offset, "good bad noise", &model);
        let scored = record.outcome.as_mut().unwrap();
        (scored.point, scored.score.loss) = (given.point.clone(), given.loss);
        rows.extend(window.push(record, &weight, selector, &noise));
    }
    let points = |numbers: &[u32], look: &mut dyn FnMut(&Score, &[f32])| -> Result<(), Infallible> {
        numbers.iter().map(|number| &rows[*number as usize]).for_each(|row| look(&row.score, &row.point));
        Ok(())
    };
    let Ok(()) = window.place(selector, &noise, points);
    let mut kept = Vec::new();
    let show = |numbers: &[u32], look: &mut dyn FnMut(&SpooledRow)| -> Result<_, Infallible> {
        kept = numbers.iter().map(|number| rows[*number as usize].clone()).collect();
        kept.iter().for_each(look);
        Ok(())
    };
    let Ok(closed) = window.close_with(CloseReason::Idle, selector, &noise, &model.target_distribution(), show);
    let selected = closed.waiting.iter().zip(kept).map(|(decision, row)| decision.of(row, selector)).collect();
    (closed, selected)
}

/// Four numbers each, and a loss for all.
fn around(places: &[[f32; 4]], n: usize) -> Vec<Given> {
    let given = |i: usize| {
        let mut point = places[i % places.len()].to_vec();
        point[i % 4] += (i % 7) as f32 / 8.0;
        Given { point: Some(point), loss: Some(1.0) }
    };
    (0..n).map(given).collect()
}

/// Clusters of the stream are taken where there are any of these dimensions, and what the window adds is said of those.
#[test]
fn a_window_takes_the_clusters_of_the_stream_and_adds_to_them() {
    let mut selector = sensitive(LossSource::Record, "0.5", 1);
    selector.sensitivity.as_mut().unwrap().centres_from = CentresFrom::Stream;
    let decide = |documents: &[Given], version: Option<ClusterVersion>| {
        let stream = StreamClusters { space: "field e".into(), version };
        decide_with(documents, &selector, &Quotas::default(), Some(&stream)).0
    };
    let documents = around(&[[0.0; 4], [9.0; 4], [-9.0; 4]], 60);
    let first = decide(&documents, None);
    let addition = first.clusters.unwrap();
    assert_eq!((addition.began, addition.tally.n_documents()), (None, 60));
    assert_eq!(first.summary.sensitivity.unwrap().clusters_version, None);
    let means = Arc::new(addition.tally.begin().unwrap());
    assert!(means.is_of("field e") && means.weights() == [20.0; 3], "{means:?}");

    let version = ClusterVersion { version: 8, began: 5, means: means.clone() };
    let next = decide(&documents[..30], Some(version.clone()));
    let summary = next.summary.sensitivity.unwrap();
    assert_eq!((summary.clusters_version, summary.n_centres), (Some(8), 3));
    let sample: Vec<SamplePoint> =
        documents[..30].iter().map(|of| SamplePoint { point: of.point.clone().unwrap(), loss: of.loss }).collect();
    assert_eq!(summary.scale, Centres::near(&sample, means.means(), 2).unwrap().scale());
    let addition = next.clusters.unwrap();
    assert_eq!((addition.began, &addition.tally), (Some(5), &means.tally(sample.iter().map(|s| &s.point[..]))));

    // Of other dimensions: its own, with which others may begin.
    let flat: Vec<Given> = (0..30).map(|i| Given { point: Some(vec![i as f32]), loss: Some(1.0) }).collect();
    let other = decide(&flat, Some(version));
    assert_eq!(other.summary.sensitivity.unwrap().clusters_version, None);
    let addition = other.clusters.unwrap();
    assert!(addition.began.is_none() && !means.is_like(&addition.tally));
    // Nothing to look at.
    assert!(decide(&[], None).clusters.is_none());
}

proptest! {
    #[test]
    fn a_window_is_a_priority_sample_of_every_pool(
        documents in proptest::collection::vec(given(), 0..20),
        has_losses in any::<bool>(),
        has_pools in any::<bool>(),
        tenths in 1u32..=10,
        seed in 0u64..50,
    ) {
        let losses = if has_losses { LossSource::Record } else { LossSource::None };
        let selector = sensitive(losses, &format!("{}.{}", tenths / 10, tenths % 10), seed);
        let shares = if has_pools { vec![("s1".to_owned(), 0.5)] } else { vec![] };
        let quotas = Quotas { sources: shares.into_iter().collect(), ..Quotas::default() };
        let (closed, selected) = decide(&documents, &selector, &quotas);
        let summary = closed.summary.sensitivity.as_ref().unwrap();

        // As many numbers as most embeddings have, fewer of equally many.
        let n_of = |dims: usize| documents.iter().flat_map(|d| &d.point).filter(|point| point.len() == dims).count();
        let (threes, fours) = (n_of(3), n_of(4));
        let dims = if threes + fours == 0 { 0 } else if threes >= fours { 3 } else { 4 };
        let competing: Vec<(i64, &Given)> = (100..).zip(&documents)
            .filter(|(_, d)| d.point.as_ref().is_some_and(|point| point.len() == dims)).collect();
        prop_assert_eq!(summary.dimensions as usize, dims);
        prop_assert_eq!(summary.n_without_embedding as usize, documents.len() - threes - fours);
        prop_assert_eq!(summary.n_other_dimensions as usize, threes + fours - competing.len());

        let is_known = has_losses && competing.iter().any(|(_, d)| d.loss.is_some());
        prop_assert_eq!(summary.losses, if is_known { LossSource::Record } else { LossSource::None });
        let sample = |(_, d): &(i64, &Given)| SamplePoint {
            point: d.point.clone().unwrap(),
            loss: if is_known { d.loss } else { Some(0.0) },
        };
        let sample: Vec<SamplePoint> = competing.iter().map(sample).collect();
        let centres = Centres::fit(&sample, &CentreSettings { centres: 3, exponent: 2, seed });
        prop_assert_eq!(summary.n_centres as usize, centres.as_ref().map_or(0, Centres::len));
        let mut scores: Vec<f64> = centres.iter()
            .flat_map(|centres| sample.iter().map(|s| centres.sensitivity(&s.point).score)).collect();
        with_floor(&mut scores, FLOOR);

        let noise = Noise::new(seed, &TopicPartition::new("docs", 1));
        let pool_of = |offset: i64| usize::from(has_pools && offset % 3 == 1);
        let division = Division::of(&quotas, &model());
        let mut sizes = vec![0; division.n_pools()];
        competing.iter().for_each(|(offset, _)| sizes[pool_of(*offset)] += 1);
        let chances = division.chances(selector.fraction, documents.len() as u64, &sizes);
        let count = selector.fraction.of(documents.len() as u64, noise.rounding(100));
        let budgets = division.budgets(count, &sizes, BudgetRounding::Random { noise: &noise, from: 100 });
        let mut found = selected.iter().peekable();
        let mut expected: Vec<(i64, f64, f64, f64)> = Vec::new();
        for (pool, PoolSensitivities { sample: pool_sample, .. }) in summary.pools.iter().enumerate() {
            let mut members: Vec<(i64, f64, f64)> = competing.iter().zip(&scores)
                .filter(|((offset, _), _)| pool_of(*offset) == pool)
                .map(|((offset, _), score)| (*offset, *score, score.ln() - noise.priority(*offset).ln())).collect();
            prop_assert_eq!(pool_sample.documents as usize, members.len());
            let total: f64 = members.iter().map(|(_, score, _)| score).sum();
            prop_assert!((pool_sample.total - total).abs() <= 1e-9 * total);
            members.sort_by(|a, b| b.2.total_cmp(&a.2).then(a.0.cmp(&b.0)));
            let (best, rest) = members.split_at(pool_sample.selected as usize);
            let threshold = rest.first().map(|first| first.2).filter(|_| !best.is_empty());
            prop_assert_eq!(pool_sample.threshold, threshold);
            prop_assert_eq!(&budgets[pool], &[pool_sample.selected]);
            let probability = |score: f64| threshold.map_or(1.0, |threshold| (score.ln() - threshold).exp().min(1.0));
            // The weighted sum of the scores is exact.
            let weighted: f64 = best.iter().map(|(_, score, _)| score / probability(*score)).sum();
            if !best.is_empty() {
                prop_assert!((pool_sample.ratio * weighted / total - 1.0).abs() < 1e-9);
            }
            expected.extend(best.iter().map(|(offset, score, key)| {
                let probability = chances[pool] * probability(*score);
                (*offset, *key, probability, pool_sample.ratio / probability)
            }));
        }
        expected.sort_by_key(|row| row.0);
        for (offset, key, probability, weight) in expected {
            let row = found.next().unwrap();
            prop_assert_eq!((row.offset, row.selection_key), (offset, key));
            prop_assert!((row.inclusion_probability - probability).abs() < 1e-9);
            prop_assert!((row.sample_weight / weight - 1.0).abs() < 1e-9);
        }
        prop_assert!(found.next().is_none());
        prop_assert_eq!(closed.summary.n_selected + summary.shortfall, count);
        prop_assert_eq!(closed.summary.n_selected, count.min(competing.len() as u64));
        let s = &closed.summary;
        prop_assert_eq!(s.n_records, s.n_selected + s.n_rejected + s.n_dead_letters);
    }
}

/// Weighted sums stand for those of all documents: of whatever numbers, over many seeds.
#[test]
fn weighted_sums_are_those_of_all_documents() {
    let noise = Noise::new(1, &TopicPartition::new("given", 0));
    let documents: Vec<Given> = (0..20)
        .map(|i| {
            let point = (0..4).map(|d| (noise.sampling(i * 4 + d) + f64::from(i % 3 == d) * 4.0) as f32).collect();
            Given { point: Some(point), loss: Some(1.0 + (i % 3) as f64 + noise.priority(i)) }
        })
        .collect();
    const SEEDS: u64 = 400;
    let (mut sums, mut squares) = ([0.0; 2], [0.0; 2]);
    for seed in 0..SEEDS {
        let (_, selected) = decide(&documents, &sensitive(LossSource::Record, "0.5", seed), &Quotas::default());
        assert_eq!(selected.len(), 10);
        let of_losses: f64 = selected.iter().map(|row| row.sample_weight * row.score.loss.unwrap()).sum();
        for (i, sum) in [of_losses, selected.iter().map(|row| row.sample_weight).sum()].into_iter().enumerate() {
            sums[i] += sum;
            squares[i] += sum * sum;
        }
    }
    let all = [documents.iter().map(|d| d.loss.unwrap()).sum::<f64>(), 20.0];
    for i in 0..2 {
        let mean = sums[i] / SEEDS as f64;
        let error = ((squares[i] / SEEDS as f64 - mean * mean) / SEEDS as f64).sqrt();
        // Five standard errors, and what a ratio of ten documents leaves.
        assert!((mean - all[i]).abs() < 5.0 * error + 0.01 * all[i], "{mean} for {} ± {error}", all[i]);
    }
}

/// A source whose share is less than a document of every window gets it over many of them, and what was selected stands for all that
/// came.
#[test]
fn a_small_share_is_kept_over_many_windows() {
    let quotas = Quotas { sources: [("s1".to_owned(), 0.05)].into_iter().collect(), ..Quotas::default() };
    // All alike, so that each has the same chance.
    let documents = vec![Given { point: Some(vec![1.0; 4]), loss: Some(1.0) }; 50];
    const WINDOWS: u64 = 1_000;
    let (mut selected, mut estimated) = (0.0, 0.0);
    for seed in 0..WINDOWS {
        let (_, rows) = decide(&documents, &sensitive(LossSource::Record, "0.1", seed), &quotas);
        assert_eq!(rows.len(), 5);
        for row in rows.iter().filter(|row| row.document.source.as_deref() == Some("s1")) {
            selected += 1.0 / WINDOWS as f64;
            estimated += row.sample_weight / WINDOWS as f64;
        }
    }
    // One in four windows selects one of its 17 documents. Five standard errors: 0.0137 of the number, 0.93 of the sum.
    assert!((selected - 0.25f64).abs() < 0.0685, "{selected} a window instead of 0.25");
    assert!((estimated - 17.0f64).abs() < 4.65, "{estimated} instead of 17");
}

#[test]
fn what_is_chosen_counts_beside_the_candidates() {
    let model = model();
    let (weight, noise) = (weight(&model), Noise::new(1, &TopicPartition::new("docs", 1)));
    let held = |fraction: &str, n: i64| {
        let selector = sensitive(LossSource::None, fraction, 1);
        let division = Arc::new(Division::of(&Quotas::default(), &model));
        let at = TopicPartition::new("docs", 1);
        let mut window = OpenWindow::new(at, 100, &policy(), &selector, opening(&division));
        let empty = window.held_bytes();
        for offset in 100..100 + n {
            let mut record = record(offset, "good bad noise", &model);
            record.outcome.as_mut().unwrap().point = Some(vec![0.0; 4]);
            assert!(window.push(record, &weight, &selector, &noise).is_some());
        }
        window.held_bytes() - empty
    };
    let chosen_bytes = size_of::<crate::select::Pick>() + size_of::<candidates::Chosen>();
    for n in [1, 10, 1_000] {
        let [few, all] = ["0.1", "1"].map(|fraction| held(fraction, n));
        assert_eq!(all - few, (n - (n + 9) / 10) as usize * chosen_bytes, "{n} documents");
    }
}

#[test]
fn points_that_cannot_be_read_decide_nothing() {
    let model = model();
    let selector = sensitive(LossSource::None, "1", 1);
    let (mut window, noise) = open(&selector);
    let mut record = record(100, "good words", &model);
    record.outcome.as_mut().unwrap().point = Some(vec![1.0; 4]);
    assert!(window.push(record, &weight(&model), &selector, &noise).is_some());
    assert!(window.might_select(f64::MIN) && window.is_divided());
    assert_eq!(window.place(&selector, &noise, |_, _| Err("gone")), Err("gone"));
}
