//! Options of `winnowd select` → how documents are selected, or what is wrong with the options.

use std::sync::Arc;

use super::corrected::Correction;
use super::loss::{LossArguments, WantedLoss};
use super::methods::{CoverageArguments, Criterion, Method, SensitivityArguments};
use crate::cli::UsageError;
use crate::cli::files::{LossFieldArguments, ReadArguments};
use crate::cli::fit::shares;
use crate::cli::tokenizer::TokenizerArguments;
use crate::record::{Decoder, FieldNames};
use crate::select::{Fraction, SelectorKind, Unit, Within};
use crate::tokenizer::Tokenizer;

#[derive(clap::Args)]
#[command(next_help_heading = "Selection")]
pub struct SelectionArguments {
    /// Select this share of the documents, or with --unit tokens of their tokens, such as 0.1
    #[arg(long, value_name = "F", required_unless_present_any = ["count", "tokens"], conflicts_with = "count")]
    fraction: Option<Fraction>,
    /// Select so many documents: exactly, whenever there are enough
    #[arg(long, value_name = "K")]
    count: Option<u64>,
    /// Select so many tokens, to the nearest document: --unit tokens without a share
    #[arg(long, value_name = "N", conflicts_with_all = ["fraction", "count"])]
    tokens: Option<u64>,
    /// What --fraction and --source-proportion are counted in. Tokens are those of --tokenizer, which then counts every document, or else
    /// word-punct tokens
    #[arg(long, value_enum, default_value_t = UnitName::Documents)]
    unit: UnitName,
    /// Resampling adds noise to the weights, top-k does not; coverage spreads the selection over the whole range of a number that
    /// says how hard a document is; sensitivity draws documents by how much a loss depends on them
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
    /// Field or column whose values have the shares of --source-proportion, such as language: strings, or numbers and booleans as JSON
    /// writes them [default: --source-field]
    #[arg(long, value_name = "NAME", requires = "source_proportion")]
    quota_field: Option<String>,
    #[command(flatten)]
    loss: LossArguments,
    /// What documents are weighed against: the raw distribution, or what was selected so far, window by window, so that what is
    /// covered stops paying. Best with --length-normalise and hardly any noise: --selector top_k, or --temperature 0.005. With
    /// --selector coverage it decides inside the strata; cut-off and strata by `weight` are by that against raw
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
    /// With --against selected: how windows follow one another. Inclusion probabilities take the order for one by chance: that of the
    /// files is none
    #[arg(long, value_enum, default_value_t = Order::Shuffled)]
    order: Order,
    /// Gibibytes of n-grams that may be kept beside DIR until the selection is made, when the model is fitted on the input:
    /// about as many as it has text. If that is not enough, the input is read once more instead
    #[arg(long, value_name = "N", default_value_t = 8)]
    scratch_gib: u64,
    /// Measure how well the selection covers the documents (AUC_pr), as `coverage` and `sensitivity` always do
    #[arg(long)]
    measure_coverage: bool,
    /// Say of these documents why they were selected or not: in the report and on the terminal
    #[arg(long, value_name = "ID", num_args = 1..)]
    explain: Vec<String>,
    /// Say that of all documents, in DIR/decisions.jsonl: every number that decided
    #[arg(long)]
    decisions: bool,
    #[command(flatten)]
    coverage: CoverageArguments,
    #[command(flatten)]
    sensitivity: SensitivityArguments,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
enum SelectorName {
    ImportanceResampling,
    TopK,
    Coverage,
    Sensitivity,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum UnitName {
    Documents,
    Tokens,
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
    /// What it and the shares of sources are counted in.
    pub unit: Unit,
    /// What is selected is counted in its tokens, too.
    pub tokenizer: Option<Arc<Tokenizer>>,
    pub method: Method,
    /// How keys are made from log weights.
    pub kind: SelectorKind,
    pub seed: u64,
    pub temperature: Temperature,
    pub length_normalise: bool,
    pub min_tokens: u32,
    /// The field whose values have the shares of `sources`; `None`: the one that says where a document comes from.
    pub quota_field: Option<String>,
    /// Sources, or values of the field, with a share of their own.
    pub sources: Vec<(String, f64)>,
    /// Weights against what was selected, not against raw alone.
    pub correction: Option<Correction>,
    /// What losses add to the weights.
    pub loss: Option<WantedLoss>,
    /// Whether the documents' own losses are read and kept.
    pub keeps_losses: bool,
    /// Other numbers of the documents that are read and kept, by name.
    pub fields: Vec<String>,
    pub measures_coverage: bool,
    /// Ids of documents.
    pub explain: Vec<String>,
    /// Whether it is said of all documents.
    pub writes_decisions: bool,
}

impl SelectionPlan {
    /// The tokenizer, if it must count every document.
    pub fn counter(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_deref().filter(|_| self.unit == Unit::Tokens)
    }

