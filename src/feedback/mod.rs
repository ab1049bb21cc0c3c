//! What trainers report, made into statistics, expected losses and quotas. Pure.
//!
//! In: reports of losses in the order in which they are consumed, and what the catalog knows of the documents they name. Out: the
//! next [`FeedbackState`], and what became of every loss: each is counted, or refused for a reason that is counted. Selection
//! changes what feedback is observed on, so every document comes with the probability that it was selected with.

mod ado;
mod mixing;
mod odm;
mod progress;
mod state;
mod statistics;
mod summary;

pub use ado::{Ado, PowerLaw};
pub use mixing::{Mixer, Mixing, Turn};
pub use odm::{Odm, OdmPolicy};
pub use progress::{RankProgress, StepNews};
pub use state::{
    DocumentFacts, Facts, FeedbackSettings, FeedbackState, KnownDocument, LossOutcome, RankKey, Reported, document_key,
    run_key,
};
pub use statistics::{LossStatistics, MAX_SOURCES};
pub use summary::{FeedbackSummary, PredictorSummary, SourceSummary};
