use proptest::prelude::*;

use super::*;
use crate::select::Quotas;

fn settings(kind: SelectorKind) -> SelectorSettings {
    let fraction = "0.1".parse().unwrap();
    SelectorSettings {
        kind,
        fraction,
        unit: Default::default(),
        temperature: 1.0,
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

/// All that one target takes of files.
fn alone(selected: &[usize]) -> JudgedDraw<'_> {
    JudgedDraw { selected, n_selected_by_all: selected.len() as u64, is_window: false }
}

fn weights() -> impl Strategy<Value = Vec<f64>> {
    prop_oneof![
        proptest::collection::vec(-7_000.0f64..800.0, 1..200),
        proptest::collection::vec(-3.0f64..3.0, 1..200),
        proptest::collection::vec((-2i32..2).prop_map(f64::from), 1..50),
    ]
}

proptest! {
    #[test]
    fn effective_sample_size_is_between_1_and_n_and_grows_with_the_temperature(weights in weights(), t in 0.01f64..1e4, factor in 1.0f64..10.0) {
        let size = effective_sample_size(&weights, t).unwrap();
        prop_assert!((1.0..=weights.len() as f64).contains(&size), "{}", size);
        let hotter = effective_sample_size(&weights, t * factor).unwrap();
        prop_assert!(hotter >= size * (1.0 - 1e-12), "{} then {}", size, hotter);
    }

    #[test]
    fn effective_sample_size_does_not_see_a_shift(weights in weights(), shift in -1e3f64..1e3) {
        let shifted: Vec<f64> = weights.iter().map(|w| w + shift).collect();
        let (a, b) = (effective_sample_size(&weights, 50.0).unwrap(), effective_sample_size(&shifted, 50.0).unwrap());
        prop_assert!((a - b).abs() < 1e-9 * a);
    }

    #[test]
    fn k_equal_documents_among_nothing_are_worth_k(k in 1usize..40, n in 0usize..40) {
        let weights: Vec<f64> = (0..k).map(|_| 5.0).chain((0..n).map(|_| -1e6)).collect();
        prop_assert!((effective_sample_size(&weights, 1.0).unwrap() - k as f64).abs() < 1e-9);
    }

    #[test]
    fn the_temperature_found_gives_the_size_wanted(weights in weights(), share in 0.001f64..0.999) {
        let largest = weights.iter().copied().reduce(f64::max).unwrap();
        let least = weights.iter().filter(|w| **w == largest).count() as f64;
        let wanted = least + share * (weights.len() as f64 - least);
        match temperature_for_effective_sample_size(&weights, wanted) {
            Some(t) => {
                let size = effective_sample_size(&weights, t).unwrap();
                prop_assert!((size - wanted).abs() < 1e-3 * wanted, "{} at {} instead of {}", size, t, wanted);
            }
            None => prop_assert_eq!(least, weights.len() as f64, "there is no answer for equal weights only"),
        }
    }

    #[test]
    fn quantiles_are_those_of_a_full_sort(mut values in proptest::collection::vec(-50i32..50, 1..300)) {
        let q = Quantiles::of(values.iter().map(|v| f64::from(*v)).collect()).unwrap();
        values.sort_unstable();
        let at = |percent: f64| f64::from(values[((values.len() - 1) as f64 * percent / 100.0 + 1e-9).round() as usize]);
        prop_assert_eq!(q.named().map(|(_, v)| v), [0.0, 1.0, 25.0, 50.0, 75.0, 99.0, 100.0].map(at));
        let read: Quantiles = serde_json::from_str(&serde_json::to_string(&q).unwrap()).unwrap();
        prop_assert_eq!(read, q);
    }

    #[test]
    fn overlap_is_that_of_the_sorted_list(weights in proptest::collection::vec((-3i32..3).prop_map(f64::from), 1..60), picks in proptest::collection::btree_set(0usize..60, 0..60)) {
        let selected: Vec<usize> = picks.into_iter().filter(|i| *i < weights.len()).collect();
        let mut ranked: Vec<usize> = (0..weights.len()).collect();
        ranked.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]).then(a.cmp(&b)));
        ranked.truncate(selected.len());
        let both = selected.iter().filter(|i| ranked.contains(i)).count() as f64;
        let expected = (!selected.is_empty()).then(|| both / selected.len() as f64);
        prop_assert_eq!(top_k_overlap(&weights, &selected), expected);
    }

    #[test]
    fn correlation_is_symmetric_in_sign_and_bounded(pairs in proptest::collection::vec((-1e3f64..1e3, 0u32..10_000), 2..100)) {
        let (weights, lengths): (Vec<f64>, Vec<u32>) = pairs.into_iter().unzip();
        let negated: Vec<f64> = weights.iter().map(|w| -w).collect();
        match (weight_length_correlation(&weights, &lengths), weight_length_correlation(&negated, &lengths)) {
            (Some(r), Some(opposite)) => prop_assert!(r.abs() <= 1.0 && (r + opposite).abs() < 1e-12),
            (a, b) => prop_assert_eq!(a, b),
        }
    }
}

