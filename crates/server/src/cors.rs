//! Which web pages may read the answers: vLLM's `--allowed-origins` and its companions.

use axum::http::{HeaderName, header};
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer};

use crate::config::{Allowed, CorsConfig};
use crate::request_id;

/// Headers of answers that pages may read besides the plain ones.
const EXPOSED: [HeaderName; 2] = [request_id::HEADER, header::RETRY_AFTER];

/// The layer that answers preflights and marks answers.
pub(crate) fn layer(config: &CorsConfig) -> CorsLayer {
    // With credentials a browser takes no `*`. Neither does `*` cover the header `Authorization`.
    let origin = match (&config.origins, config.credentials) {
        (Allowed::Any, false) => AllowOrigin::any(),
        (Allowed::Any, true) => AllowOrigin::mirror_request(),
        (Allowed::Only(origins), _) => AllowOrigin::list(origins.iter().cloned()),
    };
    let methods = match &config.methods {
        Allowed::Any => AllowMethods::mirror_request(),
        Allowed::Only(methods) => AllowMethods::list(methods.iter().cloned()),
    };
    let headers = match &config.headers {
        Allowed::Any => AllowHeaders::mirror_request(),
        Allowed::Only(headers) => AllowHeaders::list(headers.iter().cloned()),
    };
    CorsLayer::new()
        .allow_origin(origin)
        .allow_methods(methods)
        .allow_headers(headers)
        .allow_credentials(config.credentials)
        .expose_headers(EXPOSED)
}
