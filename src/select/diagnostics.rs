//! Whether a selection is a sample or has collapsed into the few heaviest documents. Pure.
//!
//! In: the total log weights and lengths of all candidates, and which of them were selected. Out: [`Diagnostics`], for
//! the report of the command line, the manifest of a shard and the metrics.

use serde::{Deserialize, Serialize};

use super::{SelectorKind, SelectorSettings};

/// A draw has collapsed when its effective sample size is below this share of the number selected.
const COLLAPSED_SHARE: f64 = 0.1;
/// Of ten or fewer that is no more than 1, which every size is: several documents of one selection have collapsed below this.
const COLLAPSED_SIZE: f64 = 1.5;
/// The temperature that is suggested then gives this share of the candidates.
const SUGGESTED_SHARE: f64 = 0.1;

/// What a selection looks like from outside. Of the candidates: documents with at least `min_tokens` tokens.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Diagnostics {
    pub n_candidates: u64,
    pub n_selected: u64,
    /// See [`effective_sample_size`]; `None` without candidates.
    pub effective_sample_size: Option<f64>,
    /// The same over the number of candidates.
    pub effective_sample_share: Option<f64>,
    /// Of the total log weights of all candidates, before the temperature.
    pub log_weights: Option<Quantiles>,
    /// See [`weight_length_correlation`].
    pub weight_length_correlation: Option<f64>,
    /// See [`top_k_overlap`].
    pub top_k_overlap: Option<f64>,
    /// The draw is no sample any more: see [`is_collapsed`].
    pub is_collapsed: bool,
    /// Only of a collapsed draw: the temperature whose effective sample size is a tenth of the candidates.
    pub suggested_temperature: Option<f64>,
}

/// What a target has selected.
#[derive(Debug, Clone, Copy)]
pub struct JudgedDraw<'a> {
    /// Indices of candidates, in any order.
    pub selected: &'a [usize],
    /// As many all targets together have selected of the same candidates.
    pub n_selected_by_all: u64,
    /// Whether it is one window of many: a few documents of it say nothing.
    pub is_window: bool,
}

impl Diagnostics {
    /// `log_weights` (see [`SelectorSettings::total_log_weight`]) and `n_tokens` of each candidate.
    ///
    /// # Panics
    /// If the two have different lengths, or an index is beyond them.
    pub fn of(settings: &SelectorSettings, log_weights: &[f64], n_tokens: &[u32], draw: &JudgedDraw<'_>) -> Self {
        let JudgedDraw { selected, n_selected_by_all, is_window } = *draw;
        let (n_candidates, n_selected) = (log_weights.len(), selected.len());
        let size = effective_sample_size(log_weights, settings.temperature);
        // Everything was taken, or the heaviest on purpose: nothing was left to chance.
        let is_draw = settings.kind == SelectorKind::ImportanceResampling && n_selected_by_all < n_candidates as u64;
        let has_collapsed =
            |size| is_collapsed(size, n_selected as u64) || (!is_window && n_selected > 1 && size < COLLAPSED_SIZE);
        let is_collapsed = is_draw && size.is_some_and(has_collapsed);
        let suggest = || temperature_for_effective_sample_size(log_weights, SUGGESTED_SHARE * n_candidates as f64);
        Diagnostics {
            n_candidates: n_candidates as u64,
            n_selected: n_selected as u64,
            effective_sample_size: size,
            effective_sample_share: size.map(|size| size / n_candidates as f64),
            log_weights: Quantiles::of(log_weights.to_vec()),
            weight_length_correlation: weight_length_correlation(log_weights, n_tokens),
            top_k_overlap: top_k_overlap(log_weights, selected),
            is_collapsed,
            suggested_temperature: is_collapsed.then(suggest).flatten(),
        }
    }

    /// Of a collapsed draw: what that means, and what to set. `option` is what the user writes before a temperature,
    /// such as `--temperature` or `selection.temperature =`.
    pub fn warning(&self, option: &str) -> Option<String> {
        let size = self.effective_sample_size.filter(|_| self.is_collapsed)?;
        let Diagnostics { n_candidates, n_selected, .. } = self;
        let mut text = format!(
            "the sample has collapsed: {n_selected} of {n_candidates} documents were drawn, but a few weights are so \
             much larger than all others that the draw is worth {size:.1} independent documents (effective sample size)"
        );
        if let Some(overlap) = self.top_k_overlap {
            text.push_str(&format!("; {:.1} % of it is what plain top-k takes", 100.0 * overlap));
        }
        match self.suggested_temperature {
            Some(temperature) => text.push_str(&format!(
                ". Set `{option} {}` for an effective sample size of a tenth of the documents",
                shown(temperature)
            )),
            None => text.push_str(&format!(". Raise `{option} …`")),
        }
        Some(text)
    }
}

