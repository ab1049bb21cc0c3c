use std::collections::BTreeMap;

use proptest::prelude::*;
use serde::Deserialize;

use super::*;
use crate::record::{LossDecoder, TopicPartition};
use crate::score::{LossWeightSettings, NonFiniteLoss};

const DECODER: LossDecoder = LossDecoder { max_bytes: 1 << 20, max_entries: 10_000 };
const SETTINGS: AssemblySettings =
    AssemblySettings { deadline_ms: 1_000, max_pending_bytes: 1 << 20, remembered_steps: 100 };

fn partition() -> TopicPartition {
    TopicPartition::new("losses", 0)
}

fn assemble(reports: Vec<LossReport>) -> Vec<Assembled> {
    let mut assembly = Assembly::new(SETTINGS);
    for (offset, report) in reports.into_iter().enumerate() {
        assembly.take(report, &partition(), offset as i64, 0);
    }
    std::iter::from_fn(|| assembly.next_batch(SETTINGS.deadline_ms)).collect()
}

/// One line of what `tests/reference/make_batch_weights.py` has written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    settings: LossWeightSettings,
    reports: Vec<String>,
    /// Rank, place, reason.
    bad: Vec<(u32, usize, String)>,
    expected: Option<Expected>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    ids: Vec<String>,
    weights: Vec<f64>,
    effective_sample_size: f64,
    missing_ranks: Vec<u32>,
}

#[test]
fn an_independent_program_comes_to_the_same_batches() {
    let mut n_weights = 0;
    for line in include_str!("../../../tests/reference/batch_weights.jsonl").lines() {
        let Case { name, settings, reports, bad, expected } = serde_json::from_str(line).unwrap();
        let weigh = LossWeight::new(settings).unwrap();
        let reports = reports.iter().map(|json| DECODER.decode(Some(json.as_bytes())).unwrap());
        let [assembled] = &assemble(reports.collect())[..] else { panic!("{name}: not one batch") };
        let ours = BatchWeights::of(&weigh, assembled.batch.clone());
        let Some(expected) = expected else {
            let error = ours.expect_err(&name).to_string();
            let (rank, place, reason) = &bad[0];
            let of_rank = if assembled.batch.world_size > 1 { format!(" of rank {rank}") } else { String::new() };
            assert!(error.contains(&format!("number {place}{of_rank} (`")), "{name}: {error}");
            assert!(error.contains(&format!("is {reason}")), "{name}: {error}");
            continue;
        };
        let ours = ours.expect(&name);
        let ids: Vec<_> = ours.weights.iter().map(|sample| sample.id.as_deref().unwrap()).collect();
        assert_eq!(ids, expected.ids, "{name}");
        for (ours, theirs) in ours.weights.iter().zip(&expected.weights) {
            let difference = (ours.weight - theirs).abs() * ids.len() as f64;
            assert!(difference <= 1e-12, "{name}: {} instead of {theirs}", ours.weight);
            n_weights += 1;
        }
        let difference = (ours.effective_sample_size - expected.effective_sample_size).abs();
        assert!(difference <= 1e-9, "{name}: {}", ours.effective_sample_size);
        assert_eq!(ours.missing_ranks, expected.missing_ranks, "{name}");
        assert_eq!((ours.n_samples, ours.n_bad), (ids.len(), bad.len()), "{name}");
        assert_eq!(ours.ranks.iter().map(|rank| rank.n_samples).sum::<usize>(), ours.n_samples, "{name}");
        let reasons: Vec<_> = ours.bad.iter().map(|b| (b.rank, b.place, b.reason.to_owned())).collect();
        assert_eq!(reasons, bad, "{name}");
    }
    assert!(n_weights > 1_500, "only {n_weights} weights were compared");
}

fn report(run_id: &str, step: u64, rank: u32, world_size: u32, losses: &[f64]) -> LossReport {
    let rows: Vec<_> = losses.iter().enumerate().map(|(i, l)| serde_json::json!({"id": i, "loss": l})).collect();
    let json =
        serde_json::json!({"run_id": run_id, "step": step, "rank": rank, "world_size": world_size, "losses": rows});
    DECODER.decode(Some(json.to_string().as_bytes())).unwrap()
}

#[test]
fn the_answer_is_json_of_a_fixed_shape() {
    let settings = LossWeightSettings { non_finite: NonFiniteLoss::Uniform, ..Default::default() };
    let weigh = LossWeight::new(settings).unwrap();
    let json = br#"{"run_id":"r","step":7,"losses":[{"id":"a","loss":2},{"loss":2}]}"#;
    let batch = GlobalBatch::of_one(DECODER.decode(Some(json)).unwrap());
    let answer = serde_json::to_string(&BatchWeights::of(&weigh, batch).unwrap()).unwrap();
    assert_eq!(
        answer,
        r#"{"run_id":"r","step":7,"strategy":"lin_upper","temperature":null,"world_size":1,"missing_ranks":[],"n_samples":2,"n_bad":1,"effective_sample_size":2.0,"ranks":[{"rank":0,"n_samples":2}],"weights":[{"id":"a","weight":0.5},{"id":null,"weight":0.5}],"bad":[{"rank":0,"place":1,"id":null,"reason":"no_id"}]}"#
    );
}

