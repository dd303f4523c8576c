//! Values of flags; an error says what was expected, and clap adds the flag and what was found.

use std::collections::BTreeMap;

use model_qwen::flags::{self, bytes};
use serde::Deserialize;

/// `--quantization`.
pub(crate) const QUANTIZATION: [(&str, &str); 2] = [
    ("nf4", "4-bit NormalFloat in blocks of 64"),
    ("none", "As in the checkpoint"),
];

/// `--dtype`.
pub(crate) const DTYPE: [(&str, &str); 4] = [
    ("auto", "As in the checkpoint"),
    ("f32", "32-bit"),
    ("bf16", "bfloat16"),
    ("f16", "IEEE half precision"),
];

/// `--compute-dtype`.
pub(super) const COMPUTE_DTYPE: [(&str, &str); 3] = [
    ("auto", "What suits the run and the device"),
    ("f32", "The factors as they are"),
    ("bf16", "The factors rounded to bf16 where that is faster"),
];

/// A count.
pub(crate) fn whole(text: &str) -> Result<usize, String> {
    flags::whole(text)
}

/// A number of steps. transformers also takes a part of the run, which is known only once the data is read.
pub(super) fn steps(text: &str) -> Result<usize, String> {
    no_part(
        text,
        "a part of the run is not understood, `trainer-sft check` says how many steps the run has",
    )
}

/// As [`steps`], where another flag takes a part.
pub(super) fn warmup_steps(text: &str) -> Result<usize, String> {
    no_part(text, "--warmup-ratio takes a part of the run")
}

fn no_part(text: &str, hint: &str) -> Result<usize, String> {
    whole(text).map_err(|error| match text.trim().parse::<f64>() {
        Ok(part) if part > 0.0 && part < 1.0 => format!("{error}: {hint}"),
        _ => error,
    })
}

/// A seed.
pub(crate) fn seed(text: &str) -> Result<u64, String> {
    flags::whole(text)
}

/// A number with or without a fraction.
pub(crate) fn number(text: &str) -> Result<f64, String> {
    parse(text, "a number such as 0.5 or 2e-4")
}

fn parse<T: std::str::FromStr>(text: &str, expected: &str) -> Result<T, String> {
    text.trim()
        .parse()
        .map_err(|_| format!("expected {expected}, found `{text}`"))
}

/// A size in bytes: a number, or a text such as `8GiB`.
pub(super) fn size<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<u64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(
        untagged,
        expecting = "expected a size such as \"8GiB\" or a number of bytes"
    )]
    enum Size {
        Bytes(u64),
        Text(String),
    }
    match Size::deserialize(deserializer)? {
        Size::Bytes(bytes) => Ok(Some(bytes)),
        Size::Text(text) => bytes(&text).map(Some).map_err(serde::de::Error::custom),
    }
}

/// A list, or a single value standing for a list of one.
pub(super) fn one_or_many<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + From<String>,
{
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a text in quotes, or a list of them")]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    Ok(match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(value) => vec![T::from(value)],
        OneOrMany::Many(values) => values.into_iter().map(T::from).collect(),
    })
}

/// A list of names, or a text of names between commas, as a flag takes them.
pub(super) fn between_commas<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<String>, D::Error> {
    Ok(split(one_or_many(deserializer)?))
}

fn split(texts: Vec<String>) -> Vec<String> {
    let parts = texts.iter().flat_map(|text| text.split(','));
    parts.map(|part| part.trim().to_owned()).collect()
}

/// `PART=FIELD` between commas; a comma before something else is one of a field's name.
fn split_pairs(texts: Vec<String>) -> Vec<String> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let is_pair = |piece: &str| {
        let part = piece.split_once('=').map(|(part, _)| part.trim());
        part.is_some_and(|part| !part.is_empty() && part.chars().all(is_word))
    };
    let mut pairs: Vec<String> = Vec::new();
    for text in texts {
        for (i, piece) in text.split(',').enumerate() {
            match pairs.last_mut() {
                Some(last) if i > 0 && !is_pair(piece) => {
                    last.push(',');
                    last.push_str(piece);
                }
                _ => pairs.push(piece.trim().to_owned()),
            }
        }
    }
    pairs
}

/// Columns: a list of `PART=FIELD`, one of these alone, or a table of fields by their parts.
pub(super) fn columns<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(
        untagged,
        expecting = "expected a list such as [\"prompt=question\"], or a table such as {prompt = \"question\"}"
    )]
    enum Columns {
        One(String),
        Many(Vec<String>),
        Table(BTreeMap<String, String>),
    }
    Ok(match Columns::deserialize(deserializer)? {
        Columns::One(pair) => split_pairs(vec![pair]),
        Columns::Many(pairs) => split_pairs(pairs),
        Columns::Table(fields) => {
            let pairs = fields.into_iter();
            pairs
                .map(|(part, field)| format!("{part}={field}"))
                .collect()
        }
    })
}

/// A list where it is given, another one otherwise.
pub(super) fn list<T>(own: Vec<T>, other: Vec<T>) -> Vec<T> {
    if own.is_empty() { other } else { own }
}
