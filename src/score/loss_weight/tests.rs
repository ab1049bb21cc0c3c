use proptest::prelude::*;
use serde::Deserialize;

use super::*;

const LN_2: f64 = std::f64::consts::LN_2;

/// Those of which f has the range 1, as the paper has them.
const RANGED: [LossStrategy; 3] = [LossStrategy::LinUpper, LossStrategy::Quadratic, LossStrategy::Extremes];

fn schedule(initial: f64) -> TemperatureSchedule {
    TemperatureSchedule { burn_in_steps: 0, initial, decay: None }
}

/// As published: the range is from the lowest to the highest, and nothing is capped.
fn published(strategy: LossStrategy, temperature: f64) -> LossWeightSettings {
    LossWeightSettings {
        strategy,
        temperature: schedule(temperature),
        range: LossRange::MinMax,
        cap: None,
        non_finite: NonFiniteLoss::Error,
    }
}

fn weights(settings: LossWeightSettings, losses: &[f64]) -> Vec<f64> {
    LossWeight::new(settings).unwrap().weights(losses, 0).unwrap()
}

fn max(weights: &[f64]) -> f64 {
    weights.iter().copied().fold(0.0, f64::max)
}

fn strategies() -> impl Strategy<Value = LossStrategy> {
    prop_oneof![
        Just(LossStrategy::Uniform),
        ranged(),
        ranged(),
        Just(LossStrategy::KlDro),
        (0.01f64..=1.0).prop_map(|share| LossStrategy::Cvar { share }),
    ]
}

fn ranged() -> impl Strategy<Value = LossStrategy> {
    prop::sample::select(&RANGED[..])
}

fn temperatures() -> impl Strategy<Value = f64> {
    // Down to where doubles hold one weight only.
    (-4f64..3.0).prop_map(|log| 10f64.powf(log))
}

fn settings() -> impl Strategy<Value = LossWeightSettings> {
    let ranges = prop_oneof![Just(LossRange::MinMax), (0.0f64..=0.25).prop_map(|tail| LossRange::Quantiles { tail })];
    let caps = prop_oneof![Just(None), Just(Some(1.0)), (1.0f64..20.0).prop_map(Some)];
    (strategies(), temperatures(), ranges, caps).prop_map(|(strategy, temperature, range, cap)| {
        let least = if let LossStrategy::Cvar { share } = strategy { 1.0 / share } else { 1.0 };
        LossWeightSettings { range, cap: cap.map(|cap| cap.max(least)), ..published(strategy, temperature) }
    })
}

/// Spread out, with ties, and over the whole range of doubles.
fn losses() -> impl Strategy<Value = Vec<f64>> {
    let loss = || prop_oneof![4 => 0.0f64..12.0, 4 => (0u8..5).prop_map(f64::from), 1 => -1e3f64..1e3];
    let any = any::<f64>().prop_filter("finite", |loss| loss.is_finite());
    prop_oneof![9 => prop::collection::vec(loss(), 1..120), 1 => prop::collection::vec(any, 1..40)]
}

/// Of which sums, differences and small multiples are exact.
fn exact_losses() -> impl Strategy<Value = Vec<f64>> {
    prop::collection::vec((0u32..20_000).prop_map(|n| f64::from(n) / 1024.0), 1..120)
}

/// A batch and any of its permutations, as places.
fn permuted() -> impl Strategy<Value = (Vec<f64>, Vec<usize>)> {
    losses().prop_flat_map(|losses| {
        let places: Vec<usize> = (0..losses.len()).collect();
        (Just(losses), Just(places).prop_shuffle())
    })
}

