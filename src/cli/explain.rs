//! `winnowd explain`: why a document of the stream was selected or not.
//!
//! In: a position, or an id with a window or without. Out: every number that decided, after the window was decided again as it
//! was published.

mod remains;
mod text;

use std::sync::Arc;

use anyhow::Context;

use super::offsets::{Place, probe, survey};
use super::progress::Progress;
use super::replay::{open_files, parse_window, rows_of};
use super::{ConfigArguments, DamagedShards, UsageError, print, runtime};
use crate::catalog::{Access, ReplayCatalog, SqlCatalog};
use crate::checkpoint::Interval;
use crate::config::{Bootstrap, Config};
use crate::manifest::ShardManifest;
use crate::pipeline::{DaemonError, Explained, Explanation, FurtherComparison, Outcome, Replay, Wanted, differences};
use crate::record::TopicPartition;
use crate::sink::{PublishedRow, ShardStore};
use crate::window::{SelectedDocument, WindowSummary};

/// Differences of a window that are shown.
const MAX_SHOWN: usize = 10;
/// Offsets of the log that are looked through between two looks at the clock.
const SEARCHED_AT_ONCE: i64 = 100_000;

#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["id", "position"])))]
pub struct ExplainArguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// The window that it competed in (topic/partition/from-to, as in the column `window` of shards)
    #[arg(long, value_name = "ID")]
    window: Option<String>,
    /// Id of the document; every one that has it is explained
    #[arg(long)]
    id: Option<String>,
    /// Where it stands in Kafka; the topic can be left out if there is only one
    #[arg(long, value_name = "[TOPIC/]PARTITION:OFFSET")]
    position: Option<String>,
    /// Look for the id in this topic only
    #[arg(long, requires = "id", conflicts_with = "window")]
    topic: Option<String>,
    /// Look for the id in this partition only
    #[arg(long, requires = "id", conflicts_with = "window")]
    partition: Option<i32>,
    /// Look for the id from this offset on
    #[arg(long, requires = "id", conflicts_with = "window", value_name = "OFFSET")]
    from: Option<i64>,
    /// Look for the id before this offset
    #[arg(long, requires = "id", conflicts_with = "window", value_name = "OFFSET")]
    to: Option<i64>,
    /// One JSON object a document and line
    #[arg(long)]
    json: bool,
}

pub fn explain(arguments: &ExplainArguments) -> anyhow::Result<()> {
    let config = arguments.config.load()?;
    let Bootstrap::Servers(servers) = config.kafka.bootstrap.clone() else {
        let problem = "kafka.bootstrap = `embedded`: the in-process cluster is gone with its process";
        return Err(UsageError(problem.to_owned()).into());
    };
    let window = arguments.window.as_deref().map(parse_window).transpose().map_err(UsageError)?;
    let position = arguments.position.as_deref().map(|text| parse_position(text, &config.kafka.topics));
    let position = position.transpose().map_err(UsageError)?;
    let explanations = runtime().context("cannot start threads")?.block_on(async {
        let catalog = Arc::new(SqlCatalog::open(&config.catalog.url, Access::Read).await?);
        catalog.check_schema().await?;
        let replay = Replay::open(config.clone(), &servers, catalog.clone()).await?;
        let store = ShardStore::open(&config.sink).map_err(DaemonError::from)?;
        let mut explaining = Explaining { config: &config, catalog, replay, store };
        match (position, &arguments.id, window) {
            (Some((at, offset)), _, Some((of, interval))) => explaining.of_window(&of, interval, &at, offset).await,
            (Some((at, offset)), _, None) => explaining.of_position(&at, offset).await,
            (None, Some(id), Some((at, interval))) => explaining.in_window(&at, interval, id).await,
            (None, Some(id), None) => explaining.anywhere(arguments, id).await,
            (None, None, _) => Err(UsageError("--id or --position must be given".to_owned()).into()),
        }
    })?;
    for (number, explanation) in explanations.iter().enumerate() {
        if arguments.json {
            print(&format!("{}\n", serde_json::to_string(explanation)?))?;
        } else {
            print(if number == 0 { "" } else { "\n" })?;
            print(&text::of(explanation))?;
        }
    }
    Ok(())
}