/// A temperature with three digits, as people write it.
fn shown(temperature: f64) -> String {
    let digits = 2 - temperature.log10().floor() as i32;
    match usize::try_from(digits) {
        Ok(decimals) => format!("{temperature:.decimals$}"),
        Err(_) => format!("{}", (temperature * 10f64.powi(digits)).round() * 10f64.powi(-digits)),
    }
}

/// How many equally weighted documents are worth as much as these: (Σ w)² / Σ w², with w = exp(log weight / temperature)
/// (Kish 1965, "Survey sampling", section 11.7). From 1, where one document has all the weight, to n, where all have the
/// same. `None` of nothing, and of weights or a temperature that are not finite.
pub fn effective_sample_size(log_weights: &[f64], temperature: f64) -> Option<f64> {
    let (_, largest) = range(log_weights)?;
    (temperature.is_finite() && temperature > 0.0).then(|| size_below(log_weights, largest, temperature))
}

/// Smallest and largest; `None` of nothing, or if one is not finite.
fn range(log_weights: &[f64]) -> Option<(f64, f64)> {
    let widen = |(least, most): (f64, f64), w: &f64| (least.min(*w), most.max(*w));
    let (least, most) = log_weights.iter().fold((f64::INFINITY, f64::NEG_INFINITY), widen);
    // A minimum skips what is not a number, a sum does not.
    let sum: f64 = log_weights.iter().map(|w| w * 0.0).sum();
    (least.is_finite() && most.is_finite() && sum == 0.0).then_some((least, most))
}

/// Weights are relative to the largest, which becomes 1: nothing overflows and both sums are at least 1.
fn size_below(log_weights: &[f64], largest: f64, temperature: f64) -> f64 {
    let (mut sum, mut sum_of_squares) = (0.0, 0.0);
    for log_weight in log_weights {
        let weight = ((log_weight - largest) / temperature).exp();
        sum += weight;
        sum_of_squares += weight * weight;
    }
    (sum * sum / sum_of_squares).clamp(1.0, log_weights.len() as f64)
}

/// The temperature at which [`effective_sample_size`] is `wanted`, to six digits.
///
/// There is at most one: with A(β) = log Σ exp(β w), the logarithm of the size is 2 A(β) − A(2 β), whose derivative by
/// β = 1 / temperature, 2 (A′(β) − A′(2 β)), is below zero because A is convex, and strictly so unless all weights are
/// equal. `None` when there is none: sizes lie between the number of documents that share the largest weight and the
/// number of all documents, both excluded. (Of equal weights every temperature gives n, so 1 is the answer to n.)
pub fn temperature_for_effective_sample_size(log_weights: &[f64], wanted: f64) -> Option<f64> {
    let n = log_weights.len() as f64;
    let (smallest, largest) = range(log_weights)?;
    if smallest == largest {
        return (wanted == n).then_some(1.0);
    }
    let n_largest = log_weights.iter().filter(|w| **w == largest).count() as f64;
    if !(wanted > n_largest && wanted < n) {
        return None;
    }
    // How far above the wanted size, by the logarithm of the temperature: smooth and rising.
    let excess = |log_t: f64| size_below(log_weights, largest, log_t.exp()).ln() - wanted.ln();
    // At the range of the weights they differ by a factor of e at most. From there to a bracket.
    let start = (largest - smallest).ln();
    let (mut low, mut high) = ((start, excess(start)), (start, excess(start)));
    while high.1 < 0.0 {
        low = high;
        high = (high.0 + 1.0, excess(high.0 + 1.0));
    }
    while low.1 >= 0.0 {
        high = low;
        low = (low.0 - 1.0, excess(low.0 - 1.0));
    }
    // Where the line between the ends crosses zero, and every third time the middle, so that neither end stays.
    for step in 0.. {
        if high.0 - low.0 < 1e-6 || high.1 < 1e-9 {
            break;
        }
        let middle = match step % 3 {
            2 => 0.5 * (low.0 + high.0),
            // A little to the far side of the crossing, so that the bracket closes from both ends.
            side => {
                let crossing = low.0 + (high.0 - low.0) * low.1 / (low.1 - high.1);
                let towards = if side == 0 { high.0 } else { low.0 };
                crossing + 1e-3 * (towards - crossing)
            }
        };
        let at = (middle, excess(middle));
        if at.1 < 0.0 { low = at } else { high = at }
    }
    Some(high.0.exp())
}

