//! A published window beside the same window decided again.

use std::collections::BTreeMap;
use std::fmt::Display;

use arrow::array::ArrayRef;
use arrow::datatypes::Field;

use crate::pipeline::FurtherColumns;
use crate::record::TopicPartition;
use crate::sink::PublishedRow;
use crate::window::{ClosedWindow, SelectedDocument, TurnSummary, WindowSummary};

/// What differs, in the order of offsets; nothing if all is the same to the last bit. `rows` are those that the shard has of
/// the window; of their further columns see [`FurtherComparison`].
pub fn differences(published: &WindowSummary, rows: &[PublishedRow], again: &ClosedWindow) -> Vec<String> {
    let mut found = Vec::new();
    let mut differ = |what: &str, published: &dyn Display, now: &dyn Display| {
        found.push(format!("{what}: published {published}, now {now}"));
    };
    let now = &again.summary;
    for (what, published, now) in [
        ("records", published.n_records, now.n_records),
        ("selected", published.n_selected, now.n_selected),
        ("rejected", published.n_rejected, now.n_rejected),
        ("too short", published.n_too_short, now.n_too_short),
        ("dead letters", published.n_dead_letters, now.n_dead_letters),
        ("payload bytes", published.payload_bytes, now.payload_bytes),
        ("rows in the shard", published.n_selected, rows.len() as u64),
    ] {
        if published != now {
            differ(what, &published, &now);
        }
    }
    // Earlier versions did not count them.
    if published.n_filtered.is_some() && published.n_filtered != now.n_filtered {
        differ("filtered", &published.n_filtered.unwrap_or_default(), &now.n_filtered.unwrap_or_default());
    }
    if published.threshold.map(f64::to_bits) != now.threshold.map(f64::to_bits) {
        let shown = |threshold: Option<f64>| threshold.map_or("none".to_owned(), |t| t.to_string());
        differ("threshold", &shown(published.threshold), &shown(now.threshold));
    }
    if published.turns.len() != now.turns.len() {
        differ("turns", &published.turns.len(), &now.turns.len());
    }
    for (i, (published, now)) in published.turns.iter().zip(&now.turns).enumerate() {
        let bits = |turn: &TurnSummary| turn.threshold.map(f64::to_bits);
        if (published, bits(published)) != (now, bits(now)) {
            differ(&format!("turn {i}"), &shown(published), &shown(now));
        }
    }
    // Numbers are written such that they are read back to the last bit.
    let strata = |window: &WindowSummary| serde_json::to_string(&window.coverage).unwrap_or_default();
    if strata(published) != strata(now) {
        differ("strata", &strata(published), &strata(now));
    }
    let sensitivity = |window: &WindowSummary| serde_json::to_string(&window.sensitivity).unwrap_or_default();
    if sensitivity(published) != sensitivity(now) {
        differ("sensitivities", &sensitivity(published), &sensitivity(now));
    }
    // Earlier versions measured selected documents to themselves, which none does now.
    let is_comparable = published.spread.is_none_or(|spread| spread.skips_itself);
    let json = |window: &WindowSummary| serde_json::to_string(&window.spread).unwrap_or_default();
    if is_comparable && json(published) != json(now) {
        differ("what the selection covers", &json(published), &json(now));
    }
    let mut by_offset: BTreeMap<i64, (Option<&PublishedRow>, Option<&SelectedDocument>)> = BTreeMap::new();
    rows.iter().for_each(|row| by_offset.entry(row.offset).or_default().0 = Some(row));
    again.selected.iter().for_each(|document| by_offset.entry(document.offset).or_default().1 = Some(document));
    let id = published.id();
    for (offset, both) in by_offset {
        match both {
            (Some(row), Some(document)) => compare(row, document, &id, &mut found),
            (Some(row), None) => {
                found.push(format!("offset {offset} (`{}`) is in the shard, and not selected now", row.id));
            }
            (None, Some(document)) => {
                found.push(format!(
                    "offset {offset} (`{}`) is selected now, and not in the shard",
                    document.document.id
                ));
            }
            (None, None) => {}
        }
    }
    found
}

