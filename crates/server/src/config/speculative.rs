//! `--speculative-config`, with the keys of vLLM's.

use std::fmt;

use serde_json::Value;

use super::units::Object;

/// Whether tokens are guessed and checked several at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Speculation {
    /// By prompt lookup on a CPU, where it changes no token; not on a GPU.
    #[default]
    Auto,
    /// Never.
    Off,
    /// By prompt lookup.
    Ngram(NgramConfig),
}

/// Speculative decoding by prompt lookup (vLLM's method `ngram`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NgramConfig {
    /// Tokens that are guessed at once, at most.
    pub num_speculative_tokens: usize,
    /// Tokens of the longest n-gram that is looked up.
    pub prompt_lookup_max: usize,
    /// Tokens of the shortest n-gram that is looked up.
    pub prompt_lookup_min: usize,
}

impl Default for NgramConfig {
    fn default() -> Self {
        Self {
            num_speculative_tokens: 5,
            prompt_lookup_max: 4,
            prompt_lookup_min: 2,
        }
    }
}

/// The largest numbers that make sense: more rows cost more than they can save.
const MAX_TOKENS: usize = 32;
const MAX_NGRAM: usize = 64;
/// N-grams of vLLM, where neither length is given.
const VLLM_NGRAM: usize = 5;

/// Keys of vLLM's that ask for something else, the values with which they ask for nothing besides null, and why.
const OTHERS: [(&str, &[&str], &str); 31] = [
    ("enforce_eager", &[], NO_DRAFT_MODEL),
    ("draft_tensor_parallel_size", &["1"], NO_DRAFT_MODEL),
    ("tensor_parallel_size", &["1"], NO_DRAFT_MODEL),
    ("quantization", &[], NO_DRAFT_MODEL),
    ("moe_backend", &[], NO_DRAFT_MODEL),
    ("attention_backend", &[], NO_DRAFT_MODEL),
    ("kv_cache_dtype", &[], NO_DRAFT_MODEL),
    ("max_model_len", &[], NO_DRAFT_MODEL),
    ("revision", &[], NO_DRAFT_MODEL),
    ("code_revision", &[], NO_DRAFT_MODEL),
    ("draft_load_config", &[], NO_DRAFT_MODEL),
    ("index_share_for_mtp_iteration", &[], NO_DRAFT_MODEL),
    ("disable_padded_drafter_batch", &["false"], NO_DRAFT_MODEL),
    ("disable_eagle_block_drop", &["false"], NO_DRAFT_MODEL),
    ("use_local_argmax_reduction", &["false"], NO_DRAFT_MODEL),
    ("use_heterogeneous_vocab", &["false"], NO_DRAFT_MODEL),
    ("parallel_drafting", &["false"], NO_DRAFT_MODEL),
    ("speculative_token_tree", &[], NO_DRAFT_MODEL),
    ("dspark_draft_topk", &[], NO_DRAFT_MODEL),
    ("enable_adaptive_verification", &["false"], NO_DRAFT_MODEL),
    (
        "draft_sample_method",
        &["\"greedy\""],
        "a draft is what the text repeats",
    ),
    ("rejection_sample_method", &["\"standard\""], EXACT),
    ("synthetic_acceptance_rate", &[], EXACT),
    ("synthetic_acceptance_rates", &[], EXACT),
    ("synthetic_acceptance_length", &[], EXACT),
    ("disable_by_batch_size", &[], ADAPTS),
    ("num_speculative_tokens_per_batch_size", &[], ADAPTS),
    ("suffix_decoding_max_tree_depth", &[], NO_SUFFIX),
    ("suffix_decoding_max_cached_requests", &[], NO_SUFFIX),
    ("suffix_decoding_max_spec_factor", &[], NO_SUFFIX),
    ("suffix_decoding_min_token_prob", &[], NO_SUFFIX),
];
const NO_DRAFT_MODEL: &str = "prompt lookup has no draft model";
const EXACT: &str = "a token is kept only if it is the one that is sampled";
const ADAPTS: &str = "drafts get shorter by themselves, and end, where they don't pay";
const NO_SUFFIX: &str = "of the method `suffix` only";

/// The value of the flag: `auto`, `off` (also `none` and `null`), or a JSON object.
///
/// # Errors
/// What was expected, with the key.
pub(super) fn speculation(text: &str) -> Result<Speculation, String> {
    match text.trim() {
        "auto" => Ok(Speculation::Auto),
        "off" | "none" | "null" => Ok(Speculation::Off),
        text => {
            let object: Object = serde_json::from_str(text)
                .map_err(|error| format!("expected auto, off or a JSON object: {error}"))?;
            ngram(&object).map(Speculation::Ngram)
        }
    }
}

