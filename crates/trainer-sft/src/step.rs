//! Forward and backward of one micro-batch, layer by layer.
//!
//! The forward pass keeps only each layer's input. The backward pass walks the layers in reverse: it computes one layer
//! again as a small autodiff graph, whose leaves are the layer's input and its trainable tensors, and pulls the gradient of
//! the layer's output through it with `sum(y · dy).backward()`. At any time one layer's activations are in memory.

use burn::tensor::Tensor;
use kv_paging::CausalAttention;
use lora_4bit::AdapterSelection;
use model_qwen::{DecoderLayer, QwenModel, Rotary};

use crate::batch::Batch;
use crate::full::embedding_gradient;
use crate::loss::{self, Head, HeadNames, Targets};
use crate::parameters::{EMBEDDINGS, FINAL_NORM, GradientStore, LM_HEAD, Trainable, visit_layer};

/// What the layers of one micro-batch share.
struct Shared<'a> {
    rotary: Rotary,
    attention: CausalAttention,
    adapters: &'a AdapterSelection,
    trainable: Trainable,
}

/// Summed cross-entropy of a batch's targets, without gradients: `[1]`.
#[must_use]
pub fn forward(model: &QwenModel, batch: &Batch, adapters: &AdapterSelection) -> Tensor<1> {
    let rotary = model.rotary(&batch.positions);
    let mut attention = CausalAttention::new(&batch.lengths);
    let mut x = model.embed(&batch.tokens); // [tokens, hidden]
    for (index, layer) in model.layers.iter().enumerate() {
        x = layer.forward(index, x, &rotary, adapters, &mut attention); // [tokens, hidden]
    }
    loss::forward(&head(model), x, &Targets::new(&batch.targets))
}

/// Adds the gradients of `scale` times a batch's summed cross-entropy to `store`.
///
/// Returns the summed cross-entropy, `[1]`, without the scale.
pub fn forward_backward(
    model: &QwenModel,
    batch: &Batch,
    (trainable, adapters): (Trainable, &AdapterSelection),
    scale: f64,
    store: &mut GradientStore,
) -> Tensor<1> {
    let rotary = model.rotary(&batch.positions);
    let mut shared = Shared {
        rotary,
        attention: CausalAttention::new(&batch.lengths),
        adapters,
        trainable,
    };

    let mut inputs = Vec::with_capacity(model.layers.len());
    let mut x = model.embed(&batch.tokens); // [tokens, hidden]
    for (index, layer) in model.layers.iter().enumerate() {
        inputs.push(x.clone());
        x = layer.forward(index, x, &shared.rotary, adapters, &mut shared.attention); // [tokens, hidden]
    }

    let names = HeadNames {
        norm: FINAL_NORM,
        lm_head: if model.config.tie_word_embeddings {
            EMBEDDINGS
        } else {
            LM_HEAD
        },
    };
    let trained = (trainable == Trainable::Full).then_some((names, &mut *store));
    let (loss, mut dx) = loss::backward(
        &head(model),
        x,
        &Targets::new(&batch.targets),
        scale,
        trained,
    );

    for (index, (layer, x)) in model.layers.iter().zip(inputs).enumerate().rev() {
        match layer_backward((index, layer), x, dx, &mut shared, store) {
            Some(gradient) => dx = gradient, // [tokens, hidden]
            None => return loss,
        }
    }
    if trainable == Trainable::Full {
        let vocab = model.embed_tokens.dims()[0];
        store.add(
            EMBEDDINGS,
            Some(embedding_gradient(&batch.tokens, dx, vocab)),
        );
    }
    loss
}

/// Computes layer `index` again on its input `x [tokens, hidden]` and pulls `dy [tokens, hidden]` through it.
///
/// Returns the gradient of `x`; `None` below the lowest tensor that is trained.
fn layer_backward(
    (index, layer): (usize, &DecoderLayer),
    x: Tensor<2>,
    dy: Tensor<2>,
    shared: &mut Shared<'_>,
    store: &mut GradientStore,
) -> Option<Tensor<2>> {
    let is_lowest = index == 0 && shared.trainable != Trainable::Full;
    let x = if is_lowest {
        x.autodiff()
    } else {
        x.autodiff().require_grad()
    };
    let mut layer = layer.clone();
    visit_layer(&mut layer, index, shared.trainable, &mut |_, parameter| {
        parameter.make_leaf()
    });
    let y = layer.forward(
        index,
        x.clone(),
        &shared.rotary,
        shared.adapters,
        &mut shared.attention,
    ); // [tokens, hidden]
    if !y.is_tracked() {
        return None;
    }
    let mut gradients = (y * dy.autodiff()).sum().backward();
    visit_layer(
        &mut layer,
        index,
        shared.trainable,
        &mut |name, parameter| {
            store.add(name, parameter.take_gradient(&mut gradients));
        },
    );
    x.grad_remove(&mut gradients)
}

fn head(model: &QwenModel) -> Head {
    Head {
        norm: model.norm.clone(),
        norm_eps: model.config.rms_norm_eps,
        lm_head: model.lm_head.clone(),
    }
}
