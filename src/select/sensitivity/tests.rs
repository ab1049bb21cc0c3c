use proptest::prelude::*;

use super::*;
use crate::record::TopicPartition;
use crate::select::Noise;

fn noise(seed: u64) -> Noise {
    Noise::new(seed, &TopicPartition::new("t", 0))
}

/// Normal numbers, near enough: sums of twelve uniform ones.
fn normal(noise: &Noise, counter: &mut i64) -> f64 {
    (0..12)
        .map(|_| {
            *counter += 1;
            noise.sampling(*counter)
        })
        .sum::<f64>()
        - 6.0
}

/// Blobs around well separated places; the loss of a document is that of its blob and grows with the distance.
fn blobs(n: usize, seed: u64) -> Vec<(SamplePoint, f64)> {
    let (noise, mut counter) = (noise(seed), 0);
    let of = |i: usize| {
        let blob = i % 4;
        let around: Vec<f64> = (0..8).map(|_| 0.3 * normal(&noise, &mut counter)).collect();
        let point = (0..8).map(|d| if d == blob { 10.0 } else { 0.0 } + around[d] as f32).collect();
        let squared: f64 = around.iter().map(|x| x * x).sum();
        let loss = (blob + 1) as f64 + 0.5 * squared;
        // Only every third loss is known.
        (SamplePoint { point, loss: i.is_multiple_of(3).then_some(loss) }, loss)
    };
    (0..n).map(of).collect()
}

const SETTINGS: CentreSettings = CentreSettings { centres: 4, exponent: 2, seed: 3 };

#[test]
fn centres_are_documents_with_a_loss_one_in_each_blob() {
    let documents = blobs(400, 1);
    let sample: Vec<SamplePoint> = documents.iter().map(|(sample, _)| sample.clone()).collect();
    let centres = Centres::fit(&sample, &SETTINGS).unwrap();
    assert_eq!(centres, Centres::fit(&sample, &SETTINGS).unwrap(), "a function of sample and seed");
    assert_eq!(centres.len(), 4);
    let (mut squared, mut blob_of_centre) = (0.0, [usize::MAX; 4]);
    for (i, s) in sample.iter().enumerate() {
        let Sensitivity { centre, distance, score } = centres.sensitivity(&s.point);
        let blob = &mut blob_of_centre[centre as usize];
        assert!(*blob == usize::MAX || *blob == i % 4, "a centre has documents of two blobs");
        *blob = i % 4;
        let loss = centres.losses()[centre as usize];
        assert!((score - (loss + centres.scale() * distance.powi(2))).abs() < 1e-9);
        if distance == 0.0 {
            assert_eq!(s.loss, Some(loss));
        }
        squared += distance.powi(2);
    }
    let at_centres = sample.iter().filter(|s| centres.sensitivity(&s.point).distance == 0.0).count();
    assert_eq!(at_centres, 4, "every centre is a document");
    // Both terms have equal mass.
    let losses: f64 = sample.iter().map(|s| centres.losses()[centres.sensitivity(&s.point).centre as usize]).sum();
    assert!((centres.scale() * squared / losses - 1.0).abs() < 1e-9);
}

#[test]
fn what_cannot_be_fitted_is_said_and_little_is_enough() {
    let point = |x: f32, loss| SamplePoint { point: vec![x; 3], loss };
    assert_eq!(Centres::fit(&[], &SETTINGS), None);
    assert_eq!(Centres::fit(&[point(1.0, None), point(2.0, Some(f64::NAN))], &SETTINGS), None);
    // Fewer different points than centres; a loss below zero counts as zero; without losses distances decide.
    let centres = Centres::fit(&vec![point(1.0, Some(-2.0)); 9], &SETTINGS).unwrap();
    assert_eq!((centres.len(), centres.losses(), centres.scale()), (1, &[0.0][..], 1.0));
    let all_alike = Centres::fit(&vec![point(1.0, Some(2.0)); 9], &SETTINGS).unwrap();
    assert_eq!((all_alike.scale(), all_alike.sensitivity(&[1.0; 3]).score), (0.0, 2.0));
    let of_distances = Centres::fit(&[point(1.0, Some(0.0)), point(5.0, None)], &SETTINGS).unwrap();
    assert_eq!(of_distances.sensitivity(&[5.0; 3]).score, 48.0);
    let settings = CentreSettings { exponent: 1, ..SETTINGS };
    let of_distances = Centres::fit(&[point(1.0, Some(0.0)), point(5.0, None)], &settings).unwrap();
    assert!((of_distances.sensitivity(&[5.0; 3]).score - 48f64.sqrt()).abs() < 1e-6);
}

