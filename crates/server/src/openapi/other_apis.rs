//! The Responses API, Anthropic's and Ollama's.

use serde_json::json;

use super::operation::{Answer, Operation};
use super::requests::request;
use crate::protocol::fields::Endpoint;

/// Routes, what they are for, and the endpoint whose fields a request has. Answers are objects, or streams of them.
const POSTS: [(&str, &str, Option<Endpoint>); 10] = [
    (
        "/v1/responses",
        "Answers a conversation with items",
        Some(Endpoint::Responses),
    ),
    (
        "/v1/responses/input_tokens",
        "The number of tokens of a prompt",
        Some(Endpoint::Responses),
    ),
    (
        "/v1/responses/{id}/cancel",
        "An error: no response is computed in the background",
        None,
    ),
    (
        "/v1/messages",
        "Answers a conversation as Anthropic does",
        Some(Endpoint::Messages),
    ),
    (
        "/v1/messages/count_tokens",
        "The number of tokens of a prompt",
        Some(Endpoint::CountTokens),
    ),
    (
        "/api/chat",
        "Answers a conversation as Ollama does",
        Some(Endpoint::OllamaChat),
    ),
    (
        "/api/generate",
        "Answers a prompt as Ollama does",
        Some(Endpoint::OllamaGenerate),
    ),
    (
        "/api/embed",
        "Vectors of texts as Ollama has them",
        Some(Endpoint::OllamaEmbed),
    ),
    (
        "/api/embeddings",
        "The vector of a text as Ollama has it",
        Some(Endpoint::OllamaEmbeddings),
    ),
    ("/api/show", "What the model is", Some(Endpoint::OllamaShow)),
];
const GETS: [(&str, &str); 5] = [
    ("/v1/responses/{id}", "A stored response"),
    (
        "/v1/responses/{id}/input_items",
        "What a stored response answers",
    ),
    ("/api/tags", "The names that requests may use"),
    ("/api/ps", "The loaded model"),
    ("/api/version", "The version of Ollama's API"),
];

pub(super) fn operations() -> Vec<Operation> {
    let object = json!({ "type": "object" });
    let posts = POSTS.map(|(path, summary, endpoint)| Operation {
        path,
        method: "post",
        summary,
        request: endpoint.map(request),
        answer: match path {
            "/v1/responses" | "/v1/messages" => Answer::Stream(object.clone()),
            "/api/chat" | "/api/generate" => Answer::Lines(object.clone()),
            _ => Answer::Json(object.clone()),
        },
    });
    let gets = GETS.map(|(path, summary)| Operation {
        path,
        method: "get",
        summary,
        request: None,
        answer: Answer::Json(object.clone()),
    });
    let forget = Operation {
        path: "/v1/responses/{id}",
        method: "delete",
        summary: "Forgets a stored response",
        request: None,
        answer: Answer::Json(object.clone()),
    };
    posts.into_iter().chain(gets).chain([forget]).collect()
}
