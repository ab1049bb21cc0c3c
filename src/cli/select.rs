//! `winnowd select`: DSIR on files. The files are read twice: once for the weights, of which only numbers are kept (a model
//! that is fitted on them keeps their n-grams on disk, so that they need not be read once more), and once to write the
//! documents that were selected.

mod corrected;
mod draw;
mod featurise;
mod output;
mod report;
mod rows;
mod scores;
mod spool;

use std::path::PathBuf;
use std::time::Instant;

use super::files::{FeaturiserArguments, Files, ReadArguments, inputs};
use super::fit::{FitPlan, SampleArguments, Sampling, TargetArguments, shares};
use super::weights::Weights;
use super::{UsageError, print};
use crate::score::{Model, ModelId};
use crate::select::{Fraction, SelectorKind};
use crate::source::files::Input;
use corrected::Correction;
use featurise::Featurised;
use output::Folder;

pub use output::Format;

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
    /// Documents to select from: JSONL (plain, .gz, .zst), Parquet, or folders of them
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
}

#[derive(clap::Args)]
#[command(next_help_heading = "Selection")]
struct SelectionArguments {
    /// Select this share of the documents, such as 0.1
    #[arg(long, value_name = "F", required_unless_present = "count", conflicts_with = "count")]
    fraction: Option<Fraction>,
    /// Select so many documents: exactly, whenever there are enough
    #[arg(long, value_name = "K")]
    count: Option<u64>,
    /// Resampling adds noise to the weights, top-k does not
    #[arg(long, value_enum, default_value_t = SelectorName::ImportanceResampling)]
    selector: SelectorName,
    /// Another seed, another sample; the same seed, the same sample
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Log weights are divided by it. `auto`: such that the effective sample size is a tenth of the candidates; `auto:0.05`:
    /// that share of them
    #[arg(long, value_name = "T|auto", default_value = "1")]
    temperature: Temperature,
    /// Compare documents by the mean of their n-grams instead of the sum, which punishes length
    #[arg(long)]
    length_normalise: bool,
    /// Shorter documents are never selected
    #[arg(long, value_name = "N", default_value_t = 100)]
    min_tokens: u32,
    /// Share of the selection for a source; what is left goes to all other sources together
    #[arg(long, value_name = "NAME=SHARE", num_args = 1..)]
    source_proportion: Vec<String>,
    /// What documents are weighed against: the raw distribution, or what was selected so far, window by window, so that what is
    /// covered stops paying. Best with --length-normalise and hardly any noise: --selector top_k, or --temperature 0.005
    #[arg(long, value_enum, default_value_t = AgainstName::Raw)]
    against: AgainstName,
    /// With --against selected: its weight in a geometric mixture with the raw distribution
    #[arg(long, value_name = "SHARE", default_value_t = 1.0)]
    selected_share: f64,
    /// With --against selected: the raw distribution counts as if it had been selected in so many n-grams [default: a tenth of
    /// what is to be selected]
    #[arg(long, value_name = "N")]
    selected_prior: Option<u64>,
    /// With --against selected: documents of a window, all of which are weighed against the windows before
    #[arg(long, value_name = "N", default_value_t = 8192)]
    window: usize,
    /// With --against selected: corrections within a window
    #[arg(long, value_name = "N", default_value_t = 1)]
    rounds: u32,
    /// With --against selected: what was selected so many n-grams ago counts half [default: nothing is forgotten]
    #[arg(long, value_name = "N")]
    selected_half_life: Option<u64>,
    /// With --against selected: weigh a window against the selection as it was so many windows ago, as in a daemon whose
    /// publications come late
    #[arg(long, value_name = "WINDOWS", default_value_t = 0)]
    lag: usize,
    /// With --against selected: how windows follow one another
    #[arg(long, value_enum, default_value_t = Order::Shuffled)]
    order: Order,
    /// Gibibytes of n-grams that may be kept beside DIR until the selection is made, when the model is fitted on the input:
    /// about as many as it has text. If that is not enough, the input is read once more instead
    #[arg(long, value_name = "N", default_value_t = 8)]
    scratch_gib: u64,
}