proptest! {
    #[test]
    fn bytes_come_back_and_damage_is_noticed(seed: u64, centres in 1usize..9, at in 0usize..10_000, flip in 1u8..) {
        let sample: Vec<SamplePoint> = blobs(40, seed).into_iter().map(|(sample, _)| sample).collect();
        let centres = Centres::fit(&sample, &CentreSettings { centres, exponent: 2, seed }).unwrap();
        let mut bytes = centres.to_bytes();
        prop_assert_eq!(&Centres::from_bytes(&bytes).unwrap(), &centres);
        let at = at % bytes.len();
        prop_assert!(Centres::from_bytes(&bytes[..at]).is_err());
        bytes[at] ^= flip;
        prop_assert!(Centres::from_bytes(&bytes).is_err());
    }

    #[test]
    fn a_floor_keeps_the_sum_and_bounds_the_weights(mut scores in proptest::collection::vec(0.0f64..100.0, 1..60), floor in 0.01f64..=1.0) {
        let before: f64 = scores.iter().sum();
        let n = scores.len() as f64;
        let total = with_floor(&mut scores, floor);
        prop_assert!(before == 0.0 || (total - before).abs() < 1e-9 * before);
        prop_assert!(scores.iter().all(|score| *score >= floor * total / n * (1.0 - 1e-12)));
    }

    #[test]
    fn the_best_keys_are_selected_whatever_the_order(
        scores in proptest::collection::vec((0usize..3, 0.01f64..50.0), 0..80),
        count in 0u64..90,
        seed: u64,
        rotate in 0usize..80,
        rounding in prop_oneof![Just(Rounding::Nearest), (0.0f64..1.0).prop_map(Rounding::Random)],
    ) {
        let noise = noise(seed);
        let mut pools = vec![Vec::new(); 3];
        scores.iter().enumerate().for_each(|(i, (pool, _))| pools[*pool].push(i as u32));
        let score = |d: u32| scores[d as usize].1;
        let uniform = |d: u32| noise.priority(d.into());
        let shares = [0.5, 0.3, 0.2];
        let drawn = select_by_sensitivity(count, pools.clone(), &shares, rounding, score, uniform);
        prop_assert_eq!(drawn.selection.picks.len() as u64, count.min(scores.len() as u64));
        prop_assert_eq!(drawn.shortfall, count.saturating_sub(scores.len() as u64));
        for (pool, members) in pools.iter().enumerate() {
            let SensitivityPool { documents, selected, total, threshold, ratio } = drawn.pools[pool];
            let mut ranked = members.clone();
            ranked.sort_by(|&a, &b| (score(b) / uniform(b)).total_cmp(&(score(a) / uniform(a))));
            let (taken, left) = ranked.split_at(selected as usize);
            let picks: Vec<u32> = drawn.selection.picks.iter().map(|p| p.document).filter(|d| scores[*d as usize].0 == pool).collect();
            let mut taken = taken.to_vec();
            taken.sort_unstable();
            prop_assert_eq!(&picks, &taken);
            prop_assert_eq!(documents, members.len() as u64);
            let exact: f64 = members.iter().map(|&d| score(d)).sum();
            prop_assert!((total - exact).abs() <= 1e-9 * exact.max(1.0));
            if selected > 0 {
                let tau = left.first().map(|&d| (score(d) / uniform(d)).ln());
                prop_assert_eq!(tau.is_some(), threshold.is_some());
                prop_assert!((tau.unwrap_or(0.0) - threshold.unwrap_or(0.0)).abs() < 1e-9);
                // The weighted sum of the scores is exact.
                let weighed: f64 = picks.iter().map(|&d| score(d) * drawn.pools[pool].sample_weight(score(d))).sum();
                prop_assert!((weighed - exact).abs() <= 1e-9 * exact.max(1.0), "{} for {}", weighed, exact);
                for &d in &picks {
                    let p = drawn.pools[pool].inclusion_probability(score(d));
                    prop_assert!(p > 0.0 && p <= 1.0 && (p * drawn.pools[pool].sample_weight(score(d)) - ratio).abs() < 1e-9 * ratio);
                }
            }
        }
        pools.iter_mut().for_each(|pool| {
            let middle = rotate.min(pool.len());
            pool.rotate_left(middle);
        });
        prop_assert_eq!(select_by_sensitivity(count, pools, &shares, rounding, score, uniform), drawn);
    }
}

/// Mean and variance of an estimate over seeds.
fn over_seeds(n_seeds: u64, estimate: impl Fn(u64) -> f64) -> (f64, f64) {
    let estimates: Vec<f64> = (0..n_seeds).map(estimate).collect();
    let mean = estimates.iter().sum::<f64>() / n_seeds as f64;
    (mean, estimates.iter().map(|e| (e - mean).powi(2)).sum::<f64>() / (n_seeds - 1) as f64)
}

