//! Moving checkpoints without a publication.

use async_trait::async_trait;

use super::database::{Tx, values};
use super::{SqlCatalog, now_ms};
use crate::catalog::{CatalogError, GapReason, OffsetsCatalog};
use crate::checkpoint::Interval;
use crate::record::TopicPartition;

/// The end of the last window: windows of a partition follow one another.
const PUBLISHED_END: &str = r#"SELECT to_offset FROM windows WHERE pipeline = $1 AND topic = $2 AND "partition" = $3
    ORDER BY from_offset DESC LIMIT 1"#;

/// Compare-and-set of a checkpoint; tells whether it stood there and was ours.
async fn move_checkpoint(
    tx: &mut Tx,
    pipeline: &str,
    at: &TopicPartition,
    (from, to): (i64, i64),
    owner_epoch: i64,
) -> Result<bool, sqlx::Error> {
    let moved = tx.execute(
        r#"UPDATE checkpoints SET next_offset = $1, owner_epoch = owner_epoch + 1, updated_at_ms = $2
           WHERE pipeline = $3 AND topic = $4 AND "partition" = $5 AND next_offset = $6 AND owner_epoch = $7"#,
        values![to, now_ms(), pipeline, &*at.topic, at.partition, from, owner_epoch],
    );
    Ok(moved.await? == 1)
}

#[async_trait]
impl OffsetsCatalog for SqlCatalog {
    async fn skip(
        &self,
        pipeline: &str,
        at: &TopicPartition,
        interval: Interval,
        owner_epoch: i64,
        reason: GapReason,
    ) -> Result<(), CatalogError> {
        let mut tx = self.begin().await?;
        let skip = async {
            if !move_checkpoint(&mut tx, pipeline, at, (interval.from, interval.to), owner_epoch).await? {
                return Ok(false);
            }
            tx.execute(
                r#"INSERT INTO gaps (pipeline, topic, "partition", from_offset, to_offset, reason, noted_at_ms)
                   VALUES ($1, $2, $3, $4, $5, $6, $7)"#,
                values![pipeline, &*at.topic, at.partition, interval.from, interval.to, reason.as_str(), now_ms()],
            )
            .await?;
            Ok(true)
        };
        match skip.await.map_err(|e| self.unavailable(e))? {
            true => self.commit(tx).await,
            false => Err(CatalogError::Fenced { at: at.clone(), interval, owner_epoch }),
        }
    }

    async fn rewind(
        &self,
        pipeline: &str,
        at: &TopicPartition,
        interval: Interval,
        owner_epoch: i64,
    ) -> Result<(), CatalogError> {
        let Interval { from: to, to: from } = interval;
        let mut tx = self.begin().await?;
        let rewind = async {
            // The checkpoint first, as a publication does: from then on none can add a window.
            if !move_checkpoint(&mut tx, pipeline, at, (from, to), owner_epoch).await? {
                return Ok(Err(CatalogError::Fenced { at: at.clone(), interval, owner_epoch }));
            }
            let last = tx.row(PUBLISHED_END, values![pipeline, &*at.topic, at.partition]).await?;
            let end: Option<i64> = last.map(|row| row.get(0)).transpose()?;
            if let Some(published) = end.filter(|end| *end > to) {
                return Ok(Err(CatalogError::Decided { at: at.clone(), offset: to, published }));
            }
            tx.execute(
                r#"DELETE FROM gaps WHERE pipeline = $1 AND topic = $2 AND "partition" = $3 AND from_offset >= $4"#,
                values![pipeline, &*at.topic, at.partition, to],
            )
            .await?;
            tx.execute(
                r#"UPDATE gaps SET to_offset = $4
                   WHERE pipeline = $1 AND topic = $2 AND "partition" = $3 AND to_offset > $4"#,
                values![pipeline, &*at.topic, at.partition, to],
            )
            .await?;
            Ok(Ok(()))
        };
        // Dropping the transaction takes everything back.
        rewind.await.map_err(|e: sqlx::Error| self.unavailable(e))??;
        self.commit(tx).await
    }

    async fn note_topic(&self, pipeline: &str, topic: &str, topic_id: &str) -> Result<String, CatalogError> {
        let noted = self.database.row(
            "INSERT INTO topics (pipeline, topic, topic_id, noted_at_ms) VALUES ($1, $2, $3, $4)
             ON CONFLICT (pipeline, topic) DO UPDATE SET topic_id = topics.topic_id RETURNING topic_id",
            values![pipeline, topic, topic_id, now_ms()],
        );
        let noted = noted.await.and_then(|row| row.ok_or(sqlx::Error::RowNotFound)?.get(0));
        noted.map_err(|e| self.unavailable(e))
    }

    async fn topic_id(&self, pipeline: &str, topic: &str) -> Result<Option<String>, CatalogError> {
        let sql = "SELECT topic_id FROM topics WHERE pipeline = $1 AND topic = $2";
        Ok(self.select(sql, values![pipeline, topic], |row| row.get(0)).await?.pop())
    }

    async fn published_end(&self, pipeline: &str, at: &TopicPartition) -> Result<Option<i64>, CatalogError> {
        let ends = self.select(PUBLISHED_END, values![pipeline, &*at.topic, at.partition], |row| row.get(0));
        Ok(ends.await?.pop())
    }
}
