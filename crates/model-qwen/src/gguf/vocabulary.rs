//! The tokenizer and the chat template of a model folder, in the words of GGUF.

use std::path::Path;

use serde_json::{Map, Value};

use super::GgufError;
use super::metadata::{Entry, GgufValue};
use crate::chat_template::ChatTemplate;
use crate::config::QwenConfig;
use crate::json_file::JsonFile;
use crate::special_tokens::special_tokens;
use crate::tokenizer::{QWEN2_PATTERN, Tokenizer};

/// `llama_token_type`.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// The keys `tokenizer.*`.
pub(super) fn vocabulary(dir: &Path, config: &QwenConfig) -> Result<Vec<Entry>, GgufError> {
    let tokenizer = Tokenizer::from_dir(dir)?;
    let model = tokenizer.to_json()?;
    check_split(dir, &model)?;
    let (tokens, types) = tokens(dir, &tokenizer, config.vocab_size)?;
    let text = |text: &str| GgufValue::Text(text.to_owned());
    let mut entries = Vec::new();
    let mut add = |key: &str, value| entries.push((format!("tokenizer.{key}"), value));
    add("ggml.model", text("gpt2"));
    add("ggml.pre", text(splitter(&tokenizer)));
    add("ggml.tokens", GgufValue::Texts(tokens));
    add("ggml.token_type", GgufValue::I32s(types));
    add("ggml.merges", GgufValue::Texts(merges(&model)));
    let special = SpecialIds::read(dir, &tokenizer)?;
    let bos = special.id("bos")?;
    for (id, key) in [
        (bos, "ggml.bos_token_id"),
        (special.id("eos")?, "ggml.eos_token_id"),
        (special.id("pad")?, "ggml.padding_token_id"),
    ] {
        if let Some(id) = id {
            add(key, GgufValue::U32(id));
        }
    }
    let adds_bos = tokenizer.encode("", true)?.first().copied();
    add(
        "ggml.add_bos_token",
        GgufValue::Bool(adds_bos.is_some() && adds_bos == bos),
    );
    if let Some(template) = ChatTemplate::from_dir(dir)? {
        add("chat_template", text(template.source()));
    }
    Ok(entries)
}

/// The name that llama.cpp gives a tokenizer of this kind.
fn splitter(tokenizer: &Tokenizer) -> &'static str {
    match tokenizer.token_to_id("<｜begin▁of▁sentence｜>") {
        Some(_) => "deepseek-r1-qwen",
        None => "qwen2",
    }
}

/// Refuses a tokenizer that splits text in another way: llama.cpp would make other tokens, in silence.
fn check_split(dir: &Path, model: &Value) -> Result<(), GgufError> {
    let splitter = &model["pre_tokenizer"];
    let parts = splitter["pretokenizers"].as_array();
    let parts = parts.map_or(std::slice::from_ref(splitter), Vec::as_slice);
    let patterns: Vec<&Value> = parts
        .iter()
        .filter(|part| part["type"] == "Split")
        .map(|part| &part["pattern"])
        .collect();
    match patterns.as_slice() {
        [only] if only["Regex"] == QWEN2_PATTERN => Ok(()),
        [] => Err(GgufError::Split {
            dir: dir.to_owned(),
            found: "no pattern".to_owned(),
        }),
        [other, ..] => Err(GgufError::Split {
            dir: dir.to_owned(),
            found: format!("the pattern {other}"),
        }),
    }
}

/// The token of each row of the embedding, and its kind.
fn tokens(
    dir: &Path,
    tokenizer: &Tokenizer,
    vocab: usize,
) -> Result<(Vec<String>, Vec<i32>), GgufError> {
    if let Some((token, id)) = tokenizer.first_id_from(vocab) {
        return Err(GgufError::Vocabulary {
            dir: dir.to_owned(),
            token,
            id,
            vocab,
        });
    }
    let one = |id: u32| {
        let Some(token) = tokenizer.id_to_token(id) else {
            return (format!("[PAD{id}]"), UNUSED);
        };
        let kind = match tokenizer.is_added(id) {
            false => NORMAL,
            true if tokenizer.is_special(id) || looks_special(&token) => CONTROL,
            true => USER_DEFINED,
        };
        (token, kind)
    };
    Ok((0..vocab as u32).map(one).unzip())
}

/// Tokens that mark the parts of a chat, although no file says so.
fn looks_special(token: &str) -> bool {
    let between = |start, end| token.starts_with(start) && token.ends_with(end);
    between("<|", "|>") || between("<｜", "｜>")
}

/// Each merge as two pieces with a blank between.
fn merges(model: &Value) -> Vec<String> {
    let merges = model["model"]["merges"].as_array();
    let merges = merges.map_or(&[][..], Vec::as_slice).iter();
    let one = |merge: &Value| match merge {
        Value::Array(pieces) => {
            let pieces: Vec<&str> = pieces.iter().filter_map(Value::as_str).collect();
            pieces.join(" ")
        }
        other => other.as_str().unwrap_or_default().to_owned(),
    };
    merges.map(one).collect()
}

/// What the files of a folder say of the tokens that have a role.
struct SpecialIds<'a> {
    tokenizer: &'a Tokenizer,
    /// Of the tokenizer's files, by `<role>_token`.
    tokens: Map<String, Value>,
    /// Of the model, with `<role>_token_id`.
    files: [JsonFile; 2],
}

impl<'a> SpecialIds<'a> {
    fn read(dir: &Path, tokenizer: &'a Tokenizer) -> Result<Self, GgufError> {
        Ok(Self {
            tokenizer,
            tokens: special_tokens(dir)?,
            files: [
                JsonFile::read_optional(dir.join("config.json"))?,
                JsonFile::read_optional(dir.join("generation_config.json"))?,
            ],
        })
    }

    /// The token of a role: what the tokenizer's files say, or the model's.
    fn id(&self, role: &str) -> Result<Option<u32>, GgufError> {
        let name = self.tokens.get(&format!("{role}_token"));
        let name = name.and_then(Value::as_str);
        if let Some(id) = name.and_then(|name| self.tokenizer.token_to_id(name)) {
            return Ok(Some(id));
        }
        for file in &self.files {
            let ids = file.top().token_ids(&format!("{role}_token_id"))?;
            if let Some(id) = ids.first() {
                return Ok(Some(*id));
            }
        }
        Ok(None)
    }
}
