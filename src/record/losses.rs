//! Reports of training losses: what a rank of a trainer says about the samples of a step. JSON, in one of two spellings.
//!
//! ```json
//! {"run_id":"r","step":12,"rank":0,"world_size":4,"losses":[{"id":"a","loss":2.3,"n_tokens":512}]}
//! {"run_id":"r","step":12,"rank":0,"world_size":4,"doc_ids":["a"],"loss_sum":[1177.6],"tokens":[512]}
//! ```
//!
//! In rows, `loss` is the mean over the active tokens, in nats; in columns it is their sum, which is divided here. `rank` and
//! `world_size` are 0 and 1 where they are absent. Fields that nothing here names are ignored, so that a trainer may say more;
//! what is null counts as absent.
//!
//! A bad entry (no id, a loss that is no number, zero tokens, …) is kept apart with its reason, and the others stand. A bad
//! report (no JSON, no step, columns of unequal length, …) is refused as a whole. `NaN` and `Infinity`, which Python's `json`
//! writes although JSON has no such words, make bad entries, not bad reports.

mod reasons;
mod wire;

use std::borrow::Cow;

use super::Reject;
use super::decode::Scalar;
pub use reasons::{BadLossReason, BadReportReason};
use wire::{List, Row, Wire};

/// What one rank says about its samples of one step.
#[derive(Debug, Clone, PartialEq)]
pub struct LossReport {
    pub run_id: String,
    pub step: u64,
    pub rank: u32,
    pub world_size: u32,
    /// What the trainer had read when it drew the samples, if it says so.
    pub selection_epoch: Option<u64>,
    /// Sequence of the newest line of the manifest that it had read, if it says so.
    pub manifest_sequence: Option<u64>,
    /// The entries that can be used, in their order.
    pub losses: Vec<SampleLoss>,
    /// The others, in their order.
    pub bad: Vec<BadLoss>,
}

/// The loss of one sample.
#[derive(Debug, Clone, PartialEq)]
pub struct SampleLoss {
    pub id: String,
    /// Mean cross-entropy of the active tokens, in nats: finite, and not below zero.
    pub loss: f64,
    /// Active tokens, if the trainer says how many; at least one.
    pub n_tokens: Option<u32>,
}

/// An entry that says nothing usable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadLoss {
    /// Its place among all entries of the report, from 0.
    pub place: usize,
    pub id: Option<String>,
    pub reason: BadLossReason,
}

/// A report that could not be read, with what a person needs to see why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct BadReport {
    pub reason: BadReportReason,
    pub detail: String,
}

impl BadReport {
    pub(crate) fn new(reason: BadReportReason, detail: impl Into<String>) -> Self {
        BadReport { reason, detail: Reject::shorten(detail.into()) }
    }
}

fn invalid(name: &str, value: &dyn std::fmt::Display, expected: &str) -> BadReport {
    BadReport::new(BadReportReason::InvalidField, format!("field `{name}` is {value}, expected {expected}"))
}

/// Turns the bytes of a report into what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LossDecoder {
    pub max_bytes: usize,
    /// More samples in one report are refused.
    pub max_entries: usize,
}

impl LossDecoder {
    /// Steps, epochs and sequences go up to here: every reader of JSON holds such integers exactly.
    pub const MAX_INTEGER: u64 = (1 << 53) - 1;
    /// No sample is that long; a larger number is an overflow.
    pub const MAX_TOKENS: u32 = 1 << 24;
    pub const MAX_WORLD_SIZE: u32 = 1 << 16;
    pub const MAX_RUN_ID_BYTES: usize = 200;

    /// In: the bytes of one report. Out: what it says, or why it is none. Never fails otherwise.
    pub fn decode(&self, payload: Option<&[u8]>) -> Result<LossReport, BadReport> {
        let payload = payload.ok_or_else(|| BadReport::new(BadReportReason::NullPayload, "the record has no value"))?;
        if payload.len() > self.max_bytes {
            let detail = format!("{} bytes, allowed are {}", payload.len(), self.max_bytes);
            return Err(BadReport::new(BadReportReason::TooLarge, detail));
        }
        let json = simdutf8::compat::from_utf8(payload)
            .map_err(|e| BadReport::new(BadReportReason::InvalidUtf8, e.to_string()))?;
        match Wire::parse(json, self.max_entries) {
            Ok(wire) => self.report(wire?),
            // Perhaps only words that JSON lacks; otherwise the first error is the one to tell.
            Err(error) => match Wire::parse(&wire::spell_out(json), self.max_entries) {
                Ok(wire) => self.report(wire?),
                Err(_) => Err(match error.classify() {
                    serde_json::error::Category::Data => {
                        BadReport::new(BadReportReason::NotAnObject, error.to_string())
                    }
                    _ => BadReport::new(BadReportReason::MalformedJson, error.to_string()),
                }),
            },
        }
    }

