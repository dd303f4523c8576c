//! How the HTTP API answers.

use super::StoredResponses;
use super::parsers::{ReasoningParser, ToolCallParser};
use super::structured_outputs::default_style;
use super::units;
use axum::http::{HeaderName, HeaderValue, Method};
use model_qwen::{JsonStyle, LogprobsMode};
use serde_json::{Map, Value};

/// Most alternatives per token in log-probabilities, as in vLLM.
pub(super) const MAX_LOGPROBS: usize = 20;

/// Variables of the chat template that have a field of a request.
pub const TEMPLATE_FIELDS: [&str; 6] = [
    "messages",
    "tools",
    "chat_template",
    "add_generation_prompt",
    "continue_final_message",
    "tokenize",
];

/// `--default-chat-template-kwargs`.
pub(super) fn template_kwargs(text: &str) -> Result<units::Object, String> {
    let object = units::object(text)?;
    match object
        .keys()
        .find(|name| TEMPLATE_FIELDS.contains(&name.as_str()))
    {
        None => Ok(object),
        Some(name) => Err(format!("`{name}` has no effect: each request has its own")),
    }
}

/// How the HTTP API answers.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiConfig {
    /// Which web pages may read the answers.
    pub cors: CorsConfig,
    /// Whether requests may bring a chat template.
    pub trust_request_chat_template: bool,
    /// Variables of the chat template; those of a request win.
    pub default_chat_template_kwargs: Map<String, Value>,
    /// Most alternatives per token in log-probabilities; `usize::MAX` = no limit.
    pub max_logprobs: usize,
    /// Which numbers answers have as log-probabilities.
    pub logprobs_mode: LogprobsMode,
    /// Whether log-probabilities show tokens as `token_id:N` unless a request says otherwise.
    pub return_tokens_as_token_ids: bool,
    /// Whether every stream ends with its usage.
    pub enable_force_include_usage: bool,
    /// Which reasoning is looked for in answers.
    pub reasoning_parser: ReasoningParser,
    /// Which calls are looked for in answers.
    pub tool_call_parser: ToolCallParser,
    /// Whether calls are looked for where the model decides whether it calls a tool.
    pub enable_auto_tool_choice: bool,
    /// Whether the template shows no tools where none may be called.
    pub exclude_tools_when_tool_choice_none: bool,
    /// Which answers of `/v1/responses` are kept.
    pub stored_responses: StoredResponses,
    /// How answers in JSON are written, and how schemas are read, unless a request says otherwise.
    pub json_style: JsonStyle,
    /// Whether `/load` tells how many requests are not answered yet.
    pub enable_server_load_tracking: bool,
    /// Whether `/tokenizer_info` shows the tokenizer's configuration.
    pub enable_tokenizer_info_endpoint: bool,
    /// Whether browsers get a page at `/`.
    pub page: bool,
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self {
            cors: CorsConfig::default(),
            trust_request_chat_template: false,
            default_chat_template_kwargs: Map::new(),
            max_logprobs: MAX_LOGPROBS,
            logprobs_mode: LogprobsMode::default(),
            return_tokens_as_token_ids: false,
            enable_force_include_usage: false,
            reasoning_parser: ReasoningParser::default(),
            tool_call_parser: ToolCallParser::default(),
            enable_auto_tool_choice: true,
            exclude_tools_when_tool_choice_none: false,
            stored_responses: StoredResponses::default(),
            json_style: default_style(),
            enable_server_load_tracking: false,
            enable_tokenizer_info_endpoint: false,
            page: true,
        }
    }
}

/// Which web pages may read the answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CorsConfig {
    /// Their origins, such as `https://example.org`.
    pub origins: Allowed<HeaderValue>,
    /// Methods that they may use.
    pub methods: Allowed<Method>,
    /// Headers that they may send.
    pub headers: Allowed<HeaderName>,
    /// Whether the browser sends their cookies.
    pub credentials: bool,
}

/// Some or all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Allowed<T> {
    /// All.
    #[default]
    Any,
    /// These.
    Only(Vec<T>),
}

impl<T> Allowed<T> {
    /// From the texts of a flag, of which `*` is all; none is the default.
    ///
    /// # Errors
    /// The text that is no `T`.
    pub(super) fn parse(
        texts: &[String],
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Self, String> {
        if texts.is_empty() || texts.iter().any(|text| text == "*") {
            return Ok(Self::Any);
        }
        let parse = |text: &String| parse(text).ok_or_else(|| text.clone());
        texts
            .iter()
            .map(parse)
            .collect::<Result<_, _>>()
            .map(Self::Only)
    }
}
