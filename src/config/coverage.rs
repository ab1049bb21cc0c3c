//! A selection that is spread over strata, and where its documents wait.

use std::path::PathBuf;

use super::checked::{GIB, MIB};
use super::reader::Reader;
use super::{Config, EdgesConfig, FeedbackConfig, SpoolConfig};
use crate::feedback::MAX_SOURCES;
use crate::record::FieldNames;
use crate::select::{
    CoverageSelector, CoverageSettings, Criterion, Cutoff, EdgesFrom, Fraction, Quotas, SelectorSettings,
    StrataRounding, Tail, Within, pool_shares_of,
};

const MAX_STRATA: u64 = 10_000;
/// With a shorter one hardly ever enough would be remembered; beyond the other sums would be.
const HALF_LIVES: std::ops::RangeInclusive<u64> = 10_000..=1 << 40;

/// How many parts of the documents have strata of their own, at most: sources, or values of another field, that have shares or that learn
/// them, and all others together.
pub(super) fn n_pools(quotas: &Quotas, feedback: Option<&FeedbackConfig>) -> u64 {
    let is_mixed = feedback.is_some_and(|feedback| feedback.settings.mixing.is_some());
    let n_sources = if is_mixed { MAX_SOURCES } else { quotas.sources.len() };
    n_sources as u64 + 1
}

/// `None`: another selector. `n_pools`: manifests name the strata of each.
pub(super) fn coverage(r: &mut Reader, selector: &str, fields: &FieldNames, n_pools: u64) -> Option<CoverageSelector> {
    let importance = r.optional("selection.importance");
    let cutoff = r.parse("selection.cutoff", None, |value| match value {
        "0" | "0.0" => Ok(None),
        rate => match rate.parse::<Fraction>() {
            Ok(rate) if rate.as_f64() < 1.0 => Ok(Some(rate)),
            _ => Err("expected a decimal from 0 to below 1".to_owned()),
        },
    });
    let cutoff_field = r.optional("selection.cutoff_field");
    let cutoff_tail = Some(r.choice("selection.cutoff_tail", &["", "low", "high"])).filter(|tail| !tail.is_empty());
    let within = match r.choice("selection.within", &["weighted", "uniform"]).as_str() {
        "uniform" => Within::Uniform,
        _ => Within::Weighted,
    };
    let strata = r.integer("selection.strata", 1..=MAX_STRATA);
    let clip = r.parse("selection.clip", 0.0, |value| {
        let clip = value.parse::<f64>().ok().filter(|clip| (0.0..0.5).contains(clip));
        clip.ok_or("expected a number from 0 to below 0.5".to_owned())
    });
    let edges_from = match r.choice("selection.edges_from", &["window", "stream"]).as_str() {
        "stream" => EdgesFrom::Stream,
        _ => EdgesFrom::Window,
    };
    if selector != "coverage" {
        let stream = (edges_from == EdgesFrom::Stream).then(|| "stream".to_owned());
        let rate = cutoff.map(|rate| rate.to_string());
        for (key, value) in [
            ("selection.importance", &importance),
            ("selection.cutoff", &rate),
            ("selection.cutoff_field", &cutoff_field),
            ("selection.cutoff_tail", &cutoff_tail),
            ("selection.edges_from", &stream),
        ] {
            if let Some(value) = value {
                r.error(key, value, "has no effect without selection.selector = coverage");
            }
        }
        return None;
    }
    let Some(importance) = importance else {
        r.error("selection.importance", "", "must name a field that says how hard a document is, or be `weight`");
        return None;
    };
    for (key, value) in [("selection.cutoff_field", &cutoff_field), ("selection.cutoff_tail", &cutoff_tail)] {
        if let Some(value) = value.as_ref().filter(|_| cutoff.is_none()) {
            r.error(key, value, "has no effect without selection.cutoff");
        }
    }
    let cells = strata * n_pools;
    if cells > MAX_STRATA {
        let problem = format!(
            "with {n_pools} pools by [selection.sources] or selection.mixing there are {cells} strata, at most {MAX_STRATA} can be \
             named"
        );
        r.error("selection.strata", &strata.to_string(), problem);
    }
    let mut criterion = |key: &str, name: String| {
        let is_text = |field: &Option<String>| field.as_ref() == Some(&name);
        if name == fields.text || [&fields.id, &fields.source, &fields.timestamp].into_iter().any(is_text) {
            r.error(key, &name, "is no field of numbers: [documents] says what it is");
        }
        if name == "weight" { Criterion::Weight } else { Criterion::Field(name) }
    };
    let importance = criterion("selection.importance", importance);
    let cutoff_by = cutoff_field.map_or_else(|| importance.clone(), |name| criterion("selection.cutoff_field", name));
    let tail = match (cutoff_tail.as_deref(), &cutoff_by) {
        (Some("low"), _) | (None, Criterion::Weight) => Tail::Low,
        _ => Tail::High,
    };
    let cutoff = cutoff.map(|rate| Cutoff { rate, tail });
    let settings = CoverageSettings { strata: strata as u32, cutoff, within, clip };
    // Of many windows none is the one selection that another rounding would be for.
    Some(CoverageSelector { settings, importance, cutoff_by, edges_from, strata_rounding: StrataRounding::Random })
}

