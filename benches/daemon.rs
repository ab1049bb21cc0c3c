//! The whole daemon, Kafka to Parquet: the broker holds the documents before the daemon begins to read.
//!
//! `cargo bench --bench daemon [-- ROUNDS DOCUMENTS FEATURISER]`. Documents of 2.3 kB, one in ten selected. Prints one JSON line a
//! featuriser with medians: documents/s by the clock, from the first record consumed to the last one published, and by
//! the CPU time that the process used in between.
//!
//! `KAFKA_BOOTSTRAP` names a broker, which takes its own CPU time beside the daemon's; windows are of 10,000 documents, as by default.
//! Without it the in-process cluster is the broker: in windows of 800 documents, as it keeps no more, and its thread is shown apart.

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use support::{Corpus, featurisers, fit};
use tokio::sync::watch;
use winnowd::config::Config;
use winnowd::pipeline::{Daemon, LoadedModel};

const TEXT_BYTES: usize = 2250;
const TOPIC: &str = "documents";
const SHARDS: usize = 4;
const DEADLINE: Duration = Duration::from_secs(300);

/// Where the documents are, and how many.
struct Stream {
    bootstrap: Option<String>,
    topic: String,
    window_documents: usize,
    partition_documents: usize,
    partitions: usize,
}

impl Stream {
    /// Of `documents` at least, in whole windows.
    fn new(documents: usize) -> Self {
        match std::env::var("KAFKA_BOOTSTRAP") {
            Ok(bootstrap) => {
                let (window_documents, partitions) = (10_000, 4);
                Stream {
                    bootstrap: Some(bootstrap),
                    topic: format!("{TOPIC}-{}", std::process::id()),
                    window_documents,
                    partition_documents: documents.div_ceil(partitions).next_multiple_of(window_documents),
                    partitions,
                }
            }
            Err(_) => {
                // The in-process cluster keeps 5 MiB of a partition.
                let (window_documents, partition_documents) = (800, 1600);
                let partitions = documents.div_ceil(partition_documents);
                let topic = TOPIC.to_owned();
                Stream { bootstrap: None, topic, window_documents, partition_documents, partitions }
            }
        }
    }

    fn documents(&self) -> usize {
        self.partitions * self.partition_documents
    }

    /// On a broker that stays, once for all rounds.
    async fn create(&self, records: &[Vec<u8>]) {
        let Some(bootstrap) = &self.bootstrap else { return };
        let admin = self.admin(bootstrap);
        let topic = NewTopic::new(&self.topic, self.partitions as i32, TopicReplication::Fixed(1));
        let created = admin.create_topics(&[topic], &AdminOptions::new()).await.expect("an answer");
        created.into_iter().for_each(|topic| drop(topic.expect("the topic is created")));
        tokio::task::block_in_place(|| produce(bootstrap, records, self));
    }

    async fn delete(&self) {
        let Some(bootstrap) = &self.bootstrap else { return };
        let deleted = self.admin(bootstrap).delete_topics(&[&self.topic], &AdminOptions::new()).await;
        deleted.expect("an answer").into_iter().for_each(|topic| drop(topic.expect("the topic is deleted")));
    }

    fn admin(&self, bootstrap: &str) -> AdminClient<DefaultClientContext> {
        ClientConfig::new().set("bootstrap.servers", bootstrap).create().expect("an admin client")
    }
}

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|argument| argument.parse::<usize>().ok());
    let (rounds, documents) = (numbers.next().unwrap_or(3), numbers.next().unwrap_or(192_000));
    let stream = Stream::new(documents);
    let corpus = Corpus::load();
    let records = records(&corpus);
    let wanted = featurisers().into_iter().find(|(name, _)| std::env::args().any(|argument| argument == *name));
    let featurisers = wanted.map_or_else(featurisers, |one| vec![one]);
    let runtime = || tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads");
    runtime().block_on(stream.create(&records));
    let mut results: BTreeMap<&str, Vec<Run>> = BTreeMap::new();
    for round in 0..rounds {
        for &(name, featuriser) in &featurisers {
            let model = LoadedModel::from_bytes("bench", fit(&corpus, featuriser).to_bytes()).expect("a model");
            let runtime = runtime();
            let pipeline = format!("bench-{}-{round}-{name}", std::process::id());
            results.entry(name).or_default().push(runtime.block_on(run(model, &records, &stream, &pipeline)));
            runtime.shutdown_background();
        }
    }
    runtime().block_on(stream.delete());
    for (name, runs) in results {
        let median = |of: &dyn Fn(&Run) -> f64| {
            let mut values: Vec<_> = runs.iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2].round()
        };
        let n = stream.documents() as f64;
        let line = serde_json::json!({
            "stage": format!("daemon/{name}"), "documents": n,
            "documents_per_s": median(&|run| n / run.seconds),
            "documents_per_core_s": median(&|run| n / run.cpu_seconds),
            "documents_per_core_s_without_broker": median(&|run| n / (run.cpu_seconds - run.broker_seconds)),
            "threads_cpu_seconds": runs.last().map(|run| &run.threads),
        });
        println!("{line}");
    }
}

struct Run {
    seconds: f64,
    cpu_seconds: f64,
    broker_seconds: f64,
    threads: BTreeMap<String, f64>,
}

