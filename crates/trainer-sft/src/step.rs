//! Forward and backward of one micro-batch, layer by layer.
//!
//! Every layer is a small autodiff graph of its own, whose leaves are the layer's input and its trainable tensors. The
//! backward pass walks the layers in reverse and pulls the gradient of each output through its graph with
//! `inner_product(y, dy).backward()`.
//!
//! A GPU takes the step of [`explicit`] instead.
//!
//! With all layers checkpointed, the forward pass keeps only the input of each layer, and the backward pass computes each layer
//! again: a third more work, but the activations of only one layer are in memory at any time. [`Checkpointing`] says how many
//! layers are checkpointed.

mod checkpointing;
pub mod explicit;
mod head;
mod measure;
mod noise;
mod offload;
mod options;
pub(crate) mod rows;

use burn::tensor::Tensor;
use kv_paging::{CausalAttention, Rotary};
use lora_4bit::{AdapterSelection, inner_product};
use model_qwen::{DecoderLayer, QwenModel, is_gpu};

pub use self::checkpointing::Checkpointing;
pub(crate) use self::checkpointing::{CompiledPart, layer_values};
pub(crate) use self::head::lm_head;
use self::head::trained_lm_head;
pub use self::measure::{Means, measure};
pub use self::noise::Noise;
pub use self::options::StepOptions;
use crate::batch::Batch;
use crate::full::embedding_gradient;
use crate::gate::{self, WorkUnit};
use crate::loss::{self, LmHead, Targets, TrainedLmHead};
use crate::parameters::{EMBEDDINGS, GradientStore, Trainable, visit_layer};

/// Whether [`explicit`] computes it: on a GPU, where all rows have the same adapters.
fn is_explicit(model: &QwenModel, adapters: &AdapterSelection) -> bool {
    let is_of_rows = matches!(
        adapters,
        AdapterSelection::PerRow(_) | AdapterSelection::Stacked(_)
    );
    is_gpu(&model.device()) && !is_of_rows
}

/// What the layers of one micro-batch share.
struct Shared<'a> {
    rotary: Rotary,
    attention: CausalAttention,
    adapters: &'a AdapterSelection,
    trainable: Trainable,
}

/// Sums over a batch's targets, without gradients, `[3]`: cross-entropy, targets that are the likeliest token, and entropy of the
/// prediction.
#[must_use]
pub fn forward(model: &QwenModel, batch: &Batch, adapters: &AdapterSelection) -> Tensor<1> {
    if is_explicit(model, adapters) {
        return explicit::forward(model, batch, adapters);
    }
    let x = hidden(model, batch, adapters);
    loss::forward(&lm_head(model), x, &Targets::new(&batch.targets))
}

/// What the last layer gives, without gradients, `[tokens, hidden]`.
pub(crate) fn hidden(model: &QwenModel, batch: &Batch, adapters: &AdapterSelection) -> Tensor<2> {
    if is_explicit(model, adapters) {
        return explicit::hidden(model, batch, adapters);
    }
    let rotary = model.rotary(&batch.positions);
    let mut attention = CausalAttention::new(&batch.lengths);
    let mut x = model.embed(&batch.tokens); // [tokens, hidden]
    for (index, layer) in model.layers.iter().enumerate() {
        gate::pass(WorkUnit::Layer);
        x = layer.forward(index, x, &rotary, adapters, &mut attention); // [tokens, hidden]
    }
    x
}

/// Adds the gradients of `scale` times a batch's summed cross-entropy to `store`.
///
/// Returns the sums of [`forward`], `[3]`, without the scale.
pub fn forward_backward(
    model: &QwenModel,
    batch: &Batch,
    options: StepOptions<'_>,
    scale: f64,
    store: &mut GradientStore,
) -> Tensor<1> {
    if is_explicit(model, options.adapters) {
        return explicit::forward_backward(model, batch, options, scale, store);
    }
    let targets = Targets::new(&batch.targets);
    backward_of_loss(model, batch, options, store, |lm_head, x, trained| {
        loss::backward(lm_head, x, &targets, scale, trained)
    })
}

