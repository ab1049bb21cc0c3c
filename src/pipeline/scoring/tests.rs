use std::convert::Infallible;

use super::*;
use crate::config::Config;
use crate::features::Featuriser;
use crate::record::{Parts, RejectReason, TopicPartition};
use crate::score::{ImportanceWeight, Model, NgramCounts, Side, Target, TargetDistribution, WeightVersion};
use crate::select::{FilterSettings, Quotas};
use crate::window::{CloseReason, ClosedWindow, Opening, SpooledRow};

struct Setting {
    config: Config,
    weight: Arc<VersionedWeight>,
    target: TargetDistribution,
    model: Model,
    division: Arc<Division>,
    at: [TopicPartition; 2],
    /// Partition and payload; offsets count up in each partition.
    records: Vec<(usize, Option<Vec<u8>>)>,
}

/// For one target, or for two with a share for one of the sources.
fn setting(buckets: u32, is_divided: bool) -> Setting {
    // So that forty may be selected of a window.
    let toml = "model.path = \"none\"\ndocuments.loss_field = \"loss\"\nwindow.max_documents = 400\n[selection]\nfraction = 0.1\nmin_tokens = 3\ncoverage_sample = 10\n\
                loss_coefficient = 2\nloss_low = 0\nloss_high = 6";
    let config = Config::from_toml(toml, []).unwrap();
    let featuriser = Featuriser { buckets, ..Featuriser::default() };
    let side = |text: &str| {
        let mut counts = NgramCounts::zero(buckets as usize);
        counts.add_text(text, &featuriser, &mut Scratch::default());
        Side::of(counts)
    };
    let one = Model::of_one_target(featuriser, side("good words only"), side("bad noise good words")).unwrap();
    let (model, sources) = if is_divided {
        let target = |name: &str, text| Target { name: name.to_owned(), proportion: 0.5, side: side(text) };
        let targets = vec![target("a", "good words only"), target("b", "bad bad words 3")];
        (Model { targets, ..one }, [("s1".to_owned(), 0.5)].into())
    } else {
        (one, [].into())
    };
    let payload = |i: usize| match i {
        50 => Some(b"{\"text\":".to_vec()),
        60 => None,
        _ => {
            let n = if i == 70 { LONG_TEXT_BYTES / 4 } else { i % 23 };
            let text = format!("good {} words {}", "bad ".repeat(n), i % 7);
            let (source, loss) = (format!("s{}", i % 3), i % 7);
            let hard = if i.is_multiple_of(11) { "unknown".into() } else { serde_json::json!(i * i % 101) };
            let mut embedding = vec![i % 5, i % 9, i % 2];
            embedding.resize(if i.is_multiple_of(11) { 0 } else { 3 + usize::from(i.is_multiple_of(29)) }, i);
            let document = serde_json::json!({
                "text": text, "source": source, "loss": loss, "hard": hard, "embedding": embedding,
            });
            Some(document.to_string().into_bytes())
        }
    };
    Setting {
        config,
        weight: VersionedWeight::of_targets(WeightVersion::default(), ImportanceWeight::of_targets(&model), None),
        target: model.target_distribution(),
        division: Arc::new(Division::of(&Quotas { sources, ..Quotas::default() }, &model)),
        model,
        at: [0, 1].map(|partition| TopicPartition::new("docs", partition)),
        records: (0..400).map(|i| (usize::from(i % 5 == 0), payload(i))).collect(),
    }
}

