//! A broker, a daemon in a process of its own, and what can be asked of both from outside.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use arrow::array::{Array, Float64Array, Int32Array, Int64Array, StringArray};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use winnowd::catalog::{Access, CatalogReader, SqliteCatalog, StoredDeadLetter, Totals};
use winnowd::features::{Featuriser, Scratch};
use winnowd::score::{Model, NgramCounts, Provenance};
use winnowd::window::WindowSummary;

/// Far beyond what anything here takes.
pub const DEADLINE: Duration = Duration::from_secs(240);

/// Waits until `done` gives something, looking often.
pub fn wait_for<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(Instant::now() < deadline, "timed out waiting for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Says to this test binary, started again, that it shall be the in-process cluster: a topic and its partitions.
const EMBEDDED_BROKER: &str = "WINNOWD_TEST_EMBEDDED_BROKER";
const ADDRESS: &str = "embedded broker on ";

/// The in-process cluster in a process of its own, so that the daemon can be killed beside it. Does nothing unless the
/// environment asks for it; ends when its standard input does, so with the test that started it.
pub fn embedded_broker_process() {
    let Ok(topic) = std::env::var(EMBEDDED_BROKER) else { return };
    let (topic, partitions) = topic.split_once(' ').expect("a topic and its partitions");
    let partitions = partitions.parse().expect("a number");
    let cluster =
        winnowd::source::embedded::EmbeddedCluster::start(&[topic.to_owned()], partitions).expect("a cluster");
    println!("{ADDRESS}{}", cluster.bootstrap());
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

/// A topic on the broker of `KAFKA_BOOTSTRAP`, or else on an in-process cluster of its own.
pub struct Broker {
    pub bootstrap: String,
    pub topic: String,
    pub partitions: i32,
    embedded: Option<Child>,
}

impl Broker {
    pub fn with_topic(name: &str, partitions: i32) -> Self {
        let topic = format!(
            "{name}-{}-{:x}",
            std::process::id(),
            Instant::now().elapsed().subsec_nanos() ^ random_seed() as u32
        );
        if let Ok(bootstrap) = std::env::var("KAFKA_BOOTSTRAP") {
            create_topic(&bootstrap, &topic, partitions);
            return Broker { bootstrap, topic, partitions, embedded: None };
        }
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["embedded_broker_process", "--exact", "--nocapture"])
            .env(EMBEDDED_BROKER, format!("{topic} {partitions}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the embedded broker starts");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines().map_while(Result::ok);
        let bootstrap =
            lines.filter_map(|line| Some(line.split_once(ADDRESS)?.1.to_owned())).next().expect("an address");
        Broker { bootstrap, topic, partitions, embedded: Some(child) }
    }

    /// Real Kafka, which keeps everything and takes large messages.
    pub fn is_real(&self) -> bool {
        self.embedded.is_none()
    }

    /// A plain consumer in the daemon's group.
    pub fn rival(&self, deployment: &Deployment) -> BaseConsumer {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.bootstrap)
            .set("group.id", deployment.group(self))
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("session.timeout.ms", "6000")
            .set("enable.auto.commit", "false")
            .create()
            .expect("a consumer");
        consumer.subscribe(&[&self.topic]).expect("a subscription");
        consumer
    }

    /// Deletes the records of a partition before an offset, as retention does. Real Kafka only.
    pub fn delete_before(&self, partition: i32, offset: i64) {
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset(&self.topic, partition, Offset::Offset(offset)).expect("an offset");
        let admin: AdminClient<DefaultClientContext> =
            ClientConfig::new().set("bootstrap.servers", &self.bootstrap).create().expect("an admin client");
        block_on(admin.delete_records(&offsets, &AdminOptions::new())).expect("records are deleted");
    }

    pub fn producer(&self) -> TestProducer {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.bootstrap).set("enable.idempotence", self.is_real().to_string());
        config.set("message.max.bytes", "26000000").set("linger.ms", "5").set("queue.buffering.max.messages", "50000");
        TestProducer { producer: config.create().expect("a producer"), topic: self.topic.clone() }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(child) = &mut self.embedded {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn create_topic(bootstrap: &str, topic: &str, partitions: i32) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", bootstrap).create().expect("an admin client");
    let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1)).set("max.message.bytes", "26214400");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let created = runtime.block_on(admin.create_topics([&new], &AdminOptions::new())).expect("the topic is created");
    created.into_iter().for_each(|topic| {
        topic.expect("the topic is created");
    });
}

