//! `winnowd replay`: published windows decided again, from the records that Kafka still has.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use serde_json::json;

use super::progress::Progress;
use super::{ConfigArguments, DamagedShards, UsageError, print, runtime};
use crate::catalog::{Access, ReplayCatalog, SqlCatalog};
use crate::checkpoint::Interval;
use crate::config::{Bootstrap, Config};
use crate::manifest::ShardManifest;
use crate::pipeline::{DaemonError, FurtherColumns, FurtherComparison, Replay, Replayed, differences};
use crate::record::TopicPartition;
use crate::select::{LossSource, Quotas, SensitivityPool, SketchVersion};
use crate::sink::{PublishedRow, ShardReader, ShardStore};
use crate::window::{
    ClosedWindow, CoverageSummary, PointSource, PoolSensitivities, PoolStrata, SensitivitySummary, StratumSummary,
    WindowSummary,
};

/// Differences of one window that are shown.
const MAX_SHOWN: usize = 10;
/// Rows of a shard that are held at a time, but for a window that has more.
const HELD_ROWS: u64 = 50_000;

#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("what").required(true).multiple(true).args(["window", "verify"])))]
pub struct ReplayArguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// This window only (topic/partition/from-to, as in the column `window` of shards); shows how it is decided
    #[arg(long, value_name = "ID")]
    window: Option<String>,
    /// Compare with the published shards, to the last bit
    #[arg(long)]
    verify: bool,
    /// Only windows of this topic
    #[arg(long, requires = "verify", conflicts_with = "window")]
    topic: Option<String>,
    /// Only windows of this partition
    #[arg(long, requires = "verify", conflicts_with = "window")]
    partition: Option<i32>,
    /// Only windows that reach beyond this offset
    #[arg(long, requires = "verify", conflicts_with = "window", value_name = "OFFSET")]
    from: Option<i64>,
    /// Only windows that begin before this offset
    #[arg(long, requires = "verify", conflicts_with = "window", value_name = "OFFSET")]
    to: Option<i64>,
    /// One JSON object a window and line
    #[arg(long)]
    json: bool,
}

impl ReplayArguments {
    fn wants(&self, WindowSummary { at, interval, .. }: &WindowSummary) -> bool {
        self.topic.as_deref().is_none_or(|topic| topic == &*at.topic)
            && self.partition.is_none_or(|partition| partition == at.partition)
            && self.from.is_none_or(|from| interval.to > from)
            && self.to.is_none_or(|to| interval.from < to)
    }
}

pub fn replay(arguments: &ReplayArguments) -> anyhow::Result<()> {
    let config = arguments.config.load()?;
    let Bootstrap::Servers(servers) = config.kafka.bootstrap.clone() else {
        let problem = "kafka.bootstrap = `embedded`: the in-process cluster is gone with its process";
        return Err(UsageError(problem.to_owned()).into());
    };
    let window = arguments.window.as_deref().map(parse_window).transpose().map_err(UsageError)?;
    runtime().context("cannot start threads")?.block_on(async {
        let catalog = Arc::new(SqlCatalog::open(&config.catalog.url, Access::Read).await?);
        catalog.check_schema().await?;
        let mut replay = Replay::open(config.clone(), &servers, catalog.clone()).await?;
        match window {
            None => verify_all(arguments, &config, &catalog, &mut replay).await,
            Some((at, interval)) => {
                let found = catalog.shard_of_window(&config.pipeline, &at, interval).await?;
                let manifest = found.ok_or_else(|| {
                    UsageError(format!("pipeline `{}` has published no window `{at}/{interval}`", config.pipeline))
                })?;
                let wants = |window: &WindowSummary| window.at == at && window.interval == interval;
                if !arguments.verify {
                    return show(arguments, &manifest, wants, &mut replay).await;
                }
                let mut verification = Verification::new(arguments, &config)?;
                verification.shard(&manifest, wants, &mut replay).await?;
                verification.finish()
            }
        }
    })
}

