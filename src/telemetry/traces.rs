//! Spans to a collector, by OTLP over HTTP, where the configuration names one.
//!
//! In: the spans of this crate, as they end. Out: batches of them, from a task of its own. Promises: whoever ends a span never waits;
//! at most `tracing.queue_spans` wait; what finds no room or is not taken is counted, and logged once.

use std::fmt;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use axum::http::HeaderMap;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{TraceContextExt, TracerProvider};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{Bytes, HeaderExtractor, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{RetryPolicy, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{
    Sampler, SdkTracer, SdkTracerProvider, Span, SpanData, SpanExporter as _, SpanProcessor,
};
use prometheus::{IntCounterVec, Opts};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::config::TracingConfig;

/// A batch is sent so often before it is given up.
const ATTEMPTS: u32 = 3;
/// After a failure, times the number of those before.
const PAUSE: Duration = Duration::from_secs(1);
/// What a collector may answer.
const MAX_ANSWER_BYTES: usize = 1 << 20;

/// What became of spans. The subscriber that makes them is the process's, and so is this.
pub(super) static SPANS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let help = "Spans by what became of them: queue_full found no room, refused were not taken by the collector.";
    let spans = IntCounterVec::new(Opts::new("winnowd_trace_spans_total", help), &["outcome"]);
    let spans = spans.expect("names and labels are valid");
    Outcome::ALL.iter().for_each(|outcome| drop(spans.with_label_values(&[outcome.as_str()])));
    spans
});

#[derive(Clone, Copy)]
enum Outcome {
    Exported,
    QueueFull,
    Refused,
}

impl Outcome {
    const ALL: [Outcome; 3] = [Outcome::Exported, Outcome::QueueFull, Outcome::Refused];

    fn as_str(self) -> &'static str {
        match self {
            Outcome::Exported => "exported",
            Outcome::QueueFull => "queue_full",
            Outcome::Refused => "refused",
        }
    }

    fn count(self, n: usize) {
        SPANS.with_label_values(&[self.as_str()]).inc_by(n as u64);
    }

    fn so_far(self) -> u64 {
        SPANS.with_label_values(&[self.as_str()]).get()
    }
}

/// The way of spans out of the process.
pub struct Traces {
    provider: SdkTracerProvider,
    flush: mpsc::Sender<oneshot::Sender<()>>,
}

#[derive(Debug, thiserror::Error)]
#[error("tracing: spans cannot be sent to `{endpoint}`: {problem}")]
pub struct TracesError {
    endpoint: String,
    problem: String,
}

impl Traces {
    /// Begins to send. `instance` names this process among those of the service.
    ///
    /// # Errors
    /// If the client cannot be made. Whether the collector is there is not asked.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn start(config: &TracingConfig, pipeline: &str, instance: &str) -> Result<Self, TracesError> {
        let failed = |problem: String| TracesError { endpoint: config.endpoint.to_string(), problem };
        let client = reqwest::Client::builder().timeout(config.timeout).redirect(reqwest::redirect::Policy::none());
        let client = client.build().map_err(|e| failed(e.to_string()))?;
        let problem = Problem::default();
        let headers = config.headers.iter().map(|(name, value)| (name.clone(), value.reveal().to_owned()));
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Client { client, problem: problem.clone() })
            .with_endpoint(config.endpoint.as_str())
            .with_headers(headers.collect())
            .with_timeout(config.timeout)
            // It would block a thread between its tries.
            .with_retry_policy(RetryPolicy::disabled());
        let mut exporter = exporter.build().map_err(|e| failed(e.to_string()))?;
        let own = [
            ("service.version", env!("CARGO_PKG_VERSION")),
            ("service.instance.id", instance),
            ("winnowd.pipeline", pipeline),
        ];
        let given = config.attributes.iter().map(|(name, value)| KeyValue::new(name.clone(), value.clone()));
        let resource = Resource::builder_empty()
            .with_attributes(own.map(|(name, value)| KeyValue::new(name, value.to_owned())))
            .with_attributes(given)
            .with_service_name(config.service_name.clone())
            .build();
        exporter.set_resource(&resource);
        let (spans, ended) = mpsc::channel(config.queue_spans);
        let (flush, flushes) = mpsc::channel(1);
        tokio::spawn(Sender::new(config, exporter, problem, ended).run(flushes));
        let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.sample_ratio)));
        let provider = SdkTracerProvider::builder()
            .with_sampler(sampler)
            .with_resource(resource)
            .with_span_processor(Queue(spans))
            .build();
        Ok(Traces { provider, flush })
    }

    pub fn tracer(&self) -> SdkTracer {
        self.provider.tracer("winnowd")
    }

    /// Sends what waits, for so long. To be called when nothing more comes.
    pub async fn flush(self, patience: Duration) {
        let (done, flushed) = oneshot::channel();
        let flush = async {
            self.flush.send(done).await.ok()?;
            flushed.await.ok()
        };
        if tokio::time::timeout(patience, flush).await.is_err() {
            tracing::info!("tracing: the collector did not take the last spans within {:.1} s", patience.as_secs_f64());
        }
    }
}

