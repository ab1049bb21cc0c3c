use proptest::prelude::*;

use super::*;
use crate::features::NgramHash;

const BUCKETS: u32 = 1_000;

fn featuriser() -> Featuriser {
    Featuriser { hash: NgramHash::Fast, max_n: 2, buckets: BUCKETS }
}

/// A small generator: the tests need the same documents every time.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    /// Two of three n-grams of one of two topics, the third of any.
    fn document(&mut self) -> Vec<u32> {
        let topic = 300 * self.below(2) as u32;
        (0..600).map(|i| if i % 3 < 2 { topic + self.below(300) as u32 } else { self.below(1_000) as u32 }).collect()
    }

    fn noise(&mut self) -> f64 {
        (0..12).map(|_| self.below(1 << 20) as f64 / (1 << 20) as f64).sum::<f64>() - 6.0
    }
}

/// Every n-gram has a loss of its own, and a document the mean of its n-grams', so that the regression can be right.
fn loss_of(document: &[u32]) -> f64 {
    let of_ngram = |bucket: &u32| if *bucket < 300 { 2.0 } else { 4.0 };
    document.iter().map(of_ngram).sum::<f64>() / document.len() as f64
}

fn learn(predictor: &mut LossPredictor, random: &mut Random, n: usize, most: usize, shift: f64) {
    for _ in 0..n {
        let document = random.document();
        let loss = loss_of(&document) + shift + 0.1 * random.noise();
        predictor.observe(&sample_ngrams(&document, most), loss, 0.1);
    }
}

#[test]
fn what_losses_follow_from_is_learnt_and_said_of_documents_never_seen() {
    for (most, least_explained) in [(usize::MAX, 0.9), (256, 0.9), (64, 0.7)] {
        let (mut predictor, mut random) = (LossPredictor::new(&featuriser(), 2_000.0), Random(7));
        learn(&mut predictor, &mut random, 8_000, most, 0.0);
        let explained = predictor.evaluation().explained().unwrap();
        println!(
            "{most} n-grams: R² {explained:.3}, mean absolute error {:.3}",
            predictor.evaluation().mean_absolute_error().unwrap()
        );
        assert!(explained > least_explained, "{most} n-grams: {explained}");
        let expected = predictor.expected();
        for _ in 0..200 {
            let document = random.document();
            let mut list = BucketList::new(BUCKETS);
            list.extend(&document);
            assert!((expected.of_list(&list) - loss_of(&document)).abs() < 0.25);
        }
        let calibration = predictor.evaluation().calibration();
        println!("{calibration:.3?}");
        assert!(calibration.len() >= 2 && calibration.iter().all(|t| (t.predicted - t.observed).abs() < 0.2));
    }
}

#[test]
fn a_trainer_that_moves_on_is_followed() {
    let (mut predictor, mut random) = (LossPredictor::new(&featuriser(), 1_000.0), Random(8));
    learn(&mut predictor, &mut random, 4_000, 256, 2.0);
    learn(&mut predictor, &mut random, 4_000, 256, 0.0);
    let expected = predictor.expected();
    let (mut error, mut list) = (0.0, BucketList::new(BUCKETS));
    for _ in 0..200 {
        let document = random.document();
        list.clear();
        list.extend(&document);
        error += (expected.of_list(&list) - loss_of(&document)) / 200.0;
    }
    assert!(error.abs() < 0.15, "two nats too many became {error}");
}

#[test]
fn losses_without_a_cause_are_not_explained() {
    let (mut predictor, mut random) = (LossPredictor::new(&featuriser(), 2_000.0), Random(9));
    for _ in 0..8_000 {
        let document = random.document();
        predictor.observe(&sample_ngrams(&document, 256), 3.0 + 0.5 * random.noise(), 0.1);
    }
    let explained = predictor.evaluation().explained().unwrap();
    println!("noise: R² {explained:.3}");
    assert!((-0.1..0.02).contains(&explained), "{explained}");
}