/// `topic/partition/from-to`.
pub(super) fn parse_window(id: &str) -> Result<(TopicPartition, Interval), String> {
    let parse = || {
        let (partition, interval) = id.rsplit_once('/')?;
        let (topic, partition) = partition.rsplit_once('/')?;
        let (from, to) = interval.split_once('-')?;
        let interval = Interval { from: from.parse().ok()?, to: to.parse().ok()? };
        Some((TopicPartition::new(topic, partition.parse().ok()?), interval))
    };
    parse().ok_or_else(|| format!("--window {id}: expected topic/partition/from-to, such as documents/3/0-10000"))
}

async fn verify_all(
    arguments: &ReplayArguments,
    config: &Config,
    catalog: &SqlCatalog,
    replay: &mut Replay,
) -> anyhow::Result<()> {
    let mut verification = Verification::new(arguments, config)?;
    let mut after: Option<String> = None;
    while let Some(manifest) = catalog.next_shard(&config.pipeline, after.as_deref()).await? {
        verification.shard(&manifest, |window| arguments.wants(window), replay).await?;
        after = Some(manifest.shard);
    }
    verification.finish()
}

/// Sums of a verification.
struct Verification {
    store: ShardStore,
    scratch_dir: Option<std::path::PathBuf>,
    progress: Progress,
    json: bool,
    same: u64,
    different: u64,
    impossible: u64,
    records: u64,
    rows: u64,
}

impl Verification {
    fn new(arguments: &ReplayArguments, config: &Config) -> anyhow::Result<Self> {
        Ok(Verification {
            store: ShardStore::open(&config.sink).map_err(DaemonError::from)?,
            scratch_dir: config.sink.scratch_dir.clone(),
            progress: Progress::new("replayed", 0),
            json: arguments.json,
            same: 0,
            different: 0,
            impossible: 0,
            records: 0,
            rows: 0,
        })
    }

    /// Decides the wanted windows of a shard again, each beside its rows there.
    async fn shard(
        &mut self,
        manifest: &ShardManifest,
        wants: impl Fn(&WindowSummary) -> bool,
        replay: &mut Replay,
    ) -> anyhow::Result<()> {
        let mut windows: Vec<&WindowSummary> = manifest.windows.iter().filter(|window| wants(window)).collect();
        // Partition by partition, so that records are read on and on.
        windows.sort_by(|a, b| (&a.at, a.interval.from).cmp(&(&b.at, b.interval.from)));
        let files = match windows.iter().any(|window| window.n_selected > 0) {
            true => open_files(&self.store, self.scratch_dir.as_deref(), manifest).await?,
            false => Ok(Vec::new()),
        };
        if manifest.shuffled {
            files.iter().flatten().try_for_each(|(path, shard)| self.order(path, manifest.selector.seed, shard))?;
        }
        let further = replay.columns(manifest)?;
        let columns = further.as_ref().map(FurtherColumns::names).unwrap_or_default();
        let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
        let mut windows = &windows[..];
        while !windows.is_empty() {
            let (now, later) = windows.split_at(at_a_time(windows));
            let ids: Vec<String> = now.iter().map(|window| window.id()).collect();
            let rows = files.as_ref().map_err(Clone::clone);
            let rows = rows.and_then(|files| tokio::task::block_in_place(|| rows_of(files, &ids, &columns)));
            for window in now {
                self.window(manifest, window, &rows, &further, replay).await?;
            }
            windows = later;
        }
        Ok(())
    }

    async fn window(
        &mut self,
        manifest: &ShardManifest,
        window: &WindowSummary,
        rows: &Result<BTreeMap<String, Vec<PublishedRow>>, String>,
        further: &Result<FurtherColumns, String>,
        replay: &mut Replay,
    ) -> anyhow::Result<()> {
        let further = match further {
            Ok(further) => further,
            Err(problem) => {
                self.impossible += 1;
                return self.say(&window.id(), "cannot_be_verified", std::slice::from_ref(problem));
            }
        };
        let rows = rows.as_ref().map(|rows| rows.get(&window.id()).map_or(&[][..], Vec::as_slice));
        let mut comparison = FurtherComparison::new(window, rows.unwrap_or_default(), further);
        let replayed = replay.window(manifest, window, &mut |selected| comparison.look(selected)).await?;
        let problems = match replayed {
            Replayed::Impossible(problem) => {
                self.impossible += 1;
                return self.say(&window.id(), "cannot_be_verified", &[problem]);
            }
            Replayed::Decided(again) => {
                self.progress.add(again.summary.n_records, again.summary.payload_bytes);
                match rows {
                    Err(problem) => vec![problem.clone()],
                    Ok(rows) => [differences(window, rows, &again), comparison.differences()].concat(),
                }
            }
        };
        self.records += window.n_records;
        self.rows += window.n_selected;
        if !problems.is_empty() {
            self.different += 1;
            self.say(&window.id(), "differs", &problems)?;
        } else {
            self.same += 1;
            if self.json {
                self.say(&window.id(), "same", &[])?;
            }
        }
        Ok(())
    }

