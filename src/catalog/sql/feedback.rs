//! Feedback: reports in, documents and versions with publications.
//!
//! All of it is changed under the lock of the pipeline's row, as publications are, so that no report and no publication loses what
//! the other has written.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use async_trait::async_trait;

use super::database::{Row, Tx, Value, values};
use super::publish::move_checkpoints;
use super::{SqlCatalog, now_ms, to_json};
use crate::catalog::{
    CatalogError, FeedbackAddition, FeedbackCatalog, FeedbackRequest, FeedbackTaken, FeedbackVersion,
};
use crate::crash;
use crate::features::{BucketList, Featuriser};
use crate::feedback::{
    DocumentFacts, Facts, FeedbackSettings, FeedbackState, FeedbackSummary, KnownDocument, RankKey, RankProgress,
    Reported, document_key, run_key,
};
use crate::manifest::ShardManifest;
use crate::score::ExpectedLoss;

/// Documents of one statement.
const TOGETHER: usize = 100;
/// Ranks of all runs that are remembered, those heard of last.
const MAX_RANKS: u64 = 4_096;

const NEWEST: &str = "SELECT version, expected, quotas FROM feedback_versions
     WHERE pipeline = $1 ORDER BY version DESC LIMIT 1";
const STATE: &str = "SELECT state, predictor, version, n_documents FROM feedback WHERE pipeline = $1";
/// Publications with rows, of one model alone, after which nobody with another one is taken to be at work.
const ALONE: usize = 16;
/// Those of them that came after the newest version.
const LAST_SHARDS: &str = "SELECT manifest FROM shards
     WHERE pipeline = $1 AND sequence > (SELECT manifest_sequence - $2 FROM pipelines WHERE name = $1)
         AND published_at_ms >= (
             SELECT created_at_ms FROM feedback_versions WHERE pipeline = $1 ORDER BY version DESC LIMIT 1)";
const LOCK: &str = "UPDATE pipelines SET name = name WHERE name = $1";

/// `$first, …` for as many parameters.
fn parameters(first: usize, n: usize) -> String {
    (first..first + n).map(|i| format!("${i}")).collect::<Vec<_>>().join(", ")
}

static FIND: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT document, epoch, source, stratum, inclusion_probability, text_bytes, ngrams, run, step, by_several_runs
         FROM feedback_documents WHERE pipeline = $1 AND document IN ({})",
        parameters(2, TOGETHER)
    )
});
static REPORTED: LazyLock<String> = LazyLock::new(|| {
    let documents = parameters(5, TOGETHER);
    format!(
        "UPDATE feedback_documents SET run = $2, step = $3, by_several_runs = $4 WHERE pipeline = $1 AND document IN ({documents})"
    )
});
static INSERT_ONE: LazyLock<String> = LazyLock::new(|| insert_documents(1));
static INSERT_MANY: LazyLock<String> = LazyLock::new(|| insert_documents(TOGETHER));

/// What was reported of a document that is published again stays noted.
fn insert_documents(n: usize) -> String {
    let rows: Vec<String> = (0..n).map(|i| format!("($1, $2, {})", parameters(3 + 7 * i, 7))).collect();
    format!(
        "INSERT INTO feedback_documents
             (pipeline, epoch, document, number, source, stratum, inclusion_probability, text_bytes, ngrams)
         VALUES {}
         ON CONFLICT (pipeline, document) DO UPDATE SET epoch = excluded.epoch, number = excluded.number,
             source = excluded.source, stratum = excluded.stratum,
             inclusion_probability = excluded.inclusion_probability, text_bytes = excluded.text_bytes,
             ngrams = excluded.ngrams",
        rows.join(", ")
    )
}

/// The state of a pipeline, as it stands in its row.
struct Stored {
    state: FeedbackState,
    version: i64,
    n_documents: i64,
}

