//! The settings of the Kafka client, derived from ours and from the memory budget.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;

use crate::config::KafkaConfig;

/// The most that the client takes for `queued.max.messages.kbytes`, in bytes.
const MAX_PREFETCH_BYTES: usize = 2_097_151 << 10;

/// For the answer of a broker; an answer of several megabytes takes its time.
const LEAST_TIMEOUT: Duration = Duration::from_secs(10);
const MOST_TIMEOUT: Duration = Duration::from_secs(30);

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
        SourceLimits {
            prefetch_bytes: (budget_bytes / 4).min(MAX_PREFETCH_BYTES),
            fetch_bytes: (budget_bytes / 16).min(50 << 20),
        }
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
    let millis = |d: Duration| d.as_millis().to_string();
    config
        .set("group.id", &kafka.group)
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("session.timeout.ms", millis(kafka.session_timeout))
        .set("heartbeat.interval.ms", millis((kafka.session_timeout / 10).min(Duration::from_secs(3))))
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
        // A broker that has gone silent is given up about as soon as the group gives a silent worker up. The client's own
        // default is a minute, in which a partition stays with a leader that sleeps.
        .set("socket.timeout.ms", millis(kafka.session_timeout.clamp(LEAST_TIMEOUT, MOST_TIMEOUT)))
        .set("statistics.interval.ms", "2000");
    if let Some(id) = &kafka.instance_id {
        config.set("group.instance.id", id);
    }
    for (property, value) in &kafka.properties {
        config.set(property, value.reveal());
    }
    config
}

/// Has the client itself look at the settings, pass-through ones among them; says what is wrong, without values.
pub fn check_settings(kafka: &KafkaConfig, budget_bytes: usize) -> Result<(), String> {
    let config = consumer_config(kafka, "localhost:9092", SourceLimits::of_budget(budget_bytes));
    config.create_native_config().map(drop).map_err(|e| without_value(&e))
}

/// The message of an error without the value of the setting that it may be about, which may be a secret.
pub(super) fn without_value(error: &KafkaError) -> String {
    match error {
        KafkaError::ClientConfig(_, problem, key, value) => {
            let problem = if value.is_empty() { problem.clone() } else { problem.replace(value.as_str(), "***") };
            format!("`kafka.properties.{key}` = `***`: {problem}")
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn check(toml: &str) -> Result<(), String> {
        let config = Config::from_toml(toml, []).expect("winnowd itself finds nothing wrong");
        check_settings(&config.kafka, config.memory_budget_bytes)
    }

    #[test]
    fn the_client_refuses_what_it_does_not_know_without_telling_values() {
        check("").expect("the defaults are fine");
        check("memory.budget = \"900GiB\"").expect("any budget is fine");
        for toml in ["\"ssl.keystore.pasword\" = \"hunter2\"", "\"fetch.wait.max.ms\" = \"hunter2\""] {
            let problem = check(&format!("[kafka.properties]\n{toml}")).expect_err("a mistake");
            assert!(problem.starts_with("`kafka.properties.") && !problem.contains("hunter2"), "{problem}");
        }
    }

    #[test]
    fn a_silent_broker_is_given_up_about_as_soon_as_a_silent_worker() {
        for (session, expected) in [("6s", "10000"), ("20s", "20000"), ("45s", "30000")] {
            let toml = format!("kafka.session_timeout = \"{session}\"");
            let config = Config::from_toml(&toml, []).expect("a valid configuration");
            let limits = SourceLimits::of_budget(config.memory_budget_bytes);
            let set = consumer_config(&config.kafka, "localhost:9092", limits);
            assert_eq!(set.get("socket.timeout.ms"), Some(expected));
        }
    }

    /// The bundled client is built with TLS and these mechanisms; a client that lacked one would refuse to be created.
    #[test]
    fn tls_and_sasl_are_built_in() {
        for protocol in ["sasl_plaintext", "sasl_ssl"] {
            for mechanism in ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] {
                let toml = format!(
                    "[kafka]\nsecurity_protocol = \"{protocol}\"\nsasl_mechanism = \"{mechanism}\"\nsasl_username = \"u\"\nsasl_password = \"p\""
                );
                let config = Config::from_toml(&toml, []).expect("a valid configuration");
                let limits = SourceLimits::of_budget(config.memory_budget_bytes);
                let client: Result<rdkafka::consumer::BaseConsumer, _> =
                    consumer_config(&config.kafka, "127.0.0.1:1", limits).create();
                assert!(client.is_ok(), "{protocol} with {mechanism}: {:?}", client.err());
            }
        }
    }
}