impl Setting {
    /// The window of each partition, decided from batches of so many records; also how many came without their document.
    fn decide(&self, batch_records: usize) -> (Vec<ClosedWindow>, usize) {
        let Config { selector, window: policy, decoder, .. } = &self.config;
        let buckets = self.target.featuriser().buckets as usize;
        let open = |at: &TopicPartition| {
            let opening = Opening { division: &self.division, clusters: None, edges: None, buckets };
            OpenWindow::new(at.clone(), 0, policy, selector, opening)
        };
        let mut windows: Vec<_> = self.at.iter().map(open).collect();
        let noises: Vec<_> = self.at.iter().map(|at| Noise::new(selector.seed, at)).collect();
        let mut scorer = Scorer::new(decoder.clone(), 5);
        let compile = |filter| Arc::new(DocumentFilter::compile(filter).unwrap());
        scorer.filter_by(selector.filter.as_ref().map(compile));
        let (mut next, mut n_passed_over) = ([0, 0], 0);
        let mut spools = [Vec::new(), Vec::new()];
        for records in self.records.chunks(batch_records) {
            let mut batch = Batch::default();
            for (partition, payload) in records {
                let (at, offset, payload) = (&self.at[*partition], next[*partition], payload.as_deref());
                batch.push(Record {
                    at,
                    owner_epoch: 1,
                    offset,
                    timestamp_ms: Some(1),
                    payload,
                    parts: Parts::default(),
                });
                next[*partition] += 1;
            }
            let mut destinations = Destinations::new(selector, policy, &batch);
            let number = |(window, noise)| destinations.open(window, self.weight.clone(), noise);
            let numbers: Vec<_> = windows.iter().zip(&noises).map(number).collect();
            let number_of = |at: &TopicPartition| numbers[at.partition as usize];
            // Nobody decides the first record, as if its partition had been given up.
            let is_ours = |i: usize| i > 0 || next[0] + next[1] > batch.len() as i64;
            (0..batch.len()).for_each(|i| {
                destinations.record(is_ours(i).then(|| number_of(batch.get(i).at)), batch.payload_bytes(i));
            });
            let scored = scorer.score(&batch, destinations);
            for (window, counts) in windows.iter_mut().zip(scored.tallies) {
                scorer.count(counts, window);
            }
            for (i, record) in scored.records.into_iter().enumerate() {
                let Some(record) = record else { continue };
                let is_over = |d: &ScoredDocument| matches!(d.content, Content::PassedOver { .. });
                n_passed_over += usize::from(record.outcome.as_ref().is_ok_and(is_over));
                let partition = batch.get(i).at.partition as usize;
                spools[partition].extend(windows[partition].push(record, &self.weight, selector, &noises[partition]));
            }
        }
        let close = |((mut window, noise), spool): ((OpenWindow, &Noise), Vec<SpooledRow>)| {
            let points = |numbers: &[u32], look: &mut dyn FnMut(&Score, &[f32])| -> Result<(), Infallible> {
                numbers.iter().map(|number| &spool[*number as usize]).for_each(|row| look(&row.score, &row.point));
                Ok(())
            };
            let Ok(()) = window.place(selector, noise, points);
            let mut kept = Vec::new();
            let rows = |numbers: &[u32], look: &mut dyn FnMut(&SpooledRow)| -> Result<_, Infallible> {
                kept = numbers.iter().map(|number| spool[*number as usize].clone()).collect();
                kept.iter().for_each(look);
                Ok(())
            };
            let Ok(mut closed) = window.close_with(CloseReason::Idle, selector, noise, &self.target, rows);
            let waited = closed.waiting.iter().zip(kept).map(|(decision, row)| decision.of(row, selector));
            closed.selected.extend(waited);
            closed
        };
        (windows.into_iter().zip(&noises).zip(spools).map(close).collect(), n_passed_over)
    }
}

fn check(setting: &Setting) {
    let (expected, _) = setting.decide(1);
    assert_eq!(expected[1].summary.n_records, 79, "the first record is nobody's");
    let letters: Vec<_> = expected[1].dead_letters.iter().map(|letter| letter.payload.clone()).collect();
    assert_eq!(letters, [Some(b"{\"tex".to_vec()), None]);
    let is_measured = |window: &ClosedWindow| window.summary.spread.is_some_and(|spread| spread.n_sampled > 8);
    assert!(expected.iter().all(is_measured), "{:?}", expected.iter().map(|w| w.summary.spread).collect::<Vec<_>>());
    for batch_records in [3, 40, 150, 400] {
        let (found, n_passed_over) = setting.decide(batch_records);
        let is_whole = setting.division.is_whole() && !setting.config.selector.sees_whole_windows();
        let is_expected = if is_whole { n_passed_over > 100 } else { n_passed_over == 0 };
        assert!(is_expected, "{n_passed_over} of 400");
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(found.summary, expected.summary);
            assert_eq!((&found.selected, &found.dead_letters), (&expected.selected, &expected.dead_letters));
            assert_eq!(found.raw_counts, expected.raw_counts);
            assert_eq!(found.selected_counts, expected.selected_counts);
            assert_eq!(found.sources.top(9), expected.sources.top(9));
        }
    }
}

/// Batches of one record are counted by the window, larger ones by the threads.
#[test]
fn windows_are_the_same_whatever_the_batches() {
    check(&setting(64, false));
}

/// Whom the filter refuses is counted and not selected; of whom it cannot be told is a dead letter.
#[test]
fn also_where_a_filter_refuses_some() {
    for (buckets, is_divided) in [(64, false), (1 << 16, true)] {
        let mut setting = setting(buckets, is_divided);
        let (all, _) = setting.decide(7);
        let sql = "source <> 's1' AND 12 / (n_bytes - 13) < 9".to_owned();
        setting.config.selector.filter = Some(FilterSettings { sql, fields: [].into() });
        let (expected, _) = setting.decide(1);
        for batch_records in [7, 150, 400] {
            let (found, _) = setting.decide(batch_records);
            for (found, expected) in found.iter().zip(&expected) {
                assert_eq!(found.summary, expected.summary);
                assert_eq!((&found.selected, &found.dead_letters), (&expected.selected, &expected.dead_letters));
                assert_eq!(found.raw_counts, expected.raw_counts);
            }
        }
        // Texts of thirteen bytes ("good  words 5") are divided by zero, but for those of the source that is refused before.
        let failed = |w: &ClosedWindow| {
            let is_failure = |letter: &&DeadLetter| letter.reject.reason == RejectReason::FilterFailed;
            w.dead_letters.iter().filter(is_failure).count() as u64
        };
        let n_failed = failed(&expected[0]) + failed(&expected[1]);
        let is_one = |i: &usize| i.is_multiple_of(23) && i % 3 != 1;
        assert_eq!(n_failed, (1..400).filter(is_one).count() as u64);
        for (window, all) in expected.iter().zip(&all) {
            assert_eq!(window.summary.n_records, all.summary.n_records);
            assert!(window.summary.n_selected > 5, "{}", window.summary.n_selected);
            assert!(window.selected.iter().all(|row| row.document.source.as_deref() != Some("s1")));
            let (total, of_all) = (window.raw_counts.total(), all.raw_counts.total());
            assert!(
                total < of_all && total > of_all / 2,
                "only those that failed are not counted: {total} of {of_all}"
            );
        }
    }
}