impl SqlCatalog {
    fn stored(&self, row: &Row) -> Result<Stored, CatalogError> {
        let columns = || Ok((row.get::<String>(0)?, row.get::<Vec<u8>>(1)?, row.get(2)?, row.get(3)?));
        let (json, predictor, version, n_documents) = columns().map_err(|e: sqlx::Error| self.unavailable(e))?;
        let state = FeedbackState::from_parts(&json, &predictor);
        let state = state.map_err(|e| self.damaged(format!("feedback of version {version}: {e}")))?;
        Ok(Stored { state, version, n_documents })
    }

    fn feedback_version_of(&self, row: &Row) -> Result<Option<FeedbackVersion>, CatalogError> {
        let columns = || Ok((row.get::<i64>(0)?, row.get::<Option<Vec<u8>>>(1)?, row.get::<String>(2)?));
        let (version, expected, quotas) = columns().map_err(|e: sqlx::Error| self.unavailable(e))?;
        let Some(expected) = expected else { return Ok(None) };
        let damaged = |e: String| self.damaged(format!("feedback of version {version}: {e}"));
        let expected = ExpectedLoss::from_bytes(&expected).map_err(|e| damaged(e.to_string()))?;
        let quotas = serde_json::from_str(&quotas).map_err(|e| damaged(e.to_string()))?;
        Ok(Some(FeedbackVersion { version, expected, quotas }))
    }

    /// Part of a publication. The outer error: a statement failed.
    pub(super) async fn add_feedback(
        &self,
        tx: &mut Tx,
        manifest: &ShardManifest,
        addition: &FeedbackAddition<'_>,
    ) -> Result<Result<(), CatalogError>, sqlx::Error> {
        let pipeline = manifest.pipeline.as_str();
        let Some(row) = tx.row(STATE, values![pipeline]).await? else {
            return Ok(Err(self.damaged(format!("pipeline `{pipeline}` has no feedback to add to"))));
        };
        let mut stored = match self.stored(&row) {
            Ok(stored) => stored,
            Err(error) => return Ok(Err(error)),
        };
        if *stored.state.featuriser() != addition.featuriser {
            match self.is_alone(tx, manifest).await? {
                Ok(true) => {}
                Ok(false) => return Ok(Ok(())),
                Err(error) => return Ok(Err(error)),
            }
            // A worker with another model began after this one had begun, and is gone: without this nobody would begin again.
            stored.state = stored.state.for_featuriser(addition.featuriser, &addition.settings);
            stored.version += 1;
            insert_version(tx, pipeline, &stored, Some(&manifest.shard)).await?;
            write(tx, pipeline, &stored).await?;
        }
        add_documents(tx, pipeline, &mut stored, addition).await?;
        if stored.state.has_turn() {
            stored.state.end_turn(&addition.settings);
            stored.version += 1;
            let bytes = insert_version(tx, pipeline, &stored, Some(&manifest.shard)).await?;
            let n_kept = (addition.history_bytes / bytes as u64).max(1) as i64;
            tx.execute(
                "UPDATE feedback_versions SET expected = NULL
                 WHERE pipeline = $1 AND version <= $2 AND expected IS NOT NULL",
                values![pipeline, stored.version - n_kept],
            )
            .await?;
            write(tx, pipeline, &stored).await?;
        } else if !addition.documents.is_empty() {
            let sql = "UPDATE feedback SET n_documents = $2 WHERE pipeline = $1";
            tx.execute(sql, values![pipeline, stored.n_documents]).await?;
        }
        Ok(Ok(()))
    }

    /// Whether all that was published lately is of the model of this publication. The outer error: a statement failed.
    async fn is_alone(&self, tx: &mut Tx, manifest: &ShardManifest) -> Result<Result<bool, CatalogError>, sqlx::Error> {
        let rows = tx.rows(LAST_SHARDS, values![manifest.pipeline.as_str(), ALONE]).await?;
        for row in &rows {
            match serde_json::from_str::<ShardManifest>(&row.get::<String>(0)?) {
                Ok(other) if other.model == manifest.model => {}
                Ok(_) => return Ok(Ok(false)),
                Err(e) => return Ok(Err(self.damaged(format!("manifest of one of the last shards: {e}")))),
            }
        }
        Ok(Ok(rows.len() == ALONE))
    }