    fn report(&self, wire: Wire<'_>) -> Result<LossReport, BadReport> {
        let Wire {
            run_id,
            step,
            rank,
            world_size,
            selection_epoch,
            manifest_sequence,
            losses,
            doc_ids,
            loss_sum,
            tokens,
        } = wire;
        let run_id = run_id_of(run_id)?;
        let step = integer("step", &step, 0..=Self::MAX_INTEGER)?
            .ok_or_else(|| BadReport::new(BadReportReason::MissingField, "no field `step`"))?;
        let worlds = 1..=u64::from(Self::MAX_WORLD_SIZE);
        let world_size = integer("world_size", &world_size, worlds)?.unwrap_or(1) as u32;
        let ranks = 0..=u64::from(world_size) - 1;
        let rank = integer("rank", &rank, ranks)?.unwrap_or(0) as u32;
        let mut report = LossReport {
            run_id,
            step,
            rank,
            world_size,
            selection_epoch: integer("selection_epoch", &selection_epoch, 0..=Self::MAX_INTEGER)?,
            manifest_sequence: integer("manifest_sequence", &manifest_sequence, 0..=Self::MAX_INTEGER)?,
            losses: Vec::new(),
            bad: Vec::new(),
        };
        let columns = [("doc_ids", &doc_ids), ("loss_sum", &loss_sum), ("tokens", &tokens)];
        match losses {
            List::Absent => {
                if let Some((name, _)) = columns.iter().find(|(_, column)| **column == List::Absent) {
                    let detail =
                        format!("neither a field `losses` nor all of doc_ids, loss_sum and tokens: no `{name}`");
                    return Err(BadReport::new(BadReportReason::MissingField, detail));
                }
                let ids = self.items("doc_ids", doc_ids)?;
                let sums = self.items("loss_sum", loss_sum)?;
                let tokens = self.items("tokens", tokens)?;
                if ids.len() != sums.len() || ids.len() != tokens.len() {
                    let (ids, sums, tokens) = (ids.len(), sums.len(), tokens.len());
                    let detail =
                        format!("{ids} doc_ids, {sums} loss_sum and {tokens} tokens: expected as many of each");
                    return Err(BadReport::new(BadReportReason::UnequalColumns, detail));
                }
                let entries = ids.into_iter().zip(sums).zip(tokens);
                report.take(entries.map(|((id, sum), tokens)| Entry::of_columns(id, &sum, &tokens)));
            }
            losses => {
                if let Some((name, _)) = columns.iter().find(|(_, column)| **column != List::Absent) {
                    return Err(invalid(name, &"there", "either `losses` or columns"));
                }
                let rows = self.items("losses", losses)?;
                report.take(rows.into_iter().map(Entry::of_row));
            }
        }
        Ok(report)
    }

    fn items<T>(&self, name: &str, list: List<T>) -> Result<Vec<T>, BadReport> {
        match list {
            List::Absent => Ok(Vec::new()),
            List::Items { n_items, .. } if n_items > self.max_entries => {
                let detail = format!("field `{name}` has {n_items} entries, allowed are {}", self.max_entries);
                Err(BadReport::new(BadReportReason::TooManyEntries, detail))
            }
            List::Items { items, .. } => Ok(items),
            List::Other => Err(invalid(name, &"no array", "an array")),
        }
    }
}

impl LossReport {
    /// Samples that the report names, usable or not.
    pub fn n_entries(&self) -> usize {
        self.losses.len() + self.bad.len()
    }

    /// Bytes that it holds on to.
    pub fn size_bytes(&self) -> usize {
        let ids = self.losses.iter().map(|sample| sample.id.len());
        let ids = ids.chain(self.bad.iter().map(|bad| bad.id.as_ref().map_or(0, String::len)));
        let entries = self.losses.len() * size_of::<SampleLoss>() + self.bad.len() * size_of::<BadLoss>();
        size_of::<LossReport>() + self.run_id.len() + entries + ids.sum::<usize>()
    }

    fn take<'a>(&mut self, entries: impl Iterator<Item = Entry<'a>>) {
        for (place, Entry { id, loss }) in entries.enumerate() {
            let id = id.map(Cow::into_owned);
            match (id, loss) {
                (Some(id), Ok((loss, n_tokens))) => self.losses.push(SampleLoss { id, loss, n_tokens }),
                (id, Err(reason)) => self.bad.push(BadLoss { place, id, reason }),
                (None, Ok(_)) => self.bad.push(BadLoss { place, id: None, reason: BadLossReason::NoId }),
            }
        }
    }
}