#[test]
fn a_batch_without_samples_has_no_weights() {
    let weigh = LossWeight::new(LossWeightSettings::default()).unwrap();
    let answer = BatchWeights::of(&weigh, GlobalBatch::of_one(report("r", 5_000, 0, 1, &[]))).unwrap();
    assert_eq!((answer.weights.len(), answer.effective_sample_size), (0, 0.0));
}

#[test]
fn digests_tell_losses_apart_and_not_spellings() {
    let digest = |json: &str| GlobalBatch::of_one(DECODER.decode(Some(json.as_bytes())).unwrap()).digest();
    let rows = digest(
        r#"{"run_id":"r","step":1,"losses":[{"id":"a","loss":2.5,"n_tokens":2},{"id":"b","loss":1,"n_tokens":1}]}"#,
    );
    let columns = r#"{"step":1,"run_id":"r","doc_ids":["a","b"],"loss_sum":[5,1],"tokens":[2,1]}"#;
    assert_eq!(digest(columns), rows);
    for other in [
        r#"{"step":1,"run_id":"r","doc_ids":["b","a"],"loss_sum":[1,5],"tokens":[1,2]}"#,
        r#"{"step":1,"run_id":"r","doc_ids":["a","b"],"loss_sum":[5,1.5],"tokens":[2,1]}"#,
        r#"{"step":1,"run_id":"r","doc_ids":["a","b"],"loss_sum":[5,2],"tokens":[2,2]}"#,
        r#"{"step":1,"run_id":"r","doc_ids":["a","c"],"loss_sum":[5,1],"tokens":[2,1]}"#,
        r#"{"step":1,"run_id":"r","doc_ids":["a"],"loss_sum":[5],"tokens":[2]}"#,
        r#"{"step":1,"run_id":"r","doc_ids":["a","b"],"loss_sum":[5,NaN],"tokens":[2,1]}"#,
    ] {
        assert_ne!(digest(other), rows, "{other}");
    }
}

#[test]
fn known_steps_forget_the_oldest() {
    let mut steps = KnownSteps::new(2);
    let key = |step| ("r".to_owned(), step);
    assert_eq!(steps.enter(key(1), 'a'), Entered::New);
    assert_eq!(steps.enter(key(2), 'b'), Entered::New);
    assert_eq!((steps.enter(key(1), 'a'), steps.enter(key(1), 'x')), (Entered::Same, Entered::Other));
    assert_eq!(steps.get(&key(1)), Some(&'a'));
    assert_eq!(steps.enter(key(3), 'c'), Entered::New);
    assert_eq!((steps.get(&key(1)), steps.get(&key(2)), steps.get(&key(3))), (None, Some(&'b'), Some(&'c')));
    assert_eq!(KnownSteps::new(0).enter(key(1), 'a'), Entered::New);
}

#[test]
fn ranks_that_are_late_repeat_themselves_or_live_in_another_world_change_nothing() {
    let (mut assembly, at) = (Assembly::new(SETTINGS), partition());
    let take = |assembly: &mut Assembly, report, now| assembly.take(report, &at, 0, now);
    assert_eq!(take(&mut assembly, report("r", 1, 0, 3, &[1.0, 2.0]), 0), Taken::Kept);
    assert_eq!(take(&mut assembly, report("r", 1, 0, 3, &[1.0, 2.0]), 5), Taken::Repeated);
    assert_eq!(take(&mut assembly, report("r", 1, 0, 3, &[1.0, 2.5]), 5), Taken::OtherLosses);
    assert_eq!(take(&mut assembly, report("r", 1, 1, 2, &[1.0]), 5), Taken::OtherWorld);
    assert_eq!(take(&mut assembly, report("r", 1, 2, 3, &[3.0]), 900), Taken::Kept);
    assert_eq!((assembly.next_batch(999), assembly.n_pending()), (None, 1));
    let Assembled { batch, why } = assembly.next_batch(1_000).unwrap();
    assert_eq!((why, batch.missing_ranks(), batch.reports.len()), (Why::Deadline, vec![1], 2));
    assert_eq!(take(&mut assembly, report("r", 1, 1, 3, &[1.0]), 1_001), Taken::Late);
    assert_eq!((assembly.next_batch(i64::MAX), assembly.n_pending(), assembly.pending_bytes()), (None, 0, 0));
}

#[test]
fn a_reader_begins_again_before_what_waits() {
    let (mut assembly, at, other) = (Assembly::new(SETTINGS), partition(), TopicPartition::new("losses", 1));
    assert_eq!(assembly.safe_offset(&at, 70), 70);
    assembly.take(report("a", 1, 0, 2, &[1.0]), &at, 70, 0);
    assembly.take(report("b", 1, 0, 2, &[1.0]), &at, 71, 0);
    assembly.take(report("c", 1, 0, 2, &[1.0]), &other, 5, 0);
    assert_eq!((assembly.safe_offset(&at, 72), assembly.safe_offset(&other, 6)), (70, 5));
    assembly.take(report("a", 1, 1, 2, &[1.0]), &at, 72, 0);
    assert_eq!(assembly.next_batch(0).unwrap().why, Why::Complete);
    assert_eq!(assembly.safe_offset(&at, 73), 71);
    assembly.forget(std::slice::from_ref(&at));
    assert_eq!((assembly.safe_offset(&at, 73), assembly.safe_offset(&other, 6), assembly.n_pending()), (73, 5, 1));
    // Whoever reads it again begins anew.
    assert_eq!(assembly.take(report("b", 1, 0, 2, &[1.0]), &at, 71, 0), Taken::Kept);
}

