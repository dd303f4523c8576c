//! An OpenAI-compatible HTTP server for Qwen-architecture models, with vLLM's flags and endpoints.
//!
//! A request flows like this: a handler in [`routes`] reads the body ([`protocol`]), renders the chat template, tokenizes and
//! checks, then submits sequences to the engine through an [`engine::EngineHandle`]. The engine thread is the only owner of
//! device, model and KV cache; it sends tokens back over a channel per sequence. [`postprocess`] makes text of them, and
//! [`stream`] sends it, at once or as server-sent events. A client that goes away drops its channel, which aborts the sequence.
//!
//! [`text`] is the engine without HTTP: [`engine::Engine::builder`] starts it from a program's own values.
//!
//! [`app`] builds the router without a socket, [`run`] serves it until a shutdown signal and drains.
//!
#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

pub mod answer;
pub mod batch;
pub mod bench;
mod blocking;
mod builder;
pub mod command;
pub mod config;
mod cors;
mod cut;
pub mod deltas;
pub mod engine;
pub mod error;
pub mod finetuning;
mod grammars;
mod hang_up;
pub mod histogram;
pub mod kv_events;
mod linger;
pub mod metrics;
mod openapi;
mod output_file;
mod page;
pub mod postprocess;
pub mod program;
pub mod protocol;
pub mod qwen_burn;
pub mod request_id;
mod route;
pub mod routes;
mod serve;
mod special_tokens;
pub mod state;
pub mod stored_responses;
pub mod stream;
pub mod text;
pub mod traces;
mod unread;

use std::future::Future;
use std::sync::{Arc, LazyLock, OnceLock};

use axum::Router;
use axum::extract::Request;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::IntoResponse as _;
use axum::routing::{get, post};
use axum::serve::Listener;
use tokio::sync::oneshot;

pub use burn;

pub use builder::EngineBuilder;
pub use config::{Config, ConfigError, args};
pub use engine::ModelInfo;
pub use openapi::api_description;
pub use state::AppState;

use config::CorsConfig;
use engine::StartProgress;
use error::{ApiError, shape};
use route::{Route, RouteKind};
use routes::{
    anthropic, auth, chat, classify, completions, embeddings, files, finetuning as tuning, health,
    info, invocations, lora, models, ollama, render, responses, scores, stored_responses as stored,
    tokenize, track,
};

/// Every path with its kind, but for the page and the models with their names as paths.
static KINDS: LazyLock<Vec<(&'static str, RouteKind)>> = LazyLock::new(|| {
    let routes = routes().into_iter();
    routes.map(|route| (route.path, route.kind)).collect()
});

/// How requests to a path count.
fn route_kind(path: &str) -> RouteKind {
    let known = KINDS.iter().find(|(known, _)| *known == path);
    known.map_or(RouteKind::Other, |(_, kind)| *kind)
}

/// The paths that a line of a batch may ask for.
fn batch_paths() -> impl Iterator<Item = &'static str> {
    let in_batch = RouteKind::Work { in_batch: true };
    let paths = KINDS.iter().filter(move |(_, kind)| *kind == in_batch);
    paths.map(|(path, _)| *path)
}

/// Paths and what answers there.
fn routes() -> Vec<Route> {
    let own = [
        Route::batch_work("/v1/chat/completions", post(chat::chat_completions)),
        Route::batch_work("/v1/completions", post(completions::completions)),
        Route::batch_work("/v1/responses", post(responses::create)),
        Route::other("/v1/responses/input_tokens", post(responses::input_tokens)),
        Route::other(
            "/v1/responses/{id}",
            get(stored::retrieve).delete(stored::delete),
        ),
        Route::other("/v1/responses/{id}/cancel", post(stored::cancel)),
        Route::other("/v1/responses/{id}/input_items", get(stored::input_items)),
        Route::batch_work("/v1/embeddings", post(embeddings::embeddings)),
        Route::batch_work("/pooling", post(embeddings::pooling)),
        Route::work("/classify", post(classify::classify)),
        Route::batch_work("/score", post(scores::score)),
        Route::batch_work("/v1/score", post(scores::score)),
        Route::batch_work("/rerank", post(scores::rerank)),
        Route::batch_work("/v1/rerank", post(scores::rerank)),
        Route::batch_work("/v2/rerank", post(scores::rerank)),
        Route::other("/v1/models", get(models::list)),
        Route::other("/v1/load_lora_adapter", post(lora::load)),
        Route::other("/v1/unload_lora_adapter", post(lora::unload)),
        Route::other(
            "/v1/chat/completions/render",
            post(render::chat_completions),
        ),
        Route::other("/v1/completions/render", post(render::completions)),
        Route::work("/invocations", post(invocations::invocations)),
        Route::polled("/load", get(info::load)),
        Route::polled("/memory", get(info::memory)),
        Route::other("/tokenizer_info", get(info::tokenizer)),
        Route::other("/tokenize", post(tokenize::tokenize)),
        Route::other("/detokenize", post(tokenize::detokenize)),
        Route::polled_open("/health", get(health::health)),
        Route::polled_open("/ping", get(health::health).post(health::health)),
        Route::other("/is_sleeping", get(health::is_sleeping)),
        Route::polled("/version", get(health::version)),
        Route::polled_open("/metrics", get(health::metrics)),
        Route::other("/openapi.json", get(openapi::openapi)),
    ];
    let routes = own.into_iter().chain(anthropic::routes());
    let routes = routes.chain(files::routes()).chain(tuning::routes());
    routes.chain(ollama::routes()).collect()
}

