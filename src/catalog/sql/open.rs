//! Connecting, and the schema: migrations that are only ever added to.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use sqlx::migrate::{Migrate, Migration, MigrationType, Migrator};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, PgConnection, SqlSafeStr};

use super::SqlCatalog;
use super::database::{Database, silence, values};
use crate::catalog::CatalogError;
use crate::config::CatalogUrl;

type Migrations = [(i64, &'static str, &'static str)];

/// (version, description, SQL).
const SQLITE: &Migrations = &[
    (1, "catalog", include_str!("../../../migrations/sqlite/0001_catalog.sql")),
    (2, "diagnostics and counts", include_str!("../../../migrations/sqlite/0002_diagnostics_and_counts.sql")),
    (3, "orphans", include_str!("../../../migrations/sqlite/0003_orphans.sql")),
    (4, "dead letter files", include_str!("../../../migrations/sqlite/0004_dead_letter_files.sql")),
    (5, "gaps", include_str!("../../../migrations/sqlite/0005_gaps.sql")),
    (6, "topics", include_str!("../../../migrations/sqlite/0006_topics.sql")),
    (7, "against selected", include_str!("../../../migrations/sqlite/0007_against_selected.sql")),
    (8, "divided windows", include_str!("../../../migrations/sqlite/0008_divided_windows.sql")),
    (9, "counts by target", include_str!("../../../migrations/sqlite/0009_counts_by_target.sql")),
    (10, "feedback", include_str!("../../../migrations/sqlite/0010_feedback.sql")),
    (11, "filtered documents", include_str!("../../../migrations/sqlite/0011_filtered_documents.sql")),
    (12, "spread", include_str!("../../../migrations/sqlite/0012_spread.sql")),
    (13, "coverage", include_str!("../../../migrations/sqlite/0013_coverage.sql")),
    (14, "sensitivity", include_str!("../../../migrations/sqlite/0014_sensitivity.sql")),
    (15, "clusters", include_str!("../../../migrations/sqlite/0015_clusters.sql")),
    (16, "edges", include_str!("../../../migrations/sqlite/0016_edges.sql")),
];
const POSTGRES: &Migrations = &[
    (1, "catalog", include_str!("../../../migrations/postgres/0001_catalog.sql")),
    (2, "diagnostics and counts", include_str!("../../../migrations/postgres/0002_diagnostics_and_counts.sql")),
    (3, "orphans", include_str!("../../../migrations/postgres/0003_orphans.sql")),
    (4, "dead letter files", include_str!("../../../migrations/postgres/0004_dead_letter_files.sql")),
    (5, "gaps", include_str!("../../../migrations/postgres/0005_gaps.sql")),
    (6, "topics", include_str!("../../../migrations/postgres/0006_topics.sql")),
    (7, "against selected", include_str!("../../../migrations/postgres/0007_against_selected.sql")),
    (8, "divided windows", include_str!("../../../migrations/postgres/0008_divided_windows.sql")),
    (9, "counts by target", include_str!("../../../migrations/postgres/0009_counts_by_target.sql")),
    (10, "feedback", include_str!("../../../migrations/postgres/0010_feedback.sql")),
    (11, "filtered documents", include_str!("../../../migrations/postgres/0011_filtered_documents.sql")),
    (12, "spread", include_str!("../../../migrations/postgres/0012_spread.sql")),
    (13, "coverage", include_str!("../../../migrations/postgres/0013_coverage.sql")),
    (14, "sensitivity", include_str!("../../../migrations/postgres/0014_sensitivity.sql")),
    (15, "clusters", include_str!("../../../migrations/postgres/0015_clusters.sql")),
    (16, "edges", include_str!("../../../migrations/postgres/0016_edges.sql")),
];

const MAX_CONNECTIONS: u32 = 4;
/// For a free connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// For a sign of life of a connection that nobody works on.
const PING_TIMEOUT: Duration = Duration::from_secs(3);
/// Of a statement, and of a transaction that nobody works on: a worker that was stopped must not hold locks for ever.
const POSTGRES_TIMEOUTS: [(&str, &str); 4] = [
    ("statement_timeout", "30s"),
    ("lock_timeout", "20s"),
    ("idle_in_transaction_session_timeout", "30s"),
    ("application_name", "winnowd"),
];

