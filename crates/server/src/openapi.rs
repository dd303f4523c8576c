//! `/openapi.json`: requests as `fields.txt` has them, answers as their types say.

mod anthropic;
mod chat;
mod finetuning;
mod limits;
mod ollama;
mod operation;
mod other_apis;
mod requests;
mod responses;

use std::sync::LazyLock;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use crate::engine::MemoryTable;
use crate::protocol::chat_answer::ChatResponse;
use crate::protocol::classify::ClassifyResponse;
use crate::protocol::completions::CompletionResponse;
use crate::protocol::fields::Endpoint;
use crate::protocol::models::{ModelCard, ModelList};
use crate::protocol::pooling::{EmbeddingResponse, PoolingResponse};
use crate::protocol::scores::{RerankResponse, ScoreResponse};
use crate::protocol::tokenize::{Detokenized, Tokenized};
use crate::state::AppState;
use limits::Limits;
use operation::{Answer, Operation, of};
use requests::{detokenize, load_lora, rendered, request, tokenize, unload_lora};

/// The document, without what depends on the server.
static DOCUMENT: LazyLock<Value> = LazyLock::new(document);

/// The description of the HTTP API that `/openapi.json` gives, with the bounds of this server.
pub fn api_description(state: &AppState) -> Value {
    described(state).clone()
}

/// The same, made once for each server.
fn described(state: &AppState) -> &Value {
    state.api_description(|| Limits::of(state).applied(&DOCUMENT))
}

/// Answers with the document.
pub(crate) async fn openapi(State(state): State<AppState>) -> Response {
    Json(described(&state)).into_response()
}

fn document() -> Value {
    let settings = SchemaSettings::draft2020_12()
        .for_serialize()
        .with(|settings| {
            settings.definitions_path = "/components/schemas".into();
            settings.meta_schema = None;
        });
    let mut schemas = settings.into_generator();
    let mut paths = Map::new();
    let operations = operations(&mut schemas);
    let jobs = finetuning::operations(&mut schemas);
    let others = other_apis::operations().into_iter().chain(jobs);
    for operation in operations.into_iter().chain(others) {
        let (path, method) = (operation.path, operation.method);
        let path = paths.entry(path).or_insert_with(|| json!({}));
        path[method] = operation.describe();
    }
    let mut components = schemas.take_definitions(true);
    components.insert("Error".to_owned(), error());
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "server",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "OpenAI's Completions, Chat Completions, Embeddings and Responses with vLLM's additions, vLLM's own \
                            routes, Anthropic's Messages and Ollama's API.",
        },
        "security": [{}, { "key": [] }, { "x-api-key": [] }],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "key": { "type": "http", "scheme": "bearer" },
                "x-api-key": { "type": "apiKey", "in": "header", "name": "x-api-key" },
            },
        },
    })
}

fn operations(schemas: &mut SchemaGenerator) -> Vec<Operation> {
    let chat = || Some(request(Endpoint::Chat));
    let completions = || Some(request(Endpoint::Completions));
    let embeddings = || Some(request(Endpoint::Embeddings));
    let (score, rerank) = (
        || Some(request(Endpoint::Score)),
        || Some(request(Endpoint::Rerank)),
    );
    let scores = Answer::Json(of::<ScoreResponse>(schemas));
    let ranks = Answer::Json(of::<RerankResponse>(schemas));
    let chat_answer = of::<ChatResponse>(schemas);
    let completion = of::<CompletionResponse<'_>>(schemas);
    let object = || Answer::Json(json!({ "type": "object" }));
    let post = |path, summary, request, answer| Operation {
        path,
        method: "post",
        summary,
        request,
        answer,
    };
    let get = |path, summary, answer| Operation {
        path,
        method: "get",
        summary,
        request: None,
        answer,
    };
    vec![
        post(
            "/v1/chat/completions",
            "Answers a conversation",
            chat(),
            Answer::Stream(chat_answer),
        ),
        post(
            "/v1/completions",
            "Continues texts",
            completions(),
            Answer::Stream(completion),
        ),
        post(
            "/v1/chat/completions/render",
            "The tokens of a conversation",
            chat(),
            Answer::Json(rendered()),
        ),
        post(
            "/v1/completions/render",
            "The tokens of prompts",
            completions(),
            Answer::Json(json!({ "type": "array", "items": rendered() })),
        ),
        post(
            "/v1/embeddings",
            "Vectors of texts",
            embeddings(),
            Answer::Json(of::<EmbeddingResponse>(schemas)),
        ),
        post(
            "/pooling",
            "What a pooling model computes for texts",
            Some(request(Endpoint::Pooling)),
            Answer::Json(of::<PoolingResponse>(schemas)),
        ),
        post(
            "/classify",
            "Classes of texts",
            Some(request(Endpoint::Classify)),
            Answer::Json(of::<ClassifyResponse>(schemas)),
        ),
        post(
            "/score",
            "Scores of pairs of texts",
            score(),
            scores.clone(),
        ),
        post("/v1/score", "Scores of pairs of texts", score(), scores),
        post(
            "/rerank",
            "Documents, the best first",
            rerank(),
            ranks.clone(),
        ),
        post(
            "/v1/rerank",
            "Documents, the best first",
            rerank(),
            ranks.clone(),
        ),
        post("/v2/rerank", "Documents, the best first", rerank(), ranks),
        post(
            "/invocations",
            "Whichever of these the body is for",
            Some(json!({ "type": "object" })),
            Answer::Stream(json!({ "type": "object" })),
        ),
        get(
            "/v1/models",
            "The names that requests may use",
            Answer::Json(of::<ModelList>(schemas)),
        ),
        get(
            "/v1/models/{id}",
            "One of them",
            Answer::Json(of::<ModelCard>(schemas)),
        ),
        post(
            "/v1/load_lora_adapter",
            "Loads a PEFT folder",
            Some(load_lora()),
            Answer::Text,
        ),
        post(
            "/v1/unload_lora_adapter",
            "Forgets an adapter",
            Some(unload_lora()),
            Answer::Text,
        ),
        post(
            "/tokenize",
            "Token ids of a text or a conversation",
            Some(tokenize()),
            Answer::Json(of::<Tokenized>(schemas)),
        ),
        post(
            "/detokenize",
            "The text of token ids",
            Some(detokenize()),
            Answer::Json(of::<Detokenized>(schemas)),
        ),
        get("/tokenizer_info", "The tokenizer's configuration", object()),
        get(
            "/health",
            "Whether the engine takes requests",
            Answer::Nothing,
        ),
        get(
            "/ping",
            "Whether the engine takes requests",
            Answer::Nothing,
        ),
        post(
            "/ping",
            "Whether the engine takes requests",
            None,
            Answer::Nothing,
        ),
        get("/load", "Requests that are not answered yet", object()),
        get("/is_sleeping", "Whether the engine sleeps: never", object()),
        get(
            "/memory",
            "How the memory of the device is divided",
            Answer::Json(of::<MemoryTable>(schemas)),
        ),
        get("/version", "The version of this program", object()),
        get("/metrics", "Prometheus' metrics", Answer::Text),
        get("/openapi.json", "This document", object()),
    ]
}

