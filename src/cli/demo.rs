//! `winnowd demo`: the real daemon on an in-process Kafka cluster and the bundled sample, in well under a minute.

mod report;
mod sample;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use tokio::sync::watch;

use super::run::shutdown_on_signal;
use super::{Interrupted, UsageError, logging, runtime};
use crate::config::Config;
use crate::features::{Featuriser, Scratch};
use crate::pipeline::{Daemon, LoadedModel};
use crate::score::{Model, NgramCounts, Provenance, Side};
use crate::telemetry::Telemetry;
use sample::Sample;

/// How long the stream may take, far beyond what it does.
const DEADLINE: Duration = Duration::from_secs(120);
const TOPIC: &str = "documents";

#[derive(clap::Args)]
pub struct DemoArguments {
    /// Folder for shards, manifest, model and catalog; what an earlier demo left there is replaced
    #[arg(long, value_name = "DIR", default_value = "winnowd-demo")]
    out: PathBuf,
    /// Leave the daemon up after the report, until Ctrl-C
    #[arg(long)]
    keep: bool,
}

/// What the stream came to.
struct Outcome {
    /// From the first record read to the last one decided and published.
    decided_in: Duration,
    /// Of that, reading and scoring.
    scored_in: Duration,
    http: std::net::SocketAddr,
}

pub fn demo(arguments: &DemoArguments) -> anyhow::Result<()> {
    let out = std::path::absolute(&arguments.out)?;
    prepare_folder(&out)?;
    let sample = Sample::load()?;
    let model = fit_model(&sample)?;
    std::fs::write(out.join("model.wnw"), &model.bytes)?;
    let toml = demo_toml(&out);
    std::fs::write(out.join("winnowd.toml"), &toml)?;
    let config = Config::from_toml(&toml, [])?;
    logging::init(config.log, None);
    println!(
        "winnowd demo: {} documents of nine sources go through Kafka. Wanted are texts like {} pages of",
        sample.stream.len(),
        sample.target.len()
    );
    println!("the manuals of PostgreSQL, Python and Rust; one document in ten of every window is selected.\n");

    let runtime = runtime().context("cannot start threads")?;
    let result = runtime.block_on(stream(config, model, &sample, &out, arguments.keep));
    runtime.shutdown_background();
    result
}

async fn stream(config: Config, model: LoadedModel, sample: &Sample, out: &Path, keep: bool) -> anyhow::Result<()> {
    let mut interrupted = shutdown_on_signal()?;
    let (stop, stopped) = watch::channel(false);
    let model_for_report = model.model.clone();
    let daemon = Daemon::open(config, model).await?;
    let (http, bootstrap) = (daemon.http_address(), daemon.bootstrap().to_owned());
    let (telemetry, catalog) = (daemon.telemetry(), daemon.catalog());
    let mut running = tokio::spawn(daemon.run(stopped));
    let watched = tokio::spawn(watch_progress(telemetry, sample.n_records(), http));
    let records: Vec<_> = sample.records().collect();
    let produced = tokio::task::spawn_blocking(move || produce(&bootstrap, &records));
    let outcome = tokio::select! {
        outcome = watched => outcome??,
        ended = &mut running => { ended??; bail!("the daemon ended before the stream did") }
        _ = interrupted.wait_for(|stop| *stop) => return Err(Interrupted.into()),
    };
    produced.await??;
    let totals = catalog.totals("demo").await?.unwrap_or_default();
    let shards = catalog.shards("demo").await?;
    report::print(&report::Facts { sample, model: &model_for_report, totals, shards, outcome: &outcome, out })?;
    if keep {
        println!("\nThe daemon stays up on http://{}; Ctrl-C ends it.", outcome.http);
        interrupted.wait_for(|stop| *stop).await?;
    }
    stop.send(true)?;
    running.await??;
    Ok(())
}

/// Waits until every record is decided.
async fn watch_progress(
    telemetry: Arc<Telemetry>,
    n_records: u64,
    http: std::net::SocketAddr,
) -> anyhow::Result<Outcome> {
    let deadline = Instant::now() + DEADLINE;
    let (mut first, mut scored) = (None, None);
    let mut tick = tokio::time::interval(Duration::from_millis(2));
    loop {
        tick.tick().await;
        let metrics = &telemetry.metrics;
        let consumed = metrics.consumed_records.get();
        let now = Instant::now();
        if consumed > 0 && first.is_none() {
            first = Some(now);
        }
        if consumed >= n_records && scored.is_none() {
            scored = Some(now);
        }
        let decided = telemetry.status().totals.n_records as u64;
        if let (Some(first), Some(scored)) = (first, scored)
            && decided >= n_records
        {
            return Ok(Outcome { decided_in: now - first, scored_in: scored - first, http });
        }
        if now > deadline {
            bail!("{decided} of {n_records} documents were decided within {} s", DEADLINE.as_secs());
        }
    }
}