/// How a catalog is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// The daemon. A SQLite file is created, and every other writer kept out.
    Write,
    /// People: looks while the daemon may be writing.
    Read,
}

impl SqlCatalog {
    pub async fn open(url: &CatalogUrl, access: Access) -> Result<Self, CatalogError> {
        match url {
            CatalogUrl::Sqlite(file) => open_sqlite(file, access, url.to_string()).await,
            CatalogUrl::Postgres(postgres) => open_postgres(postgres, access, url.to_string()).await,
        }
    }

    /// Ends all connections.
    pub async fn close(&self) {
        match &self.database {
            Database::Sqlite(pool) => pool.close().await,
            Database::Postgres(pool) => pool.close().await,
        }
    }

    fn migrations(&self) -> &'static Migrations {
        match self.database {
            Database::Sqlite(_) => SQLITE,
            Database::Postgres(_) => POSTGRES,
        }
    }

    /// Applies the first migrations only, as builds before the others did.
    #[cfg(test)]
    pub(super) async fn migrate_up_to(&self, version: i64) {
        let mut migrator = self.migrator();
        migrator.migrations.to_mut().retain(|migration| migration.version <= version);
        let migrated = match &self.database {
            Database::Sqlite(pool) => migrator.run(pool).await,
            Database::Postgres(pool) => migrator.run(pool).await,
        };
        migrated.expect("they apply");
    }

    fn migrator(&self) -> Migrator {
        let migration = |&(version, description, sql): &(i64, &'static str, &'static str)| {
            let sql = sql.into_sql_str();
            Migration::new(version, description.into(), MigrationType::Simple, sql, false)
        };
        Migrator::with_migrations(self.migrations().iter().map(migration).collect())
    }

    /// Applies what is missing of the schema and gives the number of migrations applied. Whoever else migrates the same
    /// Postgres database waits (an advisory lock).
    pub async fn migrate(&self) -> Result<usize, CatalogError> {
        let before = self.pending_migrations().await?;
        let migrated = match &self.database {
            Database::Sqlite(pool) => self.migrator().run(pool).await,
            Database::Postgres(pool) => self.migrator().run(pool).await,
        };
        migrated.map_err(|e| self.schema(e.to_string()))?;
        Ok(before)
    }

    /// How many migrations have not been applied. A schema newer than this build is an error.
    pub async fn pending_migrations(&self) -> Result<usize, CatalogError> {
        let table = match self.database {
            Database::Sqlite(_) => "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = $1",
            Database::Postgres(_) => {
                "SELECT 1 FROM pg_catalog.pg_tables WHERE schemaname = current_schema() AND tablename = $1"
            }
        };
        let (migrator, migrations) = (self.migrator(), self.migrations());
        let table = self.database.row(table, values![&*migrator.table_name]).await;
        if table.map_err(|e| self.unavailable(e))?.is_none() {
            return Ok(migrations.len());
        }
        let applied = match &self.database {
            Database::Sqlite(pool) => {
                let mut connection = pool.acquire().await.map_err(|e| self.unavailable(e))?;
                connection.list_applied_migrations(&migrator.table_name).await
            }
            Database::Postgres(pool) => {
                let mut connection = pool.acquire().await.map_err(|e| self.unavailable(e))?;
                connection.list_applied_migrations(&migrator.table_name).await
            }
        };
        let applied = applied.map_err(|e| self.schema(e.to_string()))?;
        if let Some(unknown) = applied.iter().find(|a| !migrator.version_exists(a.version)) {
            let newest = migrations.last().map_or(0, |m| m.0);
            return Err(self.schema(format!(
                "its schema has version {}, this build knows versions up to {newest}: run the newer winnowd",
                unknown.version
            )));
        }
        Ok(migrations.len().saturating_sub(applied.len()))
    }

    /// Refuses a schema that is not exactly this build's.
    pub async fn check_schema(&self) -> Result<(), CatalogError> {
        match self.pending_migrations().await? {
            0 => Ok(()),
            n => Err(self.schema(format!("{n} migrations are not applied: run `winnowd migrate`"))),
        }
    }
}

