//! Looks at some documents once more, by number: those that stand for all when coverage is measured.

use super::SelectionPlan;
use super::draw::Draw;
use super::scores::Scores;
use crate::cli::files::Files;
use crate::features::{Projection, Scratch};
use crate::score::Model;
use crate::select::NearestDistances;
use crate::source::files::{ChunkReader, FileError, Input, Record, Wanted};

/// How texts become points where they are not given.
pub const PROJECTION: Projection = Projection::OF_TEXTS;
/// Documents that distances are measured to.
const SAMPLE: usize = 1_000;

/// All that is known between the passes.
pub struct Looking<'a> {
    pub inputs: &'a [Input],
    pub files: &'a Files,
    pub model: &'a Model,
    pub scores: &'a Scores,
    pub draw: &'a Draw,
    pub plan: &'a SelectionPlan,
}

impl Looking<'_> {
    /// The points of a uniform sample of all candidates.
    pub fn sample(&self) -> anyhow::Result<NearestDistances> {
        let candidates = 0..self.scores.len() as u32;
        let candidates = candidates.filter(|&document| self.draw.competes(self.scores, self.plan, document));
        let key = |document: u32| self.draw.noise.sampling(document.into());
        let mut sampled: Vec<(f64, u32)> = candidates.map(|document| (key(document), document)).collect();
        sampled.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let mut sampled: Vec<u32> = sampled.into_iter().take(SAMPLE).map(|(_, document)| document).collect();
        sampled.sort_unstable();
        let mut points = Vec::with_capacity(sampled.len());
        self.visit(
            |document| sampled.binary_search(&document).is_ok(),
            |scratch, _, _, record| PROJECTION.of_text(record.text, &self.model.featuriser, scratch),
            |point| points.push(point),
        )?;
        Ok(NearestDistances::new(&points))
    }

    /// Calls `work` with the documents whose numbers are `wanted`, and `deliver` with what comes of them, in order.
    pub fn visit<T: Send>(
        &self,
        wanted: impl Fn(u32) -> bool + Sync,
        work: impl Fn(&mut Scratch, &ChunkReader<'_>, u32, &Record<'_>) -> T + Sync,
        mut deliver: impl FnMut(T) + Send,
    ) -> anyhow::Result<()> {
        let reader = self.files.reader(self.inputs);
        let look = |scratch: &mut Scratch, chunk: &ChunkReader<'_>| {
            let first = self.scores.chunks.get(chunk.chunk.number).copied().unwrap_or(u32::MAX);
            // Lines that are blank have no number, so places come before documents.
            let mut lines = Vec::new();
            let mut document = first;
            chunk.for_each_place(|line| {
                if wanted(document) {
                    lines.push((line, document));
                }
                document = document.saturating_add(1);
            });
            let mut found = Vec::new();
            let of_line = |line: u64| lines.binary_search_by_key(&line, |(line, _)| *line).ok().map(|i| lines[i].1);
            chunk.for_some_documents(
                |line| of_line(line).is_some(),
                |record| {
                    let Some(record) = record else { return };
                    found.extend(of_line(record.line).map(|document| work(scratch, chunk, document, &record)));
                },
            )?;
            Ok::<_, FileError>(found)
        };
        let take = |found: Vec<T>| {
            found.into_iter().for_each(&mut deliver);
            anyhow::Ok(())
        };
        reader.scan(Wanted::Named, self.files.states(Scratch::default), look, take)?;
        self.files.check_interrupted()?;
        Ok(())
    }
}
