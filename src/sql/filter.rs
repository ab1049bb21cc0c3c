//! `documents.filter`: an expression that is compiled once and looks at documents many at a time.
//!
//! In: decoded documents. Out: for each whether it passes, which clause refuses it, or why that cannot be told. A document's
//! verdict depends on nothing but the document: functions that read a clock or draw are not allowed, and an expression
//! that fails on some of many documents is evaluated for each of them alone.

use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, SchemaRef};
use arrow::record_batch::RecordBatch;
use datafusion::common::DFSchema;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{Expr, Volatility};
use datafusion::optimizer::simplify_expressions::{ExprSimplifier, SimplifyContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::prelude::{SessionConfig, SessionContext};

use super::rows::Columns;
use crate::record::{DocumentRef, Reject, RejectReason};
use crate::select::FilterSettings;

/// Of the expression as it is written.
pub const MAX_FILTER_BYTES: usize = 16 << 10;
/// Each is a label of a metric.
const MAX_CLAUSES: usize = 32;
/// Of a clause as a label.
const MAX_LABEL_CHARS: usize = 80;
/// Texts that are looked at together, unless one is longer.
const GROUP_BYTES: usize = 4 << 20;

#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// No expression, or it names what is not there, or its types do not fit.
    #[error("{0}")]
    Sql(String),
    #[error("clause `{clause}` is {found}, expected boolean")]
    NotBoolean { clause: String, found: DataType },
    #[error("`{function}` does not give the same for the same document each time, and so cannot be replayed")]
    NotDeterministic { function: String },
    #[error("has {found} clauses, allowed are {MAX_CLAUSES}")]
    TooManyClauses { found: usize },
    #[error("has {found} bytes, allowed are {MAX_FILTER_BYTES}")]
    TooLong { found: usize },
    /// Of a column that is derived.
    #[error("is {found}, which a shard does not hold: cast it to a number, a string, a time, or a list of them")]
    NoColumn { found: DataType },
    #[error("a column is called by letters, digits and _, at most 128, and no digit first")]
    Name,
    #[error("every shard has a column of this name")]
    Taken,
}

/// What becomes of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Passes,
    /// By the first clause that is false or null, from 0. Later ones are not looked at.
    Refused(u16),
    Fails(Reject),
}

/// A compiled filter.
#[derive(Debug)]
pub struct DocumentFilter {
    settings: FilterSettings,
    columns: Columns,
    schema: SchemaRef,
    clauses: Vec<Clause>,
}

#[derive(Debug)]
struct Clause {
    label: String,
    is_true: Arc<dyn PhysicalExpr>,
}

impl DocumentFilter {
    /// Names of columns are `id`, `text`, `source`, `timestamp`, `n_bytes` (of the text), `loss` and those of
    /// `settings.fields`.
    pub fn compile(settings: &FilterSettings) -> Result<Self, FilterError> {
        if settings.sql.len() > MAX_FILTER_BYTES {
            return Err(FilterError::TooLong { found: settings.sql.len() });
        }
        let context = context();
        let all = df_schema(&Columns::all(&settings.fields).schema())?;
        let expression = context.parse_sql_expr(&settings.sql, &all).map_err(|e| sql_error(&e))?;
        refuse_what_changes(&expression)?;
        // Only what is named is made.
        let named = expression.column_refs();
        let columns = Columns::all(&settings.fields).only(|name| named.iter().any(|column| column.name == name));
        let schema = columns.schema();
        let of_columns = df_schema(&schema)?;
        let clauses = split_conjunction(&expression);
        if clauses.len() > MAX_CLAUSES {
            return Err(FilterError::TooManyClauses { found: clauses.len() });
        }
        let compile = |(number, clause): (usize, &Expr)| {
            let label = label(number, clause);
            let is_true = evaluable(&context, clause.clone(), &of_columns)?;
            match is_true.data_type(&schema).map_err(|e| sql_error(&e))? {
                DataType::Boolean => Ok(Clause { label, is_true }),
                found => Err(FilterError::NotBoolean { clause: clause.to_string(), found }),
            }
        };
        let clauses = clauses.into_iter().enumerate().map(compile).collect::<Result<_, _>>()?;
        Ok(DocumentFilter { settings: settings.clone(), columns, schema, clauses })
    }

    /// What it was compiled from.
    pub fn settings(&self) -> &FilterSettings {
        &self.settings
    }

    /// The clauses by number, as labels: all different.
    pub fn labels(&self) -> impl Iterator<Item = &str> {
        self.clauses.iter().map(|clause| clause.label.as_str())
    }

