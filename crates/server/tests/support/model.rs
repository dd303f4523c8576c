//! What the scripted engine's model brings.

use std::path::Path;

use model_qwen::{ChatTemplate, GenerationConfig, Tokenizer};
use serde_json::{Map, Value, json};
use server::ModelInfo;
use server::engine::{MemoryTable, ModelDetails};

pub(crate) const IM_START: u32 = 256;
pub(crate) const IM_END: u32 = 257;
pub(crate) const MAX_MODEL_LEN: usize = 200;
const TEMPLATE: &str = "{% for m in messages %}{{ m.role | first }}:{{ m.content }};{% endfor %}\
    {% if tools %}tools={{ tools | length }};{% endif %}{{ extra_word }}\
    {% if add_generation_prompt %}<|im_start|>{% endif %}";

pub(super) fn model() -> ModelInfo {
    with_tokens(&[])
}

/// A model with these special tokens besides.
pub(super) fn with_tokens(special: &[&str]) -> ModelInfo {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    write_tokenizer(&path, special);
    ModelInfo {
        tokenizer: Tokenizer::from_file(&path).unwrap(),
        chat_template: Some(ChatTemplate::from_source(TEMPLATE, Map::new()).unwrap()),
        generation_config: GenerationConfig {
            eos_token_ids: vec![IM_END],
            temperature: Some(0.7),
            top_k: Some(20),
            ..GenerationConfig::default()
        },
        model_id: "org/tiny".to_owned(),
        dir: std::path::PathBuf::new(),
        pooling: None,
        max_model_len: MAX_MODEL_LEN,
        base: None,
        memory_table: MemoryTable {
            weights: 988_097_536,
            ..MemoryTable::default()
        },
        details: ModelDetails {
            architecture: "qwen2".to_owned(),
            num_parameters: 494_032_768,
            num_bytes: 988_097_536,
            quantization: "BF16",
            context_length: 32_768,
            num_layers: 24,
            hidden_size: 896,
            ..ModelDetails::default()
        },
    }
}

/// GPT-2's byte-to-character table without merges.
fn write_tokenizer(path: &Path, more: &[&str]) {
    let printable = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let mut shifted = 256;
    let vocab: Map<String, Value> = (0..256)
        .map(|byte| {
            let code = if printable(byte) { byte } else { shifted };
            shifted += u32::from(!printable(byte));
            (char::from_u32(code).unwrap().to_string(), json!(byte))
        })
        .collect();
    let special = |id: u32, content: &str| {
        json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true })
    };
    let all = ["<|im_start|>", "<|im_end|>"].iter().chain(more);
    let all = (IM_START..).zip(all);
    let added: Vec<Value> = all.map(|(id, content)| special(id, content)).collect();
    let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added,
        "normalizer": null, "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": [] },
    });
    std::fs::write(path, tokenizer.to_string()).unwrap();
}