#[test]
fn no_loss_throws_the_model() {
    let (mut predictor, mut random) = (LossPredictor::new(&featuriser(), 2_000.0), Random(10));
    learn(&mut predictor, &mut random, 4_000, 256, 0.0);
    let document = sample_ngrams(&random.document(), 256);
    let before = predictor.expected().of_list(&document);
    predictor.observe(&document, 50.0, 1e-9);
    let moved = predictor.expected().of_list(&document) - before;
    assert!(moved > 0.0 && moved < 2.5, "47 nats more than usual moved it by {moved}");
}

/// Found by `tests/fuzz`: nothing could be scored with them.
#[test]
fn featurisers_that_are_none_are_not_read() {
    for max_n in [0, Featuriser::MAX_N + 1] {
        let predictor = LossPredictor::new(&Featuriser { max_n, ..featuriser() }, 100.0);
        let expected = ExpectedLoss::from_bytes(&predictor.expected().to_bytes()).unwrap_err();
        assert_eq!(LossPredictor::from_bytes(&predictor.to_bytes()).unwrap_err(), expected);
        assert!(expected.to_string().contains("must be 1 to 8"), "{expected}");
    }
}

proptest! {
    #[test]
    fn a_sample_has_its_size_and_every_part(n in 0usize..3_000, most in 1usize..300) {
        let all: Vec<u32> = (0..n as u32).collect();
        let mut found: Vec<u32> = Vec::new();
        sample_ngrams(&all, most).for_each_chunk(|chunk| found.extend_from_slice(chunk));
        prop_assert_eq!(found.len(), n.min(most));
        for (i, &bucket) in found.iter().enumerate() {
            prop_assert!((i * n / found.len()..(i + 1) * n / found.len()).contains(&(bucket as usize)));
        }
    }

    #[test]
    fn bytes_come_back_and_damage_is_noticed(seed in any::<u64>(), n in 0usize..20, at in 0usize..20_000, flip in 1u8..) {
        let (mut predictor, mut random) = (LossPredictor::new(&featuriser(), 100.0), Random(seed));
        learn(&mut predictor, &mut random, n, 64, 0.0);
        let mut bytes = predictor.to_bytes();
        let mut again = LossPredictor::from_bytes(&bytes).unwrap();
        prop_assert_eq!(&again, &predictor);
        // The next step is the same, bit for bit.
        let document = sample_ngrams(&random.document(), 64);
        prop_assert_eq!(again.observe(&document, 2.0, 0.5).to_bits(), predictor.observe(&document, 2.0, 0.5).to_bits());
        prop_assert_eq!(again, predictor.clone());
        let expected = predictor.expected();
        let mut short = expected.to_bytes();
        prop_assert_eq!(ExpectedLoss::from_bytes(&short).unwrap(), expected);
        for bytes in [&mut bytes, &mut short] {
            let at = at % bytes.len();
            prop_assert!(LossPredictor::from_bytes(&bytes[..at]).is_err() && ExpectedLoss::from_bytes(&bytes[..at]).is_err());
            bytes[at] ^= flip;
            prop_assert!(LossPredictor::from_bytes(bytes).is_err() && ExpectedLoss::from_bytes(bytes).is_err());
        }
    }

    #[test]
    fn a_prediction_does_not_depend_on_how_a_document_is_cut(seed in any::<u64>(), cut in 0usize..600) {
        let (mut predictor, mut random) = (LossPredictor::new(&featuriser(), 100.0), Random(seed));
        learn(&mut predictor, &mut random, 10, 64, 0.0);
        let (expected, document) = (predictor.expected(), random.document());
        let whole = expected.of_sum(expected.add(0.0, &document), document.len() as u64);
        let (head, tail) = document.split_at(cut);
        prop_assert_eq!(expected.of_sum(expected.add(expected.add(0.0, head), tail), document.len() as u64), whole);
    }
}
