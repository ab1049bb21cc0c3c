//! Numbers that nobody knows at first.

use prometheus::core::Collector;
use prometheus::{GaugeVec, Opts, Registry};

use super::register;

/// A gauge without a series until there is a number: a 0 in its place would be taken for one.
#[derive(Clone)]
pub struct LateGauge(GaugeVec);

impl LateGauge {
    pub(in crate::telemetry) fn new(registry: &Registry, name: &str, help: &str) -> Self {
        LateGauge(register(registry, GaugeVec::new(Opts::new(format!("winnowd_{name}"), help), &[])))
    }

    /// `None`: there is no number yet.
    pub fn get(&self) -> Option<f64> {
        let family = self.0.collect().into_iter().next()?;
        family.get_metric().first().map(|metric| metric.get_gauge().get_value())
    }

    pub fn set(&self, number: f64) {
        self.0.with_label_values::<&str>(&[]).set(number);
    }

    /// Without a number the series ends.
    pub fn show(&self, number: Option<f64>) {
        match number {
            Some(number) => self.set(number),
            None => self.0.reset(),
        }
    }
}