/// Records of the wanted size, cut from the corpus; at least one.
fn records(corpus: &Corpus) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    for text in &corpus.texts {
        let mut rest = text.as_str();
        while rest.len() >= TEXT_BYTES {
            let (text, next) = rest.split_at(rest.floor_char_boundary(TEXT_BYTES));
            let id = format!("document-{:07}", records.len());
            records.push(serde_json::json!({ "id": id, "text": text, "source": "bench" }).to_string().into_bytes());
            rest = next;
        }
    }
    assert!(!records.is_empty(), "no text of {TEXT_BYTES} bytes");
    records
}

async fn run(model: LoadedModel, records: &[Vec<u8>], stream: &Stream, pipeline: &str) -> Run {
    let folder = tempfile::tempdir().expect("a folder");
    let config = Config::from_toml(&toml(folder.path(), stream, pipeline), []).expect("a configuration");
    let daemon = Daemon::open(config, model).await.expect("a daemon");
    let telemetry = daemon.telemetry();
    if stream.bootstrap.is_none() {
        tokio::task::block_in_place(|| produce(daemon.bootstrap(), records, stream));
    }
    let n_records = stream.documents() as u64;
    let (stop, stopped) = watch::channel(false);
    let running = tokio::spawn(daemon.run(stopped));
    let began = wait(|| (telemetry.metrics.consumed_records.get() > 0).then(|| (Instant::now(), Cpu::now()))).await;
    let ended = wait(|| {
        let decided = telemetry.status().totals.n_records as u64;
        (decided >= n_records).then(|| (Instant::now(), Cpu::now()))
    });
    let ended = ended.await;
    let totals = telemetry.status().totals;
    assert_eq!(totals.n_selected as u64, n_records / 10, "one in ten is selected");
    stop.send(true).expect("the daemon listens");
    running.await.expect("no panic").expect("no error");
    let threads = ended.1.since(&began.1);
    Run {
        seconds: (ended.0 - began.0).as_secs_f64(),
        cpu_seconds: threads.values().sum(),
        // librdkafka's name for the thread of the in-process cluster.
        broker_seconds: threads.get("rdk:mock").copied().unwrap_or_default(),
        threads,
    }
}

async fn wait<T>(mut ready: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    // To look costs CPU time as well.
    let mut tick = tokio::time::interval(Duration::from_millis(10));
    loop {
        tick.tick().await;
        if let Some(value) = ready() {
            return value;
        }
        assert!(Instant::now() < deadline, "the daemon did not decide everything within {} s", DEADLINE.as_secs());
    }
}

/// Windows and shards end exactly with the documents, so that no timer is measured.
fn toml(folder: &Path, stream: &Stream, pipeline: &str) -> String {
    let Stream { bootstrap, topic, window_documents, partitions, .. } = stream;
    let (folder, bootstrap) = (folder.display(), bootstrap.as_deref().unwrap_or("embedded"));
    let rows = stream.documents() / 10 / SHARDS;
    format!(
        r#"
pipeline.name = "{pipeline}"
kafka.bootstrap = "{bootstrap}"
kafka.topics = ["{topic}"]
kafka.session_timeout = "30s"
embedded.partitions = {partitions}
model.path = "none"
selection.fraction = 0.1
selection.min_tokens = 0
selection.seed = 1
window.max_documents = {window_documents}
shard.max_rows = {rows}
sink.url = "{folder}/out"
sink.scratch_dir = "{folder}"
catalog.url = "sqlite://{folder}/catalog.db"
http.listen = "127.0.0.1:0"
"#
    )
}

fn produce(bootstrap: &str, records: &[Vec<u8>], stream: &Stream) {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap).set("linger.ms", "20").set("queue.buffering.max.messages", "200000");
    let producer: BaseProducer = config.create().expect("a producer");
    for (i, payload) in records.iter().cycle().take(stream.documents()).enumerate() {
        let partition = (i % stream.partitions) as i32;
        let mut record = BaseRecord::<(), [u8]>::to(&stream.topic).partition(partition).payload(payload);
        while let Err((error, back)) = producer.send(record) {
            assert_eq!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull));
            producer.poll(Duration::from_millis(10));
            record = back;
        }
    }
    producer.flush(Duration::from_secs(60)).expect("everything is produced");
}

/// CPU seconds of every thread of this process, by name.
struct Cpu(BTreeMap<u64, (String, f64)>);

impl Cpu {
    fn now() -> Self {
        let tasks = std::fs::read_dir("/proc/self/task").expect("Linux");
        let thread = |id: u64| -> Option<(String, f64)> {
            let stat = std::fs::read_to_string(format!("/proc/self/task/{id}/schedstat")).ok()?;
            let name = std::fs::read_to_string(format!("/proc/self/task/{id}/comm")).ok()?;
            let nanoseconds: f64 = stat.split(' ').next()?.parse().ok()?;
            Some((name.trim_end().to_owned(), nanoseconds / 1e9))
        };
        let ids = tasks.filter_map(|task| task.ok()?.file_name().to_str()?.parse::<u64>().ok());
        Cpu(ids.filter_map(|id| Some((id, thread(id)?))).collect())
    }

    /// By name of thread. What a thread used that has ended in between is lost: the daemon's threads all stay.
    fn since(&self, earlier: &Cpu) -> BTreeMap<String, f64> {
        let mut by_name = BTreeMap::new();
        for (id, (name, seconds)) in &self.0 {
            let before = earlier.0.get(id).map_or(0.0, |(_, seconds)| *seconds);
            *by_name.entry(name.clone()).or_insert(0.0) += seconds - before;
        }
        by_name
    }
}