    /// Whether the rows of a shuffled shard stand where they should.
    fn order(&mut self, path: &str, seed: u64, shard: &ShardReader) -> anyhow::Result<()> {
        let problem = match tokio::task::block_in_place(|| shard.first_out_of_order(seed)) {
            Ok(None) => return Ok(()),
            Ok(Some(row)) => format!("row {row} does not stand where seed {seed} shuffles it to"),
            Err(e) => e.to_string(),
        };
        self.different += 1;
        self.say(path, "differs", &[problem])
    }

    /// `id`: of a window, or the path of a shard.
    fn say(&self, id: &str, outcome: &str, problems: &[String]) -> anyhow::Result<()> {
        if self.json {
            return print(&format!("{}\n", json!({ "window": id, "outcome": outcome, "problems": problems })));
        }
        let mut text = match outcome {
            "differs" => format!("{id} differs:\n"),
            _ => format!("{id} cannot be verified:\n"),
        };
        for problem in problems.iter().take(MAX_SHOWN) {
            writeln!(text, "  {problem}")?;
        }
        if problems.len() > MAX_SHOWN {
            writeln!(text, "  and {} more", problems.len() - MAX_SHOWN)?;
        }
        print(&text)
    }

    fn finish(self) -> anyhow::Result<()> {
        self.progress.finish();
        let Verification { same, different, impossible, records, rows, .. } = self;
        if !self.json {
            print(&format!(
                "{same} windows are the same to the last bit, {different} differ, {impossible} cannot be verified; {records} \
                 records were decided again, {rows} rows compared\n"
            ))?;
        }
        match different {
            0 => Ok(()),
            n => Err(DamagedShards(format!("{n} windows are not what they were published as")).into()),
        }
    }
}

/// Files of a publication, with their paths.
pub(super) type OpenFiles = Vec<(String, ShardReader)>;

/// The shard and what is held out. The inner error: what is wrong with a file.
pub(super) async fn open_files(
    store: &ShardStore,
    scratch_dir: Option<&Path>,
    manifest: &ShardManifest,
) -> anyhow::Result<Result<OpenFiles, String>> {
    let validation = manifest.validation.as_ref().map(|file| &file.path);
    let mut files = Vec::new();
    for path in manifest.path.iter().chain(validation) {
        let file = store.download(path, scratch_dir).await.map_err(DaemonError::from)?;
        let Some(file) = file else { return Ok(Err(format!("{path} is missing"))) };
        match ShardReader::open(&manifest.shard, file) {
            Ok(shard) => files.push((path.clone(), shard)),
            Err(e) => return Ok(Err(e.to_string())),
        }
    }
    Ok(Ok(files))
}

/// The rows of these windows in all files of a publication, by ascending offsets, with these further columns.
pub(super) fn rows_of(
    files: &[(String, ShardReader)],
    windows: &[String],
    derived: &[&str],
) -> Result<BTreeMap<String, Vec<PublishedRow>>, String> {
    let mut all: BTreeMap<String, Vec<PublishedRow>> = BTreeMap::new();
    for (_, file) in files {
        let rows = file.windows(windows, derived).map_err(|e| e.to_string())?;
        rows.into_iter().for_each(|(window, rows)| all.entry(window).or_default().extend(rows));
    }
    all.values_mut().for_each(|rows| rows.sort_by_key(|row| row.offset));
    Ok(all)
}

/// How many windows from the first one together have no more rows than are to be held.
fn at_a_time(windows: &[&WindowSummary]) -> usize {
    let mut rows = 0;
    let fits = windows.iter().take_while(|window| {
        rows += window.n_selected;
        rows <= HELD_ROWS
    });
    fits.count().max(1)
}

