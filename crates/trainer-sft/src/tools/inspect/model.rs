//! What a model folder holds.

use std::collections::BTreeMap;

use burn::tensor::Device;
use model_qwen::{
    Architecture, ChatTemplate, Checkpoint, LoadOptions, MergedWeights, QwenConfig, QwenModel,
    Tokenizer,
};
use serde::Serialize;

use super::Report;

/// A model.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ModelFacts {
    /// `qwen2` or `qwen3`.
    pub model_type: String,
    /// Decoder layers.
    pub num_hidden_layers: usize,
    /// Width.
    pub hidden_size: usize,
    /// Query heads and key/value heads.
    pub heads: [usize; 2],
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Longest text in tokens.
    pub context_length: usize,
    /// Whether lm_head is the embedding.
    pub tie_word_embeddings: bool,
    /// Values of all tensors.
    pub num_parameters: usize,
    /// Tensors and bytes by dtype, NF4 being one.
    pub dtypes: BTreeMap<String, DtypeFacts>,
    /// Weight files.
    pub num_files: usize,
    /// Whether there is a chat template.
    pub has_chat_template: bool,
}

/// Tensors of one dtype.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DtypeFacts {
    /// Tensors.
    pub num_tensors: usize,
    /// Values.
    pub num_parameters: usize,
}

/// Looks at the model in the report's folder.
pub(super) fn look(report: &mut Report) {
    let folder = &report.path;
    let problems = &mut report.problems;
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
    if problems.is_empty() {
        // What is wrong with the weights, in the words of the server.
        let is_text = Architecture::of(folder).is_ok_and(|of| of == Architecture::CausalLm);
        let options = LoadOptions {
            lm_head: is_text,
            ..LoadOptions::default()
        };
        let loaded = QwenModel::load(folder, &options, &Device::flex());
        problems.extend(loaded.err().map(|error| error.to_string()));
    }
    match MergedWeights::open(folder, None) {
        Ok(weights) => count(&weights, &mut facts),
        // Said above, but for broken files whose config.json is broken, too.
        Err(_) => match Checkpoint::open(folder) {
            Ok(checkpoint) => count_stored(&checkpoint, &mut facts),
            Err(error) => {
                let problem = error.to_string();
                if !problems.contains(&problem) {
                    problems.push(problem);
                }
            }
        },
    }
    match Tokenizer::from_dir(folder) {
        Ok(tokenizer) if facts.vocab_size > 0 && tokenizer.vocab_size() > facts.vocab_size => {
            problems.push(format!(
                "the tokenizer has {} tokens and the model only {} embeddings",
                tokenizer.vocab_size(),
                facts.vocab_size
            ));
        }
        Ok(_) => {}
        Err(error) => problems.push(error.to_string()),
    }
    match ChatTemplate::from_dir(folder) {
        Ok(template) => facts.has_chat_template = template.is_some(),
        Err(error) => problems.push(error.to_string()),
    }
    report.model = Some(facts);
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