    /// The outer error: a statement failed and nothing changed.
    async fn try_take(
        &self,
        request: &FeedbackRequest<'_>,
    ) -> Result<Result<FeedbackTaken, CatalogError>, sqlx::Error> {
        let FeedbackRequest { pipeline, advances, reports, n_bad_reports, settings } = *request;
        let mut tx = self.database.begin().await?;
        if let Err(fenced) = move_checkpoints(&mut tx, pipeline, advances).await? {
            tx.rollback().await?;
            return Ok(Err(fenced));
        }
        crash::point("feedback.checkpoints_moved");
        tx.execute(LOCK, values![pipeline]).await?;
        let Some(row) = tx.row(STATE, values![pipeline]).await? else {
            return Ok(Err(self.damaged(format!("pipeline `{pipeline}` has not begun to take feedback"))));
        };
        let mut stored = match self.stored(&row) {
            Ok(stored) => stored,
            Err(error) => return Ok(Err(error)),
        };
        let mut facts = match self.facts(&mut tx, request).await? {
            Ok(facts) => facts,
            Err(error) => return Ok(Err(error)),
        };
        let known_ranks = facts.ranks.len();
        let outcomes = stored.state.take(reports, n_bad_reports, &mut facts, &settings);
        write(&mut tx, pipeline, &stored).await?;
        note_reported(&mut tx, pipeline, &facts).await?;
        note_ranks(&mut tx, pipeline, &facts, known_ranks < facts.ranks.len()).await?;
        crash::point("feedback.before_commit");
        let committed = self.commit(tx).await;
        crash::point("feedback.committed");
        Ok(committed.map(|()| FeedbackTaken { outcomes, summary: stored.state.summary() }))
    }

    /// What is known of everything that the reports name.
    async fn facts(
        &self,
        tx: &mut Tx,
        request: &FeedbackRequest<'_>,
    ) -> Result<Result<Facts, CatalogError>, sqlx::Error> {
        let mut facts = Facts::default();
        let ids = request.reports.iter().flat_map(|report| &report.losses).map(|loss| document_key(&loss.id));
        let mut keys: Vec<i64> = ids.collect();
        keys.sort_unstable();
        keys.dedup();
        for some in keys.chunks(TOGETHER) {
            let parameters = [Value::from(request.pipeline)].into_iter().chain(padded(some)).collect();
            for row in tx.rows(&FIND, parameters).await? {
                let (key, document) = known_document(&row)?;
                facts.documents.insert(key, document);
            }
        }
        let mut ranks: Vec<RankKey> = request.reports.iter().map(|r| (run_key(&r.run_id), r.rank)).collect();
        ranks.sort_unstable();
        ranks.dedup();
        for (run, rank) in ranks {
            let sql = "SELECT newest_step, seen FROM feedback_ranks WHERE pipeline = $1 AND run = $2 AND rank = $3";
            let Some(row) = tx.row(sql, values![request.pipeline, run, u64::from(rank)]).await? else { continue };
            match RankProgress::from_parts(row.get(0)?, &row.get::<Vec<u8>>(1)?) {
                Some(progress) => drop(facts.ranks.insert((run, rank), progress)),
                None => return Ok(Err(self.damaged(format!("progress of rank {rank} of a run")))),
            }
        }
        Ok(Ok(facts))
    }
}

fn known_document(row: &Row) -> Result<(i64, KnownDocument), sqlx::Error> {
    let by_several_runs = row.get(9)?;
    let last = row.get::<Option<i64>>(7)?.zip(row.get::<Option<u64>>(8)?);
    let reported = last.map(|(run, step)| Reported { run, step, by_several_runs });
    let facts = DocumentFacts {
        source: row.get(2)?,
        stratum: row.get::<i64>(3)? as u8,
        inclusion_probability: row.get(4)?,
        text_bytes: row.get(5)?,
        ngrams: BucketList::of_two_bytes_each(row.get(6)?),
    };
    Ok((row.get(0)?, KnownDocument { facts, epoch: row.get(1)?, reported }))
}

