//! A topic on a broker: a real one, or the in-process cluster in a process of its own.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::{Deployment, TcpProxy, block_on};

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
    /// What the daemon takes for the address.
    pub through: String,
    pub topic: String,
    pub partitions: i32,
    embedded: Option<Child>,
}

impl Broker {
    pub fn with_topic(name: &str, partitions: i32) -> Self {
        if let Ok(bootstrap) = std::env::var("KAFKA_BOOTSTRAP") {
            return Broker::on(&bootstrap, name, partitions, 1);
        }
        let topic = unique(name);
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["embedded_broker_process", "--exact", "--nocapture"])
            .env(EMBEDDED_BROKER, format!("{topic} {partitions}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the embedded broker starts");
        // The rest stays unread but open: after a minute the test runner says there that the "test" takes long.
        let stdout = BufReader::new(child.stdout.as_mut().expect("piped"));
        let mut lines = stdout.lines().map_while(Result::ok);
        let bootstrap = lines.find_map(|line| Some(line.split_once(ADDRESS)?.1.to_owned())).expect("an address");
        Broker { through: bootstrap.clone(), bootstrap, topic, partitions, embedded: Some(child) }
    }

    /// A topic on brokers that are there already.
    pub fn on(bootstrap: &str, name: &str, partitions: i32, replicas: i32) -> Self {
        let topic = unique(name);
        create_topic(bootstrap, &topic, partitions, replicas);
        Broker { bootstrap: bootstrap.to_owned(), through: bootstrap.to_owned(), topic, partitions, embedded: None }
    }

    /// The same, which the daemon reaches through a proxy.
    pub fn behind(mut self, proxy: &TcpProxy) -> Self {
        self.through = proxy.address().to_string();
        self
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

    /// Returns when the broker has had no record behind an offset for a second, twice as long as clients let a fetch wait: one that
    /// began before has been answered.
    pub fn wait_for_empty_fetch(&self, partition: i32, offset: i64) {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.bootstrap)
            .set("group.id", format!("empty-fetch-of-{}", self.topic))
            .set("enable.partition.eof", "true")
            .set("fetch.wait.max.ms", "1000")
            .create()
            .expect("a consumer");
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.topic, partition, Offset::Offset(offset)).expect("an offset");
        consumer.assign(&list).expect("an assignment");
        super::wait_for("an empty answer", || match consumer.poll(Duration::from_millis(100))? {
            Err(KafkaError::PartitionEOF(_)) => Some(()),
            Err(error) => panic!("{error}"),
            Ok(message) => panic!("offset {} is there", message.offset()),
        });
    }

    /// A further topic on the same broker.
    pub fn other_topic(&self, name: &str, partitions: i32) -> String {
        let topic = format!("{}-{name}", self.topic);
        // The in-process cluster makes topics when they are asked for.
        if self.is_real() {
            create_topic(&self.bootstrap, &topic, partitions, 1);
        }
        topic
    }

    /// Everything in a topic, from its beginning.
    ///
    /// The in-process cluster gives a topic that it makes itself as many partitions as it likes.
    pub fn reader(&self, topic: &str) -> TestReader {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.bootstrap)
            .set("group.id", format!("reader-of-{topic}"))
            .create()
            .expect("a consumer");
        let partitions = super::wait_for("the topic", || {
            let metadata = consumer.fetch_metadata(Some(topic), Duration::from_secs(30)).expect("metadata");
            let partitions: Vec<i32> = metadata.topics().first()?.partitions().iter().map(|p| p.id()).collect();
            (!partitions.is_empty()).then_some(partitions)
        });
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            list.add_partition_offset(topic, partition, Offset::Beginning).expect("an offset");
        }
        consumer.assign(&list).expect("an assignment");
        TestReader { consumer }
    }

    /// Deletes the topic with everything in it and makes a new one of its name. Real Kafka only.
    pub fn recreate_topic(&self) {
        let admin: AdminClient<DefaultClientContext> =
            ClientConfig::new().set("bootstrap.servers", &self.bootstrap).create().expect("an admin client");
        let deleted = block_on(admin.delete_topics(&[&self.topic], &AdminOptions::new())).expect("an answer");
        deleted.into_iter().for_each(|topic| drop(topic.expect("the topic is deleted")));
        // The broker deletes in its own time: until then the name is taken, or may still be shown.
        super::wait_for("the topic to be gone", || {
            let metadata = admin.inner().fetch_metadata(None, Duration::from_secs(30)).expect("metadata");
            metadata.topics().iter().all(|topic| topic.name() != self.topic).then_some(())
        });
        create_topic(&self.bootstrap, &self.topic, self.partitions, 1);
    }

    pub fn producer(&self) -> TestProducer {
        self.producer_to(&self.topic)
    }

    pub fn producer_to(&self, topic: &str) -> TestProducer {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.bootstrap).set("enable.idempotence", self.is_real().to_string());
        config.set("message.max.bytes", "26000000").set("linger.ms", "5").set("queue.buffering.max.messages", "50000");
        TestProducer { producer: config.create().expect("a producer"), topic: topic.to_owned() }
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

