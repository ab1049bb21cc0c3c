//! What the documents' own losses add to their weights, and which selectors look at weights.

use super::SelectionPlan;
use super::methods::{Coverage, Method};
use super::scores::Scores;
use crate::cli::UsageError;
use crate::cli::files::LossFieldArguments;
use crate::score::{LossStrategy, LossTerm, SettingMistake};
use crate::select::{Quantiles, Within};

#[derive(clap::Args)]
pub struct LossArguments {
    /// What a document's own loss adds to its log weight, before the temperature: C times what --loss-strategy says of it
    #[arg(long, value_name = "C", requires = "loss_field", allow_negative_numbers = true)]
    loss_coefficient: Option<f64>,
    /// Which losses count for more, from 0 to 1 (kl_dro: the loss itself, in nats). Documents without a loss get the mean over
    /// the range
    #[arg(long, value_enum, requires = "loss_coefficient", default_value_t = LossStrategyName::LinUpper)]
    loss_strategy: LossStrategyName,
    /// What a low loss is, in nats [default: 1 % of the candidates have lower ones]
    #[arg(long, value_name = "NATS", requires = "loss_coefficient", allow_negative_numbers = true)]
    loss_low: Option<f64>,
    /// What a high loss is, in nats [default: 1 % of the candidates have higher ones]
    #[arg(long, value_name = "NATS", requires = "loss_coefficient", allow_negative_numbers = true)]
    loss_high: Option<f64>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
enum LossStrategyName {
    /// Less, the lower the loss is below the middle of the range
    LinUpper,
    /// Medium losses
    Quadratic,
    /// Low and high losses
    Extremes,
    /// The higher the more
    KlDro,
}

/// What a document's own loss adds; what is left open, the losses of all candidates decide.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WantedLoss {
    coefficient: f64,
    strategy: LossStrategy,
    low: Option<f64>,
    high: Option<f64>,
}

impl LossArguments {
    /// `None`: weights are as they are without losses.
    pub fn checked(&self, method: &Method, read: &LossFieldArguments) -> Result<Option<WantedLoss>, UsageError> {
        let wrong = |problem: &str| Err(UsageError(problem.to_owned()));
        let Some(coefficient) = self.loss_coefficient else {
            return match method {
                Method::Importance | Method::Coverage(_) if read.has_losses() => {
                    wrong("--loss-field: only with --loss-coefficient or --selector sensitivity")
                }
                Method::Importance | Method::Coverage(_) | Method::Sensitivity(_) => Ok(None),
            };
        };
        match method {
            Method::Sensitivity(_) => {
                return wrong("--loss-coefficient: --selector sensitivity looks at losses, but not at weights");
            }
            Method::Coverage(coverage) if !looks_at_weights(coverage) => {
                return wrong("--loss-coefficient: --within uniform has no weights that a loss could add to");
            }
            Method::Importance | Method::Coverage(_) => {}
        }
        let strategy = match self.loss_strategy {
            LossStrategyName::LinUpper => LossStrategy::LinUpper,
            LossStrategyName::Quadratic => LossStrategy::Quadratic,
            LossStrategyName::Extremes => LossStrategy::Extremes,
            LossStrategyName::KlDro => LossStrategy::KlDro,
        };
        let (low, high) = (self.loss_low, self.loss_high);
        // What is left open is right when what was given is.
        let given = LossTerm { coefficient, strategy, low: low.unwrap_or(f64::MIN), high: high.unwrap_or(f64::MAX) };
        match given.validated() {
            Ok(_) => Ok(Some(WantedLoss { coefficient, strategy, low, high })),
            Err(mistakes) => Err(loss_mistakes(&mistakes)),
        }
    }
}

/// Whether weights decide about anything.
fn looks_at_weights(coverage: &Coverage) -> bool {
    coverage.settings.within == Within::Weighted || coverage.looks_at_weight()
}

impl WantedLoss {
    /// With the range of the candidates' losses, from 1 % to 99 %, where none was given: here all are known before the first
    /// is weighed.
    pub fn term(self, scores: &Scores, plan: &SelectionPlan) -> Result<LossTerm, UsageError> {
        let WantedLoss { coefficient, strategy, low, high } = self;
        let losses = super::draw::candidates(scores, plan).into_iter().filter_map(|document| scores.loss(document));
        let range = Quantiles::of(losses.collect()).map_or((0.0, 0.0), |quantiles| (quantiles.p01, quantiles.p99));
        let term = LossTerm { coefficient, strategy, low: low.unwrap_or(range.0), high: high.unwrap_or(range.1) };
        let no_range = "the losses of the candidates have no range: give --loss-low and --loss-high";
        if term.low == term.high {
            return Err(UsageError(format!("--loss-coefficient {coefficient}: {no_range}")));
        }
        term.validated().map_err(|mistakes| loss_mistakes(&mistakes))
    }
}

fn loss_mistakes(mistakes: &[SettingMistake]) -> UsageError {
    let mistakes = mistakes.iter().map(|m| format!("--loss-{} {}: {}", m.key, m.value, m.problem));
    UsageError(mistakes.collect::<Vec<_>>().join("; "))
}
