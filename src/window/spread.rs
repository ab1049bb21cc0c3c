//! How well the selection of a window covers its documents: AUC_pr, on a sample that is bounded and a function of positions.
//!
//! From each of `selection.coverage_sample` documents the distance is measured to the nearest of some selected documents, at most
//! half as many, and to the nearest of as many random ones: the sample is cut in two, and each half is random to the other. No
//! document is measured to itself: AUC_pr is an expectation over the distribution that documents come from, of which a selected one
//! is as good a draw as any other, and a random selection must come to what random documents come to. What would cost more than it
//! is worth is left out: of windows with few documents for the sample only some are measured.

use serde::{Deserialize, Serialize};

use super::CloseReason;
use crate::features::{BucketList, Featuriser, PointScratch, Projection, Scratch};
use crate::select::{NearestDistances, Noise, Reservoir, SelectorSettings, SourceCounts};

/// A window of so many documents for each one of the sample is always measured, a smaller one in proportion less often. For each one
/// there are one and a half points, and a point takes as long as to score two documents with `fast` (benches/README.md).
const DOCUMENTS_PER_SAMPLED: u64 = 300;

/// Longer lists become points at once: 4,000 n-grams of up to 65,536 buckets, some 9 kB of English.
const MAX_LIST_BYTES: usize = 8 << 10;

const PROJECTION: Projection = Projection::OF_TEXTS;

/// What is kept of a document's text to say how far it is from others.
#[derive(Debug, Clone, PartialEq)]
pub enum Fingerprint {
    Buckets(BucketList),
    Point(Vec<f32>),
}

impl Fingerprint {
    /// `None`: of a text whose buckets nobody wants to hold.
    pub fn of(list: Option<&BucketList>, text: &str, featuriser: &Featuriser, features: &mut Scratch) -> Self {
        match list {
            Some(list) if list.as_bytes().len() <= MAX_LIST_BYTES => Fingerprint::Buckets(list.clone()),
            Some(list) => Fingerprint::Point(PROJECTION.of_list(list, &mut PointScratch::default())),
            None => Fingerprint::Point(PROJECTION.of_text(text, featuriser, features)),
        }
    }

    fn into_point(self, scratch: &mut PointScratch) -> Vec<f32> {
        match self {
            Fingerprint::Buckets(list) => PROJECTION.of_list(&list, scratch),
            Fingerprint::Point(point) => point,
        }
    }

    fn size_bytes(&self) -> usize {
        size_of::<Fingerprint>()
            + match self {
                Fingerprint::Buckets(list) => list.held_bytes(),
                Fingerprint::Point(point) => size_of_val(&point[..]),
            }
    }
}

/// What the selection of a window covers, of the documents that could be selected. Distances are those of projected n-gram
/// distributions: √2 between texts that have no n-gram in common.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SpreadSummary {
    /// Documents that distances were measured from.
    pub n_sampled: u64,
    /// Selected documents that they were measured to, and as many random ones.
    pub n_selected: u64,
    /// Mean distance to the nearest selected document (Zheng et al. 2023: AUC_pr). Lower covers better.
    pub auc_pr: f64,
    /// The same to the nearest random one.
    pub auc_pr_of_random: f64,
    /// Whether no document was measured to itself. Earlier versions measured selected ones so, which are no distance away then.
    #[serde(default)]
    pub skips_itself: bool,
    /// Entropy over sources, in nats: of all documents, and of the selected ones.
    pub source_entropy_of_documents: f64,
    pub source_entropy_of_selected: f64,
}

/// The sample while its window is open.
#[derive(Debug)]
pub(super) struct Sample {
    size: usize,
    held: Reservoir<Fingerprint>,
    held_bytes: usize,
}

impl Sample {
    /// `None` where nothing is measured.
    pub fn new(selector: &SelectorSettings) -> Option<Self> {
        let size = selector.coverage_sample as usize;
        // One half is measured against the other.
        (size > 1).then(|| Sample { size, held: Reservoir::new(size), held_bytes: 0 })
    }

