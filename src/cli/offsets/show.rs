//! `winnowd offsets show`.

use std::fmt::Write;

use anyhow::Context;
use serde_json::json;

use super::{ConfigArguments, Place, probe, survey};
use crate::catalog::{Access, SqlCatalog};
use crate::cli::{print, runtime};
use crate::manifest::rfc3339;
use crate::pipeline::recreated_topics;
use crate::source::SourceError;

#[derive(clap::Args)]
pub struct ShowArguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

pub fn show(arguments: &ShowArguments) -> anyhow::Result<()> {
    let config = arguments.config.load()?;
    let probe = probe(&config)?;
    let (places, recreated) = runtime().context("cannot start threads")?.block_on(async {
        let catalog = SqlCatalog::open(&config.catalog.url, Access::Read).await?;
        catalog.check_schema().await?;
        let recreated = recreated_topics(&config, &probe, &catalog).await?;
        Ok::<_, anyhow::Error>((survey(&config, &probe, &catalog).await?, recreated))
    })?;
    if arguments.json {
        let line = |place| as_json(place, &recreated).to_string() + "\n";
        return print(&places.iter().map(line).collect::<String>());
    }
    print(&as_table(&places, &recreated)?)
}

fn lag(place: &Place) -> Option<i64> {
    Some((place.log?.1 - place.next_offset()?).max(0))
}

fn as_json(place: &Place, recreated: &[SourceError]) -> serde_json::Value {
    let is_of =
        |error: &&SourceError| matches!(error, SourceError::TopicRecreated { topic, .. } if *topic == *place.at.topic);
    let problem = recreated.iter().find(is_of).map(ToString::to_string);
    let checkpoint = place.checkpoint.as_ref();
    json!({
        "topic": place.at.topic,
        "partition": place.at.partition,
        "next_offset": place.next_offset(),
        "owner": checkpoint.map(|c| &c.owner),
        "owner_epoch": checkpoint.map(|c| c.owner_epoch),
        "low": place.log.map(|log| log.0),
        "high": place.log.map(|log| log.1),
        "lag": lag(place),
        "gaps": place.gaps,
        "problem": problem.or_else(|| Some(place.lost()?.to_string())),
    })
}

fn as_table(places: &[Place], recreated: &[SourceError]) -> Result<String, std::fmt::Error> {
    let shown = |number: Option<i64>| number.map_or("-".to_owned(), |number| number.to_string());
    let name = places.iter().map(|place| place.at.to_string().len()).max().unwrap_or(0).max("partition".len());
    let mut text = String::new();
    writeln!(
        text,
        "{:<name$}  {:>12}  {:>12}  {:>12}  {:>9}  {:>5}  owner",
        "partition", "next", "low", "high", "lag", "epoch"
    )?;
    for place in places {
        let (checkpoint, next) = (place.checkpoint.as_ref(), shown(place.next_offset()));
        let (low, high) = (shown(place.log.map(|log| log.0)), shown(place.log.map(|log| log.1)));
        let (lag, epoch) = (shown(lag(place)), shown(checkpoint.map(|c| c.owner_epoch)));
        let owner = checkpoint.map_or("-", |c| &c.owner);
        let at = place.at.to_string();
        writeln!(text, "{at:<name$}  {next:>12}  {low:>12}  {high:>12}  {lag:>9}  {epoch:>5}  {owner}")?;
    }
    if places.iter().any(|place| !place.gaps.is_empty()) {
        writeln!(text, "\nGaps, whose documents are never decided")?;
        for gap in places.iter().flat_map(|place| &place.gaps) {
            let (at, interval, reason) = (gap.at.to_string(), gap.interval.to_string(), gap.reason.as_str());
            let (n, noted) = (gap.interval.to - gap.interval.from, rfc3339(gap.noted_at_ms));
            writeln!(text, "{at:<name$}  {interval:>26}  {n:>12}  {reason:<9}  {noted}")?;
        }
    }
    for lost in places.iter().filter_map(Place::lost) {
        writeln!(text, "\n{lost}")?;
    }
    for error in recreated {
        writeln!(text, "\n{error}")?;
    }
    Ok(text)
}
