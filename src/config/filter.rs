//! The filter of documents as it is written; what it means is looked at where it is compiled.

use super::reader::Reader;
use crate::record::FieldNames;
use crate::select::{FieldType, FilterSettings};

/// Each is looked for in every record.
const MAX_FIELDS: usize = 100;
/// What every document has.
const COLUMNS: [&str; 6] = ["id", "text", "source", "timestamp", "n_bytes", "loss"];

pub(super) fn filter(r: &mut Reader, names: &FieldNames) -> Option<FilterSettings> {
    let sql = r.optional("documents.filter");
    let given = r.map("documents.filter_fields");
    if given.len() > MAX_FIELDS {
        r.error("documents.filter_fields", &format!("{} fields", given.len()), format!("at most {MAX_FIELDS}"));
    }
    let read_already = [&names.id, &names.source, &names.timestamp, &names.loss, &names.reference_loss];
    let read_already: Vec<&str> = read_already.into_iter().flatten().chain([&names.text]).map(String::as_str).collect();
    let mut fields = std::collections::BTreeMap::new();
    for (name, value) in given {
        let key = format!("documents.filter_fields.{name}");
        if sql.is_none() {
            r.error(&key, &value, "has no effect without documents.filter");
        } else if COLUMNS.contains(&name.as_str()) {
            r.error(&key, &value, format!("every document has a column `{name}` already"));
        } else if read_already.contains(&name.as_str()) {
            r.error(&key, &value, "is a field of [documents] already, with a column of its own");
        }
        match FieldType::ALL.into_iter().find(|of| of.as_str() == value) {
            Some(of) => drop(fields.insert(name, of)),
            None => {
                let names = FieldType::ALL.map(FieldType::as_str).join(", ");
                r.error(&key, &value, format!("expected one of: {names}"));
            }
        }
    }
    sql.map(|sql| FilterSettings { sql, fields })
}
