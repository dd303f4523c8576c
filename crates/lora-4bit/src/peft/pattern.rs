//! How PEFT matches module names: Python regular expressions and dotted suffixes.

use std::fmt;
use std::marker::PhantomData;

use fancy_regex::Regex;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

use super::error::PeftError;

/// A JSON object whose order counts: the first key that matches a module decides.
#[derive(Clone, Debug, PartialEq)]
pub struct PatternMap<T>(pub Vec<(String, T)>);

impl<T> Default for PatternMap<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for PatternMap<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
            type Value = PatternMap<T>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object from module patterns to numbers, or null")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(PatternMap(entries))
            }

            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(PatternMap::default())
            }
        }

        deserializer.deserialize_any(Entries(PhantomData))
    }
}

/// A compiled pattern.
#[derive(Clone, Debug)]
pub(super) enum Pattern {
    /// A name without regex syntax other than dots, which match any character as they do in Python.
    Suffix(String),
    /// Anything else.
    Regex(Box<Regex>),
}

impl Pattern {
    /// A key of `rank_pattern` or `alpha_pattern`: matches a module of that name, or one that ends in a dot and the
    /// name. Source: `get_pattern_key` in `peft/utils/other.py`.
    pub(super) fn suffix(field: &'static str, key: &str) -> Result<Self, PeftError> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.');
        if !key.is_empty() && key.chars().all(is_plain) {
            return Ok(Self::Suffix(key.to_owned()));
        }
        Self::regex(field, key, &format!(r"^(.*\.)?({key})$"))
    }

    /// `target_modules` or `exclude_modules` as a string: the whole name of a module must match.
    pub(super) fn full(field: &'static str, pattern: &str) -> Result<Self, PeftError> {
        Self::regex(field, pattern, &format!("^(?:{pattern})$"))
    }

    fn regex(field: &'static str, pattern: &str, anchored: &str) -> Result<Self, PeftError> {
        Regex::new(anchored)
            .map(|regex| Self::Regex(Box::new(regex)))
            .map_err(|error| PeftError::Pattern {
                field,
                pattern: pattern.to_owned(),
                reason: error.to_string(),
            })
    }

    /// Whether the module `name` matches. A regex that backtracks without end matches nothing.
    pub(super) fn matches(&self, name: &str) -> bool {
        match self {
            Self::Regex(regex) => regex.is_match(name).unwrap_or(false),
            Self::Suffix(key) => {
                let (key, name) = (key.as_bytes(), name.as_bytes());
                let Some(start) = name.len().checked_sub(key.len()) else {
                    return false;
                };
                let fits = key
                    .iter()
                    .zip(&name[start..])
                    .all(|(k, n)| *k == b'.' || k == n);
                fits && (start == 0 || name[start - 1] == b'.')
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(key: &str, name: &str) -> bool {
        let suffix = Pattern::suffix("rank_pattern", key).unwrap();
        let regex = Pattern::regex("rank_pattern", key, &format!(r"^(.*\.)?({key})$")).unwrap();
        assert_eq!(suffix.matches(name), regex.matches(name), "{key} on {name}");
        suffix.matches(name)
    }

    #[test]
    fn suffixes_stop_at_dots() {
        assert!(matches("q_proj", "model.layers.0.self_attn.q_proj"));
        assert!(matches("q_proj", "q_proj"));
        assert!(matches(
            "layers.0.self_attn.q_proj",
            "model.layers.0.self_attn.q_proj"
        ));
        assert!(!matches("proj", "model.layers.0.self_attn.q_proj"));
        assert!(!matches(
            "0.self_attn.q_proj",
            "model.layers.10.self_attn.q_proj"
        ));
        assert!(!matches("model.layers.0.self_attn.q_proj", "q_proj"));
    }

    #[test]
    fn dots_match_any_character() {
        assert!(matches(
            "layers.0.self.attn.q_proj",
            "model.layers.0.self_attn.q_proj"
        ));
        assert!(matches(".q_proj", "a._q_proj"));
    }

    #[test]
    fn regexes_match() {
        assert!(matches(
            r"layers\.\d\..*_proj",
            "model.layers.3.mlp.up_proj"
        ));
        assert!(matches("q_proj|v_proj", "model.layers.3.self_attn.v_proj"));
        assert!(!matches(r"layers\.[01]\..*", "model.layers.3.mlp.up_proj"));
    }

    #[test]
    fn invalid_regex_is_named() {
        let error = Pattern::full("target_modules", "(")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("target_modules") && error.contains('('),
            "{error}"
        );
    }
}
