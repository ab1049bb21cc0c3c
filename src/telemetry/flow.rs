//! What flowed through the daemon, sampled: so that a page that is opened or loaded again begins with the last minutes.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;

use super::logbook::now_ms;
use super::{Step, Telemetry};
use crate::window::CloseReason;

/// As often as the page looks: what it loads and what it sees itself have one rhythm.
pub(super) const SAMPLE_EVERY: Duration = Duration::from_secs(2);
/// Ten minutes: what somebody wants to see who was just woken. Beyond that there is Prometheus, so this is no setting.
const MAX_SAMPLES: usize = 300;

/// Counters since this process began, and gauges; all numbers, nothing of documents.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Flow {
    /// Milliseconds since 1970.
    pub at_ms: u64,
    pub consumed_records: u64,
    pub consumed_bytes: u64,
    pub scored_tokens: u64,
    pub windows_closed: u64,
    /// Decided and published.
    pub selected: u64,
    pub rejected: u64,
    pub dead_letters: u64,
    pub published_shards: u64,
    pub published_rows: u64,
    pub published_bytes: u64,
    /// Of the partitions whose end is known; `None` if there are none.
    pub lag_consumed: Option<i64>,
    pub lag_published: Option<i64>,
    /// KL(target ‖ stream) − KL(target ‖ selected) in nats, of all windows since the beginning at the checkpoints.
    pub kl_reduction: Option<f64>,
    /// Of the window closed last, and that of a random sample in its place.
    pub window_kl_reduction: Option<f64>,
    pub window_random_kl_reduction: Option<f64>,
    /// Queue, windows and shard.
    pub held_bytes: i64,
    pub memory_budget_bytes: i64,
}

impl Telemetry {
    /// The flow now.
    pub fn flow(&self) -> Flow {
        let metrics = &self.metrics;
        let decided = |decision: &str| metrics.decided.with_label_values(&[decision]).get();
        let held = |part: &str| metrics.held_bytes.with_label_values(&[part]).get();
        let status = self.status();
        let lag = |offset: fn(&super::PartitionStatus) -> i64| {
            let known = status.partitions.values().filter_map(|of| Some((of.end_offset? - offset(of)).max(0)));
            known.reduce(|a, b| a + b)
        };
        let last = status.last_window.as_ref();
        Flow {
            at_ms: now_ms(),
            consumed_records: metrics.consumed_records.get(),
            consumed_bytes: metrics.consumed_bytes.get(),
            scored_tokens: metrics.scored_tokens.get(),
            windows_closed: CloseReason::ALL
                .map(|r| metrics.windows_closed.with_label_values(&[r.as_str()]).get())
                .iter()
                .sum(),
            selected: decided("selected"),
            rejected: decided("rejected"),
            dead_letters: decided("dead_letter"),
            published_shards: metrics.published_shards.get(),
            published_rows: metrics.published_rows.get(),
            published_bytes: metrics.published_bytes.get(),
            lag_consumed: lag(|of| of.consumed),
            lag_published: lag(|of| of.published),
            kl_reduction: metrics.kl_reduction.get(),
            window_kl_reduction: last.and_then(|window| window.kl_reduction),
            window_random_kl_reduction: last.and_then(|window| window.random_kl_reduction),
            held_bytes: ["queue", "windows", "shard"].map(held).iter().sum(),
            memory_budget_bytes: metrics.memory_budget_bytes.get(),
        }
    }

    /// Steps of a publication whose last try has failed.
    pub fn stalled_steps(&self) -> Vec<&'static str> {
        let is_stalled = |step: &&str| self.metrics.publish_stalled.with_label_values(&[*step]).get() != 0;
        Step::ALL.iter().map(|step| step.as_str()).filter(is_stalled).collect()
    }
}

/// The last samples, oldest first.
#[derive(Default)]
pub struct History {
    samples: Mutex<VecDeque<Flow>>,
}

impl History {
    pub fn push(&self, flow: Flow) {
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        if samples.len() == MAX_SAMPLES {
            samples.pop_front();
        }
        samples.push_back(flow);
    }

    pub fn samples(&self) -> Vec<Flow> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::TopicPartition;
    use crate::telemetry::PartitionStatus;

    fn telemetry() -> Telemetry {
        Telemetry::new("p", Duration::from_secs(1))
    }

    #[test]
    fn the_flow_is_what_the_metrics_say() {
        let telemetry = telemetry();
        let empty = telemetry.flow();
        assert_eq!((empty.lag_consumed, empty.kl_reduction, empty.consumed_records), (None, None, 0));
        let metrics = &telemetry.metrics;
        metrics.consumed_records.inc_by(70);
        metrics.decided.with_label_values(&["rejected"]).inc_by(9);
        metrics.windows_closed.with_label_values(&["idle"]).inc();
        metrics.windows_closed.with_label_values(&["bytes"]).inc();
        metrics.held_bytes.with_label_values(&["queue"]).set(5);
        metrics.held_bytes.with_label_values(&["shard"]).set(7);
        metrics.kl_reduction.set(-0.25);
        for (partition, end_offset) in [(0, Some(100)), (1, None), (2, Some(40))] {
            let status = PartitionStatus { consumed: 50, published: 30, end_offset, ..PartitionStatus::default() };
            telemetry.status().partitions.insert(TopicPartition::new("t", partition), status);
        }
        let flow = telemetry.flow();
        assert_eq!((flow.consumed_records, flow.rejected, flow.windows_closed, flow.held_bytes), (70, 9, 2, 12));
        assert_eq!((flow.lag_consumed, flow.lag_published, flow.kl_reduction), (Some(50), Some(80), Some(-0.25)));
    }

    #[test]
    fn stalled_steps_are_named_until_they_work() {
        let telemetry = telemetry();
        telemetry.stalled(Step::Upload, "no store".to_owned());
        telemetry.stalled(Step::Commit, "no catalog".to_owned());
        assert_eq!(telemetry.stalled_steps(), ["upload", "commit"]);
        telemetry.works(Step::Upload);
        assert_eq!(telemetry.stalled_steps(), ["commit"]);
    }

    #[test]
    fn the_newest_samples_are_kept() {
        let (history, flow) = (History::default(), telemetry().flow());
        for at_ms in 0..MAX_SAMPLES as u64 + 5 {
            history.push(Flow { at_ms, ..flow });
        }
        let samples = history.samples();
        assert_eq!((samples.len(), samples[0].at_ms), (MAX_SAMPLES, 5));
        assert_eq!(samples.last().map(|last| last.at_ms), Some(MAX_SAMPLES as u64 + 4));
    }
}