/// A report among several runs, steps and ranks; the losses follow from those.
fn reports() -> impl Strategy<Value = (u8, u64, u32)> {
    (0u8..3, 0u64..4, 0u32..4)
}

/// Worlds have one to four ranks.
fn said(run: u8, step: u64, rank: u32) -> LossReport {
    let world_size = (u32::from(run) + step as u32) % 4 + 1;
    report(&format!("run-{run}"), step, rank % world_size, world_size, &[f64::from(rank % world_size), step as f64])
}

proptest! {
    /// Whatever the order of the reports and however often each comes: as soon as all ranks are there a batch comes out, once,
    /// and it is the same batch.
    #[test]
    fn order_and_repetition_mean_nothing(named in prop::collection::vec(reports(), 1..80)) {
        let mut expected: BTreeMap<StepKey, BTreeMap<u32, LossReport>> = BTreeMap::new();
        let (mut assembly, at) = (Assembly::new(SETTINGS), partition());
        for (offset, (run, step, rank)) in named.into_iter().enumerate() {
            let report = said(run, step, rank);
            let key = (report.run_id.clone(), step);
            let of_step = expected.entry(key.clone()).or_default();
            let taken = assembly.take(report.clone(), &at, offset as i64, 0);
            let wanted = match of_step.len() as u32 {
                n if n == report.world_size => Taken::Late,
                _ if of_step.contains_key(&report.rank) => Taken::Repeated,
                _ => Taken::Kept,
            };
            prop_assert_eq!(taken, wanted);
            of_step.entry(report.rank).or_insert_with(|| report.clone());
            let complete = taken == Taken::Kept && of_step.len() as u32 == report.world_size;
            let batch = assembly.next_batch(SETTINGS.deadline_ms - 1);
            prop_assert_eq!(batch.is_some(), complete);
            if let Some(Assembled { batch, why }) = batch {
                prop_assert_eq!((why, &batch.run_id, batch.step), (Why::Complete, &key.0, key.1));
                prop_assert!(batch.reports.iter().eq(of_step.values()));
                prop_assert!(batch.missing_ranks().is_empty());
            }
        }
    }

    /// What waits is bounded, every report that was kept comes out exactly once or still waits, deadlines hold, and no
    /// offset of a report that waits is passed.
    #[test]
    fn nothing_is_lost_or_kept_beyond_its_bounds(
        named in prop::collection::vec((reports(), 0i64..400), 1..120),
        max_pending_bytes in 0usize..2_000,
        deadline_ms in 0i64..2_000,
        remembered_steps in 0usize..8,
    ) {
        let settings = AssemblySettings { deadline_ms, max_pending_bytes, remembered_steps };
        let (mut assembly, at) = (Assembly::new(settings), partition());
        let (mut now, mut n_kept, mut n_out) = (0, 0, 0);
        let mut waiting: BTreeMap<StepKey, (i64, i64)> = BTreeMap::new();
        for (offset, ((run, step, rank), pause)) in named.into_iter().enumerate() {
            now += pause;
            let report = said(run, step, rank);
            let key = (report.run_id.clone(), step);
            if assembly.take(report, &at, offset as i64, now) == Taken::Kept {
                n_kept += 1;
                waiting.entry(key).or_insert((now, offset as i64));
            }
            prop_assert!(assembly.pending_bytes() <= max_pending_bytes);
            while let Some(Assembled { batch, why }) = assembly.next_batch(now) {
                n_out += batch.reports.len();
                let (began, _) = waiting.remove(&(batch.run_id.clone(), batch.step)).expect("it waited");
                prop_assert_eq!(why == Why::Complete, batch.missing_ranks().is_empty());
                prop_assert!(why != Why::Deadline || now - began >= deadline_ms);
                prop_assert!(batch.reports.is_sorted_by_key(|report| report.rank));
            }
            prop_assert!(waiting.values().all(|(began, _)| now - began < deadline_ms));
            prop_assert_eq!(assembly.n_pending(), waiting.len());
            let safe = assembly.safe_offset(&at, offset as i64 + 1);
            prop_assert!(waiting.values().all(|(_, first)| safe <= *first));
            prop_assert_eq!(safe == offset as i64 + 1, waiting.is_empty());
        }
        while let Some(Assembled { batch, .. }) = assembly.next_batch(i64::MAX) {
            n_out += batch.reports.len();
        }
        prop_assert_eq!((n_out, assembly.n_pending(), assembly.pending_bytes()), (n_kept, 0, 0));
    }
}
