//! The model's lm_head as the losses take it.

use model_qwen::QwenModel;

use crate::loss::{LmHead, LmHeadNames, TrainedLmHead};
use crate::parameters::{EMBEDDINGS, FINAL_NORM, GradientStore, LM_HEAD, Trainable};

/// What turns the last layer's output into logits.
pub(crate) fn lm_head(model: &QwenModel) -> LmHead {
    LmHead {
        norm: model.norm.clone(),
        norm_eps: model.config.rms_norm_eps,
        projection: model.lm_head.clone(),
    }
}

/// The model's lm_head, where it is trained.
pub(super) fn trained_lm_head<'a>(
    model: &QwenModel,
    trainable: Trainable,
    store: &'a mut GradientStore,
) -> Option<TrainedLmHead<'a>> {
    let names = LmHeadNames {
        norm: trainable.is_full().then_some(FINAL_NORM),
        lm_head: match model.config.tie_word_embeddings {
            true => EMBEDDINGS,
            false => LM_HEAD,
        },
    };
    (trainable.has_lm_head()).then_some(TrainedLmHead { names, store })
}
