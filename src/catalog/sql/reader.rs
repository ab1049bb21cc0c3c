//! What people and trainers ask.

use async_trait::async_trait;

use super::SqlCatalog;
use super::database::{Row, Value, values};
use crate::catalog::{CatalogError, CatalogReader, Checkpoint, Gap, GapReason, PendingForward, Totals};
use crate::checkpoint::Interval;
use crate::manifest::{DeadLetterFile, ShardManifest};
use crate::record::TopicPartition;
use crate::score::{ExpectedLossVersion, SelectedVersion};
use crate::window::{CloseReason, WindowSummary};

impl SqlCatalog {
    /// All rows of an answer.
    pub(super) async fn select<T>(
        &self,
        sql: &'static str,
        parameters: Vec<Value>,
        of_row: impl Fn(&Row) -> Result<T, sqlx::Error> + Send,
    ) -> Result<Vec<T>, CatalogError> {
        let rows = self.database.rows(sql, parameters).await;
        rows.and_then(|rows| rows.iter().map(of_row).collect()).map_err(|e| self.unavailable(e))
    }
}

#[async_trait]
impl CatalogReader for SqlCatalog {
    async fn totals(&self, pipeline: &str) -> Result<Option<Totals>, CatalogError> {
        let totals = |row: &Row| {
            Ok(Totals {
                n_records: row.get(0)?,
                n_selected: row.get(1)?,
                n_rejected: row.get(2)?,
                n_dead_letters: row.get(3)?,
                n_windows: row.get(4)?,
                n_shards: row.get(5)?,
                shard_bytes: row.get(6)?,
            })
        };
        let sql = "SELECT n_records, n_selected, n_rejected, n_dead_letters, n_windows, n_shards, shard_bytes
                   FROM pipelines WHERE name = $1";
        Ok(self.select(sql, values![pipeline], totals).await?.pop())
    }

    async fn checkpoints(&self, pipeline: &str) -> Result<Vec<Checkpoint>, CatalogError> {
        let checkpoint = |row: &Row| {
            Ok(Checkpoint {
                topic: row.get(0)?,
                partition: row.get(1)?,
                next_offset: row.get(2)?,
                owner_epoch: row.get(3)?,
                owner: row.get(4)?,
            })
        };
        self.select(
            r#"SELECT topic, "partition", next_offset, owner_epoch, owner FROM checkpoints
               WHERE pipeline = $1 ORDER BY topic, "partition""#,
            values![pipeline],
            checkpoint,
        )
        .await
    }

    async fn gaps(&self, pipeline: &str) -> Result<Vec<Gap>, CatalogError> {
        let gap = |row: &Row| {
            let named: String = row.get(4)?;
            let Some(reason) = GapReason::ALL.into_iter().find(|reason| reason.as_str() == named) else {
                return Ok(Err(format!("a gap is there for the reason `{named}`")));
            };
            Ok(Ok(Gap {
                at: TopicPartition::new(row.get::<String>(0)?, row.get(1)?),
                interval: Interval { from: row.get(2)?, to: row.get(3)? },
                reason,
                noted_at_ms: row.get(5)?,
            }))
        };
        let gaps = self.select(
            r#"SELECT topic, "partition", from_offset, to_offset, reason, noted_at_ms FROM gaps
               WHERE pipeline = $1 ORDER BY topic, "partition", from_offset"#,
            values![pipeline],
            gap,
        );
        gaps.await?.into_iter().map(|gap| gap.map_err(|problem| self.damaged(problem))).collect()
    }

    async fn shards(&self, pipeline: &str) -> Result<Vec<(i64, ShardManifest)>, CatalogError> {
        let rows = self.select(
            "SELECT sequence, manifest FROM shards
             WHERE pipeline = $1 AND state = 'published' AND sequence IS NOT NULL ORDER BY sequence",
            values![pipeline],
            |row| Ok((row.get(0)?, row.get(1)?)),
        );
        let parse = |(sequence, json): (i64, String)| match serde_json::from_str(&json) {
            Ok(manifest) => Ok((sequence, manifest)),
            Err(e) => Err(self.damaged(format!("manifest of shard {sequence}: {e}"))),
        };
        rows.await?.into_iter().map(parse).collect()
    }

