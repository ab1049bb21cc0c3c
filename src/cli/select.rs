//! `winnowd select`: DSIR on files. The files are read twice: once for the weights, of which only numbers are kept (a model
//! that is fitted on them keeps their n-grams on disk, so that they need not be read once more), and once to write the
//! documents that were selected. Points of documents, where they are needed, take one reading more.
//!
//! One order whatever the selector: score, cut-off, shares of sources or of the values of another field, strata, noise.

mod corrected;
mod covered;
mod draw;
mod explain;
mod featurise;
mod loss;
mod measure;
mod methods;
mod output;
mod plan;
mod report;
mod rows;
mod scores;
mod sensitive;
mod shares;
mod spool;
mod spread;
mod tokens;

use std::path::PathBuf;
use std::time::Instant;

use super::files::{FeaturiserArguments, Files, LossFieldArguments, ReadArguments};
use super::fit::{FitPlan, SampleArguments, Sampling, TargetArguments};
use super::print;
use super::tokenizer::TokenizerArguments;
use super::weights::Weights;
use crate::score::{Model, ModelId};
use crate::select::Unit;
use crate::source::files::{ExtraFields, Input};
use featurise::Featurised;
use methods::Method;
use output::Folder;
use plan::{Quota, SelectionArguments, SelectionPlan, Temperature};

pub use output::Format;
pub use report::significant;

/// Options that say how a model is fitted: one that exists has been.
const FITTING: [&str; 10] = [
    "target",
    "proportion",
    "raw",
    "raw_sample",
    "raw_fraction",
    "sample_seed",
    "featuriser",
    "ngrams",
    "buckets",
    "smoothing",
];

#[derive(clap::Args)]
pub struct SelectArguments {
    /// Documents to select from: JSONL and CSV (plain, .gz, .zst) or Parquet; folders, patterns, s3://BUCKET/PREFIX
    #[arg(long, value_name = "PATH", num_args = 1.., required = true)]
    input: Vec<PathBuf>,
    /// Folder for the selection, report.json and, when it is fitted here, model.wnw; appears when all is written
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Replace the selection that DIR holds
    #[arg(long)]
    overwrite: bool,
    /// How the selection is written; JSONL are the original objects with the weights added
    #[arg(long, value_enum, default_value_t = Format::Parquet)]
    format: Format,

    #[command(flatten)]
    targets: TargetArguments,
    /// Documents as they come, for the raw side of the model [default: the input itself]
    #[arg(long, value_name = "PATH", num_args = 1.., requires = "target")]
    raw: Vec<PathBuf>,
    /// A model that `winnowd fit` made, instead of --target and --raw
    #[arg(long, value_name = "MODEL", conflicts_with_all = FITTING, required_unless_present = "target")]
    model: Option<PathBuf>,
    #[command(flatten)]
    featuriser: FeaturiserArguments,
    #[command(flatten)]
    sample: SampleArguments,

    #[command(flatten)]
    selection: SelectionArguments,
    #[command(flatten)]
    read: ReadArguments,
    #[command(flatten)]
    losses: LossFieldArguments,
    #[command(flatten)]
    tokenizer: TokenizerArguments,
}

/// A model, and its bytes if they are to be written beside the selection.
struct ChosenModel {
    model: Model,
    id: ModelId,
    fitted: Option<Vec<u8>>,
}