impl Broker {
    pub fn transactional_producer(&self) -> TestProducer {
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", &self.bootstrap)
            .set("transactional.id", &self.topic)
            .create()
            .expect("a producer");
        producer.init_transactions(Duration::from_secs(30)).expect("transactions");
        TestProducer { producer, topic: self.topic.clone() }
    }
}

pub struct TestProducer {
    producer: BaseProducer,
    topic: String,
}

impl TestProducer {
    /// Sends to one partition; `None` is a tombstone.
    pub fn send(&self, partition: i32, payload: Option<&[u8]>) {
        let mut record = BaseRecord::<(), [u8]>::to(&self.topic).partition(partition);
        if let Some(payload) = payload {
            record = record.payload(payload);
        }
        while let Err((error, back)) = self.producer.send(record) {
            assert_eq!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), "sending");
            self.producer.poll(Duration::from_millis(5));
            record = back;
        }
        self.producer.poll(Duration::ZERO);
    }

    /// Sends within a transaction, which is committed or aborted.
    pub fn transaction(&self, commit: bool, send: impl FnOnce(&Self)) {
        self.producer.begin_transaction().expect("a transaction");
        send(self);
        self.flush();
        let timeout = Duration::from_secs(30);
        let end =
            if commit { self.producer.commit_transaction(timeout) } else { self.producer.abort_transaction(timeout) };
        end.expect("the end of the transaction");
    }

    /// Waits until the broker has everything.
    pub fn flush(&self) {
        self.producer.flush(Duration::from_secs(60)).expect("everything is delivered");
        assert_eq!(self.producer.in_flight_count(), 0);
    }
}

/// A document of a few dozen tokens whose importance varies.
pub fn document(n: u64) -> Vec<u8> {
    const WORDS: [&str; 8] = ["select", "table", "index", "king", "thou", "query", "night", "vacuum"];
    let mut state = n.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut text = String::new();
    for _ in 0..24 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        text.push_str(WORDS[(state >> 61) as usize]);
        text.push(' ');
    }
    serde_json::json!({ "id": format!("d{n}"), "source": format!("s{}", n % 3), "text": text, "n": n })
        .to_string()
        .into_bytes()
}

/// A model that likes databases better than Shakespeare.
pub fn model_bytes() -> Vec<u8> {
    let featuriser = Featuriser::default();
    let count = |text: &str| {
        let mut counts = NgramCounts::zero(featuriser.buckets());
        counts.add_text(text, &featuriser, &mut Scratch::default());
        counts
    };
    let target = count("select index from table query vacuum table index select query night");
    let raw = count("king thou night select thou king table index night query vacuum king thou select");
    Model::new(featuriser, target, raw, Provenance::default()).expect("both sides have n-grams").to_bytes()
}

/// A folder with a model, a configuration, and what the daemon makes.
pub struct Deployment {
    pub folder: tempfile::TempDir,
    pub config: PathBuf,
}

impl Deployment {
    /// `extra`: further lines of TOML.
    pub fn new(broker: &Broker, extra: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("model.wnw"), model_bytes()).expect("a model");
        let config = folder.path().join("winnowd.toml");
        let path = folder.path().display();
        let toml = format!(
            r#"
pipeline.name = "test"
kafka.bootstrap = "{bootstrap}"
kafka.topics = ["{topic}"]
kafka.group = "{group}"
kafka.instance_id = "worker-0"
kafka.session_timeout = "6s"
model.path = "{path}/model.wnw"
sink.url = "{path}/out"
catalog.url = "sqlite://{path}/catalog.db"
http.listen = "127.0.0.1:0"
selection.min_tokens = 5
selection.seed = 7
window.idle_timeout = "1s"
{roll}
{extra}
"#,
            roll = if extra.contains("shard.max_age") { "" } else { "shard.max_age = \"500ms\"" },
            bootstrap = broker.bootstrap,
            topic = broker.topic,
            group = group(folder.path(), broker),
        );
        std::fs::write(&config, toml).expect("a configuration");
        Deployment { folder, config }
    }

    pub fn group(&self, broker: &Broker) -> String {
        group(self.folder.path(), broker)
    }

    pub fn start(&self) -> DaemonProcess {
        self.try_start().unwrap_or_else(|log| panic!("the daemon ended at once:\n{log}"))
    }

    pub fn try_start(&self) -> Result<DaemonProcess, String> {
        DaemonProcess::start(&self.config, &self.folder.path().join("log"))
    }

    pub fn winnowd(&self, arguments: &[&str]) -> Output {
        winnowd(&[arguments, &["-c", &self.config.to_string_lossy()]].concat())
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    pub fn published(&self) -> Published {
        Published::read(self.folder.path())
    }

    /// What the catalog has summed up, or nothing yet.
    pub fn totals(&self) -> Totals {
        block_on(async {
            let catalog = SqliteCatalog::open(&self.folder.path().join("catalog.db"), Access::Read).await.ok()?;
            catalog.totals("test").await.ok().flatten()
        })
        .unwrap_or_default()
    }
}