/// How a window is decided, without looking at its shard.
async fn show(
    arguments: &ReplayArguments,
    manifest: &ShardManifest,
    wants: impl Fn(&WindowSummary) -> bool,
    replay: &mut Replay,
) -> anyhow::Result<()> {
    for window in manifest.windows.iter().filter(|window| wants(window)) {
        match replay.window(manifest, window, &mut |_| ()).await? {
            Replayed::Impossible(problem) => {
                return Err(DamagedShards(format!("{} cannot be decided again: {problem}", window.id())).into());
            }
            Replayed::Decided(again) if arguments.json => print(&format!("{}\n", as_json(&again)))?,
            Replayed::Decided(again) => print(&as_table(&again, &manifest.selector.quotas)?)?,
        }
    }
    Ok(())
}

fn as_json(ClosedWindow { summary, selected, dead_letters, .. }: &ClosedWindow) -> serde_json::Value {
    let selected = selected.iter().map(|row| {
        let mut shown = json!({
            "offset": row.offset,
            "id": row.document.id,
            "source": row.document.source,
            "n_tokens": row.score.n_tokens,
            "log_importance_weight": row.score.log_importance_weight,
            "selection_key": row.selection_key,
            "inclusion_probability": row.inclusion_probability,
        });
        if row.held_out {
            shown["split"] = "validation".into();
        }
        if let Some(target) = summary.targets.get(row.target) {
            shown["target"] = target.target.as_str().into();
            let of_targets = summary.targets.iter().zip(&row.log_importance_weights);
            shown["log_importance_weights"] = of_targets.map(|(t, w)| (t.target.clone(), json!(w))).collect();
        }
        shown
    });
    let dead = dead_letters.iter().map(
        |letter| json!({ "offset": letter.offset, "reason": letter.reject.reason, "detail": letter.reject.detail }),
    );
    let (selected, dead): (Vec<_>, Vec<_>) = (selected.collect(), dead.collect());
    json!({ "window": summary.id(), "summary": summary, "selected": selected, "dead_letters": dead })
}

fn as_table(
    ClosedWindow { summary, selected, dead_letters, .. }: &ClosedWindow,
    quotas: &Quotas,
) -> Result<String, std::fmt::Error> {
    let mut text = format!(
        "{}: {} records, {} selected, {} rejected ({} too short), {} dead letters\n",
        summary.id(),
        summary.n_records,
        summary.n_selected,
        summary.n_rejected,
        summary.n_too_short,
        summary.n_dead_letters
    );
    if let Some(threshold) = summary.threshold {
        writeln!(text, "highest key that is not selected: {threshold:.6}")?;
    }
    for turn in &summary.turns {
        let target = turn.target.as_ref().map(|name| format!(" for {name}")).unwrap_or_default();
        let pool = quotas.pool_name(turn.source.as_deref());
        write!(text, "{} of {} candidates of {pool}{target}", turn.n_selected, turn.n_candidates)?;
        match turn.threshold {
            Some(threshold) => writeln!(text, ", highest key left {threshold:.6}")?,
            None => writeln!(text)?,
        }
    }
    if let Some(coverage) = &summary.coverage {
        text += &strata(coverage, quotas)?;
    }
    if let Some(sensitivity) = &summary.sensitivity {
        text += &sensitivities(sensitivity, quotas)?;
    }
    let several = !summary.targets.is_empty();
    writeln!(
        text,
        "{:>12}  {:>12}  {:>12}  {:>11}  {:>8}  {}id",
        "offset",
        "log weight",
        "key",
        "probability",
        "tokens",
        if several { "target, " } else { "" }
    )?;
    for row in selected {
        let (weight, tokens, id) = (row.score.log_importance_weight, row.score.n_tokens, &row.document.id);
        let (offset, key, probability) = (row.offset, row.selection_key, row.inclusion_probability);
        let target = summary.targets.get(row.target).map(|t| format!("{}, ", t.target)).unwrap_or_default();
        writeln!(text, "{offset:>12}  {weight:>12.4}  {key:>12.4}  {probability:>11.6}  {tokens:>8}  {target}{id}")?;
    }
    for letter in dead_letters {
        let (offset, reason, detail) = (letter.offset, letter.reject.reason.as_str(), &letter.reject.detail);
        writeln!(text, "{offset:>12}  dead letter: {reason}: {detail}")?;
    }
    Ok(text)
}

