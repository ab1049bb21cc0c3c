//! Between the passes, with `--selector sensitivity`: points of all documents, centres, scores, a priority sample.
//!
//! Points are kept on disk, so that memory does not grow with them: of each document a score and the number of its centre
//! stay. The sample that centres are found in is chosen by the noise of the documents, and what threads do is put together in
//! the order of the input, so that nothing depends on their number.

use std::collections::BTreeMap;

use anyhow::Context;

use super::SelectionPlan;
use super::draw::{self, Draw, Drawn, Judged};
use super::measure::PROJECTION;
use super::methods::{Method, Sensitivity};
use super::scores::Scores;
use super::spool::{Place, Spool, SpoolWriter};
use crate::cli::UsageError;
use crate::cli::files::{Files, total_bytes};
use crate::cli::progress::Progress;
use crate::features::Scratch;
use crate::score::Model;
use crate::select::{
    BudgetedSelection, CentreSettings, Centres, Noise, Reservoir, Rounding, SamplePoint, SelectorKind, SensitivityPool,
    SensitivitySelection, select_by_sensitivity, with_floor,
};
use crate::source::files::{ExtraFields, FileError, Input, Wanted};

/// Documents among which centres are found, and bytes of their points.
const SAMPLE: usize = 16_384;
const SAMPLE_BYTES: usize = 64 << 20;

/// The points of all documents, on disk.
pub struct Points {
    spool: Spool,
    /// Of every chunk: for each document the number of its dimensions (0 if it has no point), and those.
    kept: Vec<Place>,
    /// Of every document, where points are embeddings: else all have the same.
    dims: Vec<u16>,
}

/// Documents whose embeddings decide, and how many of those that are long enough have none that can.
#[derive(Debug, Default)]
struct Competing {
    /// In order.
    candidates: Vec<u32>,
    /// Numbers of their embeddings; 0 where points are no embeddings.
    dims: u16,
    without_embedding: u64,
    /// Those whose embedding has another number of numbers than most have.
    other_dimensions: u64,
}

/// A selection by sensitivity; the picks are those of the draw.
pub struct Sensitivities {
    pub drawn: SensitivitySelection,
    pub centres: Centres,
    /// Of every document, mixed with their mean; NaN of those that may not be selected.
    scores: Vec<f64>,
    /// The nearest centre of every document.
    centre_of: Vec<u32>,
    /// Numbers of every document's embedding, and of most; empty and 0 where points are no embeddings.
    all_dims: Vec<u16>,
    dims: u16,
    pub without_embedding: u64,
    pub other_dimensions: u64,
}

impl Points {
    pub fn of(
        inputs: &[Input],
        files: &Files,
        model: &Model,
        sensitivity: &Sensitivity,
        spool: Spool,
    ) -> anyhow::Result<Self> {
        let files = files.with_extra(ExtraFields { vector: sensitivity.embedding.clone(), ..ExtraFields::default() });
        let progress = Progress::new("points", total_bytes(inputs));
        let (mut kept, mut all_dims) = (Vec::new(), Vec::new());
        files.reader(inputs).scan(
            Wanted::Named,
            files.states(|| (Scratch::default(), Vec::new(), spool.writer())),
            |(scratch, piece, writer): &mut (Scratch, Vec<u8>, SpoolWriter<'_>), chunk| {
                piece.clear();
                let (mut n, mut dims) = (0, Vec::new());
                chunk.for_each_document(|record| {
                    n += 1;
                    if sensitivity.embedding.is_some() {
                        let embedding = record.map_or(&[][..], |record| record.vector);
                        dims.push(embedding.len() as u16);
                        add_point(piece, embedding);
                        return;
                    }
                    match record {
                        None => add_point(piece, &[]),
                        Some(record) => {
                            add_point(piece, &PROJECTION.of_text(record.text, &model.featuriser, scratch));
                        }
                    }
                })?;
                Ok::<_, FileError>((writer.append(piece), dims, n, chunk.chunk.file_bytes))
            },
            |(piece, dims, n, bytes)| {
                progress.add(n, bytes);
                kept.extend(piece);
                all_dims.extend(dims);
                anyhow::Ok(())
            },
        )?;
        files.check_interrupted()?;
        progress.finish();
        if spool.has_failed() {
            let problem = spool.problem().unwrap_or_default();
            return Err(UsageError(format!("the points of the input must be kept: {problem}")).into());
        }
        Ok(Points { spool, kept, dims: all_dims })
    }

