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
use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::extract::Request;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::IntoResponse as _;
use axum::routing::{MethodRouter, get, post};
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
use routes::{
    anthropic, auth, chat, classify, completions, embeddings, files, finetuning as tuning, health,
    info, invocations, lora, models, ollama, render, responses, scores, stored_responses as stored,
    tokenize, track,
};

/// Paths and what answers there.
fn routes() -> [(&'static str, MethodRouter<AppState>); 32] {
    [
        ("/v1/chat/completions", post(chat::chat_completions)),
        ("/v1/completions", post(completions::completions)),
        ("/v1/responses", post(responses::create)),
        ("/v1/responses/input_tokens", post(responses::input_tokens)),
        (
            "/v1/responses/{id}",
            get(stored::retrieve).delete(stored::delete),
        ),
        ("/v1/responses/{id}/cancel", post(stored::cancel)),
        ("/v1/responses/{id}/input_items", get(stored::input_items)),
        ("/v1/embeddings", post(embeddings::embeddings)),
        ("/pooling", post(embeddings::pooling)),
        ("/classify", post(classify::classify)),
        ("/score", post(scores::score)),
        ("/v1/score", post(scores::score)),
        ("/rerank", post(scores::rerank)),
        ("/v1/rerank", post(scores::rerank)),
        ("/v2/rerank", post(scores::rerank)),
        ("/v1/models", get(models::list)),
        ("/v1/load_lora_adapter", post(lora::load)),
        ("/v1/unload_lora_adapter", post(lora::unload)),
        (
            "/v1/chat/completions/render",
            post(render::chat_completions),
        ),
        ("/v1/completions/render", post(render::completions)),
        ("/invocations", post(invocations::invocations)),
        ("/load", get(info::load)),
        ("/memory", get(info::memory)),
        ("/tokenizer_info", get(info::tokenizer)),
        ("/tokenize", post(tokenize::tokenize)),
        ("/detokenize", post(tokenize::detokenize)),
        ("/health", get(health::health)),
        ("/ping", get(health::health).post(health::health)),
        ("/is_sleeping", get(health::is_sleeping)),
        ("/version", get(health::version)),
        ("/metrics", get(health::metrics)),
        ("/openapi.json", get(openapi::openapi)),
    ]
}

/// The whole HTTP API.
pub fn app(state: AppState) -> Router {
    let router = Router::new().route("/v1/models/{*id}", get(models::get).delete(models::delete));
    let mut router = page::add(router, state.api().page);
    let routes = routes().into_iter().chain(anthropic::routes());
    let routes = routes.chain(files::routes()).chain(tuning::routes());
    for (path, methods) in routes.chain(ollama::routes()) {
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
        () = served => {}
        () = open => {}
        () = expired => {}
    }
}
