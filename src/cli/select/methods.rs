//! Selectors other than importance resampling: their options, and what they come to.

use crate::cli::UsageError;
use crate::record::{Base64Floats, EmbeddingField};
use crate::select::{
    CoverageSettings, Cutoff, DEFAULT_CENTRES, DEFAULT_CLIP, DEFAULT_EXPONENT, DEFAULT_FLOOR, DEFAULT_STRATA, Fraction,
    MAX_CENTRES, Tail, Within,
};

/// What a selection is made by.
#[derive(Debug, Clone, PartialEq)]
pub enum Method {
    /// The log importance weight alone.
    Importance,
    Coverage(Coverage),
    Sensitivity(Sensitivity),
}

impl Method {
    pub fn coverage(&self) -> Option<&Coverage> {
        match self {
            Method::Coverage(coverage) => Some(coverage),
            Method::Importance | Method::Sensitivity(_) => None,
        }
    }
}

/// A number of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Criterion {
    /// The total log weight.
    Weight,
    /// A field: its place in the plan's fields.
    Field(usize),
}

/// Spread over strata.
#[derive(Debug, Clone, PartialEq)]
pub struct Coverage {
    pub settings: CoverageSettings,
    pub importance: Criterion,
    pub cutoff: Criterion,
}

impl Coverage {
    /// Whether cut-off or strata are by the weight.
    pub fn looks_at_weight(&self) -> bool {
        self.importance == Criterion::Weight || (self.settings.cutoff.is_some() && self.cutoff == Criterion::Weight)
    }
}

/// Drawn by how much a loss depends on a document.
#[derive(Debug, Clone, PartialEq)]
pub struct Sensitivity {
    /// A field with an embedding; `None`: the projected n-grams.
    pub embedding: Option<EmbeddingField>,
    /// The field that losses are read from. `None`: only distances count.
    pub loss_field: Option<String>,
    pub centres: usize,
    pub exponent: u32,
    pub floor: f64,
}

const MAX_STRATA: u32 = 10_000;

