//! A window that is selected from by sensitivity: its centres are found, and its documents scored, when all have come. Until then
//! only numbers are held; the documents wait elsewhere, each with its point.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::candidates::{Candidate, Choice, Chosen, Deciding};
use super::columns::{self, Offsets};
use super::covered::{CHOSEN_BYTES, SpooledRow};
use crate::features::Projection;
use crate::score::Score;
use crate::select::{
    BudgetRounding, CentreSettings, Centres, ClusterAddition, ClusterMeans, Division, Fraction, LossSource, Noise,
    Pick, Reservoir, SamplePoint, SelectorSettings, Sensitivity, SensitivityPool, SensitivitySelection,
    SensitivitySelector, StreamClusters, select_by_sensitivity, with_floor,
};

/// What deciding allocates for a candidate meanwhile, rounded up: its score and centre, numbers in pools, keys to be sorted.
const DECIDING_BYTES: usize = 48;

/// How a window was selected from by sensitivity.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SensitivitySummary {
    pub points: PointSource,
    /// Of the points; 0 of a window without an embedding.
    pub dimensions: u32,
    /// Documents that are long enough but have no embedding, or one of other dimensions than most have. They are rejected.
    pub n_without_embedding: u64,
    pub n_other_dimensions: u64,
    /// What losses of centres were taken from: none where no document had one.
    pub losses: LossSource,
    pub n_centres: u32,
    /// Version of the clusters of the stream that they stand for; `None`: of those that the window has found itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clusters_version: Option<i64>,
    /// Λ: as how much loss a unit of distance, to the power, counts.
    pub scale: f64,
    /// How many documents fewer than requested there are.
    pub shortfall: u64,
    /// One of all documents, or one a pool where sources, or values of another field, have shares.
    pub pools: Vec<PoolSensitivities>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PointSource {
    Embedding,
    /// N-gram distributions, projected at random.
    Projection,
}

/// The priority sample of one pool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PoolSensitivities {
    /// The source, or value of [`crate::select::Quotas::field`], that is a pool of its own; `None`: the pool of all others.
    pub source: Option<String>,
    #[serde(flatten)]
    pub sample: SensitivityPool,
}

/// What was found of one document.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PlacedDocument {
    pub sensitivity: Sensitivity,
    /// Loss of its centre.
    pub loss: f64,
    /// The score, mixed with the mean of all by the floor.
    pub score: f64,
}

/// Numbers of the candidates, by number.
#[derive(Debug)]
pub(super) struct SensitiveCandidates {
    division: Arc<Division>,
    fraction: Fraction,
    points: PointSource,
    offsets: Offsets,
    /// Of their embeddings; empty where points are projected, which all have the same.
    dims: Vec<u16>,
    /// Empty where there is only one.
    pools: Vec<u16>,
    n_without_embedding: u64,
    /// `None`: the window finds its own.
    stream: Option<StreamClusters>,
    placed: Option<Placed>,
}

/// What the points have come to.
#[derive(Debug)]
struct Placed {
    dims: usize,
    /// `None` of a window without candidates.
    centres: Option<Centres>,
    clusters_version: Option<i64>,
    addition: Option<ClusterAddition>,
    losses: LossSource,
    /// Mixed with their mean; NaN of those that have other dimensions.
    scores: Vec<f64>,
}

impl Placed {
    /// Of a window of nothing.
    fn nothing() -> Self {
        let losses = LossSource::None;
        Placed { dims: 0, centres: None, clusters_version: None, addition: None, losses, scores: Vec::new() }
    }
}

impl SensitiveCandidates {
    pub fn new(
        division: &Arc<Division>,
        sensitivity: &SensitivitySelector,
        fraction: Fraction,
        stream: Option<&StreamClusters>,
    ) -> Self {
        let is_embedded = sensitivity.embedding.is_some();
        SensitiveCandidates {
            division: division.clone(),
            fraction,
            points: if is_embedded { PointSource::Embedding } else { PointSource::Projection },
            offsets: Offsets::default(),
            dims: Vec::new(),
            pools: Vec::new(),
            n_without_embedding: 0,
            stream: stream.cloned(),
            placed: None,
        }
    }

    /// The version of the stream's clusters that it holds on to, and the bytes of that, which windows share.
    pub fn clusters_held(&self) -> Option<(i64, usize)> {
        let version = self.stream.as_ref()?.version.as_ref()?;
        Some((version.version, size_of_val(version.means.means())))
    }

    /// Counts a document that has no point.
    pub fn rejects(&mut self, point: Option<&[f32]>) -> bool {
        self.n_without_embedding += u64::from(point.is_none());
        point.is_none()
    }

