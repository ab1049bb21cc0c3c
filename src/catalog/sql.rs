//! The catalog in SQL, written once for two databases: a SQLite file for one worker, Postgres for any number.

mod clusters;
mod counts;
mod database;
mod edges;
mod feedback;
mod offsets;
mod open;
mod publish;
mod reader;
mod replay;

use std::fs::File;
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;

use super::*;
use crate::crash;
#[cfg(test)]
use database::Value;
use database::{Database, Tx, values};
pub use open::Access;

pub struct SqlCatalog {
    database: Database,
    /// Its URL, without a password.
    name: String,
    /// Of a SQLite file, held by the process that writes; the system frees it however the process ends.
    _lock: Option<File>,
}

impl SqlCatalog {
    fn unavailable(&self, source: sqlx::Error) -> CatalogError {
        CatalogError::Unavailable { catalog: self.name.clone(), source }
    }

    fn schema(&self, problem: String) -> CatalogError {
        CatalogError::Schema { catalog: self.name.clone(), problem }
    }

    fn damaged(&self, problem: String) -> CatalogError {
        CatalogError::Damaged { catalog: self.name.clone(), problem }
    }

    async fn begin(&self) -> Result<Tx, CatalogError> {
        self.database.begin().await.map_err(|e| self.unavailable(e))
    }

    async fn commit(&self, tx: Tx) -> Result<(), CatalogError> {
        tx.commit().await.map_err(|source| match is_rolled_back(&source) {
            true => self.unavailable(source),
            false => CatalogError::CommitUnknown { catalog: self.name.clone(), source },
        })
    }
}

/// Whether the database itself says that a COMMIT did not happen: a conflict with another transaction, or a broken
/// constraint. After anything else, a connection that was cut above all, it may have happened.
fn is_rolled_back(error: &sqlx::Error) -> bool {
    let class = |code: &str| code.len() == 5 && (code.starts_with("40") || code.starts_with("23"));
    error.as_database_error().and_then(|e| e.code()).is_some_and(|code| class(&code))
}

#[async_trait]
impl Catalog for SqlCatalog {
    async fn register(&self, pipeline: &str, model: &ModelId, model_bytes: &[u8]) -> Result<(), CatalogError> {
        let mut tx = self.begin().await?;
        let now = now_ms();
        let statements = async {
            tx.execute(
                "INSERT INTO pipelines (name, created_at_ms) VALUES ($1, $2) ON CONFLICT DO NOTHING",
                values![pipeline, now],
            )
            .await?;
            tx.execute(
                "INSERT INTO models (digest, bytes, created_at_ms) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
                values![model.as_str(), model_bytes, now],
            )
            .await
        };
        statements.await.map_err(|e| self.unavailable(e))?;
        self.commit(tx).await
    }

    async fn claim(
        &self,
        pipeline: &str,
        partitions: &[TopicPartition],
        owner: &str,
    ) -> Result<Vec<Claim>, CatalogError> {
        let mut tx = self.begin().await?;
        let now = now_ms();
        // Everybody locks checkpoints in the same order, so that nobody waits for each other.
        let mut in_order: Vec<usize> = (0..partitions.len()).collect();
        in_order.sort_by_key(|&i| &partitions[i]);
        let mut claims = Vec::with_capacity(partitions.len());
        for i in in_order {
            let at = &partitions[i];
            let row = tx
                .row(
                    r#"INSERT INTO checkpoints
                           (pipeline, topic, "partition", owner_epoch, owner, claimed_at_ms, updated_at_ms)
                       VALUES ($1, $2, $3, 1, $4, $5, $5)
                       ON CONFLICT (pipeline, topic, "partition") DO UPDATE SET
                           owner_epoch = checkpoints.owner_epoch + 1, owner = excluded.owner,
                           claimed_at_ms = excluded.claimed_at_ms
                       RETURNING owner_epoch, next_offset"#,
                    values![pipeline, &*at.topic, at.partition, owner, now],
                )
                .await;
            let claim = row.and_then(|row| {
                let row = row.ok_or(sqlx::Error::RowNotFound)?;
                Ok(Claim { at: at.clone(), owner_epoch: row.get(0)?, next_offset: row.get(1)? })
            });
            claims.push((i, claim.map_err(|e| self.unavailable(e))?));
        }
        crash::point("claim.before_commit");
        self.commit(tx).await?;
        crash::point("claim.committed");
        claims.sort_by_key(|(i, _)| *i);
        Ok(claims.into_iter().map(|(_, claim)| claim).collect())
    }

    async fn start(
        &self,
        pipeline: &str,
        at: &TopicPartition,
        owner_epoch: i64,
        offset: i64,
    ) -> Result<i64, CatalogError> {
        let stored = self.database.row(
            r#"UPDATE checkpoints SET next_offset = COALESCE(next_offset, $1), updated_at_ms = $2
               WHERE pipeline = $3 AND topic = $4 AND "partition" = $5 AND owner_epoch = $6 RETURNING next_offset"#,
            values![offset, now_ms(), pipeline, &*at.topic, at.partition, owner_epoch],
        );
        match stored.await.and_then(|row| row.map(|row| row.get(0)).transpose()) {
            Ok(Some(offset)) => {
                crash::point("start.stored");
                Ok(offset)
            }
            Ok(None) => {
                let interval = Interval { from: offset, to: offset };
                Err(CatalogError::Fenced { at: at.clone(), interval, owner_epoch })
            }
            Err(e) => Err(self.unavailable(e)),
        }
    }