/// `[TOPIC/]PARTITION:OFFSET`, or as in ids that are positions, `TOPIC/PARTITION/OFFSET`.
fn parse_position(text: &str, topics: &[String]) -> Result<(TopicPartition, i64), String> {
    let parse = || {
        let (partition, offset) = text.rsplit_once(':').or_else(|| {
            let (partition, offset) = text.rsplit_once('/')?;
            partition.contains('/').then_some((partition, offset))
        })?;
        let (topic, partition) = match (partition.rsplit_once('/'), topics) {
            (Some((topic, partition)), _) => (topic, partition),
            (None, [topic]) => (topic.as_str(), partition),
            (None, _) => return None,
        };
        Some((TopicPartition::new(topic, partition.parse().ok()?), offset.parse().ok().filter(|offset| *offset >= 0)?))
    };
    parse().ok_or_else(|| {
        let (topic, among) = match topics {
            [topic] => (topic.as_str(), String::new()),
            several => ("documents", format!(" with one of the topics {}", several.join(", "))),
        };
        format!("--position {text}: expected [TOPIC/]PARTITION:OFFSET{among}, such as {topic}/3:4711")
    })
}

struct Explaining<'a> {
    config: &'a Config,
    catalog: Arc<SqlCatalog>,
    replay: Replay,
    store: ShardStore,
}

