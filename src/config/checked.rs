//! Each key's meaning: ranges, choices, and what contradicts what.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::quotas::quotas;
use super::reader::{Reader, is_secret};
use super::*;
use crate::select::{Fraction, SelectorKind, Unit};

pub(super) const KIB: u64 = 1 << 10;
pub(super) const MIB: u64 = 1 << 20;
pub(super) const GIB: u64 = 1 << 30;
/// Doubles count exactly up to here.
pub(super) const MAX_NGRAMS: u64 = 1 << 53;
const SECOND: Duration = Duration::from_secs(1);
pub(super) const HOUR: Duration = Duration::from_secs(3600);
pub(super) const DAY: Duration = Duration::from_secs(24 * 3600);

/// librdkafka settings that winnowd itself depends on, and the key to use instead.
const RESERVED: &[(&str, &str)] = &[
    ("bootstrap.servers", "use kafka.bootstrap"),
    ("metadata.broker.list", "use kafka.bootstrap"),
    ("group.id", "use kafka.group"),
    ("group.instance.id", "use kafka.instance_id"),
    ("group.protocol", "assignments are taken over with the classic protocol"),
    ("auto.offset.reset", "use kafka.start and kafka.on_lost_offset; a lost offset is never a silent jump"),
    ("enable.auto.commit", "offsets are committed by the catalog"),
    ("enable.auto.offset.store", "offsets are committed by the catalog"),
    ("enable.partition.eof", "the end of a partition closes idle windows"),
    ("partition.assignment.strategy", "cooperative-sticky is built in"),
    ("session.timeout.ms", "use kafka.session_timeout"),
    ("max.poll.interval.ms", "use kafka.max_poll_interval"),
    ("security.protocol", "use kafka.security_protocol"),
    ("sasl.mechanism", "use kafka.sasl_mechanism"),
    ("sasl.mechanisms", "use kafka.sasl_mechanism"),
    ("sasl.username", "use kafka.sasl_username"),
    ("sasl.password", "use kafka.sasl_password"),
    ("ssl.ca.location", "use kafka.ssl_ca_location"),
    ("client.rack", "use kafka.client_rack"),
    ("queued.max.messages.kbytes", "derived from memory.budget"),
    ("isolation.level", "aborted transactions are never read"),
    ("statistics.interval.ms", "whether brokers answer is told by them"),
];
/// A broker that owes an answer for longer than five seconds counts as silent.
const MAX_FETCH_WAIT_MS: u64 = 4000;

