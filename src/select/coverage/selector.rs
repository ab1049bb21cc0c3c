//! A selection over strata as it is recorded: with the numbers of a document that it looks at.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{CoverageSettings, Cutoff, StrataRounding, Tail, Within};

/// A number of a document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Criterion {
    /// The total log weight.
    Weight,
    /// A field of the record.
    Field(String),
}

impl Criterion {
    fn field(&self) -> Option<&str> {
        match self {
            Criterion::Weight => None,
            Criterion::Field(name) => Some(name),
        }
    }
}

/// How a window is selected from, and by which numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CoverageSelector {
    #[serde(flatten)]
    pub settings: CoverageSettings,
    pub importance: Criterion,
    /// What the cut-off looks at, if there is one.
    pub cutoff_by: Criterion,
    #[serde(default, skip_serializing_if = "EdgesFrom::is_window")]
    pub edges_from: EdgesFrom,
    #[serde(default, skip_serializing_if = "StrataRounding::is_down")]
    pub strata_rounding: StrataRounding,
}

/// Where the edges of strata come from, and the score at which the cut-off lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EdgesFrom {
    /// From the documents of the window.
    #[default]
    Window,
    /// From those that the stream had before it opened: see [`super::EdgeSketches`].
    Stream,
}

impl EdgesFrom {
    fn is_window(&self) -> bool {
        *self == EdgesFrom::Window
    }
}

impl fmt::Display for Criterion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.field().unwrap_or("weight"))
    }
}

impl fmt::Display for CoverageSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CoverageSelector { settings, importance, cutoff_by, edges_from, strata_rounding: _ } = self;
        if let Some(Cutoff { rate, tail }) = settings.cutoff {
            let tail = if tail == Tail::Low { "lowest" } else { "highest" };
            write!(f, "without the {rate} of {tail} {cutoff_by}, ")?;
        }
        let within = if settings.within == Within::Uniform { "all alike" } else { "by weight" };
        write!(f, "over {} strata of {importance}, {within} inside", settings.strata)?;
        match edges_from {
            EdgesFrom::Window => Ok(()),
            EdgesFrom::Stream => write!(f, ", with edges that follow the stream"),
        }
    }
}

impl CoverageSelector {
    /// The fields that a document must have a number in: for the importance, and for the cut-off.
    pub fn fields(&self) -> [Option<&str>; 2] {
        let cutoff_by = self.settings.cutoff.and_then(|_| self.cutoff_by.field());
        [self.importance.field(), cutoff_by]
    }

    /// What the numbers are that sketches of the stream are of, where edges come from there: fields, and the cut-off that decides whose
    /// importance counts. `weight`: what a weight is made by. Other numbers have sketches of their own.
    pub fn numbers(&self, weight: &str) -> Option<String> {
        let name = |criterion: &Criterion| match criterion {
            Criterion::Weight => format!("weight {weight}"),
            Criterion::Field(name) => format!("field {name}"),
        };
        let cutoff = self.settings.cutoff.map(|Cutoff { rate, tail }| {
            let tail = if tail == Tail::Low { "lowest" } else { "highest" };
            format!(" without the {rate} of {tail} {}", name(&self.cutoff_by))
        });
        (self.edges_from == EdgesFrom::Stream).then(|| name(&self.importance) + &cutoff.unwrap_or_default())
    }

    /// Whether a document with these numbers, in the order of [`CoverageSelector::fields`], lacks one: it is no candidate.
    pub fn lacks(&self, numbers: &[f64; 2]) -> bool {
        self.fields().iter().zip(numbers).any(|(field, number)| field.is_some() && !number.is_finite())
    }

    /// What to do about strata of the weight, in the words of the configuration.
    pub fn warning(&self) -> Option<String> {
        let cutoff = "selection.cutoff = 0.8` and `selection.cutoff_field = weight";
        let of_weight = || warning_of_weight("selection.importance = weight", "selection.importance", cutoff);
        (self.importance == Criterion::Weight).then(of_weight)
    }

    /// Whether strata or the cut-off are by the weight.
    fn is_by_weight(&self) -> bool {
        self.importance == Criterion::Weight || (self.settings.cutoff.is_some() && self.cutoff_by == Criterion::Weight)
    }

    /// Whether weights decide about anything.
    pub fn looks_at_weights(&self) -> bool {
        self.settings.within == Within::Weighted || self.is_by_weight()
    }

    /// What speaks against it where several targets choose.
    pub fn problem_of_targets(&self) -> Option<&'static str> {
        if self.settings.within == Within::Uniform {
            return Some("selection.within = uniform: several targets choose by their weights; use weighted");
        }
        self.is_by_weight()
            .then_some("selection.importance: a document has one `weight` for each of several targets; name a field")
    }
}

/// What to do about strata of the weight: how they were asked for, the option that names a field instead, and those that cut off what
/// is far from the target.
pub fn warning_of_weight(asked: &str, importance: &str, cutoff: &str) -> String {
    format!(
        "`{asked}` spreads the selection over all weights, so that most of it is far from the target: to cover weights is not to \
         cover the target, and plain importance resampling comes nearer to it. Give {importance} a field that says how hard a \
         document is (a loss, a quality score); inside its strata weights still decide, and `{cutoff}` removes before what is far \
         from the target"
    )
}
