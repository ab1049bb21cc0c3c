//! What people and trainers ask.

use async_trait::async_trait;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::SqliteCatalog;
use crate::catalog::{CatalogError, CatalogReader, Checkpoint, StoredDeadLetter, Totals};
use crate::checkpoint::Interval;
use crate::manifest::ShardManifest;
use crate::record::TopicPartition;
use crate::window::{CloseReason, WindowSummary};

#[async_trait]
impl CatalogReader for SqliteCatalog {
    async fn totals(&self, pipeline: &str) -> Result<Option<Totals>, CatalogError> {
        sqlx::query(
            "SELECT n_records, n_selected, n_rejected, n_dead_letters, n_windows, n_shards, shard_bytes
             FROM pipelines WHERE name = ?",
        )
        .bind(pipeline)
        .map(|row: SqliteRow| Totals {
            n_records: row.get(0),
            n_selected: row.get(1),
            n_rejected: row.get(2),
            n_dead_letters: row.get(3),
            n_windows: row.get(4),
            n_shards: row.get(5),
            shard_bytes: row.get(6),
        })
        .fetch_optional(&self.pool)
        .await
        .map_err(|e| self.unavailable(e))
    }

    async fn checkpoints(&self, pipeline: &str) -> Result<Vec<Checkpoint>, CatalogError> {
        sqlx::query(
            r#"SELECT topic, "partition", next_offset, owner_epoch, owner FROM checkpoints
               WHERE pipeline = ? ORDER BY topic, "partition""#,
        )
        .bind(pipeline)
        .map(|row: SqliteRow| Checkpoint {
            topic: row.get(0),
            partition: row.get(1),
            next_offset: row.get(2),
            owner_epoch: row.get(3),
            owner: row.get(4),
        })
        .fetch_all(&self.pool)
        .await
        .map_err(|e| self.unavailable(e))
    }

    async fn shards(&self, pipeline: &str) -> Result<Vec<(i64, ShardManifest)>, CatalogError> {
        let rows: Vec<(i64, String)> = sqlx::query_as(
            "SELECT sequence, manifest FROM shards
             WHERE pipeline = ? AND state = 'published' AND sequence IS NOT NULL ORDER BY sequence",
        )
        .bind(pipeline)
        .fetch_all(&self.pool)
        .await
        .map_err(|e| self.unavailable(e))?;
        let parse = |(sequence, json): (i64, String)| match serde_json::from_str(&json) {
            Ok(manifest) => Ok((sequence, manifest)),
            Err(e) => Err(self.damaged(format!("manifest of shard {sequence}: {e}"))),
        };
        rows.into_iter().map(parse).collect()
    }

    async fn windows(&self, pipeline: &str) -> Result<Vec<WindowSummary>, CatalogError> {
        let rows = sqlx::query(
            r#"SELECT topic, "partition", from_offset, to_offset, closed_by, n_records, n_selected, n_rejected, n_too_short,
                   n_dead_letters, payload_bytes, threshold, kl_reduction, random_kl_reduction, raw_version, diagnostics
               FROM windows WHERE pipeline = ? ORDER BY topic, "partition", from_offset"#,
        )
        .bind(pipeline)
        .fetch_all(&self.pool)
        .await
        .map_err(|e| self.unavailable(e))?;
        let count = |row: &SqliteRow, column: usize| row.get::<i64, _>(column) as u64;
        let window = |row: &SqliteRow| {
            let closed_by: String = row.get(4);
            let reason = CloseReason::ALL.into_iter().find(|reason| reason.as_str() == closed_by);
            let diagnostics: Option<String> = row.get(15);
            let diagnostics = diagnostics.map(|json| serde_json::from_str(&json)).transpose();
            Ok(WindowSummary {
                at: TopicPartition::new(row.get::<String, _>(0), row.get(1)),
                interval: Interval { from: row.get(2), to: row.get(3) },
                closed_by: reason.ok_or_else(|| self.damaged(format!("a window was closed by `{closed_by}`")))?,
                n_records: count(row, 5),
                n_selected: count(row, 6),
                n_rejected: count(row, 7),
                n_too_short: count(row, 8),
                n_dead_letters: count(row, 9),
                payload_bytes: count(row, 10),
                threshold: row.get(11),
                kl_reduction: row.get(12),
                random_kl_reduction: row.get(13),
                raw_version: row.get(14),
                diagnostics: diagnostics.map_err(|e| self.damaged(format!("diagnostics of a window: {e}")))?,
            })
        };
        rows.iter().map(window).collect()
    }

    async fn manifest_lines(&self, pipeline: &str, after_sequence: i64) -> Result<Vec<String>, CatalogError> {
        sqlx::query_scalar("SELECT entry FROM manifest_entries WHERE pipeline = ? AND sequence > ? ORDER BY sequence")
            .bind(pipeline)
            .bind(after_sequence)
            .fetch_all(&self.pool)
            .await
            .map_err(|e| self.unavailable(e))
    }

    async fn dead_letters(&self, pipeline: &str, limit: i64) -> Result<Vec<StoredDeadLetter>, CatalogError> {
        sqlx::query(
            r#"SELECT topic, "partition", "offset", reason, detail, payload_bytes FROM dead_letters
               WHERE pipeline = ? ORDER BY topic, "partition", "offset" LIMIT ?"#,
        )
        .bind(pipeline)
        .bind(limit)
        .map(|row: SqliteRow| StoredDeadLetter {
            topic: row.get(0),
            partition: row.get(1),
            offset: row.get(2),
            reason: row.get(3),
            detail: row.get(4),
            payload_bytes: row.get(5),
        })
        .fetch_all(&self.pool)
        .await
        .map_err(|e| self.unavailable(e))
    }
}
