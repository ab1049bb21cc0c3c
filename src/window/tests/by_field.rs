//! Windows that are divided by the values of another field than the source: as if these were the sources.

use std::convert::Infallible;

use super::*;
use crate::select::{LossSource, Unit, Within};

const VALUES: [Option<&str>; 5] = [Some("de"), Some("en"), None, Some("de"), Some("fr")];

/// What came of a window of documents with these values in turn, as their source or in another field.
fn decide(selector: &SelectorSettings, is_source: bool) -> ClosedWindow {
    let model = model();
    let sources = [("de".to_owned(), 0.5), ("en".to_owned(), 0.3)].into();
    let field = (!is_source).then(|| "language".to_owned());
    let quotas = Quotas { field, sources, ..Quotas::default() };
    let (weight, division) = (weight(&model), Arc::new(Division::of(&quotas, &model)));
    let at = TopicPartition::new("docs", 1);
    let noise = Noise::new(selector.seed, &at);
    let mut window = OpenWindow::new(at, 100, &policy(), selector, opening(&division));
    let mut rows = Vec::new();
    for (offset, value) in (100..120).zip(VALUES.iter().cycle()) {
        let text = "good bad noise ".repeat(1 + offset as usize % 4);
        let mut record = record(offset, &text, &model);
        let scored = record.outcome.as_mut().unwrap();
        scored.numbers[0] = (offset * 7 % 5) as f64;
        scored.point = Some(vec![offset as f32, (offset * offset % 11) as f32, 1.0]);
        match &mut scored.content {
            Content::Whole(document) if is_source => document.source = value.map(str::to_owned),
            _ => scored.pool = Some(quotas.pool_of(*value)),
        }
        rows.extend(window.push(record, &weight, selector, &noise));
    }
    let points = |numbers: &[u32], look: &mut dyn FnMut(&Score, &[f32])| -> Result<(), Infallible> {
        numbers.iter().map(|number| &rows[*number as usize]).for_each(|row| look(&row.score, &row.point));
        Ok(())
    };
    let Ok(()) = window.place(selector, &noise, points);
    let mut kept = Vec::new();
    let show = |numbers: &[u32], look: &mut dyn FnMut(&SpooledRow)| -> Result<_, Infallible> {
        kept = numbers.iter().map(|number| rows[*number as usize].clone()).collect();
        kept.iter().for_each(look);
        Ok(())
    };
    let Ok(mut closed) = window.close_with(CloseReason::Idle, selector, &noise, &model.target_distribution(), show);
    let waited = closed.waiting.iter().zip(kept).map(|(decision, row)| decision.of(row, selector));
    closed.selected.extend(waited);
    closed
}

/// Whatever the selector, and whatever the sources are.
#[test]
fn values_of_a_field_divide_a_window_as_sources_do() {
    let importance = selector("0.5");
    for selector in [
        SelectorSettings { kind: SelectorKind::TopK, ..importance.clone() },
        SelectorSettings { unit: Unit::Tokens, ..importance.clone() },
        covered::covering(Within::Weighted, None, 3, "0.5"),
        sensitive::sensitive(LossSource::None, "0.5", 3),
        importance,
    ] {
        let [by_field, by_source] = [false, true].map(|is_source| decide(&selector, is_source));
        assert_eq!(by_field.summary, by_source.summary);
        let decided = |closed: &ClosedWindow| -> Vec<_> {
            let of_row = |row: &SelectedDocument| (row.offset, row.selection_key, row.inclusion_probability);
            closed.selected.iter().map(of_row).collect()
        };
        assert_eq!(decided(&by_field), decided(&by_source));
        // Sources are still what they were.
        let is_own = |row: &SelectedDocument| row.document.source == Some(format!("s{}", row.offset % 3));
        assert!(by_field.selected.iter().all(is_own));
        // Of eight documents in German, four in English and eight others.
        if selector.unit == Unit::Documents {
            let value = |row: &SelectedDocument| VALUES[(row.offset - 100) as usize % VALUES.len()];
            let n = |is: fn(Option<&str>) -> bool| by_field.selected.iter().filter(|row| is(value(row))).count();
            let others = n(|value| value.is_none_or(|value| value == "fr"));
            assert_eq!([n(|v| v == Some("de")), n(|v| v == Some("en")), others], [5, 3, 2], "{}", selector.name());
        }
    }
}