pub(super) fn check(r: &mut Reader) -> Config {
    let pipeline = name(r, "pipeline.name");
    let mut kafka = kafka(r, &pipeline);
    let (decoder, registry) = documents::documents(r);
    kafka.parts = decoder.format.parts();
    let (filter, columns) = filter::expressions(r, &decoder.fields);
    let tokenizer = filter::tokenizer(r, &columns);
    let memory_budget_bytes = r.bytes("memory.budget", 64 * MIB..=1024 * GIB) as usize;
    let dead_letters = dead_letters(r, &kafka);
    let feedback = feedback::check(r, &kafka, &dead_letters);
    if decoder.max_bytes > memory_budget_bytes / 8 {
        let (max, budget) = (decoder.max_bytes as u64, memory_budget_bytes as u64);
        let shown = |n| bytesize::ByteSize(n).display().iec().to_string();
        let problem = format!("must be at most an eighth of memory.budget ({})", shown(budget));
        r.error("documents.max_bytes", &shown(max), problem);
    }
    let quotas = quotas(r, &decoder, feedback.as_ref());
    let kind = selector(r);
    let n_pools = coverage::n_pools(&quotas, feedback.as_ref());
    let coverage = coverage::coverage(r, &kind, &decoder.fields, n_pools);
    let sensitivity = sensitivity::sensitivity(r, &kind, &decoder.fields, feedback.as_ref());
    let selector = SelectorSettings {
        kind: match kind.as_str() {
            "top_k" => SelectorKind::TopK,
            _ => SelectorKind::ImportanceResampling,
        },
        unit: unit(r, coverage.is_some() || sensitivity.is_some()),
        fraction: r.parse("selection.fraction", "1".parse().expect("1 is a fraction"), str::parse),
        temperature: r.number_above_zero("selection.temperature"),
        length_normalise: r.boolean("selection.length_normalise"),
        min_tokens: r.integer("selection.min_tokens", 0..=u64::from(u32::MAX)) as u32,
        seed: r.integer("selection.seed", 0..=u64::MAX),
        quotas,
        loss: losses::term(r, decoder.fields.loss.is_some()),
        filter,
        holdout: holdout(r),
        coverage_sample: r.integer("selection.coverage_sample", 0..=10_000) as u32,
        coverage,
        sensitivity,
    };
    coverage::must_be_left(r, &selector);
    must_not_weigh(r, &selector, feedback.as_ref());
    if !selector.quotas.sources.is_empty() {
        feedback::must_not_mix(r, feedback.as_ref());
    }
    let window = WindowPolicy {
        max_documents: r.integer("window.max_documents", 1..=100_000_000),
        max_bytes: r.bytes("window.max_bytes", KIB..=1024 * GIB),
        max_age_ms: r.duration("window.max_age", SECOND..=365 * DAY).as_millis() as i64,
    };
    let idle_timeout = r.duration("window.idle_timeout", Duration::from_millis(100)..=DAY);
    let shard = ShardConfig {
        target_bytes: r.bytes("shard.target_bytes", 64 * KIB..=16 * GIB),
        max_rows: r.integer("shard.max_rows", 1..=100_000_000),
        max_age: r.duration("shard.max_age", Duration::from_millis(100)..=DAY),
        row_group_rows: r.integer("shard.row_group_rows", 1024..=8192) as usize,
        row_group_bytes: r.bytes("shard.row_group_bytes", MIB..=64 * MIB) as usize,
        zstd_level: r.integer("shard.zstd_level", 1..=22) as i32,
    };
    let url = stores::sink_url(r);
    let options = stores::sink_options(r, url.scheme());
    let sink = SinkConfig {
        url,
        options,
        scratch_dir: r.optional("sink.scratch_dir").map(PathBuf::from),
        shuffle: r.boolean("sink.shuffle"),
        side_files: side_files(r),
    };
    if let Some(dir) = sink.scratch_dir.as_deref().filter(|dir| !dir.is_dir()) {
        r.error("sink.scratch_dir", &dir.display().to_string(), "is not a folder");
    }
    let clusters = sensitivity::clusters(r, &selector, &window);
    let edges = coverage::edges(r);
    let limits = (sensitivity::waiting_bytes(&selector, &window), memory_budget_bytes as u64);
    let is_spooled = selector.sees_whole_windows();
    let spool = coverage::spool(r, sink.scratch_dir.as_ref(), is_spooled, selector.fraction, limits);
    let catalog = CatalogConfig { url: catalog_url(r), migrate: r.boolean("catalog.migrate") };
    let losses = losses::losses(r, &kafka.topics, memory_budget_bytes);
    let level = r.parse("log.level", tracing::Level::INFO, |value| {
        value.parse().map_err(|_| "expected one of: error, warn, info, debug, trace".to_owned())
    });
    Config {
        pipeline,
        kafka,
        decoder,
        registry,
        columns,
        tokenizer,
        dead_letters,
        feedback,
        model_path: r.optional("model.path").map(PathBuf::from),
        raw: raw(r),
        against: against(r),
        selector,
        clusters,
        edges,
        spool,
        window,
        idle_timeout,
        shard,
        sink,
        catalog,
        memory_budget_bytes,
        loss_weight: losses::loss_weight(r),
        losses,
        http: losses::http(r),
        shutdown_grace: r.duration("shutdown.grace", Duration::ZERO..=HOUR),
        log: LogConfig { level, json: r.choice("log.format", &["text", "json"]) == "json" },
        tracing: traces::tracing(r),
    }
}

fn holdout(r: &mut Reader) -> Option<Fraction> {
    r.parse("selection.holdout", None, |value| match value.parse::<f64>() {
        Ok(0.0) => Ok(None),
        Ok(share) if share < 1.0 => value.parse().map(Some).map_err(|_| HOLDOUT.to_owned()),
        _ => Err(HOLDOUT.to_owned()),
    })
}

const HOLDOUT: &str = "expected a decimal from 0 to below 1, such as 0.01";

/// What is counted.
fn unit(r: &mut Reader, has_other_budgets: bool) -> Unit {
    let unit = match r.choice("selection.unit", &Unit::NAMES).as_str() {
        "tokens" => Unit::Tokens,
        _ => Unit::Documents,
    };
    if unit == Unit::Tokens && has_other_budgets {
        r.error(
            "selection.unit",
            "tokens",
            "works with importance_resampling and top_k: the others have budgets of documents",
        );
    }
    unit
}