/// So many buckets that the windows count all, the long text again from its bytes.
#[test]
fn also_where_nothing_is_counted_by_the_threads() {
    check(&setting(1 << 16, false));
}

/// Which of several targets may want a document is not known before it is offered: none is passed over.
#[test]
fn also_where_targets_and_sources_divide_them() {
    check(&setting(64, true));
    check(&setting(1 << 16, true));
}

/// What the field says is read with the record: a word of some, a number of others.
#[test]
fn also_where_another_field_divides_them() {
    for (buckets, has_targets) in [(64, false), (1 << 16, true)] {
        let mut setting = setting(buckets, has_targets);
        let sources = [("unknown".to_owned(), 0.5), ("81".to_owned(), 0.2)].into();
        let quotas = Quotas { field: Some("hard".to_owned()), sources, ..Quotas::default() };
        setting.division = Arc::new(Division::of(&quotas, &setting.model));
        setting.config.selector.quotas = quotas;
        check(&setting);
        let (windows, _) = setting.decide(40);
        for ClosedWindow { summary, selected, .. } in &windows {
            let hard = |row: &crate::window::SelectedDocument| {
                let metadata: serde_json::Value =
                    serde_json::from_str(row.document.metadata.as_ref().unwrap()).unwrap();
                metadata["hard"].as_str().map_or_else(|| metadata["hard"].to_string(), str::to_owned)
            };
            for value in ["unknown", "81"] {
                let turns = summary.turns.iter().filter(|turn| turn.source.as_deref() == Some(value));
                let of_value = selected.iter().filter(|row| hard(row) == value).count() as u64;
                assert_eq!(turns.map(|turn| turn.n_selected).sum::<u64>(), of_value);
                assert!(of_value > 0, "{:?}", summary.turns);
            }
        }
    }
}

/// So do these, by what stands in for embeddings, and by embeddings that some lack.
#[test]
fn also_where_they_are_drawn_by_sensitivity() {
    for (buckets, embedding) in [(64, ""), (1 << 16, ""), (64, "embedding_field = \"embedding\"")] {
        let mut setting = setting(buckets, false);
        let toml = format!(
            "model.path = \"none\"\ndocuments.loss_field = \"loss\"\n[selection]\nselector = \"sensitivity\"\n\
             centres = 5\n{embedding}"
        );
        setting.config.selector.sensitivity = Config::from_toml(&toml, []).unwrap().selector.sensitivity;
        check(&setting);
        let (windows, _) = setting.decide(40);
        for ClosedWindow { summary, selected, .. } in &windows {
            let sensitivity = summary.sensitivity.as_ref().unwrap();
            assert!(selected.len() as u64 == summary.n_selected && summary.n_selected > 5);
            assert_eq!((sensitivity.n_centres, sensitivity.losses), (5, crate::select::LossSource::Record));
            let is_embedded = !embedding.is_empty();
            assert_eq!(sensitivity.dimensions, if is_embedded { 3 } else { 128 });
            assert_eq!(sensitivity.n_without_embedding > 5, is_embedded, "{sensitivity:?}");
            assert_eq!(sensitivity.n_other_dimensions > 1, is_embedded, "{sensitivity:?}");
        }
    }
}

/// Documents that wait elsewhere, by a number of the record and by its loss, with and without targets and shares.
#[test]
fn also_where_they_are_spread_over_strata() {
    for (buckets, is_divided, importance) in [(64, false, "loss"), (1 << 16, true, "hard"), (64, true, "loss")] {
        let mut setting = setting(buckets, is_divided);
        let toml = format!(
            "model.path = \"none\"\ndocuments.loss_field = \"loss\"\n[selection]\nselector = \"coverage\"\nimportance = \"{importance}\"\n\
             strata = 4\ncutoff = 0.1\ncutoff_field = \"hard\""
        );
        setting.config.selector.coverage = Config::from_toml(&toml, []).unwrap().selector.coverage;
        check(&setting);
        let (windows, _) = setting.decide(40);
        for ClosedWindow { summary, selected, waiting, .. } in &windows {
            let coverage = summary.coverage.as_ref().unwrap();
            assert!(!selected.is_empty() && selected.len() == waiting.len() && coverage.n_cut > 0);
            // Records 50 and 60 are none; every eleventh has no number.
            assert!(coverage.n_without_number >= 6, "{coverage:?}");
            let strata = coverage.pools.iter().flat_map(|pool| &pool.strata);
            assert_eq!(strata.map(|stratum| stratum.n_selected).sum::<u64>(), summary.n_selected);
        }
    }
}
