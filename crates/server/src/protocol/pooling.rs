//! Bodies of `/v1/embeddings` and `/pooling`.

use half::{bf16, f16};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::body::Body;
use super::chat::TemplateFields;
use super::common::{TruncationSide, check_request_id};
use super::completions::{Prompt, PromptItem};
use super::fields::Endpoint;
use super::usage::Usage;
use crate::engine::PoolingInfo;
use crate::error::ApiError;

/// Fields that embeddings and scores share.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct PoolingFields {
    /// Served name or adapter name.
    pub model: Option<String>,
    /// Keep this many tokens of each text; -1 = as many as fit.
    pub truncate_prompt_tokens: Option<i64>,
    /// The end that is cut off; `right` by default.
    pub truncation_side: Option<TruncationSide>,
    /// The answer's id, unless the header `X-Request-Id` has one.
    pub request_id: Option<String>,
    /// Separates prefix-cache entries.
    pub cache_salt: Option<String>,
    /// Whether embeddings have length 1, and scores are between 0 and 1.
    pub use_activation: Option<bool>,
}

impl PoolingFields {
    /// Reads the fields of a body.
    ///
    /// # Errors
    /// 400 with the field.
    pub(crate) fn read(body: &Body) -> Result<Self, ApiError> {
        let fields: Self = body.read()?;
        check_request_id(fields.request_id.as_deref())?;
        Ok(fields)
    }
}

/// Fields of `/v1/embeddings` and `/pooling` besides [`PoolingFields`] and, with `messages`, [`super::chat::TemplateFields`].
#[derive(Clone, Debug, Default, Deserialize)]
pub struct EmbeddingFields {
    /// One text or several, or token ids.
    pub input: Option<Prompt>,
    /// A conversation, which the chat template writes as one text.
    pub messages: Option<Vec<Map<String, Value>>>,
    /// Numbers, or their bytes in base64.
    #[serde(default)]
    pub encoding_format: EncodingFormat,
    /// Type of the bytes.
    #[serde(default)]
    pub embed_dtype: EmbedDtype,
    /// Order of the bytes.
    #[serde(default)]
    pub endianness: Endianness,
    /// Length of the vectors: their first values, scaled to length 1 again.
    pub dimensions: Option<i64>,
    /// The older name of `use_activation`.
    pub normalize: Option<bool>,
}

/// What `/classify` has of [`EmbeddingFields`].
#[derive(Debug, Deserialize)]
struct InputFields {
    input: Option<Prompt>,
    messages: Option<Vec<Map<String, Value>>>,
}

impl From<InputFields> for EmbeddingFields {
    fn from(InputFields { input, messages }: InputFields) -> Self {
        Self {
            input,
            messages,
            ..Self::default()
        }
    }
}

/// Of `/pooling` only.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct TaskField {
    /// What the model computes: `embed` or `classify`.
    pub task: Option<PoolingTask>,
}

/// `task`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PoolingTask {
    /// A vector for each text.
    Embed,
    /// A score for each text.
    Classify,
}

/// `encoding_format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EncodingFormat {
    /// A list of numbers.
    #[default]
    Float,
    /// A text.
    Base64,
}

/// `embed_dtype`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EmbedDtype {
    /// 4 bytes a value.
    #[default]
    Float32,
    /// 2 bytes.
    Float16,
    /// 2 bytes.
    BFloat16,
}

/// `endianness`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Endianness {
    /// The server's.
    #[default]
    Native,
    /// The low byte first.
    Little,
    /// The high byte first.
    Big,
}

/// What to embed.
#[derive(Debug)]
pub enum Input {
    /// Texts and lists of token ids.
    Items(Vec<PromptItem>),
    /// A conversation.
    Messages(Vec<Map<String, Value>>),
}

impl EmbeddingFields {
    /// Reads the fields that an endpoint has.
    ///
    /// # Errors
    /// 400 with the field that has the wrong type.
    pub(crate) fn take(body: &Body, endpoint: Endpoint) -> Result<(Self, Input), ApiError> {
        let mut fields: Self = match endpoint {
            Endpoint::Classify => body.read::<InputFields>()?.into(),
            _ => body.read()?,
        };
        let input = match (fields.input.take(), fields.messages.take()) {
            (Some(input), None) => {
                body.read::<TemplateFields>()?.refuse_beside("input")?;
                Input::Items(items(input)?)
            }
            (None, Some(messages)) => Input::Messages(messages),
            (Some(_), Some(_)) => {
                let message = "Give either `input` or `messages`, not both.";
                return Err(ApiError::bad_request("input", message));
            }
            (None, None) => {
                return Err(ApiError::bad_request(
                    "input",
                    "Give `input` or `messages`.",
                ));
            }
        };
        Ok((fields, input))
    }

    /// Length of the vectors.
    ///
    /// # Errors
    /// 400 if the model's vectors are shorter, or if it computes scores.
    pub(crate) fn dimensions(&self, pooling: &PoolingInfo) -> Result<usize, ApiError> {
        let hidden_size = pooling.hidden_size;
        let Some(given) = self.dimensions else {
            return Ok(pooling.dimensions.unwrap_or(hidden_size));
        };
        if pooling.score.is_some() {
            let message =
                "`dimensions` is of embeddings: this model computes one score for a text.";
            return Err(ApiError::bad_request("dimensions", message));
        }
        let dimensions = usize::try_from(given).ok();
        let dimensions = dimensions.filter(|num| (1..=hidden_size).contains(num));
        dimensions.ok_or_else(|| {
            let message =
                format!("`dimensions` must be between 1 and {hidden_size}, found {given}.");
            ApiError::bad_request("dimensions", message)
        })
    }