/// A consumer group of one deployment.
fn group(folder: &Path, broker: &Broker) -> String {
    format!("{}-{}", broker.topic, folder.file_name().expect("a name").to_string_lossy().replace('.', ""))
}

pub fn winnowd(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_winnowd"));
    command.args(arguments).output().expect("winnowd runs")
}

/// `winnowd run`, killed when dropped.
pub struct DaemonProcess {
    pub child: Child,
    pub http: String,
}

impl DaemonProcess {
    fn start(config: &Path, log: &Path) -> Result<Self, String> {
        let offset = std::fs::metadata(log).map_or(0, |m| m.len() as usize);
        let file = File::options().create(true).append(true).open(log).expect("a log");
        let mut child = Command::new(env!("CARGO_BIN_EXE_winnowd"))
            .args(["run", "-c"])
            .arg(config)
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .expect("winnowd starts");
        let http = wait_for("the port", || {
            let text = std::fs::read_to_string(log).unwrap_or_default();
            let new = text.get(offset..).unwrap_or_default();
            if let Some(at) = new.find("on http://") {
                let rest = &new[at + "on http://".len()..];
                return rest.find('\n').map(|end| Ok(rest[..end].trim().to_owned()));
            }
            child
                .try_wait()
                .expect("a status")
                .map(|_| Err(std::fs::read_to_string(log).unwrap_or_default()[offset..].to_owned()))
        })?;
        Ok(DaemonProcess { child, http })
    }

    pub fn get(&self, path: &str) -> (u16, String) {
        http_get(&self.http, path).expect("an answer")
    }

    /// One value of `/metrics`.
    pub fn metric(&self, series: &str) -> f64 {
        let (_, text) = self.get("/metrics");
        let line = text.lines().find(|l| l.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')));
        let line = line.unwrap_or_else(|| panic!("no `{series}` in:\n{text}"));
        line.rsplit(' ').next().expect("a value").parse().expect("a number")
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(status.expect("kill runs").success());
    }

    pub fn kill_9(mut self) {
        self.child.kill().expect("kill -9");
        self.child.wait().expect("it is dead");
    }

    /// SIGTERM, then its exit code.
    pub fn stop(mut self) -> Option<i32> {
        self.signal("TERM");
        wait_for("the daemon's end", || self.child.try_wait().expect("a status")).code()
    }

    /// Peak resident size in bytes.
    pub fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("Linux");
        let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).expect("a peak");
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().expect("a number") * 1024
    }
}

impl Drop for DaemonProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn http_get(address: &str, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::InvalidData)?;
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or(std::io::ErrorKind::InvalidData)?;
    Ok((status, body.to_owned()))
}

/// One row of a shard.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub id: String,
    pub partition: i32,
    pub offset: i64,
    pub log_importance_weight: f64,
    pub selection_key: f64,
    pub inclusion_probability: f64,
    pub sample_weight: f64,
    pub window: String,
}

/// Everything that a deployment has published.
pub struct Published {
    pub totals: Totals,
    pub windows: Vec<WindowSummary>,
    pub dead_letters: Vec<StoredDeadLetter>,
    pub rows: Vec<Row>,
}

impl Published {
    fn read(folder: &Path) -> Self {
        let (totals, windows, dead_letters, shards) = block_on(async {
            let catalog = SqliteCatalog::open(&folder.join("catalog.db"), Access::Read).await.expect("the catalog");
            let totals = catalog.totals("test").await.expect("totals").unwrap_or_default();
            let windows = catalog.windows("test").await.expect("windows");
            let dead_letters = catalog.dead_letters("test", i64::MAX).await.expect("dead letters");
            (totals, windows, dead_letters, catalog.shards("test").await.expect("shards"))
        });
        // Trainers see the manifest; it must say what the catalog says, and the files must be what it says.
        let manifest = std::fs::read_to_string(folder.join("out/manifest.jsonl")).unwrap_or_default();
        assert_eq!(manifest.lines().count(), shards.len(), "lines of manifest.jsonl");
        let mut rows = Vec::new();
        for (line, (sequence, shard)) in manifest.lines().zip(&shards) {
            let entry: winnowd::manifest::ManifestEntry = serde_json::from_str(line).expect("a manifest entry");
            assert_eq!(Some(&entry), shard.entry(*sequence).as_ref());
            let path = folder.join("out").join(&entry.path);
            assert_eq!(std::fs::metadata(&path).expect("the file").len(), entry.bytes);
            let digest = Command::new("sha256sum").arg(&path).output().expect("sha256sum").stdout;
            assert!(entry.digest.ends_with(String::from_utf8_lossy(&digest[..64]).as_ref()));
            let before = rows.len();
            read_rows(&path, &mut rows);
            assert_eq!((rows.len() - before) as u64, entry.rows);
        }
        Published { totals, windows, dead_letters, rows }
    }