#[test]
fn what_cannot_be_answered_is_none() {
    assert_eq!(effective_sample_size(&[], 1.0), None);
    assert_eq!(effective_sample_size(&[0.0, f64::INFINITY], 1.0), None);
    assert_eq!(effective_sample_size(&[0.0, f64::NEG_INFINITY], 1.0), None);
    assert_eq!(effective_sample_size(&[0.0], f64::NAN), None);
    assert_eq!(effective_sample_size(&[0.0], 0.0), None);
    let none = |weights: &[f64], wanted| assert_eq!(temperature_for_effective_sample_size(weights, wanted), None);
    none(&[], 1.0);
    none(&[1.0, f64::NAN], 1.5);
    none(&[1.0, f64::NEG_INFINITY], 1.5);
    none(&[3.0, 3.0, 1.0], 1.5);
    none(&[3.0, 2.0, 1.0], 3.0);
    none(&[3.0, 2.0, 1.0], f64::NAN);
    none(&[2.0, 2.0], 1.5);
    assert_eq!(temperature_for_effective_sample_size(&[2.0, 2.0], 2.0), Some(1.0));
    assert_eq!(temperature_for_effective_sample_size(&[-7.0], 1.0), Some(1.0));
    assert_eq!(weight_length_correlation(&[], &[]), None);
    assert_eq!(weight_length_correlation(&[0.1; 30], &[1; 30]), None);
    assert_eq!(weight_length_correlation(&[0.1; 3], &[1, 2, 3]), None);
    assert_eq!(weight_length_correlation(&[0.1, 0.2], &[7, 7]), None);
    assert_eq!(top_k_overlap(&[1.0, 2.0], &[]), None);
    assert_eq!(Quantiles::of(vec![]), None);
}

#[test]
fn two_weights_by_hand() {
    // e⁰ and e⁻¹: (1 + 0.36788)² / (1 + 0.13534).
    assert!((effective_sample_size(&[0.0, -1.0], 1.0).unwrap() - 1.648_054).abs() < 1e-6);
    assert!((effective_sample_size(&[0.0, -10.0], 10.0).unwrap() - 1.648_054).abs() < 1e-6);
    let r = weight_length_correlation(&[1.0, 2.0, 3.0, 5.0], &[10, 8, 6, 2]).unwrap();
    assert!((r + 1.0).abs() < 1e-12, "{r}");
    let q = Quantiles::of(vec![5.0, 1.0, 4.0, 2.0, 3.0]).unwrap();
    assert_eq!(q.named().map(|(_, v)| v), [1.0, 1.0, 2.0, 3.0, 4.0, 5.0, 5.0]);
}

#[test]
fn quantiles_of_the_first_version_are_read() {
    let old = r#"{"min":1.0,"q25":2.0,"median":3.0,"q75":4.0,"max":5.0}"#;
    let q: Quantiles = serde_json::from_str(old).unwrap();
    assert_eq!(q.named().map(|(_, v)| v), [1.0, 1.0, 2.0, 3.0, 4.0, 5.0, 5.0]);
}

