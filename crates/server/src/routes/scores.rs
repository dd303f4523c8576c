//! `/score` and `/rerank`: cosines of embeddings, or what a reranker says of a query and a document.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use model_qwen::{ChatTemplate, RenderOptions};
use serde_json::json;

use super::pooling::{cosine, info, length, pool, tokens};
use super::prompt::{Length, prepare_request};
use crate::engine::{PoolRequest, PoolingInfo, ScoreTemplate};
use crate::error::ApiError;
use crate::protocol::body::Body;
use crate::protocol::completions::PromptItem;
use crate::protocol::fields::Endpoint;
use crate::protocol::pooling::PoolingFields;
use crate::protocol::scores::{
    Pairs, RerankDocument, RerankFields, RerankResponse, RerankResult, Score, ScoreFields,
    ScoreResponse,
};
use crate::protocol::usage::Usage;
use crate::state::{AppState, unix_time};

/// What Qwen3-Reranker is told to look for unless a request says something else; see its model card.
const INSTRUCTION: &str =
    "Given a web search query, retrieve relevant passages that answer the query";
const PREFIX: &str = "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct \
                      provided. Note that the answer can only be \"yes\" or \"no\".<|im_end|>\n<|im_start|>user\n";
const SUFFIX: &str = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n";

/// A checked request.
struct PreparedScores {
    id: String,
    model: String,
    /// Of a reranker the pairs, otherwise the queries and then the documents.
    requests: Vec<PoolRequest>,
    pairs: Pairs,
    activation: Option<bool>,
    top_n: Option<usize>,
}

/// Scores of pairs of texts.
pub async fn score(State(state): State<AppState>, body: Body) -> Result<Response, ApiError> {
    check_model(&state)?;
    let prepared = prepare_request(&state, body, |state, mut body| {
        body.check(Endpoint::Score)?;
        let (pairs, instruction) = ScoreFields::take(&mut body)?;
        prepare(state, body, pairs, instruction.as_deref(), None)
    })
    .await?;
    let (prepared, scores, usage) = scores(&state, prepared).await?;
    let data = scores.into_iter().enumerate().map(|(index, score)| Score {
        index,
        object: "score",
        score,
    });
    let response = ScoreResponse {
        id: format!("score-{}", prepared.id),
        object: "list",
        created: unix_time(),
        model: prepared.model,
        data: data.collect(),
        usage,
    };
    Ok(Json(response).into_response())
}

/// Documents, the best for a query first.
pub async fn rerank(State(state): State<AppState>, body: Body) -> Result<Response, ApiError> {
    check_model(&state)?;
    let prepared = prepare_request(&state, body, |state, mut body| {
        body.check(Endpoint::Rerank)?;
        let (pairs, top_n, instruction) = RerankFields::take(&mut body)?;
        prepare(state, body, pairs, instruction.as_deref(), top_n)
    })
    .await?;
    let (prepared, scores, usage) = scores(&state, prepared).await?;
    let documents = prepared.pairs.documents.into_iter().zip(scores).enumerate();
    let results = documents.map(|(index, (text, relevance_score))| RerankResult {
        index,
        document: RerankDocument { text },
        relevance_score,
    });
    let mut results: Vec<RerankResult> = results.collect();
    // Equal ones stay in their order.
    results.sort_by(|a, b| b.relevance_score.total_cmp(&a.relevance_score));
    results.truncate(prepared.top_n.unwrap_or(usize::MAX));
    let response = RerankResponse {
        id: format!("rerank-{}", prepared.id),
        model: prepared.model,
        usage,
        results,
    };
    Ok(Json(response).into_response())
}

/// Refuses a model without scores for pairs: one that generates text, or has several labels.
fn check_model(state: &AppState) -> Result<(), ApiError> {
    match info(state)?.labels.names.len() {
        0 | 1 => Ok(()),
        num => {
            let message = format!(
                "This model has {num} labels, and a score needs a model with one: use `/classify`."
            );
            Err(ApiError::bad_request("model", message))
        }
    }
}

/// Runs the pairs through the engine.
async fn scores(
    state: &AppState,
    mut prepared: PreparedScores,
) -> Result<(PreparedScores, Vec<f32>, Usage), ApiError> {
    let pooling = info(state)?;
    let requests = std::mem::take(&mut prepared.requests);
    let num_tokens = requests.iter().map(|request| request.prompt.len()).sum();
    let pooled = pool(state, requests).await?;
    let usage = pooled.usage(num_tokens);
    let reranked = pooled.vectors.iter();
    let reranked = reranked.map(|vector| pooling.score(vector, prepared.activation));
    let scores = match reranked.collect() {
        Some(scores) => scores,
        None => {
            let (queries, documents) = pooled.vectors.split_at(prepared.pairs.queries.len());
            let documents = documents.iter().enumerate();
            let dimensions = pooling.dimensions.unwrap_or(pooling.hidden_size);
            let cosine = |(i, document): (usize, &Vec<f32>)| {
                let query = queries.get(i).filter(|_| queries.len() > 1);
                let query = query.unwrap_or(&queries[0]);
                cosine(&query[..dimensions], &document[..dimensions])
            };
            documents.map(cosine).collect()
        }
    };
    Ok((prepared, scores, usage))
}