    /// Every position from 0 to the end of each partition is decided exactly once.
    pub fn assert_exactly_once(&self, produced: &BTreeMap<i32, i64>) {
        let mut next: BTreeMap<i32, i64> = BTreeMap::new();
        let mut by_window: BTreeMap<String, u64> = BTreeMap::new();
        for window in &self.windows {
            let expected = next.entry(window.at.partition).or_default();
            assert_eq!(window.interval.from, *expected, "{}: windows follow one another", window.id());
            *expected = window.interval.to;
            assert_eq!(window.n_records, (window.interval.to - window.interval.from) as u64, "{}", window.id());
            assert_eq!(window.n_records, window.n_selected + window.n_rejected + window.n_dead_letters);
            by_window.insert(window.id(), window.n_selected);
        }
        let ends: BTreeMap<i32, i64> = produced.iter().filter(|(_, n)| **n > 0).map(|(p, n)| (*p, *n)).collect();
        assert_eq!(next, ends, "windows reach the end of every partition");

        let mut positions = BTreeSet::new();
        for row in &self.rows {
            assert!(positions.insert((row.partition, row.offset)), "position {}/{} twice", row.partition, row.offset);
            *by_window.get_mut(&row.window).expect("a published window") -= 1;
        }
        assert!(by_window.values().all(|&left| left == 0), "every selection is in a shard");
        for letter in &self.dead_letters {
            assert!(positions.insert((letter.partition, letter.offset)), "a dead letter was selected, or stands twice");
        }
        let sum = |count: fn(&WindowSummary) -> u64| self.windows.iter().map(count).sum::<u64>() as i64;
        let totals = &self.totals;
        assert_eq!(totals.n_records, ends.values().sum::<i64>());
        assert_eq!((totals.n_records, totals.n_selected), (sum(|w| w.n_records), sum(|w| w.n_selected)));
        assert_eq!((totals.n_rejected, totals.n_dead_letters), (sum(|w| w.n_rejected), sum(|w| w.n_dead_letters)));
        assert_eq!(totals.n_selected as usize, self.rows.len());
        assert_eq!(totals.n_dead_letters as usize, self.dead_letters.len());
    }
}

fn read_rows(path: &Path, rows: &mut Vec<Row>) {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).expect("the shard")).expect("Parquet");
    for batch in reader.build().expect("Parquet") {
        let batch = batch.expect("Parquet");
        let column = |name: &str| batch.column_by_name(name).expect("a documented column").as_any();
        let strings = |name| column(name).downcast_ref::<StringArray>().expect("strings");
        let floats = |name| column(name).downcast_ref::<Float64Array>().expect("numbers");
        let partitions = column("partition").downcast_ref::<Int32Array>().expect("partitions");
        let offsets = column("offset").downcast_ref::<Int64Array>().expect("offsets");
        rows.extend((0..batch.num_rows()).map(|i| Row {
            id: strings("id").value(i).to_owned(),
            partition: partitions.value(i),
            offset: offsets.value(i),
            log_importance_weight: floats("log_importance_weight").value(i),
            selection_key: floats("selection_key").value(i),
            inclusion_probability: floats("inclusion_probability").value(i),
            sample_weight: floats("sample_weight").value(i),
            window: strings("window").value(i).to_owned(),
        }));
    }
}

pub fn block_on<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(future)
}

/// From `WINNOWD_TEST_SEED`, or fresh; print it with what it was used for.
pub fn random_seed() -> u64 {
    let given = std::env::var("WINNOWD_TEST_SEED").ok().and_then(|s| s.parse().ok());
    given.unwrap_or_else(|| std::collections::hash_map::RandomState::new().hash_one(0) & 0xFFFF_FFFF)
}

use std::hash::BuildHasher;

/// A small generator for the moments of faults.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}
