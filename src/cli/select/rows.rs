//! The second pass: the documents that were selected, looked for by number. Of all other lines only the ends are found, and
//! stretches of plain files of which nothing is wanted are not read at all.

use std::io::Write;

use anyhow::Context;

use super::draw::Draw;
use super::measure::PROJECTION;
use super::output::{Folder, Format, Output};
use super::scores::Scores;
use super::{Quota, SelectionPlan};
use crate::cli::UsageError;
use crate::cli::files::{Files, total_bytes};
use crate::cli::progress::Progress;
use crate::cli::weights::Weights;
use crate::features::Scratch;
use crate::record::{DocumentRef, Members, TextScratch};
use crate::score::{Model, ModelId, NgramCounts};
use crate::select::{NearestDistances, Pick};
use crate::sink::{SelectedRow, SelectionColumns};
use crate::source::files::{CHANGED, ChunkPlace, ChunkReader, FileError, Input, Wanted};

/// All that is known when rows are written.
pub struct Writing<'a> {
    pub inputs: &'a [Input],
    pub files: &'a Files,
    pub model: &'a Model,
    pub scores: &'a Scores,
    pub draw: &'a Draw,
    pub plan: &'a SelectionPlan,
    /// Documents to which distances are measured.
    pub sample: Option<&'a NearestDistances>,
}

/// What came of it.
pub struct Written {
    /// Names and rows.
    pub files: Vec<(String, u64)>,
    /// N-grams of the selection, and of a random one of the same expected size.
    pub selected: NgramCounts,
    pub random: NgramCounts,
    pub random_documents: u64,
    /// Distances of the sample to the selection, and to the random one.
    pub nearest: Option<[NearestDistances; 2]>,
    pub sources: crate::select::SourceCounts,
    /// Tokens of the selected documents, and those by the tokenizer, if there is one.
    pub n_tokens: u64,
    pub counted_tokens: u64,
}

/// What a thread counts.
struct Counting {
    scratch: Scratch,
    selected: NgramCounts,
    random: NgramCounts,
    random_documents: u64,
    nearest: Option<[NearestDistances; 2]>,
}

/// Rows of one chunk, ready to be written.
pub enum Rows {
    Columns(Vec<SelectedRow>),
    Lines(Vec<u8>),
}

struct ChunkRows {
    rows: Rows,
    sources: Vec<Option<String>>,
    n_tokens: u64,
    counted_tokens: u64,
    file_bytes: u64,
}

