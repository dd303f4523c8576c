//! What the files beside `tokenizer.json` say of tokens: `tokenizer_config.json`, `special_tokens_map.json`, `added_tokens.json`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, Tokenizer};

use super::error::TokenizerError;
use crate::json_file::{JsonFile, JsonFileError};
use crate::special_tokens::{ROLES, special_tokens};

/// Keys of `tokenizer_config.json` that are read here or elsewhere in this crate; so is each `*_token`.
const READ: [&str; 11] = [
    "add_bos_token",
    "add_eos_token",
    "add_prefix_space",
    "added_tokens_decoder",
    "additional_special_tokens",
    "chat_template",
    "do_lower_case",
    "errors",
    "extra_special_tokens",
    "model_specific_special_tokens",
    "split_special_tokens",
];

/// Keys that change nothing here, for the reasons in docs/src/model-folders.md.
const HARMLESS: [&str; 29] = [
    "_commit_hash",
    "auto_map",
    "backend",
    "clean_up_tokenization_spaces",
    "fix_mistral_regex",
    "from_slow",
    "init_inputs",
    "is_local",
    "legacy",
    "local_files_only",
    "max_length",
    "model_input_names",
    "model_max_length",
    "name_or_path",
    "pad_to_multiple_of",
    "pad_token_type_id",
    "padding_side",
    "processor_class",
    "sp_model_kwargs",
    "spaces_between_special_tokens",
    "special_tokens_map_file",
    "stride",
    "tokenizer_class",
    "tokenizer_file",
    "transformers_version",
    "truncation_side",
    "truncation_strategy",
    "use_default_system_prompt",
    "use_fast",
];

/// The tokens that the small files add to those of the tokenizer.
#[derive(Debug, Default)]
pub(super) struct Added {
    /// The file that has the ids.
    path: PathBuf,
    /// With the id that a file gives them.
    numbered: BTreeMap<u32, AddedToken>,
    /// Whether the file says of these how a text is searched for them, too.
    has_flags: bool,
    /// With a role, but no id.
    special: Vec<String>,
    /// What stands for an unknown token or for padding, and never comes up in a text.
    unseen: Vec<String>,
    /// All tokens with a role, in the order in which transformers adds them.
    in_order: Vec<String>,
    /// Rows of the model's embedding, as its `config.json` says.
    rows: Option<usize>,
}

/// Refuses what `tokenizer_config.json` asks for and `tokenizer` does not do; returns the tokens that the small files name.
pub(super) fn check(dir: &Path, tokenizer: &Tokenizer) -> Result<Added, TokenizerError> {
    let file = JsonFile::read_optional(dir.join("tokenizer_config.json"))?;
    let top = file.top();
    for field in ["do_lower_case", "split_special_tokens"] {
        if top.boolean(field)? == Some(true) {
            return Err(top.error(field, "false", true).into());
        }
    }
    if let Some(errors) = top.text("errors")?.filter(|errors| errors != "replace") {
        let found = format!("`{errors}`");
        return Err(top.error("errors", "`replace`", found).into());
    }
    if top.boolean("add_prefix_space")? == Some(true) && !adds_prefix_space(tokenizer) {
        let expected = "false, as tokenizer.json says";
        return Err(top.error("add_prefix_space", expected, true).into());
    }
    let is_known =
        |key: &str| READ.contains(&key) || HARMLESS.contains(&key) || key.ends_with("_token");
    let unknown: Vec<&str> = file.names().filter(|key| !is_known(key)).collect();
    if !unknown.is_empty() {
        tracing::warn!(
            "{}: unknown keys are not read: {}",
            file.path().display(),
            unknown.join(", ")
        );
    }

    let mut added = Added {
        path: file.path().to_owned(),
        numbered: numbered(&file)?,
        has_flags: file.get("added_tokens_decoder").is_some(),
        rows: rows(dir),
        ..Added::default()
    };
    let mut special: Vec<(String, Value)> = special_tokens(dir)?.into_iter().collect();
    special.sort_by_key(|(role, value)| {
        let place = ROLES.iter().position(|known| known == role);
        (value.is_array(), place.unwrap_or(ROLES.len()))
    });
    for (role, value) in special {
        let texts = match &value {
            Value::Array(list) => list.iter().filter_map(Value::as_str).collect(),
            value => value.as_str().into_iter().collect::<Vec<&str>>(),
        };
        let list = match role.as_str() {
            "unk_token" | "pad_token" => &mut added.unseen,
            _ => &mut added.special,
        };
        added
            .in_order
            .extend(texts.iter().copied().map(str::to_owned));
        list.extend(texts.into_iter().map(str::to_owned));
    }
    let legacy = dir.join("added_tokens.json");
    if !added.has_flags && legacy.is_file() {
        let legacy = JsonFile::read(legacy)?;
        added.path = legacy.path().to_owned();
        for token in legacy.names() {
            let ids = legacy.top().token_ids(token)?;
            let special = added.special.iter().any(|special| special == token);
            let token = AddedToken::from(token.to_owned(), special);
            added
                .numbered
                .extend(ids.into_iter().map(|id| (id, token.clone())));
        }
    }
    Ok(added)
}