    /// Whether a candidate with this sampling number may belong to it.
    pub fn might_hold(&self, number: f64) -> bool {
        self.held.might_hold(number)
    }

    pub fn offer(&mut self, offset: i64, noise: &Noise, fingerprint: Fingerprint) {
        self.held_bytes += fingerprint.size_bytes();
        let out = self.held.offer(offset, noise.sampling(offset), fingerprint);
        self.held_bytes -= out.map_or(0, |out| out.size_bytes());
    }

    pub fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Whether the window is measured. A quiet stream's always is: it costs nothing there.
    pub fn is_measured(&self, closed_by: CloseReason, n_documents: u64, from: i64, noise: &Noise) -> bool {
        let is_quiet = matches!(closed_by, CloseReason::Idle | CloseReason::Age);
        let enough = (self.size as u64 * DOCUMENTS_PER_SAMPLED) as f64;
        is_quiet || noise.measuring(from) < n_documents as f64 / enough
    }

    /// How many selected documents are looked at: of those that are selected, and of the half that is random.
    pub fn n_compared(&self, n_candidates: usize, n_selected: usize) -> usize {
        n_selected.min(self.size.min(n_candidates) / 2)
    }

    /// `selected`: as many of the selected documents as [`Sample::n_compared`] says, chosen at random, with their offsets; of none
    /// nothing can be said.
    pub fn measure(self, selected: Vec<(i64, Fingerprint)>, sources: &SourceCounts) -> Option<SpreadSummary> {
        let n_compared = selected.len();
        let mut scratch = PointScratch::default();
        let ranked = self.held.into_ranked().into_iter().take(self.size);
        let (mut even, mut odd) = (Vec::new(), Vec::new());
        for (rank, chosen) in ranked.enumerate() {
            let half = if rank % 2 == 0 { &mut even } else { &mut odd };
            half.push((chosen.offset, chosen.item.into_point(&mut scratch)));
        }
        let selected: Vec<_> = selected.into_iter().map(|(offset, of)| (offset, of.into_point(&mut scratch))).collect();
        let (mut n_sampled, mut sums) = (0, [0.0; 2]);
        for (half, other) in [(&even, &odd), (&odd, &even)] {
            for (offset, from) in half {
                let selected_others = || selected.iter().filter(|(selected, _)| selected != offset);
                // As many random ones as there are others: one that is selected has one less.
                let random = other.iter().take(selected_others().count());
                // Of the only selected document nothing can be said.
                let distances = nearest(from, selected_others()).zip(nearest(from, random));
                let Some((to_selected, to_random)) = distances else { continue };
                n_sampled += 1;
                sums = [sums[0] + to_selected, sums[1] + to_random];
            }
        }
        if n_sampled == 0 {
            return None;
        }
        let (source_entropy_of_documents, source_entropy_of_selected) = sources.entropies();
        Some(SpreadSummary {
            n_sampled,
            n_selected: n_compared as u64,
            auc_pr: sums[0] / n_sampled as f64,
            auc_pr_of_random: sums[1] / n_sampled as f64,
            skips_itself: true,
            source_entropy_of_documents,
            source_entropy_of_selected,
        })
    }
}

/// How far the nearest of some documents is from a point; `None` without any.
fn nearest<'a>(from: &[f32], to: impl Iterator<Item = &'a (i64, Vec<f32>)>) -> Option<f64> {
    let mut distances = NearestDistances::new(&[from.to_vec()]);
    to.for_each(|(_, point)| distances.selected(point));
    distances.auc_pr()
}

/// The selected documents that are looked at, by offset: those with the highest numbers.
pub(super) fn compared(offsets: impl Iterator<Item = i64>, n: usize, noise: &Noise) -> Vec<i64> {
    let mut best = Reservoir::new(n);
    for offset in offsets {
        best.offer(offset, noise.comparing(offset), ());
    }
    best.into_items().into_iter().map(|chosen| chosen.offset).collect()
}