/// The whole HTTP API.
pub fn app(state: AppState) -> Router {
    let router = Router::new().route("/v1/models/{*id}", get(models::get).delete(models::delete));
    let mut router = page::add(router, state.api().page);
    for Route { path, methods, .. } in routes() {
        // A slash at the end changes nothing.
        router = router
            .route(&format!("{path}/"), methods.clone())
            .route(path, methods);
    }
    router
        .fallback(auth::unknown_route)
        .method_not_allowed_fallback(auth::wrong_method)
        .layer(from_fn_with_state(state.clone(), cut::end_requests))
        .layer(from_fn_with_state(state.clone(), auth::require_api_key))
        .layer(from_fn(shape::apply))
        .layer(from_fn_with_state(state.clone(), track::track))
        .layer(from_fn(request_id::echo))
        .layer(cors::layer(&state.api().cors))
        .with_state(state)
}

/// How long clients may take to read that their answers are cut.
const LAST_EVENTS: std::time::Duration = std::time::Duration::from_secs(2);

/// Serves until `shutdown` completes, then stops accepting and lets running requests end, at most for
/// [`AppState::shutdown_timeout`].
pub async fn run<L: Listener>(
    listener: L,
    state: AppState,
    shutdown: impl Future<Output = ()> + Send + 'static,
) {
    let loading = Loading::default();
    run_loading(listener, std::future::ready(state), loading, shutdown).await;
}

/// What is answered before there is a model.
#[derive(Clone, Debug, Default)]
pub struct Loading {
    /// How far the engine is.
    pub progress: StartProgress,
    /// Which web pages may read it.
    pub cors: CorsConfig,
    /// Whether browsers get the page, which shows the progress.
    pub page: bool,
}

impl Loading {
    fn app(self) -> Router {
        let Self {
            progress,
            cors,
            page,
        } = self;
        let router = Router::new().fallback(move |request: Request| {
            let answer = page::answer(&request, page)
                .unwrap_or_else(|| ApiError::loading(&progress).into_response());
            async { answer }
        });
        router
            .layer(from_fn(shape::apply))
            .layer(from_fn(request_id::echo))
            .layer(cors::layer(&cors))
    }
}

/// As [`run`], from before there is a model: until `state` completes, every request is answered 503 with the
/// progress; but with [`Loading::page`] the page's files are there.
pub async fn run_loading<L: Listener>(
    listener: L,
    state: impl Future<Output = AppState>,
    loading: Loading,
    shutdown: impl Future<Output = ()> + Send + 'static,
) {
    let loaded: Arc<OnceLock<(AppState, Router)>> = Arc::default();
    let loading = loading.app();
    let (draining, drain) = oneshot::channel();
    let stop = {
        let loaded = Arc::clone(&loaded);
        async move {
            shutdown.await;
            let timeout = loaded.get().map(|(state, _)| {
                state.engine().begin_shutdown();
                if let Some(finetuning) = state.finetuning() {
                    finetuning.begin_shutdown();
                }
                state.shutdown_timeout()
            });
            let timeout = timeout.unwrap_or_default();
            tracing::info!(?timeout, "shutting down: finishing the running requests");
            // The receiver is gone only if the server has ended already.
            let _ = draining.send(timeout);
        }
    };
    let current = {
        let loaded = Arc::clone(&loaded);
        move || match loaded.get() {
            Some((_, app)) => app.clone(),
            None => loading.clone(),
        }
    };
    let open = async {
        let state = state.await;
        // Only this task sets it.
        let _ = loaded.set((state.clone(), app(state)));
        std::future::pending::<()>().await;
    };
    let served = async {
        serve::serve(listener, current, stop).await;
        if let Some((state, _)) = loaded.get() {
            state.engine().drained().await;
            if let Some(tracer) = state.tracer() {
                tracer.flush().await;
            }
            if let Some(finetuning) = state.finetuning() {
                finetuning.stopped().await;
            }
        }
    };
    let expired = async {
        match drain.await {
            Ok(timeout) => tokio::time::sleep(timeout).await,
            Err(_) => std::future::pending().await,
        }
        tracing::warn!("requests are still running; ending without them (--shutdown-timeout)");
        if let Some((state, _)) = loaded.get() {
            state.cut_answers();
            tokio::time::sleep(LAST_EVENTS).await;
        }
    };
    tokio::select! {
        // A state that is there is open before the first connection.
        biased;
        () = open => {}
        () = served => {}
        () = expired => {}
    }
}