/// Of each window the same share is cut off: where what is left is less than is to be selected, no window can give that.
pub(super) fn must_be_left(r: &mut Reader, selector: &SelectorSettings) {
    let of_window = selector.coverage.as_ref().filter(|coverage| coverage.edges_from == EdgesFrom::Window);
    if let Some(cutoff) = of_window.and_then(|coverage| coverage.settings.cutoff)
        && let Some(left) = cutoff.leaves_less_than(selector.fraction)
    {
        let problem = format!(
            "leaves {left} of the documents, and selection.fraction = {} is to be selected: no window could give that many",
            selector.fraction
        );
        r.error("selection.cutoff", &cutoff.rate.to_string(), problem);
    }
}

impl Config {
    /// What is to be said of strata when a pipeline begins.
    pub fn coverage_warnings(&self) -> Vec<String> {
        let Some(coverage) = &self.selector.coverage else { return Vec::new() };
        let (fraction, strata) = (self.selector.fraction, coverage.settings.strata);
        let mut warnings: Vec<String> = coverage.warning().into_iter().collect();
        // How many are cut off depends on the stream then.
        let of_stream = coverage.settings.cutoff.filter(|_| coverage.edges_from == EdgesFrom::Stream);
        if let Some(cutoff) = of_stream
            && let Some(left) = cutoff.leaves_less_than(fraction)
        {
            warnings.push(format!(
                "`selection.cutoff = {}` leaves {left} of the stream, and `selection.fraction = {fraction}` is to be selected: most \
                 windows will give all that is left, which is less than that",
                cutoff.rate
            ));
        }
        // All others may have nothing left.
        let shares = pool_shares_of(self.selector.quotas.sources.values().copied());
        let smallest = shares.into_iter().filter(|share| *share > 0.0).fold(1.0, f64::min);
        let due = fraction.as_f64() * self.window.max_documents as f64 * smallest;
        // Shares are decimal numbers.
        if due * (1.0 + 1e-9) < f64::from(strata) {
            let of_pool = if smallest < 1.0 { " of the pool with the smallest share" } else { "" };
            warnings.push(format!(
                "a full window selects {due:.1} documents{of_pool}, and `selection.strata = {strata}`: some strata get none of it, so that \
                 the range is not covered in every window; raise selection.fraction or window.max_documents, or lower selection.strata"
            ));
        }
        warnings
    }
}

/// How numbers of the stream are remembered, where strata are cut by them.
pub(super) fn edges(r: &mut Reader) -> EdgesConfig {
    EdgesConfig { half_life_documents: r.integer("selection.edges_half_life_documents", HALF_LIVES) }
}

/// `scratch_dir`: where documents wait unless it is said otherwise. `window_bytes`: the most that a window takes, of which `fraction` is
/// selected.
pub(super) fn spool(
    r: &mut Reader,
    scratch_dir: Option<&PathBuf>,
    is_wanted: bool,
    fraction: Fraction,
    (window_bytes, memory_bytes): (u64, u64),
) -> SpoolConfig {
    let folder = r.optional("spool.folder").map(PathBuf::from);
    if let Some(folder) = folder.as_deref().filter(|folder| !folder.is_dir()) {
        r.error("spool.folder", &folder.display().to_string(), "is not a folder");
    }
    let is_compressed = r.choice("spool.compression", &["zstd", "none"]) == "zstd";
    let max_bytes = r.bytes("spool.max_bytes", MIB..=64 * 1024 * GIB);
    let reserve_bytes = SpoolConfig::reserve_bytes(window_bytes, fraction, memory_bytes);
    if is_wanted && max_bytes < 2 * reserve_bytes {
        let shown = |n| bytesize::ByteSize(n).display().iec().to_string();
        let problem = format!(
            "must be at least {}: twice what a window takes ({}, see window.max_bytes) and what is selected of it ({}), since one window is \
             completed and decided while others wait, and half of memory.budget ({})",
            shown(2 * reserve_bytes),
            shown(window_bytes),
            shown(fraction.at_most(window_bytes)),
            shown(memory_bytes)
        );
        r.error("spool.max_bytes", &shown(max_bytes), problem);
    }
    SpoolConfig { folder: folder.or_else(|| scratch_dir.cloned()), is_compressed, max_bytes, reserve_bytes }
}

impl SpoolConfig {
    /// For the window that goes on when all others wait: its rows, beside them those that are selected, which are written before it
    /// gives its own back, and what was read before. That is the queue to the worker, an eighth of the memory, and a batch that is being
    /// filled.
    pub fn reserve_bytes(window_bytes: u64, fraction: Fraction, memory_bytes: u64) -> u64 {
        window_bytes + fraction.at_most(window_bytes) + memory_bytes / 4
    }
}
