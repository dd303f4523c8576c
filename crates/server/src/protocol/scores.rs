//! Bodies of `/score` and `/rerank`.

use model_qwen::json_type;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::body::Body;
use super::usage::Usage;
use crate::error::ApiError;

/// Names of the two sides of a score, as vLLM has them.
const SIDES: [(&str, &str); 4] = [
    ("text_1", "text_2"),
    ("queries", "documents"),
    ("queries", "items"),
    ("data_1", "data_2"),
];

/// The field that goes with the one that was found, or the first that is wrong.
fn missing_side(found: &[&'static str]) -> &'static str {
    let beside = |name: &str| {
        let pair = |(first, second)| match (first == name, second == name) {
            (true, _) => Some(second),
            (_, true) => Some(first),
            _ => None,
        };
        SIDES.into_iter().find_map(pair)
    };
    match found {
        [] => SIDES[0].0,
        [name] => beside(name).unwrap_or(name),
        [_, other, ..] => other,
    }
}

/// Fields of `/score` besides [`super::pooling::PoolingFields`]: one pair of them.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct ScoreFields {
    /// One text or several.
    pub text_1: Option<Value>,
    /// One text or several.
    pub text_2: Option<Value>,
    /// Another name of `text_1`.
    pub queries: Option<Value>,
    /// Another name of `text_2`.
    pub documents: Option<Value>,
    /// Another name of `text_2`.
    pub items: Option<Value>,
    /// Another name of `text_1`.
    pub data_1: Option<Value>,
    /// Another name of `text_2`.
    pub data_2: Option<Value>,
    /// What a reranker is told to look for.
    pub instruction: Option<String>,
}

/// Fields of `/rerank` besides [`super::pooling::PoolingFields`].
#[derive(Clone, Debug, Deserialize)]
pub struct RerankFields {
    /// What is looked for.
    pub query: Value,
    /// Where.
    pub documents: Value,
    /// How many of the best; 0 = all.
    pub top_n: Option<usize>,
    /// What a reranker is told to look for.
    pub instruction: Option<String>,
}

/// Pairs of texts to score.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pairs {
    /// One, or as many as documents.
    pub queries: Vec<String>,
    /// At least one.
    pub documents: Vec<String>,
    /// The fields that they came in.
    pub names: (&'static str, &'static str),
}

impl ScoreFields {
    /// The pairs, and the rest of the fields.
    ///
    /// # Errors
    /// 400 if a side is missing, holds something else, or the sides don't go together.
    pub(crate) fn take(body: &mut Body) -> Result<(Pairs, Option<String>), ApiError> {
        let mut fields: Self = body.read()?;
        let given = [
            ("text_1", fields.text_1.take()),
            ("text_2", fields.text_2.take()),
            ("queries", fields.queries.take()),
            ("documents", fields.documents.take()),
            ("items", fields.items.take()),
            ("data_1", fields.data_1.take()),
            ("data_2", fields.data_2.take()),
        ];
        let given = given
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)));
        let mut given: Vec<(&'static str, Value)> = given.collect();
        let found: Vec<&str> = given.iter().map(|(name, _)| *name).collect();
        if let [_, _, third, ..] = found.as_slice() {
            let message = format!(
                "`{third}`: only one pair of fields is possible, found {}.",
                found.join(", ")
            );
            return Err(ApiError::bad_request(*third, message));
        }
        let names = match found.as_slice() {
            [first, second] => SIDES.into_iter().find(|names| *names == (*first, *second)),
            _ => None,
        };
        let (Some(names), Some((_, second)), Some((_, first))) = (names, given.pop(), given.pop())
        else {
            let found_names = match found.as_slice() {
                [] => "nothing".to_owned(),
                names => names.join(" and "),
            };
            let message = format!(
                "Give `text_1` and `text_2` (or `queries` and `documents`, `queries` and `items`, `data_1` and `data_2`), found \
                 {found_names}."
            );
            return Err(ApiError::bad_request(missing_side(&found), message));
        };
        let pairs = Pairs {
            queries: texts(names.0, first)?,
            documents: texts(names.1, second)?,
            names,
        };
        let (queries, documents) = (pairs.queries.len(), pairs.documents.len());
        if queries != 1 && queries != documents {
            let (first, second) = names;
            let message = format!(
                "`{first}` must have one text or as many as `{second}`, found {queries} and {documents}."
            );
            return Err(ApiError::bad_request(first, message));
        }
        Ok((pairs, fields.instruction))
    }
}