    /// As in the daemon's windows: the candidates that have as many numbers as most do.
    fn competing(&self, mut candidates: Vec<u32>, field: Option<&str>) -> Result<Competing, UsageError> {
        let Some(field) = field else { return Ok(Competing { candidates, ..Competing::default() }) };
        let of = |document: &u32| self.dims[*document as usize];
        let n_all = candidates.len() as u64;
        let mut n_of: BTreeMap<u16, u64> = BTreeMap::new();
        candidates.iter().map(of).for_each(|dims| *n_of.entry(dims).or_default() += 1);
        let without_embedding = n_of.remove(&0).unwrap_or(0);
        // The lowest of those that are there as often.
        let usual = n_of.into_iter().rev().max_by_key(|(_, n)| *n);
        let Some((dims, n)) = usual else {
            let problem =
                format!("none of the {n_all} documents that are long enough has an embedding in field `{field}`");
            return Err(UsageError(problem));
        };
        candidates.retain(|document| of(document) == dims);
        Ok(Competing { candidates, dims, without_embedding, other_dimensions: n_all - without_embedding - n })
    }

    /// Calls `work` with the points of chunks side by side, with the number of each document, and `deliver` in order.
    fn for_each_chunk<T: Send>(
        &self,
        scores: &Scores,
        files: &Files,
        work: impl Fn(u32, &[f32]) -> anyhow::Result<T> + Sync,
        deliver: impl FnMut(Vec<T>) -> anyhow::Result<()> + Send,
    ) -> anyhow::Result<()> {
        let read = |(piece, point): &mut (Vec<u8>, Vec<f32>), chunk: usize| {
            self.spool.read(self.kept[chunk], piece).context("the points that were kept cannot be read")?;
            let mut rest = &piece[..];
            let mut found = Vec::new();
            while let Some((dims, further)) = rest.split_first_chunk::<4>() {
                let (numbers, further) = further.split_at(4 * u32::from_le_bytes(*dims) as usize);
                point.clear();
                point.extend(numbers.as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x)));
                found.push(work(scores.chunks[chunk] + found.len() as u32, point)?);
                rest = further;
            }
            Ok(found)
        };
        files.in_order(0..self.kept.len(), files.states(Default::default), read, deliver)?;
        Ok(())
    }

    pub fn draw(
        mut self,
        scores: &Scores,
        model: &Model,
        plan: &SelectionPlan,
        sensitivity: &Sensitivity,
        files: &Files,
    ) -> anyhow::Result<Draw> {
        if model.targets.len() > 1 {
            let problem = "--selector sensitivity: several targets choose by their weights, which it does not look at";
            return Err(UsageError(problem.to_owned()).into());
        }
        let (requested, settings) = draw::settings(scores, model, plan, 1.0)?;
        let noise = draw::noise(plan.seed);
        let all = draw::candidates(scores, plan);
        if all.is_empty() {
            return Err(UsageError(format!("no document has at least {} tokens", plan.min_tokens)).into());
        }
        let field = sensitivity.embedding.as_ref().map(|embedding| embedding.field.as_str());
        let Competing { candidates, dims, without_embedding, other_dimensions } = self.competing(all, field)?;
        let centres = self.centres(scores, &candidates, sensitivity, (&noise, plan.seed), files)?;
        let mut of = Sensitivities {
            drawn: SensitivitySelection::default(),
            centres,
            scores: vec![f64::NAN; scores.len()],
            centre_of: vec![0; scores.len()],
            all_dims: std::mem::take(&mut self.dims),
            dims,
            without_embedding,
            other_dimensions,
        };
        self.score(&mut of, scores, &candidates, files)?;
        let mut of_candidates: Vec<f64> = candidates.iter().map(|&document| of.score(document)).collect();
        with_floor(&mut of_candidates, sensitivity.floor);
        candidates.iter().zip(of_candidates).for_each(|(&document, score)| of.scores[document as usize] = score);

        let pools = draw::pools(scores, plan, &candidates);
        let uniform = |document: u32| noise.priority(document.into());
        let shares = draw::pool_shares(plan);
        let score = |document| of.score(document);
        of.drawn = select_by_sensitivity(requested, pools, &shares, Rounding::Nearest, score, uniform);
        let picks = std::mem::take(&mut of.drawn.selection.picks);
        let selection = BudgetedSelection { picks, turns: Vec::new() };
        Ok(Draw {
            settings,
            noise,
            requested,
            candidates: candidates.len() as u64,
            selection,
            drawn: Drawn::Sensitivities(of),
            probabilities: None,
            correction: None,
            windows: None,
            judged: Judged { kind: SelectorKind::TopK, candidates },
        })
    }

    /// Centres of a uniform sample of the candidates.
    fn centres(
        &self,
        scores: &Scores,
        candidates: &[u32],
        sensitivity: &Sensitivity,
        (noise, seed): (&Noise, u64),
        files: &Files,
    ) -> anyhow::Result<Centres> {
        let mut sample: Option<Reservoir<Vec<f32>>> = None;
        let take = |found: Vec<Option<(u32, Vec<f32>)>>| {
            for (document, point) in found.into_iter().flatten() {
                let n = SAMPLE.min(SAMPLE_BYTES / (4 * point.len()).max(1)).max(sensitivity.centres);
                let reservoir = sample.get_or_insert_with(|| Reservoir::new(n));
                let key = -noise.sampling(document.into());
                if reservoir.might_hold(key) {
                    reservoir.offer(document.into(), key, point);
                }
            }
            Ok(())
        };
        let is_candidate = |document: u32| candidates.binary_search(&document).is_ok();
        let candidate = |document: u32, point: &[f32]| Ok(is_candidate(document).then(|| (document, point.to_vec())));
        self.for_each_chunk(scores, files, candidate, take)?;
        let loss = |document: i64| match sensitivity.loss_field {
            Some(_) => scores.loss(document as u32),
            None => Some(0.0),
        };
        let sample: Vec<SamplePoint> = sample
            .into_iter()
            .flat_map(Reservoir::into_items)
            .map(|chosen| SamplePoint { point: chosen.item, loss: loss(chosen.offset) })
            .collect();
        let Sensitivity { centres, exponent, .. } = *sensitivity;
        let fitted = Centres::fit(&sample, &CentreSettings { centres, exponent, seed });
        Ok(fitted.ok_or_else(|| {
            let field = sensitivity.loss_field.as_deref().unwrap_or_default();
            UsageError(format!("no document that centres could be has a number in field `{field}`"))
        })?)
    }

    fn score(&self, of: &mut Sensitivities, scores: &Scores, candidates: &[u32], files: &Files) -> anyhow::Result<()> {
        let Sensitivities { centres, scores: found, centre_of, .. } = of;
        let mut document = 0;
        let is_candidate = |document: u32| candidates.binary_search(&document).is_ok();
        let score = |document: u32, point: &[f32]| Ok(is_candidate(document).then(|| centres.sensitivity(point)));
        self.for_each_chunk(scores, files, score, |of_chunk| {
            for sensitivity in of_chunk {
                if let Some(sensitivity) = sensitivity {
                    found[document] = sensitivity.score;
                    centre_of[document] = sensitivity.centre;
                }
                document += 1;
            }
            Ok(())
        })
    }
}