/// Takes a span, or drops it where there is no room.
#[derive(Debug)]
struct Queue(mpsc::Sender<SpanData>);

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    // Called within the subscriber: nothing may be logged here.
    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.0.try_send(span).is_err() {
            Outcome::QueueFull.count(1);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// The task that sends.
struct Sender<E> {
    exporter: E,
    problem: Problem,
    ended: mpsc::Receiver<SpanData>,
    batch_spans: usize,
    interval: Duration,
    timeout: Duration,
    endpoint: String,
    /// Since the last batch that was taken: whether somebody was told that it is refused, or that the queue is full.
    has_told: (bool, bool),
    known_full: u64,
}

impl<E: opentelemetry_sdk::trace::SpanExporter> Sender<E> {
    fn new(config: &TracingConfig, exporter: E, problem: Problem, ended: mpsc::Receiver<SpanData>) -> Self {
        Sender {
            exporter,
            problem,
            ended,
            batch_spans: config.batch_spans,
            interval: config.interval,
            timeout: config.timeout,
            endpoint: config.endpoint.to_string(),
            has_told: (false, false),
            known_full: Outcome::QueueFull.so_far(),
        }
    }

    async fn run(mut self, mut flushes: mpsc::Receiver<oneshot::Sender<()>>) {
        let mut batch = Vec::with_capacity(self.batch_spans);
        loop {
            // The first one says when.
            let due = Instant::now() + self.interval;
            while batch.len() < self.batch_spans {
                let room = self.batch_spans - batch.len();
                tokio::select! {
                    biased;
                    flush = flushes.recv() => {
                        self.send_all(batch).await;
                        if let Some(done) = flush {
                            // Nobody waits any more when the patience has ended.
                            let _ = done.send(());
                        }
                        return;
                    }
                    n = self.ended.recv_many(&mut batch, room) => if n == 0 { break },
                    () = tokio::time::sleep_until(due), if !batch.is_empty() => break,
                }
            }
            if batch.is_empty() {
                return;
            }
            self.send(std::mem::take(&mut batch)).await;
        }
    }

    /// The last ones: each batch is tried once.
    async fn send_all(&mut self, mut batch: Vec<SpanData>) {
        while batch.len() < self.batch_spans
            && let Ok(span) = self.ended.try_recv()
        {
            batch.push(span);
            if batch.len() == self.batch_spans {
                self.try_once(std::mem::take(&mut batch)).await;
            }
        }
        if !batch.is_empty() {
            self.try_once(batch).await;
        }
    }

    async fn try_once(&mut self, batch: Vec<SpanData>) {
        let n = batch.len();
        match self.export(batch).await {
            Ok(()) => self.taken(n),
            Err(problem) => self.refused(n, &problem),
        }
    }

    async fn send(&mut self, batch: Vec<SpanData>) {
        let n = batch.len();
        let mut attempt = 1;
        loop {
            match self.export(batch.clone()).await {
                Ok(()) => return self.taken(n),
                Err(problem) if attempt == ATTEMPTS => return self.refused(n, &problem),
                Err(_) => tokio::time::sleep(PAUSE * attempt).await,
            }
            self.tell_of_full_queue();
            attempt += 1;
        }
    }

    async fn export(&self, batch: Vec<SpanData>) -> Result<(), String> {
        match tokio::time::timeout(self.timeout, self.exporter.export(batch)).await {
            Ok(result) => result.map_err(|e| {
                let problem = self.problem.lock().unwrap_or_else(PoisonError::into_inner).take();
                problem.unwrap_or_else(|| e.to_string())
            }),
            Err(_) => Err(format!("no answer within {:.1} s", self.timeout.as_secs_f64())),
        }
    }

    fn taken(&mut self, n: usize) {
        Outcome::Exported.count(n);
        if std::mem::take(&mut self.has_told).0 {
            tracing::info!("tracing: {} takes spans again", self.endpoint);
        }
        self.known_full = Outcome::QueueFull.so_far();
    }

    fn refused(&mut self, n: usize, problem: &str) {
        Outcome::Refused.count(n);
        if !std::mem::replace(&mut self.has_told.0, true) {
            tracing::warn!(
                "tracing: {} does not take spans: {problem}; they are dropped and counted until it does",
                self.endpoint
            );
        }
        self.tell_of_full_queue();
    }

    fn tell_of_full_queue(&mut self) {
        let full = Outcome::QueueFull.so_far();
        if full > self.known_full && !std::mem::replace(&mut self.has_told.1, true) {
            tracing::warn!(
                "tracing: {} spans wait already (tracing.queue_spans), others are dropped and counted",
                self.ended.max_capacity()
            );
        }
    }
}

struct Client {
    client: reqwest::Client,
    /// Why the last request failed, which the exporter keeps to itself.
    problem: Problem,
}

type Problem = Arc<Mutex<Option<String>>>;

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client")
    }
}