impl RerankFields {
    /// The pairs, the number of results, and the instruction.
    ///
    /// # Errors
    /// 400 if a field is missing or holds something else.
    pub(crate) fn take(
        body: &mut Body,
    ) -> Result<(Pairs, Option<usize>, Option<String>), ApiError> {
        let fields: Self = body.read()?;
        let queries = texts("query", fields.query)?;
        if queries.len() != 1 {
            let message = format!("`query` must be one text, found {}.", queries.len());
            return Err(ApiError::bad_request("query", message));
        }
        let pairs = Pairs {
            queries,
            documents: texts("documents", fields.documents)?,
            names: ("query", "documents"),
        };
        let top_n = fields.top_n.filter(|&num| num > 0);
        Ok((pairs, top_n, fields.instruction))
    }
}

/// A text or several, each as it is or as an object with `text`.
fn texts(name: &str, value: Value) -> Result<Vec<String>, ApiError> {
    let wrong = |param: String, found: &Value| {
        let message = format!("`{param}` must be a text, found {}.", json_type(found));
        ApiError::bad_request(param, message)
    };
    let text = |param: String, value: Value| match value {
        Value::String(text) => Ok(text),
        Value::Object(fields) => match fields.get("text") {
            Some(Value::String(text)) => match fields.keys().find(|key| *key != "text") {
                None => Ok(text.clone()),
                Some(key) => {
                    let param = format!("{param}.{key}");
                    let message =
                        format!("`{param}` is not supported: the model reads only `text`.");
                    Err(ApiError::bad_request(param, message))
                }
            },
            _ => Err(wrong(param, &Value::Object(fields))),
        },
        other => Err(wrong(param, &other)),
    };
    let texts = match value {
        Value::Array(items) => {
            let items = items.into_iter().enumerate();
            let texts = items.map(|(i, item)| text(format!("{name}[{i}]"), item));
            texts.collect::<Result<Vec<_>, _>>()?
        }
        one => vec![text(name.to_owned(), one)?],
    };
    match texts.is_empty() {
        true => {
            let message = format!("`{name}` must not be empty.");
            Err(ApiError::bad_request(name, message))
        }
        false => Ok(texts),
    }
}

/// Answer of `/score`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ScoreResponse {
    /// `score-…`.
    pub id: String,
    /// `list`.
    pub object: &'static str,
    /// Unix seconds.
    pub created: u64,
    /// The name the request used.
    pub model: String,
    /// In the order of the pairs.
    pub data: Vec<Score>,
    /// Token counts.
    pub usage: Usage,
}

/// One score of [`ScoreResponse`].
#[derive(Debug, Serialize, JsonSchema)]
pub struct Score {
    /// Which pair.
    pub index: usize,
    /// `score`.
    pub object: &'static str,
    /// The score.
    pub score: f32,
}

/// Answer of `/rerank`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct RerankResponse {
    /// `rerank-…`.
    pub id: String,
    /// The name the request used.
    pub model: String,
    /// Token counts.
    pub usage: Usage,
    /// The best first.
    pub results: Vec<RerankResult>,
}

/// One document of [`RerankResponse`].
#[derive(Debug, Serialize, JsonSchema)]
pub struct RerankResult {
    /// Which document.
    pub index: usize,
    /// The document.
    pub document: RerankDocument,
    /// Its score.
    pub relevance_score: f32,
}

/// A document.
#[derive(Debug, Serialize, JsonSchema)]
pub struct RerankDocument {
    /// Its text.
    pub text: String,
}
