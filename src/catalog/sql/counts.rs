//! Counts that decay and grow with publications.

use async_trait::async_trait;

use super::database::{Row, Tx, Value, values};
use super::{SqlCatalog, now_ms};
use crate::catalog::{ByTarget, CatalogError, CountsAddition, CountsCatalog, CountsKind, CountsLine, CountsVersion};
use crate::manifest::ShardManifest;
use crate::score::{DecayedCounts, NgramCounts};

const NEWEST: &str = "SELECT version, target, state, shard FROM counts
    WHERE pipeline = $1 AND kind = $2
        AND version = (SELECT MAX(version) FROM counts WHERE pipeline = $1 AND kind = $2)";

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
        let newest = match self.parse(&tx.rows(NEWEST, values![pipeline, kind]).await?) {
            Ok(Some((newest, _))) => newest,
            Ok(None) => return Ok(Err(self.damaged(format!("pipeline `{pipeline}` has no {kind} counts to add to")))),
            Err(error) => return Ok(Err(error)),
        };
        let next = match self.sum(pipeline, newest, addition) {
            Ok(next) => next,
            Err(error) => return Ok(Err(error)),
        };
        let states = next.counts.iter().map(|(target, counts)| (target, counts.to_bytes()));
        let states: Vec<(&String, Vec<u8>)> = states.collect();
        for (target, state) in &states {
            let counts = &addition.counts[*target];
            let added = Added { shard: &manifest.shard, counts, half_life_ngrams: addition.half_life_ngrams };
            insert(tx, pipeline, addition.kind, next.version, target, Some(added), state).await?;
        }
        let bytes: usize = states.iter().map(|(_, state)| state.len()).sum();
        let n_kept = (addition.history_bytes / bytes as u64).max(1) as i64;
        tx.execute(
            "UPDATE counts SET state = NULL WHERE pipeline = $1 AND kind = $2 AND version <= $3 AND state IS NOT NULL",
            values![pipeline, kind, next.version - n_kept],
        )
        .await?;
        Ok(Ok(()))
    }

    /// The version after the newest one: all targets move together, so that one number names what each of them was.
    fn sum(
        &self,
        pipeline: &str,
        newest: CountsVersion,
        addition: &CountsAddition<'_>,
    ) -> Result<CountsVersion, CatalogError> {
        let CountsVersion { version, mut counts } = newest;
        let kind = addition.kind.as_str();
        let are_of = |what: &str| {
            self.damaged(format!("{kind} counts of pipeline `{pipeline}`, version {version}, are of {what}"))
        };
        if !counts.keys().eq(addition.counts.keys()) {
            return Err(are_of("other targets"));
        }
        for (counts, added) in counts.values_mut().zip(addition.counts.values()) {
            if counts.featuriser().buckets as usize != added.as_slice().len() {
                return Err(are_of("another featuriser"));
            }
            counts.add(added, addition.half_life_ngrams);
        }
        Ok(CountsVersion { version: version + 1, counts })
    }

    /// A version with whether something was added to it, from its rows; `None` if it is forgotten, or there are no rows.
    fn parse(&self, rows: &[Row]) -> Result<Option<(CountsVersion, bool)>, CatalogError> {
        let columns = |row: &Row| {
            let (version, target) = (row.get::<i64>(0)?, row.get::<String>(1)?);
            Ok((version, target, row.get::<Option<Vec<u8>>>(2)?, row.get::<Option<String>>(3)?))
        };
        let (mut found, mut was_added_to) = (None, false);
        for row in rows {
            let (version, target, state, shard) = columns(row).map_err(|e: sqlx::Error| self.unavailable(e))?;
            let Some(state) = state else { return Ok(None) };
            let counts = DecayedCounts::from_bytes(&state);
            let counts = counts.map_err(|e| self.damaged(format!("counts of version {version}: {e}")))?;
            found
                .get_or_insert_with(|| CountsVersion { version, counts: ByTarget::new() })
                .counts
                .insert(target, counts);
            was_added_to |= shard.is_some();
        }
        Ok(found.map(|found| (found, was_added_to)))
    }
}

