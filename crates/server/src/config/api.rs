//! How the HTTP API answers.

use super::api_flags::MAX_LOGPROBS;
use super::args::Args;
use super::parsers::{ReasoningParser, ToolCallParser};
use super::structured_outputs::default_style;
use super::{ConfigError, StoredResponses, units};
use axum::http::{HeaderName, HeaderValue, Method};
use model_qwen::{JsonStyle, LogprobsMode};
use serde_json::{Map, Value};

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

impl ApiConfig {
    /// From the flags.
    ///
    /// # Errors
    /// [`ConfigError::Flag`] with the flag of an origin, a method or a header.
    pub(super) fn from_args(args: &Args) -> Result<Self, ConfigError> {
        let template_kwargs = args.default_chat_template_kwargs.clone();
        let json_style = args.structured_outputs_config.clone();
        Ok(Self {
            cors: CorsConfig::from_args(args)?,
            trust_request_chat_template: args.trust_request_chat_template,
            default_chat_template_kwargs: template_kwargs.unwrap_or_default(),
            max_logprobs: args.max_logprobs,
            logprobs_mode: args.logprobs_mode,
            return_tokens_as_token_ids: args.return_tokens_as_token_ids,
            enable_force_include_usage: args.enable_force_include_usage,
            reasoning_parser: args.reasoning_parser,
            tool_call_parser: args.tool_call_parser,
            enable_auto_tool_choice: !args.no_enable_auto_tool_choice,
            exclude_tools_when_tool_choice_none: args.exclude_tools_when_tool_choice_none,
            stored_responses: StoredResponses {
                max_num: args.max_stored_responses,
                max_bytes: args.max_stored_responses_bytes,
            },
            json_style: json_style.unwrap_or_else(default_style),
            enable_server_load_tracking: args.enable_server_load_tracking,
            enable_tokenizer_info_endpoint: args.enable_tokenizer_info_endpoint,
            page: !args.no_page,
        })
    }
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

impl CorsConfig {
    fn from_args(args: &Args) -> Result<Self, ConfigError> {
        Ok(Self {
            origins: allowed(
                (
                    "--allowed-origins",
                    "`null`, or origins such as https://example.org, with a scheme and without a path",
                ),
                &args.allowed_origins,
                origin,
            )?,
            methods: allowed(
                ("--allowed-methods", "methods such as POST"),
                &args.allowed_methods,
                |method| method.parse().ok(),
            )?,
            headers: allowed(
                ("--allowed-headers", "names of headers"),
                &args.allowed_headers,
                |header| header.parse().ok(),
            )?,
            credentials: args.allow_credentials,
        })
    }
}

/// The values of a flag of CORS.
fn allowed<T>(
    (flag, expected): (&'static str, &str),
    texts: &[units::Texts],
    parse: impl Fn(&str) -> Option<T>,
) -> Result<Allowed<T>, ConfigError> {
    let texts: Vec<String> = texts.iter().flat_map(|texts| texts.0.clone()).collect();
    Allowed::parse(&texts, parse).map_err(|text| ConfigError::Flag {
        flag,
        message: format!("expected `*`, {expected}; found {text:?}"),
    })
}

/// The origin of web pages, as browsers send it: scheme, host and port.
pub(super) fn origin(text: &str) -> Option<HeaderValue> {
    let is_host = |host: &str| !host.is_empty() && !host.contains(['/', '?', '#', '*', ' ']);
    let is_one = |text: &str| {
        text.split_once("://").is_some_and(|(scheme, host)| {
            scheme
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
                && is_host(host)
        })
    };
    // Who copies an address out of a browser has a slash behind the host.
    let text = text
        .strip_suffix('/')
        .filter(|text| is_one(text))
        .unwrap_or(text);
    let is_known = text == "null" || is_one(text);
    HeaderValue::from_str(&text.to_ascii_lowercase())
        .ok()
        .filter(|_| is_known)
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