/// The further columns of rows of a window beside those of the documents that are selected again, which come some at a time.
pub struct FurtherComparison<'a> {
    further: &'a FurtherColumns,
    fields: Vec<Field>,
    at: &'a TopicPartition,
    by_offset: BTreeMap<i64, &'a PublishedRow>,
    found: Vec<String>,
}

impl<'a> FurtherComparison<'a> {
    /// `rows`: those that the shard has of the window, with its further columns.
    pub fn new(window: &'a WindowSummary, rows: &'a [PublishedRow], further: &'a FurtherColumns) -> Self {
        let fields = further.fields();
        let rows = if fields.is_empty() { &[] } else { rows };
        let by_offset = rows.iter().map(|row| (row.offset, row)).collect();
        FurtherComparison { further, fields, at: &window.at, by_offset, found: Vec::new() }
    }

    /// Computes the columns of all these, which takes memory.
    pub fn look(&mut self, documents: &[SelectedDocument]) {
        let documents: Vec<_> = documents.iter().filter(|of| self.by_offset.contains_key(&of.offset)).collect();
        if documents.is_empty() {
            return;
        }
        let now = self.further.of(&documents, self.at);
        for (i, document) in documents.iter().enumerate() {
            let row = self.by_offset[&document.offset];
            for (field, now) in self.fields.iter().zip(&now.arrays) {
                let now = now.slice(i, 1);
                let published = row.derived.iter().find(|(name, _)| name == field.name()).map(|(_, value)| value);
                if published != Some(&now) {
                    let published = published.map_or("none".to_owned(), value);
                    let (offset, name) = (row.offset, field.name());
                    self.found.push(format!("offset {offset}: {name}: published {published}, now {}", value(&now)));
                }
            }
        }
    }

    /// What differs of those that it has looked at.
    pub fn differences(self) -> Vec<String> {
        self.found
    }
}

fn value(array: &ArrayRef) -> String {
    arrow::util::display::array_value_to_string(array, 0).unwrap_or_else(|e| e.to_string())
}

fn shown(turn: &TurnSummary) -> String {
    let TurnSummary { source, target, n_candidates, n_selected, threshold, tokens } = turn;
    let name = |name: &Option<String>| name.clone().unwrap_or_else(|| "-".to_owned());
    let threshold = threshold.map_or("none".to_owned(), |t| t.to_string());
    let tokens =
        tokens.map_or(String::new(), |of| format!(", {} of {} tokens for {}", of.selected, of.candidates, of.budget));
    format!("{} for {}: {n_selected} of {n_candidates}{tokens}, threshold {threshold}", name(source), name(target))
}