/// How the window was spread over strata.
fn strata(coverage: &CoverageSummary, quotas: &Quotas) -> Result<String, std::fmt::Error> {
    let CoverageSummary { n_without_number, n_cut, cut_at, shortfall, pools, edges } = coverage;
    let mut text = format!("{n_without_number} documents without a number; {n_cut} removed by the cut-off");
    match cut_at {
        Some(at) => writeln!(text, ", the last at {at}")?,
        None => writeln!(text)?,
    }
    if *shortfall > 0 {
        writeln!(text, "{shortfall} documents fewer than wanted")?;
    }
    match edges {
        Some(SketchVersion { version, n_documents }) => {
            writeln!(text, "edges of version {version} of the stream's, of {n_documents} documents before it")?;
        }
        None => writeln!(text, "edges of its own documents")?,
    }
    for PoolStrata { source, range, strata } in pools {
        let pool = pool_name(quotas, source.as_deref(), pools.len());
        match range {
            Some((low, high)) => writeln!(text, "strata of {pool}, from {low} to {high}")?,
            None => writeln!(text, "no documents of {pool}")?,
        }
        for StratumSummary { stratum, n_documents, n_selected, thresholds } in strata {
            write!(text, "  stratum {stratum}: {n_selected} of {n_documents} documents")?;
            let left: Vec<String> = thresholds.iter().flatten().map(|key| format!("{key:.6}")).collect();
            match left.is_empty() {
                true => writeln!(text)?,
                false => writeln!(text, ", highest key left {}", left.join(", "))?,
            }
        }
    }
    Ok(text)
}

/// How the window was drawn by sensitivity.
fn sensitivities(sensitivity: &SensitivitySummary, quotas: &Quotas) -> Result<String, std::fmt::Error> {
    let SensitivitySummary { points, dimensions, losses, n_centres, scale, shortfall, pools, .. } = sensitivity;
    let SensitivitySummary { n_without_embedding, n_other_dimensions, clusters_version, .. } = sensitivity;
    let points = match points {
        PointSource::Embedding => "embeddings",
        PointSource::Projection => "projected n-grams in place of embeddings",
    };
    let losses = match losses {
        LossSource::Record => "losses of the records",
        LossSource::Expected => "expected losses",
        LossSource::None => "no losses",
    };
    let near = clusters_version.map(|version| format!(", near to version {version} of the stream's clusters"));
    let near = near.unwrap_or_default();
    let mut text = format!(
        "{n_centres} centres of {points} ({dimensions} dimensions) with {losses}{near}; a unit of distance counts as {scale} of loss\n\
         {n_without_embedding} documents without an embedding, {n_other_dimensions} with one of other dimensions\n"
    );
    if *shortfall > 0 {
        writeln!(text, "{shortfall} documents fewer than wanted")?;
    }
    for PoolSensitivities { source, sample } in pools {
        let pool = pool_name(quotas, source.as_deref(), pools.len());
        let SensitivityPool { documents, selected, total, threshold, ratio } = sample;
        write!(text, "{selected} of {documents} of {pool}, sum of scores {total}, ratio of weights {ratio:.6}")?;
        match threshold {
            Some(threshold) => writeln!(text, ", highest key left {threshold:.6}")?,
            None => writeln!(text)?,
        }
    }
    Ok(text)
}

fn pool_name(quotas: &Quotas, source: Option<&str>, n_pools: usize) -> String {
    match source {
        None if n_pools == 1 => "all documents".to_owned(),
        name => quotas.pool_name(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn window_ids_are_read_back() {
        let (at, interval) = parse_window("docs.v1-x/3/0-10000").unwrap();
        assert_eq!((at, interval), (TopicPartition::new("docs.v1-x", 3), Interval { from: 0, to: 10_000 }));
        for wrong in ["", "docs", "docs/3", "docs/3/5", "docs/x/0-5", "docs/3/0-y"] {
            assert!(parse_window(wrong).unwrap_err().contains("expected topic/partition/from-to"), "{wrong}");
        }
    }
}