#[test]
fn a_collapsed_draw_is_told_in_plain_words_with_a_way_out() {
    // As sums of documents of mixed length are: thousands of nats apart.
    let weights: Vec<f64> = (0..1_000).map(|i| -f64::from(i) * 7.8 + 800.0).collect();
    let lengths: Vec<u32> = (0..1_000).map(|i| 20 + 3 * i).collect();
    let selected: Vec<usize> = (0..100).collect();
    let settings = settings(SelectorKind::ImportanceResampling);
    let d = Diagnostics::of(&settings, &weights, &lengths, &alone(&selected));
    assert!(d.is_collapsed && d.effective_sample_size.unwrap() < 1.01 && d.top_k_overlap == Some(1.0), "{d:?}");
    assert!(d.weight_length_correlation.unwrap() < -0.999, "{d:?}");
    let suggested = d.suggested_temperature.unwrap();
    assert!((effective_sample_size(&weights, suggested).unwrap() - 100.0).abs() < 0.1);
    let text = d.warning("selection.temperature =").unwrap();
    for said in
        ["100 of 1000 documents", "1.0 independent", "100.0 %", &format!("`selection.temperature = {suggested:.0}`")]
    {
        assert!(text.contains(said), "`{said}` is not in: {text}");
    }

    let mended = SelectorSettings { temperature: suggested, ..settings.clone() };
    let d = Diagnostics::of(&mended, &weights, &lengths, &alone(&selected));
    assert!(!d.is_collapsed && d.suggested_temperature.is_none() && d.warning("").is_none(), "{d:?}");
    let top_k = SelectorSettings { kind: SelectorKind::TopK, ..settings.clone() };
    assert!(!Diagnostics::of(&top_k, &weights, &lengths, &alone(&selected)).is_collapsed, "top-k is no draw");
    let all: Vec<usize> = (0..1_000).collect();
    assert!(!Diagnostics::of(&settings, &weights, &lengths, &alone(&all)).is_collapsed, "nothing was left to chance");
    let none = Diagnostics::of(&settings, &[], &[], &alone(&[]));
    assert_eq!(none, Diagnostics::default());
    let json = serde_json::to_string(&d).unwrap();
    assert_eq!(serde_json::from_str::<Diagnostics>(&json).unwrap(), d);
}

/// Two targets that take everything leave nothing to chance, though neither takes all.
#[test]
fn what_all_targets_took_together_is_no_draw() {
    let weights: Vec<f64> = (0..100).map(|i| f64::from(i) * -50.0).collect();
    let (settings, lengths) = (settings(SelectorKind::ImportanceResampling), [1; 100]);
    let half: Vec<usize> = (0..50).collect();
    let is_collapsed = |n_selected_by_all, is_window| {
        let draw = JudgedDraw { selected: &half, n_selected_by_all, is_window };
        Diagnostics::of(&settings, &weights, &lengths, &draw).is_collapsed
    };
    for is_window in [false, true] {
        assert!(is_collapsed(50, is_window) && is_collapsed(99, is_window) && !is_collapsed(100, is_window));
    }
}

/// A few documents of one selection are told; of one window of many only what a tenth can tell.
#[test]
fn a_few_documents_can_have_collapsed() {
    let settings = settings(SelectorKind::ImportanceResampling);
    let is_collapsed = |weights: &[f64], n: usize, is_window| {
        let selected: Vec<usize> = (0..n).collect();
        let draw = JudgedDraw { is_window, ..alone(&selected) };
        let d = Diagnostics::of(&settings, weights, &vec![1; weights.len()], &draw);
        assert_eq!(d.warning("--temperature").is_some(), d.is_collapsed);
        d.is_collapsed
    };
    let apart: Vec<f64> = (0..200).map(|i| f64::from(i) * -50.0).collect();
    let alike = [0.0; 200];
    for n in 2..30 {
        assert!(is_collapsed(&apart, n, false) && !is_collapsed(&alike, n, false), "{n} selected");
        assert_eq!(is_collapsed(&apart, n, true), n > 10, "{n} of a window");
    }
    assert!(!is_collapsed(&apart, 1, false), "one document is the best that one draw can be worth");
    assert!(!is_collapsed(&apart, 0, false) && !is_collapsed(&apart[..2], 2, false));
}

#[test]
fn temperatures_are_shown_with_three_digits() {
    let seen = [0.012_345, 0.5, 1.0, 12.345, 123.45, 123_456.0].map(shown);
    assert_eq!(seen, ["0.0123", "0.500", "1.00", "12.3", "123", "123000"]);
}