/// As many keys as a statement has places: the last one again and again.
fn padded(keys: &[i64]) -> impl Iterator<Item = Value> {
    (0..TOGETHER).map(|i| Value::from(keys[i.min(keys.len() - 1)]))
}

async fn add_documents(
    tx: &mut Tx,
    pipeline: &str,
    stored: &mut Stored,
    addition: &FeedbackAddition<'_>,
) -> Result<(), sqlx::Error> {
    // One row a key, in the order of keys: neighbours share pages.
    let by_key: BTreeMap<i64, &DocumentFacts> = addition.documents.iter().map(|(key, facts)| (*key, facts)).collect();
    let documents: Vec<(i64, &DocumentFacts)> = by_key.into_iter().collect();
    let (many, rest) = documents.as_chunks::<TOGETHER>();
    for some in many.iter().map(|some| &some[..]).chain(rest.chunks(1)) {
        let mut parameters = values![pipeline, stored.state.epoch()];
        for (key, facts) in some {
            stored.n_documents += 1;
            parameters.extend(values![
                *key,
                stored.n_documents,
                facts.source.as_deref(),
                u64::from(facts.stratum),
                Some(facts.inclusion_probability),
                facts.text_bytes,
                facts.ngrams.as_bytes(),
            ]);
        }
        tx.execute(if some.len() == 1 { &INSERT_ONE } else { &INSERT_MANY }, parameters).await?;
    }
    let oldest = stored.n_documents - addition.max_documents as i64;
    let sql = "DELETE FROM feedback_documents WHERE pipeline = $1 AND number <= $2";
    tx.execute(sql, values![pipeline, oldest]).await?;
    Ok(())
}

/// Gives the bytes of what is expected.
async fn insert_version(
    tx: &mut Tx,
    pipeline: &str,
    stored: &Stored,
    shard: Option<&str>,
) -> Result<usize, sqlx::Error> {
    let expected = stored.state.predictor().expected().to_bytes();
    tx.execute(
        "INSERT INTO feedback_versions (pipeline, version, shard, quotas, expected, created_at_ms)
         VALUES ($1, $2, $3, $4, $5, $6)",
        values![pipeline, stored.version, shard, to_json(&stored.state.quotas()), expected.as_slice(), now_ms()],
    )
    .await?;
    Ok(expected.len())
}

async fn write(tx: &mut Tx, pipeline: &str, stored: &Stored) -> Result<(), sqlx::Error> {
    let (json, predictor) = stored.state.to_parts();
    tx.execute(
        "INSERT INTO feedback (pipeline, state, predictor, version, n_documents, updated_at_ms)
         VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (pipeline) DO UPDATE SET state = excluded.state, predictor = excluded.predictor,
             version = excluded.version, n_documents = excluded.n_documents, updated_at_ms = excluded.updated_at_ms",
        values![pipeline, json, predictor.as_slice(), stored.version, stored.n_documents, now_ms()],
    )
    .await?;
    Ok(())
}

async fn note_reported(tx: &mut Tx, pipeline: &str, facts: &Facts) -> Result<(), sqlx::Error> {
    let mut by_step: BTreeMap<Reported, Vec<i64>> = BTreeMap::new();
    let mut keys = facts.reported.clone();
    keys.sort_unstable();
    keys.dedup();
    for key in keys {
        if let Some(at) = facts.documents.get(&key).and_then(|document| document.reported) {
            by_step.entry(at).or_default().push(key);
        }
    }
    for (Reported { run, step, by_several_runs }, keys) in by_step {
        for some in keys.chunks(TOGETHER) {
            let parameters = values![pipeline, run, step, by_several_runs].into_iter().chain(padded(some)).collect();
            tx.execute(&REPORTED, parameters).await?;
        }
    }
    Ok(())
}

