//! `winnowd offsets`: where the pipeline stands in each partition, and moving it.

mod reset;
mod show;

use std::time::Duration;

use super::{ConfigArguments, UsageError};
use crate::catalog::{CatalogError, CatalogReader, Checkpoint, Gap, SqlCatalog};
use crate::config::{Bootstrap, Config};
use crate::pipeline::DaemonError;
use crate::record::TopicPartition;
use crate::source::{LostOffset, Probe};

const TIMEOUT: Duration = Duration::from_secs(15);

#[derive(clap::Subcommand)]
pub enum OffsetsCommand {
    /// Checkpoint, owner, log and gaps of every partition
    #[command(after_help = "Example:\n  winnowd offsets show -c winnowd.toml --json | jq .lag")]
    Show(show::ShowArguments),
    /// Move checkpoints, while no worker runs: forwards past documents that shall never be decided, or back over such
    #[command(
        after_help = "Examples:\n  winnowd offsets reset -c winnowd.toml --to latest --dry-run\n  winnowd offsets reset -c \
                      winnowd.toml --to timestamp:2026-01-31T00:00:00Z\n  winnowd offsets reset -c winnowd.toml --to \
                      offset:120000 --topic documents --partition 3\n\nWhat is published stays decided: to decide documents \
                      again, use a new pipeline.name."
    )]
    Reset(reset::ResetArguments),
}

pub fn offsets(command: &OffsetsCommand) -> anyhow::Result<()> {
    match command {
        OffsetsCommand::Show(arguments) => show::show(arguments),
        OffsetsCommand::Reset(arguments) => reset::reset(arguments),
    }
}

/// One partition as Kafka and the catalog have it.
pub(super) struct Place {
    pub at: TopicPartition,
    /// `None`: no worker has ever claimed it.
    pub checkpoint: Option<Checkpoint>,
    /// `low..high`; `None`: Kafka has no such partition.
    pub log: Option<(i64, i64)>,
    pub gaps: Vec<Gap>,
}

impl Place {
    pub fn next_offset(&self) -> Option<i64> {
        self.checkpoint.as_ref().and_then(|checkpoint| checkpoint.next_offset)
    }

    fn lost(&self) -> Option<LostOffset> {
        let (Some(offset), Some((low, high))) = (self.next_offset(), self.log) else { return None };
        let owner_epoch = self.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.owner_epoch);
        (!(low..=high).contains(&offset)).then(|| LostOffset { at: self.at.clone(), owner_epoch, offset, low, high })
    }
}

pub(super) fn probe(config: &Config) -> anyhow::Result<Probe> {
    let Bootstrap::Servers(servers) = &config.kafka.bootstrap else {
        let problem = "kafka.bootstrap = `embedded`: the in-process cluster is gone with its process";
        return Err(UsageError(problem.to_owned()).into());
    };
    Ok(Probe::open(&config.kafka, servers, TIMEOUT).map_err(DaemonError::from)?)
}

/// Every partition of the configured topics that Kafka or the catalog knows, in order.
pub(super) async fn survey(config: &Config, probe: &Probe, catalog: &SqlCatalog) -> anyhow::Result<Vec<Place>> {
    let known = catalog_side(config, catalog).await?;
    let mut places = Vec::new();
    for (topic, partitions) in probe.topics().map_err(DaemonError::from)? {
        for partition in 0..partitions as i32 {
            let at = TopicPartition::new(topic.as_str(), partition);
            let log = Some(probe.watermarks(&at).map_err(DaemonError::from)?);
            places.push(Place { at, checkpoint: None, log, gaps: Vec::new() });
        }
    }
    let (checkpoints, gaps) = known;
    let place_of = |places: &mut Vec<Place>, at: TopicPartition| match places.iter().position(|p| p.at == at) {
        Some(place) => place,
        None => {
            places.push(Place { at, checkpoint: None, log: None, gaps: Vec::new() });
            places.len() - 1
        }
    };
    for checkpoint in checkpoints {
        let at = TopicPartition::new(checkpoint.topic.as_str(), checkpoint.partition);
        let place = place_of(&mut places, at);
        places[place].checkpoint = Some(checkpoint);
    }
    for gap in gaps {
        let place = place_of(&mut places, gap.at.clone());
        places[place].gaps.push(gap);
    }
    places.sort_by(|a, b| a.at.cmp(&b.at));
    Ok(places)
}

async fn catalog_side(config: &Config, catalog: &SqlCatalog) -> Result<(Vec<Checkpoint>, Vec<Gap>), CatalogError> {
    let (mut checkpoints, mut gaps) =
        (catalog.checkpoints(&config.pipeline).await?, catalog.gaps(&config.pipeline).await?);
    let is_configured = |topic: &str| config.kafka.topics.iter().any(|configured| configured == topic);
    checkpoints.retain(|checkpoint| is_configured(&checkpoint.topic));
    gaps.retain(|gap| is_configured(&gap.at.topic));
    Ok((checkpoints, gaps))
}
