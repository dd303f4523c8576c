//! `/v1/chat/completions`.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures::future::try_join_all;

use super::chat_format::ChatFormat;
use super::conversation::{Conversation, PreparedChat};
use super::prompt::prepare_and_compile;
use super::text_joiner::TextJoiner;
use crate::answer::ReasoningStart;
use crate::error::ApiError;
use crate::protocol::body::Body;
use crate::protocol::chat::{ChatFields, TemplateFields};
use crate::protocol::common::SamplingFields;
use crate::protocol::fields::Endpoint;
use crate::protocol::grammar::GrammarFields;
use crate::protocol::logprobs::{LogprobLimit, TokenView};
use crate::protocol::sampling::MaxTokens;
use crate::protocol::tools::{ToolChoice, read_choice};
use crate::state::{AppState, unix_time};
use crate::stream::{RunningChoice, TokenCounts, sse};

/// What the answer shows.
pub(super) struct Shown {
    pub(super) id: String,
    logprobs: bool,
    reasoning: bool,
    echo: bool,
    /// Whether the request names the tool to call.
    names_tool: bool,
}

/// Answers a conversation.
pub async fn chat_completions(
    State(state): State<AppState>,
    body: Body,
) -> Result<Response, ApiError> {
    let (shown, prepared) = prepare_and_compile(&state, body, prepare).await?;
    let choices = prepared.submit(&state)?;
    let streams = prepared.sampling.stream();
    let format = format(&state, shown, prepared);
    if streams {
        return Ok(sse(choices, format));
    }
    let deltas = try_join_all(choices.into_iter().map(RunningChoice::collect)).await?;
    Ok(Json(format.response(deltas)).into_response())
}

fn format(state: &AppState, shown: Shown, prepared: PreparedChat) -> ChatFormat {
    let sampling = &prepared.sampling;
    let n = sampling.n();
    let has_reasoning = prepared.parts.reasoning != ReasoningStart::None;
    let counts = TokenCounts::new(&prepared.prompt_lens(), n);
    // As vLLM has it: the tokens would show what is not to be shown.
    let hides_tokens = has_reasoning && !shown.reasoning;
    ChatFormat {
        id: shown.id,
        created: unix_time(),
        fingerprint: state.fingerprint().to_owned(),
        counts: match has_reasoning {
            true => counts.with_reasoning(),
            false => counts,
        },
        options: sampling.shown_usage(state),
        n,
        echo: prepared.last.filter(|_| shown.echo),
        view: TokenView {
            tokenizer: state.model().tokenizer.clone(),
            as_ids: sampling.tokens_as_ids(state),
            skip_special_tokens: prepared.text.skip_special_tokens,
        },
        logprobs: shown.logprobs && !hides_tokens,
        returns_token_ids: sampling.return_token_ids.unwrap_or(false) && !hides_tokens,
        shows_reasoning: shown.reasoning,
        names_tool: shown.names_tool,
        called: vec![false; n],
        joiners: vec![TextJoiner::default(); n],
        num_prompt_logprobs: sampling.prompt_logprobs().unwrap_or(0),
        model: prepared.model,
        role: prepared.role,
        prompt: prepared.request.prompt,
    }
}

pub(super) fn prepare(state: &AppState, mut body: Body) -> Result<(Shown, PreparedChat), ApiError> {
    body.check(Endpoint::Chat)?;
    let template: TemplateFields = body.read()?;
    let mut sampling = SamplingFields::from_body(&body, LogprobLimit::of(state))?;
    let grammar: GrammarFields = body.read()?;
    let fields = ChatFields::take(&mut body)?;
    let id = body.request_id().or(sampling.request_id.as_deref());
    drop(body);

    let tool_choice = read_choice(fields.tool_choice.as_ref(), template.tools.as_deref())?;
    let num_logprobs = num_logprobs(&fields, LogprobLimit::of(state))?;
    let named_anew = fields.max_completion_tokens.is_some();
    let echo = fields.echo.unwrap_or(false);
    if echo && !sampling.stream() && fields.top_logprobs.is_some() {
        // As vLLM has it; an answer's echo has them, too.
        let num = num_logprobs.and_then(|num| i64::try_from(num).ok());
        sampling.prompt_logprobs = sampling.prompt_logprobs.or(num);
    }
    let shown = Shown {
        id: format!("chatcmpl-{id}"),
        logprobs: num_logprobs.is_some(),
        reasoning: fields.include_reasoning.unwrap_or(true),
        echo,
        names_tool: matches!(tool_choice.tool_choice, ToolChoice::Named(_)),
    };
    let conversation = Conversation {
        model: fields.model,
        messages: fields.messages,
        template,
        sampling,
        max_tokens: MaxTokens::of(fields.max_completion_tokens.or(fields.max_tokens)),
        num_logprobs,
        grammar: grammar.requested(state.json_style())?,
        tool_choice,
        only_one_call: fields.parallel_tool_calls == Some(false),
        thinking_token_budget: fields.thinking_token_budget,
    };
    let prepared = conversation.prepare(state);
    // The two fields are one.
    let prepared = prepared.map_err(|error| match named_anew {
        true => error.renamed(&[("max_tokens", "max_completion_tokens")]),
        false => error,
    });
    Ok((shown, prepared?))
}

/// Alternatives per token, if log-probabilities are asked for.
fn num_logprobs(fields: &ChatFields, limit: LogprobLimit) -> Result<Option<usize>, ApiError> {
    let logprobs = fields.logprobs.unwrap_or(false);
    let num = limit.num("top_logprobs", fields.top_logprobs.unwrap_or(0))?;
    if num > 0 && !logprobs {
        let message = "`top_logprobs` needs `logprobs`: true.";
        return Err(ApiError::bad_request("top_logprobs", message));
    }
    Ok(logprobs.then_some(num))
}