/// What made a version, for one target.
struct Added<'a> {
    shard: &'a str,
    counts: &'a NgramCounts,
    half_life_ngrams: Option<u64>,
}

async fn insert(
    tx: &mut Tx,
    pipeline: &str,
    kind: CountsKind,
    version: i64,
    target: &str,
    added: Option<Added<'_>>,
    state: &[u8],
) -> Result<(), sqlx::Error> {
    let half_life = added.as_ref().and_then(|added| added.half_life_ngrams);
    tx.execute(
        "INSERT INTO counts (pipeline, kind, version, target, shard, half_life_ngrams, n_ngrams, state, created_at_ms)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        values![
            pipeline,
            kind.as_str(),
            version,
            target,
            added.as_ref().map(|added| added.shard),
            half_life.map(|n| n as i64),
            added.map_or(0, |added| added.counts.total()),
            state,
            now_ms(),
        ],
    )
    .await?;
    Ok(())
}

/// Whether counts go on as others: of the same targets and featuriser.
fn are_alike(a: &ByTarget<DecayedCounts>, b: &ByTarget<DecayedCounts>) -> bool {
    a.keys().eq(b.keys()) && a.values().zip(b.values()).all(|(a, b)| a.featuriser() == b.featuriser())
}

#[async_trait]
impl CountsCatalog for SqlCatalog {
    async fn begin_counts(
        &self,
        pipeline: &str,
        kind: CountsKind,
        initial: &ByTarget<DecayedCounts>,
    ) -> Result<CountsVersion, CatalogError> {
        let mut tx = self.begin().await?;
        let begin = async {
            // As a publication does: one after the other.
            tx.execute("UPDATE pipelines SET name = name WHERE name = $1", values![pipeline]).await?;
            tx.rows(NEWEST, values![pipeline, kind.as_str()]).await
        };
        let newest = self.parse(&begin.await.map_err(|e| self.unavailable(e))?)?;
        let next = match newest {
            Some((newest, was_added_to))
                if are_alike(&newest.counts, initial) && (was_added_to || newest.counts == *initial) =>
            {
                return Ok(newest);
            }
            Some((other, _)) => other.version + 1,
            None => 0,
        };
        for (target, counts) in initial {
            let inserted = insert(&mut tx, pipeline, kind, next, target, None, &counts.to_bytes()).await;
            inserted.map_err(|e| self.unavailable(e))?;
        }
        self.commit(tx).await?;
        Ok(CountsVersion { version: next, counts: initial.clone() })
    }

    async fn newest_counts(&self, pipeline: &str, kind: CountsKind) -> Result<Option<CountsVersion>, CatalogError> {
        let rows = self.database.rows(NEWEST, values![pipeline, kind.as_str()]).await;
        Ok(self.parse(&rows.map_err(|e| self.unavailable(e))?)?.map(|(newest, _)| newest))
    }

    async fn counts(
        &self,
        pipeline: &str,
        kind: CountsKind,
        version: i64,
    ) -> Result<Option<CountsVersion>, CatalogError> {
        let rows = self.database.rows(
            "SELECT version, target, state, shard FROM counts WHERE pipeline = $1 AND kind = $2 AND version = $3",
            values![pipeline, kind.as_str(), version],
        );
        Ok(self.parse(&rows.await.map_err(|e| self.unavailable(e))?)?.map(|(version, _)| version))
    }

    async fn counts_lines(&self, pipeline: &str, kind: CountsKind) -> Result<Vec<CountsLine>, CatalogError> {
        let line = |row: &Row| {
            Ok(CountsLine {
                version: row.get(0)?,
                target: row.get(1)?,
                shard: row.get(2)?,
                half_life_ngrams: row.get(3)?,
                n_ngrams: row.get(4)?,
                is_kept: row.get(5)?,
            })
        };
        self.select(
            "SELECT version, target, shard, half_life_ngrams, n_ngrams, state IS NOT NULL FROM counts
             WHERE pipeline = $1 AND kind = $2 ORDER BY version, target",
            vec![Value::from(pipeline), Value::from(kind.as_str())],
            line,
        )
        .await
    }
}
