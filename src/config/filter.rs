//! The filter of documents and the columns that are derived from them, as they are written, and the column of a tokenizer. What they mean
//! is looked at where they are compiled and loaded.

use std::collections::BTreeMap;

use super::reader::Reader;
use crate::manifest::DerivedSettings;
use crate::record::FieldNames;
use crate::select::{FieldType, FilterSettings};
use crate::tokenizer::TokenizerSettings;

/// Each is looked for in every record.
const MAX_FIELDS: usize = 100;
/// Each is a label of a metric.
const MAX_COLUMNS: usize = 100;
/// What every document has.
const COLUMNS: [&str; 6] = ["id", "text", "source", "timestamp", "n_bytes", "loss"];

/// Both, with the fields that both may name.
pub(super) fn expressions(r: &mut Reader, names: &FieldNames) -> (Option<FilterSettings>, DerivedSettings) {
    let sql = r.optional("documents.filter");
    let columns = r.map("documents.columns");
    if columns.len() > MAX_COLUMNS {
        r.error("documents.columns", &format!("{} columns", columns.len()), format!("at most {MAX_COLUMNS}"));
    }
    let fields = fields(r, names, sql.is_some() || !columns.is_empty());
    let columns: BTreeMap<_, _> = columns.into_iter().collect();
    let derived = if columns.is_empty() {
        DerivedSettings::default()
    } else {
        DerivedSettings { columns, fields: fields.clone() }
    };
    (sql.map(|sql| FilterSettings { sql, fields }), derived)
}

/// Of the model that is trained. `columns`: those that have their names already.
pub(super) fn tokenizer(r: &mut Reader, columns: &DerivedSettings) -> Option<TokenizerSettings> {
    let path = r.optional("documents.tokenizer.path");
    let name = r.optional("documents.tokenizer.name");
    let Some(path) = path else {
        if let Some(name) = name {
            r.error("documents.tokenizer.name", &name, "has no effect without documents.tokenizer.path");
        }
        return None;
    };
    let settings = match TokenizerSettings::new(path.clone().into(), name.as_deref()) {
        Ok(settings) => settings,
        Err(problem) => {
            let (key, value) = name.map_or(("path", path), |name| ("name", name));
            r.error(&format!("documents.tokenizer.{key}"), &value, problem);
            return None;
        }
    };
    let column = settings.column();
    // Readers often do not look at case.
    if let Some((taken, sql)) = columns.columns.iter().find(|(taken, _)| taken.eq_ignore_ascii_case(&column)) {
        r.error(&format!("documents.columns.{taken}"), sql, "is the column of documents.tokenizer");
    }
    Some(settings)
}

fn fields(r: &mut Reader, names: &FieldNames, has_expressions: bool) -> BTreeMap<String, FieldType> {
    let given = r.map("documents.filter_fields");
    if given.len() > MAX_FIELDS {
        r.error("documents.filter_fields", &format!("{} fields", given.len()), format!("at most {MAX_FIELDS}"));
    }
    let read_already = [&names.id, &names.source, &names.timestamp, &names.loss, &names.reference_loss];
    let read_already: Vec<&str> = read_already.into_iter().flatten().chain([&names.text]).map(String::as_str).collect();
    let mut fields = BTreeMap::new();
    for (name, value) in given {
        let key = format!("documents.filter_fields.{name}");
        if !has_expressions {
            r.error(&key, &value, "has no effect without documents.filter or documents.columns");
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
    fields
}