/// One sample, as far as it can be read.
struct Entry<'a> {
    id: Option<Cow<'a, str>>,
    loss: Result<(f64, Option<u32>), BadLossReason>,
}

impl<'a> Entry<'a> {
    fn of_row(row: Row<'a>) -> Self {
        let Row::Object { id, loss, n_tokens } = row else {
            return Entry { id: None, loss: Err(BadLossReason::Malformed) };
        };
        let mean = || {
            let n_tokens = tokens_of(&n_tokens)?;
            Ok((loss_of(&loss)?, n_tokens))
        };
        Entry { id: id_of(id), loss: mean() }
    }

    fn of_columns(id: Scalar<'a>, sum: &Scalar<'a>, tokens: &Scalar<'a>) -> Self {
        let mean = || {
            let n_tokens = tokens_of(tokens)?.ok_or(BadLossReason::InvalidTokens)?;
            Ok((loss_of(sum)? / f64::from(n_tokens), Some(n_tokens)))
        };
        Entry { id: id_of(id), loss: mean() }
    }
}

fn id_of(id: Scalar<'_>) -> Option<Cow<'_, str>> {
    match id {
        Scalar::String(id) => Some(id),
        Scalar::Integer(id) => Some(Cow::Owned(id.to_string())),
        Scalar::Null | Scalar::Float(_) | Scalar::Other(_) => None,
    }
}

fn loss_of(loss: &Scalar<'_>) -> Result<f64, BadLossReason> {
    let loss = match *loss {
        Scalar::Integer(loss) => loss as f64,
        Scalar::Float(loss) => loss,
        Scalar::Null => return Err(BadLossReason::NoLoss),
        Scalar::String(_) | Scalar::Other(_) => return Err(BadLossReason::NotANumber),
    };
    match loss {
        // What an infinite number was spelled out as.
        _ if loss.abs() >= f64::MAX => Err(BadLossReason::NotFinite),
        _ if loss < 0.0 => Err(BadLossReason::Negative),
        // Not −0, which is printed with its sign.
        _ => Ok(loss + 0.0),
    }
}

/// Numbers of tokens that were summed as floating-point numbers count too.
fn tokens_of(n_tokens: &Scalar<'_>) -> Result<Option<u32>, BadLossReason> {
    let n_tokens = match *n_tokens {
        Scalar::Null => return Ok(None),
        Scalar::Integer(n_tokens) => n_tokens,
        Scalar::Float(n_tokens) if n_tokens.fract() == 0.0 => n_tokens as i128,
        _ => return Err(BadLossReason::InvalidTokens),
    };
    match u32::try_from(n_tokens) {
        Ok(0) => Err(BadLossReason::NoTokens),
        Ok(n_tokens) if n_tokens <= LossDecoder::MAX_TOKENS => Ok(Some(n_tokens)),
        _ => Err(BadLossReason::InvalidTokens),
    }
}

fn run_id_of(run_id: Scalar<'_>) -> Result<String, BadReport> {
    let expected = format!("1 to {} bytes without control characters", LossDecoder::MAX_RUN_ID_BYTES);
    match run_id {
        Scalar::Null => Err(BadReport::new(BadReportReason::MissingField, "no field `run_id`")),
        Scalar::String(run_id) => {
            let fine = (1..=LossDecoder::MAX_RUN_ID_BYTES).contains(&run_id.len());
            if fine && !run_id.contains(char::is_control) {
                return Ok(run_id.into_owned());
            }
            let shown: String = run_id.chars().filter(|c| !c.is_control()).take(40).collect();
            Err(invalid("run_id", &format!("`{shown}`"), &expected))
        }
        other => Err(invalid("run_id", &other.kind(), "a string")),
    }
}

fn integer(name: &str, value: &Scalar<'_>, range: std::ops::RangeInclusive<u64>) -> Result<Option<u64>, BadReport> {
    let expected = format!("an integer from {} to {}", range.start(), range.end());
    match *value {
        Scalar::Null => Ok(None),
        Scalar::Integer(n) => match u64::try_from(n) {
            Ok(n) if range.contains(&n) => Ok(Some(n)),
            _ => Err(invalid(name, &n, &expected)),
        },
        ref other => Err(invalid(name, &other.kind(), &expected)),
    }
}

#[cfg(test)]
mod tests;