async fn open_sqlite(file: &Path, access: Access, name: String) -> Result<SqlCatalog, CatalogError> {
    let io_error = |source: std::io::Error| CatalogError::Unavailable { catalog: name.clone(), source: source.into() };
    let lock = match access {
        Access::Read => None,
        Access::Write => {
            if let Some(folder) = file.parent() {
                std::fs::create_dir_all(folder).map_err(io_error)?;
            }
            let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let magic = rustix::fs::statfs(folder).map_err(|e| io_error(e.into()))?.f_type;
            if let Some(kind) = network_file_system(magic as u32) {
                return Err(CatalogError::NetworkFile { catalog: name, kind });
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
    let options = SqliteConnectOptions::new().filename(file).foreign_keys(true).busy_timeout(Duration::from_secs(10));
    let options = match access {
        Access::Write => {
            let durable = options.journal_mode(SqliteJournalMode::Wal).synchronous(SqliteSynchronous::Full);
            durable.create_if_missing(true)
        }
        Access::Read => options.read_only(true),
    };
    let pool = SqlitePoolOptions::new().max_connections(MAX_CONNECTIONS).acquire_timeout(ACQUIRE_TIMEOUT);
    match pool.connect_with(options).await {
        Ok(pool) => Ok(SqlCatalog { database: Database::Sqlite(pool), name, _lock: lock }),
        Err(source) => Err(CatalogError::Unavailable { catalog: name, source }),
    }
}

/// The name of a network file system by the number that Linux gives its kind (`statfs(2)`). Only its low 32 bits are used.
fn network_file_system(magic: u32) -> Option<&'static str> {
    const KINDS: [(u32, &str); 8] = [
        (0x6969, "NFS"),
        (0x517B, "SMB"),
        (0xFE53_4D42, "SMB"),
        (0xFF53_4D42, "CIFS"),
        (0x5346_414F, "AFS"),
        (0x00C3_6400, "Ceph"),
        (0x0BD0_0BD0, "Lustre"),
        (0x0102_1997, "9P"),
    ];
    KINDS.iter().find(|(number, _)| *number == magic).map(|(_, kind)| *kind)
}

async fn open_postgres(url: &url::Url, access: Access, name: String) -> Result<SqlCatalog, CatalogError> {
    let connect = async {
        let options = PgConnectOptions::from_url(url)?.options(POSTGRES_TIMEOUTS);
        let options = match access {
            Access::Write => options,
            Access::Read => options.options([("default_transaction_read_only", "on")]),
        };
        let pool = PgPoolOptions::new().max_connections(MAX_CONNECTIONS).acquire_timeout(ACQUIRE_TIMEOUT);
        // The pool itself would wait for a sign of life for ever, and one after the other of its connections be lost.
        let pool = pool.test_before_acquire(false).before_acquire(|connection, _| Box::pin(is_alive(connection)));
        let pool = pool.after_release(|connection, _| Box::pin(is_alive(connection)));
        let pool = pool.connect_lazy_with(options);
        Database::Postgres(pool.clone()).row("SELECT 1", Vec::new()).await?;
        Ok(pool)
    };
    match connect.await {
        Ok(pool) => Ok(SqlCatalog { database: Database::Postgres(pool), name, _lock: None }),
        Err(source) => Err(CatalogError::Unavailable { catalog: name, source }),
    }
}

/// An error makes the pool forget the connection.
async fn is_alive(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let ping = tokio::time::timeout(PING_TIMEOUT, connection.ping()).await;
    ping.unwrap_or_else(|_| Err(silence(PING_TIMEOUT))).map(|()| true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_file_systems_are_known() {
        // Numbers of statfs(2): NFS, and ext4, tmpfs, overlayfs.
        assert_eq!(network_file_system(0x6969), Some("NFS"));
        assert_eq!([0xEF53, 0x0102_1994, 0x794C_7630].map(network_file_system), [None; 3]);
    }
}
