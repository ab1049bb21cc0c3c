//! The catalog in a SQLite file, for one worker: write-ahead log, every commit synced to disk.

mod counts;
mod publish;
mod reader;

use std::fs::File;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use sqlx::migrate::{Migrate, Migration, MigrationType, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Row, SqlSafeStr, Sqlite, SqlitePool, Transaction};

use super::*;

/// Only ever added to: (version, description, SQL).
const MIGRATIONS: &[(i64, &str, &str)] = &[
    (1, "catalog", include_str!("../../migrations/sqlite/0001_catalog.sql")),
    (2, "diagnostics and counts", include_str!("../../migrations/sqlite/0002_diagnostics_and_counts.sql")),
];

pub struct SqliteCatalog {
    pool: SqlitePool,
    name: String,
    /// Held by the process that writes; the system frees it however the process ends.
    _lock: Option<File>,
}

/// How a catalog file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// The daemon: creates the file, keeps every other writer out.
    Exclusive,
    /// People: looks at an existing file while the daemon may be writing it.
    Read,
}

impl SqliteCatalog {
    pub async fn open(file: &Path, access: Access) -> Result<Self, CatalogError> {
        let name = format!("sqlite://{}", file.display());
        let io_error =
            |source: std::io::Error| CatalogError::Unavailable { catalog: name.clone(), source: source.into() };
        let lock = match access {
            Access::Read => None,
            Access::Exclusive => {
                if let Some(folder) = file.parent() {
                    std::fs::create_dir_all(folder).map_err(io_error)?;
                }
                let mut lock_file = file.as_os_str().to_owned();
                lock_file.push(".lock");
                let lock = File::options().create(true).append(true).open(lock_file).map_err(io_error)?;
                match lock.try_lock() {
                    Ok(()) => Some(lock),
                    Err(std::fs::TryLockError::WouldBlock) => return Err(CatalogError::InUse(name)),
                    Err(std::fs::TryLockError::Error(e)) => return Err(io_error(e)),
                }
            }
        };
        let options =
            SqliteConnectOptions::new().filename(file).foreign_keys(true).busy_timeout(Duration::from_secs(10));
        let options = match access {
            Access::Exclusive => {
                let durable = options.journal_mode(SqliteJournalMode::Wal).synchronous(SqliteSynchronous::Full);
                durable.create_if_missing(true)
            }
            Access::Read => options.read_only(true),
        };
        let connect = SqlitePoolOptions::new().max_connections(4).acquire_timeout(Duration::from_secs(15));
        let pool = connect.connect_with(options).await;
        let pool = pool.map_err(|source| CatalogError::Unavailable { catalog: name.clone(), source })?;
        Ok(SqliteCatalog { pool, name, _lock: lock })
    }

    /// Applies what is missing of the schema and gives the number of migrations applied.
    pub async fn migrate(&self) -> Result<usize, CatalogError> {
        let before = self.pending_migrations().await?;
        migrator().run(&self.pool).await.map_err(|e| self.schema(e.to_string()))?;
        Ok(before)
    }

    /// How many migrations have not been applied. A schema newer than this build is an error.
    pub async fn pending_migrations(&self) -> Result<usize, CatalogError> {
        let mut connection = self.pool.acquire().await.map_err(|e| self.unavailable(e))?;
        let migrator = migrator();
        let schema = |e: sqlx::migrate::MigrateError| self.schema(e.to_string());
        let table: Option<i64> = sqlx::query_scalar("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?")
            .bind(&*migrator.table_name)
            .fetch_optional(&mut *connection)
            .await
            .map_err(|e| self.unavailable(e))?;
        if table.is_none() {
            return Ok(MIGRATIONS.len());
        }
        let applied = connection.list_applied_migrations(&migrator.table_name).await.map_err(schema)?;
        if let Some(unknown) = applied.iter().find(|a| !migrator.version_exists(a.version)) {
            let newest = MIGRATIONS.last().map_or(0, |m| m.0);
            return Err(self.schema(format!(
                "its schema has version {}, this build knows versions up to {newest}: run the newer winnowd",
                unknown.version
            )));
        }
        Ok(MIGRATIONS.len().saturating_sub(applied.len()))
    }

    /// Refuses a schema that is not exactly this build's.
    pub async fn check_schema(&self) -> Result<(), CatalogError> {
        match self.pending_migrations().await? {
            0 => Ok(()),
            n => Err(self.schema(format!("{n} migrations are not applied: run `winnowd migrate`"))),
        }
    }

    fn unavailable(&self, source: sqlx::Error) -> CatalogError {
        CatalogError::Unavailable { catalog: self.name.clone(), source }
    }

    fn schema(&self, problem: String) -> CatalogError {
        CatalogError::Schema { catalog: self.name.clone(), problem }
    }

    fn damaged(&self, problem: String) -> CatalogError {
        CatalogError::Damaged { catalog: self.name.clone(), problem }
    }

