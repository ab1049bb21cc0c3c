//! The numbers of every document, and nothing else of it: of a model that exists, by reading the input once.

use anyhow::bail;

use super::SelectionPlan;
use crate::cli::files::{Files, total_bytes};
use crate::cli::progress::Progress;
use crate::cli::weights::Weights;
use crate::features::Scratch;
use crate::select::SourceCounts;
use crate::source::files::{ChunkPlace, ChunkReader, FileError, Input, Record, Wanted};

/// What is kept of all documents, by number: their place among all lines that are not blank, over all inputs in order.
/// A bad line keeps its number, has no tokens and no weights.
#[derive(Default)]
pub struct Scores {
    pub n_targets: usize,
    /// `n_targets` for each document, one after the other.
    pub weights: Vec<f64>,
    pub n_tokens: Vec<u32>,
    /// By the plan's tokenizer, where it counts all documents; `None` of a text that it fails on. Else empty.
    pub counted: Vec<Option<u32>>,
    /// The number of the pool that a document's source, or value of another field, has of its own, counted from 1; 0 for all others. Empty
    /// when there is only one pool.
    pub pools: Vec<u16>,
    /// NaN of documents without one. Empty when losses are not read.
    pub losses: Vec<f64>,
    /// `n_numbers` for each document: of the plan's fields, NaN where there is none.
    pub numbers: Vec<f64>,
    pub n_numbers: usize,
    pub sources: SourceCounts,
    pub bad_lines: u64,
    pub text_bytes: u64,
    /// The number of the first document of every chunk.
    pub chunks: Vec<u32>,
    /// Where the chunks can be found again; fewer than chunks when some cannot.
    pub places: Vec<ChunkPlace>,
}

/// What is known of one document without a model.
impl Scores {
    pub fn of_targets(n_targets: usize) -> Self {
        Scores { n_targets, ..Scores::default() }
    }

    pub fn push_bad_line(&mut self, plan: &SelectionPlan) {
        self.bad_lines += 1;
        self.n_tokens.push(0);
        if plan.counter().is_some() {
            self.counted.push(None);
        }
        self.weights.extend(std::iter::repeat_n(f64::NAN, self.n_targets));
        self.n_numbers = plan.fields.len();
        self.numbers.extend(std::iter::repeat_n(f64::NAN, self.n_numbers));
        if !plan.sources.is_empty() {
            self.pools.push(0);
        }
        if plan.keeps_losses {
            self.losses.push(f64::NAN);
        }
    }

    /// Its weights come apart from it.
    pub fn push_document(&mut self, record: &Record<'_>, n_tokens: u32, plan: &SelectionPlan) {
        self.n_tokens.push(n_tokens);
        if let Some(tokenizer) = plan.counter() {
            self.counted.push(tokenizer.count(record.text));
        }
        self.n_numbers = record.numbers.len();
        self.numbers.extend_from_slice(record.numbers);
        self.text_bytes += record.text.len() as u64;
        self.sources.document(record.source);
        if !plan.sources.is_empty() {
            let value = if plan.quota_field.is_some() { record.word } else { record.source };
            let named = plan.sources.iter().position(|(name, _)| Some(name.as_str()) == value);
            self.pools.push(named.map_or(0, |pool| pool as u16 + 1));
        }
        if plan.keeps_losses {
            self.losses.push(record.loss.unwrap_or(f64::NAN));
        }
    }
}

impl Scores {
    /// Documents and bad lines.
    pub fn len(&self) -> usize {
        self.n_tokens.len()
    }

    pub fn n_documents(&self) -> u64 {
        self.len() as u64 - self.bad_lines
    }

    pub fn weight(&self, document: u32, target: usize) -> f64 {
        self.weights[document as usize * self.n_targets + target]
    }

    pub fn weights_of(&self, document: u32) -> &[f64] {
        &self.weights[document as usize * self.n_targets..][..self.n_targets]
    }

    /// A field of the plan.
    pub fn number(&self, document: u32, field: usize) -> f64 {
        self.numbers[document as usize * self.n_numbers + field]
    }

    /// Whether it is a document and long enough.
    pub fn is_long_enough(&self, document: u32, min_tokens: u32) -> bool {
        self.n_tokens[document as usize] >= min_tokens && self.weights[document as usize * self.n_targets].is_finite()
    }

    /// Whether it may be selected: it also has the numbers that it needs.
    pub fn is_candidate(&self, document: u32, plan: &SelectionPlan) -> bool {
        self.is_long_enough(document, plan.min_tokens)
            && plan.needed_fields().all(|field| self.number(document, field).is_finite())
    }

    pub fn pool(&self, document: u32) -> usize {
        self.pools.get(document as usize).map_or(0, |pool| usize::from(*pool))
    }

    pub fn loss(&self, document: u32) -> Option<f64> {
        self.losses.get(document as usize).copied().filter(|loss| loss.is_finite())
    }

    pub fn append(&mut self, mut chunk: Scores, place: Option<ChunkPlace>) -> anyhow::Result<()> {
        self.places.extend(place);
        self.chunks.push(u32::try_from(self.len()).unwrap_or(u32::MAX));
        self.weights.append(&mut chunk.weights);
        self.n_tokens.append(&mut chunk.n_tokens);
        self.counted.append(&mut chunk.counted);
        self.pools.append(&mut chunk.pools);
        self.losses.append(&mut chunk.losses);
        self.numbers.append(&mut chunk.numbers);
        self.n_numbers = self.n_numbers.max(chunk.n_numbers);
        self.sources.merge(&chunk.sources);
        self.bad_lines += chunk.bad_lines;
        self.text_bytes += chunk.text_bytes;
        if self.len() > u32::MAX as usize {
            bail!("more than {} documents cannot be selected from at once", u32::MAX);
        }
        Ok(())
    }
}

/// Scores every document of the inputs.
pub fn score_all(inputs: &[Input], files: &Files, weights: &Weights, plan: &SelectionPlan) -> anyhow::Result<Scores> {
    let progress = Progress::new("score", total_bytes(inputs));
    let mut all = Scores::of_targets(weights.len());
    files.reader(inputs).scan(
        Wanted::Named,
        files.states(Scratch::default),
        |scratch, chunk| Ok((score_chunk(chunk, weights, plan, scratch)?, chunk.chunk.place, chunk.chunk.file_bytes)),
        |(chunk, place, bytes)| {
            progress.add(chunk.len() as u64, bytes);
            all.append(chunk, place)
        },
    )?;
    files.check_interrupted()?;
    progress.finish();
    Ok(all)
}

fn score_chunk(
    chunk: &ChunkReader<'_>,
    weights: &Weights,
    plan: &SelectionPlan,
    scratch: &mut Scratch,
) -> Result<Scores, FileError> {
    let mut scores = Scores::of_targets(weights.len());
    chunk.for_each_document(|record| match record {
        Some(record) => {
            let n_tokens = weights.score(record.text, scratch, |_, weight| scores.weights.push(weight));
            scores.push_document(&record, n_tokens, plan);
        }
        None => scores.push_bad_line(plan),
    })?;
    Ok(scores)
}
