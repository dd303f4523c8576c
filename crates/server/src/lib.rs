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

mod builder;
pub mod config;
pub mod deltas;
pub mod engine;
pub mod error;
pub mod metrics;
pub mod postprocess;
pub mod protocol;
pub mod routes;
pub mod state;
pub mod stream;
pub mod text;

use std::fmt::Debug;
use std::future::Future;
use std::io;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use axum::serve::Listener;
use tokio::sync::oneshot;

pub use burn;

pub use builder::EngineBuilder;
pub use config::{Config, ConfigError, args};
pub use engine::ModelInfo;
pub use state::AppState;

use protocol::body::MAX_BODY_BYTES;
use routes::{auth, chat, completions, health, lora, models, tokenize};

/// The whole HTTP API.
pub fn app(state: AppState) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(chat::chat_completions))
        .route("/v1/completions", post(completions::completions))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::get))
        .route("/v1/load_lora_adapter", post(lora::load))
        .route("/v1/unload_lora_adapter", post(lora::unload))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .route("/health", get(health::health))
        .route("/version", get(health::version))
        .route("/metrics", get(health::metrics))
        .fallback(auth::unknown_route)
        .method_not_allowed_fallback(auth::wrong_method)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(from_fn_with_state(state.clone(), auth::require_api_key))
        .with_state(state)
}

/// Serves until `shutdown` completes, then stops accepting and lets running requests end, at most for
/// [`AppState::shutdown_timeout`].
///
/// # Errors
/// If the listener fails.
pub async fn run<L>(
    listener: L,
    state: AppState,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()>
where
    L: Listener,
    L::Addr: Debug,
{
    let (engine, timeout) = (state.engine().clone(), state.shutdown_timeout());
    let (draining, drain) = oneshot::channel();
    let stop = {
        let engine = engine.clone();
        async move {
            shutdown.await;
            engine.begin_shutdown();
            tracing::info!(?timeout, "shutting down: finishing the running requests");
            // The receiver is gone only if the server has ended already.
            let _ = draining.send(());
        }
    };
    let served = async {
        axum::serve(listener, app(state))
            .with_graceful_shutdown(stop)
            .await?;
        engine.drained().await;
        Ok(())
    };
    let expired = async {
        match drain.await {
            Ok(()) => tokio::time::sleep(timeout).await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        result = served => result,
        () = expired => {
            tracing::warn!(?timeout, "requests are still running; ending without them (--shutdown-timeout)");
            Ok(())
        }
    }
}
