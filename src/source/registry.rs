//! The schema registry, by the REST interface that Confluent's has and others took over: schemas by id, with what they refer to.
//!
//! In: ids. Out: a schema for each, or an error of the registry, after which asking again is all that helps. An id never comes to
//! name another schema, so what was found is kept for good; that there is none is believed for a while only.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt, stream};
use reqwest::StatusCode;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::SourceError;
use crate::config::RegistryConfig;
use crate::record::{Format, Schema, SchemaText, Schemas};

/// Requests at once.
const PARALLEL: usize = 8;
const MAX_ANSWER_BYTES: usize = 16 << 20;
/// What a schema refers to, directly or not.
const MAX_REFERENCES: usize = 1000;
/// Ids that the registry does not have; beyond it they are forgotten. Broken records can name any.
const MAX_UNKNOWN: usize = 100_000;

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegistryAnswer {
    Found,
    /// There is no such schema.
    Unknown,
    Failed,
}

impl RegistryAnswer {
    pub const ALL: [RegistryAnswer; 3] = [RegistryAnswer::Found, RegistryAnswer::Unknown, RegistryAnswer::Failed];

    pub fn as_str(self) -> &'static str {
        match self {
            RegistryAnswer::Found => "found",
            RegistryAnswer::Unknown => "unknown",
            RegistryAnswer::Failed => "failed",
        }
    }
}

/// A client with what it was told.
pub struct SchemaRegistry {
    client: reqwest::Client,
    config: RegistryConfig,
    format: Format,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    found: BTreeMap<u32, Arc<Schema>>,
    /// Since when.
    unknown: HashMap<u32, (Instant, Arc<Schema>)>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SchemaAnswer {
    schema: String,
    /// Registries leave it out of Avro's.
    schema_type: Option<String>,
    #[serde(default)]
    references: Vec<Reference>,
}

/// A schema by its name, but for the one that was asked for, and what of its references is still to be looked at.
type Opened = (Option<(String, String)>, Vec<Reference>);

#[derive(Deserialize)]
struct Reference {
    name: String,
    subject: String,
    version: i64,
}

#[derive(Deserialize)]
struct ErrorAnswer {
    error_code: i64,
    #[serde(default)]
    message: String,
}

/// Why there is no answer that is of use.
enum Problem {
    /// The registry has no such thing.
    Unknown,
    Failed(String),
}

impl SchemaRegistry {
    /// Nothing is asked yet. `format`: of the records.
    pub fn open(config: &RegistryConfig, format: &Format) -> Result<Self, SourceError> {
        let client = reqwest::Client::builder().timeout(config.timeout).user_agent("winnowd").build();
        let client = client.map_err(|e| SourceError::Registry { url: config.url.to_string(), problem: reason(&e) })?;
        Ok(SchemaRegistry { client, config: config.clone(), format: format.clone(), known: Mutex::default() })
    }

    /// The schemas of all these ids. After an error, those that were found meanwhile are not asked for again. `told` hears of every
    /// request.
    pub async fn schemas(
        &self,
        ids: &BTreeSet<u32>,
        told: &(dyn Fn(RegistryAnswer) + Sync),
    ) -> Result<Schemas, SourceError> {
        let (mut schemas, mut missing) = (Vec::with_capacity(ids.len()), Vec::new());
        {
            let known = self.known();
            for id in ids {
                let unknown = known.unknown.get(id).filter(|(since, _)| since.elapsed() < self.config.unknown_for);
                match known.found.get(id).or(unknown.map(|(_, schema)| schema)) {
                    Some(schema) => schemas.push((*id, schema.clone())),
                    None => missing.push(*id),
                }
            }
        }
        let fetched =
            stream::iter(missing).map(|id| async move { Ok::<_, SourceError>((id, self.fetch(id, told).await?)) });
        let fetched: Vec<_> = fetched.buffer_unordered(PARALLEL).try_collect().await?;
        schemas.extend(fetched);
        Ok(schemas.into_iter().collect())
    }

    /// Between two attempts, at most.
    pub fn max_backoff(&self) -> Duration {
        self.config.max_backoff
    }

    /// Schemas that it has.
    pub fn n_known(&self) -> usize {
        self.known().found.len()
    }

    /// Whether it answers and knows the type of the records' schemas; gives the types that it knows.
    pub async fn probe(&self) -> Result<Vec<String>, SourceError> {
        let types: Vec<String> = match self.get("schemas/types").await {
            Ok(types) => types,
            Err(Problem::Unknown) => return Err(self.error("it knows no /schemas/types: is it a schema registry?")),
            Err(Problem::Failed(problem)) => return Err(self.error(&problem)),
        };
        let wanted = if self.format == Format::Avro { "AVRO" } else { "PROTOBUF" };
        match types.iter().any(|known| known == wanted) {
            true => Ok(types),
            false => Err(self.error(&format!("it has schemas of {}, not of {wanted}", types.join(", ")))),
        }
    }