impl Writing<'_> {
    pub fn write(
        &self,
        folder: &Folder,
        format: Format,
        weights: &Weights,
        model_id: &ModelId,
    ) -> anyhow::Result<Written> {
        let mut output = Output::new(folder, format, self.columns(), self.footer(model_id)?, self.files.threads());
        let buckets = self.model.featuriser.buckets as usize;
        let states = self.files.states(|| Counting {
            scratch: Scratch::default(),
            selected: NgramCounts::zero(buckets),
            random: NgramCounts::zero(buckets),
            random_documents: 0,
            nearest: self.sample.map(|sample| [sample.clone(), sample.clone()]),
        });
        let progress = Progress::new("write", total_bytes(self.inputs));
        let mut sources = self.scores.sources.clone();
        let (mut n_tokens, mut counted_tokens) = (0, 0);
        let work = |state: &mut Counting, chunk: &ChunkReader<'_>| self.chunk_rows(chunk, format, weights, state);
        let deliver = |rows: ChunkRows| {
            progress.add(rows.sources.len() as u64, rows.file_bytes);
            rows.sources.iter().for_each(|source| sources.selected(source.as_deref()));
            n_tokens += rows.n_tokens;
            counted_tokens += rows.counted_tokens;
            output.write(&rows.rows).map_err(|e| folder.unwritten(e))
        };
        let reader = self.files.reader(self.inputs);
        let states = match self.wanted_chunks() {
            Some(places) => reader.scan_again(&places, states, work, deliver)?,
            None => reader.scan(Wanted::All, states, work, deliver)?,
        };
        self.files.check_interrupted()?;
        progress.finish();
        let mut written = Written {
            files: output.finish().map_err(|e| folder.unwritten(e))?,
            selected: NgramCounts::zero(buckets),
            random: NgramCounts::zero(buckets),
            random_documents: 0,
            nearest: self.sample.map(|sample| [sample.clone(), sample.clone()]),
            sources,
            n_tokens,
            counted_tokens,
        };
        for state in states {
            written.selected.merge(&state.selected);
            written.random.merge(&state.random);
            written.random_documents += state.random_documents;
            let nearest = written.nearest.iter_mut().zip(&state.nearest).flat_map(|(all, of)| all.iter_mut().zip(of));
            nearest.for_each(|(all, of)| all.merge(of));
        }
        let rows: u64 = written.files.iter().map(|(_, rows)| rows).sum();
        if rows != self.draw.selection.picks.len() as u64 {
            let problem = format!("{CHANGED}: documents of the first pass are gone in the second");
            return Err(UsageError(problem).into());
        }
        Ok(written)
    }

    /// The chunks of which something is wanted, if all chunks can be found again.
    fn wanted_chunks(&self) -> Option<Vec<ChunkPlace>> {
        let places = &self.scores.places;
        let is_wanted = |place: &&ChunkPlace| {
            let (first, last) = self.documents(place.number);
            !self.draw.picks(first, last).is_empty() || !self.random(first, last).is_empty()
        };
        (places.len() == self.scores.chunks.len()).then(|| places.iter().filter(is_wanted).copied().collect())
    }

    /// The numbers of a chunk's documents: the first, and the first of the next chunk.
    fn documents(&self, chunk: usize) -> (u32, u32) {
        let first = |chunk: usize| self.scores.chunks.get(chunk).copied().unwrap_or(self.scores.len() as u32);
        (first(chunk), first(chunk + 1))
    }

    /// Only several targets need columns of their names.
    fn columns(&self) -> SelectionColumns {
        let targets = match &self.model.targets[..] {
            [_] => Vec::new(),
            targets => targets.iter().map(|target| target.name.clone()).collect(),
        };
        let tokenizer = self.plan.tokenizer.as_ref().map(|tokenizer| tokenizer.column());
        SelectionColumns { targets, has_losses: self.plan.keeps_losses, tokenizer }
    }

    fn footer(&self, model_id: &ModelId) -> anyhow::Result<Vec<(String, String)>> {
        let pair = |key: &str, value: String| (format!("winnowd.{key}"), value);
        let mut pairs = vec![
            pair("model", model_id.as_str().to_owned()),
            pair("seed", self.plan.seed.to_string()),
            pair("requested", self.draw.requested().to_string()),
            pair("selector", self.selector()?.to_string()),
            pair("method", serde_json::to_string(&super::spread::method(self.plan)).context("method")?),
        ];
        if let Some(tokenizer) = &self.plan.tokenizer {
            let of = serde_json::json!({ "name": tokenizer.name(), "digest": tokenizer.digest() });
            pairs.push(pair("tokenizer", of.to_string()));
        }
        Ok(pairs)
    }

    /// Its settings, without a fraction where a number was asked for.
    fn selector(&self) -> anyhow::Result<serde_json::Value> {
        let mut settings = serde_json::to_value(&self.draw.settings).context("selector")?;
        if let (Quota::Count(_), Some(settings)) = (self.plan.quota, settings.as_object_mut()) {
            settings.remove("fraction");
        }
        Ok(settings)
    }

    fn chunk_rows(
        &self,
        chunk: &ChunkReader<'_>,
        format: Format,
        weights: &Weights,
        state: &mut Counting,
    ) -> Result<ChunkRows, FileError> {
        let (first, last) = self.documents(chunk.chunk.number);
        let picks = self.draw.picks(first, last);
        let random = self.random(first, last);
        let mut found = ChunkRows {
            rows: if format == Format::Parquet { Rows::Columns(Vec::new()) } else { Rows::Lines(Vec::new()) },
            sources: Vec::new(),
            n_tokens: 0,
            counted_tokens: 0,
            file_bytes: chunk.chunk.file_bytes,
        };
        if picks.is_empty() && random.is_empty() {
            return Ok(found);
        }
        let pick = |document: u32| picks.binary_search_by_key(&document, |p| p.document).ok().map(|i| &picks[i]);
        let is_random = |document: u32| random.binary_search(&document).is_ok();
        let document = |n: u64| first.saturating_add(n as u32);
        let mut text_scratch = TextScratch::default();
        chunk.for_some_objects(
            |n| pick(document(n)).is_some() || is_random(document(n)),
            |n, line, json| {
                let Some(content) = chunk.decode(line, json, &mut text_scratch)? else { return Ok(()) };
                self.measure(state, &content.text, pick(document(n)).is_some(), is_random(document(n)));
                if is_random(document(n)) {
                    state.random.add_text(&content.text, &self.model.featuriser, &mut state.scratch);
                    state.random_documents += 1;
                }
                if let Some(pick) = pick(document(n)) {
                    let n_tokens = state.selected.add_text(&content.text, &self.model.featuriser, &mut state.scratch);
                    // A cheap sign of a text that is not the one that was weighed.
                    if n_tokens != self.scores.n_tokens[pick.document as usize] {
                        let path = self.inputs[chunk.input()].path.clone();
                        return Err(FileError { path, line: Some(line), problem: CHANGED.to_owned() });
                    }
                    self.add_row(&mut found, pick, &content, json, weights);
                }
                Ok(())
            },
        )?;
        Ok(found)
    }

    /// How near a document is to those of the sample.
    fn measure(&self, state: &mut Counting, text: &str, is_selected: bool, is_random: bool) {
        let Some([selected, random]) = &mut state.nearest else { return };
        let point = PROJECTION.of_text(text, &self.model.featuriser, &mut state.scratch);
        if is_selected {
            selected.selected(&point);
        }
        if is_random {
            random.selected(&point);
        }
    }

    /// Candidates of a random selection that is expected to be as large as the real one, among documents `from..to`.
    fn random(&self, from: u32, to: u32) -> Vec<u32> {
        let share = self.draw.selection.picks.len() as f64 / (self.draw.candidates as f64).max(1.0);
        let is_drawn = |&document: &u32| {
            self.draw.competes(self.scores, self.plan, document)
                && self.draw.noise.in_baseline(i64::from(document), share)
        };
        (from..to).filter(is_drawn).collect()
    }

    fn add_row(&self, found: &mut ChunkRows, pick: &Pick, content: &DocumentRef<'_>, json: &[u8], weights: &Weights) {
        let document = pick.document;
        let n_tokens = self.scores.n_tokens[document as usize];
        found.n_tokens += u64::from(n_tokens);
        let tokenizer = self.plan.tokenizer.as_deref();
        let counted = self.scores.counted.get(document as usize).copied();
        let counted_tokens = counted.unwrap_or_else(|| tokenizer.and_then(|tokenizer| tokenizer.count(&content.text)));
        found.counted_tokens += u64::from(counted_tokens.unwrap_or(0));
        let source = content.source.as_deref().map(str::to_owned);
        found.sources.push(source.clone());
        // Lines carry the text as it stands in the original.
        let is_columns = matches!(found.rows, Rows::Columns(_));
        let inclusion_probability = self.draw.inclusion_probability(self.scores, self.model, document);
        let row = SelectedRow {
            text: if is_columns { content.text.as_ref().to_owned() } else { String::new() },
            id: content.id().into_owned(),
            source,
            n_tokens,
            counted_tokens,
            log_importance_weights: self.scores.weights_of(document).to_vec(),
            target: pick.target,
            selection_key: pick.key,
            inclusion_probability,
            sample_weight: self.draw.sample_weight(self.scores, document, inclusion_probability),
            metadata: if is_columns { content.metadata() } else { None },
            loss: self.scores.loss(document),
            loss_weight: self.draw.settings.loss.map(|term| term.log_weight(self.scores.loss(document))),
        };
        match &mut found.rows {
            Rows::Columns(rows) => rows.push(row),
            Rows::Lines(lines) => {
                let several = self.model.targets.len() > 1;
                let target = several.then(|| self.model.targets[pick.target].name.as_str());
                let mut fields = fields(&row, target, weights);
                fields.extend(tokenizer.map(|tokenizer| (tokenizer.column(), counted_tokens.into())));
                fields.extend(self.missing_id(content, &fields));
                add_fields(lines, json, &fields);
            }
        }
    }

    /// The id by which the decisions and scores know a document without one, unless what is `added` has its name.
    fn missing_id(
        &self,
        content: &DocumentRef<'_>,
        added: &[(String, serde_json::Value)],
    ) -> Option<(String, serde_json::Value)> {
        let name = self.files.settings.decoder.fields.id.as_ref().filter(|_| content.own_id.is_none())?;
        added.iter().all(|(field, _)| field != name).then(|| (name.clone(), content.id().into()))
    }
}

