//! One HTTP port: `/metrics`, `/healthz`, `/readyz`, `/status`.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use super::Telemetry;

#[derive(Debug, thiserror::Error)]
#[error("http: cannot listen on `{address}`: {source}")]
pub struct TelemetryError {
    address: SocketAddr,
    source: std::io::Error,
}

/// A bound port with a server on it, until it is dropped.
pub struct HttpServer {
    pub address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl HttpServer {
    /// Binds and serves. Port 0 takes a free one.
    pub async fn start(address: SocketAddr, telemetry: Arc<Telemetry>) -> Result<Self, TelemetryError> {
        let error = |source| TelemetryError { address, source };
        let listener = TcpListener::bind(address).await.map_err(error)?;
        let address = listener.local_addr().map_err(error)?;
        let router = Router::new()
            .route("/", get(index))
            .route("/metrics", get(metrics))
            .route("/healthz", get(healthz))
            .route("/readyz", get(readyz))
            .route("/status", get(status))
            .with_state(telemetry);
        let task = tokio::spawn(async move {
            if let Err(e) = axum::serve(listener, router).await {
                tracing::error!("http: the server ended: {e}");
            }
        });
        Ok(HttpServer { address, task })
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn index() -> &'static str {
    "winnowd\n\n/metrics  for Prometheus\n/healthz  is the poll loop alive?\n/readyz   is the worker working?\n/status   state as JSON\n"
}

async fn metrics(State(telemetry): State<Arc<Telemetry>>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], telemetry.metrics.render()).into_response()
}

async fn healthz(State(telemetry): State<Arc<Telemetry>>) -> Response {
    match telemetry.poll_problem() {
        None => "ok\n".into_response(),
        Some(problem) => (StatusCode::SERVICE_UNAVAILABLE, format!("{problem}\n")).into_response(),
    }
}

async fn readyz(State(telemetry): State<Arc<Telemetry>>) -> Response {
    let missing = telemetry.status().readiness.missing();
    if missing.is_empty() {
        "ready\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", missing.join("\n"))).into_response()
    }
}

async fn status(State(telemetry): State<Arc<Telemetry>>) -> Response {
    let status = telemetry.status().clone();
    let mut body = serde_json::to_value(status).expect("a status has string keys");
    body["version"] = env!("CARGO_PKG_VERSION").into();
    body["uptime_seconds"] = telemetry.uptime().as_secs().into();
    ([(header::CONTENT_TYPE, "application/json")], format!("{body:#}\n")).into_response()
}
