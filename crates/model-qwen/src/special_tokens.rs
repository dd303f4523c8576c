//! The special tokens of a model folder, by role.

use std::path::Path;

use serde_json::{Map, Value};

use crate::json_file::{JsonFile, JsonFileError};

/// What the files of a tokenizer say of special tokens, by role: `bos_token`, `eos_token` and so on, and the lists
/// `additional_special_tokens` and `extra_special_tokens`. A template sees them as variables.
///
/// `special_tokens_map.json` comes before `tokenizer_config.json`, unless the latter has an `added_tokens_decoder`: then the
/// former isn't read, as in transformers.
///
/// # Errors
/// When a file cannot be read or is not a JSON object.
pub fn special_tokens(dir: &Path) -> Result<Map<String, Value>, JsonFileError> {
    let config = JsonFile::read_optional(dir.join("tokenizer_config.json"))?;
    let mut tokens = roles(config.object());
    if config.get("added_tokens_decoder").is_none() {
        let map = JsonFile::read_optional(dir.join("special_tokens_map.json"))?;
        tokens.extend(roles(map.object()));
    }
    Ok(tokens)
}

/// The roles that are set in one file: as a string, or as an `AddedToken` with a `content`.
fn roles(config: &Map<String, Value>) -> Map<String, Value> {
    let text = |value: &Value| match value {
        Value::String(_) => Some(value.clone()),
        Value::Object(token) => token.get("content").filter(|c| c.is_string()).cloned(),
        _ => None,
    };
    let named = |object: &Map<String, Value>| {
        let roles = object.iter().filter(|(name, _)| name.ends_with("_token"));
        let set = roles.filter_map(|(name, value)| Some((name.clone(), text(value)?)));
        set.collect::<Map<String, Value>>()
    };
    let mut roles = named(config);
    // transformers 4.50 and later: further roles by name, or a list of tokens without a role.
    match config.get("extra_special_tokens") {
        Some(Value::Object(extra)) => roles.extend(named(extra)),
        Some(Value::Array(list)) => {
            let list = list.iter().filter_map(text).collect();
            roles.insert("extra_special_tokens".to_owned(), list);
        }
        _ => {}
    }
    if let Some(Value::Object(extra)) = config.get("model_specific_special_tokens") {
        roles.extend(named(extra));
    }
    if let Some(Value::Array(list)) = config.get("additional_special_tokens") {
        let list = list.iter().filter_map(text).collect();
        roles.insert("additional_special_tokens".to_owned(), list);
    }
    roles
}