fn prepare(
    state: &AppState,
    body: Body,
    pairs: Pairs,
    instruction: Option<&str>,
    top_n: Option<usize>,
) -> Result<PreparedScores, ApiError> {
    let shared = PoolingFields::read(&body)?;
    let id = body.request_id().or(shared.request_id.as_deref());
    drop(body);

    let pooling = info(state)?;
    let (model, adapter) = state.resolve_model(shared.model.as_deref())?;
    let prompts = match pooling.score {
        Some(_) => pair_prompts(state, pooling, &shared, &pairs, instruction)?,
        None if instruction.is_some() => {
            let message = "`instruction` is of rerankers: write it before the query, as the model's card says.";
            return Err(ApiError::bad_request("instruction", message));
        }
        None if shared.use_activation.is_some() => {
            let message = "`use_activation` is of rerankers: the scores of this model are cosines.";
            return Err(ApiError::bad_request("use_activation", message));
        }
        None => {
            let (queries, documents) = pairs.names;
            let side = |name: &str, texts: &[String]| {
                let length = length(state, &shared, name)?;
                let texts = texts.iter().enumerate().map(|(i, text)| {
                    let item = PromptItem::Text(text.clone());
                    tokens(state, item, true, &length, &format!("{name}[{i}]"))
                });
                texts.collect::<Result<Vec<_>, ApiError>>()
            };
            let mut prompts = side(queries, &pairs.queries)?;
            prompts.extend(side(documents, &pairs.documents)?);
            prompts
        }
    };
    let requests = prompts.into_iter().map(|prompt| PoolRequest {
        prompt,
        adapter: adapter.clone(),
        cache_salt: shared.cache_salt.clone(),
    });
    Ok(PreparedScores {
        requests: requests.collect(),
        id,
        model,
        pairs,
        activation: shared.use_activation,
        top_n,
    })
}

/// A prompt for each pair of a reranker.
fn pair_prompts(
    state: &AppState,
    pooling: &PoolingInfo,
    shared: &PoolingFields,
    pairs: &Pairs,
    instruction: Option<&str>,
) -> Result<Vec<Vec<u32>>, ApiError> {
    if instruction.is_some() && matches!(pooling.template, ScoreTemplate::Joined) {
        let message = "`instruction`: this model's prompt has no place for one; start the server with --chat-template.";
        return Err(ApiError::bad_request("instruction", message));
    }
    let instruction = instruction.unwrap_or(INSTRUCTION);
    let (_, name) = pairs.names;
    let whole = length(state, shared, name)?;
    let encode = |text: String, length: &Length<'_>, specials: bool, param: &str| {
        tokens(state, PromptItem::Text(text), specials, length, param)
    };
    // The document is what is cut.
    let prefix = encode(PREFIX.to_owned(), &Length::any(name), false, name)?;
    let suffix = encode(SUFFIX.to_owned(), &Length::any(name), false, name)?;
    let body = whole.less(prefix.len() + suffix.len());
    let documents = pairs.documents.iter().enumerate();
    let prompts = documents.map(|(i, document)| {
        let query = pairs.queries.get(i).filter(|_| pairs.queries.len() > 1);
        let query = query.unwrap_or(&pairs.queries[0]);
        let param = format!("{name}[{i}]");
        match &pooling.template {
            // Clients of vLLM write the prompt themselves.
            ScoreTemplate::Qwen3Reranker if !query.starts_with("<|im_start|>") => {
                let text =
                    format!("<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}");
                let text = encode(text, &body, false, &param)?;
                let ids = [prefix.as_slice(), &text, &suffix].concat();
                tokens(
                    state,
                    PromptItem::Tokens(ids),
                    false,
                    &Length::any(name),
                    &param,
                )
            }
            ScoreTemplate::Qwen3Reranker => {
                encode(format!("{query}{document}"), &whole, false, &param)
            }
            ScoreTemplate::Joined => encode(format!("{query}{document}"), &whole, true, &param),
            ScoreTemplate::Jinja(template) => {
                let text = rendered(state, template, [instruction, query, document])?;
                encode(text, &whole, false, &param)
            }
        }
    });
    prompts.collect()
}

/// The prompt that a template writes, which knows the texts by their roles as in vLLM.
fn rendered(
    state: &AppState,
    template: &ChatTemplate,
    [instruction, query, document]: [&str; 3],
) -> Result<String, ApiError> {
    let messages = [
        ("system", instruction),
        ("query", query),
        ("document", document),
    ];
    let messages = messages.map(|(role, content)| json!({ "role": role, "content": content }));
    let options = RenderOptions {
        extra: state.default_chat_template_kwargs().clone(),
        ..RenderOptions::default()
    };
    template
        .render(&messages, &options)
        .map_err(|error| ApiError::bad_request("query", error.to_string()))
}