    async fn fetch(&self, id: u32, told: &(dyn Fn(RegistryAnswer) + Sync)) -> Result<Arc<Schema>, SourceError> {
        let text = match self.text(id, told).await {
            Ok(text) => text,
            Err(Problem::Unknown) => {
                told(RegistryAnswer::Unknown);
                let schema = Arc::new(Schema::unknown(id));
                let mut known = self.known();
                if known.unknown.len() >= MAX_UNKNOWN {
                    known.unknown.clear();
                }
                known.unknown.insert(id, (Instant::now(), schema.clone()));
                return Ok(schema);
            }
            Err(Problem::Failed(problem)) => {
                told(RegistryAnswer::Failed);
                return Err(self.error(&format!("schema {id}: {problem}")));
            }
        };
        let format = self.format.clone();
        // Not on a thread that answers others.
        let compiled = tokio::task::spawn_blocking(move || Schema::compile(id, &text, &format)).await;
        let schema = Arc::new(compiled.map_err(|e| self.error(&format!("schema {id}: {e}")))?);
        self.known().found.insert(id, schema.clone());
        Ok(schema)
    }

    /// A schema and all that it refers to.
    async fn text(&self, id: u32, told: &(dyn Fn(RegistryAnswer) + Sync)) -> Result<SchemaText, Problem> {
        // Deleted ones too: their records are still in the topic.
        let answer: SchemaAnswer = self.get(&format!("schemas/ids/{id}?deleted=true")).await?;
        told(RegistryAnswer::Found);
        let mut references = Vec::new();
        // What refers to something stands behind it in the end: so it is opened first, and closed when all that it refers to is.
        let mut open: Vec<Opened> = vec![(None, answer.references)];
        let mut seen = BTreeSet::new();
        while let Some((_, wanted)) = open.last_mut() {
            let Some(Reference { name, subject, version }) = wanted.pop() else {
                references.extend(open.pop().and_then(|(text, _)| text));
                continue;
            };
            if !seen.insert(name.clone()) {
                continue;
            }
            if seen.len() > MAX_REFERENCES {
                return Err(Problem::Failed(format!("it refers to more than {MAX_REFERENCES} others")));
            }
            let subject: String = url::form_urlencoded::byte_serialize(subject.as_bytes()).collect();
            let path = format!("subjects/{}/versions/{version}?deleted=true", subject.replace('+', "%20"));
            let found = self.get::<SchemaAnswer>(&path).await;
            let found = found.map_err(|problem| match problem {
                // The registry contradicts itself: no reason to take records for bad.
                Problem::Unknown => Problem::Failed(format!("its reference `{name}` is not there ({path})")),
                Problem::Failed(why) => Problem::Failed(why),
            })?;
            told(RegistryAnswer::Found);
            open.push((Some((name, found.schema)), found.references));
        }
        let kind = answer.schema_type.unwrap_or_else(|| "AVRO".to_owned());
        Ok(SchemaText { kind, text: answer.schema, references })
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Problem> {
        let url = format!("{}/{path}", self.config.url.as_str().trim_end_matches('/'));
        let mut request = self.client.get(url).header(
            reqwest::header::ACCEPT,
            "application/vnd.schemaregistry.v1+json, application/vnd.schemaregistry+json, application/json",
        );
        if let Some(user) = &self.config.user {
            request = request.basic_auth(user, self.config.password.as_ref().map(|password| password.reveal()));
        }
        let failed = |e: reqwest::Error| Problem::Failed(reason(&e));
        let mut response = request.send().await.map_err(failed)?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > MAX_ANSWER_BYTES {
                return Err(Problem::Failed(format!("an answer of more than {MAX_ANSWER_BYTES} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|e| Problem::Failed(format!("an answer that is none: {e}")));
        }
        let error = serde_json::from_slice::<ErrorAnswer>(&body).ok();
        Err(match error {
            // Only the registry itself says so; a 404 of a proxy, or of a wrong URL, must not make good records bad.
            Some(error) if status == StatusCode::NOT_FOUND && (40401..=40403).contains(&error.error_code) => {
                Problem::Unknown
            }
            Some(error) => Problem::Failed(format!("{status}: {} ({})", error.message, error.error_code)),
            None => Problem::Failed(status.to_string()),
        })
    }

    fn error(&self, problem: &str) -> SourceError {
        SourceError::Registry { url: self.config.url.to_string(), problem: problem.to_owned() }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// With its causes, which say more than it does, and without the address, which is told anyway.
fn reason(error: &reqwest::Error) -> String {
    let causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    match causes.last() {
        _ if error.is_timeout() => "no answer in time".to_owned(),
        Some(cause) => cause.to_string(),
        None => error.to_string(),
    }
}
