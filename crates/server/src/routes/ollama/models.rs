//! `/api/tags`, `/api/show`, `/api/ps` and `/api/version`.

use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::State;
use serde_json::{Map, Value, json};

use super::super::fim::supports_fim;
use super::super::reasoning::model_has_reasoning;
use super::names::model_name;
use super::time::rfc3339;
use crate::error::ApiError;
use crate::protocol::body::Body;
use crate::protocol::chat::shows_tools;
use crate::protocol::fields::Endpoint;
use crate::protocol::ollama::ShowFields;
use crate::protocol::ollama_answer::{Details, ListedModel, ModelList, Running, Shown};
use crate::state::AppState;

/// Clients ask for the version to know what the API has. This one has what Ollama of this version has, but for what
/// docs/src/ollama.md names.
const API_VERSION: &str = "0.13.0";
/// How long the model stays loaded, as far as clients are told.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 86_400);

/// The version of the API.
pub(super) async fn version() -> Json<Value> {
    Json(json!({ "version": API_VERSION }))
}

/// The names that requests may use.
pub(super) async fn tags(State(state): State<AppState>) -> Json<ModelList> {
    Json(list(&state, || None))
}

/// The same: all of them are loaded.
pub(super) async fn running(State(state): State<AppState>) -> Json<ModelList> {
    let details = &state.model().details;
    let running = || Running {
        expires_at: rfc3339(SystemTime::now() + FOREVER),
        size_vram: if details.is_on_gpu {
            details.num_bytes
        } else {
            0
        },
        context_length: state.model().max_model_len,
    };
    Json(list(&state, || Some(running())))
}

fn list(state: &AppState, running: impl Fn() -> Option<Running>) -> ModelList {
    let bases = state.served_model_names().iter().cloned();
    let adapters = state.engine().adapters();
    let adapters = adapters.iter().map(|adapter| adapter.name.clone());
    let model = |name: String| ListedModel {
        modified_at: started(state),
        size: state.model().details.num_bytes,
        digest: digest(state, &name),
        details: details(state, &name),
        running: running(),
        model: name.clone(),
        name,
    };
    ModelList {
        models: bases.chain(adapters).map(model).collect(),
    }
}

fn started(state: &AppState) -> String {
    rfc3339(UNIX_EPOCH + Duration::from_secs(state.started()))
}

/// 64 hexadecimal digits that are the same as long as the model is. The weights are not read for them.
fn digest(state: &AppState, name: &str) -> String {
    (0..4).fold(String::new(), |mut digits, part: u8| {
        let mut hasher = DefaultHasher::new();
        (part, &state.model().model_id, name).hash(&mut hasher);
        // Writing to a String cannot fail.
        let _ = write!(digits, "{:016x}", hasher.finish());
        digits
    })
}

fn details(state: &AppState, name: &str) -> Details {
    let details = &state.model().details;
    let names = state.served_model_names();
    Details {
        parent_model: match names.iter().any(|base| base == name) {
            true => String::new(),
            false => names[0].clone(),
        },
        format: "safetensors",
        family: details.architecture.clone(),
        families: vec![details.architecture.clone()],
        parameter_size: size(details.num_parameters),
        quantization_level: details.quantization.to_owned(),
    }
}

/// A number of parameters, such as `494.03M`.
fn size(num: u64) -> String {
    let num = num as f64;
    match num {
        num if num >= 1e9 => format!("{:.1}B", num / 1e9),
        num if num >= 1e6 => format!("{:.2}M", num / 1e6),
        num => format!("{:.2}K", num / 1e3),
    }
}

/// What the model can do, in Ollama's words.
fn capabilities(state: &AppState) -> Vec<&'static str> {
    if let Some(pooling) = &state.model().pooling {
        // Ollama has no word for scores.
        return match pooling.score {
            Some(_) => Vec::new(),
            None => vec!["embedding"],
        };
    }
    let template = state.model().chat_template.as_ref();
    let shows_tools = template.is_some_and(shows_tools);
    let capabilities = [
        ("completion", true),
        ("tools", shows_tools),
        ("thinking", model_has_reasoning(state)),
        ("insert", supports_fim(state)),
    ];
    let has = capabilities.into_iter().filter(|(_, has)| *has);
    has.map(|(capability, _)| capability).collect()
}

/// What is known of a model.
pub(super) async fn show(
    State(state): State<AppState>,
    mut body: Body,
) -> Result<Json<Shown>, ApiError> {
    body.check(Endpoint::OllamaShow)?;
    let fields: ShowFields = body.read()?;
    let name = fields
        .model
        .or(fields.name)
        .ok_or_else(|| ApiError::bad_request("model", "`model`: missing field `model`"))?;
    let name = model_name(&state, &name);
    state.resolve_model(Some(&name))?;
    let template = state.model().chat_template.as_ref();
    let template = template.map_or_else(String::new, |template| template.source().to_owned());
    let base = format!("FROM {}\n", state.model().model_id);
    let adapters = state.engine().adapters();
    let adapter = adapters.iter().find(|adapter| adapter.name == name);
    Ok(Json(Shown {
        modelfile: match adapter {
            Some(adapter) => format!("{base}ADAPTER {}\n", adapter.path.display()),
            None => base,
        },
        parameters: parameters(&state),
        template,
        details: details(&state, &name),
        model_info: model_info(&state, &name),
        capabilities: capabilities(&state),
        modified_at: started(&state),
    }))
}

/// Defaults of options.
fn parameters(state: &AppState) -> String {
    let model = state.model();
    let config = &model.generation_config;
    let params = config.sampling_defaults();
    let numbers = [
        ("temperature", f64::from(params.temperature)),
        ("top_p", f64::from(params.top_p)),
        ("min_p", f64::from(params.min_p)),
        ("repeat_penalty", f64::from(params.repetition_penalty)),
    ];
    let mut lines: Vec<String> = numbers
        .iter()
        .map(|(name, number)| format!("{name:<30} {}", (number * 1e6).round() / 1e6))
        .collect();
    lines.push(format!("{:<30} {}", "top_k", params.top_k));
    lines.push(format!("{:<30} {}", "num_ctx", model.max_model_len));
    let ends = config.eos_token_ids.iter();
    let ends = ends.filter_map(|&id| model.tokenizer.id_to_token(id));
    lines.extend(ends.map(|end| format!("{:<30} {end:?}", "stop")));
    lines.join("\n")
}

/// The configuration, with the names of GGUF files.
fn model_info(state: &AppState, name: &str) -> Map<String, Value> {
    let details = &state.model().details;
    let architecture = details.architecture.as_str();
    let mut info = Map::new();
    info.insert("general.architecture".to_owned(), json!(architecture));
    info.insert("general.basename".to_owned(), json!(name));
    info.insert(
        "general.parameter_count".to_owned(),
        json!(details.num_parameters),
    );
    for (key, number) in [
        ("context_length", details.context_length),
        ("block_count", details.num_layers),
        ("embedding_length", details.hidden_size),
        ("feed_forward_length", details.intermediate_size),
        ("attention.head_count", details.num_heads),
        ("attention.head_count_kv", details.num_kv_heads),
        ("vocab_size", details.vocab_size),
    ] {
        info.insert(format!("{architecture}.{key}"), json!(number));
    }
    info
}
