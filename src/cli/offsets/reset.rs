//! `winnowd offsets reset`: facts about each partition → what is done with it. Nothing is done where one must be refused.

use anyhow::Context;
use serde_json::json;

use super::{ConfigArguments, Place, probe, survey};
use crate::catalog::{Access, Catalog, CatalogError, CatalogReader, GapReason, OffsetsCatalog, SqlCatalog};
use crate::checkpoint::Interval;
use crate::cli::{UsageError, load_model, print, runtime};
use crate::config::{Config, StartPolicy};
use crate::pipeline::{DaemonError, open_catalog, recreated_topics};
use crate::record::TopicPartition;
use crate::source::Probe;

/// Who has a partition afterwards, until a worker claims it.
const OWNER: &str = "winnowd offsets reset";

#[derive(clap::Args)]
pub struct ResetArguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// earliest, latest, timestamp:TIME (RFC 3339 or milliseconds since 1970), or offset:N
    #[arg(long, value_name = "WHERE")]
    to: String,
    /// Only this topic
    #[arg(long)]
    topic: Option<String>,
    /// Only this partition
    #[arg(long)]
    partition: Option<i32>,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// One JSON object a partition and line
    #[arg(long)]
    json: bool,
}

/// Where to, as asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Resolved(StartPolicy),
    Offset(i64),
}

/// What is done with one checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Move {
    Stay(i64),
    /// It had no offset yet.
    Start(i64),
    /// Forwards: what lies between is never decided.
    Skip(Interval),
    /// Back over offsets that are not decided.
    Rewind(Interval),
}

/// Decides what moving a checkpoint to an offset of the log comes to.
fn decide(at: &TopicPartition, next: Option<i64>, published: Option<i64>, to: i64) -> Result<Move, CatalogError> {
    match (next, published) {
        (None, _) => Ok(Move::Start(to)),
        (Some(next), _) if next == to => Ok(Move::Stay(to)),
        (Some(next), _) if next < to => Ok(Move::Skip(Interval { from: next, to })),
        (_, Some(published)) if to < published => Err(CatalogError::Decided { at: at.clone(), offset: to, published }),
        (Some(next), _) => Ok(Move::Rewind(Interval { from: to, to: next })),
    }
}

impl Move {
    fn act(self) -> &'static str {
        match self {
            Move::Stay(_) => "stay",
            Move::Start(_) => "start",
            Move::Skip(_) => "skip",
            Move::Rewind(_) => "rewind",
        }
    }

    fn ends(self) -> (Option<i64>, i64) {
        match self {
            Move::Stay(offset) => (Some(offset), offset),
            Move::Start(offset) => (None, offset),
            Move::Skip(interval) => (Some(interval.from), interval.to),
            Move::Rewind(interval) => (Some(interval.to), interval.from),
        }
    }

    fn describe(self) -> String {
        match self {
            Move::Stay(offset) => format!("stays at {offset}"),
            Move::Start(offset) => format!("begins at {offset}"),
            Move::Skip(Interval { from, to }) => {
                format!("{from} → {to}, a gap of {} offsets that are never decided", to - from)
            }
            Move::Rewind(Interval { from, to }) => format!("{to} → {from}, back over offsets that are not decided"),
        }
    }
}

pub fn reset(arguments: &ResetArguments) -> anyhow::Result<()> {
    let config = arguments.config.load()?;
    let target = target(&arguments.to).map_err(UsageError)?;
    let probe = probe(&config)?;
    runtime().context("cannot start threads")?.block_on(async {
        if arguments.dry_run {
            let catalog = SqlCatalog::open(&config.catalog.url, Access::Read).await?;
            catalog.check_schema().await?;
            let moves = plan(arguments, &config, &probe, &catalog, target).await?;
            return say(arguments, &moves);
        }
        refuse_live_members(&config, &probe)?;
        let catalog = open_catalog(&config).await?;
        let moves = plan(arguments, &config, &probe, &catalog, target).await?;
        if catalog.totals(&config.pipeline).await?.is_none() {
            let model = load_model(&config)?;
            catalog.register(&config.pipeline, &model.id, &model.bytes).await?;
        }
        for (at, step) in &moves {
            carry_out(&config.pipeline, &catalog, at, *step).await?;
        }
        say(arguments, &moves)
    })
}

