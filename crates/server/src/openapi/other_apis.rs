//! The Responses API, Anthropic's and Ollama's.

use serde_json::{Value, json};

use super::chat::{self, any_of, name, or_null};
use super::requests::request;
use super::{Answer, Operation, anthropic, responses};
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
    Some(match (endpoint, field) {
        (Endpoint::Responses, _) => return responses::form(field),
        (Endpoint::Messages | Endpoint::CountTokens, _) => return anthropic::form(field),
        (Endpoint::OllamaChat, "messages") => {
            json!({ "type": ["array", "null"], "items": ollama_turn() })
        }
        (Endpoint::OllamaChat, "tools") => {
            json!({ "type": ["array", "null"], "items": chat::tool() })
        }
        (Endpoint::OllamaChat | Endpoint::OllamaGenerate, "format") => any_of(&[
            json!({ "enum": ["json", "", null] }),
            json!({ "description": "A JSON schema", "type": "object" }),
        ]),
        (Endpoint::OllamaChat | Endpoint::OllamaGenerate, "think") => {
            any_of(&[json!({ "type": ["boolean", "null"] }), chat::efforts()])
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
        ) => or_null(request(Endpoint::OllamaOptions)),
        _ => return None,
    })
}

/// A message of Ollama's, whose calls have objects of arguments.
fn ollama_turn() -> Value {
    let optional = json!({ "type": ["string", "null"] });
    let function = json!({ "type": "object", "required": ["name"], "properties": {
        "name": name(),
        "arguments": { "type": ["object", "null"] },
    } });
    json!({
        "type": "object",
        "required": ["role"],
        "properties": {
            "role": { "enum": ["system", "user", "assistant", "tool"] },
            "content": optional,
            "thinking": optional,
            "images": { "type": ["array", "null"], "maxItems": 0 },
            "tool_calls": { "type": ["array", "null"], "items": {
                "type": "object",
                "required": ["function"],
                "properties": { "function": function },
            } },
            "tool_name": optional,
            "tool_call_id": optional,
        },
    })
}
