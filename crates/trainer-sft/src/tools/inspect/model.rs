//! What a model folder holds.

use std::collections::BTreeMap;
use std::path::Path;

use model_qwen::{
    ChatTemplate, Checkpoint, GenerationConfig, MergedWeights, QwenConfig, Tokenizer,
};
use serde::Serialize;

use crate::chat_format::ModelFilesError;

/// A model.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ModelFacts {
    /// `qwen2` or `qwen3`.
    pub model_type: String,
    /// Decoder layers.
    pub num_hidden_layers: usize,
    /// Values of a hidden state.
    pub hidden_size: usize,
    /// Number of query heads, and of key/value heads.
    pub heads: [usize; 2],
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Tokens of the longest text.
    pub context_length: usize,
    /// Whether lm_head is the embedding.
    pub tie_word_embeddings: bool,
    /// Number of values of all tensors.
    pub num_parameters: usize,
    /// Tensors and their values, by dtype; NF4 is one of them.
    pub dtypes: BTreeMap<String, DtypeFacts>,
    /// Number of weight files.
    pub num_files: usize,
    /// Whether there is a chat template.
    pub has_chat_template: bool,
}

/// Tensors of one dtype.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DtypeFacts {
    /// Number of tensors.
    pub num_tensors: usize,
    /// Number of their values.
    pub num_parameters: usize,
}

/// Looks at the model in a folder.
pub(super) fn look(folder: &Path, problems: &mut Vec<String>) -> ModelFacts {
    let mut facts = ModelFacts::default();
    match QwenConfig::load(folder) {
        Ok(config) => {
            facts.context_length = config.context_length();
            facts.heads = [config.num_attention_heads, config.num_key_value_heads];
            facts.num_hidden_layers = config.num_hidden_layers;
            facts.hidden_size = config.hidden_size;
            facts.vocab_size = config.vocab_size;
            facts.tie_word_embeddings = config.tie_word_embeddings;
            facts.model_type = config.model_type;
        }
        Err(error) => problems.push(error.to_string()),
    }
    // What is wrong with the weights, in the words of the server.
    match MergedWeights::open(folder, None) {
        Ok(weights) => count(&weights, &mut facts),
        Err(error) => {
            note(problems, error.to_string());
            match Checkpoint::open(folder) {
                Ok(checkpoint) => count_stored(&checkpoint, &mut facts),
                Err(error) => note(problems, error.to_string()),
            }
        }
    }
    let template = match ChatTemplate::from_dir(folder) {
        Ok(template) => template,
        Err(error) => {
            problems.push(error.to_string());
            None
        }
    };
    facts.has_chat_template = template.is_some();
    match Tokenizer::from_dir(folder) {
        Ok(tokenizer) => {
            let first = tokenizer.first_id_from(facts.vocab_size);
            if let Some((token, id)) = first.filter(|_| facts.vocab_size > 0) {
                let vocab = facts.vocab_size;
                let error = ModelFilesError::Vocabulary { token, id, vocab };
                problems.push(error.to_string());
            }
            if let Err(error) = GenerationConfig::from_dir(folder, &tokenizer, template.as_ref()) {
                note(problems, error.to_string());
            }
        }
        Err(error) => problems.push(error.to_string()),
    }
    facts
}

/// Adds a problem that is not said yet.
fn note(problems: &mut Vec<String>, problem: String) {
    if !problems.contains(&problem) {
        problems.push(problem);
    }
}

fn count(weights: &MergedWeights, facts: &mut ModelFacts) {
    let files = weights.files();
    facts.num_files = files.len();
    for name in files.into_iter().flat_map(|(_, names)| names) {
        let Ok(info) = weights.info(name) else {
            continue;
        };
        let dtype = match weights.is_nf4(name) {
            true => "NF4".to_owned(),
            false => info.dtype.to_string(),
        };
        add(facts, dtype, info.len());
    }
}

fn count_stored(checkpoint: &Checkpoint, facts: &mut ModelFacts) {
    facts.num_files = checkpoint.files().len();
    for name in checkpoint.names() {
        if let Some(view) = checkpoint.view(name) {
            let len = view.shape().iter().product();
            add(facts, view.dtype().to_string(), len);
        }
    }
}

fn add(facts: &mut ModelFacts, dtype: String, len: usize) {
    facts.num_parameters += len;
    let of = facts.dtypes.entry(dtype).or_default();
    of.num_tensors += 1;
    of.num_parameters += len;
}
