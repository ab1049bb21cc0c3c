//! `winnowd produce`: documents of files to a topic, as records that the daemon reads.

use std::ops::Range;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanCount};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::files::{Files, ReadArguments, total_bytes};
use super::progress::Progress;
use super::{ConfigArguments, Interrupted, UsageError, print, runtime};
use crate::config::{Bootstrap, Config};
use crate::pipeline::DaemonError;
use crate::record::{FieldNames, Reject, RejectReason, TextScratch};
use crate::source::files::{ChunkReader, FileError, Input, Wanted};
use crate::source::{OutgoingRecord, Probe, SourceError, TopicWriter, create_topic};

/// For the answer which topics there are.
const METADATA_TIMEOUT: Duration = Duration::from_secs(15);
/// Of a record, its wait in memory included: brokers that are slow, or restart, are waited for.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(300);
/// After so many bytes everything is waited for, so that it is known how far it came whatever happens then.
const BYTES_BETWEEN_FLUSHES: u64 = 64 << 20;

#[derive(clap::Args)]
pub struct ProduceArguments {
    /// Documents: JSONL and CSV (plain, .gz, .zst) or Parquet; folders, patterns, s3://BUCKET/PREFIX
    #[arg(long, value_name = "PATH", num_args = 1.., required = true)]
    input: Vec<PathBuf>,
    /// The topic [default: that of the configuration, if it has one]
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
    #[command(flatten)]
    config: ConfigArguments,
    /// Brokers, instead of a configuration with their addresses, credentials and the names of fields
    #[arg(long, value_name = "HOST:PORT,…", conflicts_with = "config", required_unless_present = "config")]
    bootstrap: Option<String>,
    /// Make the topic with so many partitions, if it is not there
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..=10_000))]
    partitions: Option<i32>,
    /// Documents at the beginning of the input that are not sent: those that an earlier run says are there
    #[arg(long, value_name = "N", default_value_t = 0)]
    skip: u64,
    #[command(flatten)]
    read: ReadArguments,
}

impl ProduceArguments {
    fn configuration(&self) -> anyhow::Result<Config> {
        let Some(bootstrap) = &self.bootstrap else { return Ok(self.config.load()?) };
        let given = [("WINNOWD_KAFKA__BOOTSTRAP".to_owned(), bootstrap.clone())];
        let others = std::env::vars().filter(|(name, _)| name != "WINNOWD_KAFKA__BOOTSTRAP");
        Ok(Config::from_toml("", others.chain(given))?)
    }

    fn topic(&self, config: &Config) -> Result<String, UsageError> {
        match (&self.topic, self.bootstrap.is_some(), &config.kafka.topics[..]) {
            (Some(topic), ..) => Ok(topic.clone()),
            (None, false, [topic]) => Ok(topic.clone()),
            (None, true, _) => Err(UsageError("--topic: must be given beside --bootstrap".to_owned())),
            (None, false, topics) => {
                Err(UsageError(format!("--topic: the configuration has {}: {}", topics.len(), topics.join(", "))))
            }
        }
    }
}

pub fn produce(arguments: &ProduceArguments) -> anyhow::Result<()> {
    let config = arguments.configuration()?;
    let topic = arguments.topic(&config)?;
    let Bootstrap::Servers(servers) = &config.kafka.bootstrap else {
        let problem = "kafka.bootstrap = `embedded`: the in-process cluster is another process's; name brokers";
        return Err(UsageError(problem.to_owned()).into());
    };
    let inputs = arguments.read.inputs(&arguments.input, false)?;
    let mut files = Files::new(&arguments.read)?;
    let names = Names::of(&arguments.read, &config.decoder.fields);
    files.settings.decoder.fields = names.in_files.clone();
    files.settings.decoder.max_bytes = config.decoder.max_bytes;
    let of_filter = config.selector.filter.iter().flat_map(|filter| &filter.fields);
    files.settings.types = of_filter.chain(&config.columns.fields).map(|(name, of)| (name.clone(), *of)).collect();

    let n_partitions = partitions(arguments, &config, servers, &topic)?;
    let writer = TopicWriter::connect_with(&config.kafka, servers, DELIVERY_TIMEOUT).map_err(DaemonError::from)?;
    let progress = Progress::new("produced", total_bytes(&inputs));
    let began = Instant::now();
    let mut sending = Sending::new(&writer, &files, &topic, arguments.skip);
    let scanned = files.reader(&inputs).scan(
        Wanted::All,
        files.states(TextScratch::default),
        |scratch, chunk| Records::of(chunk, &names, scratch),
        |records| {
            progress.add(records.documents.len() as u64, records.file_bytes);
            sending.send(&records).map_err(anyhow::Error::from)
        },
    );
    let ended = scanned.map(drop).and_then(|()| Ok(sending.flush()?));
    progress.finish();
    if ended.is_err() || files.check_interrupted().is_err() {
        sending.say_how_far(&inputs, ended.is_ok());
        ended?;
        return Err(Interrupted.into());
    }
    sending.report(began.elapsed(), n_partitions)
}