async fn note_ranks(tx: &mut Tx, pipeline: &str, facts: &Facts, is_new: bool) -> Result<(), sqlx::Error> {
    let ranks: BTreeMap<_, _> = facts.ranks.iter().collect();
    for ((run, rank), progress) in ranks {
        tx.execute(
            "INSERT INTO feedback_ranks (pipeline, run, rank, newest_step, seen, updated_at_ms)
             VALUES ($1, $2, $3, $4, $5, $6)
             ON CONFLICT (pipeline, run, rank) DO UPDATE SET newest_step = excluded.newest_step, seen = excluded.seen,
                 updated_at_ms = excluded.updated_at_ms",
            values![pipeline, *run, u64::from(*rank), progress.newest(), progress.seen_bytes().as_slice(), now_ms()],
        )
        .await?;
    }
    if is_new {
        tx.execute(
            "DELETE FROM feedback_ranks WHERE pipeline = $1 AND updated_at_ms < (
                 SELECT updated_at_ms FROM feedback_ranks WHERE pipeline = $1
                 ORDER BY updated_at_ms DESC LIMIT 1 OFFSET $2)",
            values![pipeline, MAX_RANKS - 1],
        )
        .await?;
    }
    Ok(())
}

#[async_trait]
impl FeedbackCatalog for SqlCatalog {
    async fn begin_feedback(
        &self,
        pipeline: &str,
        featuriser: &Featuriser,
        settings: &FeedbackSettings,
    ) -> Result<FeedbackVersion, CatalogError> {
        let mut tx = self.begin().await?;
        let begin = async {
            // As a publication does: one after the other.
            tx.execute(LOCK, values![pipeline]).await?;
            tx.row(STATE, values![pipeline]).await
        };
        let stored = begin.await.map_err(|e| self.unavailable(e))?.map(|row| self.stored(&row)).transpose()?;
        let next = match stored {
            None => Stored { state: FeedbackState::new(*featuriser, 0, settings), version: 0, n_documents: 0 },
            Some(stored) if stored.state.featuriser() == featuriser => {
                drop(tx);
                let newest = self.newest_feedback(pipeline).await?;
                return newest.ok_or_else(|| self.damaged(format!("pipeline `{pipeline}` has no version of feedback")));
            }
            Some(Stored { state, version, n_documents }) => {
                Stored { state: state.for_featuriser(*featuriser, settings), version: version + 1, n_documents }
            }
        };
        let begun = async {
            write(&mut tx, pipeline, &next).await?;
            insert_version(&mut tx, pipeline, &next, None).await
        };
        begun.await.map_err(|e| self.unavailable(e))?;
        self.commit(tx).await?;
        let (expected, quotas) = (next.state.predictor().expected(), next.state.quotas());
        Ok(FeedbackVersion { version: next.version, expected, quotas })
    }

    async fn take_feedback(&self, request: &FeedbackRequest<'_>) -> Result<FeedbackTaken, CatalogError> {
        self.try_take(request).await.map_err(|e| self.unavailable(e))?
    }

    async fn feedback_summary(&self, pipeline: &str) -> Result<Option<FeedbackSummary>, CatalogError> {
        let row = self.database.row(STATE, values![pipeline]).await.map_err(|e| self.unavailable(e))?;
        row.map(|row| Ok(self.stored(&row)?.state.summary())).transpose()
    }

    async fn newest_feedback(&self, pipeline: &str) -> Result<Option<FeedbackVersion>, CatalogError> {
        let row = self.database.row(NEWEST, values![pipeline]).await.map_err(|e| self.unavailable(e))?;
        Ok(row.map(|row| self.feedback_version_of(&row)).transpose()?.flatten())
    }

    async fn feedback_version(&self, pipeline: &str, version: i64) -> Result<Option<FeedbackVersion>, CatalogError> {
        let sql = "SELECT version, expected, quotas FROM feedback_versions WHERE pipeline = $1 AND version = $2";
        let row = self.database.row(sql, values![pipeline, version]).await.map_err(|e| self.unavailable(e))?;
        Ok(row.map(|row| self.feedback_version_of(&row)).transpose()?.flatten())
    }
}
