//! The special tokens of a model folder, by role.

use std::path::Path;

use serde_json::{Map, Value};

use crate::json_file::{JsonFile, JsonFileError, says_nothing};

/// The roles that each tokenizer has, in the order in which transformers adds their tokens.
pub(crate) const ROLES: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

/// What stands for a token.
const TOKEN: &str = "a token as a string, or as an object with its `content`";

/// What the files of a tokenizer say of special tokens, by role: `bos_token`, `eos_token` and so on, and the lists
/// `additional_special_tokens` and `extra_special_tokens`. A template sees them as variables.
///
/// `special_tokens_map.json` comes before `tokenizer_config.json`, unless the latter has an `added_tokens_decoder`: then the
/// former isn't read, as in transformers.
///
/// # Errors
/// When a file cannot be read, is not a JSON object, or has no token where one belongs.
pub fn special_tokens(dir: &Path) -> Result<Map<String, Value>, JsonFileError> {
    let config = JsonFile::read_optional(dir.join("tokenizer_config.json"))?;
    let mut tokens = roles(&config)?;
    if config.get("added_tokens_decoder").is_none() {
        let map = JsonFile::read_optional(dir.join("special_tokens_map.json"))?;
        tokens.extend(roles(&map)?);
    }
    Ok(tokens)
}

/// The roles that are set in one file.
fn roles(file: &JsonFile) -> Result<Map<String, Value>, JsonFileError> {
    let top = file.top();
    for role in ROLES {
        let value = file.get(role).filter(|value| !says_nothing(value));
        if let Some(value) = value.filter(|value| text(value).is_none()) {
            return Err(top.error(role, TOKEN, value));
        }
    }
    let mut roles = named(file.object());
    let list = |value: &Value| {
        value
            .as_array()?
            .iter()
            .map(text)
            .collect::<Option<Vec<_>>>()
    };
    // transformers 4.50 and later: further roles by name, or a list of tokens without a role.
    let extra = "extra_special_tokens";
    let expected = "a list of tokens, or an object of tokens by their roles";
    let found = top.read(extra, expected, |value| match value {
        Value::Object(extra) => Some(named(extra)),
        value => Some(Map::from_iter([(extra.to_owned(), list(value)?.into())])),
    })?;
    roles.extend(found.unwrap_or_default());
    if let Some(specific) = file.object_in("model_specific_special_tokens")? {
        roles.extend(named(specific.object()));
    }
    let additional = "additional_special_tokens";
    if let Some(tokens) = top.read(additional, "a list of tokens", list)? {
        roles.insert(additional.to_owned(), tokens.into());
    }
    Ok(roles)
}

/// A token as a string, or as an `AddedToken` with a `content`.
fn text(value: &Value) -> Option<Value> {
    match value {
        Value::String(_) => Some(value.clone()),
        Value::Object(token) => token.get("content").filter(|c| c.is_string()).cloned(),
        _ => None,
    }
}

/// The tokens that have a role in an object.
fn named(object: &Map<String, Value>) -> Map<String, Value> {
    let roles = object.iter().filter(|(name, _)| name.ends_with("_token"));
    let set = roles.filter_map(|(name, value)| Some((name.clone(), text(value)?)));
    set.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_token_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let read = |text: &str| {
            std::fs::write(dir.path().join("tokenizer_config.json"), text).unwrap();
            special_tokens(dir.path()).map_err(|error| error.to_string())
        };
        for (field, value) in [
            ("eos_token", "5"),
            ("bos_token", "{\"a\": 1}"),
            ("additional_special_tokens", "\"<x>\""),
            ("additional_special_tokens", "[5]"),
            ("extra_special_tokens", "5"),
            ("model_specific_special_tokens", "[]"),
        ] {
            let error = read(&format!("{{\"{field}\": {value}}}")).unwrap_err();
            assert!(
                error.contains(&format!("tokenizer_config.json: field `{field}`")),
                "{error}"
            );
        }
        let fine = r#"{"eos_token": null, "bos_token": false, "add_bos_token": true, "pad_token": {"content": "<p>"},
            "extra_special_tokens": {"image_token": "<i>"}, "additional_special_tokens": ["<a>", {"content": "<b>"}]}"#;
        let expected = serde_json::json!({
            "pad_token": "<p>", "image_token": "<i>", "additional_special_tokens": ["<a>", "<b>"],
        });
        assert_eq!(Value::Object(read(fine).unwrap()), expected);
    }
}