    /// Fields without which a document cannot be selected.
    pub fn needed_fields(&self) -> impl Iterator<Item = usize> {
        let criteria = match &self.method {
            Method::Coverage(c) => [Some(c.importance), c.settings.cutoff.map(|_| c.cutoff)],
            Method::Importance | Method::Sensitivity(_) => [None, None],
        };
        criteria.into_iter().flatten().filter_map(|criterion| match criterion {
            Criterion::Field(field) => Some(field),
            Criterion::Weight => None,
        })
    }
}

#[derive(Clone, Copy)]
pub enum Quota {
    Fraction(Fraction),
    /// Of documents or tokens.
    Count(u64),
}

impl SelectionArguments {
    /// How much is selected, and in what that is counted.
    fn quota(&self) -> Result<(Quota, Unit), UsageError> {
        let unit = if self.unit == UnitName::Tokens { Unit::Tokens } else { Unit::Documents };
        match (self.fraction, self.count, self.tokens) {
            (Some(fraction), None, None) => Ok((Quota::Fraction(fraction), unit)),
            (None, Some(0), None) => Err(UsageError("--count 0: must be at least 1".to_owned())),
            (None, Some(count), None) if unit == Unit::Tokens => {
                Err(UsageError(format!("--count {count}: is of documents; with --unit tokens say --tokens")))
            }
            (None, Some(count), None) => Ok((Quota::Count(count), unit)),
            (None, None, Some(0)) => Err(UsageError("--tokens 0: must be at least 1".to_owned())),
            (None, None, Some(tokens)) => Ok((Quota::Count(tokens), Unit::Tokens)),
            _ => Err(UsageError("give one of --fraction, --count and --tokens".to_owned())),
        }
    }

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

    /// `None`: shares are of sources.
    fn quota_field(&self, read: &ReadArguments, losses: &LossFieldArguments) -> Result<Option<String>, UsageError> {
        let Some(field) = &self.quota_field else { return Ok(None) };
        let FieldNames { text, id, source, .. } = read.fields_like(&Decoder::for_files().fields);
        if source.as_ref() == Some(field) {
            return Ok(None);
        }
        if text == *field || id.as_ref() == Some(field) || losses.has(field) {
            return Err(UsageError(format!("--quota-field {field}: is the text, the id or a loss")));
        }
        Ok(Some(field.clone()))
    }

    pub fn scratch_bytes(&self) -> u64 {
        self.scratch_gib.saturating_mul(1 << 30)
    }

    pub fn checked(
        &self,
        read: &ReadArguments,
        losses: &LossFieldArguments,
        tokenizer: &TokenizerArguments,
    ) -> Result<SelectionPlan, UsageError> {
        let (quota, unit) = self.quota()?;
        let sources = shares("--source-proportion", &self.source_proportion)?;
        let sum: f64 = sources.iter().map(|(_, share)| share).sum();
        if sum > 1.0 + 1e-9 {
            return Err(UsageError(format!("--source-proportion: the shares sum to {sum}, to more than 1")));
        }
        let kind =
            if self.selector == SelectorName::TopK { SelectorKind::TopK } else { SelectorKind::ImportanceResampling };
        let mut fields = Vec::new();
        let method = match self.selector {
            SelectorName::ImportanceResampling | SelectorName::TopK => Method::Importance,
            SelectorName::Coverage => self.coverage.checked(&mut fields)?,
            SelectorName::Sensitivity => self.sensitivity.checked(losses.name())?,
        };
        if self.selector != SelectorName::Coverage {
            self.coverage.check_unused("--selector coverage")?;
        }
        if self.selector != SelectorName::Sensitivity {
            self.sensitivity.check_unused("--selector sensitivity")?;
        }
        if let Some(cutoff) = method.coverage().and_then(|coverage| coverage.settings.cutoff)
            && let Quota::Fraction(fraction) = quota
            && let Some(left) = cutoff.leaves_less_than(fraction)
        {
            let problem = format!("--cutoff {} leaves {left} of the documents", cutoff.rate);
            return Err(UsageError(format!("--fraction {fraction}: {problem}")));
        }
        let correction = self.correction()?;
        let problem = match &method {
            Method::Sensitivity(_) => Some("--selector sensitivity looks at losses and distances, but not at weights"),
            Method::Coverage(coverage) if coverage.settings.within == Within::Uniform => {
                Some("--within uniform draws all of a stratum alike, whatever they weigh")
            }
            Method::Coverage(_) | Method::Importance => None,
        };
        if let Some(problem) = problem.filter(|_| correction.is_some()) {
            return Err(UsageError(format!("--against selected: {problem}")));
        }
        if unit == Unit::Tokens && (correction.is_some() || !matches!(method, Method::Importance)) {
            let problem = "works with --selector importance_resampling and top_k, and not with --against selected";
            return Err(UsageError(format!("--unit tokens: {problem}")));
        }
        let loss = self.loss.checked(&method, losses)?;
        Ok(SelectionPlan {
            quota,
            unit,
            tokenizer: tokenizer.load()?,
            measures_coverage: self.measure_coverage || !matches!(method, Method::Importance),
            method,
            kind,
            seed: self.seed,
            temperature: self.temperature,
            length_normalise: self.length_normalise,
            min_tokens: self.min_tokens,
            quota_field: self.quota_field(read, losses)?,
            sources,
            correction,
            loss,
            keeps_losses: losses.has_losses(),
            fields,
            explain: self.explain.clone(),
            writes_decisions: self.decisions,
        })
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
