//! The publish transaction.

use sqlx::{Sqlite, Transaction};

use super::{SqliteCatalog, now_ms, to_json};
use crate::catalog::{Advance, CatalogError, PublishRequest};
use crate::manifest::ShardManifest;
use crate::record::TopicPartition;
use crate::window::{DeadLetter, WindowSummary};

impl SqliteCatalog {
    /// The outer error: a statement failed and nothing changed.
    pub(super) async fn try_publish(
        &self,
        request: &PublishRequest<'_>,
    ) -> Result<Result<Option<i64>, CatalogError>, sqlx::Error> {
        let manifest = request.manifest;
        let pipeline = &manifest.pipeline;
        let now = now_ms();
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        for advance in request.advances {
            let Advance { at, interval, owner_epoch } = advance;
            let moved = sqlx::query(
                r#"UPDATE checkpoints SET next_offset = ?, updated_at_ms = ?
                   WHERE pipeline = ? AND topic = ? AND "partition" = ? AND next_offset = ? AND owner_epoch = ?"#,
            )
            .bind(interval.to)
            .bind(now)
            .bind(pipeline)
            .bind(&*at.topic)
            .bind(at.partition)
            .bind(interval.from)
            .bind(owner_epoch)
            .execute(&mut *tx)
            .await?;
            if moved.rows_affected() != 1 {
                tx.rollback().await?;
                let (at, interval, owner_epoch) = (at.clone(), *interval, *owner_epoch);
                return Ok(Err(CatalogError::Fenced { at, interval, owner_epoch }));
            }
        }
        let sum = |count: fn(&WindowSummary) -> u64| manifest.windows.iter().map(count).sum::<u64>() as i64;
        let has_rows = manifest.path.is_some();
        let sequence: i64 = sqlx::query_scalar(
            "UPDATE pipelines SET
                 n_records = n_records + ?, n_selected = n_selected + ?, n_rejected = n_rejected + ?,
                 n_dead_letters = n_dead_letters + ?, n_windows = n_windows + ?, n_shards = n_shards + ?,
                 shard_bytes = shard_bytes + ?, manifest_sequence = manifest_sequence + ?
             WHERE name = ? RETURNING manifest_sequence",
        )
        .bind(sum(|w| w.n_records))
        .bind(sum(|w| w.n_selected))
        .bind(sum(|w| w.n_rejected))
        .bind(sum(|w| w.n_dead_letters))
        .bind(manifest.windows.len() as i64)
        .bind(i64::from(has_rows))
        .bind(manifest.bytes as i64)
        .bind(i64::from(has_rows))
        .bind(pipeline)
        .fetch_one(&mut *tx)
        .await?;
        let sequence = has_rows.then_some(sequence);
        let published = sqlx::query(
            "UPDATE shards SET state = 'published', n_rows = ?, bytes = ?, digest = ?, sequence = ?, manifest = ?,
                 published_at_ms = ? WHERE id = ? AND state = 'staged'",
        )
        .bind(manifest.rows as i64)
        .bind(manifest.bytes as i64)
        .bind(&manifest.digest)
        .bind(sequence)
        .bind(to_json(manifest))
        .bind(now)
        .bind(&manifest.shard)
        .execute(&mut *tx)
        .await?;
        if published.rows_affected() != 1 {
            tx.rollback().await?;
            return Ok(Err(CatalogError::NotStaged(manifest.shard.clone())));
        }
        insert_windows(&mut tx, manifest).await?;
        insert_dead_letters(&mut tx, pipeline, request.dead_letters).await?;
        for addition in request.counts {
            if let Err(error) = self.add_counts(&mut tx, manifest, addition).await? {
                tx.rollback().await?;
                return Ok(Err(error));
            }
        }
        if let Some(entry) = sequence.and_then(|sequence| manifest.entry(sequence)) {
            sqlx::query("INSERT INTO manifest_entries (pipeline, sequence, entry) VALUES (?, ?, ?)")
                .bind(pipeline)
                .bind(sequence)
                .bind(to_json(&entry))
                .execute(&mut *tx)
                .await?;
        }
        Ok(self.commit(tx).await.map(|()| sequence))
    }
}

async fn insert_windows(tx: &mut Transaction<'static, Sqlite>, manifest: &ShardManifest) -> Result<(), sqlx::Error> {
    for window in &manifest.windows {
        sqlx::query(
            r#"INSERT INTO windows (pipeline, topic, "partition", from_offset, to_offset, shard, model, closed_by,
                   n_records, n_selected, n_rejected, n_too_short, n_dead_letters, payload_bytes, threshold, kl_reduction,
                   random_kl_reduction, raw_version, diagnostics)
               VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"#,
        )
        .bind(&manifest.pipeline)
        .bind(&*window.at.topic)
        .bind(window.at.partition)
        .bind(window.interval.from)
        .bind(window.interval.to)
        .bind(&manifest.shard)
        .bind(manifest.model.as_str())
        .bind(window.closed_by.as_str())
        .bind(window.n_records as i64)
        .bind(window.n_selected as i64)
        .bind(window.n_rejected as i64)
        .bind(window.n_too_short as i64)
        .bind(window.n_dead_letters as i64)
        .bind(window.payload_bytes as i64)
        .bind(window.threshold)
        .bind(window.kl_reduction)
        .bind(window.random_kl_reduction)
        .bind(window.raw_version)
        .bind(window.diagnostics.as_ref().map(to_json))
        .execute(&mut **tx)
        .await?;
    }
    Ok(())
}

async fn insert_dead_letters(
    tx: &mut Transaction<'static, Sqlite>,
    pipeline: &str,
    dead_letters: &[(TopicPartition, DeadLetter)],
) -> Result<(), sqlx::Error> {
    for (at, letter) in dead_letters {
        sqlx::query(
            r#"INSERT INTO dead_letters (pipeline, topic, "partition", "offset", reason, detail, payload_bytes, payload_head,
                   record_timestamp_ms)
               VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"#,
        )
        .bind(pipeline)
        .bind(&*at.topic)
        .bind(at.partition)
        .bind(letter.offset)
        .bind(letter.reject.reason.as_str())
        .bind(&letter.reject.detail)
        .bind(letter.payload_bytes as i64)
        .bind(&letter.payload_head)
        .bind(letter.record_timestamp_ms)
        .execute(&mut **tx)
        .await?;
    }
    Ok(())
}