impl Explaining<'_> {
    /// The documents of this id in a window.
    async fn in_window(
        &mut self,
        at: &TopicPartition,
        interval: Interval,
        id: &str,
    ) -> anyhow::Result<Vec<Explanation>> {
        let manifest = self.shard_of_window(at, interval).await?;
        let found = self.decide(&manifest, at, interval, Wanted::Id(id)).await?;
        if !found.is_empty() {
            return Ok(found);
        }
        let window = windows(&manifest, at).find(|window| window.interval == interval);
        let n_dead_letters = window.map_or(0, |window| window.n_dead_letters);
        let why = format!(
            "no document of window {at}/{} has this id{}; without --window it is looked for everywhere",
            shown(interval),
            match n_dead_letters {
                0 => String::new(),
                n => format!(
                    ", and {n} of its records could not be read, so that they have none (winnowd dead-letters list)"
                ),
            }
        );
        let outside = Explanation::outside(None, Some(id.to_owned()), Outcome::NotInWindow, why);
        Ok(vec![Explanation { window: Some(format!("{at}/{}", shown(interval))), ..outside }])
    }

    /// A position in a window, if it is there.
    async fn of_window(
        &mut self,
        of: &TopicPartition,
        interval: Interval,
        at: &TopicPartition,
        offset: i64,
    ) -> anyhow::Result<Vec<Explanation>> {
        let manifest = self.shard_of_window(of, interval).await?;
        if of == at && (interval.from..interval.to).contains(&offset) {
            return self.record(&manifest, at, interval, offset).await;
        }
        let why = format!("window {of}/{} covers other offsets", shown(interval));
        let outside = Explanation::outside(Some(at.position(offset)), None, Outcome::NotInWindow, why);
        Ok(vec![Explanation { window: Some(format!("{of}/{}", shown(interval))), ..outside }])
    }

    async fn shard_of_window(&self, at: &TopicPartition, interval: Interval) -> anyhow::Result<ShardManifest> {
        let pipeline = &self.config.pipeline;
        let found = self.catalog.shard_of_window(pipeline, at, interval).await?;
        let problem = || format!("pipeline `{pipeline}` has published no window `{at}/{}`", shown(interval));
        Ok(found.ok_or_else(|| UsageError(problem()))?)
    }

    async fn of_position(&mut self, at: &TopicPartition, offset: i64) -> anyhow::Result<Vec<Explanation>> {
        let Some(manifest) = self.catalog.shard_of_position(&self.config.pipeline, at, offset).await? else {
            return Ok(vec![self.outside(at, offset).await?]);
        };
        let interval = windows(&manifest, at).map(|window| window.interval).find(|i| (i.from..i.to).contains(&offset));
        let interval = interval.with_context(|| format!("shard {}: its manifest lacks a window", manifest.shard))?;
        self.record(&manifest, at, interval, offset).await
    }

    /// The record at an offset of a window.
    async fn record(
        &mut self,
        manifest: &ShardManifest,
        at: &TopicPartition,
        interval: Interval,
        offset: i64,
    ) -> anyhow::Result<Vec<Explanation>> {
        let found = self.decide(manifest, at, interval, Wanted::Offset(offset)).await?;
        if !found.is_empty() {
            return Ok(found);
        }
        let why = "no record for readers stands at this offset: it is a mark of a transaction, belongs to one that was aborted, or \
                   was compacted away";
        let outside = Explanation::outside(Some(at.position(offset)), None, Outcome::NoRecord, why.to_owned());
        Ok(vec![Explanation { window: Some(format!("{at}/{}", shown(interval))), ..outside }])
    }

    /// A position that no published window covers.
    async fn outside(&self, at: &TopicPartition, offset: i64) -> anyhow::Result<Explanation> {
        let places = survey(self.config, &probe(self.config)?, &self.catalog).await?;
        let Some(place) = places.iter().find(|place| place.at == *at) else {
            let problem = format!("partition {at}: kafka.topics has no such partition");
            return Err(UsageError(problem).into());
        };
        let (outcome, why) = whereabouts(place, offset);
        Ok(Explanation::outside(Some(at.position(offset)), None, outcome, why))
    }

    /// Every document of this id that the log still holds.
    async fn anywhere(&mut self, arguments: &ExplainArguments, id: &str) -> anyhow::Result<Vec<Explanation>> {
        // A document without an id has its position for one.
        let topics = &self.config.kafka.topics;
        if let Ok((at, offset)) = parse_position(id, topics)
            && topics.iter().any(|topic| **topic == *at.topic)
        {
            let found = self.of_position(&at, offset).await?;
            if found.iter().any(|explanation| explanation.id.as_deref() == Some(id)) {
                return Ok(found);
            }
        }
        let places = survey(self.config, &probe(self.config)?, &self.catalog).await?;
        let wanted = |place: &&Place| {
            arguments.topic.as_deref().is_none_or(|topic| topic == &*place.at.topic)
                && arguments.partition.is_none_or(|partition| partition == place.at.partition)
        };
        let range_of = |place: &Place| {
            let (low, high) = place.log.unwrap_or_default();
            (arguments.from.map_or(low, |from| from.max(low)), arguments.to.map_or(high, |to| to.min(high)))
        };
        let n_offsets_of = |place: &Place| {
            let (first, end) = range_of(place);
            (end - first).max(0)
        };
        let n_offsets: i64 = places.iter().filter(wanted).map(n_offsets_of).sum();
        let progress = Progress::of_documents("looked through", n_offsets as u64);
        let mut found = Vec::new();
        for place in places.iter().filter(wanted) {
            let (first, end) = range_of(place);
            let mut from = first;
            while from < end {
                let interval = Interval { from, to: (from + SEARCHED_AT_ONCE).min(end) };
                let offsets = tokio::task::block_in_place(|| self.replay.find(&place.at, interval, id));
                found.extend(offsets.map_err(DaemonError::from)?.into_iter().map(|offset| (place.at.clone(), offset)));
                progress.add((interval.to - interval.from) as u64, 0);
                from = interval.to;
            }
        }
        progress.finish();
        let mut explanations = Vec::new();
        for (at, offset) in found {
            let of_one = self.of_position(&at, offset).await?;
            explanations.extend(of_one.into_iter().map(|of| Explanation { id: of.id.or(Some(id.to_owned())), ..of }));
        }
        if explanations.is_empty() {
            let why = format!("none of the records at the {n_offsets} offsets that the log still holds has this id");
            explanations.push(Explanation::outside(None, Some(id.to_owned()), Outcome::NotFound, why));
        }
        Ok(explanations)
    }

    /// Decides the window again, and refuses to explain one that is not what was published.
    async fn decide(
        &mut self,
        manifest: &ShardManifest,
        at: &TopicPartition,
        interval: Interval,
        wanted: Wanted<'_>,
    ) -> anyhow::Result<Vec<Explanation>> {
        let window = windows(manifest, at).find(|window| window.interval == interval);
        let window = window.with_context(|| format!("shard {}: its manifest lacks a window", manifest.shard))?;
        // No column decides: those that cannot be made here are left out.
        let further = self.replay.columns(manifest)?.unwrap_or_default();
        let columns = further.names();
        let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
        let rows = self.rows(manifest, window, &columns).await?;
        let mut comparison = FurtherComparison::new(window, rows.as_deref().unwrap_or_default(), &further);
        let look = &mut |selected: &[SelectedDocument]| comparison.look(selected);
        match self.replay.explain(manifest, window, wanted, look).await? {
            Explained::Impossible(problem) => {
                let remains = remains::of(&self.store, manifest, window, &rows, wanted).await?;
                let message = format!("{} cannot be decided again: {problem}; {remains}", window.id());
                Err(DamagedShards(message).into())
            }
            Explained::Decided(again, explanations) => {
                let problems = match &rows {
                    Err(problem) => vec![problem.clone()],
                    Ok(rows) => [differences(window, rows, &again), comparison.differences()].concat(),
                };
                if problems.is_empty() {
                    return Ok(explanations);
                }
                let n_more = problems.len().saturating_sub(MAX_SHOWN);
                let more = if n_more > 0 { format!("\n  and {n_more} more") } else { String::new() };
                let shown = problems[..problems.len() - n_more].join("\n  ");
                let message = format!("{} is not decided again as it was published:\n  {shown}{more}", window.id());
                Err(DamagedShards(message).into())
            }
        }
    }

    /// What the shard, and what is held out, have of the window; the inner error: what is wrong with a file.
    async fn rows(
        &self,
        manifest: &ShardManifest,
        window: &WindowSummary,
        derived: &[&str],
    ) -> anyhow::Result<Result<Vec<PublishedRow>, String>> {
        if window.n_selected == 0 {
            return Ok(Ok(Vec::new()));
        }
        let files = open_files(&self.store, self.config.sink.scratch_dir.as_deref(), manifest).await?;
        let id = window.id();
        let rows =
            files.and_then(|files| tokio::task::block_in_place(|| rows_of(&files, std::slice::from_ref(&id), derived)));
        Ok(rows.map(|mut by_window| by_window.remove(&id).unwrap_or_default()))
    }
}

