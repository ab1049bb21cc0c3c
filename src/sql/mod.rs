//! SQL over what the stream brings: which documents may be selected, as an expression of DataFusion.

mod filter;

pub use filter::{DocumentFilter, FilterError, MAX_FILTER_BYTES, Verdict};
