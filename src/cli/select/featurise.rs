//! The first pass when the model is fitted on the input itself: everything but the weights, which wait for the model.

use anyhow::Context;

use super::SelectionPlan;
use super::scores::Scores;
use super::spool::{Place, Spool, SpoolWriter};
use crate::cli::UsageError;
use crate::cli::files::{Files, total_bytes};
use crate::cli::progress::Progress;
use crate::cli::weights::Weights;
use crate::features::{BucketList, BucketWidth, Featuriser, Scratch};
use crate::score::{NgramCounts, Provenance, Side};
use crate::source::files::{FileError, Input, Wanted};

/// The numbers of all documents and their n-grams, to be weighed.
pub struct Featurised {
    /// For weights there are 0 for documents and NaN for bad lines.
    pub(super) scores: Scores,
    pub(super) featuriser: Featuriser,
    pub(super) spool: Spool,
    /// Of every chunk's n-grams.
    pub(super) kept: Vec<Place>,
}

/// What a thread has.
struct Counting<'a> {
    counts: NgramCounts,
    scratch: Scratch,
    writer: SpoolWriter<'a>,
    /// Of the chunk at hand.
    buckets: BucketList,
}

/// Counts the n-grams of all documents, and keeps them. Without room to keep them there are only the counts.
pub fn featurise(
    inputs: &[Input],
    files: &Files,
    featuriser: Featuriser,
    plan: &SelectionPlan,
    spool: Spool,
) -> anyhow::Result<(Side, Option<Featurised>)> {
    let progress = Progress::new("raw", total_bytes(inputs));
    let n_buckets = featuriser.buckets as usize;
    let states = files.states(|| Counting {
        counts: NgramCounts::zero(n_buckets),
        scratch: Scratch::default(),
        writer: spool.writer(),
        buckets: BucketList::new(featuriser.buckets),
    });
    let (mut scores, mut kept) = (Scores::of_targets(1), Vec::new());
    let states = files.reader(inputs).scan(
        Wanted::Named,
        states,
        |Counting { counts, scratch, writer, buckets }, chunk| {
            let mut scores = Scores::of_targets(1);
            buckets.clear();
            let is_kept = !spool.has_failed();
            chunk.for_each_document(|record| match record {
                Some(record) => {
                    let n_tokens = featuriser.for_each_chunk(record.text, scratch, |chunk| {
                        counts.add_buckets(chunk);
                        if is_kept {
                            buckets.extend(chunk);
                        }
                    });
                    scores.weights.push(0.0);
                    scores.push_document(&record, n_tokens, plan);
                }
                None => scores.push_bad_line(plan),
            })?;
            let piece = if is_kept { writer.append(buckets.as_bytes()) } else { None };
            Ok::<_, FileError>((scores, piece, chunk.chunk.place, chunk.chunk.file_bytes))
        },
        |(chunk, piece, place, bytes)| {
            progress.add(chunk.len() as u64, bytes);
            kept.extend(piece);
            scores.append(chunk, place)
        },
    )?;
    files.check_interrupted()?;
    progress.finish();
    if scores.bad_lines > 0 {
        eprintln!("raw: {} bad lines were passed over", scores.bad_lines);
    }
    let mut counts = NgramCounts::zero(n_buckets);
    states.into_iter().for_each(|state| counts.merge(&state.counts));
    let raw = Side { counts, provenance: Provenance::of(scores.n_documents(), inputs.iter().map(Input::name)) };
    if spool.has_failed() {
        let problem = spool.problem().unwrap_or_default();
        if plan.correction.is_some() {
            let problem =
                format!("the n-grams of the input must be kept to weigh against what was selected: {problem}");
            return Err(UsageError(problem).into());
        }
        eprintln!("raw: the n-grams cannot be kept ({problem}): the input will be read again to score it");
        return Ok((raw, None));
    }
    Ok((raw, Some(Featurised { scores, featuriser, spool, kept })))
}

impl Featurised {
    /// Weighs all documents: the same weights as reading them again would give. Gives the n-grams back, too: to remove them from the
    /// disk takes its time.
    pub fn score(self, files: &Files, weights: &Weights) -> anyhow::Result<(Scores, Spool)> {
        let Featurised { mut scores, featuriser, spool, kept } = self;
        let width = BucketWidth::of(featuriser.buckets);
        let documents = |chunk: usize| {
            let end = scores.chunks.get(chunk + 1).map_or(scores.len(), |next| *next as usize);
            scores.chunks[chunk] as usize..end
        };
        let mut of_documents = Vec::with_capacity(scores.len() * weights.len());
        files.in_order(
            0..kept.len(),
            files.states(Vec::new),
            |packed, chunk| {
                spool.read(kept[chunk], packed).context("the n-grams that were kept cannot be read")?;
                let (mut rest, mut of_chunk) = (&packed[..], Vec::new());
                for document in documents(chunk) {
                    if scores.weights[document].is_nan() {
                        of_chunk.extend(std::iter::repeat_n(f64::NAN, weights.len()));
                        continue;
                    }
                    let n_bytes = featuriser.n_ngrams(scores.n_tokens[document]) as usize * width.bytes();
                    let (buckets, further) = rest.split_at(n_bytes);
                    weights.of_buckets(width, buckets, |weight| of_chunk.push(weight));
                    rest = further;
                }
                Ok(of_chunk)
            },
            |of_chunk| {
                of_documents.extend(of_chunk);
                Ok(())
            },
        )?;
        scores.weights = of_documents;
        scores.n_targets = weights.len();
        Ok((scores, spool))
    }
}