/// A draw whose effective sample size is below a tenth of what it selects: after the first few documents it has no
/// choice left but to go down the list, so it is plain top-k by another name. Never of ten documents or fewer: a size is at least 1.
pub fn is_collapsed(effective_sample_size: f64, n_selected: u64) -> bool {
    effective_sample_size < COLLAPSED_SHARE * n_selected as f64
}

/// Pearson's correlation of log weight and length in tokens: below zero where long documents are punished. `None` when
/// one of them is constant.
///
/// # Panics
/// If the two have different lengths.
pub fn weight_length_correlation(log_weights: &[f64], n_tokens: &[u32]) -> Option<f64> {
    assert_eq!(log_weights.len(), n_tokens.len(), "every candidate has a weight and a length");
    let (&first_weight, &first_length) = (log_weights.first()?, n_tokens.first()?);
    // Sums of a constant are rounded, so that its variance comes out a little above zero.
    if log_weights.iter().all(|w| *w == first_weight) || n_tokens.iter().all(|n| *n == first_length) {
        return None;
    }
    let n = log_weights.len() as f64;
    let mean_weight = log_weights.iter().sum::<f64>() / n;
    let mean_length = n_tokens.iter().map(|n| f64::from(*n)).sum::<f64>() / n;
    let (mut both, mut weights, mut lengths) = (0.0, 0.0, 0.0);
    for (weight, length) in log_weights.iter().zip(n_tokens) {
        let (x, y) = (weight - mean_weight, f64::from(*length) - mean_length);
        both += x * y;
        weights += x * x;
        lengths += y * y;
    }
    let correlation = both / (weights.sqrt() * lengths.sqrt());
    correlation.is_finite().then(|| correlation.clamp(-1.0, 1.0))
}

/// Share of the selection that plain top-k takes as well: the same number of documents with the highest weights, the
/// earlier of equal ones first. `None` without a selection.
///
/// # Panics
/// If an index is beyond the weights.
pub fn top_k_overlap(log_weights: &[f64], selected: &[usize]) -> Option<f64> {
    let k = selected.len();
    let mut ranked = log_weights.to_vec();
    let (_, &mut least, _) = ranked.select_nth_unstable_by(k.checked_sub(1)?, |a, b| b.total_cmp(a));
    let n_above = log_weights.iter().filter(|w| **w > least).count();
    let mut ties = log_weights.iter().enumerate().filter(|(_, w)| **w == least);
    let last_tie = ties.nth(k - n_above - 1).map_or(0, |(i, _)| i);
    let taken = |&&i: &&usize| log_weights[i] > least || (log_weights[i] == least && i <= last_tie);
    Some(selected.iter().filter(taken).count() as f64 / k as f64)
}

/// Seven numbers of a distribution, each a value that occurs: nearest rank.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(from = "StoredQuantiles")]
pub struct Quantiles {
    pub min: f64,
    pub p01: f64,
    pub p25: f64,
    pub median: f64,
    pub p75: f64,
    pub p99: f64,
    pub max: f64,
}

/// Manifests of the first version have five numbers; the outer percentiles are read as what bounds them.
#[derive(Deserialize)]
struct StoredQuantiles {
    min: f64,
    p01: Option<f64>,
    #[serde(alias = "q25")]
    p25: f64,
    median: f64,
    #[serde(alias = "q75")]
    p75: f64,
    p99: Option<f64>,
    max: f64,
}

impl From<StoredQuantiles> for Quantiles {
    fn from(stored: StoredQuantiles) -> Self {
        let StoredQuantiles { min, p01, p25, median, p75, p99, max } = stored;
        Quantiles { min, p01: p01.unwrap_or(min), p25, median, p75, p99: p99.unwrap_or(max), max }
    }
}

impl Quantiles {
    pub const NAMES: [&str; 7] = ["min", "p01", "p25", "median", "p75", "p99", "max"];

    /// Names and values, in order.
    pub fn named(&self) -> [(&'static str, f64); 7] {
        let Quantiles { min, p01, p25, median, p75, p99, max } = *self;
        let values = [min, p01, p25, median, p75, p99, max];
        std::array::from_fn(|i| (Self::NAMES[i], values[i]))
    }

    /// `None` of nothing.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        let last = values.len().checked_sub(1)?;
        let mut from = 0;
        // Ranks only grow, and what stands from a rank on is at least as large: each step looks at the rest only.
        let mut at = |percent: usize| {
            let rank = (last * percent + 50) / 100;
            let (_, value, _) = values[from..].select_nth_unstable_by(rank - from, f64::total_cmp);
            let value = *value;
            from = rank;
            value
        };
        Some(Quantiles { min: at(0), p01: at(1), p25: at(25), median: at(50), p75: at(75), p99: at(99), max: at(100) })
    }
}

#[cfg(test)]
mod tests;
