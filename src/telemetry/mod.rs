//! What the daemon shows of itself: metrics, health, status and a page for people, on one HTTP port; and what it answers there: weights.

mod access;
mod feedback_metrics;
mod flow;
mod logbook;
mod metrics;
mod page;
mod page_status;
mod process;
mod server;
mod status;
mod target_metrics;
mod traces;
mod weights;

pub use feedback_metrics::FeedbackMetrics;
pub use flow::{Flow, History};
pub use logbook::{LOGBOOK, LogLine, Logbook};
pub use metrics::{BAD, LateGauge, Metrics, STALE, SchemaMetrics, Step};
pub use page_status::{OpenWindowStatus, ShardStatus, WeightsStatus, WindowLimits};
pub use server::{HttpServer, TelemetryError};
pub use status::{
    BatchStatus, CoverageStatus, FeedbackStatus, Lack, PartitionStatus, Readiness, SpoolStatus, Status, TargetStatus,
    Telemetry,
};
pub use target_metrics::TargetMetrics;
pub use traces::{Traces, TracesError, context_of, continue_from, continue_from_headers, current_ids, failed};
pub use weights::WeightsEndpoint;
