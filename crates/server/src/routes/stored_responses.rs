//! Responses that the server has kept: `/v1/responses/{id}`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::protocol::responses::items::Item;
use crate::protocol::responses::settings::read_include;
use crate::state::AppState;
use crate::stored_responses::Turn;

/// The response with an id that came in the field `param`.
pub(super) fn stored(state: &AppState, id: &str, param: &str) -> Result<Arc<Turn>, ApiError> {
    let store = state.stored_responses();
    store.get(id).ok_or_else(|| {
        let reason = match store.is_on() {
            true => "it was not stored, or is forgotten (--max-stored-responses)",
            false => "the server keeps none (--max-stored-responses 0)",
        };
        let message = format!("The response `{id}` does not exist: {reason}.");
        ApiError {
            status: StatusCode::NOT_FOUND,
            ..ApiError::bad_request(param, message)
        }
    })
}

/// Gives a stored response.
pub async fn retrieve(
    State(state): State<AppState>,
    Path(id): Path<String>,
    Query(query): Query<Vec<(String, String)>>,
) -> Result<Response, ApiError> {
    let turn = stored(&state, &id, "response_id")?;
    let mut include = Vec::new();
    for (name, value) in query {
        match name.as_str() {
            "stream" if value != "false" => {
                let message = "`stream`: expected false, as events are not stored.";
                return Err(ApiError::bad_request("stream", message));
            }
            // A client writes each value of a list by itself, with brackets or without.
            _ if name == "include" || name.starts_with("include[") => include.push(value),
            _ => {}
        }
    }
    read_include(&include)?;
    let json = [(header::CONTENT_TYPE, "application/json")];
    Ok((json, turn.response().to_owned()).into_response())
}

/// Forgets a stored response.
pub async fn delete(
    State(state): State<AppState>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    stored(&state, &id, "response_id")?;
    state.stored_responses().remove(&id);
    Ok(Json(
        json!({ "id": id, "object": "response", "deleted": true }),
    ))
}

/// Says why a response cannot be cancelled.
pub async fn cancel(State(state): State<AppState>, Path(id): Path<String>) -> ApiError {
    match stored(&state, &id, "response_id") {
        Err(error) => error,
        Ok(_) => {
            let message = format!(
                "The response `{id}` cannot be cancelled: it has ended, and there is no `background`. A client that goes away \
                 ends its response."
            );
            ApiError::bad_request("response_id", message)
        }
    }
}

/// Which items to list.
#[derive(Debug, Deserialize)]
pub struct ListQuery {
    limit: Option<String>,
    order: Option<String>,
    after: Option<String>,
}

/// Lists the items of a stored response's input.
pub async fn input_items(
    State(state): State<AppState>,
    Path(id): Path<String>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Value>, ApiError> {
    const DEFAULT_LIMIT: usize = 20;
    const MAX_LIMIT: usize = 100;
    let mut items = stored(&state, &id, "response_id")?.input();
    let wrong = |param: &str, expected: &str, found: &str| {
        ApiError::expected(param, expected, &format!("`{found}`"))
    };
    match query.order.as_deref() {
        None | Some("desc") => items.reverse(),
        Some("asc") => {}
        Some(other) => return Err(wrong("order", "`asc` or `desc`", other)),
    }
    let limit = match &query.limit {
        None => DEFAULT_LIMIT,
        Some(given) => match given.parse() {
            Ok(limit) if (1..=MAX_LIMIT).contains(&limit) => limit,
            _ => return Err(wrong("limit", "a number from 1 to 100", given)),
        },
    };
    if let Some(after) = &query.after {
        let place = items.iter().position(|item| item["id"] == **after);
        let place = place.ok_or_else(|| wrong("after", "the id of an item", after))?;
        items.drain(..=place);
    }
    let has_more = items.len() > limit;
    items.truncate(limit);
    let id_of = |item: Option<&Item>| item.and_then(|item| item.get("id").cloned());
    let (first, last) = (id_of(items.first()), id_of(items.last()));
    Ok(Json(
        json!({ "object": "list", "data": items, "first_id": first, "last_id": last, "has_more": has_more }),
    ))
}
