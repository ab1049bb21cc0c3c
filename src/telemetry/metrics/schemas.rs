//! What the schema registry is asked, and whether it answers.

use prometheus::{IntCounterVec, IntGauge, Registry};

use super::{counters, gauge};
use crate::source::RegistryAnswer;

pub struct SchemaMetrics {
    pub requests: IntCounterVec,
    pub known: IntGauge,
    pub stalled: IntGauge,
}

impl SchemaMetrics {
    pub(super) fn new(r: &Registry) -> Self {
        SchemaMetrics {
            requests: counters(
                r,
                "registry_requests_total",
                "Schemas and references that the schema registry was asked for.",
                "outcome",
                &RegistryAnswer::ALL.map(RegistryAnswer::as_str),
            ),
            known: gauge(r, "registry_schemas", "Schemas that this process has from the registry."),
            stalled: gauge(
                r,
                "registry_stalled",
                "1 while a batch of records waits for a schema that the registry does not give.",
            ),
        }
    }
}
