//! Counts that decay and grow with publications.

use async_trait::async_trait;

use super::database::{Database, Row, Tx, Value, values};
use super::{SqlCatalog, now_ms};
use crate::catalog::{
    ByTarget, CatalogError, CountsAddition, CountsCatalog, CountsKind, CountsLine, CountsOf, CountsVersion,
    NewestCounts,
};
use crate::manifest::ShardManifest;
use crate::score::{DecayedCounts, NgramCounts};

const NEWEST: &str = "SELECT version, target, state, shard FROM counts
    WHERE pipeline = $1 AND kind = $2
        AND version = (SELECT MAX(version) FROM counts WHERE pipeline = $1 AND kind = $2)";
const OF_VERSION: &str =
    "SELECT version, target, state, shard FROM counts WHERE pipeline = $1 AND kind = $2 AND version = $3";
/// Newest first, with what they are of: a state begins with that, in fewer than [`DecayedCounts::HEAD_BYTES`].
const HEADS: &str = "SELECT version, target, substr(state, 1, 256) FROM counts
    WHERE pipeline = $1 AND kind = $2 AND version > $3 AND version <= $4 AND state IS NOT NULL ORDER BY version DESC";
/// While workers of two models take turns, the newest version of either is rarely farther back.
const NEAR: i64 = 64;

/// Where counts are read: within a transaction, or as they are now.
enum Source<'a> {
    Tx(&'a mut Tx),
    Database(&'a Database),
}

impl Source<'_> {
    async fn rows(&mut self, sql: &'static str, parameters: Vec<Value>) -> Result<Vec<Row>, sqlx::Error> {
        match self {
            Source::Tx(tx) => tx.rows(sql, parameters).await,
            Source::Database(database) => database.rows(sql, parameters).await,
        }
    }
}

/// What there is of a kind.
#[derive(Default)]
struct Newest {
    /// Of whatever it is; `None`: there are none at all.
    version: Option<i64>,
    /// The newest that is of what was asked for, and whether something was added to it.
    ours: Option<(CountsVersion, bool)>,
}

impl SqlCatalog {
    /// Makes the next version of one kind of counts, within the transaction of a publication: all targets move together, so that one
    /// number names what each of them was. The outer error: a statement failed.
    pub(super) async fn add_counts(
        &self,
        tx: &mut Tx,
        manifest: &ShardManifest,
        addition: &CountsAddition<'_>,
    ) -> Result<Result<(), CatalogError>, sqlx::Error> {
        let (pipeline, kind) = (manifest.pipeline.as_str(), addition.kind);
        let of = addition.counts.keys().map(|target| (target.clone(), addition.featuriser)).collect();
        let (newest, ours) = match self.newest_of(Source::Tx(tx), pipeline, kind, &of).await {
            Ok(Newest { version: Some(newest), ours: Some((ours, _)) }) => (newest, ours),
            // All that there is belongs to other models, and whoever publishes has none of its own any more.
            Ok(Newest { version: Some(_), ours: None }) => return Ok(Ok(())),
            Ok(Newest { version: None, .. }) => {
                let problem = format!("pipeline `{pipeline}` has no {} counts to add to", kind.as_str());
                return Ok(Err(self.damaged(problem)));
            }
            Err(error) => return Ok(Err(error)),
        };
        let (version, mut counts) = (newest + 1, ours.counts);
        let mut bytes = 0;
        for (target, counts) in &mut counts {
            let added = &addition.counts[target];
            counts.add(added, addition.half_life_ngrams);
            let state = counts.to_bytes();
            bytes += state.len();
            let added = Added { shard: &manifest.shard, counts: added, half_life_ngrams: addition.half_life_ngrams };
            insert(tx, pipeline, kind, version, target, Some(added), &state).await?;
        }
        let n_kept = (addition.history_bytes / bytes as u64).max(1) as i64;
        self.forget_counts(tx, pipeline, kind, version - n_kept, &of).await
    }

    /// Forgets all versions up to this one, but of others than `of` the newest that is among them: their workers, or a rollback, go on
    /// with it. The outer error: a statement failed.
    async fn forget_counts(
        &self,
        tx: &mut Tx,
        pipeline: &str,
        kind: CountsKind,
        up_to: i64,
        of: &CountsOf,
    ) -> Result<Result<(), CatalogError>, sqlx::Error> {
        if up_to < 0 {
            return Ok(Ok(()));
        }
        let heads = match self.heads(&mut Source::Tx(tx), pipeline, kind, (-1, up_to)).await {
            Ok(heads) => heads,
            Err(error) => return Ok(Err(error)),
        };
        let (mut known, mut kept) = (vec![of.clone()], Vec::new());
        for (version, head) in heads {
            if !known.contains(&head) {
                known.push(head);
                kept.push(version);
            }
        }
        let mut below = up_to + 1;
        for version in kept.into_iter().chain([-1]) {
            tx.execute(
                "UPDATE counts SET state = NULL
                 WHERE pipeline = $1 AND kind = $2 AND version > $3 AND version < $4 AND state IS NOT NULL",
                values![pipeline, kind.as_str(), version, below],
            )
            .await?;
            below = version;
        }
        Ok(Ok(()))
    }