/// Its name, `coverage` and `sensitivity` among them.
fn selector(r: &mut Reader) -> String {
    let [importance_resampling, top_k] = SelectorKind::NAMES;
    r.parse("selection.selector", importance_resampling.to_owned(), |value| match value {
        "coverage" | "sensitivity" => Ok(value.to_owned()),
        value if value == importance_resampling || value == top_k => Ok(value.to_owned()),
        _ => Err(format!("expected one of: {importance_resampling}, {top_k}, coverage, sensitivity")),
    })
}

/// Whoever weighs documents expects that to decide.
fn must_not_weigh(r: &mut Reader, selector: &SelectorSettings, feedback: Option<&FeedbackConfig>) {
    let problem = match (&selector.sensitivity, &selector.coverage) {
        (Some(_), _) => {
            "has no effect with selection.selector = sensitivity, which looks at losses and distances, but not at weights"
        }
        (None, Some(coverage)) if !coverage.looks_at_weights() => {
            "has no effect with selection.within = uniform, which draws all of a stratum alike, whatever they weigh"
        }
        (None, _) => return,
    };
    if let Some(loss) = selector.loss {
        r.error("selection.loss_coefficient", &loss.coefficient.to_string(), problem);
    }
    if let Some(feedback) = feedback.filter(|feedback| feedback.coefficient != 0.0) {
        r.error("selection.expected_loss", &feedback.coefficient.to_string(), problem);
    }
    if r.choice("model.against", &["raw", "selected"]) == "selected" {
        r.error("model.against", "selected", problem);
    }
}

fn dead_letters(r: &mut Reader, kafka: &KafkaConfig) -> DeadLetterConfig {
    let topic = r.optional("dead_letters.topic");
    if let Some(topic) = topic.as_ref().filter(|topic| kafka.topics.contains(topic)) {
        r.error("dead_letters.topic", topic, "is also read from: what is dead would come back for ever");
    }
    DeadLetterConfig {
        payload_bytes: r.bytes("dead_letters.payload_bytes", 0..=16 * MIB) as usize,
        max_ratio: r.parse("dead_letters.max_ratio", 1.0, |value| {
            let ratio = value.parse::<f64>().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
            ratio.ok_or("expected a number from 0 to 1".to_owned())
        }),
        ratio_records: r.integer("dead_letters.ratio_records", 1..=1_000_000_000),
        topic,
    }
}

fn raw(r: &mut Reader) -> RawDistribution {
    let half_life_ngrams = r.integer("model.raw_half_life_ngrams", 1..=MAX_NGRAMS);
    let prior_ngrams = r.integer("model.raw_prior_ngrams", 1..=MAX_NGRAMS);
    let history_bytes = r.bytes("model.raw_history_bytes", 0..=1024 * GIB);
    match r.choice("model.raw", &["pinned", "adaptive"]).as_str() {
        "adaptive" => RawDistribution::Adaptive { half_life_ngrams, prior_ngrams, history_bytes },
        _ => RawDistribution::Pinned,
    }
}

fn against(r: &mut Reader) -> Against {
    let share = r.parse("model.selected_share", 1.0, |value| {
        let share = value.parse::<f64>().ok().filter(|share| *share > 0.0 && *share <= 1.0);
        share.ok_or("expected a number above 0 and up to 1".to_owned())
    });
    let prior_ngrams = r.integer("model.selected_prior_ngrams", 1..=MAX_NGRAMS);
    let half_life_ngrams = Some(r.integer("model.selected_half_life_ngrams", 0..=MAX_NGRAMS)).filter(|n| *n > 0);
    let history_bytes = r.bytes("model.selected_history_bytes", 0..=1024 * GIB);
    match r.choice("model.against", &["raw", "selected"]).as_str() {
        "selected" => Against::Selected { share, prior_ngrams, half_life_ngrams, history_bytes },
        _ => Against::Raw,
    }
}

/// A name that is safe in paths, SQL and labels.
fn name(r: &mut Reader, key: &str) -> String {
    r.parse(key, "default".to_owned(), |value| {
        let fine = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        if (1..=100).contains(&value.len()) && value.bytes().all(fine) && !value.starts_with('.') {
            Ok(value.to_owned())
        } else {
            Err("expected 1 to 100 letters, digits, dots, dashes or underscores".to_owned())
        }
    })
}

