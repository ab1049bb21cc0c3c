//! Counts the n-grams of files on all cores: the same counts whatever the number of threads.

use super::ngrams::{Kept, top_ngrams};
use crate::cli::UsageError;
use crate::cli::files::{Files, total_bytes};
use crate::cli::progress::Progress;
use crate::features::{Featuriser, Scratch};
use crate::record::TopicPartition;
use crate::score::{NgramCounts, Provenance};
use crate::select::{Noise, Reservoir};
use crate::source::files::{FileError, Input, Wanted};

/// Which documents are counted. A document's place (file and line) decides, so that every file gives its share.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sampling {
    All,
    /// Each document with this probability.
    Share {
        share: f64,
        seed: u64,
    },
    /// Exactly so many, or all that there are.
    Count {
        n: u64,
        seed: u64,
    },
}

/// One side of a model before it is counted.
pub struct Side<'a> {
    pub what: &'a str,
    pub inputs: &'a [Input],
    pub sampling: Sampling,
    pub featuriser: Featuriser,
    pub keep_ngrams: usize,
}

/// What a thread has counted.
struct Counting {
    counts: NgramCounts,
    documents: u64,
    scratch: Scratch,
    kept: Kept,
}

impl Side<'_> {
    pub fn count(&self, files: &Files) -> anyhow::Result<crate::score::Side> {
        let limit = self.sample_limit(files)?;
        let progress = Progress::new(self.what, total_bytes(self.inputs));
        let mut bad_lines = 0;
        let states = files.states(|| Counting {
            counts: NgramCounts::zero(self.featuriser.buckets as usize),
            documents: 0,
            scratch: Scratch::default(),
            kept: Kept::new(self.keep_ngrams),
        });
        let states = files.reader(self.inputs).scan(
            Wanted::Named,
            states,
            |state, chunk| {
                let before = state.documents;
                let mut bad = 0;
                let noise = limit.map(|(seed, limit)| (sample_noise(seed, chunk.input()), limit));
                let wanted =
                    |line: u64| noise.as_ref().is_none_or(|(noise, limit)| noise.sampling(line as i64) <= *limit);
                chunk.for_some_documents(wanted, |record| match record {
                    Some(record) => {
                        state.counts.add_text(record.text, &self.featuriser, &mut state.scratch);
                        state.documents += 1;
                        state.kept.offer(chunk.input(), record.line, record.text);
                    }
                    None => bad += 1,
                })?;
                Ok((state.documents - before, bad, chunk.chunk.file_bytes))
            },
            |(documents, bad, bytes)| {
                bad_lines += bad;
                progress.add(documents, bytes);
                Ok::<(), FileError>(())
            },
        )?;
        files.check_interrupted()?;
        progress.finish();
        if bad_lines > 0 {
            eprintln!("{}: {bad_lines} bad lines were passed over", self.what);
        }
        Ok(self.merged(states))
    }

    fn merged(&self, states: Vec<Counting>) -> crate::score::Side {
        let mut counts = NgramCounts::zero(self.featuriser.buckets as usize);
        let (mut documents, mut kept) = (0, Kept::new(self.keep_ngrams));
        for state in states {
            counts.merge(&state.counts);
            documents += state.documents;
            kept.merge(state.kept);
        }
        let top_ngrams = top_ngrams(kept, self.featuriser.max_n, self.keep_ngrams);
        let provenance = Provenance { top_ngrams, ..Provenance::of(documents, self.inputs.iter().map(Input::name)) };
        crate::score::Side { counts, provenance }
    }

    /// Documents whose sampling noise is at most this are counted. For an exact number the files are read once before:
    /// the limit is the n-th smallest noise of all documents.
    fn sample_limit(&self, files: &Files) -> anyhow::Result<Option<(u64, f64)>> {
        let (n, seed) = match self.sampling {
            Sampling::All => return Ok(None),
            Sampling::Share { share, seed } => return Ok(Some((seed, share))),
            Sampling::Count { n, seed } => (n, seed),
        };
        let capacity = usize::try_from(n).ok().filter(|n| *n < 1 << 31);
        let capacity = capacity.ok_or_else(|| UsageError(format!("--raw-sample {n}: must be below 2^31")))?;
        let progress = Progress::new("raw, counting documents", total_bytes(self.inputs));
        // Highest keys are kept: those with the lowest noise.
        let mut lowest = Reservoir::new(capacity - 1);
        let mut n_seen = 0i64;
        files.reader(self.inputs).scan(
            Wanted::Named,
            files.states(|| ()),
            |(), chunk| {
                let noise = sample_noise(seed, chunk.input());
                let mut noises = Vec::new();
                let mut rank = |line: u64| noises.push(noise.sampling(line as i64));
                // Bad lines must not take the places of documents; where they end it, all lines are documents.
                if files.settings.skip_bad_lines {
                    chunk.for_each_document(|record| record.iter().for_each(|record| rank(record.line)))?;
                } else {
                    chunk.for_each_place(rank);
                }
                Ok((noises, chunk.chunk.file_bytes))
            },
            |(noises, bytes)| {
                progress.add(noises.len() as u64, bytes);
                for noise in noises {
                    n_seen += 1;
                    lowest.offer(n_seen, -noise, ());
                }
                Ok::<(), FileError>(())
            },
        )?;
        files.check_interrupted()?;
        progress.finish();
        // The first that is not chosen of `n - 1` is the n-th; there is none when all documents are wanted.
        Ok(lowest.select(capacity - 1).threshold.map(|key| (seed, -key)))
    }
}

fn sample_noise(seed: u64, input: usize) -> Noise {
    Noise::new(seed, &TopicPartition::new("raw sample", input as i32))
}
