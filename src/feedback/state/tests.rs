use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::record::BadLoss;

const SETTINGS: FeedbackSettings = FeedbackSettings {
    half_life: 1_000.0,
    mixing: Some(Mixing::Odm(crate::feedback::OdmPolicy::Grouped)),
    floor: 0.01,
};

fn featuriser(buckets: u32) -> Featuriser {
    Featuriser { buckets, ..Featuriser::default() }
}

fn state() -> FeedbackState {
    FeedbackState::new(featuriser(100), 0, &SETTINGS)
}

fn document(i: u32) -> KnownDocument {
    let mut ngrams = BucketList::new(1 << 16);
    ngrams.extend(&[i % 100, (i + 1) % 100, (i * i) % 100]);
    let facts = DocumentFacts {
        source: (!i.is_multiple_of(4)).then(|| format!("s{}", i % 4)),
        stratum: (i % 10) as u8,
        inclusion_probability: 0.1,
        text_bytes: 100,
        ngrams,
    };
    KnownDocument { facts, epoch: 0, reported: None }
}

/// Documents `d0` to `d19` are known.
fn facts() -> Facts {
    Facts { documents: (0..20).map(|i| (document_key(&format!("d{i}")), document(i))).collect(), ..Facts::default() }
}

fn report(run: &str, step: u64, rank: u32, losses: &[(&str, f64)]) -> LossReport {
    let losses = losses.iter().map(|(id, loss)| SampleLoss { id: (*id).to_owned(), loss: *loss, n_tokens: Some(20) });
    LossReport {
        run_id: run.to_owned(),
        step,
        rank,
        world_size: 8,
        selection_epoch: None,
        manifest_sequence: None,
        losses: losses.collect(),
        bad: Vec::new(),
    }
}

/// What becomes of the one loss in each report.
fn outcomes(state: &mut FeedbackState, facts: &mut Facts, reports: &[LossReport]) -> Vec<LossOutcome> {
    let take = |report| {
        let outcomes = state.take(std::slice::from_ref(report), 0, facts, &SETTINGS);
        assert_eq!(outcomes.values().sum::<u64>(), 1);
        *outcomes.keys().next().unwrap()
    };
    reports.iter().map(take).collect()
}

#[test]
fn copies_and_latecomers_are_told_apart_and_counted_by_reason() {
    use LossOutcome::*;
    let (mut state, mut facts) = (state(), facts());
    let d1 = |run, step, rank| report(run, step, rank, &[("d1", 2.0)]);
    let cases = [
        (d1("r", 5_000, 0), Counted),
        (d1("r", 5_000, 0), Duplicate),
        (d1("r", 5_000, 1), Duplicate),
        (d1("r", 4_990, 0), OutOfOrder),
        (d1("r", 3_900, 0), TooOld),
        (d1("r", 5_010, 0), Counted),
        // Another document of a step that came before: the next part of its report.
        (report("r", 5_000, 0, &[("d2", 2.0)]), Counted),
        (report("r", 4_500, 0, &[("d3", 2.0)]), Counted),
        (report("r", 5_011, 0, &[("nobody", 2.0)]), UnknownId),
        (report("r", 5_011, 0, &[("d4", 31.0)]), Implausible),
        // Another run reports the document, then the first one is sent again.
        (d1("q", 7, 0), Counted),
        (d1("r", 5_010, 0), Duplicate),
        (d1("r", 5_012, 0), Counted),
    ];
    let (reports, expected): (Vec<_>, Vec<_>) = cases.into_iter().unzip();
    assert_eq!(outcomes(&mut state, &mut facts, &reports), expected);
    let summary = state.summary();
    assert_eq!(summary.losses["counted"], 6);
    assert_eq!((summary.losses["duplicate"], summary.n_reports, summary.match_ratio), (3, 13, Some(6.0 / 7.0)));
}

#[test]
fn more_tokens_than_bytes_and_what_the_decoder_refused_are_harmless() {
    let (mut state, mut facts) = (state(), facts());
    let mut bad = report("r", 1, 0, &[("d1", 2.0)]);
    bad.losses[0].n_tokens = Some(1_000_000);
    bad.bad.push(BadLoss { place: 1, id: None, reason: BadLossReason::NotFinite });
    let untouched = state.predictor.clone();
    let taken = state.take(&[bad], 2, &mut facts, &SETTINGS);
    let expected = [(LossOutcome::Implausible, 1), (LossOutcome::Bad(BadLossReason::NotFinite), 1)];
    assert_eq!(taken, BTreeMap::from(expected));
    assert_eq!((state.summary().n_bad_reports, state.has_turn(), &state.predictor), (2, false, &untouched));
}

