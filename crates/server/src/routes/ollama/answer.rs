//! The answers of `/api/chat` and `/api/generate`.

use axum::Json;
use axum::response::{IntoResponse, Response};

use super::format::{Api, LineFormat};
use super::work::Work;
use crate::error::ApiError;
use crate::postprocess::Delta;
use crate::state::AppState;
use crate::stream::sse;

impl Work {
    /// Generates the answer.
    pub(super) async fn answer(self, state: &AppState, api: Api) -> Result<Response, ApiError> {
        let streams = self.request.fields.stream.unwrap_or(true);
        let Some(prepared) = &self.prepared else {
            let line = LineFormat::new(state, api, &self).loaded();
            return Ok(Json(line).into_response());
        };
        let mut choices = prepared.submit(state)?;
        let mut format = LineFormat::new(state, api, &self);
        if streams {
            return Ok(sse(choices, format));
        }
        let mut all = Delta::default();
        for choice in &mut choices {
            while let Some(delta) = choice.next().await {
                format.note_first();
                all.append(delta?);
            }
        }
        Ok(Json(format.response(all)).into_response())
    }
}