fn target(text: &str) -> Result<Target, String> {
    let wrong = || format!("--to {text}: expected earliest, latest, timestamp:TIME or offset:N");
    Ok(match text.split_once(':') {
        None if text == "earliest" => Target::Resolved(StartPolicy::Earliest),
        None if text == "latest" => Target::Resolved(StartPolicy::Latest),
        Some(("offset", offset)) => Target::Offset(offset.parse().ok().filter(|n| *n >= 0).ok_or_else(wrong)?),
        Some(("timestamp", time)) => {
            let ms =
                time.parse().ok().or_else(|| Some(chrono::DateTime::parse_from_rfc3339(time).ok()?.timestamp_millis()));
            Target::Resolved(StartPolicy::Timestamp(ms.ok_or_else(|| {
                format!("--to {text}: expected a time such as 2026-01-31T00:00:00Z, or milliseconds since 1970")
            })?))
        }
        _ => return Err(wrong()),
    })
}

/// A worker that runs would go on where it is, and lose what it has read.
fn refuse_live_members(config: &Config, probe: &Probe) -> anyhow::Result<()> {
    let members = probe.group_members().map_err(DaemonError::from)?;
    if members.is_empty() {
        return Ok(());
    }
    let (group, n) = (&config.kafka.group, members.len());
    Err(UsageError(format!(
        "consumer group `{group}` has {n} live member{}: {}; stop all workers first (one with kafka.instance_id counts until \
         kafka.session_timeout, {}, is over)",
        if n == 1 { "" } else { "s" },
        members.join(", "),
        humantime::format_duration(config.kafka.session_timeout),
    ))
    .into())
}

/// What comes of each partition that is asked for; refuses all if one must be refused.
async fn plan(
    arguments: &ResetArguments,
    config: &Config,
    probe: &Probe,
    catalog: &SqlCatalog,
    target: Target,
) -> anyhow::Result<Vec<(TopicPartition, Move)>> {
    let topics = &config.kafka.topics;
    if let Some(topic) = arguments.topic.as_ref().filter(|topic| !topics.contains(topic)) {
        return Err(UsageError(format!("--topic {topic}: kafka.topics has {}", topics.join(", "))).into());
    }
    if arguments.partition.is_some() && arguments.topic.is_none() && topics.len() > 1 {
        return Err(UsageError("--partition needs --topic where kafka.topics has several".to_owned()).into());
    }
    let wanted = |at: &TopicPartition| {
        arguments.topic.as_deref().is_none_or(|topic| topic == &*at.topic)
            && arguments.partition.is_none_or(|partition| partition == at.partition)
    };
    let recreated = recreated_topics(config, probe, catalog).await?;
    let (mut moves, mut refused) = (Vec::new(), recreated.iter().map(ToString::to_string).collect::<Vec<_>>());
    for place in survey(config, probe, catalog).await?.into_iter().filter(|place| wanted(&place.at)) {
        let published = catalog.published_end(&config.pipeline, &place.at).await?;
        match plan_one(&place, published, probe, target)? {
            Ok(step) => moves.push((place.at, step)),
            Err(problem) => refused.push(problem),
        }
    }
    if !refused.is_empty() {
        return Err(UsageError(format!("nothing is changed: {}", refused.join("\n  "))).into());
    }
    if moves.is_empty() {
        return Err(UsageError("Kafka has no such partition".to_owned()).into());
    }
    Ok(moves)
}

/// The inner error: why it is refused.
fn plan_one(
    place: &Place,
    published: Option<i64>,
    probe: &Probe,
    target: Target,
) -> Result<Result<Move, String>, DaemonError> {
    let at = &place.at;
    let Some((low, high)) = place.log else { return Ok(Err(format!("partition {at}: is not in Kafka"))) };
    let to = match target {
        Target::Offset(offset) if (low..=high).contains(&offset) => offset,
        Target::Offset(offset) => {
            return Ok(Err(format!("partition {at}: offset {offset} is not in the log, which holds {low}..{high}")));
        }
        Target::Resolved(policy) => probe.offset(at, policy)?,
    };
    Ok(decide(at, place.next_offset(), published, to).map_err(|e| e.to_string()))
}

