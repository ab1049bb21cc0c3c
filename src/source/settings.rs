//! The settings of the Kafka client, derived from ours and from the memory budget.

use rdkafka::ClientConfig;

use crate::config::KafkaConfig;

/// The memory that reading may take.
#[derive(Debug, Clone, Copy)]
pub struct SourceLimits {
    /// Fetched by the client and not polled yet.
    pub prefetch_bytes: usize,
    /// One fetch answer.
    pub fetch_bytes: usize,
}

impl SourceLimits {
    /// A quarter of the budget is for what the client has fetched.
    pub fn of_budget(budget_bytes: usize) -> Self {
        SourceLimits { prefetch_bytes: budget_bytes / 4, fetch_bytes: (budget_bytes / 16).min(50 << 20) }
    }
}

/// Settings that producers and consumers share: addresses and credentials.
pub fn client_config(kafka: &KafkaConfig, bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", bootstrap)
        .set("client.id", "winnowd")
        .set("security.protocol", &kafka.security_protocol);
    if let Some(sasl) = &kafka.sasl {
        config
            .set("sasl.mechanism", &sasl.mechanism)
            .set("sasl.username", &sasl.username)
            .set("sasl.password", sasl.password.reveal());
    }
    if let Some(file) = &kafka.ssl_ca_location {
        config.set("ssl.ca.location", file.to_string_lossy());
    }
    if let Some(rack) = &kafka.client_rack {
        config.set("client.rack", rack);
    }
    config
}

pub(super) fn consumer_config(kafka: &KafkaConfig, bootstrap: &str, limits: SourceLimits) -> ClientConfig {
    let mut config = client_config(kafka, bootstrap);
    let millis = |d: std::time::Duration| d.as_millis().to_string();
    config
        .set("group.id", &kafka.group)
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("session.timeout.ms", millis(kafka.session_timeout))
        .set("heartbeat.interval.ms", millis((kafka.session_timeout / 10).min(std::time::Duration::from_secs(3))))
        .set("max.poll.interval.ms", millis(kafka.max_poll_interval))
        // The catalog says where to go on. An offset that is gone must never become a silent jump.
        .set("auto.offset.reset", "error")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("enable.partition.eof", "true")
        .set("isolation.level", "read_committed")
        .set("allow.auto.create.topics", "false")
        .set("check.crcs", "true")
        .set("queued.max.messages.kbytes", (limits.prefetch_bytes >> 10).max(1).to_string())
        .set("queued.min.messages", "10000")
        // The default of a second stalls a hot partition whenever the prefetch queue was full.
        .set("fetch.queue.backoff.ms", "5")
        .set("fetch.message.max.bytes", limits.fetch_bytes.min(4 << 20).to_string())
        .set("fetch.max.bytes", limits.fetch_bytes.max(1 << 20).to_string())
        .set("statistics.interval.ms", "5000");
    if let Some(id) = &kafka.instance_id {
        config.set("group.instance.id", id);
    }
    for (property, value) in &kafka.properties {
        config.set(property, value.reveal());
    }
    config
}
