use proptest::prelude::*;

use super::*;
use crate::record::TopicPartition;
use crate::score::LossStrategy;

pub(super) fn settings(kind: SelectorKind) -> SelectorSettings {
    let fraction = "0.1".parse().unwrap();
    SelectorSettings {
        kind,
        fraction,
        unit: Default::default(),
        temperature: 2.0,
        length_normalise: false,
        min_tokens: 0,
        seed: 3,
        quotas: Quotas::default(),
        loss: None,
        filter: None,
        holdout: None,
        coverage_sample: 0,
        coverage: None,
        sensitivity: None,
    }
}

proptest! {
    #[test]
    fn reservoir_equals_a_full_sort(keys in proptest::collection::vec(-3i32..3, 0..60), capacity in 0usize..20, k in 0usize..20, shuffle: u64) {
        let k = k.min(capacity);
        let mut items: Vec<(i64, f64)> = keys.iter().enumerate().map(|(i, &key)| (i as i64, f64::from(key))).collect();
        let mut best = items.clone();
        best.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let threshold = best.get(k).map(|b| b.1);
        best.truncate(k);
        best.sort_by_key(|b| b.0);

        items.sort_by_key(|&(offset, _)| (offset as u64 ^ shuffle).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let mut reservoir = Reservoir::new(capacity);
        let mut held = 0;
        for (offset, key) in items {
            held += 1 - usize::from(reservoir.offer(offset, key, ()).is_some());
            prop_assert!(held <= capacity + 1);
        }
        let selection = reservoir.select(k);
        prop_assert_eq!(selection.chosen.iter().map(|c| (c.offset, c.key)).collect::<Vec<_>>(), best);
        prop_assert_eq!(selection.threshold, threshold);
    }

    #[test]
    fn fractions_are_exact(percent in 1u64..=100, n in 0u64..1_000_000_000, uniform in 0.000_001f64..0.999_999) {
        let fraction: Fraction = format!("{}.{:02}", percent / 100, percent % 100).parse().unwrap();
        let k = fraction.of(n, uniform);
        prop_assert!(k == n * percent / 100 || k == (n * percent).div_ceil(100));
        prop_assert!(k <= fraction.at_most(n));
        if (n * percent).is_multiple_of(100) {
            prop_assert_eq!(k, n * percent / 100);
        }
        prop_assert_eq!(fraction.to_string().parse::<Fraction>().unwrap(), fraction);
    }

    #[test]
    fn inclusion_probabilities_are_probabilities(weight in -1e4f64..1e4, offset: i64) {
        let settings = settings(SelectorKind::ImportanceResampling);
        let noise = Noise::new(1, &TopicPartition::new("t", 0));
        let key = settings.key(&noise, offset, weight);
        // A chosen document beat the threshold by its noise, so its probability cannot underflow.
        let probability = settings.inclusion_probability(weight, Some(key - 1e-9));
        prop_assert!(probability > 1e-17 && probability <= 1.0, "{}", probability);
        prop_assert_eq!(settings.inclusion_probability(weight, None), 1.0);
    }
}

#[test]
fn twenty_nine_hundredths_of_a_hundred_are_twenty_nine() {
    assert_eq!("0.29".parse::<Fraction>().unwrap().of(100, 0.999), 29);
    for bad in ["0", "0.0", "1.1", "-0.1", "a", "", ".", "2", "0.1234567890123", "1e-1", "0.1.1"] {
        assert!(bad.parse::<Fraction>().is_err(), "`{bad}` was taken");
    }
    assert_eq!("1".parse::<Fraction>().unwrap().of(7, 0.5), 7);
    assert_eq!(".5".parse::<Fraction>().unwrap().of(8, 0.5), 4);
}

#[test]
fn small_windows_give_their_share_on_average() {
    let fraction: Fraction = "0.1".parse().unwrap();
    let noise = Noise::new(9, &TopicPartition::new("t", 1));
    let chosen: u64 = (0..20_000).map(|from| fraction.of(3, noise.rounding(from))).sum();
    // Mean 6,000, five standard errors of a sum of 20,000 Bernoulli(0.3) are 324.
    assert!((5_676..6_324).contains(&chosen), "{chosen} of 60,000");
}

#[test]
fn top_k_ignores_the_noise_and_resampling_uses_it() {
    let noise = Noise::new(1, &TopicPartition::new("t", 0));
    assert_eq!(settings(SelectorKind::TopK).key(&noise, 5, 3.0), 1.5);
    assert_eq!(settings(SelectorKind::ImportanceResampling).key(&noise, 5, 3.0), 1.5 + noise.gumbel(5));
}

#[test]
fn length_normalised_documents_compete_by_the_mean_of_their_ngrams() {
    let featuriser = Featuriser::default();
    let sum = settings(SelectorKind::TopK);
    let mean = SelectorSettings { length_normalise: true, ..sum.clone() };
    let score = |n_tokens, log_importance_weight| Score { n_tokens, log_importance_weight, ..Score::default() };
    // Ten tokens have ten unigrams and nine bigrams.
    assert_eq!(mean.total_log_weight(&score(10, -38.0), &featuriser), -2.0);
    assert_eq!(sum.total_log_weight(&score(10, -38.0), &featuriser), -38.0);
    assert_eq!(mean.total_log_weight(&score(0, 0.0), &featuriser), 0.0);
    // What is expected of its loss is a mean already.
    let expected = |score: Score| Score { expected_loss_weight: 0.5, ..score };
    assert_eq!(mean.total_log_weight(&expected(score(10, -38.0)), &featuriser), -1.5);
    assert_eq!(sum.total_log_weight(&expected(score(10, -38.0)), &featuriser), -37.5);
    // A loss adds to either, whatever the length.
    let term = LossTerm { coefficient: 2.0, strategy: LossStrategy::LinUpper, low: 1.0, high: 5.0 };
    let with_loss = |loss| Score { loss, ..score(10, -38.0) };
    for (settings, of_text) in [(mean, -2.0), (sum.clone(), -38.0)] {
        let settings = SelectorSettings { loss: Some(term), ..settings };
        for (loss, of_loss) in [(Some(2.0), 0.5), (Some(0.0), 0.0), (Some(9.0), 1.0), (None, 0.75)] {
            assert_eq!(settings.total_log_weight(&with_loss(loss), &featuriser), of_text + 2.0 * of_loss);
        }
    }
    // Manifests of the first version do not have the setting.
    let old = r#"{"kind":"top_k","fraction":"0.1","temperature":2.0,"min_tokens":0,"seed":3}"#;
    assert_eq!(serde_json::from_str::<SelectorSettings>(old).unwrap(), sum);
}

/// Gumbel top-1 is a draw from the softmax of the weights over the temperature.
#[test]
fn resampling_is_proportional_to_the_weights() {
    let weights = [0.0, 2.0, 4.0];
    let n_draws = 30_000;
    let mut counts = [0u32; 3];
    for draw in 0..n_draws {
        let settings = SelectorSettings { seed: draw, ..settings(SelectorKind::ImportanceResampling) };
        let noise = Noise::new(draw, &TopicPartition::new("t", 0));
        let mut reservoir = Reservoir::new(1);
        for (offset, &weight) in weights.iter().enumerate() {
            reservoir.offer(offset as i64, settings.key(&noise, offset as i64, weight), ());
        }
        counts[reservoir.select(1).chosen[0].offset as usize] += 1;
    }
    let expected = weights.map(|w: f64| (w / 2.0).exp());
    let total: f64 = expected.iter().sum();
    let chi_square: f64 = (0..3)
        .map(|i| {
            let e = expected[i] / total * n_draws as f64;
            (f64::from(counts[i]) - e).powi(2) / e
        })
        .sum();
    // The 99.9 % point of chi-square with two degrees of freedom.
    assert!(chi_square < 13.8, "chi-square {chi_square} of {counts:?}");
}
