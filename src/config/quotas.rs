//! Shares of sources, or of the values of another field, and of targets. The names of targets are those of the model, so that it is
//! looked at here already: a mistake in them is told with all others.

use std::collections::BTreeMap;

use super::FeedbackConfig;
use super::reader::Reader;
use crate::record::{Decoder, FieldNames, Format};
use crate::score::Model;
use crate::select::Quotas;

/// Sources, or values of another field, that can have a share of their own: each keeps candidates.
const MAX_SOURCES: usize = 100;

pub(super) fn quotas(r: &mut Reader, decoder: &Decoder, feedback: Option<&FeedbackConfig>) -> Quotas {
    let sources = shares(r, "selection.sources");
    let field = quota_field(r, decoder, feedback, !sources.is_empty());
    let quotas = Quotas { field, sources, proportions: shares(r, "selection.proportions") };
    if let Some((name, problem)) = quotas.source_problem() {
        share_error(r, "selection.sources", &quotas.sources, name, problem);
    }
    if quotas.sources.len() > MAX_SOURCES {
        let n = quotas.sources.len();
        r.error("selection.sources", &format!("{n} sources"), format!("at most {MAX_SOURCES} can have a share"));
    }
    // A model that is not there or damaged is told where it is loaded.
    let model = r.optional("model.path").and_then(|path| Model::from_bytes(&std::fs::read(path).ok()?).ok());
    let names = model.iter().flat_map(|model| &model.targets).map(|target| target.name.as_str());
    let names: Vec<&str> = names.collect();
    let problem = if names.is_empty() { None } else { quotas.proportion_problem(&names) };
    if let Some((name, problem)) = problem {
        share_error(r, "selection.proportions", &quotas.proportions, name, problem);
    }
    quotas
}

/// `None`: the field that says where a document comes from.
fn quota_field(
    r: &mut Reader,
    decoder: &Decoder,
    feedback: Option<&FeedbackConfig>,
    has_shares: bool,
) -> Option<String> {
    const KEY: &str = "selection.quota_field";
    let field = r.optional(KEY)?;
    let is_given = |name: &Option<String>| name.as_ref() == Some(&field);
    let FieldNames { text, id, source, timestamp, loss, reference_loss } = &decoder.fields;
    match &decoder.format {
        Format::Text(format) if !format.headers.contains(&field) => {
            let problem =
                "is none of documents.text.headers: with documents.format = text a record has no other fields";
            r.error(KEY, &field, problem);
        }
        Format::Text(_) => {}
        _ if is_given(source) => return None,
        _ if *text == field || [id, timestamp, loss, reference_loss].into_iter().any(is_given) => {
            r.error(KEY, &field, "is no field to be divided by: [documents] says what it is");
        }
        _ => {}
    }
    if feedback.is_some_and(|feedback| feedback.settings.mixing.is_some()) {
        r.error(KEY, &field, "has no effect with selection.mixing, which learns shares of sources");
    } else if !has_shares {
        r.error(KEY, &field, "has no effect without shares of its values in [selection.sources]");
    }
    Some(field)
}

fn shares(r: &mut Reader, section: &str) -> BTreeMap<String, f64> {
    let mut shares = BTreeMap::new();
    for (name, value) in r.map(section) {
        match value.parse::<f64>() {
            Ok(share) => drop(shares.insert(name, share)),
            Err(_) => r.error(&format!("{section}.{name}"), &value, "expected a number above 0 and at most 1"),
        }
    }
    shares
}

/// Of one share, or of all of them.
fn share_error(r: &mut Reader, section: &str, shares: &BTreeMap<String, f64>, name: Option<&str>, problem: String) {
    let shown = |(name, share): (&String, &f64)| format!("{name} = {share}");
    match name {
        Some(name) => r.error(&format!("{section}.{name}"), &shares[name].to_string(), problem),
        None => r.error(section, &shares.iter().map(shown).collect::<Vec<_>>().join(", "), problem),
    }
}