proptest! {
    #[test]
    fn weights_sum_to_one_within_the_cap(settings in settings(), losses in losses()) {
        let weights = weights(settings, &losses);
        prop_assert_eq!(weights.len(), losses.len());
        prop_assert!((weights.iter().sum::<f64>() - 1.0).abs() < 1e-13, "they sum to {}", weights.iter().sum::<f64>());
        prop_assert!(weights.iter().all(|w| *w >= 0.0));
        let cap = settings.cap.map_or(1.0, |cap| cap / losses.len() as f64);
        prop_assert!(max(&weights) <= cap, "{} is above {}", max(&weights), cap);
    }

    #[test]
    fn order_means_nothing_to_the_last_bit(settings in settings(), (losses, places) in permuted()) {
        let weights_there = weights(settings, &losses);
        let shuffled: Vec<f64> = places.iter().map(|&i| losses[i]).collect();
        let expected: Vec<f64> = places.iter().map(|&i| weights_there[i]).collect();
        prop_assert_eq!(weights(settings, &shuffled), expected);
    }

    #[test]
    fn equal_losses_get_equal_weights(settings in settings(), losses in losses(), copies in 1usize..5) {
        let repeated = losses.repeat(copies);
        let weights_there = weights(settings, &repeated);
        prop_assert!(weights_there.chunks(losses.len()).all(|chunk| chunk == &weights_there[..losses.len()]));
        let equal = vec![losses[0]; losses.len()];
        prop_assert_eq!(weights(settings, &equal), vec![1.0 / losses.len() as f64; losses.len()]);
    }

    #[test]
    fn only_differences_count_and_only_relative_ones(settings in settings(), losses in exact_losses(), shift in -5000i32..5000, doublings in -3i32..4) {
        let there = weights(settings, &losses);
        let shifted: Vec<f64> = losses.iter().map(|loss| loss + f64::from(shift)).collect();
        prop_assert_eq!(&weights(settings, &shifted), &there);
        let scale = 2f64.powi(doublings);
        let scaled: Vec<f64> = losses.iter().map(|loss| loss * scale).collect();
        // Without normalisation the temperature is in nats too.
        let unit = if settings.strategy == LossStrategy::KlDro { scale } else { 1.0 };
        let temperature = schedule(settings.temperature.initial * unit);
        prop_assert_eq!(&weights(LossWeightSettings { temperature, ..settings }, &scaled), &there);
    }

    /// By what each strategy says it prefers, whatever range, cap and temperature: more preferred never weighs less.
    #[test]
    fn weights_follow_the_preference(settings in settings(), losses in exact_losses()) {
        let Bounds { low, high } = Bounds::of(&losses, settings.range).unwrap();
        let from_middle = |loss: f64| (2.0 * loss.clamp(low, high) - (low + high)).abs();
        let preferred = |loss: f64| match settings.strategy {
            LossStrategy::Uniform => 0.0,
            LossStrategy::LinUpper => loss.clamp(low, low + (high - low) / 2.0),
            LossStrategy::Quadratic => -from_middle(loss),
            LossStrategy::Extremes => from_middle(loss),
            LossStrategy::KlDro => loss.clamp(low, high),
            LossStrategy::Cvar { .. } => loss,
        };
        let mut ranked: Vec<(f64, f64)> = losses.iter().map(|l| preferred(*l)).zip(weights(settings, &losses)).collect();
        ranked.sort_by(|a, b| a.0.total_cmp(&b.0));
        for pair in ranked.windows(2) {
            prop_assert!(pair[0].1 <= pair[1].1 && (pair[0].0 < pair[1].0 || pair[0].1 == pair[1].1), "{:?}", pair);
        }
    }

    /// exp(−1/r) is at least a half then: M w ≤ M / (1 + (M − 1) / 2) < 2.
    #[test]
    fn warm_strategies_need_no_cap_of_two(strategy in ranged(), above in 1f64..3.0, losses in losses()) {
        let settings = published(strategy, above / LN_2);
        let uncapped = weights(settings, &losses);
        prop_assert!(losses.len() == 1 || max(&uncapped) < 2.0 / losses.len() as f64, "{}", max(&uncapped) * losses.len() as f64);
        prop_assert_eq!(weights(LossWeightSettings { cap: Some(2.0), ..settings }, &losses), uncapped);
    }

    #[test]
    fn heat_makes_all_equal_and_cold_takes_the_best(strategy in ranged(), losses in exact_losses()) {
        let n = losses.len() as f64;
        let hot = weights(published(strategy, 1e12), &losses);
        prop_assert!(hot.iter().all(|w| (w * n - 1.0).abs() < 1e-11));
        let cold = weights(published(strategy, 1e-300), &losses);
        let n_best = cold.iter().filter(|w| **w == max(&cold)).count() as f64;
        prop_assert!(cold.iter().all(|w| *w == 0.0 || *w == 1.0 / n_best || (*w * n_best - 1.0).abs() < 1e-15));
    }

    /// As the projection is defined: what is below the cap keeps its ratios, nothing is lowered but to the cap.
    #[test]
    fn the_cap_rescales_what_is_below_it(strategy in ranged(), temperature in 0.1f64..1.0, cap in 1.05f64..4.0, losses in losses()) {
        let settings = published(strategy, temperature);
        let (free, capped) = (weights(settings, &losses), weights(LossWeightSettings { cap: Some(cap), ..settings }, &losses));
        let cap = cap / losses.len() as f64;
        let scales: Vec<f64> = free.iter().zip(&capped).filter(|(_, v)| **v < cap).map(|(w, v)| v / w).collect();
        let scale = scales.iter().copied().fold(1.0, f64::max);
        prop_assert!(scales.iter().all(|s| (s / scale - 1.0).abs() < 1e-12), "{:?}", scales);
        prop_assert!(free.iter().zip(&capped).all(|(w, v)| *v < cap || w * scale >= cap * (1.0 - 1e-12)));
    }

    /// Where rounding decides who is above the cap: it is what some weight is already, or differs from it in the last bits.
    #[test]
    fn a_cap_on_the_edge_is_held_too(
        losses in prop::collection::vec((0u8..5).prop_map(f64::from), 1..60),
        strategy in ranged(),
        temperature in 0.1f64..3.0,
    ) {
        let settings = published(strategy, temperature);
        let n = losses.len() as f64;
        let free = weights(settings, &losses);
        let mut edges: Vec<u64> = free.iter().map(|w| (w * n).max(1.0).to_bits()).collect();
        edges.sort_unstable();
        edges.dedup();
        for cap in edges.iter().flat_map(|edge| (edge - 3..=edge + 3).map(|bits| f64::from_bits(bits).max(1.0))) {
            let capped = weights(LossWeightSettings { cap: Some(cap), ..settings }, &losses);
            prop_assert!(max(&capped) <= cap / n, "{} is above {}", max(&capped) * n, cap);
            prop_assert!((capped.iter().sum::<f64>() - 1.0).abs() < 1e-13);
            let mut given: Vec<(f64, f64)> = losses.iter().copied().zip(capped).collect();
            given.sort_by(|a, b| a.0.total_cmp(&b.0));
            prop_assert!(given.windows(2).all(|pair| pair[0].0 < pair[1].0 || pair[0].1 == pair[1].1), "{:?}", given);
        }
    }

    /// Of all weights within the cap, those that maximise Σ v · loss − λ · KL(v ‖ equal weights).
    #[test]
    fn no_other_weights_within_the_cap_are_better(
        batch in prop::collection::vec((0.0f64..5.0, 0.0f64..5.0), 2..40),
        temperature in 0.05f64..3.0,
        cap in 1.0f64..5.0,
    ) {
        let (losses, other): (Vec<f64>, Vec<f64>) = batch.into_iter().unzip();
        let settings = LossWeightSettings { cap: Some(cap), ..published(LossStrategy::KlDro, temperature) };
        let n = losses.len() as f64;
        let worth = |weights: &[f64]| -> f64 {
            let term = |(w, loss): (&f64, &f64)| w * loss - if *w > 0.0 { temperature * w * (w * n).ln() } else { 0.0 };
            weights.iter().zip(&losses).map(term).sum()
        };
        let best = weights(settings, &losses);
        // Other weights within the cap, and those between: near the best too.
        let other = weights(settings, &other);
        for share in [1.0, 0.5, 0.1, 0.01] {
            let between: Vec<f64> = best.iter().zip(&other).map(|(a, b)| a * (1.0 - share) + b * share).collect();
            prop_assert!(worth(&between) <= worth(&best) + 1e-12, "{} of the other weights are better", share);
        }
    }

    /// What KL regularisation becomes without regularisation.
    #[test]
    fn cvar_is_the_limit_of_cold_capped_kl_dro(losses in exact_losses(), share in 0.02f64..1.0) {
        let cvar = weights(published(LossStrategy::Cvar { share }, 1.0), &losses);
        let cold = LossWeightSettings { cap: Some(1.0 / share), ..published(LossStrategy::KlDro, 1e-9) };
        for (a, b) in cvar.iter().zip(weights(cold, &losses)) {
            prop_assert!((a - b).abs() < 1e-12, "{} and {}", a, b);
        }
        let positive = cvar.iter().filter(|w| **w > 0.0).count();
        prop_assert!(positive as f64 >= (share * losses.len() as f64).floor());
    }

    #[test]
    fn ends_of_the_range_are_the_nearest_ranks(losses in losses(), tail in 0.0f64..=0.25) {
        let mut sorted = losses.clone();
        sorted.sort_by(f64::total_cmp);
        let cut = (tail * (losses.len() - 1) as f64).round() as usize;
        let Bounds { low, high } = Bounds::of(&losses, LossRange::Quantiles { tail }).unwrap();
        prop_assert_eq!((low, high), (sorted[cut], sorted[losses.len() - 1 - cut]));
        let Bounds { low, high } = Bounds::of(&losses, LossRange::MinMax).unwrap();
        prop_assert_eq!((low, high), (sorted[0], sorted[losses.len() - 1]));
    }

    /// The others are weighed as if they were alone, in what is left to them.
    #[test]
    fn losses_that_are_not_finite_take_no_part(settings in settings(), losses in losses(), at in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(vec![f64::NAN, f64::INFINITY, f64::NEG_INFINITY])), 1..9)) {
        let alone = weights(settings, &losses);
        let mut mixed: Vec<f64> = losses.clone();
        at.iter().for_each(|(index, loss)| mixed.insert(index.index(mixed.len() + 1), *loss));
        let (n, n_finite) = (mixed.len() as f64, losses.len() as f64);
        for (non_finite, of_others, left) in [(NonFiniteLoss::Uniform, 1.0 / n, n_finite / n), (NonFiniteLoss::Zero, 0.0, 1.0)] {
            let weights = weights(LossWeightSettings { non_finite, ..settings }, &mixed);
            let mut alone = alone.iter();
            for (weight, loss) in weights.iter().zip(&mixed) {
                let expected = if loss.is_finite() { alone.next().unwrap() * left } else { of_others };
                prop_assert!((weight - expected).abs() <= 1e-15, "{} instead of {}", weight, expected);
            }
            let whole = if non_finite == NonFiniteLoss::Zero { n_finite } else { n };
            prop_assert!(settings.cap.is_none_or(|cap| max(&weights) <= cap / whole));
        }
        let Err(LossWeightError::NotFinite { n_losses, not_finite }) = LossWeight::new(settings).unwrap().weights(&mixed, 0) else {
            return Err(TestCaseError::fail("losses that are not finite were weighed"));
        };
        let places: Vec<usize> = not_finite.iter().map(|(place, _)| *place).collect();
        let expected: Vec<usize> = (0..mixed.len()).filter(|&i| !mixed[i].is_finite()).collect();
        prop_assert_eq!((n_losses, places), (mixed.len(), expected));
    }

    #[test]
    fn the_temperature_falls_to_its_floor(burn_in_steps in 0u64..5_000, initial in 0.1f64..10.0, part in 0.01f64..=1.0, half_life_steps in 1u64..10_000) {
        let floor = initial * part;
        let decay = Some(TemperatureDecay { half_life_steps, floor });
        let schedule = TemperatureSchedule { burn_in_steps, initial, decay };
        prop_assert!(burn_in_steps == 0 || schedule.at(burn_in_steps - 1).is_none());
        let at = |half_lives: u64| schedule.at(burn_in_steps + half_lives * half_life_steps).unwrap();
        prop_assert!((at(0) - initial).abs() < 1e-14);
        for half_lives in 0..60 {
            let (now, next) = (at(half_lives) - floor, at(half_lives + 1) - floor);
            prop_assert!(next >= 0.0 && (next - now / 2.0).abs() < 1e-14);
        }
        prop_assert_eq!(schedule.at(u64::MAX), Some(floor));
        prop_assert_eq!(TemperatureSchedule { decay: None, ..schedule }.at(u64::MAX), Some(initial));
    }
}

