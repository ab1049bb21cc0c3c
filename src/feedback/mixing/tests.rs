use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::feedback::PowerLaw;

/// Made by `tests/reference/make_feedback.py`, which shares no step with this code.
const REFERENCE: &str = include_str!("../../../tests/reference/feedback.jsonl");

fn cases(kind: &str) -> Vec<Value> {
    let cases = REFERENCE.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    cases.filter(|case| case["kind"] == kind).collect()
}

fn turn_of(value: &Value) -> Turn {
    serde_json::from_value::<BTreeMap<String, Sums>>(value.clone())
        .map(|sources| Turn { sources, n_losses: 1 })
        .unwrap()
}

#[test]
fn shares_agree_with_the_reference() {
    let (mut n_shares, mut worst_odm, mut worst_ado) = (0, 0f64, 0f64);
    for case in cases("mixing") {
        let mixing = Mixing::from_name(case["mixing"].as_str().unwrap()).unwrap();
        let mut mixer = Mixer::new(mixing);
        for (turn, expected) in case["turns"].as_array().unwrap().iter().zip(case["shares"].as_array().unwrap()) {
            mixer.turn(&turn_of(turn), mixing, case["floor"].as_f64().unwrap());
            let expected: BTreeMap<String, f64> = serde_json::from_value(expected.clone()).unwrap();
            assert_eq!(mixer.proportions().keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
            let worst = if mixing == Mixing::Ado { &mut worst_ado } else { &mut worst_odm };
            for (source, share) in &expected {
                *worst = worst.max((mixer.proportions()[source] - share).abs());
                n_shares += 1;
            }
        }
    }
    println!("{n_shares} shares, largest difference {worst_odm:.1e}, with laws fitted otherwise {worst_ado:.1e}");
    // Two optimisers do not find the same place of a flat valley to the last digit.
    assert!(n_shares > 3_000 && worst_odm < 1e-12 && worst_ado < 2e-4);
}

#[test]
fn laws_agree_with_the_reference() {
    let mut n = 0;
    for case in cases("law") {
        let points: Vec<(f64, f64)> = serde_json::from_value(case["points"].clone()).unwrap();
        let law = PowerLaw::fit(&points).unwrap();
        let (slope, expected) = (law.slope(points[points.len() - 1].0), case["slope"].as_f64().unwrap());
        let (value, best) = (law.objective(&points), case["objective"].as_f64().unwrap());
        println!("{}: {law:?}, objective {value:.9} and {best:.9}, slope {slope:.4e} and {expected:.4e}", case["name"]);
        assert!(value < best + 1e-9, "{}: {value} instead of {best}", case["name"]);
        // Where nothing is learnt any more, both are nothing.
        let difference = (slope - expected).abs();
        assert!(difference < 1e-3 * expected + 1e-15, "{}: slope {slope:e} instead of {expected:e}", case["name"]);
        n += 1;
    }
    assert_eq!(n, 4);
}

fn turns() -> impl Strategy<Value = Vec<BTreeMap<String, Sums>>> {
    let sums = (0.0f64..1e6, 1.0f64..1e5);
    proptest::collection::vec(proptest::collection::btree_map("[a-f]", sums, 0..6), 1..40)
}

proptest! {
    #[test]
    fn shares_sum_to_one_and_nobody_is_forgotten(turns in turns(), floor in 0.0f64..0.05, which in 0usize..4) {
        let mixing = Mixing::from_name(["odm", "odm_smoothed", "odm_exp3", "ado"][which]).unwrap();
        let mut mixer = Mixer::new(mixing);
        for sources in turns {
            mixer.turn(&Turn { sources, n_losses: 1 }, mixing, floor);
            let shares = mixer.proportions();
            if !shares.is_empty() {
                prop_assert!((shares.values().sum::<f64>() - 1.0).abs() < 1e-9);
                prop_assert!(shares.values().all(|share| (0.0..=1.0).contains(share)));
                if mixing != Mixing::Ado {
                    prop_assert!(shares.values().all(|share| *share > 0.999 * floor.min(1.0 / shares.len() as f64)));
                }
            }
            // As the catalog keeps it.
            let json = serde_json::to_string(&mixer).unwrap();
            prop_assert_eq!(&serde_json::from_str::<Mixer>(&json).unwrap(), &mixer);
        }
    }
}

/// Without a bound, a history of a million turns would be a million points.
#[test]
fn histories_are_bounded_and_cover_everything() {
    let mut ado = Ado::default();
    let turn = BTreeMap::from([("a".to_owned(), (2.0, 1.0)), ("b".to_owned(), (3.0, 1.0))]);
    (0..600).for_each(|_| ado.turn(&turn, 0.01));
    let json = serde_json::to_string(&ado).unwrap();
    assert!(json.len() < 20_000, "{} bytes", json.len());
    assert!((ado.proportions()["a"] + ado.proportions()["b"] - 1.0).abs() < 1e-12);
}
