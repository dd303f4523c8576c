//! API keys, and answers for routes and methods that do not exist.

use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::Response;

use crate::error::ApiError;
use crate::page;
use crate::route::RouteKind;
use crate::route_kind;
use crate::state::AppState;

const X_API_KEY: &str = "x-api-key";

/// Lets a request pass if it brings a key or needs none.
pub async fn require_api_key(
    State(state): State<AppState>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let bearer = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim());
    // Anthropic's clients send it there.
    let header = request.headers().get(X_API_KEY);
    let header = header.and_then(|value| value.to_str().ok()).map(str::trim);
    let is_authorized = state.authorizes(bearer) | state.authorizes(header);
    let path = request.uri().path().trim_end_matches('/');
    let is_open = route_kind(path) == RouteKind::Polled { is_open: true }
        || page::is_for_page(&request, state.api().page);
    if is_open || is_authorized {
        return Ok(next.run(request).await);
    }
    let message = match bearer.or(header) {
        None => "Missing API key: send it as `Authorization: Bearer KEY` or `x-api-key: KEY`.",
        Some(_) => "Incorrect API key provided.",
    };
    Err(ApiError {
        code: Some("invalid_api_key"),
        ..ApiError::new(StatusCode::UNAUTHORIZED, message)
    })
}

/// 404.
pub async fn unknown_route(method: Method, uri: Uri) -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        format!("There is no route {method} {}.", uri.path()),
    )
}

/// 405; axum adds the `Allow` header.
pub async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("{} does not accept {method}.", uri.path()),
    )
}