fn ngram(object: &Object) -> Result<NgramConfig, String> {
    let given = |key: &str| object.get(key).filter(|value| !value.is_null());
    let (method, model) = (given("method"), given("model"));
    let is_lookup = |value: &Value| matches!(value.as_str(), Some("ngram" | "[ngram]"));
    match (method, model) {
        (Some(method), _) if !is_lookup(method) => {
            return Err(format!("method: expected \"ngram\", found {method}"));
        }
        (_, Some(model)) if !is_lookup(model) => {
            return Err(format!("model: found {model}, but {NO_DRAFT_MODEL}"));
        }
        (None, None) => return Err("method: expected \"ngram\", found none".to_owned()),
        _ => {}
    }
    for (key, value) in object {
        refuse_other(key, value)?;
    }
    let number = |key: &'static str, max: usize| match given(key) {
        None => Ok(None),
        Some(value) => match value.as_u64().and_then(|value| usize::try_from(value).ok()) {
            Some(number) if (1..=max).contains(&number) => Ok(Some(number)),
            _ => Err(format!(
                "{key}: expected a number from 1 to {max}, found {value}"
            )),
        },
    };
    let num_speculative_tokens = number("num_speculative_tokens", MAX_TOKENS)?;
    let (max, min) = (
        number("prompt_lookup_max", MAX_NGRAM)?,
        number("prompt_lookup_min", MAX_NGRAM)?,
    );
    let (prompt_lookup_max, prompt_lookup_min) = (
        max.or(min).unwrap_or(VLLM_NGRAM),
        min.or(max).unwrap_or(VLLM_NGRAM),
    );
    if prompt_lookup_min > prompt_lookup_max {
        return Err(format!(
            "prompt_lookup_min: expected at most prompt_lookup_max, {prompt_lookup_max}, found {prompt_lookup_min}"
        ));
    }
    Ok(NgramConfig {
        num_speculative_tokens: num_speculative_tokens.ok_or_else(|| {
            format!("num_speculative_tokens: expected a number from 1 to {MAX_TOKENS}, found none")
        })?,
        prompt_lookup_max,
        prompt_lookup_min,
    })
}

/// Refuses a key that asks for something else than prompt lookup.
fn refuse_other(key: &str, value: &Value) -> Result<(), String> {
    const OWN: [&str; 5] = [
        "method",
        "model",
        "num_speculative_tokens",
        "prompt_lookup_max",
        "prompt_lookup_min",
    ];
    if OWN.contains(&key) {
        return Ok(());
    }
    let Some((_, neutral, why)) = OTHERS.iter().find(|(other, ..)| *other == key) else {
        return Err(format!("unknown key `{key}`; expected {}", OWN.join(", ")));
    };
    match value.is_null() || neutral.contains(&value.to_string().as_str()) {
        true => Ok(()),
        false => Err(format!("{key}: found {value}, but {why}")),
    }
}

impl fmt::Display for NgramConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            num_speculative_tokens,
            prompt_lookup_max,
            prompt_lookup_min,
        } = self;
        write!(
            f,
            "up to {num_speculative_tokens} tokens after {prompt_lookup_min} to {prompt_lookup_max} equal ones"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_vllms() {
        let of = |num, max, min| {
            Ok(Speculation::Ngram(NgramConfig {
                num_speculative_tokens: num,
                prompt_lookup_max: max,
                prompt_lookup_min: min,
            }))
        };
        for (given, expected) in [
            ("auto", Ok(Speculation::Auto)),
            (" null ", Ok(Speculation::Off)),
            ("off", Ok(Speculation::Off)),
            (
                r#"{"method":"ngram","num_speculative_tokens":5,"prompt_lookup_max":4,"prompt_lookup_min":2}"#,
                of(5, 4, 2),
            ),
            (
                r#"{"method": "ngram", "num_speculative_tokens": 3}"#,
                of(3, 5, 5),
            ),
            (
                r#"{"model": "[ngram]", "num_speculative_tokens": 3, "prompt_lookup_max": 2}"#,
                of(3, 2, 2),
            ),
            (
                r#"{"method": "ngram", "model": null, "num_speculative_tokens": 3, "prompt_lookup_min": 1,
                    "quantization": null, "draft_tensor_parallel_size": 1, "parallel_drafting": false}"#,
                of(3, 1, 1),
            ),
        ] {
            assert_eq!(speculation(given), expected, "{given}");
        }
    }

    #[test]
    fn what_is_not_done_is_refused_by_name() {
        for (given, expected) in [
            ("on", "expected auto, off or a JSON object"),
            ("[]", "expected auto, off or a JSON object"),
            ("{}", "method: expected \"ngram\", found none"),
            (
                r#"{"method": "eagle3"}"#,
                "method: expected \"ngram\", found \"eagle3\"",
            ),
            (r#"{"model": "a/b"}"#, "model: found \"a/b\""),
            (
                r#"{"method": "ngram"}"#,
                "num_speculative_tokens: expected a number from 1 to 32, found none",
            ),
            (
                r#"{"method": "ngram", "num_speculative_tokens": 0}"#,
                "num_speculative_tokens: expected a number from 1 to 32, found 0",
            ),
            (
                r#"{"method": "ngram", "num_speculative_tokens": 2.5}"#,
                "num_speculative_tokens: expected",
            ),
            (
                r#"{"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2, "prompt_lookup_min": 3}"#,
                "prompt_lookup_min: expected at most prompt_lookup_max, 2, found 3",
            ),
            (
                r#"{"method": "ngram", "num_speculative_tokens": 2, "disable_by_batch_size": 4}"#,
                "disable_by_batch_size: found 4, but drafts get shorter",
            ),
            (
                r#"{"method": "ngram", "num_speculative_tokens": 2, "quantization": "fp8"}"#,
                "quantization: found \"fp8\", but prompt lookup has no draft model",
            ),
            (
                r#"{"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup": 4}"#,
                "unknown key `prompt_lookup`; expected method, model",
            ),
        ] {
            let error = speculation(given).unwrap_err();
            assert!(error.contains(expected), "{given}: {error}");
        }
    }
}