    /// The newest version of all, and the newest that is of this. Of a pipeline whose workers have one model that is the same.
    async fn newest_of(
        &self,
        mut source: Source<'_>,
        pipeline: &str,
        kind: CountsKind,
        of: &CountsOf,
    ) -> Result<Newest, CatalogError> {
        let rows = source.rows(NEWEST, values![pipeline, kind.as_str()]).await;
        let Some((newest, was_added_to)) = self.parse(&rows.map_err(|e| self.unavailable(e))?)? else {
            return Ok(Newest::default());
        };
        let version = newest.version;
        if what_of(&newest.counts) == *of {
            return Ok(Newest { version: Some(version), ours: Some((newest, was_added_to)) });
        }
        let near = (version - NEAR).max(-1);
        for between in [(near, version - 1), (-1, near)] {
            let heads = self.heads(&mut source, pipeline, kind, between).await?;
            if let Some((ours, _)) = heads.iter().find(|(_, head)| head == of) {
                let rows = source.rows(OF_VERSION, values![pipeline, kind.as_str(), *ours]).await;
                let ours = self.parse(&rows.map_err(|e| self.unavailable(e))?)?;
                return Ok(Newest { version: Some(version), ours });
            }
        }
        Ok(Newest { version: Some(version), ours: None })
    }

    /// What the versions are of that are kept, above the first and up to the second, newest first.
    async fn heads(
        &self,
        source: &mut Source<'_>,
        pipeline: &str,
        kind: CountsKind,
        (above, up_to): (i64, i64),
    ) -> Result<Vec<(i64, CountsOf)>, CatalogError> {
        let rows = source.rows(HEADS, values![pipeline, kind.as_str(), above, up_to]).await;
        let mut heads: Vec<(i64, CountsOf)> = Vec::new();
        for row in rows.map_err(|e| self.unavailable(e))? {
            let columns = || Ok((row.get::<i64>(0)?, row.get::<String>(1)?, row.get::<Vec<u8>>(2)?));
            let (version, target, head) = columns().map_err(|e: sqlx::Error| self.unavailable(e))?;
            let featuriser = DecayedCounts::featuriser_of_head(&head);
            let featuriser = featuriser.map_err(|e| self.damaged(format!("counts of version {version}: {e}")))?;
            match heads.last_mut() {
                Some((last, of)) if *last == version => drop(of.insert(target, featuriser)),
                _ => heads.push((version, [(target, featuriser)].into())),
            }
        }
        Ok(heads)
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

fn what_of(counts: &ByTarget<DecayedCounts>) -> CountsOf {
    counts.iter().map(|(target, counts)| (target.clone(), *counts.featuriser())).collect()
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
        // As a publication does: one after the other.
        let locked = tx.execute("UPDATE pipelines SET name = name WHERE name = $1", values![pipeline]).await;
        locked.map_err(|e| self.unavailable(e))?;
        let Newest { version, ours } = self.newest_of(Source::Tx(&mut tx), pipeline, kind, &what_of(initial)).await?;
        if let Some((ours, was_added_to)) = ours
            && (was_added_to || ours.counts == *initial)
        {
            return Ok(ours);
        }
        let next = version.map_or(0, |version| version + 1);
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

    async fn newest_counts_of(
        &self,
        pipeline: &str,
        kind: CountsKind,
        of: &CountsOf,
    ) -> Result<NewestCounts, CatalogError> {
        let Newest { version, ours } = self.newest_of(Source::Database(&self.database), pipeline, kind, of).await?;
        let ours = ours.map(|(ours, _)| ours);
        let of_others = version.filter(|newest| ours.as_ref().is_none_or(|ours| ours.version < *newest));
        Ok(NewestCounts { ours, of_others })
    }

    async fn counts(
        &self,
        pipeline: &str,
        kind: CountsKind,
        version: i64,
    ) -> Result<Option<CountsVersion>, CatalogError> {
        let rows = self.database.rows(OF_VERSION, values![pipeline, kind.as_str(), version]);
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
