//! `winnowd model show`: what a model file says, for a person.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::{UsageError, print, read_file};
use crate::features::Scratch;
use crate::score::{ImportanceWeight, Model, ModelId, Provenance, Side, kl_divergence};

#[derive(clap::Subcommand)]
pub enum ModelCommand {
    /// Print what a model was fitted from and what tells its targets from the raw text
    #[command(after_help = "Example:\n  winnowd model show model.wnw")]
    Show(ShowArguments),
}

#[derive(clap::Args)]
pub struct ShowArguments {
    #[arg(value_name = "MODEL")]
    path: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub fn model(command: &ModelCommand) -> anyhow::Result<()> {
    let ModelCommand::Show(arguments) = command;
    let (model, id) = load(&arguments.path)?;
    if arguments.json {
        return print(&format!("{:#}\n", as_json(&model, &id)));
    }
    print(&format!("{}\n{}{}", arguments.path.display(), summary(&model, &id), ngrams(&model)))
}

/// A model file and its name.
pub fn load(path: &Path) -> anyhow::Result<(Model, ModelId)> {
    let wrong = |problem: String| UsageError(format!("model `{}`: {problem}", path.display()));
    let bytes = read_file(path).map_err(wrong)?;
    let model = Model::from_bytes(&bytes).map_err(|e| wrong(e.to_string()))?;
    Ok((model, ModelId::of(&bytes)))
}

/// A target's name, or a word for the one without.
pub fn target_name(name: &str) -> &str {
    if name.is_empty() { "target" } else { name }
}

/// Every side with its name and, for a target, how far it is from the raw text.
fn sides(model: &Model) -> Vec<(&str, Option<f64>, &Side)> {
    let raw = model.raw.counts.probabilities();
    let divergence = |side: &Side| kl_divergence(&side.counts.probabilities(), &raw, model.smoothing);
    let targets = model.targets.iter().map(|t| (target_name(&t.name), Some(divergence(&t.side)), &t.side));
    targets.chain([("raw", None, &model.raw)]).collect()
}

/// A few lines on a model.
pub fn summary(model: &Model, id: &ModelId) -> String {
    let f = &model.featuriser;
    let mut text = format!("  id          {id}\n");
    let _ = writeln!(
        text,
        "  featuriser  {}, n-grams of 1 to {} tokens in {} buckets, smoothing {:e}",
        f.hash.as_str(),
        f.max_n,
        f.buckets,
        model.smoothing
    );
    for (i, (name, divergence, side)) in sides(model).into_iter().enumerate() {
        let (documents, ngrams) = (side.provenance.documents, side.counts.total());
        let _ = write!(text, "  {name:<10}  {documents} documents, {ngrams} n-grams");
        if let Some(divergence) = divergence {
            let _ = write!(text, ", {divergence:.3} nats from raw (KL)");
        }
        if let Some(target) = model.targets.get(i).filter(|_| model.targets.len() > 1) {
            let _ = write!(text, ", {:.1} % of a selection", 100.0 * target.proportion);
        }
        let _ = writeln!(text, "\n              of {}", shortened(&side.provenance));
    }
    text
}

/// Names that are shown.
const INPUTS: usize = 3;

fn shortened(provenance: &Provenance) -> String {
    let shown = &provenance.inputs[..provenance.inputs.len().min(INPUTS)];
    match (provenance.n_inputs(), shown.len() as u64) {
        (0, _) => "unknown files".to_owned(),
        (n, n_shown) if n > n_shown => format!("{} and {} more", shown.join(", "), n - n_shown),
        _ => shown.join(", "),
    }
}

/// The log ratio of an n-gram's bucket: what one occurrence adds to the weight of a document.
fn ratios(model: &Model, ngrams: &[(String, u64)]) -> Vec<Vec<f64>> {
    let weights = ImportanceWeight::of_targets(model);
    let mut scratch = Scratch::default();
    let mut ratio = |ngram: &str| {
        // The last bucket is that of the longest n-gram, which is the whole text.
        let mut last = None;
        model.featuriser.for_each_chunk(ngram, &mut scratch, |chunk| last = chunk.last().copied().or(last));
        weights.iter().map(|w| last.map_or(0.0, |bucket| w.add(0.0, &[bucket]))).collect()
    };
    ngrams.iter().map(|(ngram, _)| ratio(ngram)).collect()
}

const COLUMN: usize = 24;

fn ngrams(model: &Model) -> String {
    let sides = sides(model);
    let longest = sides.iter().map(|(_, _, side)| side.provenance.top_ngrams.len()).max().unwrap_or(0);
    if longest == 0 {
        return "\nNo n-grams were kept as text (`winnowd fit --keep-ngrams N` keeps them).\n".to_owned();
    }
    let mut text = "\nMost frequent n-grams (in a uniform sample of up to 2,000 documents a side)\n  ".to_owned();
    for (name, ..) in &sides {
        let _ = write!(text, "{}", cell(name));
    }
    for row in 0..longest {
        text.push_str("\n  ");
        for (_, _, side) in &sides {
            let shown = side.provenance.top_ngrams.get(row).map(|(ngram, count)| format!("{count:>7}  {ngram}"));
            let _ = write!(text, "{}", cell(&shown.unwrap_or_default()));
        }
    }
    for (i, (name, _, side)) in sides.iter().enumerate().take(model.targets.len()) {
        let kept = &side.provenance.top_ngrams;
        let mut ranked: Vec<_> = kept.iter().zip(ratios(model, kept)).map(|((ngram, _), r)| (ngram, r[i])).collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(b.0)));
        let _ = write!(
            text,
            "\n\nOf these, what speaks most for {name} (nats that one occurrence adds; buckets are shared)\n"
        );
        for (ngram, ratio) in ranked.iter().take(10) {
            let _ = writeln!(text, "  {ratio:>+7.3}  {ngram}");
        }
    }
    text.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

fn cell(text: &str) -> String {
    let mut cell: String = text.chars().take(COLUMN - 2).collect();
    cell.extend(std::iter::repeat_n(' ', COLUMN - cell.chars().count()));
    cell
}

fn as_json(model: &Model, id: &ModelId) -> serde_json::Value {
    let side = |side: &Side| {
        let kept = &side.provenance.top_ngrams;
        let ngrams = kept
            .iter()
            .zip(ratios(model, kept))
            .map(|((ngram, count), r)| json!({ "ngram": ngram, "count_in_sample": count, "log_ratios": r }));
        json!({
            "documents": side.provenance.documents,
            "ngrams": side.counts.total(),
            "inputs": side.provenance.inputs,
            "n_inputs": side.provenance.n_inputs(),
            "inputs_digest": side.provenance.all_inputs.as_ref().map(|all| &all.digest),
            "top_ngrams": ngrams.collect::<Vec<_>>(),
        })
    };
    let divergences = sides(model);
    let targets = model.targets.iter().zip(&divergences).map(|(target, (_, divergence, _))| {
        let mut value = side(&target.side);
        value["name"] = json!(target.name);
        value["proportion"] = json!(target.proportion);
        value["kl_from_raw_nats"] = json!(divergence);
        value
    });
    json!({
        "id": id,
        "made_by": model.made_by,
        "featuriser": model.featuriser,
        "smoothing": model.smoothing,
        "targets": targets.collect::<Vec<_>>(),
        "raw": side(&model.raw),
    })
}