/// `vocab_size` of `config.json`. What is wrong with that file is said where the model is loaded.
fn rows(dir: &Path) -> Option<usize> {
    let config = JsonFile::read_optional(dir.join("config.json")).ok()?;
    config.top().positive("vocab_size").ok()?
}

/// `added_tokens_decoder` of `tokenizer_config.json`.
fn numbered(file: &JsonFile) -> Result<BTreeMap<u32, AddedToken>, JsonFileError> {
    match file.get("added_tokens_decoder") {
        None => Ok(BTreeMap::new()),
        Some(value) => serde_json::from_value(value.clone()).map_err(|error| {
            let expected = "an object from token ids to tokens";
            file.top().error("added_tokens_decoder", expected, error)
        }),
    }
}

fn adds_prefix_space(tokenizer: &Tokenizer) -> bool {
    let text = serde_json::to_string(&tokenizer.get_pre_tokenizer()).unwrap_or_default();
    text.contains("\"add_prefix_space\":true")
}

/// Gives the added tokens of a tokenizer the flags that the small files say, as transformers does: what has a role is special.
pub(super) fn set_flags(tokenizer: &mut Tokenizer, added: &Added) -> Result<(), TokenizerError> {
    let told = |token: &AddedToken| {
        let mut numbered = added.numbered.values().filter(|_| added.has_flags);
        let told = numbered.find(|told| told.content == token.content);
        let mut told = told.unwrap_or(token).clone();
        let mut roles = added.special.iter().chain(&added.unseen);
        told.special |= roles.any(|text| *text == told.content);
        told
    };
    let own = tokenizer.get_added_tokens_decoder();
    let changed = own.iter().map(|(id, token)| (*id, token, told(token)));
    let changed: BTreeMap<u32, AddedToken> = changed
        .filter(|(_, token, told)| *token != told)
        .map(|(id, _, told)| (id, told))
        .collect();
    if changed.is_empty() {
        return Ok(());
    }
    // Adding a token once more makes it special, but never the other way round.
    let failed = |reason: String| TokenizerError::Invalid {
        path: added.path.clone(),
        reason,
    };
    let mut json = serde_json::to_value(&*tokenizer).map_err(|error| failed(error.to_string()))?;
    let entries = json["added_tokens"].as_array_mut();
    for entry in entries.into_iter().flatten() {
        let id = entry["id"].as_u64().and_then(|id| u32::try_from(id).ok());
        if let Some(token) = id.and_then(|id| changed.get(&id)) {
            entry["special"] = token.special.into();
            entry["lstrip"] = token.lstrip.into();
            entry["rstrip"] = token.rstrip.into();
            entry["single_word"] = token.single_word.into();
            entry["normalized"] = token.normalized.into();
        }
    }
    *tokenizer = json
        .to_string()
        .parse()
        .map_err(|error: tokenizers::Error| failed(error.to_string()))?;
    Ok(())
}

