//! A selection by sensitivity: what its points and losses are taken from.

use super::checked::GIB;
use super::reader::Reader;
use super::{ClustersConfig, FeedbackConfig};
use crate::features::Projection;
use crate::record::{Base64Floats, EmbeddingField, FieldNames};
use crate::select::{CentresFrom, DEFAULT_FLOOR, LossSource, MAX_CENTRES, SelectorSettings, SensitivitySelector};
use crate::window::WindowPolicy;

/// Of the stream: they are kept by the catalog, with as many numbers each as a point has.
const MAX_STREAM_CENTRES: u32 = 4096;
const MAX_DOCUMENTS: u64 = 1 << 53;

/// `None`: another selector.
pub(super) fn sensitivity(
    r: &mut Reader,
    selector: &str,
    fields: &FieldNames,
    feedback: Option<&FeedbackConfig>,
) -> Option<SensitivitySelector> {
    let field = r.optional("selection.embedding_field");
    let base64 = match r.choice("selection.embedding_base64", &["f16", "f32"]).as_str() {
        "f32" => Base64Floats::F32,
        _ => Base64Floats::F16,
    };
    let centres = r.integer("selection.centres", 1..=MAX_CENTRES as u64) as u32;
    let centres_from = match r.choice("selection.centres_from", &["window", "stream"]).as_str() {
        "stream" => CentresFrom::Stream,
        _ => CentresFrom::Window,
    };
    let exponent = r.integer("selection.distance_power", 1..=2) as u32;
    let floor = r.parse("selection.floor", DEFAULT_FLOOR, |value| {
        let floor = value.parse::<f64>().ok().filter(|floor| *floor > 0.0 && *floor <= 1.0);
        floor.ok_or("expected a number above 0 and up to 1".to_owned())
    });
    if selector != "sensitivity" {
        if let Some(field) = field {
            r.error("selection.embedding_field", &field, "has no effect without selection.selector = sensitivity");
        }
        if centres_from != CentresFrom::Window {
            r.error("selection.centres_from", "stream", "has no effect without selection.selector = sensitivity");
        }
        return None;
    }
    if centres_from == CentresFrom::Stream && centres > MAX_STREAM_CENTRES {
        let problem = format!(
            "must be at most {MAX_STREAM_CENTRES} with selection.centres_from = stream: each publication keeps them"
        );
        r.error("selection.centres", &centres.to_string(), problem);
    }
    if let Some(field) = &field {
        let is_known = |name: &Option<String>| name.as_ref() == Some(field);
        let FieldNames { text, id, source, timestamp, loss, reference_loss } = fields;
        if field == text || [id, source, timestamp, loss, reference_loss].into_iter().any(is_known) {
            r.error("selection.embedding_field", field, "is no field of embeddings: [documents] says what it is");
        }
    }
    let losses = match (&fields.loss, feedback) {
        (Some(_), _) => LossSource::Record,
        (None, Some(_)) => LossSource::Expected,
        (None, None) => LossSource::None,
    };
    let embedding = field.map(|field| EmbeddingField { field, base64 });
    Some(SensitivitySelector { centres, exponent, floor, embedding, losses, centres_from })
}

/// How clusters of the stream are remembered, where windows take them.
pub(super) fn clusters(r: &mut Reader, selector: &SelectorSettings, window: &WindowPolicy) -> ClustersConfig {
    let of_stream = selector.sensitivity.as_ref().filter(|sensitivity| sensitivity.centres_from == CentresFrom::Stream);
    if let Some(SensitivitySelector { centres, .. }) = of_stream.filter(|of| window.max_documents < of.centres.into()) {
        let problem = format!(
            "must be at least selection.centres ({centres}) with selection.centres_from = stream: clusters begin with a window that has as \
             many documents"
        );
        r.error("window.max_documents", &window.max_documents.to_string(), problem);
    }
    ClustersConfig {
        half_life_documents: r.integer("selection.centres_half_life_documents", 1..=MAX_DOCUMENTS),
        history_bytes: r.bytes("selection.centres_history_bytes", 0..=1024 * GIB),
    }
}

/// Numbers and lengths of a row that waits, beside its texts.
const ROW_BYTES: u64 = 144;

/// The most that the rows of a window take while they wait: of a number in an embedding, two bytes of JSON at least, four are kept beside
/// it.
pub(super) fn waiting_bytes(selector: &SelectorSettings, window: &WindowPolicy) -> u64 {
    let WindowPolicy { max_documents, .. } = *window;
    let max_bytes = window.max_bytes.saturating_add(max_documents.saturating_mul(ROW_BYTES));
    match selector.sensitivity.as_ref().map(|sensitivity| &sensitivity.embedding) {
        None => max_bytes,
        Some(Some(_)) => max_bytes.saturating_mul(3),
        Some(None) => max_bytes.saturating_add(max_documents.saturating_mul(4 * Projection::OF_TEXTS.dims() as u64)),
    }
}