    /// Keeps the numbers of the next candidate, and gives the rest away.
    pub fn take(&mut self, offset: i64, candidate: Candidate, point: Vec<f32>) -> SpooledRow {
        if self.division.n_pools() > 1 {
            columns::push(&mut self.pools, candidate.pool_in(&self.division) as u16);
        }
        let Candidate { document, score, other_weights, .. } = candidate;
        self.offsets.push(offset);
        if self.points == PointSource::Embedding {
            columns::push(&mut self.dims, point.len() as u16);
        }
        SpooledRow { document, score, other_weights, point }
    }

    /// What is held, and what deciding takes beside it. The sample that centres are found among is held for one window at a time.
    pub fn held_bytes(&self) -> usize {
        let n = self.offsets.len();
        self.offsets.held_bytes()
            + columns::held_bytes(&self.dims)
            + columns::held_bytes(&self.pools)
            + n * DECIDING_BYTES
            + self.fraction.at_most(n as u64) as usize * CHOSEN_BYTES
    }

    /// See [`super::OpenWindow::place`].
    pub fn place<E>(
        &mut self,
        selector: &SelectorSettings,
        noise: &Noise,
        mut points: impl FnMut(&[u32], &mut dyn FnMut(&Score, &[f32])) -> Result<(), E>,
    ) -> Result<(), E> {
        let sensitivity = selector.sensitivity.as_ref().expect("the window was opened for a sensitivity selector");
        let usual = most_frequent(&self.dims);
        let all = 0..self.offsets.len() as u32;
        let competing: Vec<u32> = all.filter(|&number| self.dims.get(number as usize).copied() == usual).collect();
        let dims = match self.points {
            PointSource::Embedding => usual.map_or(0, usize::from),
            PointSource::Projection => Projection::OF_TEXTS.dims(),
        };
        let chosen = self.sample(&competing, sensitivity.sample_size(dims), noise);
        let mut sample = Vec::with_capacity(chosen.len());
        points(&chosen, &mut |score, point| {
            sample.push(SamplePoint { point: point.to_vec(), loss: sensitivity.losses.of(score) });
        })?;
        // As before any loss has been reported: then distances are all there is.
        let losses = if sample.iter().any(|s| s.loss.is_some()) { sensitivity.losses } else { LossSource::None };
        if losses == LossSource::None {
            sample.iter_mut().for_each(|s| s.loss = Some(0.0));
        }
        let SensitivitySelector { centres, exponent, .. } = *sensitivity;
        let settings = CentreSettings { centres: centres as usize, exponent, seed: selector.seed };
        let (centres, clusters_version, addition) = match &self.stream {
            None => (Centres::fit(&sample, &settings), None, None),
            Some(stream) => of_stream(stream, &sample, &settings),
        };
        drop(sample);
        let mut scores = vec![f64::NAN; self.offsets.len()];
        if let Some(centres) = &centres {
            let mut of_competing = Vec::with_capacity(competing.len());
            points(&competing, &mut |_, point| of_competing.push(centres.sensitivity(point).score))?;
            assert_eq!(of_competing.len(), competing.len(), "rows that were asked for did not come back");
            with_floor(&mut of_competing, sensitivity.floor);
            competing.iter().zip(of_competing).for_each(|(&number, score)| scores[number as usize] = score);
        }
        self.placed = Some(Placed { dims, centres, clusters_version, addition, losses, scores });
        Ok(())
    }

    /// Numbers of a uniform sample of so many candidates, which depends on their positions alone.
    fn sample(&self, competing: &[u32], n: usize, noise: &Noise) -> Vec<u32> {
        let mut sample = Reservoir::new(n);
        for &number in competing {
            let offset = self.offsets.get(number);
            let key = -noise.sampling(offset);
            if sample.might_hold(key) {
                sample.offer(offset, key, number);
            }
        }
        sample.into_items().into_iter().map(|chosen| chosen.item).collect()
    }

    /// What was found of the candidate at an offset, whose point this is; `None` if there is none that competes.
    pub fn placed(&self, offset: i64, point: &[f32]) -> Option<PlacedDocument> {
        let number = self.offsets.find(offset)? as usize;
        let Placed { centres, scores, .. } = self.placed.as_ref()?;
        let score = Some(scores[number]).filter(|score| score.is_finite())?;
        let centres = centres.as_ref()?;
        let sensitivity = centres.sensitivity(point);
        Some(PlacedDocument { sensitivity, loss: centres.losses()[sensitivity.centre as usize], score })
    }

