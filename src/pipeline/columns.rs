//! The columns that shards have beside those of every shard: what `documents.columns` says, and then the number of tokens by the tokenizer of
//! the configuration.
//!
//! In: selected documents. Out: for each column an array, as long as there are documents.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, UInt32Array};
use arrow::datatypes::{DataType, Field};
use rayon::prelude::*;

use super::DaemonError;
use crate::config::Config;
use crate::manifest::{CountedTokens, DerivedSettings, ShardManifest};
use crate::record::TopicPartition;
use crate::sql::{Derived, DerivedColumns};
use crate::tokenizer::{Tokenizer, token_column};
use crate::window::SelectedDocument;

#[derive(Debug, Clone, Default)]
pub struct FurtherColumns {
    derived: Option<Arc<DerivedColumns>>,
    /// With the name of its column.
    tokenizer: Option<(String, Arc<Tokenizer>)>,
}

/// The columns of some documents.
pub(super) struct FurtherValues {
    pub arrays: Vec<ArrayRef>,
    /// For each column, how many values are null because there is none.
    pub failed: Vec<u64>,
    /// Tokens in all of them, by the tokenizer.
    pub n_tokens: u64,
}

impl FurtherColumns {
    pub(super) fn new(derived: Option<Arc<DerivedColumns>>, tokenizer: Option<Arc<Tokenizer>>) -> Self {
        FurtherColumns { derived, tokenizer: tokenizer.map(|tokenizer| (tokenizer.column(), tokenizer)) }
    }

    /// Those of a shard, to be made again; `tokenizer`: of the configuration. The inner error: the shard was counted with another.
    pub(super) fn of_shard(
        manifest: &ShardManifest,
        tokenizer: Option<&Arc<Tokenizer>>,
    ) -> Result<Result<Self, String>, DaemonError> {
        let derived = derived_columns(&manifest.columns)?;
        let Some(counted) = &manifest.tokenizer else { return Ok(Ok(FurtherColumns { derived, tokenizer: None })) };
        let column = token_column(&counted.name);
        Ok(same_tokenizer(counted, tokenizer)
            .map(|same| FurtherColumns { derived, tokenizer: Some((column, same.clone())) }))
    }

    /// Names and types in a shard.
    pub fn fields(&self) -> Vec<Field> {
        let mut fields = self.derived.as_ref().map(|derived| derived.fields()).unwrap_or_default();
        fields.extend(self.tokenizer.as_ref().map(|(column, _)| Field::new(column, DataType::UInt32, true)));
        fields
    }

    pub fn names(&self) -> Vec<String> {
        self.fields().iter().map(|field| field.name().clone()).collect()
    }

    pub fn tokenizer(&self) -> Option<&Arc<Tokenizer>> {
        self.tokenizer.as_ref().map(|(_, tokenizer)| tokenizer)
    }

    /// What is recorded with a shard before anything of it is counted.
    pub(super) fn nothing_counted(&self) -> Option<CountedTokens> {
        self.tokenizer().map(|of| CountedTokens {
            name: of.name().to_owned(),
            digest: of.digest().to_owned(),
            tokens: 0,
            validation_tokens: 0,
        })
    }

    /// The values of documents of a partition, in their order. Their texts are copied: some megabytes at a time. Takes all cores.
    pub(super) fn of(&self, documents: &[&SelectedDocument], at: &TopicPartition) -> FurtherValues {
        let derived = self.derived.as_ref().map(|derived| derived.of(documents, at));
        let Derived { mut arrays, mut failed } = derived.unwrap_or(Derived { arrays: Vec::new(), failed: Vec::new() });
        let mut n_tokens = 0;
        if let Some(tokenizer) = self.tokenizer() {
            // Where budgets are in tokens, all have been counted before.
            let count = |of: &&SelectedDocument| of.score.counted_tokens.or_else(|| tokenizer.count(&of.document.text));
            let counts: Vec<_> = documents.par_iter().map(count).collect();
            n_tokens = counts.iter().flatten().map(|n| u64::from(*n)).sum();
            let counts = UInt32Array::from(counts);
            failed.push(counts.null_count() as u64);
            arrays.push(Arc::new(counts));
        }
        FurtherValues { arrays, failed, n_tokens }
    }
}

/// The tokenizer that is configured; `None` if there is none.
pub fn load_tokenizer(config: &Config) -> Result<Option<Arc<Tokenizer>>, DaemonError> {
    let load = |settings| match Tokenizer::load(settings) {
        Ok(tokenizer) => Ok(Arc::new(tokenizer)),
        Err(source) => Err(DaemonError::Tokenizer { path: settings.path.display().to_string(), source }),
    };
    config.tokenizer.as_ref().map(load).transpose()
}

/// The tokenizer that has counted a shard, if it is that of the configuration, whatever it is called there.
pub(super) fn same_tokenizer<'a>(
    counted: &CountedTokens,
    tokenizer: Option<&'a Arc<Tokenizer>>,
) -> Result<&'a Arc<Tokenizer>, String> {
    tokenizer.filter(|tokenizer| tokenizer.digest() == counted.digest).ok_or_else(|| {
        let CountedTokens { name, digest, .. } = counted;
        let now = tokenizer.map_or("there is none".to_owned(), |tokenizer| format!("it is {} now", tokenizer.digest()));
        format!("its tokens were counted with tokenizer {name}, {digest}: name that file as documents.tokenizer.path ({now})")
    })
}

/// The derived columns that were configured, or recorded with a shard; `None` if there are none.
pub(super) fn derived_columns(settings: &DerivedSettings) -> Result<Option<Arc<DerivedColumns>>, DaemonError> {
    if settings.is_empty() {
        return Ok(None);
    }
    DerivedColumns::compile(settings).map(|derived| Some(Arc::new(derived))).map_err(|mut wrong| {
        let (column, source) = wrong.remove(0);
        DaemonError::Column { sql: settings.columns[&column].clone(), column, source }
    })
}
