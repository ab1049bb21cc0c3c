//! What the daemon shows of itself: metrics, health and status, on one HTTP port.

mod metrics;
mod server;
mod status;

pub use metrics::{Metrics, Step};
pub use server::{HttpServer, TelemetryError};
pub use status::{Lack, PartitionStatus, Readiness, Status, Telemetry};