fn windows<'a>(manifest: &'a ShardManifest, at: &'a TopicPartition) -> impl Iterator<Item = &'a WindowSummary> {
    manifest.windows.iter().filter(move |window| window.at == *at)
}

fn shown(Interval { from, to }: Interval) -> String {
    format!("{from}-{to}")
}

/// What is said of an offset that no published window covers.
fn whereabouts(place: &Place, offset: i64) -> (Outcome, String) {
    if let Some(gap) = place.gaps.iter().find(|gap| (gap.interval.from..gap.interval.to).contains(&offset)) {
        let noted = crate::manifest::rfc3339(gap.noted_at_ms);
        let why = format!(
            "it is never decided: offsets {} were passed over ({}, {noted})",
            gap.interval,
            gap.reason.as_str()
        );
        return (Outcome::Skipped, why);
    }
    let end = place.log.map_or(String::new(), |(low, high)| format!(", the log holds {low}..{high}"));
    match place.next_offset() {
        None => (Outcome::Undecided, format!("no worker has begun with this partition yet{end}")),
        Some(next) if offset >= next => (Outcome::Undecided, format!("everything below {next} is decided{end}")),
        Some(_) => (Outcome::BeforeStart, "the pipeline began behind it (kafka.start)".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{Checkpoint, Gap, GapReason};

    #[test]
    fn positions_are_read() {
        let topics = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let (one, two) = (topics(&["docs.v1-x"]), topics(&["a", "b"]));
        let expected = (TopicPartition::new("docs.v1-x", 3), 4711);
        for text in ["3:4711", "docs.v1-x/3:4711", "docs.v1-x/3/4711"] {
            assert_eq!(parse_position(text, &one).as_ref(), Ok(&expected), "{text}");
        }
        assert_eq!(parse_position("b/0:1", &two), Ok((TopicPartition::new("b", 0), 1)));
        for wrong in ["", "3", "3:", "x:1", "3:-1", "docs/3", "docs/x/1", "docs/3:y"] {
            assert!(parse_position(wrong, &one).unwrap_err().contains("such as docs.v1-x/3:4711"), "{wrong}");
        }
        assert!(parse_position("3:4711", &two).unwrap_err().contains("one of the topics a, b"));
    }

    #[test]
    fn an_offset_outside_of_windows_is_somewhere() {
        let at = TopicPartition::new("docs", 3);
        let checkpoint = Checkpoint {
            topic: "docs".into(),
            partition: 3,
            next_offset: Some(500),
            owner_epoch: 1,
            owner: "w".into(),
        };
        let interval = Interval { from: 200, to: 300 };
        let gap = Gap { at: at.clone(), interval, reason: GapReason::Retention, noted_at_ms: 0 };
        let mut place = Place { at, checkpoint: Some(checkpoint), log: Some((300, 900)), gaps: vec![gap] };
        let outcome = |place: &Place, offset| whereabouts(place, offset);
        let (skipped, why) = outcome(&place, 299);
        assert!(skipped == Outcome::Skipped && why.contains("200..300") && why.contains("retention"), "{why}");
        let (undecided, why) = outcome(&place, 500);
        assert!(undecided == Outcome::Undecided && why.contains("below 500") && why.contains("300..900"), "{why}");
        assert_eq!(outcome(&place, 100).0, Outcome::BeforeStart);
        place.checkpoint = None;
        assert!(outcome(&place, 100).1.contains("no worker has begun"));
    }
}
