//! Whether a folder's model generates text, or computes embeddings or scores, and how.

use std::path::Path;
use std::sync::Arc;

use model_qwen::pooling::{Labels, ProblemType, classifier_from_token, label_names, labels};
use model_qwen::{
    Architecture, ChatTemplate, LoadError, PoolingType, QwenConfig, ScoreHead, ScoreTokens,
    SentenceTransformer, Tokenizer, is_headless, score_weights,
};

use super::start_error::StartError;
use super::why_pooling::WhyPooling;
use crate::config::{ConfigError, Convert, PoolingConfig, Runner, ScoreMethod, Task};

/// How texts become vectors or scores.
#[derive(Clone, Debug)]
pub struct PoolingInfo {
    /// How hidden states become one vector.
    pub pooling_type: PoolingType,
    /// Whether embeddings have length 1, and scores are between 0 and 1.
    pub use_activation: bool,
    /// Length of embeddings unless a request says otherwise.
    pub dimensions: Option<usize>,
    /// Length of the whole vector.
    pub hidden_size: usize,
    /// Of a reranker or a classifier: what a vector is multiplied with, one row of the vector's length for each label.
    pub score: Option<Arc<[f32]>>,
    /// Of a model with a score: its classes.
    pub labels: Labels,
    /// How a reranker reads a query and a document.
    pub template: ScoreTemplate,
    /// Longest text in tokens, if that is less than the context.
    pub max_len: Option<usize>,
    /// Whether texts are lower-cased first.
    pub do_lower_case: bool,
    /// Why it generates no text.
    pub why: WhyPooling,
}

impl PoolingInfo {
    /// What has to be known to refuse requests.
    pub fn limits(&self) -> (PoolingType, WhyPooling) {
        (self.pooling_type, self.why)
    }
}

/// How a query and a document become one prompt.
#[derive(Clone, Debug)]
pub enum ScoreTemplate {
    /// Qwen3-Reranker's prompt.
    Qwen3Reranker,
    /// One after the other.
    Joined,
    /// `--chat-template`.
    Jinja(ChatTemplate),
}

/// How the model of a folder pools; `None` if it generates text.
///
/// # Errors
/// When the folder cannot be read, or is not what the flags say.
pub(super) fn pooling_info(
    config: &PoolingConfig,
    dir: &Path,
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
) -> Result<Option<PoolingInfo>, StartError> {
    if config.runner == Runner::Generate {
        return Ok(None);
    }
    let model = QwenConfig::load(dir).map_err(LoadError::from)?;
    let architecture = Architecture::of(dir).map_err(LoadError::from)?;
    let sentences = SentenceTransformer::from_dir(dir).map_err(LoadError::from)?;
    let named = classifier_from_token(dir).map_err(LoadError::from)?;
    let named = config.classifier_from_token.as_ref().or(named.as_ref());
    check_method(config.method, named.map_or(0, Vec::len))?;
    let is_converted = matches!(config.convert, Convert::Embed | Convert::Classify);
    let why = if sentences.is_some() {
        WhyPooling::Modules
    } else if named.is_some() {
        WhyPooling::Classifier
    } else if architecture != Architecture::CausalLm {
        WhyPooling::Architecture
    } else if !model.tie_word_embeddings && is_headless(dir)? {
        // A tied one is the embedding, under whichever name.
        WhyPooling::NoHead
    } else if is_converted {
        WhyPooling::Flags
    } else if config.runner != Runner::Pooling {
        return Ok(None);
    } else if config.convert == Convert::None {
        let message =
            "none: the model generates text; expected embed or classify with --runner pooling";
        return Err(wrong("--convert", message.to_owned()));
    } else {
        WhyPooling::Flags
    };
    tracing::info!(
        "the model is served for embeddings or scores: {why}; --runner generate serves text"
    );
    let sentences = sentences.unwrap_or(SentenceTransformer {
        normalize: true,
        ..SentenceTransformer::default()
    });
    let head = match (named, sentences.score, architecture) {
        (Some(tokens), ..) => Some(ScoreHead::Tokens(score_tokens(tokens, tokenizer)?)),
        (None, Some(tokens), _) => Some(ScoreHead::Tokens(tokens)),
        (None, None, Architecture::Classifier) => Some(ScoreHead::Label),
        (None, None, _) => None,
    };
    let head = match config.convert {
        Convert::Embed => None,
        Convert::Classify if head.is_none() => {
            let message = "classify: the model has no score of its own; name the tokens of one with \
                           --hf-overrides '{\"classifier_from_token\": [\"no\", \"yes\"]}'";
            return Err(wrong("--convert", message.to_owned()));
        }
        Convert::Auto | Convert::None | Convert::Classify => head,
    };
    let template = match (template, head) {
        (Some(template), _) => ScoreTemplate::Jinja(template.clone()),
        (None, Some(ScoreHead::Tokens(tokens))) if says_yes_or_no(tokens, tokenizer) => {
            ScoreTemplate::Qwen3Reranker
        }
        (None, _) => ScoreTemplate::Joined,
    };
    let info = info(config, (dir, model.hidden_size), sentences, head, template)?;
    Ok(Some(PoolingInfo { why, ..info }))
}

