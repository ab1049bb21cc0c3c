//! What trainers send back and get: weights from losses, the topics of both, and who may ask over HTTP.

use std::net::SocketAddr;
use std::time::Duration;

use super::checked::{DAY, GIB, HOUR, KIB, MIB};
use super::reader::Reader;
use super::*;
use crate::score::{
    LossRange, LossStrategy, LossTerm, LossWeightSettings, NonFiniteLoss, TemperatureDecay, TemperatureSchedule,
};

/// Shorter ones can be guessed.
const MIN_TOKEN_CHARS: usize = 16;

/// Where each of the mathematics' settings stands here.
const KEYS: &[(&str, &str)] = &[
    ("temperature.initial", "loss_weight.temperature"),
    ("temperature.decay.half_life_steps", "loss_weight.temperature_half_life_steps"),
    ("temperature.decay.floor", "loss_weight.temperature_floor"),
    ("range.quantiles.tail", "loss_weight.range_tail"),
    ("cap", "loss_weight.cap"),
    ("strategy.cvar.share", "loss_weight.cvar_share"),
];

pub(super) fn loss_weight(r: &mut Reader) -> LossWeightConfig {
    let share = number(r, "loss_weight.cvar_share");
    let strategy = match r.choice("loss_weight.strategy", &LossStrategy::NAMES).as_str() {
        "uniform" => LossStrategy::Uniform,
        "quadratic" => LossStrategy::Quadratic,
        "extremes" => LossStrategy::Extremes,
        "kl_dro" => LossStrategy::KlDro,
        "cvar" => LossStrategy::Cvar { share },
        _ => LossStrategy::LinUpper,
    };
    let half_life_steps = r.integer("loss_weight.temperature_half_life_steps", 0..=u64::MAX);
    let floor = number(r, "loss_weight.temperature_floor");
    let temperature = TemperatureSchedule {
        burn_in_steps: r.integer("loss_weight.burn_in_steps", 0..=u64::MAX),
        initial: number(r, "loss_weight.temperature"),
        decay: (half_life_steps > 0).then_some(TemperatureDecay { half_life_steps, floor }),
    };
    let tail = number(r, "loss_weight.range_tail");
    let range = match r.choice("loss_weight.range", &["quantiles", "min_max"]).as_str() {
        "min_max" => LossRange::MinMax,
        _ => LossRange::Quantiles { tail },
    };
    let cap = Some(number(r, "loss_weight.cap")).filter(|cap| *cap != 0.0);
    let non_finite = match r.choice("loss_weight.non_finite", &NonFiniteLoss::NAMES).as_str() {
        "uniform" => NonFiniteLoss::Uniform,
        "zero" => NonFiniteLoss::Zero,
        _ => NonFiniteLoss::Error,
    };
    let settings = LossWeightSettings { strategy, temperature, range, cap, non_finite };
    for mistake in settings.validated().err().unwrap_or_default() {
        let key = KEYS.iter().find(|(inner, _)| *inner == mistake.key).map_or(mistake.key, |(_, key)| key);
        // In the words of the keys, which are not nested.
        let problem = mistake.problem.replace("temperature.initial", "loss_weight.temperature");
        r.error(key, &mistake.value, problem);
    }
    LossWeightConfig { settings, remembered_steps: r.integer("loss_weight.remembered_steps", 1..=10_000_000) as usize }
}

/// What the losses of documents add to their weights; `None`: nothing.
pub(super) fn term(r: &mut Reader, has_losses: bool) -> Option<LossTerm> {
    let coefficient = number(r, "selection.loss_coefficient");
    let (low, high) = (number(r, "selection.loss_low"), number(r, "selection.loss_high"));
    let name = r.choice("selection.loss_strategy", &LossTerm::STRATEGIES.map(LossStrategy::as_str));
    if coefficient == 0.0 {
        return None;
    }
    if !has_losses {
        let problem = "has no effect without documents.loss_field";
        r.error("selection.loss_coefficient", &coefficient.to_string(), problem);
    }
    let strategy = LossTerm::STRATEGIES.into_iter().find(|strategy| strategy.as_str() == name)?;
    let term = LossTerm { coefficient, strategy, low, high };
    for mistake in term.validated().err().unwrap_or_default() {
        r.error(&format!("selection.loss_{}", mistake.key), &mistake.value, mistake.problem);
    }
    Some(term)
}

/// Any; what it may be is said where its meaning is known.
fn number(r: &mut Reader, key: &str) -> f64 {
    r.parse(key, 1.0, |value| value.parse::<f64>().map_err(|_| "expected a number".to_owned()))
}

pub(super) fn losses(r: &mut Reader, read_topics: &[String], memory_budget_bytes: usize) -> LossesConfig {
    let topic = r.optional("losses.topic");
    let weights_topic = r.optional("losses.weights_topic");
    for (key, name) in [("losses.topic", &topic), ("losses.weights_topic", &weights_topic)] {
        if let Some(name) = name.as_ref().filter(|name| read_topics.contains(name)) {
            r.error(key, name, "is one of kafka.topics: its records would be taken for documents");
        }
    }
    match (&topic, &weights_topic) {
        (None, Some(weights)) => r.error("losses.weights_topic", weights, "has no effect without losses.topic"),
        (Some(topic), Some(weights)) if topic == weights => {
            r.error("losses.weights_topic", weights, "is losses.topic: answers would be taken for reports");
        }
        _ => {}
    }
    let pending_bytes = r.bytes("losses.pending", 64 * KIB..=64 * GIB);
    if pending_bytes > memory_budget_bytes as u64 {
        let shown = |n| bytesize::ByteSize(n).display().iec().to_string();
        let problem = format!("must be at most memory.budget ({})", shown(memory_budget_bytes as u64));
        r.error("losses.pending", &shown(pending_bytes), problem);
    }
    LossesConfig {
        topic,
        weights_topic,
        deadline: r.duration("losses.deadline", Duration::from_millis(10)..=HOUR),
        stale_after: r.duration("losses.stale_after", Duration::from_secs(1)..=365 * DAY),
        pending_bytes: pending_bytes as usize,
        max_bytes: r.bytes("losses.max_bytes", KIB..=64 * MIB) as usize,
        max_samples: r.integer("losses.max_samples", 1..=1 << 24) as usize,
    }
}

pub(super) fn http(r: &mut Reader) -> HttpConfig {
    let listen = r.parse("http.listen", SocketAddr::from(([127, 0, 0, 1], 0)), |value| {
        value.parse().map_err(|_| "expected an address and port such as 0.0.0.0:9464".to_owned())
    });
    let token = r.optional("http.token");
    if let Some(token) = &token {
        let fine = |b: u8| b.is_ascii_graphic();
        if token.len() < MIN_TOKEN_CHARS || !token.bytes().all(fine) {
            let expected = "of printable ASCII without spaces, such as `openssl rand -hex 32` gives";
            r.error("http.token", "***", format!("expected at least {MIN_TOKEN_CHARS} characters {expected}"));
        }
    }
    HttpConfig { listen, token: token.map(Secret::new) }
}