/// Adds the tokens that the tokenizer doesn't have as added tokens, as transformers does: with the ids that the files say, and
/// those of a role that have none behind the vocabulary, as far as the model has rows for them.
pub(super) fn add_missing(tokenizer: &mut Tokenizer, added: Added) -> Result<(), TokenizerError> {
    let Added {
        path,
        numbered,
        special,
        in_order,
        rows,
        ..
    } = added;
    let invalid = |reason: String| TokenizerError::Invalid {
        path: path.clone(),
        reason,
    };
    let is_added = |tokenizer: &Tokenizer, text: &str| {
        let vocabulary = tokenizer.get_added_vocabulary();
        vocabulary.get_vocab().contains_key(text)
    };
    for (id, token) in numbered {
        let text = token.content.clone();
        if text.is_empty() || is_added(tokenizer, &text) {
            continue;
        }
        let is_special = token.special || special.contains(&text);
        let result = match is_special {
            true => tokenizer.add_special_tokens([token.special(true)]),
            false => tokenizer.add_tokens([token]),
        };
        result.map_err(|e| invalid(e.to_string()))?;
        let found = tokenizer.token_to_id(&text);
        if found != Some(id) {
            let found = found.map_or_else(|| "none".to_owned(), |found| found.to_string());
            return Err(invalid(format!(
                "token {text:?} has the id {id} here, but the id {found} after the vocabulary"
            )));
        }
    }
    let mut without_row = Vec::new();
    for text in in_order {
        if text.is_empty() || is_added(tokenizer, &text) || without_row.contains(&text) {
            continue;
        }
        match tokenizer.token_to_id(&text) {
            // What stands for padding or an unknown token is a token of the vocabulary like any other.
            Some(_) if !special.contains(&text) => continue,
            None if rows.is_none_or(|rows| next_id(tokenizer) >= rows) => {
                without_row.push(text);
                continue;
            }
            _ => {}
        }
        let result = tokenizer.add_special_tokens([AddedToken::from(text, true)]);
        result.map_err(|e| invalid(e.to_string()))?;
    }
    if !without_row.is_empty() {
        tracing::warn!(
            "{}: special tokens that are in no vocabulary, and that the model has no row for, are read as ordinary text: {}",
            path.display(),
            without_row.join(", ")
        );
    }
    Ok(())
}

/// The id that the next new token gets: behind the vocabulary and all added tokens.
fn next_id(tokenizer: &Tokenizer) -> usize {
    let size = tokenizer.get_vocab_size(false);
    let added = tokenizer.get_added_tokens_decoder();
    let behind = added.keys().max().map_or(0, |last| *last as usize + 1);
    behind.max(size)
}

/// Puts `bos_token` before a text and `eos_token` after it where `tokenizer_config.json` asks for it: without a
/// `tokenizer.json`, which says that itself.
pub(super) fn add_ends(tokenizer: &mut Tokenizer, dir: &Path) -> Result<(), TokenizerError> {
    let file = JsonFile::read_optional(dir.join("tokenizer_config.json"))?;
    let top = file.top();
    let special = special_tokens(dir)?;
    let end = |flag: &str, role: &str| -> Result<Option<(String, u32)>, TokenizerError> {
        if top.boolean(flag)? != Some(true) {
            return Ok(None);
        }
        let Some(text) = special.get(role).and_then(Value::as_str) else {
            return Ok(None);
        };
        match tokenizer.token_to_id(text) {
            Some(id) => Ok(Some((text.to_owned(), id))),
            None => Err(top
                .error(role, "a token of the vocabulary", format!("{text:?}"))
                .into()),
        }
    };
    let (bos, eos) = (
        end("add_bos_token", "bos_token")?,
        end("add_eos_token", "eos_token")?,
    );
    if bos.is_none() && eos.is_none() {
        return Ok(());
    }
    let name = |end: &Option<(String, u32)>| end.as_ref().map(|(text, _)| text.clone());
    let parts = [name(&bos), Some("$A".to_owned()), name(&eos)];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    let invalid = |reason: String| TokenizerError::Invalid {
        path: file.path().to_owned(),
        reason,
    };
    let template = TemplateProcessing::builder()
        .try_single(parts)
        .map_err(|e| invalid(e.to_string()))?
        .special_tokens([bos, eos].into_iter().flatten().collect::<Vec<_>>())
        .build()
        .map_err(|e| invalid(e.to_string()))?;
    tokenizer.with_post_processor(Some(template));
    Ok(())
}
