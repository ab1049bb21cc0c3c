//! Counts that decay and grow with publications.

use async_trait::async_trait;

use super::database::{Row, Tx, Value, values};
use super::{SqlCatalog, now_ms};
use crate::catalog::{CatalogError, CountsAddition, CountsCatalog, CountsKind, CountsLine, CountsVersion};
use crate::manifest::ShardManifest;
use crate::score::DecayedCounts;

const NEWEST: &str =
    "SELECT version, state, shard FROM counts WHERE pipeline = $1 AND kind = $2 ORDER BY version DESC LIMIT 1";

impl SqlCatalog {
    /// Makes the next version of one kind of counts, within the transaction of a publication. The outer error: a
    /// statement failed.
    pub(super) async fn add_counts(
        &self,
        tx: &mut Tx,
        manifest: &ShardManifest,
        addition: &CountsAddition<'_>,
    ) -> Result<Result<(), CatalogError>, sqlx::Error> {
        let (pipeline, kind) = (manifest.pipeline.as_str(), addition.kind.as_str());
        let newest = match self.parse(tx.row(NEWEST, values![pipeline, kind]).await?) {
            Ok(Some((newest, _))) => newest,
            Ok(None) => return Ok(Err(self.damaged(format!("pipeline `{pipeline}` has no {kind} counts to add to")))),
            Err(error) => return Ok(Err(error)),
        };
        let CountsVersion { version, mut counts } = newest;
        if counts.featuriser().buckets as usize != addition.counts.as_slice().len() {
            let problem =
                format!("{kind} counts of pipeline `{pipeline}`, version {version}, are of another featuriser");
            return Ok(Err(self.damaged(problem)));
        }
        counts.add(addition.counts, addition.half_life_ngrams);
        let state = counts.to_bytes();
        let n_kept = (addition.history_bytes / state.len() as u64).max(1) as i64;
        insert(tx, pipeline, addition.kind, version + 1, Some((&manifest.shard, addition)), &state).await?;
        tx.execute(
            "UPDATE counts SET state = NULL WHERE pipeline = $1 AND kind = $2 AND version <= $3 AND state IS NOT NULL",
            values![pipeline, kind, version + 1 - n_kept],
        )
        .await?;
        Ok(Ok(()))
    }

    /// A version with whether something was added to it, from its row.
    fn parse(&self, row: Option<Row>) -> Result<Option<(CountsVersion, bool)>, CatalogError> {
        let Some(row) = row else { return Ok(None) };
        let columns = || Ok((row.get::<i64>(0)?, row.get::<Option<Vec<u8>>>(1)?, row.get::<Option<String>>(2)?));
        let (version, state, shard) = columns().map_err(|e: sqlx::Error| self.unavailable(e))?;
        let Some(state) = state else { return Ok(None) };
        let counts = DecayedCounts::from_bytes(&state);
        let counts = counts.map_err(|e| self.damaged(format!("counts of version {version}: {e}")))?;
        Ok(Some((CountsVersion { version, counts }, shard.is_some())))
    }
}

async fn insert(
    tx: &mut Tx,
    pipeline: &str,
    kind: CountsKind,
    version: i64,
    added: Option<(&String, &CountsAddition<'_>)>,
    state: &[u8],
) -> Result<(), sqlx::Error> {
    let half_life = added.and_then(|(_, addition)| addition.half_life_ngrams);
    tx.execute(
        "INSERT INTO counts (pipeline, kind, version, shard, half_life_ngrams, n_ngrams, state, created_at_ms)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        values![
            pipeline,
            kind.as_str(),
            version,
            added.map(|(shard, _)| shard.as_str()),
            half_life.map(|n| n as i64),
            added.map_or(0, |(_, addition)| addition.counts.total()),
            state,
            now_ms(),
        ],
    )
    .await?;
    Ok(())
}

#[async_trait]
impl CountsCatalog for SqlCatalog {
    async fn begin_counts(
        &self,
        pipeline: &str,
        kind: CountsKind,
        initial: &DecayedCounts,
    ) -> Result<CountsVersion, CatalogError> {
        let mut tx = self.begin().await?;
        let begin = async {
            // As a publication does: one after the other.
            tx.execute("UPDATE pipelines SET name = name WHERE name = $1", values![pipeline]).await?;
            tx.row(NEWEST, values![pipeline, kind.as_str()]).await
        };
        let newest = self.parse(begin.await.map_err(|e| self.unavailable(e))?)?;
        let next = match newest {
            Some((newest, was_added_to))
                if newest.counts.featuriser() == initial.featuriser()
                    && (was_added_to || newest.counts == *initial) =>
            {
                return Ok(newest);
            }
            Some((other, _)) => other.version + 1,
            None => 0,
        };
        let inserted = insert(&mut tx, pipeline, kind, next, None, &initial.to_bytes()).await;
        inserted.map_err(|e| self.unavailable(e))?;
        self.commit(tx).await?;
        Ok(CountsVersion { version: next, counts: initial.clone() })
    }

    async fn newest_counts(&self, pipeline: &str, kind: CountsKind) -> Result<Option<CountsVersion>, CatalogError> {
        let row = self.database.row(NEWEST, values![pipeline, kind.as_str()]).await;
        Ok(self.parse(row.map_err(|e| self.unavailable(e))?)?.map(|(newest, _)| newest))
    }

    async fn counts(
        &self,
        pipeline: &str,
        kind: CountsKind,
        version: i64,
    ) -> Result<Option<CountsVersion>, CatalogError> {
        let row = self.database.row(
            "SELECT version, state, shard FROM counts WHERE pipeline = $1 AND kind = $2 AND version = $3",
            values![pipeline, kind.as_str(), version],
        );
        Ok(self.parse(row.await.map_err(|e| self.unavailable(e))?)?.map(|(version, _)| version))
    }

    async fn counts_lines(&self, pipeline: &str, kind: CountsKind) -> Result<Vec<CountsLine>, CatalogError> {
        let line = |row: &Row| {
            Ok(CountsLine {
                version: row.get(0)?,
                shard: row.get(1)?,
                half_life_ngrams: row.get(2)?,
                n_ngrams: row.get(3)?,
                is_kept: row.get(4)?,
            })
        };
        self.select(
            "SELECT version, shard, half_life_ngrams, n_ngrams, state IS NOT NULL FROM counts
             WHERE pipeline = $1 AND kind = $2 ORDER BY version",
            vec![Value::from(pipeline), Value::from(kind.as_str())],
            line,
        )
        .await
    }
}