/// One line of what `tests/reference/make_loss_weights.py` has written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    settings: LossWeightSettings,
    step: u64,
    losses: Vec<Loss>,
    weights: Option<Vec<f64>>,
    not_finite: Vec<usize>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Loss {
    Finite(f64),
    Named(String),
}

fn cases() -> Vec<Case> {
    let lines = include_str!("../../../tests/reference/loss_weights.jsonl").lines();
    lines.map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// In multiples of the mean weight, so that large batches are held to the same.
#[test]
fn an_independent_program_comes_to_the_same_weights() {
    let (mut n_weights, mut worst) = (0, 0f64);
    for Case { name, settings, step, losses, weights, not_finite } in cases() {
        let parse = |loss: &Loss| match loss {
            Loss::Finite(loss) => *loss,
            Loss::Named(name) => name.parse().unwrap(),
        };
        let losses: Vec<f64> = losses.iter().map(parse).collect();
        match (LossWeight::new(settings).unwrap().weights(&losses, step), weights) {
            (Ok(ours), Some(theirs)) => {
                assert_eq!(ours.len(), theirs.len(), "{name}");
                for (ours, theirs) in ours.iter().zip(theirs) {
                    let difference = (ours - theirs).abs() * losses.len() as f64;
                    assert!(difference <= 1e-12, "{name}: {ours} instead of {theirs}");
                    worst = worst.max(difference);
                    n_weights += 1;
                }
            }
            (Err(LossWeightError::NotFinite { n_losses, not_finite: ours }), None) => {
                assert_eq!(n_losses, losses.len(), "{name}");
                assert_eq!(ours.iter().map(|(place, _)| *place).collect::<Vec<_>>(), not_finite, "{name}");
            }
            (Err(LossWeightError::NoneFinite { n_losses }), None) => {
                assert_eq!((n_losses, not_finite.len()), (losses.len(), losses.len()), "{name}");
            }
            (ours, theirs) => panic!("{name}: {ours:?} instead of {theirs:?}"),
        }
    }
    println!("{n_weights} weights, largest difference {worst:.1e} times the mean");
    assert!(n_weights > 2_000, "only {n_weights} weights were compared");
}

#[test]
fn a_million_weights_sum_up() {
    let losses: Vec<f64> = (0..1_000_000u32).map(|i| f64::from(i.wrapping_mul(2_654_435_761)) / 1e9).collect();
    for strategy in [LossStrategy::KlDro, LossStrategy::Quadratic, LossStrategy::Cvar { share: 0.3 }] {
        let weights = weights(published(strategy, 0.4), &losses);
        // In integers, so that the test itself rounds nothing.
        let unit = 2f64.powi(100);
        let sum: i128 = weights.iter().map(|weight| (weight * unit) as i128).sum();
        let off = (sum - unit as i128) as f64 / unit;
        assert!(off.abs() < 1e-15, "{strategy:?}: off by {off:e}");
    }
}

/// A corrupt document takes ten times the mean and switches the method off for all others; quantiles prevent both.
#[test]
fn one_outlier_rules_the_published_range_and_not_the_robust_one() {
    let mut losses: Vec<f64> = (0..1_023).map(|i| 3.0 + 0.5 * (f64::from(i % 89) - 44.0) / 22.0).collect();
    losses.push(50.0);
    let settings = published(LossStrategy::LinUpper, 0.4);
    let multiples = |range| -> Vec<f64> {
        weights(LossWeightSettings { range, ..settings }, &losses).iter().map(|w| w * losses.len() as f64).collect()
    };
    let ratio =
        |multiples: &[f64]| max(&multiples[..1_023]) / multiples[..1_023].iter().copied().fold(f64::MAX, f64::min);
    let (published, robust) = (multiples(LossRange::MinMax), multiples(LossRange::Quantiles { tail: 0.01 }));
    assert!(published[1_023] > 10.0 && ratio(&published) < 1.3, "{} and {}", published[1_023], ratio(&published));
    assert!(robust[1_023] < 1.5 && ratio(&robust) > 10.0, "{} and {}", robust[1_023], ratio(&robust));
}

#[test]
fn messages_name_the_losses() {
    let error = |non_finite, losses: &[f64]| {
        let settings = LossWeightSettings { non_finite, ..Default::default() };
        LossWeight::new(settings).unwrap().weights(losses, 0).unwrap_err().to_string()
    };
    assert_eq!(
        error(NonFiniteLoss::Error, &[1.0, f64::NAN, 2.0, f64::INFINITY]),
        "2 of 4 losses are not finite: number 1 is NaN, number 3 is inf"
    );
    let many = error(NonFiniteLoss::Error, &[f64::NAN; 900]);
    assert!(
        many.starts_with("900 of 900 losses are not finite: number 0 is NaN") && many.ends_with("number 4 is NaN, …")
    );
    assert_eq!(
        error(NonFiniteLoss::Zero, &[f64::NAN; 2]),
        "none of 2 losses is finite: there is nothing that could have a weight"
    );
}