    async fn windows(&self, pipeline: &str) -> Result<Vec<WindowSummary>, CatalogError> {
        let window = |row: &Row| {
            let (closed_by, diagnostics): (String, Option<String>) = (row.get(4)?, row.get(15)?);
            let reason = CloseReason::ALL.into_iter().find(|reason| reason.as_str() == closed_by);
            let Some(reason) = reason else { return Ok(Err(format!("a window was closed by `{closed_by}`"))) };
            let diagnostics = match of_json(diagnostics, "diagnostics") {
                Ok(diagnostics) => diagnostics,
                Err(problem) => return Ok(Err(problem)),
            };
            let (turns, targets) = match (of_json(row.get(18)?, "turns"), of_json(row.get(19)?, "targets")) {
                (Ok(turns), Ok(targets)) => (turns.unwrap_or_default(), targets.unwrap_or_default()),
                (Err(problem), _) | (_, Err(problem)) => return Ok(Err(problem)),
            };
            let spread = match of_json(row.get(24)?, "spread") {
                Ok(spread) => spread,
                Err(problem) => return Ok(Err(problem)),
            };
            let coverage = match of_json(row.get(25)?, "coverage") {
                Ok(coverage) => coverage,
                Err(problem) => return Ok(Err(problem)),
            };
            let sensitivity = match of_json(row.get(26)?, "sensitivity") {
                Ok(sensitivity) => sensitivity,
                Err(problem) => return Ok(Err(problem)),
            };
            let (selected_version, selected_share): (Option<i64>, Option<f64>) = (row.get(16)?, row.get(17)?);
            let (expected_version, coefficient): (Option<i64>, Option<f64>) = (row.get(20)?, row.get(21)?);
            Ok(Ok(WindowSummary {
                at: TopicPartition::new(row.get::<String>(0)?, row.get(1)?),
                interval: Interval { from: row.get(2)?, to: row.get(3)? },
                closed_by: reason,
                n_records: row.get(5)?,
                n_selected: row.get(6)?,
                n_rejected: row.get(7)?,
                n_too_short: row.get(8)?,
                n_filtered: row.get::<Option<i64>>(23)?.map(|n| n as u64),
                n_dead_letters: row.get(9)?,
                payload_bytes: row.get(10)?,
                threshold: row.get(11)?,
                kl_reduction: row.get(12)?,
                random_kl_reduction: row.get(13)?,
                raw_version: row.get(14)?,
                against_selected: selected_version
                    .zip(selected_share)
                    .map(|(version, share)| SelectedVersion { version, share }),
                expected_loss: expected_version
                    .zip(coefficient)
                    .map(|(version, coefficient)| ExpectedLossVersion { version, coefficient }),
                quota_version: row.get(22)?,
                diagnostics,
                turns,
                targets,
                spread,
                coverage,
                sensitivity,
            }))
        };
        let windows = self.select(
            r#"SELECT topic, "partition", from_offset, to_offset, closed_by, n_records, n_selected, n_rejected, n_too_short,
                   n_dead_letters, payload_bytes, threshold, kl_reduction, random_kl_reduction, raw_version, diagnostics,
                   selected_version, selected_share, turns, targets, expected_loss_version, expected_loss_coefficient,
                   quota_version, n_filtered, spread, coverage, sensitivity
               FROM windows WHERE pipeline = $1 ORDER BY topic, "partition", from_offset"#,
            values![pipeline],
            window,
        );
        windows.await?.into_iter().map(|window| window.map_err(|problem| self.damaged(problem))).collect()
    }

    async fn manifest_lines(&self, pipeline: &str, after_sequence: i64) -> Result<Vec<String>, CatalogError> {
        self.select(
            "SELECT entry FROM manifest_entries WHERE pipeline = $1 AND sequence > $2 ORDER BY sequence",
            values![pipeline, after_sequence],
            |row| row.get(0),
        )
        .await
    }

    async fn dead_letter_files(&self, pipeline: &str) -> Result<Vec<DeadLetterFile>, CatalogError> {
        let files = self.select(
            "SELECT dead_letters FROM shards WHERE pipeline = $1 AND dead_letters IS NOT NULL
             ORDER BY published_at_ms, id",
            values![pipeline],
            |row| row.get::<String>(0),
        );
        files.await?.iter().map(|json| self.dead_letter_file(json)).collect()
    }

    async fn pending_forwards(&self, pipeline: &str) -> Result<Vec<PendingForward>, CatalogError> {
        let rows = self.select(
            "SELECT id, forward_to, dead_letters, published_at_ms FROM shards
             WHERE pipeline = $1 AND forward_to IS NOT NULL ORDER BY published_at_ms, id",
            values![pipeline],
            |row| Ok((row.get(0)?, row.get(1)?, row.get::<String>(2)?, row.get(3)?)),
        );
        let pending = |(shard, topic, json, published_at_ms): (_, _, String, _)| {
            Ok(PendingForward { shard, topic, file: self.dead_letter_file(&json)?, published_at_ms })
        };
        rows.await?.into_iter().map(pending).collect()
    }
}

/// A column of a window that holds JSON, or nothing.
fn of_json<T: serde::de::DeserializeOwned>(json: Option<String>, what: &str) -> Result<Option<T>, String> {
    json.map(|json| serde_json::from_str(&json)).transpose().map_err(|e| format!("{what} of a window: {e}"))
}

impl SqlCatalog {
    fn dead_letter_file(&self, json: &str) -> Result<DeadLetterFile, CatalogError> {
        serde_json::from_str(json).map_err(|e| self.damaged(format!("a file of dead letters: {e}")))
    }
}
