//! Says once that draws collapse, and once that they do not any more, for each target.

use std::sync::Mutex;

use crate::select::Diagnostics;

/// Windows in a row without a collapse that count as recovered.
pub(super) const RECOVERED_AFTER: u32 = 10;
/// A draw of fewer cannot be told from a collapsed one: [`crate::select::is_collapsed`] says so of none.
const LEAST_SELECTED: u64 = 11;

/// The draws for one target.
#[derive(Debug, Default)]
struct CollapseWatch {
    /// What was said, until it is over.
    warning: Option<String>,
    sound_in_a_row: u32,
}

/// One for each target.
#[derive(Debug, Default)]
pub(super) struct CollapseWatches(Vec<CollapseWatch>);

/// Shared by all sessions of a daemon.
pub(super) type SharedCollapseWatches = Mutex<CollapseWatches>;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// With a warning for people.
    Collapsed(String),
    Recovered,
}

impl CollapseWatches {
    /// The draws of a window, one for each target, the same ones in every window. Gives what has changed, by target.
    pub fn observe(&mut self, draws: &[Diagnostics], length_normalised: bool) -> Vec<(usize, Change)> {
        self.0.resize_with(draws.len().max(self.0.len()), CollapseWatch::default);
        let watches = self.0.iter_mut().zip(draws).enumerate();
        let change = |(i, (watch, draw)): (usize, (&mut CollapseWatch, &Diagnostics))| {
            watch.observe(draw, length_normalised).map(|change| (i, change))
        };
        watches.filter_map(change).collect()
    }

    /// What a person should change, of the first target whose draws have collapsed.
    pub fn warning(&self) -> Option<(usize, &str)> {
        self.0.iter().enumerate().find_map(|(i, watch)| Some((i, watch.warning.as_deref()?)))
    }
}

impl CollapseWatch {
    fn observe(&mut self, diagnostics: &Diagnostics, length_normalised: bool) -> Option<Change> {
        if diagnostics.is_collapsed {
            self.sound_in_a_row = 0;
            let is_first = self.warning.is_none();
            let warning = diagnostics.warning("selection.temperature =").filter(|_| is_first)?;
            let or = if length_normalised { "" } else { ", or try `selection.length_normalise = true`" };
            let warning = format!(
                "{warning}{or}. Windows like this one are counted in winnowd_collapsed_windows_total and not logged again \
                 until {RECOVERED_AFTER} in a row were sound"
            );
            self.warning = Some(warning.clone());
            return Some(Change::Collapsed(warning));
        }
        if diagnostics.n_selected < LEAST_SELECTED || self.warning.is_none() {
            return None;
        }
        self.sound_in_a_row += 1;
        if self.sound_in_a_row < RECOVERED_AFTER {
            return None;
        }
        *self = CollapseWatch::default();
        Some(Change::Recovered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collapse_is_told_once_until_it_is_over() {
        let sound = Diagnostics { n_candidates: 1_000, n_selected: 100, ..Diagnostics::default() };
        let collapsed = Diagnostics {
            effective_sample_size: Some(1.5),
            is_collapsed: true,
            suggested_temperature: Some(120.0),
            ..sound
        };
        let tiny = Diagnostics { n_selected: 3, ..sound };
        let mut watch = CollapseWatch::default();
        assert_eq!(watch.observe(&sound, false), None);
        let Some(Change::Collapsed(warning)) = watch.observe(&collapsed, false) else { panic!("the first is told") };
        assert!(warning.contains("`selection.temperature = 120`"), "{warning}");
        assert!(warning.contains("`selection.length_normalise = true`"), "{warning}");
        let Some(Change::Collapsed(warning)) = CollapseWatch::default().observe(&collapsed, true) else {
            panic!("told")
        };
        assert!(!warning.contains("length_normalise"), "it is set already: {warning}");
        for _ in 0..3 {
            assert_eq!(watch.observe(&collapsed, false), None);
            (0..9).for_each(|_| assert_eq!(watch.observe(&sound, false), None));
        }
        assert_eq!(watch.observe(&collapsed, false), None, "nine sound windows are no recovery");
        (0..100).for_each(|_| assert_eq!(watch.observe(&tiny, false), None, "tiny windows say nothing"));
        (0..9).for_each(|_| assert_eq!(watch.observe(&sound, false), None));
        assert_eq!(watch.observe(&sound, false), Some(Change::Recovered));
        assert!(matches!(watch.observe(&collapsed, false), Some(Change::Collapsed(_))));
    }

    #[test]
    fn targets_are_watched_apart() {
        let sound = Diagnostics { n_candidates: 1_000, n_selected: 100, ..Diagnostics::default() };
        let collapsed = Diagnostics { effective_sample_size: Some(1.5), is_collapsed: true, ..sound };
        let mut watches = CollapseWatches::default();
        assert_eq!((watches.observe(&[sound, sound], false), watches.warning()), (vec![], None));
        let changes = watches.observe(&[sound, collapsed], false);
        assert!(matches!(&changes[..], [(1, Change::Collapsed(_))]), "{changes:?}");
        assert_eq!(watches.warning().map(|(target, _)| target), Some(1));
        assert_eq!(watches.observe(&[collapsed, collapsed], false).len(), 1, "the other is told by itself");
        assert_eq!(watches.warning().map(|(target, _)| target), Some(0));
        (0..9).for_each(|_| assert_eq!(watches.observe(&[sound, collapsed], false), []));
        assert_eq!(watches.observe(&[sound, collapsed], false), [(0, Change::Recovered)]);
        assert_eq!(watches.warning().map(|(target, _)| target), Some(1));
    }
}
