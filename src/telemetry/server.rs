//! One HTTP port: the page, `/metrics`, `/healthz`, `/readyz`, `/status`, `/status/history`, `POST /v1/weights`.
//!
//! What Prometheus and Kubernetes ask for is open to everybody who reaches the port, and so are the files of the page, which hold
//! nothing. `/status` names sources, shards and n-grams of documents, and `/v1/weights` remembers steps: those go by [`Access`], which
//! also keeps pages of others from asking under a name of their own.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use tokio::net::TcpListener;

use super::access::Access;
use super::flow::SAMPLE_EVERY;
use super::logbook::now_ms;
use super::{LOGBOOK, Telemetry, WeightsEndpoint, page};
use crate::config::HttpConfig;

#[derive(Debug, thiserror::Error)]
#[error("http: cannot listen on `{address}`: {source}")]
pub struct TelemetryError {
    address: SocketAddr,
    source: std::io::Error,
}

/// What the pages are made of.
#[derive(Clone)]
struct Served {
    telemetry: Arc<Telemetry>,
    weights: Arc<WeightsEndpoint>,
    access: Access,
}

/// A bound port with a server on it, until it is dropped.
pub struct HttpServer {
    pub address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
    sampler: tokio::task::JoinHandle<()>,
}

impl HttpServer {
    /// Binds and serves. Port 0 takes a free one.
    pub async fn start(
        http: &HttpConfig,
        telemetry: Arc<Telemetry>,
        weights: Arc<WeightsEndpoint>,
    ) -> Result<Self, TelemetryError> {
        let address = http.listen;
        let error = |source| TelemetryError { address, source };
        let listener = TcpListener::bind(address).await.map_err(error)?;
        let address = listener.local_addr().map_err(error)?;
        let access = Access::of(http, address);
        if matches!(access, Access::Closed) {
            tracing::info!(
                "http: {address} is no loopback address and http.token is not set: /status and /v1/weights are closed"
            );
        }
        // The end of an answer must not wait for the client to acknowledge its beginning.
        let listener = listener.tap_io(|stream| {
            if let Err(e) = stream.set_nodelay(true) {
                tracing::debug!("http: answers may wait for acknowledgements: {e}");
            }
        });
        let sampler = tokio::spawn(sample(telemetry.clone()));
        let router = Router::new()
            .merge(page::routes())
            .route("/status", get(status))
            .route("/status/history", get(history))
            .route("/v1/weights", post(post_weights))
            .route_layer(axum::middleware::from_fn_with_state(access.clone(), Access::guard))
            // Behind the layer, for probes: they ask by the pod's address, or by none.
            .route("/metrics", get(metrics))
            .route("/healthz", get(healthz))
            .route("/readyz", get(readyz))
            .with_state(Served { telemetry, weights, access });
        let task = tokio::spawn(async move {
            if let Err(e) = axum::serve(listener, router).await {
                tracing::error!("http: the server ended: {e}");
            }
        });
        Ok(HttpServer { address, task, sampler })
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.task.abort();
        self.sampler.abort();
    }
}

/// Remembers the flow, for pages that will be opened.
async fn sample(telemetry: Arc<Telemetry>) {
    let mut ticks = tokio::time::interval(SAMPLE_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        telemetry.history.push(telemetry.flow());
    }
}

async fn metrics(State(Served { telemetry, .. }): State<Served>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], telemetry.render_metrics()).into_response()
}

async fn healthz(State(Served { telemetry, .. }): State<Served>) -> Response {
    match telemetry.poll_problem() {
        None => "ok\n".into_response(),
        Some(problem) => (StatusCode::SERVICE_UNAVAILABLE, format!("{problem}\n")).into_response(),
    }
}

async fn readyz(State(Served { telemetry, .. }): State<Served>) -> Response {
    let missing = telemetry.status().readiness.missing();
    if missing.is_empty() {
        "ready\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", missing.join("\n"))).into_response()
    }
}

async fn status(State(Served { telemetry, access, .. }): State<Served>, headers: HeaderMap) -> Response {
    if let Err(refusal) = access.check(&headers) {
        return refusal;
    }
    let status = telemetry.status().clone();
    let missing = status.readiness.missing();
    let mut body = serde_json::to_value(status).expect("a status has string keys");
    let (uptime, now_ms) = (telemetry.uptime(), now_ms());
    let more = serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_seconds": uptime.as_secs(),
        "now_ms": now_ms,
        "started_at_ms": telemetry.started_at_ms(),
        "missing": missing,
        "poll_problem": telemetry.poll_problem(),
        "stalled": telemetry.stalled_steps(),
        "flow": telemetry.flow(),
        "messages": LOGBOOK.lines(),
    });
    let (Some(body), serde_json::Value::Object(more)) = (body.as_object_mut(), more) else {
        unreachable!("both are objects");
    };
    body.extend(more);
    private_json(&serde_json::Value::Object(std::mem::take(body)))
}

async fn history(State(Served { telemetry, access, .. }): State<Served>, headers: HeaderMap) -> Response {
    match access.check(&headers) {
        Ok(()) => private_json(&serde_json::json!({
            "started_at_ms": telemetry.started_at_ms(),
            "samples": telemetry.history.samples(),
        })),
        Err(refusal) => refusal,
    }
}

/// That nobody in between may keep.
fn private_json(body: &serde_json::Value) -> Response {
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    (headers, format!("{body:#}\n")).into_response()
}

async fn post_weights(
    State(Served { weights, access, .. }): State<Served>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    match access.check(&headers) {
        Ok(()) => weights.post(&headers, body).await,
        Err(refusal) => refusal,
    }
}