#[test]
fn another_featuriser_begins_an_epoch_and_older_feedback_is_stale() {
    let (mut first, mut facts) = (state(), facts());
    first.take(&[report("r", 1, 0, &[("d1", 2.0)])], 0, &mut facts, &SETTINGS);
    assert_eq!(first.clone().for_featuriser(featuriser(100), &SETTINGS), first);
    let mut second = first.for_featuriser(featuriser(50), &SETTINGS);
    assert_eq!((second.epoch(), second.summary().losses["counted"]), (1, 1));
    let mut of_epoch = report("r", 2, 0, &[("d1", 2.0)]);
    assert_eq!(outcomes(&mut second, &mut facts, &[of_epoch.clone()]), [LossOutcome::Stale], "published in epoch 0");
    facts.documents.get_mut(&document_key("d1")).unwrap().epoch = 1;
    of_epoch.selection_epoch = Some(0);
    assert_eq!(outcomes(&mut second, &mut facts, &[of_epoch.clone()]), [LossOutcome::Stale], "so says the trainer");
    of_epoch.selection_epoch = Some(1);
    of_epoch.step = 3;
    assert_eq!(outcomes(&mut second, &mut facts, &[of_epoch]), [LossOutcome::Counted]);
}

#[test]
fn a_turn_moves_the_quotas_once() {
    let (mut state, mut facts) = (state(), facts());
    assert!(!state.has_turn() && state.quotas().is_empty());
    state.take(&[report("r", 1, 0, &[("d1", 1.0), ("d2", 5.0), ("d3", 1.0)])], 0, &mut facts, &SETTINGS);
    assert!(state.has_turn());
    for _ in 0..40 {
        state.end_turn(&SETTINGS);
        state.numbers.turn.add(Some("s1"), 1.0, 10.0);
        state.numbers.turn.add(Some("s2"), 5.0, 10.0);
        state.numbers.turn.add(Some("s3"), 1.0, 10.0);
    }
    let quotas = state.quotas();
    assert!(quotas["s2"] > quotas["s1"] && quotas["s1"] > 0.009, "{quotas:?}");
    assert!(
        (quotas.values().sum::<f64>() - 0.99).abs() < 1e-9,
        "a hundredth is left to sources that nobody knows: {quotas:?}"
    );
    state.end_turn(&FeedbackSettings { mixing: None, ..SETTINGS });
    assert!(state.quotas().is_empty() && !state.has_turn());
}

fn reports() -> impl Strategy<Value = Vec<LossReport>> {
    let losses = proptest::collection::vec((0u32..25, 0.0f64..12.0), 0..6);
    let report = (0u32..2, 0u64..40, 0u32..3, losses).prop_map(|(run, step, rank, losses)| {
        let ids: Vec<_> = losses.iter().map(|(i, loss)| (format!("d{i}"), *loss)).collect();
        let losses: Vec<_> = ids.iter().map(|(id, loss)| (id.as_str(), *loss)).collect();
        report(&format!("r{run}"), step, rank, &losses)
    });
    proptest::collection::vec(report, 0..40)
}

proptest! {
    /// However reports are cut into batches, and whatever was written and read back in between.
    #[test]
    fn batches_do_not_matter_and_every_loss_has_one_outcome(reports in reports(), cut in 0usize..40) {
        let (mut whole, mut all) = (state(), facts());
        let taken = whole.take(&reports, 0, &mut all, &SETTINGS);
        let n_losses: usize = reports.iter().map(|report| report.losses.len()).sum();
        prop_assert_eq!(taken.values().sum::<u64>(), n_losses as u64);

        let (head, tail) = reports.split_at(cut.min(reports.len()));
        let (mut parts, mut facts) = (state(), facts());
        parts.take(head, 0, &mut facts, &SETTINGS);
        let (json, predictor) = parts.to_parts();
        let mut parts = FeedbackState::from_parts(&json, &predictor).unwrap();
        parts.take(tail, 0, &mut facts, &SETTINGS);
        prop_assert_eq!(&parts, &whole);
        prop_assert_eq!(facts.documents, all.documents);
    }

    /// Everything sent again, in any order and in any parts, with another run in between: no loss counts twice, and within one
    /// run nothing changes at all.
    #[test]
    fn what_is_sent_again_does_not_count(reports in reports(), order in any::<u64>()) {
        let (mut state, mut facts) = (state(), facts());
        let mut parts: Vec<LossReport> = reports.iter().flat_map(|report| {
            report.losses.iter().map(|loss| LossReport { losses: vec![loss.clone()], ..report.clone() })
        }).collect();
        let mut counted = BTreeSet::new();
        let is_one_run = reports.iter().all(|report| report.run_id == "r0");
        for round in 0..2 {
            let before = state.predictor.clone();
            for part in &parts {
                if outcomes(&mut state, &mut facts, std::slice::from_ref(part)) == [LossOutcome::Counted] {
                    let key = (part.run_id.clone(), part.step, part.rank, part.losses[0].id.clone());
                    prop_assert!(counted.insert(key), "{:?} counts twice", part);
                }
            }
            prop_assert!(round == 0 || !is_one_run || state.predictor == before);
            parts.sort_by_key(|part| (part.step ^ order).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        }
    }
}