#[async_trait::async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let sent = self.send(request).await;
        let problem = sent.as_ref().err().map(ToString::to_string);
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
        sent
    }
}

impl Client {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let mut answer = self.client.execute(request.try_into()?).await.map_err(without_address)?;
        let mut response = Response::builder().status(answer.status());
        if let Some(headers) = response.headers_mut() {
            std::mem::swap(headers, answer.headers_mut());
        }
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(without_address)? {
            if body.len() + chunk.len() > MAX_ANSWER_BYTES {
                return Err(format!("the answer is larger than {MAX_ANSWER_BYTES} bytes").into());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(response.body(body.into())?)
    }
}

/// With its causes, which the error itself does not tell; the address is told beside it.
fn without_address(error: reqwest::Error) -> HttpError {
    let error = error.without_url();
    let causes = std::iter::successors(std::error::Error::source(&error), |cause| cause.source());
    causes.fold(error.to_string(), |said, cause| format!("{said}: {cause}")).into()
}

/// Where a span stands, for others to be its children when it has ended.
pub fn context_of(span: &tracing::Span) -> Context {
    span.context()
}

/// Makes a span that nobody has entered yet the child of another.
pub fn continue_from(span: &tracing::Span, context: &Context) {
    // Without traces there is nothing to continue.
    let _ = span.set_parent(context.clone());
}

/// Makes it the child of the span that a request names (W3C Trace Context), if it does.
pub fn continue_from_headers(span: &tracing::Span, headers: &HeaderMap) {
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &HeaderExtractor(headers));
    if context.span().span_context().is_valid() {
        continue_from(span, &context);
    }
}

/// Trace and span where this is called, in the hexadecimal digits that logs and collectors show.
pub fn current_ids() -> Option<(String, String)> {
    let context = tracing::Span::current().context();
    let span = context.span();
    let ids = span.span_context();
    ids.is_valid().then(|| (ids.trace_id().to_string(), ids.span_id().to_string()))
}

/// Marks the span as failed. It must have been made with the two fields.
pub fn failed(span: &tracing::Span, problem: &str) {
    span.record("otel.status_code", "ERROR");
    span.record("otel.status_description", problem);
}
