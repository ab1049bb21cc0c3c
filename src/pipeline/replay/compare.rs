//! A published window beside the same window decided again.

use std::collections::BTreeMap;
use std::fmt::Display;

use crate::sink::PublishedRow;
use crate::window::{ClosedWindow, SelectedDocument, TurnSummary, WindowSummary};

/// What differs, in the order of offsets; nothing if all is the same to the last bit. `rows` are those that the shard has of
/// the window.
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

fn shown(turn: &TurnSummary) -> String {
    let TurnSummary { source, target, n_candidates, n_selected, threshold } = turn;
    let name = |name: &Option<String>| name.clone().unwrap_or_else(|| "-".to_owned());
    let threshold = threshold.map_or("none".to_owned(), |t| t.to_string());
    format!("{} for {}: {n_selected} of {n_candidates}, threshold {threshold}", name(source), name(target))
}

fn compare(row: &PublishedRow, document: &SelectedDocument, window: &str, found: &mut Vec<String>) {
    let mut differ = |what: &str, published: &dyn Display, now: &dyn Display| {
        found.push(format!("offset {}: {what}: published {published}, now {now}", row.offset));
    };
    if row.id != document.document.id {
        differ("id", &row.id, &document.document.id);
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
    ] {
        if published.to_bits() != now.to_bits() {
            differ(what, &published, &now);
        }
    }
}