    async fn stage(&self, pipeline: &str, shard: &str, path: Option<&str>) -> Result<(), CatalogError> {
        let staged = self.database.execute(
            "INSERT INTO shards (id, pipeline, state, path, staged_at_ms) VALUES ($1, $2, 'staged', $3, $4)
             ON CONFLICT DO NOTHING",
            values![shard, pipeline, path, now_ms()],
        );
        staged.await.map_err(|e| self.unavailable(e))
    }

    async fn publish(&self, request: &PublishRequest<'_>) -> Result<Option<i64>, CatalogError> {
        self.try_publish(request).await.map_err(|e| self.unavailable(e))?
    }

    async fn shard_state(&self, shard: &str) -> Result<Option<ShardState>, CatalogError> {
        let row = self.database.row("SELECT state FROM shards WHERE id = $1", values![shard]).await;
        let state: Option<String> =
            row.and_then(|row| row.map(|row| row.get(0)).transpose()).map_err(|e| self.unavailable(e))?;
        match state.as_deref() {
            None => Ok(None),
            Some("staged") => Ok(Some(ShardState::Staged)),
            Some("published") => Ok(Some(ShardState::Published)),
            Some(other) => Err(self.damaged(format!("shard `{shard}` is in state `{other}`"))),
        }
    }

    async fn forwarded(&self, shard: &str) -> Result<(), CatalogError> {
        let done = self.database.execute("UPDATE shards SET forward_to = NULL WHERE id = $1", values![shard]);
        done.await.map_err(|e| self.unavailable(e))
    }

    async fn abandon(&self, pipeline: &str, staged_before_ms: i64) -> Result<Vec<Orphan>, CatalogError> {
        let mut tx = self.begin().await?;
        let taken = async {
            // Publications of the pipeline wait: they update its row, too.
            tx.execute("UPDATE pipelines SET name = name WHERE name = $1", values![pipeline]).await?;
            tx.execute(ABANDON[0], values![now_ms(), pipeline, staged_before_ms]).await?;
            tx.execute(ABANDON[1], values![pipeline]).await
        };
        taken.await.map_err(|e| self.unavailable(e))?;
        self.commit(tx).await?;
        self.select(
            "SELECT shard, path, noted_at_ms FROM orphans WHERE pipeline = $1 ORDER BY shard",
            values![pipeline],
            |row| Ok(Orphan { shard: row.get(0)?, path: row.get(1)?, noted_at_ms: row.get(2)? }),
        )
        .await
    }

    async fn forget_orphans(&self, pipeline: &str, noted_before_ms: i64) -> Result<(), CatalogError> {
        let forgotten = self.database.execute(
            "DELETE FROM orphans WHERE pipeline = $1 AND noted_at_ms < $2",
            values![pipeline, noted_before_ms],
        );
        forgotten.await.map_err(|e| self.unavailable(e))
    }
}

/// [`Catalog::abandon`]. The pipeline's row is locked before, and every publication updates it before it changes the state
/// of its shard: none commits in between.
const ABANDON: [&str; 2] = [
    "INSERT INTO orphans (shard, pipeline, path, noted_at_ms)
     SELECT id, pipeline, path, $1 FROM shards WHERE pipeline = $2 AND state = 'staged' AND staged_at_ms < $3
     ON CONFLICT DO NOTHING",
    "DELETE FROM shards WHERE state = 'staged' AND id IN (SELECT shard FROM orphans WHERE pipeline = $1)",
];

fn to_json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("manifests have string keys and finite numbers")
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_millis() as i64)
}

#[cfg(test)]
impl SqlCatalog {
    /// A window, its shard and two versions of counts of what was selected, the first of them forgotten, as they stood in the
    /// schema of version 7.
    pub(super) async fn fill_schema_of_version_7(&self, pipeline: &str, model: &ModelId, state: &[u8]) {
        self.migrate_up_to(7).await;
        self.register(pipeline, model, b"model").await.unwrap();
        self.stage(pipeline, "s", Some("shards/s.parquet")).await.unwrap();
        let window = self.database.execute(
            r#"INSERT INTO windows (pipeline, topic, "partition", from_offset, to_offset, shard, model, closed_by, n_records,
                   n_selected, n_rejected, n_too_short, n_dead_letters, payload_bytes, selected_version, selected_share)
               VALUES ($1, 'docs', 1, 0, 10, 's', $2, 'idle', 10, 3, 7, 0, 0, 5, 1, 0.5)"#,
            values![pipeline, model.as_str()],
        );
        window.await.unwrap();
        for (version, shard, n_ngrams, state) in [(0, None, 0, None), (1, Some("s"), 9, Some(state))] {
            let counts = self.database.execute(
                "INSERT INTO counts (pipeline, kind, version, shard, n_ngrams, state, created_at_ms)
                 VALUES ($1, 'selected', $2, $3, $4, $5, 0)",
                vec![
                    Value::from(pipeline),
                    Value::Integer(Some(version)),
                    Value::Text(shard.map(str::to_owned)),
                    Value::Integer(Some(n_ngrams)),
                    Value::Bytes(state.map(<[u8]>::to_vec)),
                ],
            );
            counts.await.unwrap();
        }
    }

    pub(super) async fn pretend_newer_schema(&self) {
        let unknown = self.database.execute(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
             VALUES (99, 'x', TRUE, $1, 0)",
            values![&[0u8][..]],
        );
        unknown.await.unwrap();
    }
}
