//! Counts that decay and grow with publications.

use async_trait::async_trait;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite, SqliteExecutor, Transaction};

use super::{SqliteCatalog, now_ms};
use crate::catalog::{CatalogError, CountsAddition, CountsCatalog, CountsKind, CountsLine, CountsVersion};
use crate::manifest::ShardManifest;
use crate::score::DecayedCounts;

impl SqliteCatalog {
    /// Makes the next version of one kind of counts, within the transaction of a publication. The outer error: a
    /// statement failed.
    pub(super) async fn add_counts(
        &self,
        tx: &mut Transaction<'static, Sqlite>,
        manifest: &ShardManifest,
        addition: &CountsAddition<'_>,
    ) -> Result<Result<(), CatalogError>, sqlx::Error> {
        let (pipeline, kind) = (&manifest.pipeline, addition.kind.as_str());
        let newest = match self.parse(select_newest(&mut **tx, pipeline, addition.kind).await?) {
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
        insert(&mut **tx, pipeline, addition.kind, version + 1, Some((&manifest.shard, addition)), &state).await?;
        sqlx::query(
            "UPDATE counts SET state = NULL WHERE pipeline = ? AND kind = ? AND version <= ? AND state IS NOT NULL",
        )
        .bind(pipeline)
        .bind(kind)
        .bind(version + 1 - n_kept)
        .execute(&mut **tx)
        .await?;
        Ok(Ok(()))
    }

    /// A version with whether something was added to it, from its row.
    fn parse(&self, row: Option<SqliteRow>) -> Result<Option<(CountsVersion, bool)>, CatalogError> {
        let Some(row) = row else { return Ok(None) };
        let (version, state): (i64, Option<Vec<u8>>) = (row.get(0), row.get(1));
        let Some(state) = state else { return Ok(None) };
        let counts = DecayedCounts::from_bytes(&state);
        let counts = counts.map_err(|e| self.damaged(format!("counts of version {version}: {e}")))?;
        Ok(Some((CountsVersion { version, counts }, row.get::<Option<String>, _>(2).is_some())))
    }
}

async fn select_newest(
    on: impl SqliteExecutor<'_>,
    pipeline: &str,
    kind: CountsKind,
) -> Result<Option<SqliteRow>, sqlx::Error> {
    sqlx::query(
        "SELECT version, state, shard FROM counts WHERE pipeline = ? AND kind = ? ORDER BY version DESC LIMIT 1",
    )
    .bind(pipeline)
    .bind(kind.as_str())
    .fetch_optional(on)
    .await
}

async fn insert(
    on: impl SqliteExecutor<'_>,
    pipeline: &str,
    kind: CountsKind,
    version: i64,
    added: Option<(&String, &CountsAddition<'_>)>,
    state: &[u8],
) -> Result<(), sqlx::Error> {
    let half_life = added.and_then(|(_, addition)| addition.half_life_ngrams);
    sqlx::query(
        "INSERT INTO counts (pipeline, kind, version, shard, half_life_ngrams, n_ngrams, state, created_at_ms)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(pipeline)
    .bind(kind.as_str())
    .bind(version)
    .bind(added.map(|(shard, _)| shard))
    .bind(half_life.map(|n| n as i64))
    .bind(added.map_or(0, |(_, addition)| addition.counts.total() as i64))
    .bind(state)
    .bind(now_ms())
    .execute(on)
    .await?;
    Ok(())
}

#[async_trait]
impl CountsCatalog for SqliteCatalog {
    async fn begin_counts(
        &self,
        pipeline: &str,
        kind: CountsKind,
        initial: &DecayedCounts,
    ) -> Result<CountsVersion, CatalogError> {
        let mut tx = self.begin().await?;
        let row = select_newest(&mut *tx, pipeline, kind).await.map_err(|e| self.unavailable(e))?;
        let next = match self.parse(row)? {
            Some((newest, was_added_to))
                if newest.counts.featuriser() == initial.featuriser()
                    && (was_added_to || newest.counts == *initial) =>
            {
                return Ok(newest);
            }
            Some((other, _)) => other.version + 1,
            None => 0,
        };
        let inserted = insert(&mut *tx, pipeline, kind, next, None, &initial.to_bytes()).await;
        inserted.map_err(|e| self.unavailable(e))?;
        self.commit(tx).await?;
        Ok(CountsVersion { version: next, counts: initial.clone() })
    }

    async fn newest_counts(&self, pipeline: &str, kind: CountsKind) -> Result<Option<CountsVersion>, CatalogError> {
        let row = select_newest(&self.pool, pipeline, kind).await.map_err(|e| self.unavailable(e))?;
        Ok(self.parse(row)?.map(|(newest, _)| newest))
    }

    async fn counts(
        &self,
        pipeline: &str,
        kind: CountsKind,
        version: i64,
    ) -> Result<Option<CountsVersion>, CatalogError> {
        let row =
            sqlx::query("SELECT version, state, shard FROM counts WHERE pipeline = ? AND kind = ? AND version = ?")
                .bind(pipeline)
                .bind(kind.as_str())
                .bind(version)
                .fetch_optional(&self.pool)
                .await
                .map_err(|e| self.unavailable(e))?;
        Ok(self.parse(row)?.map(|(version, _)| version))
    }

    async fn counts_lines(&self, pipeline: &str, kind: CountsKind) -> Result<Vec<CountsLine>, CatalogError> {
        sqlx::query(
            "SELECT version, shard, half_life_ngrams, n_ngrams, state IS NOT NULL FROM counts
             WHERE pipeline = ? AND kind = ? ORDER BY version",
        )
        .bind(pipeline)
        .bind(kind.as_str())
        .map(|row: SqliteRow| CountsLine {
            version: row.get(0),
            shard: row.get(1),
            half_life_ngrams: row.get(2),
            n_ngrams: row.get(3),
            is_kept: row.get(4),
        })
        .fetch_all(&self.pool)
        .await
        .map_err(|e| self.unavailable(e))
    }
}
