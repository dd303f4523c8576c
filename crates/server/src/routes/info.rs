//! `/memory`; `/load` and `/tokenizer_info`, which a flag turns on.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use model_qwen::JsonFileError;
use serde_json::{Map, Value, json};

use crate::blocking::blocking;
use crate::engine::MemoryTable;
use crate::error::ApiError;
use crate::state::AppState;

/// Requests for text, vectors and scores that are not answered yet.
pub async fn load(State(state): State<AppState>) -> Result<Json<Value>, ApiError> {
    if !state.api().enable_server_load_tracking {
        return Err(off("/load", "--enable-server-load-tracking"));
    }
    Ok(Json(
        json!({ "server_load": state.http_metrics().num_in_flight() }),
    ))
}

/// How the engine has divided the memory of its device.
pub async fn memory(State(state): State<AppState>) -> Json<MemoryTable> {
    Json(state.model().memory_table.clone())
}

/// The model's `tokenizer_config.json`, with the chat template in force.
pub async fn tokenizer(State(state): State<AppState>) -> Result<Json<Value>, ApiError> {
    if !state.api().enable_tokenizer_info_endpoint {
        let flag = "--enable-tokenizer-info-endpoint";
        return Err(off("/tokenizer_info", flag));
    }
    blocking(move || {
        let path = state.model().dir.join("tokenizer_config.json");
        let unreadable = |reason: String| {
            let path = path.clone();
            ApiError::internal(JsonFileError::File { path, reason }.to_string())
        };
        let mut config: Map<String, Value> = match std::fs::read_to_string(&path) {
            Ok(text) => {
                let text = text.trim_start_matches('\u{feff}');
                serde_json::from_str(text).map_err(|error| unreadable(error.to_string()))?
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Map::new(),
            Err(error) => return Err(unreadable(error.to_string())),
        };
        let class = Value::from("PreTrainedTokenizerFast");
        config.entry("tokenizer_class").or_insert(class);
        let model = state.model();
        if !config.contains_key("eos_token") {
            let end = model.generation_config.eos_token_ids.first();
            let end = end.and_then(|&id| model.tokenizer.id_to_token(id));
            config.insert("eos_token".to_owned(), end.into());
        }
        if let Some(template) = &model.chat_template
            && !template.source().is_empty()
        {
            config.insert("chat_template".to_owned(), Value::from(template.source()));
        }
        Ok(Json(Value::Object(config)))
    })
    .await
}

fn off(path: &str, flag: &str) -> ApiError {
    let message = format!("There is no {path} here: start the server with {flag}.");
    ApiError::new(StatusCode::NOT_FOUND, message)
}