/// What is added to an object: names and JSON values.
fn fields(row: &SelectedRow, target: Option<&str>, weights: &Weights) -> Vec<(String, serde_json::Value)> {
    let mut fields = vec![
        ("n_tokens".to_owned(), row.n_tokens.into()),
        ("log_importance_weight".to_owned(), row.log_importance_weights[row.target].into()),
    ];
    if let Some(target) = target {
        fields.push(("target".to_owned(), target.into()));
        let of_targets = weights.columns().iter().zip(&row.log_importance_weights);
        fields.extend(of_targets.map(|(name, weight)| (name.clone(), (*weight).into())));
    }
    fields.push(("selection_key".to_owned(), row.selection_key.into()));
    fields.push(("inclusion_probability".to_owned(), row.inclusion_probability.into()));
    fields.push(("sample_weight".to_owned(), row.sample_weight.into()));
    fields.extend(row.loss_weight.map(|weight| ("loss_weight".to_owned(), weight.into())));
    fields
}

/// The object as it was with `fields` at its end. Fields of these names that it has already, of an earlier selection, go.
fn add_fields(out: &mut Vec<u8>, json: &[u8], fields: &[(String, serde_json::Value)]) {
    // Most objects have none of the names, not even as a value or further within.
    let has = |name: &str| memchr::memmem::find(json, format!("\"{name}\"").as_bytes()).is_some();
    let has_any = fields.iter().any(|(name, _)| has(name));
    let rebuilt = if has_any { without(json, fields) } else { None };
    let kept = rebuilt.as_deref().unwrap_or_else(|| json.strip_suffix(b"}").unwrap_or(json).trim_ascii_end());
    out.extend_from_slice(kept);
    for (i, (name, value)) in fields.iter().enumerate() {
        let comma = if i == 0 && kept.ends_with(b"{") { "" } else { "," };
        // Writing to memory does not fail.
        let _ = write!(out, "{comma}{}:{value}", serde_json::Value::from(name.as_str()));
    }
    out.extend_from_slice(b"}\n");
}

