//! `/v1/load_lora_adapter` and `/v1/unload_lora_adapter`.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};

use crate::blocking::blocking;
use crate::config::{Allowed, LoraRootError, LoraRoots};
use crate::engine::AdapterError;
use crate::error::ApiError;
use crate::protocol::body::Body;
use crate::protocol::models::{LoadLora, UnloadLora};
use crate::state::AppState;

/// Loads a PEFT folder from the server's disk; it serves requests from the answer on.
pub async fn load(
    State(state): State<AppState>,
    headers: HeaderMap,
    mut body: Body,
) -> Result<String, ApiError> {
    let roots = require_lora(&state, &headers)?.clone();
    body.normalize::<LoadLora>();
    let LoadLora {
        lora_name,
        lora_path,
        load_inplace,
    } = body.read()?;
    for (field, value) in [("lora_name", &lora_name), ("lora_path", &lora_path)] {
        if value.is_empty() {
            return Err(ApiError::bad_request(
                field,
                format!("`{field}` must not be empty."),
            ));
        }
    }
    if state.served_model_names().contains(&lora_name) {
        return Err(ApiError::bad_request(
            "lora_name",
            format!("`{lora_name}` is the name of the base model."),
        ));
    }
    let path = lora_path.clone();
    let path = blocking(move || roots.resolve(&path).map_err(refused)).await?;
    match load_inplace.unwrap_or(false) {
        true => state.engine().replace_adapter(&lora_name, &path).await?,
        false => state.engine().load_adapter(&lora_name, &path).await?,
    }
    tracing::info!(lora_name, lora_path, "loaded a LoRA adapter");
    Ok(format!(
        "Success: LoRA adapter '{lora_name}' added successfully."
    ))
}

/// Forgets an adapter; requests that use it finish.
pub async fn unload(
    State(state): State<AppState>,
    headers: HeaderMap,
    mut body: Body,
) -> Result<String, ApiError> {
    require_lora(&state, &headers)?;
    body.normalize::<UnloadLora>();
    let UnloadLora { lora_name } = body.read()?;
    state.engine().unload_adapter(&lora_name).await?;
    tracing::info!(lora_name, "unloaded a LoRA adapter");
    Ok(format!(
        "Success: LoRA adapter '{lora_name}' removed successfully."
    ))
}

/// The folders from which a client may load adapters. A web page may change adapters only if its origin was allowed by name.
fn require_lora<'a>(state: &'a AppState, headers: &HeaderMap) -> Result<&'a LoraRoots, ApiError> {
    if state.api().cors.origins == Allowed::Any && headers.contains_key(header::ORIGIN) {
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "A web page may load and unload adapters only from an origin that --allowed-origins names.",
        ));
    }
    let roots = state.lora_roots();
    roots.ok_or_else(|| AdapterError::Disabled.into())
}

fn refused(error: LoraRootError) -> ApiError {
    let status = match error {
        LoraRootError::Missing(_) => StatusCode::NOT_FOUND,
        LoraRootError::Outside | LoraRootError::LeadsOut | LoraRootError::LinkOutside { .. } => {
            StatusCode::FORBIDDEN
        }
    };
    ApiError {
        param: Some("lora_path".to_owned()),
        ..ApiError::new(status, error.to_string())
    }
}
