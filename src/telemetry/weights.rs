//! `POST /v1/weights`: the losses of a global batch in, its weights out.
//!
//! The answer is a function of the losses, the step and the settings, so the same request has the same answer, also after a
//! restart. Other losses for a step that is known are refused: the trainer has used weights that were made from the first ones.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::sync::Semaphore;
use tracing::field::Empty;
use tracing::{Instrument, Span, info_span};

use super::{Telemetry, continue_from_headers, failed};
use crate::config::Config;
use crate::record::{BadReport, BadReportReason, LossDecoder, LossReport};
use crate::score::{BatchError, BatchWeights, Entered, GlobalBatch, KnownSteps, LossWeight, Why};

/// Requests that are read or computed at a time: with `losses.max_bytes` a bound on their memory.
const AT_A_TIME: usize = 4;
/// For the bytes of a request, which hold one of those places meanwhile.
const BODY_DEADLINE: Duration = Duration::from_secs(10);

/// What weighs the batches of requests.
pub struct WeightsEndpoint {
    decoder: LossDecoder,
    weigh: LossWeight,
    known: Mutex<KnownSteps<[u8; 32]>>,
    places: Semaphore,
    telemetry: Arc<Telemetry>,
}

/// What became of a request. A closed set: it labels metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Answered,
    /// The same losses were answered before.
    Repeated,
    /// Other losses were.
    Conflict,
    Bad,
    /// The settings give such losses no weights.
    NotWeighed,
    TooLarge,
}

impl Outcome {
    pub const ALL: [Outcome; 6] =
        [Outcome::Answered, Outcome::Repeated, Outcome::Conflict, Outcome::Bad, Outcome::NotWeighed, Outcome::TooLarge];

    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Answered => "answered",
            Outcome::Repeated => "repeated",
            Outcome::Conflict => "conflict",
            Outcome::Bad => "bad",
            Outcome::NotWeighed => "not_weighed",
            Outcome::TooLarge => "too_large",
        }
    }
}

/// Why there are no weights.
struct Refusal {
    outcome: Outcome,
    status: StatusCode,
    reason: &'static str,
    problem: String,
}

impl WeightsEndpoint {
    pub fn new(config: &Config, weigh: LossWeight, telemetry: Arc<Telemetry>) -> Self {
        WeightsEndpoint {
            decoder: config.losses.decoder(),
            weigh,
            known: Mutex::new(KnownSteps::new(config.loss_weight.remembered_steps)),
            places: Semaphore::new(AT_A_TIME),
            telemetry,
        }
    }

    pub async fn post(self: Arc<Self>, headers: &HeaderMap, body: Body) -> Response {
        let span = info_span!(
            "POST /v1/weights",
            otel.kind = "server",
            http.request.method = "POST",
            http.route = "/v1/weights",
            http.response.status_code = Empty,
            outcome = Empty,
            run_id = Empty,
            training_step = Empty,
            samples = Empty,
            otel.status_code = Empty,
            otel.status_description = Empty
        );
        continue_from_headers(&span, headers);
        self.answer_request(headers, body).instrument(span).await
    }

    async fn answer_request(self: Arc<Self>, headers: &HeaderMap, body: Body) -> Response {
        let span = Span::current();
        let metrics = &self.telemetry.metrics.losses;
        let timer = metrics.request_seconds.start_timer();
        let _place = self.places.acquire().await.expect("places are never closed");
        let endpoint = self.clone();
        let answer = match self.read(headers, body).await {
            // Milliseconds of a core: not on a thread that others wait for.
            Ok(body) => tokio::task::spawn_blocking({
                let span = span.clone();
                move || span.in_scope(|| endpoint.answer(&body))
            })
            .await
            .unwrap_or_else(|e| {
                Err(Refusal::new(Outcome::Bad, StatusCode::INTERNAL_SERVER_ERROR, "fault", e.to_string()))
            }),
            Err(refusal) => Err(refusal),
        };
        timer.observe_duration();
        match answer {
            Ok((outcome, json)) => {
                metrics.requests.with_label_values(&[outcome.as_str()]).inc();
                show(&span, outcome, StatusCode::OK);
                ([(header::CONTENT_TYPE, "application/json")], json).into_response()
            }
            Err(Refusal { outcome, status, reason, problem }) => {
                metrics.requests.with_label_values(&[outcome.as_str()]).inc();
                show(&span, outcome, status);
                // What a client did wrong is no failure of a server.
                if status.is_server_error() {
                    failed(&span, &problem);
                }
                let json = serde_json::json!({ "error": problem, "reason": reason }).to_string() + "\n";
                (status, [(header::CONTENT_TYPE, "application/json")], json).into_response()
            }
        }
    }