#[derive(clap::Args)]
#[command(next_help_heading = "With --selector coverage")]
pub struct CoverageArguments {
    /// The field whose range is covered: how hard a document is, such as the loss of a small model, or a quality score. `weight`
    /// stands for the log importance weight
    #[arg(long, value_name = "FIELD|weight")]
    importance: Option<String>,
    /// Bands of equal width that it is cut into, each with an equal share of the selection [default: 50]
    #[arg(long, value_name = "K")]
    strata: Option<u32>,
    /// Remove this share of the documents before: those at one end of --cutoff-field [default: none]
    #[arg(long, value_name = "RATE")]
    cutoff: Option<Fraction>,
    /// By what is removed [default: what --importance says]. `weight` filters by the target, so that only what is near to it is
    /// spread over the strata
    #[arg(long, value_name = "FIELD|weight", requires = "cutoff")]
    cutoff_field: Option<String>,
    /// Which end is removed [default: high; of `weight`: low]
    #[arg(long, value_enum, requires = "cutoff")]
    cutoff_tail: Option<TailName>,
    /// How documents of one stratum compete: by their log importance weight, or all alike [default: weighted]
    #[arg(long, value_enum)]
    within: Option<WithinName>,
    /// Share of the documents at each end of --importance that does not widen the strata; 0: all do, as in the paper [default:
    /// 0.005]
    #[arg(long, value_name = "SHARE")]
    clip: Option<f64>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum TailName {
    Low,
    High,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum WithinName {
    Weighted,
    Uniform,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Base64Name {
    F16,
    F32,
}

#[derive(clap::Args)]
#[command(next_help_heading = "With --selector sensitivity")]
pub struct SensitivityArguments {
    /// Field with an embedding: a list of numbers, or a string with the Base64 of such. A document without one cannot be selected
    /// [default: a random projection of the document's n-grams]
    #[arg(long, value_name = "FIELD")]
    embedding_field: Option<String>,
    /// What strings in it are the Base64 of: little-endian numbers of 16 or of 32 bits [default: f16]
    #[arg(long, value_enum, requires = "embedding_field")]
    embedding_base64: Option<Base64Name>,
    /// Clusters around documents that stand for the others. With --loss-field only documents that have a loss can be such
    /// centres, and only the losses of centres are used (below 0, as an excess over a reference may be, they count as 0);
    /// without it documents are drawn by their distance to the nearest centre [default: 256]
    #[arg(long, value_name = "K")]
    centres: Option<usize>,
    /// Power of the distance to a centre, 1 or 2 [default: 2]
    #[arg(long, value_name = "Z")]
    distance_power: Option<u32>,
    /// Share of the scores that all documents have alike, which bounds their weights [default: 0.1]
    #[arg(long, value_name = "SHARE")]
    floor: Option<f64>,
}

/// The first option that is set although nothing looks at it.
fn unused(options: &[(&str, bool)], wanted: &str) -> Result<(), UsageError> {
    match options.iter().find(|(_, is_set)| *is_set) {
        Some((option, _)) => Err(UsageError(format!("{option}: only with {wanted}"))),
        None => Ok(()),
    }
}

/// A field that is kept once, however often it is named.
fn kept(name: &str, fields: &mut Vec<String>) -> usize {
    fields.iter().position(|field| field == name).unwrap_or_else(|| {
        fields.push(name.to_owned());
        fields.len() - 1
    })
}

fn criterion(name: &str, fields: &mut Vec<String>) -> Criterion {
    if name == "weight" { Criterion::Weight } else { Criterion::Field(kept(name, fields)) }
}

impl CoverageArguments {
    pub fn check_unused(&self, wanted: &str) -> Result<(), UsageError> {
        let options = [
            ("--importance", self.importance.is_some()),
            ("--strata", self.strata.is_some()),
            ("--cutoff", self.cutoff.is_some()),
            ("--within", self.within.is_some()),
            ("--clip", self.clip.is_some()),
        ];
        unused(&options, wanted)
    }

    pub fn checked(&self, fields: &mut Vec<String>) -> Result<Method, UsageError> {
        let wrong = |problem: String| Err(UsageError(problem));
        let Some(importance) = &self.importance else {
            return wrong(
                "--selector coverage: give --importance, a field that says how hard a document is".to_owned(),
            );
        };
        let strata = self.strata.unwrap_or(DEFAULT_STRATA);
        if !(1..=MAX_STRATA).contains(&strata) {
            return wrong(format!("--strata {strata}: must be 1 to {MAX_STRATA}"));
        }
        let clip = self.clip.unwrap_or(DEFAULT_CLIP);
        if !(0.0..0.5).contains(&clip) {
            return wrong(format!("--clip {clip}: must be 0 to below 0.5"));
        }
        if let Some(rate) = self.cutoff.filter(|rate| rate.as_f64() >= 1.0) {
            return wrong(format!("--cutoff {rate}: must be above 0 and below 1"));
        }
        let importance = criterion(importance, fields);
        let cutoff_by = self.cutoff_field.as_deref().map_or(importance, |name| criterion(name, fields));
        let tail = match (self.cutoff_tail, cutoff_by) {
            (Some(TailName::Low), _) | (None, Criterion::Weight) => Tail::Low,
            (Some(TailName::High), _) | (None, Criterion::Field(_)) => Tail::High,
        };
        let within = match self.within {
            Some(WithinName::Uniform) => Within::Uniform,
            Some(WithinName::Weighted) | None => Within::Weighted,
        };
        let cutoff = self.cutoff.map(|rate| Cutoff { rate, tail });
        let settings = CoverageSettings { strata, cutoff, within, clip };
        Ok(Method::Coverage(Coverage { settings, importance, cutoff: cutoff_by }))
    }
}

impl SensitivityArguments {
    pub fn check_unused(&self, wanted: &str) -> Result<(), UsageError> {
        let options = [
            ("--embedding-field", self.embedding_field.is_some()),
            ("--embedding-base64", self.embedding_base64.is_some()),
            ("--centres", self.centres.is_some()),
            ("--distance-power", self.distance_power.is_some()),
            ("--floor", self.floor.is_some()),
        ];
        unused(&options, wanted)
    }

    pub fn checked(&self, loss_field: Option<&str>) -> Result<Method, UsageError> {
        let wrong = |problem: String| Err(UsageError(problem));
        let centres = self.centres.unwrap_or(DEFAULT_CENTRES);
        if !(1..=MAX_CENTRES).contains(&centres) {
            return wrong(format!("--centres {centres}: must be 1 to {MAX_CENTRES}"));
        }
        let exponent = self.distance_power.unwrap_or(DEFAULT_EXPONENT);
        if !(1..=2).contains(&exponent) {
            return wrong(format!("--distance-power {exponent}: must be 1 or 2"));
        }
        let floor = self.floor.unwrap_or(DEFAULT_FLOOR);
        if !(floor > 0.0 && floor <= 1.0) {
            return wrong(format!("--floor {floor}: must be above 0 and up to 1"));
        }
        let base64 = match self.embedding_base64 {
            Some(Base64Name::F32) => Base64Floats::F32,
            Some(Base64Name::F16) | None => Base64Floats::F16,
        };
        let embedding = self.embedding_field.clone().map(|field| EmbeddingField { field, base64 });
        let loss_field = loss_field.map(str::to_owned);
        Ok(Method::Sensitivity(Sensitivity { embedding, loss_field, centres, exponent, floor }))
    }
}