/// OpenAI's error object.
fn error() -> Value {
    json!({
        "type": "object",
        "required": ["error"],
        "properties": { "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": { "type": "string" },
                "type": { "type": "string" },
                "param": { "type": ["string", "null"] },
                "code": { "type": ["string", "integer"] },
            },
        } },
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::protocol::fields::FIELDS;
    use crate::route::RouteKind;

    #[test]
    fn every_route_is_described() {
        let paths = DOCUMENT["paths"].as_object().unwrap();
        let described: BTreeSet<&str> = paths.keys().map(String::as_str).collect();
        // What is refused whatever is asked.
        let refused = |path: &&str| {
            let models = ["pull", "push", "create", "copy", "delete", "blobs"];
            let name = path
                .strip_prefix("/api/")
                .and_then(|path| path.split('/').next());
            name.is_some_and(|name| models.contains(&name))
        };
        let routes = crate::routes().into_iter().map(|route| route.path);
        let routes = routes.filter(|path| !refused(path));
        let mut routes: BTreeSet<&str> = routes.collect();
        routes.insert("/v1/models/{id}");
        assert_eq!(described, routes);
    }

    /// What generates text has traces and is load.
    #[test]
    fn what_is_streamed_is_work() {
        let mut num_streamed = 0;
        for (path, methods) in DOCUMENT["paths"].as_object().unwrap() {
            let content = &methods["post"]["responses"]["200"]["content"];
            if ["text/event-stream", "application/x-ndjson"]
                .iter()
                .any(|kind| !content[kind].is_null())
            {
                let kind = crate::route_kind(path);
                assert!(matches!(kind, RouteKind::Work { .. }), "{path}: {kind:?}");
                num_streamed += 1;
            }
        }
        assert!(num_streamed >= 6, "{num_streamed}");
    }

    #[test]
    fn every_field_is_described() {
        for (path, endpoint) in [
            ("/v1/chat/completions", Endpoint::Chat),
            ("/v1/chat/completions/render", Endpoint::Chat),
            ("/v1/completions", Endpoint::Completions),
            ("/v1/embeddings", Endpoint::Embeddings),
            ("/pooling", Endpoint::Pooling),
            ("/classify", Endpoint::Classify),
            ("/v1/score", Endpoint::Score),
            ("/v2/rerank", Endpoint::Rerank),
            ("/v1/responses", Endpoint::Responses),
            ("/v1/messages", Endpoint::Messages),
            ("/v1/messages/count_tokens", Endpoint::CountTokens),
            ("/api/chat", Endpoint::OllamaChat),
            ("/api/generate", Endpoint::OllamaGenerate),
            ("/api/embed", Endpoint::OllamaEmbed),
            ("/api/embeddings", Endpoint::OllamaEmbeddings),
            ("/api/show", Endpoint::OllamaShow),
            ("/v1/fine_tuning/jobs", Endpoint::FineTuningJob),
            ("/v1/fine_tuning/preview", Endpoint::FineTuningPreview),
        ] {
            let body = &DOCUMENT["paths"][path]["post"]["requestBody"]["content"];
            let properties = body["application/json"]["schema"]["properties"].as_object();
            let described: BTreeSet<&str> =
                properties.unwrap().keys().map(String::as_str).collect();
            let fields = FIELDS.iter().filter(|field| field.is_of(endpoint));
            assert_eq!(
                described,
                fields.map(|field| field.name).collect(),
                "{path}"
            );
        }
    }

    #[test]
    fn every_reference_has_its_schema() {
        fn check(value: &Value, schemas: &Map<String, Value>) {
            match value {
                Value::Object(fields) => {
                    if let Some(Value::String(reference)) = fields.get("$ref") {
                        let name = reference.strip_prefix("#/components/schemas/").unwrap();
                        assert!(schemas.contains_key(name), "{reference}");
                    }
                    fields.values().for_each(|value| check(value, schemas));
                }
                Value::Array(items) => items.iter().for_each(|value| check(value, schemas)),
                _ => {}
            }
        }
        let schemas = DOCUMENT["components"]["schemas"].as_object().unwrap();
        assert!(schemas.len() > 15);
        check(&DOCUMENT, schemas);
    }
}
