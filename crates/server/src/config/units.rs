//! Parsers for the values of flags. Errors say what was expected; clap adds the flag's name.

use super::{LoraModule, MaxModelLen};

/// A fraction above 0 and at most 1.
pub fn fraction(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value <= 1.0 => Ok(value),
        _ => Err("expected a fraction above 0 and at most 1, such as 0.9".to_owned()),
    }
}

/// A number of bytes: `8GiB` and `8G` are binary, `8GB` and `8g` decimal, a bare number is bytes.
pub fn bytes(text: &str) -> Result<u64, String> {
    let expected = || "expected a size such as 8GiB, 6000MB or a number of bytes".to_owned();
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let scale: u64 = match unit.trim() {
        "" | "B" => 1,
        "KiB" | "K" => 1 << 10,
        "MiB" | "M" => 1 << 20,
        "GiB" | "G" => 1 << 30,
        "TiB" | "T" => 1 << 40,
        "kB" | "KB" | "k" => 1_000,
        "MB" | "m" => 1_000_000,
        "GB" | "g" => 1_000_000_000,
        "TB" | "t" => 1_000_000_000_000,
        _ => return Err(expected()),
    };
    scaled(number, scale).ok_or_else(expected)
}

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

/// `number * scale` for a whole or decimal number, if the product is a whole number that fits.
fn scaled(number: &str, scale: u64) -> Option<u64> {
    if number.bytes().all(|b| b.is_ascii_digit()) {
        return number.parse::<u64>().ok()?.checked_mul(scale);
    }
    let value = number.parse::<f64>().ok()? * scale as f64;
    (scale > 1 && value.is_finite() && value >= 0.0 && value < 2f64.powi(63))
        .then_some(value as u64)
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
    fn sizes_are_binary_or_decimal() {
        assert_eq!(bytes("8GiB"), Ok(8 << 30));
        assert_eq!(bytes("8G"), Ok(8 << 30));
        assert_eq!(bytes("8GB"), Ok(8_000_000_000));
        assert_eq!(bytes("0.5GiB"), Ok(1 << 29));
        assert_eq!(bytes("123"), Ok(123));
        for bad in ["", "GiB", "-1", "8XB", "1.5", "99999999999TiB", "8 é"] {
            assert!(bytes(bad).is_err(), "{bad}");
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