fn unique(name: &str) -> String {
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").subsec_nanos();
    format!("{name}-{}-{nanos:x}", std::process::id())
}

fn create_topic(bootstrap: &str, topic: &str, partitions: i32, replicas: i32) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", bootstrap).create().expect("an admin client");
    let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(replicas)).set("max.message.bytes", "26214400");
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
        self.send_at(partition, payload, None);
    }

    /// With what stands beside the payload.
    pub fn send_with(&self, partition: i32, payload: &[u8], key: Option<&str>, headers: &[(&str, &str)]) {
        let all = headers
            .iter()
            .fold(OwnedHeaders::new(), |all, (key, value)| all.insert(Header { key, value: Some(*value) }));
        let mut record = BaseRecord::<str, [u8]>::to(&self.topic).partition(partition).payload(payload).headers(all);
        record.key = key;
        while let Err((error, back)) = self.producer.send(record) {
            assert_eq!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), "sending");
            self.producer.poll(Duration::from_millis(5));
            record = back;
        }
        self.producer.poll(Duration::ZERO);
    }

    /// The same, as of a time other than now.
    pub fn send_at(&self, partition: i32, payload: Option<&[u8]>, timestamp_ms: Option<i64>) {
        let mut record = BaseRecord::<(), [u8]>::to(&self.topic).partition(partition);
        if let Some(payload) = payload {
            record = record.payload(payload);
        }
        if let Some(timestamp_ms) = timestamp_ms {
            record = record.timestamp(timestamp_ms);
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

pub struct TestReader {
    consumer: BaseConsumer,
}

/// A record as it stands in a topic.
#[derive(Debug)]
pub struct ReadRecord {
    pub key: Option<Vec<u8>>,
    pub payload: Option<Vec<u8>>,
    pub timestamp_ms: Option<i64>,
    headers: Vec<(String, Vec<u8>)>,
}

impl ReadRecord {
    pub fn header(&self, name: &str) -> String {
        let (_, value) = self.headers.iter().find(|(key, _)| key == name).expect("the header");
        String::from_utf8(value.clone()).expect("text")
    }
}

impl TestReader {
    /// Whether everything that is in its topic now has been read.
    pub fn is_at_end(&self) -> bool {
        let positions = self.consumer.position().expect("positions");
        positions.elements().iter().all(|element| {
            let (topic, partition) = (element.topic(), element.partition());
            let watermarks = self.consumer.fetch_watermarks(topic, partition, Duration::from_secs(30));
            let (low, high) = watermarks.expect("watermarks");
            low == high || matches!(element.offset(), Offset::Offset(offset) if offset >= high)
        })
    }

    /// The next record, if it comes soon.
    pub fn next(&self) -> Option<ReadRecord> {
        let message = self.consumer.poll(Duration::from_millis(100))?.ok()?;
        let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
        Some(ReadRecord {
            key: message.key().map(<[u8]>::to_vec),
            payload: message.payload().map(<[u8]>::to_vec),
            timestamp_ms: message.timestamp().to_millis(),
            headers: headers.map(|h| (h.key.to_owned(), h.value.unwrap_or_default().to_vec())).collect(),
        })
    }
}
