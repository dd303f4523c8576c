//! Files → records → tokens and masks → batches, with a byte-level tokenizer made here.

#![allow(clippy::unwrap_used)]

mod batches;
mod formats;
mod hostile;
mod length;
mod masks;
#[path = "../../../model-qwen/tests/hostile/mutate.rs"]
#[allow(dead_code, reason = "files of models are changed elsewhere")]
mod mutate;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use model_qwen::{ChatTemplate, Tokenizer};
use serde_json::{Value, json};
use tempfile::TempDir;
use trainer_sft::batch::{Batch, DataLoader, LoaderOptions, LoaderState, sequential_batches};
use trainer_sft::config::{Columns, Thinking, TrainOn};
use trainer_sft::data::{
    Content, DataError, Dataset, Example, Examples, Format, Place, Record, Source, TurnKind, read,
};
use trainer_sft::preview::preview;
use trainer_sft::render::{RenderSettings, Rendered, Renderer};

const CHATML: &str = "{%- if messages[0].role != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{%- endif %}\
{%- for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{%- endfor %}\
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}";

/// DeepSeek-R1-Distill's, without tools.
const R1: &str = "{% set ns = namespace(system_prompt='') %}\
{%- for message in messages %}{%- if message['role'] == 'system' %}{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}\
{{bos_token}}{{ns.system_prompt}}\
{%- for message in messages %}{%- if message['role'] == 'user' %}{{'<｜User｜>' + message['content']}}{%- endif %}\
{%- if message['role'] == 'assistant' %}{% set content = message['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}\
{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- endfor -%}\
{% if add_generation_prompt %}{{'<｜Assistant｜><think>\n'}}{% endif %}";

const BOS: &str = "<｜begin▁of▁sentence｜>";
const EOS: &str = "<｜end▁of▁sentence｜>";

/// 256 bytes, one merge of two line breaks, and the special tokens of ChatML and R1.
fn tokenizer() -> Tokenizer {
    let mut extra = 0;
    let alphabet: Vec<char> = (0..=255u32)
        .map(|byte| match byte {
            0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => char::from_u32(byte).unwrap(),
            _ => {
                extra += 1;
                char::from_u32(0xFF + extra).unwrap()
            }
        })
        .collect();
    let mut vocab: BTreeMap<String, u32> = alphabet
        .iter()
        .enumerate()
        .map(|(id, character)| (character.to_string(), id as u32))
        .collect();
    vocab.insert("ĊĊ".into(), 256);
    let added = [
        ("<|im_start|>", true),
        ("<|im_end|>", true),
        ("<|endoftext|>", true),
        (BOS, true),
        (EOS, true),
    ]
    .into_iter()
    .chain([
        ("<｜User｜>", false),
        ("<｜Assistant｜>", false),
        ("<think>", false),
        ("</think>", false),
    ]);
    let added: Vec<Value> = added
        .zip(257..)
        .map(|((content, special), id)| {
            json!({"id": id, "content": content, "special": special, "single_word": false, "lstrip": false,
                   "rstrip": false, "normalized": false})
        })
        .collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": byte_level, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
                  "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": vocab, "merges": [["Ċ", "Ċ"]]}
    });
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), file.to_string()).unwrap();
    Tokenizer::from_dir(folder.path()).unwrap()
}

fn template(source: &str) -> ChatTemplate {
    let tokens = json!({"bos_token": BOS, "eos_token": EOS});
    ChatTemplate::from_source(source, tokens.as_object().unwrap().clone()).unwrap()
}

fn settings() -> RenderSettings {
    RenderSettings {
        train_on: TrainOn::Assistant,
        thinking: Thinking::Keep,
        max_length: 1000,
        eos_token_id: Some(259),
    }
}

fn source() -> Source {
    Source {
        file: Arc::from(Path::new("t.jsonl")),
        place: Place::Line(1),
    }
}

fn parse(value: Value) -> Result<Record, DataError> {
    Record::parse(source(), value, &Columns::default())
}

fn record(value: Value) -> Record {
    parse(value).unwrap()
}

fn render(
    value: Value,
    template_source: &str,
    settings: RenderSettings,
) -> Result<Rendered, DataError> {
    Renderer::new(&tokenizer(), Some(&template(template_source)), settings).render(&record(value))
}

fn text(tokens: &[u32]) -> String {
    tokenizer().decode(tokens, false).unwrap()
}

/// The learnt runs of tokens, decoded.
fn learnt(example: &Example) -> Vec<String> {
    let mut runs: Vec<Vec<u32>> = Vec::new();
    for position in 0..example.tokens.len() {
        if example.mask[position] {
            if position == 0 || !example.mask[position - 1] {
                runs.push(Vec::new());
            }
            runs.last_mut().unwrap().push(example.tokens[position]);
        }
    }
    runs.iter().map(|run| text(run)).collect()
}

fn chat(turns: &[(&str, &str)]) -> Value {
    json!({"messages": turns.iter().map(|(role, content)| json!({"role": role, "content": content})).collect::<Vec<_>>()})
}

fn file(name: &str, content: impl AsRef<[u8]>) -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, content).unwrap();
    (folder, path)
}

/// Reads and parses a whole file.
fn records(name: &str, content: impl AsRef<[u8]>) -> Result<Vec<Record>, DataError> {
    let (_folder, path) = file(name, content);
    read::read_file(&path)?
        .into_iter()
        .map(|(source, value)| Record::parse(source, value, &Columns::default()))
        .collect()
}

fn error(name: &str, content: impl AsRef<[u8]>) -> String {
    records(name, content).unwrap_err().to_string()
}

#[track_caller]
fn assert_error(content: &str, expected: &str) {
    let message = error("t.jsonl", content);
    assert!(message.contains(expected), "{message}");
}

// ---- formats ----
