//! Parsers for the values of flags. Errors say what was expected; clap adds the flag's name.

use model_qwen::flags::scaled;
pub use model_qwen::flags::{bytes, fraction};

use super::{LoraModule, MaxModelLen};

/// A count: `2048`, `2k` = 2000, `2K` = 2048.
pub fn count(text: &str) -> Result<usize, String> {
    let expected = || "expected a number such as 8192, 8k (= 8000) or 8K (= 8192)".to_owned();
    let (number, scale) = match text.char_indices().last() {
        Some((end, 'k')) => (&text[..end], 1_000),
        Some((end, 'K')) => (&text[..end], 1 << 10),
        Some((end, 'm')) => (&text[..end], 1_000_000),
        Some((end, 'M')) => (&text[..end], 1 << 20),
        _ => (text, 1),
    };
    let value = scaled(number, scale).ok_or_else(expected)?;
    usize::try_from(value).map_err(|_| expected())
}

/// A whole number; -1 = no limit.
pub fn limit(text: &str) -> Result<usize, String> {
    match text {
        "-1" => Ok(usize::MAX),
        _ => (text.parse()).map_err(|_| "expected a whole number, or -1 (no limit)".to_owned()),
    }
}

/// `--max-model-len`: a count, or `auto` (vLLM's `-1` too).
pub fn max_model_len(text: &str) -> Result<MaxModelLen, String> {
    match text {
        "auto" | "-1" => Ok(MaxModelLen::Auto),
        _ => match count(text) {
            Ok(0) => Err("expected at least 1 token, or `auto`".to_owned()),
            Ok(tokens) => Ok(MaxModelLen::Tokens(tokens)),
            Err(message) => Err(format!("{message}, or `auto`")),
        },
    }
}

/// One `--lora-modules` value: `name=path`, or JSON with `name` and `path` (other keys, as vLLM's `base_model_name`, are ignored).
pub fn lora_module(text: &str) -> Result<LoraModule, String> {
    let module = if text.trim_start().starts_with('{') {
        let fields = object(text)?;
        // vLLM's, of which the last says something about the base model's name only.
        let known = ["name", "path", "base_model_name"];
        if let Some(unknown) = fields.keys().find(|key| !known.contains(&key.as_str())) {
            return Err(format!(
                "expected the keys name, path and base_model_name, found {unknown}"
            ));
        }
        serde_json::from_value::<LoraModule>(fields.into()).map_err(|error| error.to_string())?
    } else {
        let (name, path) = text
            .split_once('=')
            .ok_or("expected NAME=PATH or {\"name\": …, \"path\": …}")?;
        LoraModule {
            name: name.to_owned(),
            path: path.into(),
        }
    };
    match module {
        LoraModule { ref name, .. } if name.is_empty() => {
            Err("the adapter's name is empty".to_owned())
        }
        LoraModule { ref path, .. } if path.as_os_str().is_empty() => {
            Err("the adapter's path is empty".to_owned())
        }
        module => Ok(module),
    }
}

/// Texts of one value of a flag: a JSON list of them, or one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Texts(pub Vec<String>);

/// A JSON list of texts, or one text as it is.
pub fn texts(text: &str) -> Result<Texts, String> {
    if !text.trim_start().starts_with('[') {
        return Ok(Texts(vec![text.to_owned()]));
    }
    serde_json::from_str(text)
        .map(Texts)
        .map_err(|error| format!("expected a JSON list of texts: {error}"))
}

/// A JSON object.
pub type Object = serde_json::Map<String, serde_json::Value>;

/// A JSON object.
pub fn object(text: &str) -> Result<Object, String> {
    serde_json::from_str(text).map_err(|error| format!("expected a JSON object: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_follow_vllm() {
        assert_eq!(max_model_len("8192"), Ok(MaxModelLen::Tokens(8192)));
        assert_eq!(max_model_len("8k"), Ok(MaxModelLen::Tokens(8000)));
        assert_eq!(max_model_len("8K"), Ok(MaxModelLen::Tokens(8192)));
        assert_eq!(max_model_len("1.5k"), Ok(MaxModelLen::Tokens(1500)));
        assert_eq!(max_model_len("auto"), Ok(MaxModelLen::Auto));
        assert_eq!(max_model_len("-1"), Ok(MaxModelLen::Auto));
        for bad in [
            "",
            "0",
            "k",
            "-5",
            "1.5",
            "8x",
            "8kk",
            "99999999999999999999",
            "é",
            "nan",
            "1e3",
        ] {
            assert!(max_model_len(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn lora_modules_have_two_forms() {
        let expected = LoraModule {
            name: "sql".to_owned(),
            path: "/tmp/a=b".into(),
        };
        assert_eq!(lora_module("sql=/tmp/a=b"), Ok(expected.clone()));
        assert_eq!(
            lora_module(r#"{"name": "sql", "path": "/tmp/a=b", "base_model_name": "x"}"#),
            Ok(expected)
        );
        let unknown = r#"{"name": "sql", "path": "p", "rank": 4}"#;
        for bad in ["sql", "=x", "x=", r#"{"name": "sql"}"#, "{", unknown] {
            assert!(lora_module(bad).is_err(), "{bad}");
        }
    }
}