/// Totals that are estimated from the sample are right on average, and vary no more than is known of priority sampling:
/// Var Σ w s ≤ S² / (m − 1) (Szegedy 2006); the ratio takes that variance away where losses are in proportion to scores.
#[test]
fn totals_are_unbiased_and_vary_little() {
    let documents = blobs(600, 5);
    let sample: Vec<SamplePoint> = documents.iter().map(|(sample, _)| sample.clone()).collect();
    let centres = Centres::fit(&sample, &SETTINGS).unwrap();
    let mut scores: Vec<f64> = sample.iter().map(|s| centres.sensitivity(&s.point).score).collect();
    let total_score = with_floor(&mut scores, DEFAULT_FLOOR);
    let total_loss: f64 = documents.iter().map(|(_, loss)| loss).sum();
    let (m, n_seeds) = (40, 4_000);
    let draw = |seed: u64| {
        let noise = noise(seed + 1_000);
        let documents: Vec<u32> = (0..scores.len() as u32).collect();
        let score = |d: u32| scores[d as usize];
        select_by_sensitivity(m, vec![documents], &[1.0], Rounding::Nearest, score, |d| noise.priority(d.into()))
    };
    let estimate = |seed: u64, of: &dyn Fn(usize) -> f64, has_ratio: bool| {
        let drawn = draw(seed);
        let weight = |d: usize| {
            let plain = drawn.pools[0].inclusion_probability(scores[d]).recip();
            if has_ratio { drawn.pools[0].sample_weight(scores[d]) } else { plain }
        };
        drawn.selection.picks.iter().map(|p| weight(p.document as usize) * of(p.document as usize)).sum::<f64>()
    };
    let is_near = |mean: f64, variance: f64, exact: f64| {
        let error = (variance / n_seeds as f64).sqrt();
        assert!((mean - exact).abs() < 5.0 * error, "{mean} for {exact}, standard error {error}");
    };

    let (mean, variance) = over_seeds(n_seeds, |seed| estimate(seed, &|d| scores[d], false));
    is_near(mean, variance, total_score);
    // Five standard errors of a variance of 4,000 estimates are some 11 %.
    let bound = total_score.powi(2) / (m - 1) as f64;
    assert!(variance < 1.11 * bound, "variance {variance}, bound {bound}");

    let loss = |d: usize| documents[d].1;
    let (mean, plain) = over_seeds(n_seeds, |seed| estimate(seed, &loss, false));
    is_near(mean, plain, total_loss);
    // Also of a part of the documents.
    let of_part = |d: usize| if d % 4 == 2 { loss(d) } else { 0.0 };
    let (mean, variance) = over_seeds(n_seeds, |seed| estimate(seed, &of_part, false));
    is_near(mean, variance, (0..600).map(of_part).sum());

    // A ratio estimator has a bias of the order of 1 / m of its standard deviation; here it is below a thousandth.
    let (mean, with_ratio) = over_seeds(n_seeds, |seed| estimate(seed, &loss, true));
    assert!((mean / total_loss - 1.0).abs() < 1e-3 + 5.0 * (with_ratio / n_seeds as f64).sqrt() / total_loss);
    assert!(with_ratio < plain, "{with_ratio} with the ratio, {plain} without");

    // A uniform sample of the same size, by its known variance without replacement.
    let n = documents.len() as f64;
    let spread = documents.iter().map(|(_, loss)| (loss - total_loss / n).powi(2)).sum::<f64>() / (n - 1.0);
    let uniform = n * n * (1.0 - m as f64 / n) * spread / m as f64;
    assert!(with_ratio < 0.7 * uniform, "variance {with_ratio} by sensitivity, {uniform} uniform");
}

#[test]
fn documents_of_one_score_are_drawn_alike() {
    let mut scores = vec![0.0; 5];
    assert_eq!(with_floor(&mut scores, 0.1), 5.0);
    let mut counts = [0u32; 5];
    for seed in 0..5_000 {
        let noise = noise(seed);
        let drawn = select_by_sensitivity(
            2,
            vec![(0..5).collect()],
            &[1.0],
            Rounding::Nearest,
            |_| 1.0,
            |d| noise.priority(d.into()),
        );
        drawn.selection.picks.iter().for_each(|pick| counts[pick.document as usize] += 1);
    }
    // Five standard errors of 5,000 Bernoulli(0.4) are 173.
    assert!(counts.iter().all(|count| count.abs_diff(2_000) < 173), "{counts:?}");
}