    /// One verdict for each document, in order.
    pub fn judge(&self, documents: &[&DocumentRef<'_>]) -> Vec<Verdict> {
        let mut verdicts = vec![Verdict::Passes; documents.len()];
        let mut from = 0;
        while from < documents.len() {
            let mut bytes = documents[from].text.len();
            let mut to = from + 1;
            while to < documents.len() && bytes + documents[to].text.len() <= GROUP_BYTES {
                bytes += documents[to].text.len();
                to += 1;
            }
            self.judge_group(&documents[from..to], &mut verdicts[from..to]);
            from = to;
        }
        verdicts
    }

    fn judge_group(&self, documents: &[&DocumentRef<'_>], verdicts: &mut [Verdict]) {
        let (mut rows, mut values) = (Vec::with_capacity(documents.len()), Vec::with_capacity(documents.len()));
        for (row, document) in documents.iter().enumerate() {
            match self.columns.values(document) {
                Ok(found) => {
                    rows.push(row);
                    values.push((*document, found));
                }
                Err(reject) => verdicts[row] = Verdict::Fails(reject),
            }
        }
        let mut batch = self.columns.batch(&self.schema, &values);
        for (number, clause) in self.clauses.iter().enumerate() {
            if rows.is_empty() {
                return;
            }
            let mut passes = Vec::with_capacity(rows.len());
            for (row, outcome) in rows.iter().zip(clause.outcomes(&batch)) {
                passes.push(matches!(outcome, Ok(true)));
                match outcome {
                    Ok(true) => {}
                    Ok(false) => verdicts[*row] = Verdict::Refused(number as u16),
                    Err(problem) => {
                        let detail = format!("documents.filter, clause {}: {problem}", clause.label);
                        verdicts[*row] = Verdict::Fails(Reject::new(RejectReason::FilterFailed, detail));
                    }
                }
            }
            if passes.contains(&false) {
                let mut kept = passes.iter();
                rows.retain(|_| *kept.next().expect("one a row"));
                batch = filter_record_batch(&batch, &BooleanArray::from(passes)).expect("as many rows");
            }
        }
    }
}

impl Clause {
    /// For each row whether it is true, or what failed. All rows together evaluate at least what a row alone does, so that none
    /// that succeeds here fails there; of those that fail here, each is told alone.
    fn outcomes(&self, batch: &RecordBatch) -> Vec<Result<bool, String>> {
        match self.evaluate(batch) {
            Ok(outcomes) => outcomes.into_iter().map(Ok).collect(),
            Err(problem) if batch.num_rows() == 1 => vec![Err(problem)],
            Err(_) => (0..batch.num_rows()).flat_map(|row| self.outcomes(&batch.slice(row, 1))).collect(),
        }
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<Vec<bool>, String> {
        let found = self.is_true.evaluate(batch).and_then(|value| value.into_array(batch.num_rows()));
        let found = found.map_err(|e| message(&e))?;
        let found = found.as_boolean();
        Ok((0..found.len()).map(|row| found.is_valid(row) && found.value(row)).collect())
    }
}

/// Compiles expressions, and tells places in them.
pub(super) fn context() -> SessionContext {
    SessionContext::new_with_config(SessionConfig::new().set_bool("datafusion.sql_parser.collect_spans", true))
}

/// An expression over columns, ready to be evaluated. It is simplified first: some functions, `coalesce` among them, are only
/// known as what they are simplified to.
pub(super) fn evaluable(
    context: &SessionContext,
    expression: Expr,
    schema: &DFSchema,
) -> Result<Arc<dyn PhysicalExpr>, FilterError> {
    let of_columns = SimplifyContext::builder()
        .with_schema(Arc::new(schema.clone()))
        .with_config_options(context.state().config_options().clone())
        .build();
    let simplifier = ExprSimplifier::new(of_columns);
    let simplified = simplifier.coerce(expression, schema).and_then(|typed| simplifier.simplify(typed));
    simplified.and_then(|simple| context.create_physical_expr(simple, schema)).map_err(|e| sql_error(&e))
}

pub(super) fn df_schema(schema: &SchemaRef) -> Result<DFSchema, FilterError> {
    DFSchema::try_from(schema.clone()).map_err(|e| sql_error(&e))
}

/// The number comes first: long clauses can begin alike.
fn label(number: usize, clause: &Expr) -> String {
    let text = clause.to_string();
    match text.char_indices().nth(MAX_LABEL_CHARS) {
        None => format!("{}: {text}", number + 1),
        Some((end, _)) => format!("{}: {}…", number + 1, &text[..end]),
    }
}

pub(super) fn refuse_what_changes(expression: &Expr) -> Result<(), FilterError> {
    let mut changing = None;
    let walked = expression.apply(|part| {
        if let Expr::ScalarFunction(call) = part
            && call.func.signature().volatility != Volatility::Immutable
        {
            changing = Some(call.func.name().to_owned());
            return Ok(TreeNodeRecursion::Stop);
        }
        Ok(TreeNodeRecursion::Continue)
    });
    walked.map_err(|e| sql_error(&e))?;
    changing.map_or(Ok(()), |function| Err(FilterError::NotDeterministic { function }))
}

/// With the position, where it is known.
pub(super) fn sql_error(error: &DataFusionError) -> FilterError {
    let at = error.diagnostic().and_then(|diagnostic| diagnostic.span);
    let at = at.map(|span| format!(" at line {}, column {}", span.start.line, span.start.column));
    FilterError::Sql(message(error) + &at.unwrap_or_default())
}

/// In one line.
fn message(error: &DataFusionError) -> String {
    let said = error.find_root().strip_backtrace();
    said.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests;
