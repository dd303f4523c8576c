//! `/v1/models`.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use serde_json::{Value, json};

use super::finetuning::{require_own_page, service};
use crate::blocking::blocking;
use crate::error::ApiError;
use crate::protocol::models::{ModelCard, ModelList};
use crate::state::AppState;

/// The names that requests may use: those of the base model, then the adapters.
pub async fn list(State(state): State<AppState>) -> Json<ModelList> {
    Json(ModelList {
        object: "list",
        data: cards(&state),
    })
}

/// One of them; names may contain slashes.
pub async fn get(
    State(state): State<AppState>,
    Path(id): Path<String>,
) -> Result<Json<ModelCard>, ApiError> {
    let id = id.trim_end_matches('/').to_owned();
    let card = cards(&state).into_iter().find(|card| card.id == id);
    card.map(Json).ok_or_else(|| ApiError::model_not_found(&id))
}

/// Deletes a model that a fine-tuning job has made; requests that use it finish.
pub async fn delete(
    State(state): State<AppState>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let id = id.trim_end_matches('/').to_owned();
    check_deletable(&state, &id)?;
    let own = service(&state)?.clone();
    require_own_page(&state, &headers)?;
    let name = id.clone();
    for name in blocking(move || own.delete_model(&name)).await? {
        // It may have been unloaded already.
        let _ = state.engine().unload_adapter(&name).await;
    }
    Ok(Json(
        json!({ "id": id, "object": "model", "deleted": true }),
    ))
}

/// Refuses to delete what no job has made: there is such a model, so that a 404 would be wrong.
fn check_deletable(state: &AppState, id: &str) -> Result<(), ApiError> {
    let is_base = state.served_model_names().iter().any(|name| name == id);
    let adapters = state.engine().adapters();
    let is_adapter = adapters.iter().any(|adapter| adapter.name == id);
    let has_made = |name: &str| state.finetuning().is_some_and(|own| own.has_made(name));
    let checkpoint_of = id.rsplit_once(":ckpt-step-").map(|(name, _)| name);
    let reason = match checkpoint_of.filter(|name| has_made(name)) {
        _ if is_base => {
            "is a base model; only models that fine-tuning jobs have made can be deleted".to_owned()
        }
        Some(name) => format!("is a checkpoint, which goes with its model: delete `{name}`"),
        None if is_adapter && !has_made(id) => {
            "was made by no fine-tuning job; POST /v1/unload_lora_adapter unloads it".to_owned()
        }
        None => return Ok(()),
    };
    Err(ApiError::bad_request(
        "model",
        format!("`{id}` cannot be deleted: it {reason}."),
    ))
}

fn cards(state: &AppState) -> Vec<ModelCard> {
    let card = |id: &str, root: String, parent: Option<String>| ModelCard {
        id: id.to_owned(),
        object: "model",
        created: state.started(),
        owned_by: "local",
        root,
        parent,
        max_model_len: state.model().max_model_len,
    };
    let names = state.served_model_names();
    let bases = names
        .iter()
        .map(|name| card(name, state.model().model_id.clone(), None));
    let adapters = state.engine().adapters();
    let adapters = adapters.iter().map(|adapter| {
        card(
            &adapter.name,
            adapter.path.display().to_string(),
            Some(names[0].clone()),
        )
    });
    bases.chain(adapters).collect()
}
