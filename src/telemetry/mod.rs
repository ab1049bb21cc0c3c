//! What the daemon shows of itself: metrics, health and status, on one HTTP port.

mod feedback_metrics;
mod metrics;
mod server;
mod status;
mod target_metrics;

pub use feedback_metrics::FeedbackMetrics;
pub use metrics::{Metrics, Step};
pub use server::{HttpServer, TelemetryError};
pub use status::{FeedbackStatus, Lack, PartitionStatus, Readiness, Status, TargetStatus, Telemetry};
pub use target_metrics::TargetMetrics;