async fn carry_out(pipeline: &str, catalog: &SqlCatalog, at: &TopicPartition, step: Move) -> anyhow::Result<()> {
    if let Move::Stay(_) = step {
        return Ok(());
    }
    // From now on nobody publishes who had it before; whoever claims it meanwhile is left alone.
    let claims = catalog.claim(pipeline, std::slice::from_ref(at), OWNER).await?;
    let epoch = claims.first().map_or(0, |claim| claim.owner_epoch);
    let done = match step {
        Move::Stay(_) => Ok(()),
        Move::Start(offset) => catalog.start(pipeline, at, epoch, offset).await.and_then(|stored| {
            let interval = Interval { from: offset, to: offset };
            let moved = CatalogError::Fenced { at: at.clone(), interval, owner_epoch: epoch };
            if stored == offset { Ok(()) } else { Err(moved) }
        }),
        Move::Skip(interval) => catalog.skip(pipeline, at, interval, epoch, GapReason::Reset).await,
        Move::Rewind(interval) => catalog.rewind(pipeline, at, interval, epoch).await,
    };
    match done {
        Err(CatalogError::Fenced { .. }) => {
            let problem = format!("partition {at}: a worker moved it meanwhile; stop all workers and look at it again");
            Err(UsageError(problem).into())
        }
        done => Ok(done?),
    }
}

fn say(arguments: &ResetArguments, moves: &[(TopicPartition, Move)]) -> anyhow::Result<()> {
    let mut text = String::new();
    for (at, step) in moves {
        let line = if arguments.json {
            let (from, to) = step.ends();
            json!({
                "topic": at.topic, "partition": at.partition, "act": step.act(), "from": from, "to": to,
                "dry_run": arguments.dry_run,
            })
            .to_string()
        } else {
            format!("{at}: {}", step.describe())
        };
        text.push_str(&line);
        text.push('\n');
    }
    if arguments.dry_run && !arguments.json {
        text.push_str("nothing was changed (--dry-run)\n");
    }
    print(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_or_refused() {
        let timestamp = |ms| Ok(Target::Resolved(StartPolicy::Timestamp(ms)));
        assert_eq!(target("earliest"), Ok(Target::Resolved(StartPolicy::Earliest)));
        assert_eq!(target("latest"), Ok(Target::Resolved(StartPolicy::Latest)));
        assert_eq!(target("timestamp:1700000000000"), timestamp(1_700_000_000_000));
        assert_eq!(target("timestamp:2023-11-14T22:13:20Z"), timestamp(1_700_000_000_000));
        assert_eq!(target("offset:7"), Ok(Target::Offset(7)));
        for wrong in ["", "begin", "7", "offset:", "offset:-1", "offset:x", "timestamp:", "timestamp:noon", "latest:1"]
        {
            assert!(target(wrong).is_err_and(|problem| problem.contains(wrong)), "{wrong}");
        }
    }

    #[test]
    fn a_checkpoint_moves_anywhere_but_into_what_is_published() {
        let at = TopicPartition::new("t", 0);
        let decide = |next, published, to| decide(&at, next, published, to).map_err(|e| e.to_string());
        let interval = |from, to| Interval { from, to };
        assert_eq!(decide(None, None, 5), Ok(Move::Start(5)));
        assert_eq!(decide(Some(5), Some(5), 5), Ok(Move::Stay(5)));
        assert_eq!(decide(Some(5), Some(5), 9), Ok(Move::Skip(interval(5, 9))));
        assert_eq!(decide(Some(9), Some(5), 5), Ok(Move::Rewind(interval(5, 9))));
        assert_eq!(decide(Some(9), None, 0), Ok(Move::Rewind(interval(0, 9))));
        let refused = decide(Some(9), Some(5), 4).unwrap_err();
        assert!(refused.contains("offset 4 is decided already, everything below 5 is published"), "{refused}");
        assert!(refused.contains("a new pipeline.name"), "{refused}");
    }
}