/// The number of partitions of the topic, which is made if that is wanted.
fn partitions(arguments: &ProduceArguments, config: &Config, servers: &str, topic: &str) -> Result<usize, DaemonError> {
    let probe = Probe::open(&config.kafka, servers, METADATA_TIMEOUT)?;
    let topics = [topic.to_owned()];
    if let [(_, n)] = &probe.those_of(&topics)?[..] {
        return Ok(*n);
    }
    let Some(partitions) = arguments.partitions else {
        let problem = format!("there is no topic `{topic}`, or it may not be seen; --partitions N makes it");
        return Err(SourceError::Client { bootstrap: servers.to_owned(), problem }.into());
    };
    let internal = |e: std::io::Error| DaemonError::Internal(e.to_string());
    runtime().map_err(internal)?.block_on(create_topic(&config.kafka, servers, topic, partitions))?;
    Ok(partitions as usize)
}

/// How fields are called in the files, and in the topic.
struct Names {
    in_files: FieldNames,
    /// From, to; where they differ.
    renamed: Vec<(String, String)>,
}

impl Names {
    /// What is not named on the command line is called as in the topic.
    fn of(read: &ReadArguments, in_topic: &FieldNames) -> Self {
        let in_files = read.fields_like(in_topic);
        let pairs = [
            (Some(&in_files.text), Some(&in_topic.text)),
            (in_files.id.as_ref(), in_topic.id.as_ref()),
            (in_files.source.as_ref(), in_topic.source.as_ref()),
        ];
        let pairs = pairs.into_iter().filter_map(|(from, to)| Some((from?.clone(), to?.clone())));
        Names { renamed: pairs.filter(|(from, to)| from != to).collect(), in_files }
    }

    /// The record of a document: its own bytes where no field is called otherwise in the topic.
    fn record(&self, object: &[u8], into: &mut Vec<u8>) -> Result<(), String> {
        if self.renamed.is_empty() {
            into.extend_from_slice(object);
            return Ok(());
        }
        let members: Members<'_> = serde_json::from_slice(object).map_err(|e| e.to_string())?;
        into.push(b'{');
        for (i, (name, value)) in members.0.iter().enumerate() {
            if self.renamed.iter().any(|(from, to)| to == name && members.0.iter().any(|(other, _)| other == from)) {
                return Err(format!("field `{name}` is there beside the one that is to be called so"));
            }
            let name = self.renamed.iter().find(|(from, _)| from == name).map_or(name, |(_, to)| to);
            if i > 0 {
                into.push(b',');
            }
            into.extend_from_slice(serde_json::Value::from(name.as_str()).to_string().as_bytes());
            into.push(b':');
            into.extend_from_slice(value.get().as_bytes());
        }
        into.push(b'}');
        Ok(())
    }
}

/// Those of an object, in their order, their values unchanged.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Members<'de>, M::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

/// The records of a chunk, in order.
struct Records {
    input: usize,
    documents: Vec<OfDocument>,
    bytes: Vec<u8>,
    file_bytes: u64,
    bad_lines: u64,
}

/// Where its parts lie in [`Records::bytes`].
struct OfDocument {
    line: u64,
    /// Its own id; without one any partition will do.
    key: Option<Range<usize>>,
    payload: Range<usize>,
}

impl Records {
    /// What the daemon could not read is an error here, or a bad line.
    fn of(chunk: &ChunkReader<'_>, names: &Names, scratch: &mut TextScratch) -> Result<Self, FileError> {
        let (mut documents, mut bytes, mut bad_lines) = (Vec::new(), Vec::new(), 0);
        chunk.for_some_objects(
            |_| true,
            |_, line, object| {
                let Some(document) = chunk.decode(line, object, scratch)? else {
                    bad_lines += 1;
                    return Ok(());
                };
                let key = document.own_id.as_deref().map(|id| {
                    bytes.extend_from_slice(id.as_bytes());
                    bytes.len() - id.len()..bytes.len()
                });
                let start = bytes.len();
                match names.record(object, &mut bytes) {
                    Ok(()) => documents.push(OfDocument { line, key, payload: start..bytes.len() }),
                    Err(problem) => {
                        chunk.bad_line(line, &Reject::new(RejectReason::DuplicateField, problem))?;
                        bytes.truncate(start);
                        bad_lines += 1;
                    }
                }
                Ok(())
            },
        )?;
        Ok(Records { input: chunk.input(), documents, bytes, file_bytes: chunk.chunk.file_bytes, bad_lines })
    }
}

