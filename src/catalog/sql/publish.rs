//! The publish transaction.

use super::database::{Tx, values};
use super::{SqlCatalog, now_ms, to_json};
use crate::catalog::{Advance, CatalogError, PublishRequest};
use crate::crash;
use crate::manifest::ShardManifest;
use crate::window::WindowSummary;

impl SqlCatalog {
    /// The outer error: a statement failed and nothing changed.
    ///
    /// Locks are taken in one order by everybody: checkpoints by partition, then the pipeline's row, which lets one
    /// publication of a pipeline after the other pass, so that sequences have no gaps and counts no lost additions.
    pub(super) async fn try_publish(
        &self,
        request: &PublishRequest<'_>,
    ) -> Result<Result<Option<i64>, CatalogError>, sqlx::Error> {
        let manifest = request.manifest;
        let pipeline = manifest.pipeline.as_str();
        let now = now_ms();
        let mut tx = self.database.begin().await?;
        if let Err(fenced) = move_checkpoints(&mut tx, pipeline, request.advances).await? {
            tx.rollback().await?;
            return Ok(Err(fenced));
        }
        crash::point("commit.checkpoints_moved");
        let sum = |count: fn(&WindowSummary) -> u64| manifest.windows.iter().map(count).sum::<u64>();
        let has_rows = manifest.path.is_some();
        let row = tx.row(
            "UPDATE pipelines SET
                 n_records = n_records + $1, n_selected = n_selected + $2, n_rejected = n_rejected + $3,
                 n_dead_letters = n_dead_letters + $4, n_windows = n_windows + $5, n_shards = n_shards + $6,
                 shard_bytes = shard_bytes + $7, manifest_sequence = manifest_sequence + $6
             WHERE name = $8 RETURNING manifest_sequence",
            values![
                sum(|w| w.n_records),
                sum(|w| w.n_selected),
                sum(|w| w.n_rejected),
                sum(|w| w.n_dead_letters),
                manifest.windows.len(),
                has_rows,
                manifest.bytes,
                pipeline,
            ],
        );
        let sequence: i64 = row.await?.ok_or(sqlx::Error::RowNotFound)?.get(0)?;
        let sequence = has_rows.then_some(sequence);
        // A worker that did not hear that it had staged a shard may have staged it again after it was abandoned.
        let published = tx.execute(
            "UPDATE shards SET state = 'published', n_rows = $1, bytes = $2, digest = $3, sequence = $4, manifest = $5,
                 published_at_ms = $6, dead_letters = $8, forward_to = $9
             WHERE id = $7 AND state = 'staged' AND NOT EXISTS (SELECT 1 FROM orphans WHERE shard = $7)",
            values![
                manifest.rows,
                manifest.bytes,
                manifest.digest.as_deref(),
                sequence,
                to_json(manifest),
                now,
                manifest.shard.as_str(),
                manifest.dead_letters.as_ref().map(to_json),
                request.forward_to.filter(|_| manifest.dead_letters.is_some()),
            ],
        );
        if published.await? != 1 {
            tx.rollback().await?;
            return Ok(Err(CatalogError::NotStaged(manifest.shard.clone())));
        }
        insert_windows(&mut tx, manifest).await?;
        for addition in request.counts {
            if let Err(error) = self.add_counts(&mut tx, manifest, addition).await? {
                tx.rollback().await?;
                return Ok(Err(error));
            }
        }
        if let Some(addition) = &request.feedback
            && let Err(error) = self.add_feedback(&mut tx, manifest, addition).await?
        {
            tx.rollback().await?;
            return Ok(Err(error));
        }
        if let Some(addition) = &request.clusters
            && let Err(error) = self.add_clusters(&mut tx, manifest, addition).await?
        {
            tx.rollback().await?;
            return Ok(Err(error));
        }
        if let Some(addition) = &request.edges
            && let Err(error) = self.add_edges(&mut tx, manifest, addition).await?
        {
            tx.rollback().await?;
            return Ok(Err(error));
        }
        if let Some(entry) = sequence.and_then(|sequence| manifest.entry(sequence)) {
            tx.execute(
                "INSERT INTO manifest_entries (pipeline, sequence, entry) VALUES ($1, $2, $3)",
                values![pipeline, sequence, to_json(&entry)],
            )
            .await?;
        }
        crash::point("commit.before");
        let committed = self.commit(tx).await.map(|()| sequence);
        crash::point("commit.after");
        Ok(committed)
    }
}

/// Moves each checkpoint from the beginning of its interval to the end, if it stands there and its epoch is ours; after an inner
/// error the transaction is to be rolled back.
pub(super) async fn move_checkpoints(
    tx: &mut Tx,
    pipeline: &str,
    advances: &[Advance],
) -> Result<Result<(), CatalogError>, sqlx::Error> {
    let mut advances: Vec<&Advance> = advances.iter().collect();
    advances.sort_by_key(|advance| &advance.at);
    for Advance { at, interval, owner_epoch } in advances {
        let moved = tx.execute(
            r#"UPDATE checkpoints SET next_offset = $1, updated_at_ms = $2
               WHERE pipeline = $3 AND topic = $4 AND "partition" = $5 AND next_offset = $6 AND owner_epoch = $7"#,
            values![interval.to, now_ms(), pipeline, &*at.topic, at.partition, interval.from, *owner_epoch],
        );
        if moved.await? != 1 {
            let (at, interval, owner_epoch) = (at.clone(), *interval, *owner_epoch);
            return Ok(Err(CatalogError::Fenced { at, interval, owner_epoch }));
        }
    }
    Ok(Ok(()))
}

async fn insert_windows(tx: &mut Tx, manifest: &ShardManifest) -> Result<(), sqlx::Error> {
    for window in &manifest.windows {
        tx.execute(
            r#"INSERT INTO windows (pipeline, topic, "partition", from_offset, to_offset, shard, model, closed_by,
                   n_records, n_selected, n_rejected, n_too_short, n_dead_letters, payload_bytes, threshold, kl_reduction,
                   random_kl_reduction, raw_version, diagnostics, selected_version, selected_share, turns, targets,
                   expected_loss_version, expected_loss_coefficient, quota_version, n_filtered, spread, coverage,
                   sensitivity)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22,
                   $23, $24, $25, $26, $27, $28, $29, $30)"#,
            values![
                manifest.pipeline.as_str(),
                &*window.at.topic,
                window.at.partition,
                window.interval.from,
                window.interval.to,
                manifest.shard.as_str(),
                manifest.model.as_str(),
                window.closed_by.as_str(),
                window.n_records,
                window.n_selected,
                window.n_rejected,
                window.n_too_short,
                window.n_dead_letters,
                window.payload_bytes,
                window.threshold,
                window.kl_reduction,
                window.random_kl_reduction,
                window.raw_version,
                window.diagnostics.as_ref().map(to_json),
                window.against_selected.map(|selected| selected.version),
                window.against_selected.map(|selected| selected.share),
                Some(&window.turns).filter(|turns| !turns.is_empty()).map(to_json),
                Some(&window.targets).filter(|targets| !targets.is_empty()).map(to_json),
                window.expected_loss.map(|expected| expected.version),
                window.expected_loss.map(|expected| expected.coefficient),
                window.quota_version,
                window.n_filtered.map(|n| n as i64),
                window.spread.as_ref().map(to_json),
                window.coverage.as_ref().map(to_json),
                window.sensitivity.as_ref().map(to_json),
            ],
        )
        .await?;
    }
    Ok(())
}