    /// A transaction that holds the write lock from its beginning, so that it never fails half-way for another writer.
    async fn begin(&self) -> Result<Transaction<'static, Sqlite>, CatalogError> {
        self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(|e| self.unavailable(e))
    }

    async fn commit(&self, transaction: Transaction<'static, Sqlite>) -> Result<(), CatalogError> {
        let unknown = |source| CatalogError::CommitUnknown { catalog: self.name.clone(), source };
        transaction.commit().await.map_err(unknown)
    }
}

#[async_trait]
impl Catalog for SqliteCatalog {
    async fn register(&self, pipeline: &str, model: &ModelId, model_bytes: &[u8]) -> Result<(), CatalogError> {
        let mut tx = self.begin().await?;
        let now = now_ms();
        let statements = async {
            sqlx::query("INSERT INTO pipelines (name, created_at_ms) VALUES (?, ?) ON CONFLICT DO NOTHING")
                .bind(pipeline)
                .bind(now)
                .execute(&mut *tx)
                .await?;
            sqlx::query("INSERT INTO models (digest, bytes, created_at_ms) VALUES (?, ?, ?) ON CONFLICT DO NOTHING")
                .bind(model.as_str())
                .bind(model_bytes)
                .bind(now)
                .execute(&mut *tx)
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
        let mut claims = Vec::with_capacity(partitions.len());
        for at in partitions {
            let row = sqlx::query(
                r#"INSERT INTO checkpoints (pipeline, topic, "partition", owner_epoch, owner, claimed_at_ms, updated_at_ms)
                   VALUES (?, ?, ?, 1, ?, ?, ?)
                   ON CONFLICT (pipeline, topic, "partition") DO UPDATE SET owner_epoch = owner_epoch + 1,
                       owner = excluded.owner, claimed_at_ms = excluded.claimed_at_ms
                   RETURNING owner_epoch, next_offset"#,
            )
            .bind(pipeline)
            .bind(&*at.topic)
            .bind(at.partition)
            .bind(owner)
            .bind(now)
            .bind(now)
            .fetch_one(&mut *tx)
            .await
            .map_err(|e| self.unavailable(e))?;
            claims.push(Claim { at: at.clone(), owner_epoch: row.get(0), next_offset: row.get(1) });
        }
        self.commit(tx).await?;
        Ok(claims)
    }

    async fn start(
        &self,
        pipeline: &str,
        at: &TopicPartition,
        owner_epoch: i64,
        offset: i64,
    ) -> Result<i64, CatalogError> {
        let stored: Option<i64> = sqlx::query_scalar(
            r#"UPDATE checkpoints SET next_offset = COALESCE(next_offset, ?), updated_at_ms = ?
               WHERE pipeline = ? AND topic = ? AND "partition" = ? AND owner_epoch = ? RETURNING next_offset"#,
        )
        .bind(offset)
        .bind(now_ms())
        .bind(pipeline)
        .bind(&*at.topic)
        .bind(at.partition)
        .bind(owner_epoch)
        .fetch_optional(&self.pool)
        .await
        .map_err(|e| self.unavailable(e))?;
        let interval = Interval { from: offset, to: offset };
        stored.ok_or_else(|| CatalogError::Fenced { at: at.clone(), interval, owner_epoch })
    }

    async fn stage(&self, pipeline: &str, shard: &str, path: Option<&str>) -> Result<(), CatalogError> {
        sqlx::query(
            "INSERT INTO shards (id, pipeline, state, path, staged_at_ms) VALUES (?, ?, 'staged', ?, ?)
             ON CONFLICT DO NOTHING",
        )
        .bind(shard)
        .bind(pipeline)
        .bind(path)
        .bind(now_ms())
        .execute(&self.pool)
        .await
        .map_err(|e| self.unavailable(e))?;
        Ok(())
    }

    async fn publish(&self, request: &PublishRequest<'_>) -> Result<Option<i64>, CatalogError> {
        self.try_publish(request).await.map_err(|e| self.unavailable(e))?
    }

    async fn shard_state(&self, shard: &str) -> Result<Option<ShardState>, CatalogError> {
        let state: Option<String> = sqlx::query_scalar("SELECT state FROM shards WHERE id = ?")
            .bind(shard)
            .fetch_optional(&self.pool)
            .await
            .map_err(|e| self.unavailable(e))?;
        match state.as_deref() {
            None => Ok(None),
            Some("staged") => Ok(Some(ShardState::Staged)),
            Some("published") => Ok(Some(ShardState::Published)),
            Some(other) => Err(self.damaged(format!("shard `{shard}` is in state `{other}`"))),
        }
    }
}

fn migrator() -> Migrator {
    let migration = |&(version, description, sql): &(i64, &'static str, &'static str)| {
        let sql = sql.into_sql_str();
        Migration::new(version, description.into(), MigrationType::Simple, sql, false)
    };
    Migrator::with_migrations(MIGRATIONS.iter().map(migration).collect())
}

fn to_json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("manifests have string keys and finite numbers")
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_millis() as i64)
}

#[cfg(test)]
impl SqliteCatalog {
    pub(super) async fn pretend_newer_schema(&self) {
        sqlx::query("INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (99, 'x', 1, x'00', 0)")
            .execute(&self.pool)
            .await
            .unwrap();
    }
}
