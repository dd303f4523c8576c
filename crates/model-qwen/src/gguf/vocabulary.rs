//! The tokenizer and the chat template of a model folder, in the words of GGUF.

use std::path::Path;

use serde_json::{Map, Value};

use super::GgufError;
use super::metadata::{Entry, GgufValue};
use crate::chat_template::ChatTemplate;
use crate::config::QwenConfig;
use crate::json_file::{JsonFile, says_nothing};
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
    let (bos, eos) = (special.id("bos")?, special.id("eos")?);
    for (id, key) in [
        (bos, "ggml.bos_token_id"),
        (eos, "ggml.eos_token_id"),
        (special.id("pad")?, "ggml.padding_token_id"),
    ] {
        if let Some(id) = id {
            add(key, GgufValue::U32(id));
        }
    }
    let (adds_bos, adds_eos) = ends(dir, &tokenizer, [bos, eos])?;
    add("ggml.add_bos_token", GgufValue::Bool(adds_bos));
    add("ggml.add_eos_token", GgufValue::Bool(adds_eos));
    if let Some(template) = ChatTemplate::from_dir(dir)? {
        add("chat_template", text(template.source()));
        if let Some(tool_use) = template.tool_use_source() {
            add("chat_template.tool_use", text(tool_use));
            let names = vec!["tool_use".to_owned()];
            add("chat_templates", GgufValue::Texts(names));
        }
    }
    Ok(entries)
}

/// Whether the tokenizer puts `bos` before a text and `eos` after it. The format has no words for other tokens there.
fn ends(
    dir: &Path,
    tokenizer: &Tokenizer,
    [bos, eos]: [Option<u32>; 2],
) -> Result<(bool, bool), GgufError> {
    const TEXT: &str = "a";
    let text = tokenizer.encode(TEXT, false)?;
    let whole = tokenizer.encode(TEXT, true)?;
    let at = whole
        .windows(text.len().max(1))
        .position(|part| part == text);
    let (before, after) = match at {
        Some(at) => (&whole[..at], &whole[at + text.len()..]),
        None => (&whole[..], &[][..]),
    };
    let is_added = |ids: &[u32], end: Option<u32>| match ids {
        [] => Some(false),
        [id] if Some(*id) == end => Some(true),
        _ => None,
    };
    is_added(before, bos)
        .zip(is_added(after, eos))
        .ok_or_else(|| GgufError::Tokenization {
            dir: dir.to_owned(),
            field: "post_processor",
            expected: "nothing but bos_token before a text and eos_token after it",
            found: format!("the ids {before:?} before it and {after:?} after it"),
        })
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
    let parts = parts(&model["pre_tokenizer"], "pretokenizers");
    let patterns: Vec<&Value> = parts
        .iter()
        .filter(|part| part["type"] == "Split")
        .map(|part| &part["pattern"])
        .collect();
    match patterns.as_slice() {
        [only] if only["Regex"] == QWEN2_PATTERN => {}
        [] => {
            return Err(GgufError::Split {
                dir: dir.to_owned(),
                found: "no pattern".to_owned(),
            });
        }
        [other, ..] => {
            return Err(GgufError::Split {
                dir: dir.to_owned(),
                found: format!("the pattern {other}"),
            });
        }
    }
    let refused = |field, expected, found: &Value| {
        Err(GgufError::Tokenization {
            dir: dir.to_owned(),
            field,
            expected,
            found: found.to_string(),
        })
    };
    let is_split = |part: &Value| {
        part["type"] == "Split" && part["behavior"] == "Isolated" && part["invert"] == false
    };
    let is_bytes = |part: &Value| {
        part["type"] == "ByteLevel"
            && part["add_prefix_space"] == false
            && part["use_regex"] == false
    };
    if !matches!(parts, [first, second] if is_split(first) && is_bytes(second)) {
        let expected =
            "the parts of Qwen2: Split (isolated) and ByteLevel (without prefix space and pattern)";
        return refused("pre_tokenizer", expected, &parts.into());
    }
    let normalizers = self::parts(&model["normalizer"], "normalizers");
    if normalizers.iter().any(|part| part["type"] != "NFC") {
        return refused("normalizer", "none, or NFC", &normalizers.into());
    }
    let merging = &model["model"];
    if merging["type"] != "BPE" {
        return refused("model.type", "BPE", &merging["type"]);
    }
    for (field, key) in [
        ("model.dropout", "dropout"),
        (
            "model.continuing_subword_prefix",
            "continuing_subword_prefix",
        ),
        ("model.end_of_word_suffix", "end_of_word_suffix"),
        ("model.byte_fallback", "byte_fallback"),
        ("model.ignore_merges", "ignore_merges"),
    ] {
        if !says_nothing(&merging[key]) {
            return refused(field, "nothing or false, as Qwen2 has it", &merging[key]);
        }
    }
    Ok(())
}

/// The parts of a sequence, or the one part; none of null.
fn parts<'a>(value: &'a Value, list: &str) -> &'a [Value] {
    match value[list].as_array() {
        Some(parts) => parts,
        None if value.is_null() => &[],
        None => std::slice::from_ref(value),
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