/// Records on their way, in the order of the input.
struct Sending<'a> {
    writer: &'a TopicWriter,
    files: &'a Files,
    topic: &'a str,
    skip: u64,
    /// Documents that were sent or skipped, and how many of them are certainly there.
    n: u64,
    n_certain: u64,
    bytes: u64,
    bytes_at_flush: u64,
    bad_lines: u64,
    refused: u64,
    /// The file and the line of the last one.
    last: Option<(usize, u64)>,
}

impl<'a> Sending<'a> {
    fn new(writer: &'a TopicWriter, files: &'a Files, topic: &'a str, skip: u64) -> Self {
        Sending {
            writer,
            files,
            topic,
            skip,
            n: 0,
            n_certain: 0,
            bytes: 0,
            bytes_at_flush: 0,
            bad_lines: 0,
            refused: 0,
            last: None,
        }
    }

    fn send(&mut self, records: &Records) -> Result<(), DaemonError> {
        self.bad_lines += records.bad_lines;
        for OfDocument { line, key, payload } in &records.documents {
            if self.files.check_interrupted().is_err() {
                return Ok(());
            }
            if self.n >= self.skip {
                let (key, payload) = (key.clone().map(|key| &records.bytes[key]), &records.bytes[payload.clone()]);
                let record =
                    OutgoingRecord { topic: self.topic, key, payload: Some(payload), timestamp_ms: None, headers: &[] };
                self.writer.send(record, &|| true)?;
                self.bytes += payload.len() as u64;
            }
            self.n += 1;
            self.last = Some((records.input, *line));
        }
        if self.bytes - self.bytes_at_flush >= BYTES_BETWEEN_FLUSHES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), DaemonError> {
        self.refused += self.writer.flush(&|| true)?;
        (self.n_certain, self.bytes_at_flush) = (self.n, self.bytes);
        Ok(())
    }

    /// Of a run that has ended early.
    fn say_how_far(&self, inputs: &[Input], is_flushed: bool) {
        let n = HumanCount(self.n_certain);
        let last = self.last.filter(|_| is_flushed);
        let at = last.map(|(input, line)| format!(", up to line {line} of `{}`", inputs[input].path.display()));
        let more = if self.n > self.n_certain { "; some after them may be there, too" } else { "" };
        let (at, topic, skip) = (at.unwrap_or_default(), self.topic, self.n_certain);
        eprintln!(
            "winnowd: the first {n} documents of the input are in `{topic}`{at}{more}; --skip {skip} goes on there"
        );
    }

    fn report(&self, time: Duration, n_partitions: usize) -> anyhow::Result<()> {
        let n = self.n.saturating_sub(self.skip) - self.refused;
        let seconds = time.as_secs_f64().max(0.001);
        let rate = HumanBytes((self.bytes as f64 / seconds) as u64);
        let bad = match self.bad_lines {
            0 => String::new(),
            n => format!(", {} bad lines passed over", HumanCount(n)),
        };
        print(&format!(
            "{} documents, {}, in the {n_partitions} partitions of {}: {:.1} s, {:.0} documents/s, {rate}/s{bad}\n",
            HumanCount(n),
            HumanBytes(self.bytes),
            self.topic,
            seconds,
            n as f64 / seconds
        ))?;
        match self.refused {
            0 => Ok(()),
            n => Err(UsageError(format!(
                "{n} documents are larger than the topic takes (its max.message.bytes), and are not in it; all others are"
            ))
            .into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_called_as_in_the_topic() {
        let renamed = vec![("content".to_owned(), "text".to_owned())];
        let names = Names { in_files: crate::record::Decoder::for_files().fields, renamed };
        let record = |object: &str| {
            let mut record = Vec::new();
            names.record(object.as_bytes(), &mut record).map(|()| String::from_utf8(record).unwrap())
        };
        let object = r#"{"n": 1.50, "content" : "a\u00fc", "\"": [null]}"#;
        assert_eq!(record(object).unwrap(), r#"{"n":1.50,"text":"a\u00fc","\"":[null]}"#);
        assert!(record(r#"{"content":"a","text":"b"}"#).unwrap_err().contains("field `text` is there beside"));
        assert_eq!(record(r#"{"text":"b"}"#).unwrap(), r#"{"text":"b"}"#);
    }
}