    async fn read(&self, headers: &HeaderMap, body: Body) -> Result<Bytes, Refusal> {
        // A page in somebody's browser can send anything to this machine but that, unless it is asked first.
        let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let content_type = content_type.split(';').next().unwrap_or_default().trim();
        if !content_type.eq_ignore_ascii_case("application/json") {
            let problem = format!("content-type is `{content_type}`, expected `application/json`");
            return Err(Refusal::new(Outcome::Bad, StatusCode::UNSUPPORTED_MEDIA_TYPE, "content_type", problem));
        }
        let max_bytes = self.decoder.max_bytes;
        let too_large = || {
            let problem = format!("the request is larger than losses.max_bytes ({max_bytes} bytes)");
            Refusal::new(Outcome::TooLarge, StatusCode::PAYLOAD_TOO_LARGE, "too_large", problem)
        };
        let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        if announced.is_some_and(|bytes| bytes > max_bytes as u64) {
            return Err(too_large());
        }
        match tokio::time::timeout(BODY_DEADLINE, to_bytes(body, max_bytes)).await {
            Ok(Ok(body)) => Ok(body),
            Ok(Err(e)) if std::error::Error::source(&e).is_some_and(|s| s.to_string().contains("length limit")) => {
                Err(too_large())
            }
            Ok(Err(e)) => Err(Refusal::new(Outcome::Bad, StatusCode::BAD_REQUEST, "cut_off", e.to_string())),
            Err(_) => {
                let problem = format!("the request did not come within {} s", BODY_DEADLINE.as_secs());
                Err(Refusal::new(Outcome::Bad, StatusCode::REQUEST_TIMEOUT, "too_slow", problem))
            }
        }
    }

    fn answer(&self, body: &[u8]) -> Result<(Outcome, String), Refusal> {
        let report = self.decoder.decode(Some(body))?;
        if report.world_size > 1 {
            let problem = format!(
                "field `world_size` is {}: send the losses of all ranks in one request, or each rank's to losses.topic",
                report.world_size
            );
            return Err(BadReport { reason: BadReportReason::InvalidField, detail: problem }.into());
        }
        let LossReport { run_id, step, .. } = &report;
        let span = Span::current();
        span.record("run_id", run_id).record("training_step", *step);
        let (key, shown) = ((run_id.clone(), *step), format!("step {step} of run `{run_id}`"));
        let batch = GlobalBatch::of_one(report);
        let digest = batch.digest();
        let weights = BatchWeights::of(&self.weigh, batch)?;
        span.record("samples", weights.n_samples);
        let json = serde_json::to_string(&weights).expect("an answer has string keys") + "\n";
        let entered = self.known.lock().unwrap_or_else(PoisonError::into_inner).enter(key, digest);
        match entered {
            Entered::New => {
                self.telemetry.weighed(&weights, "http", Why::Complete);
                Ok((Outcome::Answered, json))
            }
            Entered::Same => Ok((Outcome::Repeated, json)),
            Entered::Other => {
                let problem = format!("{shown} has been answered for other losses");
                Err(Refusal::new(Outcome::Conflict, StatusCode::CONFLICT, "other_losses", problem))
            }
        }
    }
}

fn show(span: &Span, outcome: Outcome, status: StatusCode) {
    span.record("outcome", outcome.as_str()).record("http.response.status_code", status.as_u16());
}

impl Refusal {
    fn new(outcome: Outcome, status: StatusCode, reason: &'static str, problem: impl Into<String>) -> Self {
        Refusal { outcome, status, reason, problem: problem.into() }
    }
}

impl From<BadReport> for Refusal {
    fn from(bad: BadReport) -> Self {
        match bad.reason {
            BadReportReason::TooLarge | BadReportReason::TooManyEntries => {
                Refusal::new(Outcome::TooLarge, StatusCode::PAYLOAD_TOO_LARGE, bad.reason.as_str(), bad.detail)
            }
            _ => Refusal::new(Outcome::Bad, StatusCode::BAD_REQUEST, bad.reason.as_str(), bad.detail),
        }
    }
}

impl From<BatchError> for Refusal {
    fn from(error: BatchError) -> Self {
        Refusal::new(Outcome::NotWeighed, StatusCode::UNPROCESSABLE_ENTITY, "bad_losses", error.to_string())
    }
}