/// The object without its own members of these names, and still open; `None` if it has none of them. All others stay, in
/// their order and with the bytes of their values.
fn without(json: &[u8], fields: &[(String, serde_json::Value)]) -> Option<Vec<u8>> {
    let Members(members) = serde_json::from_slice::<Members<'_>>(json).ok()?;
    let is_kept = |name: &str| fields.iter().all(|(field, _)| field != name);
    if members.iter().all(|(name, _)| is_kept(name)) {
        return None;
    }
    let mut out = vec![b'{'];
    for (name, value) in members.iter().filter(|(name, _)| is_kept(name)) {
        if out.len() > 1 {
            out.push(b',');
        }
        let _ = write!(out, "{}:{value}", serde_json::Value::from(&**name));
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_stand_at_the_end_and_replace_older_ones() {
        let added = |json: &str| {
            let mut out = Vec::new();
            add_fields(&mut out, json.as_bytes(), &[("a".to_owned(), 1.into()), ("b".to_owned(), 2.5.into())]);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(added(r#"{"text":"x", "n": 1.50 }"#), "{\"text\":\"x\", \"n\": 1.50,\"a\":1,\"b\":2.5}\n");
        assert_eq!(added(r#"{"text":"x","b":9,"a":8}"#), "{\"text\":\"x\",\"a\":1,\"b\":2.5}\n");
        // The name as a value is no field.
        assert_eq!(added(r#"{"text":"a"}"#), "{\"text\":\"a\",\"a\":1,\"b\":2.5}\n");
    }

    #[test]
    fn all_other_fields_stay_in_their_order() {
        let added = |json: &str| {
            let mut out = Vec::new();
            add_fields(&mut out, json.as_bytes(), &[("target".to_owned(), "web".into())]);
            String::from_utf8(out).unwrap()
        };
        // Within another field the name is not ours.
        let within = r#"{"text":"x","meta":{"target":1}, "b":1,"a":2}"#;
        assert_eq!(added(within), "{\"text\":\"x\",\"meta\":{\"target\":1}, \"b\":1,\"a\":2,\"target\":\"web\"}\n");
        let twice = r#"{"z":1.50,"target":"old","b":[ 1],"text":"x","b":{"target":2},"a":null,"target":3}"#;
        let kept = r#"{"z":1.50,"b":[ 1],"text":"x","b":{"target":2},"a":null,"target":"web"}"#;
        assert_eq!(added(twice), format!("{kept}\n"));
        assert_eq!(added(r#"{"target":0}"#), "{\"target\":\"web\"}\n");
    }
}