fn produce(bootstrap: &str, records: &[(String, Vec<u8>)]) -> anyhow::Result<()> {
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", bootstrap).set("linger.ms", "5").create()?;
    for (key, payload) in records {
        // The key spreads the documents over the partitions, and always in the same way.
        let mut record = BaseRecord::to(TOPIC).key(key).payload(payload);
        while let Err((error, back)) = producer.send(record) {
            if error != KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) {
                return Err(error.into());
            }
            producer.poll(Duration::from_millis(10));
            record = back;
        }
        producer.poll(Duration::ZERO);
    }
    producer.flush(Duration::from_secs(30))?;
    Ok(())
}

fn fit_model(sample: &Sample) -> anyhow::Result<LoadedModel> {
    let featuriser = Featuriser::default();
    let side = |documents: &[sample::SampleDocument], input: &str| {
        let mut counts = NgramCounts::zero(featuriser.buckets as usize);
        let mut scratch = Scratch::default();
        documents.iter().for_each(|d| {
            counts.add_text(&d.text, &featuriser, &mut scratch);
        });
        let inputs = [format!("bundled sample: {input}")];
        Side { counts, provenance: Provenance::of(documents.len() as u64, inputs.into_iter()) }
    };
    let target = side(&sample.target, "every sixth page of postgresql-doc, python-doc and rust-doc");
    let model = Model::of_one_target(featuriser, target, side(&sample.stream, "everything else"))?;
    Ok(LoadedModel::from_bytes("demo", model.to_bytes())?)
}

fn demo_toml(out: &Path) -> String {
    let path = |name: &str| serde_json::Value::from(out.join(name).to_string_lossy()).to_string();
    let (model, sink) = (path("model.wnw"), path(""));
    let catalog = serde_json::Value::from(format!("sqlite://{}", out.join("catalog.db").display()));
    format!(
        r#"# What `winnowd demo` ran with. Try: winnowd shards -c {name}
[pipeline]
name = "demo"

[kafka]
bootstrap = "embedded"
topics = ["{TOPIC}"]
session_timeout = "6s"

[embedded]
partitions = 4

[model]
path = {model}

[selection]
fraction = 0.1
seed = 42
# Raw importance weights favour short texts, and the sample is full of dictionary entries.
min_tokens = 300

[window]
max_documents = 200
idle_timeout = "500ms"

[shard]
max_age = "1s"

[sink]
url = {sink}

[catalog]
url = {catalog}

[http]
listen = "127.0.0.1:0"

[log]
level = "error"
"#,
        name = out.join("winnowd.toml").display()
    )
}

/// Files that a demo makes; nothing else is ever removed.
const OWN_FILES: [&str; 8] = [
    "manifest.jsonl",
    "model.wnw",
    "winnowd.toml",
    "catalog.db",
    "catalog.db-wal",
    "catalog.db-shm",
    "catalog.db.lock",
    ".manifest.lock",
];
/// Folders of a demo's Parquet files.
const OWN_FOLDERS: [&str; 2] = ["shards", "dead-letters"];

fn prepare_folder(out: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(out).with_context(|| format!("`{}` cannot be created", out.display()))?;
    for entry in std::fs::read_dir(out)? {
        let name = entry?.file_name();
        if !OWN_FOLDERS.iter().chain(&OWN_FILES).any(|own| name == *own) {
            let name = name.to_string_lossy().into_owned();
            return Err(UsageError(format!(
                "`{}` holds `{name}`, which is not of a demo: name another --out",
                out.display()
            ))
            .into());
        }
    }
    for name in OWN_FILES {
        match std::fs::remove_file(out.join(name)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
            _ => {}
        }
    }
    for folder in OWN_FOLDERS.map(|name| out.join(name)).iter().filter(|folder| folder.is_dir()) {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "parquet") {
                std::fs::remove_file(path)?;
            }
        }
    }
    Ok(())
}