pub fn select(arguments: &SelectArguments) -> anyhow::Result<()> {
    let began = Instant::now();
    let plan = arguments.selection.checked(&arguments.read, &arguments.losses, &arguments.tokenizer)?;
    let inputs = arguments.read.inputs(&arguments.input, true)?;
    let folder = Folder::prepare(&arguments.out, arguments.overwrite)?;
    let fit_files = Files::new(&arguments.read)?;
    let fields = ExtraFields { numbers: plan.fields.clone(), vector: None, word: plan.quota_field.clone() };
    let files = fit_files.with_losses(&arguments.losses).with_extra(fields);
    let (chosen_model, featurised) = arguments.model(&inputs, &fit_files, &files, &plan, &folder)?;
    let model = &chosen_model.model;

    let weights = Weights::new(model);
    let mut weighed = None;
    let (scores, draw) = match (featurised, &plan.correction) {
        (Some(featurised), Some(correction)) => {
            let coverage = plan.method.coverage();
            corrected::draw(featurised, model, &plan, correction, coverage, &files)?
        }
        (featurised, _) => {
            let scores = match featurised {
                Some(featurised) => {
                    let (scores, ngrams) = featurised.score(&files, &weights)?;
                    weighed = Some(ngrams);
                    scores
                }
                None => scores::score_all(&inputs, &files, &weights, &plan)?,
            };
            let draw = match &plan.method {
                Method::Importance if plan.unit == Unit::Tokens => tokens::draw(&scores, model, &plan)?,
                Method::Importance => draw::draw(&scores, model, &plan)?,
                Method::Coverage(coverage) => covered::draw(&scores, model, &plan, coverage)?,
                Method::Sensitivity(sensitivity) => {
                    // Points need the room.
                    weighed = None;
                    let spool = folder.spool(arguments.selection.scratch_bytes(), files.threads());
                    let points = sensitive::Points::of(&inputs, &files, model, sensitivity, spool)?;
                    points.draw(&scores, model, &plan, sensitivity, &files)?
                }
            };
            (scores, draw)
        }
    };
    let looking = measure::Looking { inputs: &inputs, files: &files, model, scores: &scores, draw: &draw, plan: &plan };
    let sample = if plan.measures_coverage { Some(looking.sample()?) } else { None };
    let explanations = if plan.explain.is_empty() { Vec::new() } else { explain::explain(&looking)? };
    if plan.writes_decisions {
        explain::write_decisions(&looking, &folder)?;
    }
    let writing = rows::Writing {
        inputs: &inputs,
        files: &files,
        model,
        scores: &scores,
        draw: &draw,
        plan: &plan,
        sample: sample.as_ref(),
    };
    let write = || writing.write(&folder, arguments.format, &weights, &chosen_model.id);
    // Needs the draw at most and takes one core, as some of the writing does.
    let rest = || {
        drop(weighed);
        if let Some(bytes) = &chosen_model.fitted {
            folder.write("model.wnw", bytes)?;
        }
        anyhow::Ok(draw.diagnostics(&scores, model))
    };
    let (written, diagnostics) = if files.threads() == 1 { (write(), rest()) } else { side_by_side(write, rest) };
    let (written, diagnostics) = (written?, diagnostics?);

    let facts = report::Facts {
        model,
        model_id: &chosen_model.id,
        inputs: &inputs,
        plan: &plan,
        scores: &scores,
        draw: &draw,
        diagnostics: &diagnostics,
        written: &written,
        explanations: &explanations,
        out: &arguments.out,
        is_fitted: chosen_model.fitted.is_some(),
        seconds: began.elapsed().as_secs_f64(),
    };
    let report = report::Report::of(&facts);
    folder.write("report.json", &serde_json::to_vec_pretty(&report)?)?;
    folder.publish()?;
    print(&report.text())
}

fn side_by_side<A, B: Send>(one: impl FnOnce() -> A, other: impl FnOnce() -> B + Send) -> (A, B) {
    std::thread::scope(|scope| {
        let other = scope.spawn(other);
        let one = one();
        (one, other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

impl SelectArguments {
    /// The model; if it was fitted on the input itself, also what was kept of that.
    fn model(
        &self,
        inputs_to_select: &[Input],
        fit_files: &Files,
        files: &Files,
        selection: &SelectionPlan,
        folder: &Folder,
    ) -> anyhow::Result<(ChosenModel, Option<Featurised>)> {
        if let Some(path) = &self.model {
            let (model, id) = super::model::load(path)?;
            let featurised = self.featurised(inputs_to_select, files, &model, selection, folder)?;
            return Ok((ChosenModel { model, id, fitted: None }, featurised));
        }
        let (featuriser, smoothing) = self.featuriser.checked()?;
        let sampling = self.sample.checked()?;
        let raw = match &self.raw[..] {
            [] => inputs_to_select.to_vec(),
            paths => self.read.inputs(paths, matches!(sampling, Sampling::Count { .. }))?,
        };
        let targets = self.targets.checked(&self.read)?;
        let plan = FitPlan { targets, raw, sampling, featuriser, smoothing, keep_ngrams: 0 };
        let mut featurised = None;
        let model = if self.raw.is_empty() && plan.sampling == Sampling::All {
            plan.fit_with_raw(fit_files, || {
                let spool = folder.spool(self.selection.scratch_bytes(), files.threads());
                let (raw, numbers) = featurise::featurise(inputs_to_select, files, plan.featuriser, selection, spool)?;
                featurised = numbers;
                Ok(raw)
            })?
        } else {
            let model = plan.fit(fit_files)?;
            featurised = self.featurised(inputs_to_select, files, &model, selection, folder)?;
            model
        };
        let bytes = model.to_bytes();
        Ok((ChosenModel { id: ModelId::of(&bytes), model, fitted: Some(bytes) }, featurised))
    }
}

impl SelectArguments {
    /// The n-grams of the input, where a model does not come from it but they are needed.
    fn featurised(
        &self,
        inputs: &[Input],
        files: &Files,
        model: &Model,
        plan: &SelectionPlan,
        folder: &Folder,
    ) -> anyhow::Result<Option<Featurised>> {
        if plan.correction.is_none() {
            return Ok(None);
        }
        let spool = folder.spool(self.selection.scratch_bytes(), files.threads());
        Ok(featurise::featurise(inputs, files, model.featuriser, plan, spool)?.1)
    }
}
