//! Why reports and their entries cannot be used. Closed sets: they label metrics.

/// Why an entry cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BadLossReason {
    /// An entry of rows that is no object, or has a field twice.
    Malformed,
    /// No id, or one that is neither a string nor an integer.
    NoId,
    /// No loss, or null.
    NoLoss,
    /// The loss is something else than a number.
    NotANumber,
    NotFinite,
    /// A cross-entropy is not below zero.
    Negative,
    /// Zero tokens: the mean is 0/0.
    NoTokens,
    /// The number of tokens is no integer from 1 to [`super::LossDecoder::MAX_TOKENS`], or is absent from columns.
    InvalidTokens,
}

impl BadLossReason {
    pub const ALL: [BadLossReason; 8] = [
        BadLossReason::Malformed,
        BadLossReason::NoId,
        BadLossReason::NoLoss,
        BadLossReason::NotANumber,
        BadLossReason::NotFinite,
        BadLossReason::Negative,
        BadLossReason::NoTokens,
        BadLossReason::InvalidTokens,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            BadLossReason::Malformed => "malformed",
            BadLossReason::NoId => "no_id",
            BadLossReason::NoLoss => "no_loss",
            BadLossReason::NotANumber => "not_a_number",
            BadLossReason::NotFinite => "not_finite",
            BadLossReason::Negative => "negative",
            BadLossReason::NoTokens => "no_tokens",
            BadLossReason::InvalidTokens => "invalid_tokens",
        }
    }
}

/// Why a report cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BadReportReason {
    /// The record has no value (a tombstone).
    NullPayload,
    TooLarge,
    InvalidUtf8,
    MalformedJson,
    /// JSON, but not an object.
    NotAnObject,
    MissingField,
    /// A field holds a value of the wrong type or out of its range, or contradicts another.
    InvalidField,
    /// A field stands in the report twice.
    DuplicateField,
    TooManyEntries,
    /// Columns of unequal length.
    UnequalColumns,
}

impl BadReportReason {
    pub const ALL: [BadReportReason; 10] = [
        BadReportReason::NullPayload,
        BadReportReason::TooLarge,
        BadReportReason::InvalidUtf8,
        BadReportReason::MalformedJson,
        BadReportReason::NotAnObject,
        BadReportReason::MissingField,
        BadReportReason::InvalidField,
        BadReportReason::DuplicateField,
        BadReportReason::TooManyEntries,
        BadReportReason::UnequalColumns,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            BadReportReason::NullPayload => "null_payload",
            BadReportReason::TooLarge => "too_large",
            BadReportReason::InvalidUtf8 => "invalid_utf8",
            BadReportReason::MalformedJson => "malformed_json",
            BadReportReason::NotAnObject => "not_an_object",
            BadReportReason::MissingField => "missing_field",
            BadReportReason::InvalidField => "invalid_field",
            BadReportReason::DuplicateField => "duplicate_field",
            BadReportReason::TooManyEntries => "too_many_entries",
            BadReportReason::UnequalColumns => "unequal_columns",
        }
    }
}
