//! Which documents may be selected at all, as it is written in the configuration and kept with every shard.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A condition in SQL. It is kept as it was written: a replay decides with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilterSettings {
    /// One expression that is true of the documents that may be selected.
    pub sql: String,
    /// Fields of the record that it may name beside those of every document, and what they hold.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fields: BTreeMap<String, FieldType>,
}

/// What a field of a record holds, where it is there and not null.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FieldType {
    String,
    /// Of 64 bits, with its sign.
    Integer,
    Double,
    Boolean,
}

impl FieldType {
    pub const ALL: [FieldType; 4] = [FieldType::String, FieldType::Integer, FieldType::Double, FieldType::Boolean];

    pub fn as_str(self) -> &'static str {
        match self {
            FieldType::String => "string",
            FieldType::Integer => "integer",
            FieldType::Double => "double",
            FieldType::Boolean => "boolean",
        }
    }
}
