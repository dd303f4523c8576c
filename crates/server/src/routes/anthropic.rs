//! `/v1/messages` and `/v1/messages/count_tokens`.

mod format;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::post;

use self::format::MessageFormat;
use super::conversation::{Conversation, PreparedChat};
use super::prompt::{prepare_and_compile, prepare_request};
use super::reasoning::can_end_reasoning;
use crate::answer::ReasoningStart;
use crate::error::ApiError;
use crate::protocol::anthropic::{AnswerFields, Prompt, ThinkingShown};
use crate::protocol::anthropic_answer::TokenCount;
use crate::protocol::body::Body;
use crate::protocol::fields::Endpoint;
use crate::protocol::grammar::RequestedGrammar;
use crate::protocol::sampling::MaxTokens;
use crate::protocol::tools::read_choice;
use crate::route::Route;
use crate::state::AppState;
use crate::stream::{RunningChoice, TokenCounts, sse};

/// The endpoints.
pub(crate) fn routes() -> [Route; 2] {
    [
        Route::work("/v1/messages", post(messages)),
        Route::other("/v1/messages/count_tokens", post(count_tokens)),
    ]
}

/// What the answer shows.
struct Shown {
    id: String,
    thinking: ThinkingShown,
    /// Whether the context has no room for `max_tokens`.
    is_cut: bool,
}

/// Answers a conversation.
async fn messages(State(state): State<AppState>, body: Body) -> Result<Response, ApiError> {
    let (shown, prepared) = prepare_and_compile(&state, body, prepare).await?;
    let mut choices = prepared.submit(&state)?;
    let counts = TokenCounts::new(&prepared.prompt_lens(), 1);
    let format = MessageFormat::new(
        shown.id,
        prepared.model,
        match prepared.parts.reasoning {
            ReasoningStart::None => counts,
            _ => counts.with_reasoning(),
        },
        shown.thinking,
        shown.is_cut,
    );
    if prepared.sampling.stream() {
        return Ok(sse(choices, format));
    }
    // One was asked for.
    let choice = choices.pop();
    let choice = choice.ok_or_else(|| ApiError::internal("there is no answer"))?;
    let delta = RunningChoice::collect(choice).await?;
    Ok(Json(format.response(delta)).into_response())
}

fn prepare(state: &AppState, mut body: Body) -> Result<(Shown, PreparedChat), ApiError> {
    body.check(Endpoint::Messages)?;
    let mut prompt = Prompt::take(&mut body)?;
    let fields = AnswerFields::read(&body)?;
    let id = format!("msg_{}", body.request_id().or(None));
    drop(body);

    let thinking = prompt.shown;
    let requested = fields.max_tokens;
    let budget = prompt.thinking_budget.filter(|_| can_end_reasoning(state));
    let style = state.json_style();
    let grammar = prompt.grammar.take().map(|asked| RequestedGrammar {
        grammar: asked.grammar.styled(style),
        ..asked
    });
    let conversation = Conversation {
        sampling: fields.sampling(),
        max_tokens: MaxTokens::AtMost(requested),
        grammar,
        thinking_token_budget: budget.and_then(|budget| i64::try_from(budget).ok()),
        ..conversation(prompt)?
    };
    let prepared = conversation
        .prepare(state)
        .map_err(renamed)?
        .renamed(renamed);
    let request = &prepared.request;
    let room = state
        .model()
        .max_model_len
        .saturating_sub(request.prompt.len());
    let shown = Shown {
        id,
        thinking,
        is_cut: requested > request.max_tokens && request.max_tokens == room,
    };
    Ok((shown, prepared))
}

/// A conversation without settings.
fn conversation(prompt: Prompt) -> Result<Conversation, ApiError> {
    let choice = prompt.tool_choice.as_ref();
    let tool_choice = read_choice(choice, prompt.template.tools.as_deref()).map_err(renamed)?;
    Ok(Conversation {
        model: Some(prompt.model),
        messages: prompt.messages,
        template: prompt.template,
        tool_choice,
        only_one_call: prompt.only_one_call,
        ..Conversation::default()
    })
}

/// Names fields as Anthropic does.
fn renamed(error: ApiError) -> ApiError {
    error.renamed(&[
        ("tool_choice.function.name", "tool_choice.name"),
        (".function.parameters", ".input_schema"),
        (".function.", "."),
    ])
}

/// Counts the tokens of a conversation.
async fn count_tokens(
    State(state): State<AppState>,
    body: Body,
) -> Result<Json<TokenCount>, ApiError> {
    prepare_request(&state, body, |state, mut body| {
        body.check(Endpoint::CountTokens)?;
        let prompt = Prompt::take(&mut body)?;
        drop(body);
        let input_tokens = conversation(prompt)?.count(state).map_err(renamed)?;
        Ok(Json(TokenCount { input_tokens }))
    })
    .await
}