    /// Whether vectors have length 1.
    ///
    /// # Errors
    /// 400 if both names of the field say something else.
    pub(crate) fn activation(&self, shared: &PoolingFields) -> Result<Option<bool>, ApiError> {
        match (shared.use_activation, self.normalize) {
            (Some(new), Some(old)) if new != old => {
                let message = "`normalize` is the older name of `use_activation`: both are given, and they differ.";
                Err(ApiError::bad_request("normalize", message))
            }
            (new, old) => Ok(new.or(old)),
        }
    }

    /// A vector as the answer has it.
    pub(crate) fn encode(&self, values: Vec<f32>) -> Vector {
        if self.encoding_format == EncodingFormat::Float {
            return Vector::Float(values);
        }
        let is_big = match self.endianness {
            Endianness::Native => cfg!(target_endian = "big"),
            Endianness::Little => false,
            Endianness::Big => true,
        };
        let mut bytes = Vec::with_capacity(4 * values.len());
        for value in values {
            let start = bytes.len();
            match self.embed_dtype {
                EmbedDtype::Float32 => bytes.extend(value.to_le_bytes()),
                EmbedDtype::Float16 => bytes.extend(f16::from_f32(value).to_le_bytes()),
                EmbedDtype::BFloat16 => bytes.extend(bf16::from_f32(value).to_le_bytes()),
            }
            if is_big {
                bytes[start..].reverse();
            }
        }
        Vector::Base64(base64(&bytes))
    }
}

/// The inputs one by one.
fn items(input: Prompt) -> Result<Vec<PromptItem>, ApiError> {
    let empty = |param: String| {
        let message = format!("`{param}` must not be empty.");
        ApiError::bad_request(param, message)
    };
    let items = input.into_items().map_err(|_| empty("input".to_owned()))?;
    let is_empty = |item: &PromptItem| match item {
        PromptItem::Text(text) => text.is_empty(),
        PromptItem::Tokens(ids) => ids.is_empty(),
    };
    match items.iter().position(is_empty) {
        Some(0) if items.len() == 1 => Err(empty("input".to_owned())),
        Some(i) => Err(empty(format!("input[{i}]"))),
        None => Ok(items),
    }
}

/// A vector in an answer.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Vector {
    /// Its values.
    Float(Vec<f32>),
    /// Their bytes.
    Base64(String),
}

/// Answer of `/v1/embeddings`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct EmbeddingResponse {
    /// `embd-…`.
    pub id: String,
    /// `list`.
    pub object: &'static str,
    /// Unix seconds.
    pub created: u64,
    /// The name the request used.
    pub model: String,
    /// In the order of the inputs.
    pub data: Vec<Embedding>,
    /// Token counts.
    pub usage: Usage,
}

/// One vector of [`EmbeddingResponse`].
#[derive(Debug, Serialize, JsonSchema)]
pub struct Embedding {
    /// Which input.
    pub index: usize,
    /// `embedding`.
    pub object: &'static str,
    /// The vector.
    pub embedding: Vector,
}

/// Answer of `/pooling`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct PoolingResponse {
    /// `pool-…`.
    pub id: String,
    /// `list`.
    pub object: &'static str,
    /// Unix seconds.
    pub created: u64,
    /// The name the request used.
    pub model: String,
    /// In the order of the inputs.
    pub data: Vec<PoolingData>,
    /// Token counts.
    pub usage: Usage,
}

/// One vector of [`PoolingResponse`], or one score in a list.
#[derive(Debug, Serialize, JsonSchema)]
pub struct PoolingData {
    /// Which input.
    pub index: usize,
    /// `pooling`.
    pub object: &'static str,
    /// The vector.
    pub data: Vector,
}

/// Bytes in base64 with padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            text.push(match i <= chunk.len() {
                true => char::from(DIGITS[(bits >> (18 - 6 * i)) as usize & 63]),
                false => '=',
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_rfc_4648() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[0xfb, 0xff, 0xfe]), "+//+");
    }

    #[test]
    fn bytes_have_the_type_and_the_order_that_is_asked_for() {
        let encoded = |embed_dtype, endianness| {
            let fields = EmbeddingFields {
                encoding_format: EncodingFormat::Base64,
                embed_dtype,
                endianness,
                ..EmbeddingFields::default()
            };
            match fields.encode(vec![1.0, -2.0]) {
                Vector::Base64(text) => text,
                Vector::Float(_) => panic!("not base64"),
            }
        };
        let little = Endianness::Little;
        assert_eq!(
            encoded(EmbedDtype::Float32, little),
            base64(&[0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0])
        );
        assert_eq!(
            encoded(EmbedDtype::Float32, Endianness::Big),
            base64(&[0x3f, 0x80, 0, 0, 0xc0, 0, 0, 0])
        );
        assert_eq!(
            encoded(EmbedDtype::Float16, little),
            base64(&[0, 0x3c, 0, 0xc0])
        );
        assert_eq!(
            encoded(EmbedDtype::BFloat16, little),
            base64(&[0x80, 0x3f, 0, 0xc0])
        );
    }
}