fn kafka(r: &mut Reader, pipeline: &str) -> KafkaConfig {
    let partitions = r.integer("embedded.partitions", 1..=1000) as i32;
    let bootstrap = r.string("kafka.bootstrap");
    let bootstrap = match bootstrap.as_str() {
        "embedded" => Bootstrap::Embedded { partitions },
        servers => {
            for server in servers.split(',').map(str::trim) {
                let port =
                    server.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
                if !matches!(port, Some(Ok(1..))) {
                    r.error("kafka.bootstrap", servers, format!("`{server}` is no host:port"));
                }
            }
            Bootstrap::Servers(bootstrap)
        }
    };
    let topics = r.list("kafka.topics");
    if topics.is_empty() {
        r.error("kafka.topics", "[]", "name at least one topic");
    }
    for topic in &topics {
        let fine = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        if topic.is_empty() || topic.len() > 249 || !topic.bytes().all(fine) {
            r.error("kafka.topics", topic, "no valid topic name; patterns are not supported");
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    for topic in topics.iter().filter(|topic| !seen.insert(*topic)) {
        r.error("kafka.topics", topic, "named twice");
    }
    let start = r.parse("kafka.start", StartPolicy::Earliest, |value| match value {
        "earliest" => Ok(StartPolicy::Earliest),
        "latest" => Ok(StartPolicy::Latest),
        time => match chrono::DateTime::parse_from_rfc3339(time) {
            Ok(time) => Ok(StartPolicy::Timestamp(time.timestamp_millis())),
            Err(_) => Err("expected earliest, latest or a time such as 2026-01-31T00:00:00Z".to_owned()),
        },
    });
    let on_lost_offset = match r.choice("kafka.on_lost_offset", &["error", "skip"]).as_str() {
        "skip" => OnLostOffset::Skip,
        _ => OnLostOffset::Error,
    };
    let security_protocol = r.choice("kafka.security_protocol", &["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"]);
    let session_timeout = r.duration("kafka.session_timeout", SECOND..=HOUR);
    let max_poll_interval = r.duration("kafka.max_poll_interval", SECOND..=DAY);
    let drain_timeout = r.duration("kafka.drain_timeout", Duration::ZERO..=HOUR);
    let ownership_interval = r.duration("kafka.ownership_interval", Duration::ZERO..=HOUR);
    let ownership_grace = r.duration("kafka.ownership_grace", SECOND..=DAY);
    let shown = |d| humantime::format_duration(d).to_string();
    if max_poll_interval < session_timeout {
        let problem = format!("must be at least kafka.session_timeout ({})", shown(session_timeout));
        r.error("kafka.max_poll_interval", &shown(max_poll_interval), problem);
    }
    if drain_timeout > max_poll_interval / 2 {
        let problem = format!("must be at most half of kafka.max_poll_interval ({})", shown(max_poll_interval));
        r.error("kafka.drain_timeout", &shown(drain_timeout), problem);
    }
    // A partition on its way has no owner while the old one drains it.
    let ownership_grace = ownership_grace.max(drain_timeout + Duration::from_secs(10));
    KafkaConfig {
        bootstrap,
        topics,
        parts: Vec::new(),
        group: r.optional("kafka.group").unwrap_or_else(|| format!("winnowd-{pipeline}")),
        instance_id: r.optional("kafka.instance_id"),
        start,
        on_lost_offset,
        sasl: sasl(r, &security_protocol),
        security_protocol,
        ssl_ca_location: existing_file(r, "kafka.ssl_ca_location"),
        client_rack: r.optional("kafka.client_rack"),
        session_timeout,
        max_poll_interval,
        drain_timeout,
        ownership_interval,
        ownership_grace,
        properties: properties(r),
    }
}

fn sasl(r: &mut Reader, security_protocol: &str) -> Option<Sasl> {
    let wanted = security_protocol.starts_with("sasl_");
    let mechanism = r.optional("kafka.sasl_mechanism");
    let username = r.optional("kafka.sasl_username");
    let password = r.optional("kafka.sasl_password");
    if !wanted {
        for (key, value) in [("kafka.sasl_mechanism", &mechanism), ("kafka.sasl_username", &username)] {
            if let Some(value) = value {
                r.error(key, value, format!("has no effect with kafka.security_protocol = {security_protocol}"));
            }
        }
        if password.is_some() {
            let problem = format!("has no effect with kafka.security_protocol = {security_protocol}");
            r.error("kafka.sasl_password", "***", problem);
        }
        return None;
    }
    let mechanism = mechanism.unwrap_or_default();
    if !["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"].contains(&mechanism.as_str()) {
        r.error("kafka.sasl_mechanism", &mechanism, "expected one of: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512");
    }
    for (key, value) in [("kafka.sasl_username", &username), ("kafka.sasl_password", &password)] {
        if value.is_none() {
            r.error(key, "", format!("must be set with kafka.security_protocol = {security_protocol}"));
        }
    }
    Some(Sasl {
        mechanism,
        username: username.unwrap_or_default(),
        password: Secret::new(password.unwrap_or_default()),
    })
}

fn properties(r: &mut Reader) -> BTreeMap<String, Secret> {
    let properties = r.map("kafka.properties");
    for (property, value) in &properties {
        if let Some((_, instead)) = RESERVED.iter().find(|(reserved, _)| reserved == property) {
            let shown = if is_secret(property) { "***" } else { value };
            r.error(&format!("kafka.properties.{property}"), shown, format!("cannot be set: {instead}"));
        }
        if property == "fetch.wait.max.ms" && value.parse().is_ok_and(|ms: u64| ms > MAX_FETCH_WAIT_MS) {
            let problem =
                format!("must be at most {MAX_FETCH_WAIT_MS}: brokers that owe an answer for longer count as silent");
            r.error("kafka.properties.fetch.wait.max.ms", value, problem);
        }
    }
    properties.into_iter().map(|(property, value)| (property, Secret::new(value))).collect()
}

fn side_files(r: &mut Reader) -> Vec<SideFile> {
    const KEY: &str = "sink.side_files";
    let mut files = Vec::new();
    for project in r.list(KEY) {
        match SideFile::of_project(&project) {
            Some(of) => files.extend(of.iter().filter(|file| !files.contains(*file)).copied().collect::<Vec<_>>()),
            None if project == "open_lm" => {
                r.error(
                    KEY,
                    &project,
                    "cannot be served: open_lm reads SHARD.tar (WebDataset) beside its manifest, and no Parquet",
                );
            }
            None => r.error(KEY, &project, "expected some of: litdata, fms"),
        }
    }
    files
}

fn catalog_url(r: &mut Reader) -> CatalogUrl {
    const EXPECTED: &str = "expected sqlite://FILE or postgres://USER@HOST/DATABASE";
    let password = r.optional("catalog.password");
    let value = r.string("catalog.url");
    let url = match value.split_once("://") {
        Some(("sqlite", file)) if !file.is_empty() => Ok(CatalogUrl::Sqlite(PathBuf::from(file))),
        Some(("postgres" | "postgresql", _)) => match url::Url::parse(&value) {
            Ok(url) if !url.path().trim_start_matches('/').is_empty() => Ok(CatalogUrl::Postgres(url)),
            Ok(_) => Err(format!("names no database; {EXPECTED}")),
            Err(e) => Err(format!("{e}; {EXPECTED}")),
        },
        Some((scheme, _)) if scheme != "sqlite" => Err(format!("scheme `{scheme}` is not supported; {EXPECTED}")),
        _ => Err(EXPECTED.to_owned()),
    };
    let url = url.unwrap_or_else(|problem| {
        // What stands before the host may be a password.
        let shown = match (value.split_once("://"), value.rsplit_once('@')) {
            (Some((scheme, _)), Some((_, host))) => format!("{scheme}://***@{host}"),
            _ => value.clone(),
        };
        r.error("catalog.url", &shown, problem);
        CatalogUrl::Sqlite(PathBuf::new())
    });
    match (url, password) {
        (CatalogUrl::Postgres(mut url), Some(password)) => {
            if url.set_password(Some(&password)).is_err() {
                r.error("catalog.password", "***", "catalog.url has no place for a password");
            }
            CatalogUrl::Postgres(url)
        }
        (CatalogUrl::Sqlite(file), Some(_)) if !file.as_os_str().is_empty() => {
            r.error("catalog.password", "***", "a SQLite file has no password");
            CatalogUrl::Sqlite(file)
        }
        (url, _) => url,
    }
}

fn existing_file(r: &mut Reader, key: &str) -> Option<PathBuf> {
    let path = r.optional(key)?;
    if !Path::new(&path).is_file() {
        r.error(key, &path, "no such file");
    }
    Some(PathBuf::from(path))
}