/// Adds the gradients of a loss to `store`. `loss` gets what the last layer gives, `[tokens, hidden]`, and returns something
/// and the gradient of that.
pub(crate) fn backward_of_loss<L>(
    model: &QwenModel,
    batch: &Batch,
    options: StepOptions<'_>,
    store: &mut GradientStore,
    loss: impl FnOnce(&LmHead, Tensor<2>, Option<TrainedLmHead<'_>>) -> (L, Tensor<2>),
) -> L {
    let StepOptions {
        trainable,
        adapters,
        checkpointing,
        noise,
    } = options;
    if is_explicit(model, adapters) {
        return explicit::backward_of_loss(model, batch, options, store, loss);
    }
    let rotary = model.rotary(&batch.positions);
    let mut shared = Shared {
        rotary,
        attention: CausalAttention::new(&batch.lengths),
        adapters,
        trainable,
    };

    let num_layers = model.layers.len();
    let first_kept = num_layers - checkpointing.num_kept(model, batch.num_tokens());
    let mut kept = Vec::with_capacity(num_layers);
    let mut x = model.embed(&batch.tokens); // [tokens, hidden]
    if let Some(noise) = noise {
        x = noise.add(x, batch); // [tokens, hidden]
    }
    for (index, layer) in model.layers.iter().enumerate() {
        gate::pass(WorkUnit::Layer);
        if index < first_kept {
            kept.push(Kept::Input(x.clone()));
            x = layer.forward(index, x, &shared.rotary, adapters, &mut shared.attention); // [tokens, hidden]
        } else {
            let graph = LayerGraph::new((index, layer), x, &mut shared);
            x = graph.y.clone().inner(); // [tokens, hidden]
            kept.push(Kept::Graph(graph));
        }
    }

    let trained = trained_lm_head(model, trainable, store);
    let (loss_value, mut dx) = loss(&lm_head(model), x, trained);
    for (index, (layer, kept)) in model.layers.iter().zip(kept).enumerate().rev() {
        gate::pass(WorkUnit::Layer);
        let graph = match kept {
            Kept::Input(x) => LayerGraph::new((index, layer), x, &mut shared),
            Kept::Graph(graph) => graph,
        };
        match graph.backward(index, dx, trainable, store) {
            Some(gradient) => dx = gradient, // [tokens, hidden]
            None => return loss_value,
        }
    }
    if trainable.has_embeddings() {
        let vocab = model.embed_tokens.dims()[0];
        store.add(
            EMBEDDINGS,
            Some(embedding_gradient(&batch.tokens, dx, vocab)),
        );
    }
    loss_value
}

/// What the forward pass keeps of a layer.
#[expect(clippy::large_enum_variant, reason = "there is one for each layer")]
enum Kept {
    /// `[tokens, hidden]`.
    Input(Tensor<2>),
    Graph(LayerGraph),
}

/// One layer as an autodiff graph.
struct LayerGraph {
    /// Input, `[tokens, hidden]`.
    x: Tensor<2>,
    /// The layer, its trainable tensors leaves of the graph.
    layer: DecoderLayer,
    /// Output, `[tokens, hidden]`.
    y: Tensor<2>,
}

impl LayerGraph {
    /// Applies layer `index` to `x [tokens, hidden]`.
    fn new((index, layer): (usize, &DecoderLayer), x: Tensor<2>, shared: &mut Shared<'_>) -> Self {
        let is_lowest = index == 0 && !shared.trainable.has_embeddings();
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
        Self { x, layer, y }
    }

    /// Pulls `dy [tokens, hidden]` through the layer.
    ///
    /// Returns the gradient of its input; `None` below the lowest tensor that is trained.
    fn backward(
        mut self,
        index: usize,
        dy: Tensor<2>,
        trainable: Trainable,
        store: &mut GradientStore,
    ) -> Option<Tensor<2>> {
        if !self.y.is_tracked() {
            return None;
        }
        let mut gradients = inner_product(self.y, dy.autodiff()).backward();
        visit_layer(&mut self.layer, index, trainable, &mut |name, parameter| {
            store.add(name, parameter.take_gradient(&mut gradients));
        });
        self.x.grad_remove(&mut gradients)
    }
}
