//! What a folder has in the place of lm_head.

use std::path::Path;

use burn::tensor::{DType, Device, Tensor};

use super::LoadError;
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::config::QwenConfig;
use crate::pooling::ScoreHead;

/// Whether the weights of a folder were saved as those of a model without lm_head, whose names don't begin with `model.`.
///
/// # Errors
/// When the weight files cannot be read.
pub fn is_headless(dir: &Path) -> Result<bool, LoadError> {
    let checkpoint = Checkpoint::open(dir)?;
    Ok(checkpoint.contains("embed_tokens.weight") && !checkpoint.contains("lm_head.weight"))
}

/// The vector whose product with a hidden state is the score, `[hidden]`.
///
/// # Errors
/// When the tensor is missing or has another shape.
pub fn score_weights(dir: &Path, head: ScoreHead) -> Result<Vec<f32>, LoadError> {
    let checkpoint = Checkpoint::open(dir)?;
    let config = QwenConfig::load(dir)?;
    let (vocab, hidden) = (config.vocab_size, config.hidden_size);
    let values = |row: Tensor<2>| -> Vec<f32> {
        let row = row.cast(DType::F32).into_data();
        row.iter::<f32>().collect()
    };
    let tokens = match head {
        ScoreHead::Label => {
            let stored = checkpoint.view("score.weight");
            let num = stored.map_or(1, |stored| *stored.shape().first().unwrap_or(&1));
            let shape = [num.max(1), hidden];
            let score = checkpoint.tensor("score.weight", shape, &Device::flex())?;
            return Ok(values(score));
        }
        ScoreHead::Tokens(tokens) => tokens,
    };
    let names = match config.tie_word_embeddings {
        true => ["model.embed_tokens.weight", "embed_tokens.weight"],
        false => ["lm_head.weight"; 2],
    };
    let [first, second] = names;
    let name = match checkpoint.contains(first) {
        true => first,
        false => second,
    };
    let row = |id: u32| {
        if id as usize >= vocab {
            return Err(CheckpointError::Missing {
                dir: dir.to_owned(),
                name: format!("{name}[{id}]"),
            });
        }
        let lm_head: Tensor<2> = checkpoint.tensor(name, [vocab, hidden], &Device::flex())?;
        Ok(values(lm_head.narrow(0, id as usize, 1)))
    };
    let mut weights = row(tokens.positive)?;
    if let Some(negative) = tokens.negative {
        let negative = row(negative)?;
        (weights.iter_mut().zip(negative)).for_each(|(weight, other)| *weight -= other);
    }
    Ok(weights)
}
