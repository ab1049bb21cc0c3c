//! An explanation for a person: in words, and the way to the key line by line.

use std::fmt::Write;

use crate::manifest::rfc3339;
use crate::pipeline::{ExplainedDocument, ExplainedQuota, ExplainedSensitivity, Explanation, Outcome};
use crate::select::{SelectorKind, SketchVersion};

pub fn of(explanation: &Explanation) -> String {
    let mut text = String::new();
    // Writing to memory does not fail.
    let _ = write(explanation, &mut text);
    text
}

fn write(explanation: &Explanation, text: &mut String) -> std::fmt::Result {
    let Explanation { position, id, source, timestamp_ms, outcome, why, .. } = explanation;
    let what = match (id, position) {
        (Some(id), Some(position)) if id != position => format!("`{id}` at {position}"),
        (Some(id), None) => format!("`{id}`"),
        (_, position) => position.clone().unwrap_or_default(),
    };
    let told = match outcome {
        Outcome::Selected => "selected",
        Outcome::BelowThreshold
        | Outcome::TooShort
        | Outcome::Filtered
        | Outcome::NoNumber
        | Outcome::NoEmbedding
        | Outcome::CutOff => "not selected",
        Outcome::DeadLetter => "a dead letter",
        Outcome::NotInWindow => "not in that window",
        Outcome::NoRecord => "no record",
        Outcome::Undecided => "not decided yet",
        Outcome::Skipped => "passed over",
        Outcome::BeforeStart => "not read",
        Outcome::NotFound => "not found",
    };
    writeln!(text, "{what}: {told}: {why}")?;
    let mut line = |name: &str, value: String| writeln!(text, "  {name:<22} {value}");
    if let Some(source) = source {
        line("source", source.clone())?;
    }
    if let Some(timestamp_ms) = timestamp_ms {
        line("timestamp", rfc3339(*timestamp_ms))?;
    }
    if let Some(path) = &explanation.path {
        line("stands in", path.clone())?;
    }
    if let Some(competition) = &explanation.competition {
        let shard = explanation.shard.as_deref().unwrap_or("-");
        let window = explanation.window.as_deref().unwrap_or("-");
        line(
            "window",
            format!("{window}, closed by {}, decided again as shard {shard} has it", competition.closed_by),
        )?;
        let n = (competition.n_documents, competition.n_candidates, competition.n_selected);
        line("documents", format!("{}, of which {} could be selected and {} were", n.0, n.1, n.2))?;
        if let Some(SketchVersion { version, n_documents }) = competition.edges {
            line("version of edges", format!("{version}, of {n_documents} documents of the stream"))?;
        }
        for (what, version) in [
            ("version of raw", competition.raw_version),
            ("version of selected", competition.selected_version),
            ("version of clusters", competition.clusters_version),
            ("version of shares", competition.quota_version),
        ] {
            if let Some(version) = version {
                line(what, version.to_string())?;
            }
        }
    }
    let (Some(document), Some(selector)) = (&explanation.document, &explanation.selector) else { return Ok(()) };
    line("tokens", format!("{}, {} n-grams", document.n_tokens, document.n_ngrams))?;
    if let Some(ExplainedQuota { field, value }) = &document.quota {
        let pool = value.as_ref().map_or("without a share of its own".to_owned(), |value| format!("{field} = {value}"));
        line("shares by field", pool)?;
    }
    for of in &document.targets {
        let name = of.target.as_ref().map(|name| format!(" for {name}")).unwrap_or_default();
        let mean = if selector.length_normalise { format!(", a mean of {:.6}", of.of_text) } else { String::new() };
        line(&format!("log weight{name}"), format!("{:.6}{mean}", of.log_importance_weight))?;
    }
    if let Some(loss) = &document.loss {
        let of = loss.loss.map_or("no loss, which counts as the mean".to_owned(), |loss| format!("loss {loss}"));
        let (strategy, coefficient) = (loss.term.strategy.as_str(), loss.term.coefficient);
        let range = format!("{}..{}", loss.term.low, loss.term.high);
        let value =
            format!("{:+.6} = {coefficient} × {:.6}, {strategy} of {of} in {range}", loss.added, loss.loss_weight);
        line("  its loss adds", value)?;
    }
    if let Some(expected) = &document.expected_loss {
        let of =
            expected.expected_loss.map_or("nothing learnt yet".to_owned(), |loss| format!("{loss:.6} nats a token"));
        let (coefficient, version) = (expected.coefficient, expected.version);
        line("  expected loss adds", format!("{:+.6} = {coefficient} × {of}, version {version}", expected.added))?;
    }
    if let Some(sensitivity) = &document.sensitivity {
        return of_sensitivity(document, sensitivity, text);
    }
    line("temperature", selector.temperature.to_string())?;
    match document.noise {
        Some(noise) => line("noise", format!("{noise:+.6} (seed {})", selector.seed))?,
        None => line("noise", format!("none ({})", SelectorKind::TopK.as_str()))?,
    }
    for (number, of) in document.targets.iter().enumerate() {
        let turn = explanation.competition.as_ref().and_then(|competition| competition.turns.get(number));
        let name = of.target.as_ref().map(|name| format!(" for {name}")).unwrap_or_default();
        let total = of.total_log_weight;
        line(&format!("key{name}"), format!("{:.6}, from a total log weight of {total:.6}", of.key))?;
        let (Some(turn), Some(rank)) = (turn, of.rank) else { continue };
        let threshold = turn.threshold.map_or("none".to_owned(), |threshold| format!("{threshold:.6}"));
        let pool_of = |name: &String| format!(" of {}", selector.quotas.pool_name(Some(name)));
        let pool = turn.source.as_ref().map(pool_of).unwrap_or_default();
        let place = format!("rank {rank} of {}{pool}, {} selected", turn.n_candidates, turn.budget);
        line(&format!("  threshold{name}"), format!("{threshold}; {place}"))?;
    }
    if let Some(probability) = document.inclusion_probability {
        line("inclusion probability", format!("{probability:.6}"))?;
    }
    Ok(())
}

/// Where the log weight decides nothing.
fn of_sensitivity(
    document: &ExplainedDocument,
    sensitivity: &ExplainedSensitivity,
    text: &mut String,
) -> std::fmt::Result {
    let mut line = |name: &str, value: String| writeln!(text, "  {name:<22} {value}");
    let Some(of) = &sensitivity.score else { return Ok(()) };
    line("centre", format!("{}, with a loss of {:.6}, at a distance of {:.6}", of.centre, of.loss, of.distance))?;
    let sum = format!("{:.6} + {:.6} × {:.6}^{}", of.loss, of.scale, of.distance, of.distance_power);
    line("score", format!("{:.6} = {sum}, mixed with the mean: {:.6}", of.unmixed, of.score))?;
    line("uniform number", format!("{:.6}", of.uniform))?;
    line("key", format!("{:.6}, the log of their quotient", of.key))?;
    let threshold = sensitivity.pool.threshold.map_or("none".to_owned(), |threshold| format!("{threshold:.6}"));
    let (n, of_documents) = (sensitivity.pool.selected, sensitivity.pool.documents);
    line("  threshold", format!("{threshold}; {n} of {of_documents} selected"))?;
    if let Some(probability) = document.inclusion_probability {
        line("inclusion probability", format!("{probability:.6}"))?;
    }
    if let Some(weight) = document.sample_weight {
        line("sample weight", format!("{weight:.6}, with a ratio of {:.6}", sensitivity.pool.ratio))?;
    }
    Ok(())
}
