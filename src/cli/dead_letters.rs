//! `winnowd dead-letters`: records that could not be read, to look at and to send again.

use anyhow::Context;
use serde_json::json;

use super::{ConfigArguments, UsageError, print, runtime};
use crate::catalog::{Access, CatalogReader, SqlCatalog};
use crate::config::{Bootstrap, Config};
use crate::manifest::{DeadLetterFile, rfc3339};
use crate::pipeline::{DaemonError, send_dead_letter};
use crate::record::RejectReason;
use crate::sink::{ShardStore, StoredDeadLetter, read_dead_letters};
use crate::source::TopicWriter;

#[derive(clap::Subcommand)]
pub enum DeadLettersCommand {
    /// List dead letters in order of publication
    List(ListArguments),
    /// Send the payloads of dead letters to a topic again
    #[command(
        after_help = "Key and headers of a record are not kept, nor is more of its payload than dead_letters.payload_bytes: what was cut, \
                      and what had no payload, is counted and not sent. Sending twice gives two records."
    )]
    Redrive(RedriveArguments),
}

#[derive(clap::Args)]
pub struct Choice {
    #[command(flatten)]
    config: ConfigArguments,
    /// Only those with this reason
    #[arg(long)]
    reason: Option<String>,
    /// Only those of this topic
    #[arg(long)]
    topic: Option<String>,
    /// Only those of this partition
    #[arg(long)]
    partition: Option<i32>,
}

#[derive(clap::Args)]
pub struct ListArguments {
    #[command(flatten)]
    choice: Choice,
    /// How many at most
    #[arg(long, default_value_t = 100)]
    limit: u64,
    /// One JSON object a line, with the payload as text, or as base64 where it is none
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub struct RedriveArguments {
    #[command(flatten)]
    choice: Choice,
    /// The topic; it must exist
    #[arg(long, value_name = "TOPIC")]
    to: String,
    /// Say what would be sent
    #[arg(long)]
    dry_run: bool,
}

pub fn dead_letters(command: &DeadLettersCommand) -> anyhow::Result<()> {
    match command {
        DeadLettersCommand::List(arguments) => list(arguments),
        DeadLettersCommand::Redrive(arguments) => redrive(arguments),
    }
}

fn list(arguments: &ListArguments) -> anyhow::Result<()> {
    let mut left = arguments.limit;
    if !arguments.json {
        print(&format!("{:<28}  {:<16}  {:>10}  {:<24}  detail\n", "position", "reason", "bytes", "timestamp"))?;
    }
    arguments.choice.each(|_, letter| {
        if left == 0 {
            return Ok(false);
        }
        left -= 1;
        print(&if arguments.json { json_line(letter) } else { line(letter) })?;
        Ok(true)
    })?;
    Ok(())
}

fn line(letter: &StoredDeadLetter) -> String {
    let position = format!("{}/{}", letter.at, letter.offset);
    let timestamp = letter.timestamp_ms.map(rfc3339).unwrap_or_default();
    // One line each, whatever came.
    let detail = letter.detail.escape_debug();
    format!("{position:<28}  {:<16}  {:>10}  {timestamp:<24}  {detail}\n", letter.reason, letter.payload_bytes)
}

fn json_line(letter: &StoredDeadLetter) -> String {
    let mut line = json!({
        "topic": &*letter.at.topic, "partition": letter.at.partition, "offset": letter.offset,
        "timestamp_ms": letter.timestamp_ms, "reason": letter.reason, "detail": letter.detail,
        "payload_bytes": letter.payload_bytes, "is_whole": letter.is_whole(),
    });
    match letter.payload.as_deref().map(|payload| (payload, std::str::from_utf8(payload))) {
        None => line["payload"] = serde_json::Value::Null,
        Some((_, Ok(text))) => line["payload"] = text.into(),
        Some((payload, Err(_))) => line["payload_base64"] = crate::base64(payload).into(),
    }
    format!("{line}\n")
}

fn redrive(arguments: &RedriveArguments) -> anyhow::Result<()> {
    let config = arguments.choice.config.load()?;
    let Bootstrap::Servers(servers) = &config.kafka.bootstrap else {
        return Err(UsageError(
            "the in-process cluster of kafka.bootstrap = \"embedded\" has gone with its process".to_owned(),
        )
        .into());
    };
    let writer = TopicWriter::connect(&config.kafka, servers).map_err(DaemonError::from)?;
    writer.check(&arguments.to).map_err(DaemonError::from)?;
    let (mut n_sent, mut n_cut, mut n_empty) = (0u64, 0u64, 0u64);
    arguments.choice.each(|pipeline, letter| {
        match &letter.payload {
            None => n_empty += 1,
            Some(_) if !letter.is_whole() => n_cut += 1,
            Some(_) => {
                n_sent += 1;
                if !arguments.dry_run {
                    let sent = send_dead_letter(&writer, &arguments.to, pipeline, letter, &|| true);
                    sent.map_err(DaemonError::from)?;
                }
            }
        }
        Ok(true)
    })?;
    let n_refused = writer.flush(&|| true).map_err(DaemonError::from)?;
    let verb = if arguments.dry_run { "would be sent" } else { "sent" };
    let mut text = format!("{} dead letters {verb} to {}\n", n_sent - n_refused, arguments.to);
    let reasons = [
        (n_cut, "only the beginning is kept; dead_letters.payload_bytes says how much"),
        (n_empty, "they have no payload"),
        (n_refused, "too large for the topic"),
    ];
    for (n, why) in reasons.into_iter().filter(|(n, _)| *n > 0) {
        text += &format!("{n} not sent: {why}\n");
    }
    print(&text)
}

impl Choice {
    /// Reads file after file; `act` tells whether to go on.
    fn each(&self, mut act: impl FnMut(&str, &StoredDeadLetter) -> anyhow::Result<bool>) -> anyhow::Result<()> {
        let reasons = RejectReason::ALL.map(RejectReason::as_str);
        if let Some(reason) = self.reason.as_deref().filter(|reason| !reasons.contains(reason)) {
            return Err(UsageError(format!("--reason {reason}: expected one of: {}", reasons.join(", "))).into());
        }
        let config = self.config.load()?;
        let store = ShardStore::open(&config.sink).map_err(DaemonError::from)?;
        let runtime = runtime().context("cannot start threads")?;
        for DeadLetterFile { path, .. } in runtime.block_on(files(&config))? {
            let content = runtime.block_on(store.read(&path)).map_err(DaemonError::from)?;
            for letter in read_dead_letters(&path, content).map_err(DaemonError::from)? {
                let letter = letter.map_err(DaemonError::from)?;
                let is_chosen = self.reason.as_ref().is_none_or(|reason| *reason == letter.reason)
                    && self.topic.as_ref().is_none_or(|topic| **topic == *letter.at.topic)
                    && self.partition.is_none_or(|partition| partition == letter.at.partition);
                if is_chosen && !act(&config.pipeline, &letter)? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

async fn files(config: &Config) -> anyhow::Result<Vec<DeadLetterFile>> {
    let catalog = SqlCatalog::open(&config.catalog.url, Access::Read).await?;
    catalog.check_schema().await?;
    Ok(catalog.dead_letter_files(&config.pipeline).await?)
}
