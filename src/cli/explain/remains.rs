//! What is still known of a record that Kafka does not have any more.

use crate::manifest::ShardManifest;
use crate::pipeline::{DaemonError, Wanted};
use crate::sink::{PublishedRow, ShardStore, read_dead_letters};
use crate::window::WindowSummary;

/// In words: whether it is in the shard, or among the dead letters.
pub(super) async fn of(
    store: &ShardStore,
    manifest: &ShardManifest,
    window: &WindowSummary,
    rows: &Result<Vec<PublishedRow>, String>,
    wanted: Wanted<'_>,
) -> anyhow::Result<String> {
    let rows = match rows {
        Ok(rows) => rows,
        Err(problem) => return Ok(format!("and its shard cannot be read: {problem}")),
    };
    let is_wanted = |row: &&PublishedRow| match wanted {
        Wanted::Offset(offset) => row.offset == offset,
        Wanted::Id(id) => row.id == id,
    };
    if let Some(row) = rows.iter().find(is_wanted) {
        let held_out = manifest.validation.as_ref().map(|file| &file.path);
        let path = if row.held_out { held_out } else { manifest.path.as_ref() };
        return Ok(format!(
            "the shard {} has offset {} (`{}`), selected with log importance weight {}, key {} and inclusion probability {}",
            path.unwrap_or(&manifest.shard),
            row.offset,
            row.id,
            row.log_importance_weight,
            row.selection_key,
            row.inclusion_probability
        ));
    }
    if let (Wanted::Offset(offset), Some(file)) = (wanted, &manifest.dead_letters) {
        let content = store.read(&file.path).await.map_err(DaemonError::from)?;
        for letter in read_dead_letters(&file.path, content).map_err(DaemonError::from)? {
            let letter = letter.map_err(DaemonError::from)?;
            if (&letter.at, letter.offset) == (&window.at, offset) {
                return Ok(format!("{} has it as a dead letter: {}: {}", file.path, letter.reason, letter.detail));
            }
        }
    }
    let unless = match wanted {
        Wanted::Offset(_) => "",
        Wanted::Id(_) => ", unless it was a dead letter",
    };
    let n = rows.len();
    Ok(format!(
        "it is none of the {n} that were selected of the window{unless}, and what it weighed cannot be told any more"
    ))
}
