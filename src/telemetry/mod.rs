//! What the daemon shows of itself: metrics, health and status, on one HTTP port; and what it answers there: weights.

mod access;
mod feedback_metrics;
mod metrics;
mod process;
mod server;
mod status;
mod target_metrics;
mod traces;
mod weights;

pub use feedback_metrics::FeedbackMetrics;
pub use metrics::{BAD, LateGauge, Metrics, STALE, Step};
pub use server::{HttpServer, TelemetryError};
pub use status::{BatchStatus, FeedbackStatus, Lack, PartitionStatus, Readiness, Status, TargetStatus, Telemetry};
pub use target_metrics::TargetMetrics;
pub use traces::{Traces, TracesError, context_of, continue_from, continue_from_headers, current_ids, failed};
pub use weights::WeightsEndpoint;
