//! What the daemon shows of itself: metrics, health and status, on one HTTP port.

mod metrics;
mod server;
mod status;
mod target_metrics;

pub use metrics::{Metrics, Step};
pub use server::{HttpServer, TelemetryError};
pub use status::{Lack, PartitionStatus, Readiness, Status, TargetStatus, Telemetry};
pub use target_metrics::TargetMetrics;
