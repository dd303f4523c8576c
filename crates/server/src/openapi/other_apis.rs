//! The Responses API, Anthropic's and Ollama's.

use serde_json::{Value, json};

use super::requests::request;
use super::{Answer, Operation};
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

/// The form of a field that means something else here than in OpenAI's older requests.
pub(super) fn form(endpoint: Endpoint, field: &str) -> Option<Value> {
    let text = || json!({ "type": "string" });
    let object = || json!({ "type": ["object", "null"] });
    let list = || json!({ "type": ["array", "null"], "items": { "type": "object" } });
    Some(match (endpoint, field) {
        (Endpoint::Responses, "input") => json!({ "anyOf": [
            { "type": "string", "minLength": 1 },
            { "type": "array", "minItems": 1, "items": turn(&["user", "assistant", "system", "developer"]) },
        ] }),
        (Endpoint::Responses, "text" | "reasoning" | "metadata") => object(),
        (Endpoint::Messages | Endpoint::CountTokens, "messages") => {
            json!({ "type": "array", "minItems": 1, "items": turn(&["user", "assistant"]) })
        }
        (Endpoint::OllamaChat, "messages") => {
            json!({ "type": "array", "items": turn(&["system", "user", "assistant", "tool"]) })
        }
        (Endpoint::Messages | Endpoint::CountTokens, "system") => {
            json!({ "type": ["string", "null"] })
        }
        (
            Endpoint::Messages | Endpoint::CountTokens,
            "thinking" | "tool_choice" | "output_config",
        ) => object(),
        (Endpoint::Messages, "max_tokens") => json!({ "type": "integer", "minimum": 1 }),
        (Endpoint::Messages, "stop_sequences") => {
            json!({ "type": ["array", "null"], "items": text() })
        }
        (Endpoint::OllamaGenerate | Endpoint::OllamaEmbeddings, "prompt") => {
            json!({ "type": ["string", "null"] })
        }
        (Endpoint::OllamaEmbed, "input") => json!({ "anyOf": [
            { "type": ["string", "null"] },
            { "type": "array", "items": { "type": "string", "minLength": 1 } },
        ] }),
        (Endpoint::OllamaEmbed, "dimensions") => {
            json!({ "type": ["integer", "null"], "minimum": 0 })
        }
        (
            Endpoint::OllamaChat
            | Endpoint::OllamaGenerate
            | Endpoint::OllamaEmbed
            | Endpoint::OllamaEmbeddings,
            "options",
        ) => request(Endpoint::OllamaOptions),
        (_, "tools") if is_other(endpoint) => list(),
        _ => return None,
    })
}

/// Whether an endpoint belongs to one of these APIs.
fn is_other(endpoint: Endpoint) -> bool {
    POSTS.iter().any(|(_, _, of)| *of == Some(endpoint))
}

fn turn(roles: &[&str]) -> Value {
    json!({
        "type": "object",
        "required": ["role", "content"],
        "properties": { "role": { "enum": roles }, "content": { "type": "string", "minLength": 1 } },
    })
}