/// `method` says the same as the number of tokens.
fn check_method(method: Option<ScoreMethod>, num_tokens: usize) -> Result<(), StartError> {
    let (name, expected) = match method {
        None => return Ok(()),
        Some(ScoreMethod::Softmax) => ("from_2_way_softmax", 2),
        Some(ScoreMethod::Logit) => ("no_post_processing", 1),
    };
    if num_tokens == expected {
        return Ok(());
    }
    let message = format!(
        "`method`: {name} is of a `classifier_from_token` with {expected} of the tokens, found {num_tokens}"
    );
    Err(wrong("--hf-overrides", message))
}

/// Whether a score is of Qwen3-Reranker's tokens.
fn says_yes_or_no(tokens: ScoreTokens, tokenizer: &Tokenizer) -> bool {
    let id = |name| tokenizer.token_to_id(name);
    id("yes") == Some(tokens.positive) && tokens.negative.is_some_and(|no| id("no") == Some(no))
}

fn info(
    config: &PoolingConfig,
    (dir, hidden_size): (&Path, usize),
    sentences: SentenceTransformer,
    head: Option<ScoreHead>,
    template: ScoreTemplate,
) -> Result<PoolingInfo, StartError> {
    let pooler = config.pooler;
    if let Some(dimensions) = pooler.dimensions.filter(|&num| num > hidden_size) {
        let message = format!("`dimensions`: expected at most {hidden_size}, found {dimensions}");
        return Err(wrong("--pooler-config", message));
    }
    let (task, name) = match head {
        Some(_) => (Task::Classify, "classify"),
        None => (Task::Embed, "embed"),
    };
    if pooler.task.is_some_and(|given| given != task) {
        let message = format!("`task`: expected {name}, which is what this model computes");
        return Err(wrong("--pooler-config", message));
    }
    if head.is_some() {
        check_scorer(config)?;
    }
    let score = head.map(|head| score_weights(dir, head)).transpose()?;
    let num_labels = score.as_ref().map_or(0, |score| score.len() / hidden_size);
    let labels = match head {
        Some(ScoreHead::Label) => labels(dir, num_labels),
        // What the file says of classes is not of tokens.
        Some(ScoreHead::Tokens(_)) | None => label_names(dir, num_labels).map(|names| Labels {
            names,
            problem_type: ProblemType::default(),
        }),
    };
    let limits = [pooler.max_embed_len, sentences.max_seq_length];
    Ok(PoolingInfo {
        pooling_type: match &score {
            // The score is one of the next token.
            Some(_) => PoolingType::Last,
            None => pooler.pooling_type.unwrap_or(sentences.pooling),
        },
        use_activation: pooler
            .use_activation
            .unwrap_or(sentences.normalize || score.is_some()),
        dimensions: pooler.dimensions,
        hidden_size,
        score: score.map(Arc::from),
        labels: labels.map_err(LoadError::from)?,
        template,
        max_len: limits.into_iter().flatten().min(),
        do_lower_case: sentences.do_lower_case,
        why: WhyPooling::Flags,
    })
}

/// Refuses what `--pooler-config` says of vectors only.
fn check_scorer(config: &PoolingConfig) -> Result<(), StartError> {
    let pooler = config.pooler;
    let message = match pooler.pooling_type {
        Some(other) if other != PoolingType::Last => {
            "`pooling_type`: expected LAST, as a score is one of the last token"
        }
        _ if pooler.dimensions.is_some() => {
            "`dimensions`: this is of embeddings, and the model computes scores"
        }
        _ => return Ok(()),
    };
    Err(wrong("--pooler-config", message.to_owned()))
}

/// The negative token comes first, if there are two.
fn score_tokens(names: &[String], tokenizer: &Tokenizer) -> Result<ScoreTokens, StartError> {
    let id = |name: &String| {
        let id = tokenizer.token_to_id(name);
        let message = || format!("`classifier_from_token`: the model has no token `{name}`");
        id.ok_or_else(|| wrong("--hf-overrides", message()))
    };
    Ok(match names {
        [negative, positive] => ScoreTokens {
            positive: id(positive)?,
            negative: Some(id(negative)?),
        },
        [positive] => ScoreTokens {
            positive: id(positive)?,
            negative: None,
        },
        _ => {
            let message =
                format!("`classifier_from_token`: expected one or two tokens, found {names:?}");
            return Err(wrong("--hf-overrides", message));
        }
    })
}

fn wrong(flag: &'static str, message: String) -> StartError {
    ConfigError::Flag { flag, message }.into()
}