    /// # Panics
    /// If there are candidates whose points it was not shown.
    pub fn choose(mut self, by: &Deciding<'_>) -> Choice {
        let Deciding { selector, noise, from, n_documents, .. } = *by;
        let mut placed = self.placed.take().unwrap_or_else(Placed::nothing);
        let clusters = placed.addition.take();
        assert_eq!(placed.scores.len(), self.offsets.len(), "a window is decided before it has seen the points");
        let pool_of = |number: u32| self.pools.get(number as usize).map_or(0, |pool| usize::from(*pool));
        let score = |number: u32| placed.scores[number as usize];
        let mut pools = vec![Vec::new(); self.division.n_pools()];
        let competing = (0..self.offsets.len() as u32).filter(|number| score(*number).is_finite());
        competing.for_each(|number| pools[pool_of(number)].push(number));
        let count = selector.fraction.of(n_documents, noise.rounding(from));
        let uniform = |number: u32| noise.priority(self.offsets.get(number));
        let rounding = BudgetRounding::Random { noise, from }.of_pools();
        let mut drawn = select_by_sensitivity(count, pools, self.division.pool_shares(), rounding, score, uniform);
        let picks = std::mem::take(&mut drawn.selection.picks);
        let sizes: Vec<u64> = drawn.pools.iter().map(|pool| pool.documents).collect();
        let chances = self.division.chances(selector.fraction, n_documents, &sizes);
        let chosen = picks.into_iter().map(|Pick { document: number, key, .. }| {
            let pool = &drawn.pools[pool_of(number)];
            Chosen {
                number,
                offset: self.offsets.get(number),
                target: 0,
                key,
                // Whether anything of its pool is chosen at all may have been left to chance.
                inclusion_probability: chances[pool_of(number)] * pool.inclusion_probability(score(number)),
                ratio: pool.ratio,
            }
        });
        Choice {
            chosen: chosen.collect(),
            candidates: Vec::new(),
            threshold: None,
            turns: Vec::new(),
            coverage: None,
            sensitivity: Some(self.summary(&placed, &drawn)),
            clusters,
            edges: None,
            targets: Vec::new(),
            other_log_weights: Vec::new(),
        }
    }

    fn summary(&self, placed: &Placed, drawn: &SensitivitySelection) -> SensitivitySummary {
        let pools = drawn.pools.iter().enumerate().map(|(pool, sample)| PoolSensitivities {
            source: self.division.source_of(pool).map(str::to_owned),
            sample: *sample,
        });
        SensitivitySummary {
            points: self.points,
            dimensions: placed.dims as u32,
            n_without_embedding: self.n_without_embedding,
            n_other_dimensions: placed.scores.iter().filter(|score| score.is_nan()).count() as u64,
            losses: placed.losses,
            n_centres: placed.centres.as_ref().map_or(0, |centres| centres.len() as u32),
            clusters_version: placed.clusters_version,
            scale: placed.centres.as_ref().map_or(0.0, Centres::scale),
            shortfall: drawn.shortfall,
            pools: pools.collect(),
        }
    }
}

/// Numbers of all means, at most: each publication reads and writes them, and the sample that they are found among is no larger.
const MAX_NUMBERS: usize = 4 << 20;

/// Centres that stand for the clusters of a stream, the version of those, and what the window adds to them. Clusters of too many
/// numbers are no matter of the stream.
fn of_stream(
    stream: &StreamClusters,
    sample: &[SamplePoint],
    settings: &CentreSettings,
) -> (Option<Centres>, Option<i64>, Option<ClusterAddition>) {
    let dims = sample.first().map_or(0, |s| s.point.len());
    if settings.centres * dims > MAX_NUMBERS {
        return (Centres::fit(sample, settings), None, None);
    }
    let usable = stream.version.as_ref().filter(|version| version.means.dims() == dims);
    let own = || ClusterMeans::find(stream.space.to_string(), sample, settings).map(Arc::new);
    let Some(means) = usable.map(|version| version.means.clone()).or_else(own) else { return (None, None, None) };
    let centres = Centres::near(sample, means.means(), settings.exponent);
    let tally = means.tally(sample.iter().map(|s| &s.point[..]));
    let addition = ClusterAddition { began: usable.map(|version| version.began), tally };
    (centres, usable.map(|version| version.version), Some(addition))
}

/// The lowest of those that are there as often.
fn most_frequent(dims: &[u16]) -> Option<u16> {
    let mut sorted = dims.to_vec();
    sorted.sort_unstable();
    let mut best: Option<(usize, u16)> = None;
    for same in sorted.chunk_by(|a, b| a == b) {
        if best.is_none_or(|(n, _)| same.len() > n) {
            best = Some((same.len(), same[0]));
        }
    }
    best.map(|(_, dims)| dims)
}