fn add_point(piece: &mut Vec<u8>, point: &[f32]) {
    piece.extend_from_slice(&(point.len() as u32).to_le_bytes());
    point.iter().for_each(|x| piece.extend_from_slice(&x.to_le_bytes()));
}

impl Sensitivities {
    /// Why a document that is long enough competed with none, in words.
    pub fn why_not(&self, document: u32, plan: &SelectionPlan) -> Option<String> {
        let dims = *self.all_dims.get(document as usize).filter(|dims| **dims != self.dims)?;
        let Method::Sensitivity(Sensitivity { embedding: Some(embedding), .. }) = &plan.method else { return None };
        Some(match (dims, &embedding.field) {
            (0, field) => format!("it has no embedding in field `{field}`"),
            (_, field) => format!("its embedding in field `{field}` has {dims} numbers, most have {}", self.dims),
        })
    }

    pub fn score(&self, document: u32) -> f64 {
        self.scores[document as usize]
    }

    pub fn centre(&self, document: u32) -> u32 {
        self.centre_of[document as usize]
    }

    pub fn pool(&self, pool: usize) -> &SensitivityPool {
        &self.drawn.pools[pool]
    }

    pub fn key(&self, noise: &Noise, document: u32) -> f64 {
        self.score(document).ln() - noise.priority(document.into()).ln()
    }
}