#[derive(Clone, Copy, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
enum SelectorName {
    ImportanceResampling,
    TopK,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum AgainstName {
    Raw,
    Selected,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Order {
    /// By the seed
    Shuffled,
    /// As the documents stand in the files
    Files,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Temperature {
    Fixed(f64),
    /// For this effective sample size, as a share of the candidates.
    Auto(f64),
}

impl std::str::FromStr for Temperature {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse::<f64>().ok().filter(|t| t.is_finite() && *t > 0.0);
        let wanted = match text.strip_prefix("auto") {
            Some("") => Some(Temperature::Auto(0.1)),
            Some(share) => share.strip_prefix(':').and_then(number).filter(|share| *share < 1.0).map(Temperature::Auto),
            None => number(text).map(Temperature::Fixed),
        };
        wanted.ok_or_else(|| "expected a number above 0, `auto`, or `auto:SHARE` with a share below 1".to_owned())
    }
}

/// How documents are selected.
pub struct SelectionPlan {
    pub quota: Quota,
    pub kind: SelectorKind,
    pub seed: u64,
    pub temperature: Temperature,
    pub length_normalise: bool,
    pub min_tokens: u32,
    /// Sources with a share of their own.
    pub sources: Vec<(String, f64)>,
    /// Weights against what was selected, not against raw alone.
    pub correction: Option<Correction>,
}

#[derive(Clone, Copy)]
pub enum Quota {
    Fraction(Fraction),
    Count(u64),
}

impl SelectionArguments {
    fn correction(&self) -> Result<Option<Correction>, UsageError> {
        if self.against == AgainstName::Raw {
            return Ok(None);
        }
        let share = self.selected_share;
        if !(share > 0.0 && share <= 1.0) {
            return Err(UsageError(format!("--selected-share {share}: must be above 0 and up to 1")));
        }
        for (option, n) in [
            ("--selected-prior", self.selected_prior.unwrap_or(1)),
            ("--window", self.window as u64),
            ("--rounds", self.rounds.into()),
            ("--selected-half-life", self.selected_half_life.unwrap_or(1)),
        ] {
            if n == 0 {
                return Err(UsageError(format!("{option} 0: must be at least 1")));
            }
        }
        if self.lag > 0 && self.rounds > 1 {
            let problem = format!("--rounds {}: with --lag no round sees what those before it selected", self.rounds);
            return Err(UsageError(problem));
        }
        Ok(Some(Correction {
            share,
            prior_ngrams: self.selected_prior,
            window: self.window,
            rounds: self.rounds,
            half_life_ngrams: self.selected_half_life,
            lag: self.lag,
            is_shuffled: self.order == Order::Shuffled,
        }))
    }

    fn scratch_bytes(&self) -> u64 {
        self.scratch_gib.saturating_mul(1 << 30)
    }

    fn checked(&self) -> Result<SelectionPlan, UsageError> {
        let quota = match (self.fraction, self.count) {
            (Some(fraction), None) => Quota::Fraction(fraction),
            (None, Some(0)) => return Err(UsageError("--count 0: must be at least 1".to_owned())),
            (None, Some(count)) => Quota::Count(count),
            _ => return Err(UsageError("give one of --fraction and --count".to_owned())),
        };
        let sources = shares("--source-proportion", &self.source_proportion)?;
        let sum: f64 = sources.iter().map(|(_, share)| share).sum();
        if sum > 1.0 + 1e-9 {
            return Err(UsageError(format!("--source-proportion: the shares sum to {sum}, to more than 1")));
        }
        let kind = match self.selector {
            SelectorName::ImportanceResampling => SelectorKind::ImportanceResampling,
            SelectorName::TopK => SelectorKind::TopK,
        };
        Ok(SelectionPlan {
            quota,
            kind,
            seed: self.seed,
            temperature: self.temperature,
            length_normalise: self.length_normalise,
            min_tokens: self.min_tokens,
            sources,
            correction: self.correction()?,
        })
    }
}

/// A model, and its bytes if they are to be written beside the selection.
struct ChosenModel {
    model: Model,
    id: ModelId,
    fitted: Option<Vec<u8>>,
}

pub fn select(arguments: &SelectArguments) -> anyhow::Result<()> {
    let began = Instant::now();
    let plan = arguments.selection.checked()?;
    let inputs = inputs(&arguments.input, true)?;
    let folder = Folder::prepare(&arguments.out, arguments.overwrite)?;
    let files = Files::new(&arguments.read)?;
    let (chosen_model, featurised) = arguments.model(&inputs, &files, &plan, &folder)?;
    let model = &chosen_model.model;

    let weights = Weights::new(model);
    let (scores, draw) = match (featurised, &plan.correction) {
        (Some(featurised), Some(correction)) => corrected::draw(featurised, model, &plan, correction, &files)?,
        (Some(featurised), None) => drawn(featurised.score(&files, &weights)?, model, &plan)?,
        (None, _) => drawn(scores::score_all(&inputs, &files, &weights, &plan)?, model, &plan)?,
    };
    let writing = rows::Writing { inputs: &inputs, files: &files, model, scores: &scores, draw: &draw, plan: &plan };
    let written = writing.write(&folder, arguments.format, &weights, &chosen_model.id)?;

    let facts = report::Facts {
        model,
        model_id: &chosen_model.id,
        inputs: &inputs,
        plan: &plan,
        scores: &scores,
        draw: &draw,
        written: &written,
        out: &arguments.out,
        is_fitted: chosen_model.fitted.is_some(),
        seconds: began.elapsed().as_secs_f64(),
    };
    let report = report::Report::of(&facts);
    folder.write("report.json", &serde_json::to_vec_pretty(&report)?)?;
    if let Some(bytes) = &chosen_model.fitted {
        folder.write("model.wnw", bytes)?;
    }
    folder.publish()?;
    print(&report.text())
}

fn drawn(scores: scores::Scores, model: &Model, plan: &SelectionPlan) -> anyhow::Result<(scores::Scores, draw::Draw)> {
    let draw = draw::draw(&scores, model, plan)?;
    Ok((scores, draw))
}

impl SelectArguments {
    /// The model; if it was fitted on the input itself, also what was kept of that.
    fn model(
        &self,
        inputs_to_select: &[Input],
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
            paths => inputs(paths, matches!(sampling, Sampling::Count { .. }))?,
        };
        let targets = self.targets.checked()?;
        let plan = FitPlan { targets, raw, sampling, featuriser, smoothing, keep_ngrams: 0 };
        let mut featurised = None;
        let model = if self.raw.is_empty() && plan.sampling == Sampling::All {
            plan.fit_with_raw(files, || {
                let spool = folder.spool(self.selection.scratch_bytes(), files.threads());
                let (raw, numbers) = featurise::featurise(inputs_to_select, files, plan.featuriser, selection, spool)?;
                featurised = numbers;
                Ok(raw)
            })?
        } else {
            let model = plan.fit(files)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temperatures_are_read() {
        assert_eq!("2.5".parse(), Ok(Temperature::Fixed(2.5)));
        assert_eq!("auto".parse(), Ok(Temperature::Auto(0.1)));
        assert_eq!("auto:0.05".parse(), Ok(Temperature::Auto(0.05)));
        for wrong in ["", "0", "-1", "inf", "NaN", "auto:", "auto:1", "auto:0", "auto0.1", "automatic"] {
            assert!(wrong.parse::<Temperature>().is_err(), "`{wrong}` was taken");
        }
    }
}