fn compare(row: &PublishedRow, document: &SelectedDocument, window: &str, found: &mut Vec<String>) {
    let mut differ = |what: &str, published: &dyn Display, now: &dyn Display| {
        found.push(format!("offset {}: {what}: published {published}, now {now}", row.offset));
    };
    if row.id != document.document.id {
        differ("id", &row.id, &document.document.id);
    }
    if row.held_out != document.held_out {
        let split = |held_out| if held_out { "validation" } else { "train" };
        differ("split", &split(row.held_out), &split(document.held_out));
    }
    if row.window != window {
        differ("window", &row.window, &window);
    }
    if row.log_importance_weights.len() != document.log_importance_weights.len() {
        let (published, now) = (row.log_importance_weights.len(), document.log_importance_weights.len());
        differ("weights for targets", &published, &now);
    }
    let by_target = row.log_importance_weights.iter().zip(&document.log_importance_weights).enumerate();
    for (number, ((name, published), now)) in by_target {
        if published.to_bits() != now.to_bits() {
            differ(&format!("log importance weight for {name}"), published, now);
        }
        if row.target.as_ref() == Some(name) && number != document.target {
            differ("target", name, &row.log_importance_weights[document.target].0);
        }
    }
    for (what, published, now) in [
        ("log importance weight", row.log_importance_weight, document.score.log_importance_weight),
        ("selection key", row.selection_key, document.selection_key),
        ("inclusion probability", row.inclusion_probability, document.inclusion_probability),
        ("sample weight", row.sample_weight, document.sample_weight),
    ] {
        if published.to_bits() != now.to_bits() {
            differ(what, &published, &now);
        }
    }
    let shown = |loss: Option<f64>| loss.map_or("none".to_owned(), |loss| loss.to_string());
    for &(column, published) in &row.losses {
        let now = match column {
            "loss" => document.score.loss,
            "loss_weight" => document.loss_weight,
            _ => document.score.expected_loss,
        };
        if published.map(f64::to_bits) != now.map(f64::to_bits) {
            differ(column, &shown(published), &shown(now));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Interval;
    use crate::manifest::DerivedSettings;
    use crate::pipeline::columns::derived_columns;
    use crate::record::Document;
    use crate::score::{NgramCounts, Score};
    use crate::select::SourceCounts;
    use crate::window::{CloseReason, SpreadSummary};

    fn turn(target: &str, threshold: f64) -> TurnSummary {
        let (n_candidates, n_selected) = (5, 1);
        let threshold = Some(threshold);
        TurnSummary {
            source: Some("web".into()),
            target: Some(target.into()),
            n_candidates,
            n_selected,
            threshold,
            tokens: None,
        }
    }

    /// A window of one document for the second of two targets, and its row.
    fn decided() -> (ClosedWindow, PublishedRow) {
        let summary = WindowSummary {
            at: TopicPartition::new("docs", 0),
            interval: Interval { from: 0, to: 10 },
            closed_by: CloseReason::Idle,
            n_records: 10,
            n_selected: 1,
            n_rejected: 9,
            n_too_short: 0,
            n_filtered: None,
            n_dead_letters: 0,
            payload_bytes: 5,
            threshold: None,
            kl_reduction: None,
            random_kl_reduction: None,
            raw_version: None,
            against_selected: None,
            expected_loss: None,
            quota_version: None,
            diagnostics: None,
            turns: vec![turn("code", 0.5), turn("math", 0.25)],
            targets: vec![],
            spread: None,
            coverage: None,
            sensitivity: None,
        };
        let (id, window) = ("d".to_owned(), summary.id());
        let document = Document { id: id.clone(), text: "x".into(), source: None, timestamp_ms: None, metadata: None };
        let score = Score { n_tokens: 1, log_importance_weight: 2.0, expected_loss: Some(3.5), ..Score::default() };
        let (selection_key, inclusion_probability) = (1.5, 0.5);
        let selected = SelectedDocument {
            offset: 3,
            document,
            score,
            target: 1,
            log_importance_weights: vec![1.0, 2.0],
            selection_key,
            inclusion_probability,
            sample_weight: 2.0,
            loss_weight: None,
            tenth: 9,
            held_out: false,
        };
        let row = PublishedRow {
            id,
            offset: 3,
            log_importance_weight: 2.0,
            selection_key,
            inclusion_probability,
            sample_weight: 2.0,
            window,
            held_out: false,
            target: Some("math".into()),
            log_importance_weights: vec![("code".into(), 1.0), ("math".into(), 2.0)],
            losses: vec![("loss", None), ("loss_weight", None), ("expected_loss", Some(3.5))],
            derived: vec![],
        };
        let counts = NgramCounts::zero(1);
        let (raw_counts, selected_counts, sources) = (counts.clone(), vec![counts], SourceCounts::default());
        let (selected, dead_letters) = (vec![selected], vec![]);
        let weights = vec![];
        let waiting = vec![];
        let window = ClosedWindow {
            summary,
            selected,
            waiting,
            dead_letters,
            raw_counts,
            selected_counts,
            sources,
            weights,
            clusters: None,
            edges: None,
        };
        (window, row)
    }

    #[test]
    fn turns_targets_weights_and_losses_are_compared_to_the_last_bit() {
        let (again, row) = decided();
        let published = again.summary.clone();
        assert_eq!(differences(&published, std::slice::from_ref(&row), &again), Vec::<String>::new());
        let differs = |change: fn(&mut WindowSummary, &mut PublishedRow), expected: &str| {
            let (mut published, mut row) = (published.clone(), row.clone());
            change(&mut published, &mut row);
            let found = differences(&published, &[row], &again);
            assert!(matches!(&found[..], [only] if only.contains(expected)), "{found:?} does not say `{expected}`");
        };
        differs(
            |window, _| window.turns[1].threshold = Some(0.25 + f64::EPSILON),
            "turn 1: published web for math: 1 of 5",
        );
        differs(|window, _| window.turns[0].n_selected = 2, "turn 0: published web for code: 2 of 5");
        differs(|window, _| drop(window.turns.pop()), "turns: published 1, now 2");
        differs(|_, row| row.held_out = true, "offset 3: split: published validation, now train");
        differs(|_, row| row.target = Some("code".into()), "offset 3: target: published code, now math");
        differs(|_, row| row.log_importance_weights[0].1 = -1.0, "log importance weight for code: published -1, now 1");
        differs(|_, row| row.sample_weight = 2.5, "offset 3: sample weight: published 2.5, now 2");
        differs(|_, row| row.losses[0].1 = Some(2.0), "loss: published 2, now none");
        differs(|_, row| row.losses[1].1 = Some(2.0), "loss_weight: published 2, now none");
        differs(|_, row| row.losses[2].1 = None, "expected_loss: published none, now 3.5");
        let mut other = row.clone();
        other.losses[2].1 = Some(3.5f64.next_up());
        assert_eq!(differences(&published, &[other], &again).len(), 1);
        // A shard that was written before the column came says nothing of it.
        let mut older = row.clone();
        older.losses.pop();
        assert_eq!(differences(&published, &[older], &again), Vec::<String>::new());
        differs(|_, row| row.log_importance_weights.clear(), "weights for targets: published 0, now 2");
    }

    /// Documents come some at a time: nobody holds all their texts.
    #[test]
    fn further_columns_are_compared_as_documents_come() {
        let columns = BTreeMap::from([("letters".to_owned(), "length(text)".to_owned())]);
        let derived = derived_columns(&DerivedSettings { columns, fields: BTreeMap::new() }).unwrap();
        let further = FurtherColumns::new(derived, None);
        let (again, row) = decided();
        let window = &again.summary;
        let document = |offset: i64| {
            let mut document = SelectedDocument { offset, ..again.selected[0].clone() };
            document.document.text = "x".repeat(offset as usize);
            document
        };
        let documents: Vec<_> = (1..8).map(document).collect();
        // One is not in the shard, and one has the value of another.
        let published = documents.iter().filter(|of| of.offset != 3).map(|of| {
            let value_of = if of.offset == 5 { &documents[0] } else { of };
            let derived = vec![("letters".to_owned(), further.of(&[value_of], &window.at).arrays[0].clone())];
            PublishedRow { offset: of.offset, derived, ..row.clone() }
        });
        let rows: Vec<_> = published.collect();
        for at_a_time in [1, 2, 7] {
            let mut comparison = FurtherComparison::new(window, &rows, &further);
            documents.chunks(at_a_time).for_each(|documents| comparison.look(documents));
            assert_eq!(comparison.differences(), ["offset 5: letters: published 1, now 5"]);
        }
    }

    /// What a selection covers was measured otherwise before.
    #[test]
    fn what_earlier_versions_measured_is_not_compared() {
        let (mut again, row) = decided();
        let measured = |auc_pr: f64, skips_itself| {
            let (n_sampled, n_selected, entropy) = (4, 2, 0.5);
            SpreadSummary {
                n_sampled,
                n_selected,
                auc_pr,
                auc_pr_of_random: 1.0,
                skips_itself,
                source_entropy_of_documents: entropy,
                source_entropy_of_selected: entropy,
            }
        };
        again.summary.spread = Some(measured(0.75, true));
        let n_differences = |spread| {
            let published = WindowSummary { spread, ..again.summary.clone() };
            differences(&published, std::slice::from_ref(&row), &again).len()
        };
        let of_version = |skips_itself| n_differences(Some(measured(0.5, skips_itself)));
        assert_eq!((of_version(false), of_version(true), n_differences(None)), (0, 1, 1));
    }
}
