//! `/health` (also as `/ping`), `/is_sleeping`, `/version`, `/metrics`.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::metrics::{self, Format, Sources};
use crate::state::{AppState, unix_time};
use crate::traces::Tracer;

/// 200 while the engine takes requests, else 503.
pub async fn health(State(state): State<AppState>) -> Result<StatusCode, ApiError> {
    if !state.engine().is_alive() {
        return Err(ApiError::unavailable(
            "The engine has stopped; see the server's log.",
        ));
    }
    if state.engine().is_shutting_down() {
        return Err(ApiError::unavailable("The server is shutting down."));
    }
    Ok(StatusCode::OK)
}

/// The engine never sleeps: there is no `--enable-sleep-mode`.
pub async fn is_sleeping() -> Json<Value> {
    Json(json!({ "is_sleeping": false }))
}

/// The version of this program.
pub async fn version() -> Json<Value> {
    Json(json!({ "version": env!("CARGO_PKG_VERSION") }))
}

/// Prometheus' text format, or OpenMetrics if the client takes that.
pub async fn metrics(State(state): State<AppState>, headers: HeaderMap) -> impl IntoResponse {
    let accept = headers.get(header::ACCEPT);
    let format = Format::accepted(accept.and_then(|accept| accept.to_str().ok()));
    (
        [(header::CONTENT_TYPE, format.content_type())],
        metrics::render(
            Sources {
                metrics: state.metrics(),
                http: state.http_metrics(),
                requests: state.engine().request_metrics(),
                stats: &state.engine().stats(),
                max_model_len: state.model().max_model_len,
                traces: state.tracer().map(Tracer::counts),
                model: &state.served_model_names()[0],
                now: unix_time(),
            },
            format,
        ),
    )
}
