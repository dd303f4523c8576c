//! What a folder has in the place of lm_head.

use std::path::Path;

use burn::tensor::{DType, Device, Tensor};
use lora_4bit::bnb;
use safetensors::tensor::TensorView;

use super::error::LoadError;
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::config::QwenConfig;
use crate::pooling::ScoreHead;

const LM_HEAD_WEIGHT: &str = "lm_head.weight";
const EMBEDDING: &str = "model.embed_tokens.weight";

/// Maps the weight files of a folder. An lm_head that is stored alone is the embedding, too, where both are the same.
pub(crate) fn open(dir: &Path, config: &QwenConfig) -> Result<Checkpoint, CheckpointError> {
    let mut checkpoint = Checkpoint::open(dir)?;
    let has_embedding = checkpoint.contains(&checkpoint.stored(EMBEDDING));
    if config.tie_word_embeddings && !has_embedding {
        checkpoint.rename(LM_HEAD_WEIGHT, EMBEDDING);
    }
    Ok(checkpoint)
}

/// Says that lm_head and embedding are not the same where the files have another matrix for each, whatever `config.json` says of
/// them, as transformers does. Returns whether it was so.
pub(super) fn untie(checkpoint: &Checkpoint, config: &mut QwenConfig) -> bool {
    if !config.tie_word_embeddings {
        return false;
    }
    let embedding = checkpoint.stored(EMBEDDING);
    let are_others = match (checkpoint.view(LM_HEAD_WEIGHT), checkpoint.view(&embedding)) {
        (Some(head), Some(embedding)) => !are_equal(&head, &embedding),
        _ => false,
    };
    config.tie_word_embeddings = !are_others;
    are_others
}

/// Whether two tensors have the same values, whichever their dtypes.
fn are_equal(a: &TensorView<'_>, b: &TensorView<'_>) -> bool {
    const VALUES: usize = 1 << 16;
    if a.shape() != b.shape() {
        return false;
    }
    if a.dtype() == b.dtype() {
        return a.data() == b.data();
    }
    let parts = |view: &TensorView<'_>| VALUES * view.dtype().bitsize() / 8;
    let values = |view: &TensorView<'_>, bytes: &[u8]| {
        bnb::decode_floats(view.dtype(), bytes).map(|(_, values)| values)
    };
    let mut pairs = a.data().chunks(parts(a)).zip(b.data().chunks(parts(b)));
    pairs.all(|(one, two)| matches!((values(a, one), values(b, two)), (Some(x), Some(y)) if x == y))
}

/// Whether the weights of a folder were saved as those of a model without lm_head, whose names don't begin with `model.`.
///
/// # Errors
/// When the weight files cannot be read.
pub fn is_headless(dir: &Path) -> Result<bool, LoadError> {
    let checkpoint = Checkpoint::open(dir)?;
    Ok(checkpoint.contains("embed_tokens.weight") && !checkpoint.contains(LM_HEAD_WEIGHT))
}

/// The vector whose product with a hidden state is the score, `[hidden]`.
///
/// # Errors
/// When the tensor is missing or has another shape.
pub fn score_weights(dir: &Path, head: ScoreHead) -> Result<Vec<f32>, LoadError> {
    let mut config = QwenConfig::load(dir)?;
    let checkpoint = open(dir, &config)?;
    untie(&checkpoint, &mut config);
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
            checkpoint.check_finite("score.weight")?;
            return Ok(values(score));
        }
        ScoreHead::Tokens(tokens) => tokens,
    };
    let name = &match config.tie_word_embeddings {
        true => checkpoint.stored(EMBEDDING),
        false => LM_HEAD_WEIGHT.to_owned(),
    };
    checkpoint.check_finite(name)?;
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
