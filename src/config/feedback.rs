//! How trainers are listened to, and what selection makes of it.

use std::time::Duration;

use super::checked::{GIB, HOUR, KIB, MAX_NGRAMS, MIB};
use super::reader::Reader;
use super::{DeadLetterConfig, FeedbackConfig, KafkaConfig};
use crate::feedback::{FeedbackSettings, Mixing};
use crate::record::LossDecoder;

/// `None` where there is no topic to listen to.
pub(super) fn check(r: &mut Reader, kafka: &KafkaConfig, dead_letters: &DeadLetterConfig) -> Option<FeedbackConfig> {
    let topic = r.optional("feedback.topic");
    let half_life = r.integer("feedback.half_life_losses", 1..=MAX_NGRAMS) as f64;
    let mixing = r.choice("selection.mixing", &["off", "odm", "odm_smoothed", "odm_exp3", "ado"]);
    let floor = r.parse("selection.mixing_floor", 0.0, |value| {
        let floor = value.parse::<f64>().ok().filter(|floor| (0.0..1.0).contains(floor));
        floor.ok_or("expected a number from 0 to below 1".to_owned())
    });
    let coefficient = r.parse("selection.expected_loss", 0.0, |value| {
        value.parse::<f64>().ok().filter(|x| x.is_finite()).ok_or("expected a number".to_owned())
    });
    let max_documents = r.integer("feedback.max_documents", 1..=1_000_000_000);
    let ngrams = r.integer("feedback.ngrams", 1..=4096) as usize;
    let history_bytes = r.bytes("feedback.history_bytes", 0..=1024 * GIB);
    let interval = r.duration("feedback.interval", Duration::from_millis(50)..=HOUR);
    let batch_losses = r.integer("feedback.batch_losses", 1..=1_000_000);
    let max_bytes = r.bytes("feedback.max_report_bytes", KIB..=64 * MIB) as usize;
    let Some(topic) = topic else {
        if mixing != "off" {
            r.error("selection.mixing", &mixing, "needs feedback.topic");
        }
        if coefficient != 0.0 {
            r.error("selection.expected_loss", &coefficient.to_string(), "needs feedback.topic");
        }
        return None;
    };
    if kafka.topics.contains(&topic) || dead_letters.topic.as_ref() == Some(&topic) {
        r.error("feedback.topic", &topic, "is also a topic of documents or of dead letters");
    }
    let settings = FeedbackSettings { half_life, mixing: Mixing::from_name(&mixing), floor };
    let decoder = LossDecoder { max_bytes, max_entries: batch_losses as usize };
    Some(FeedbackConfig {
        topic,
        decoder,
        settings,
        coefficient,
        max_documents,
        ngrams,
        history_bytes,
        interval,
        batch_losses,
    })
}

/// Shares of sources are given: they cannot be learnt as well.
pub(super) fn must_not_mix(r: &mut Reader, feedback: Option<&FeedbackConfig>) {
    if let Some(mixing) = feedback.and_then(|feedback| feedback.settings.mixing) {
        let problem = "shares of sources are given by selection.sources already";
        r.error("selection.mixing", mixing.name(), problem);
    }
}
