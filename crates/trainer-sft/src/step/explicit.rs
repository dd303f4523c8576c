//! The step of a GPU, forward and backward written down operation by operation, without autodiff graphs: of an adapter, or of
//! every weight.
//!
//! So each tensor has the type that its reader multiplies (bf16 on tensor cores, unless the layers compute in f32), is freed
//! after its last reader, and is overwritten where nobody reads it again. Only the input of each layer is kept, and the backward
//! pass computes the layer again; [`Checkpointing::Off`] keeps all activations instead, [`Checkpointing::Layers`] those of the last
//! layers, and [`Checkpointing::Offload`] keeps the inputs on the host. Weights that are trained are f32, and rounded to the type of
//! products each time they are read.

mod gradient_sink;

use burn::tensor::{DType, Tensor, TensorData};
use kv_paging::{HeadNormInput, HeadNorms, HeadShape, Rotary, TrainingAttention};
use lora_4bit::training::{
    Group, dtype_of, rms_norm, rms_norm_backward, rms_norm_weight_gradient, swiglu, swiglu_backward,
};
use lora_4bit::{AdapterSelection, ComputeDtype, Dropout, Norm};
use model_qwen::kernels::cross_entropy_of_rows;
use model_qwen::{DecoderLayer, LINEARS, QwenModel};

use self::gradient_sink::GradientSink;
use crate::batch::Batch;
use crate::full::embedding_gradient;
use crate::gate::{self, WorkUnit};
use crate::loss::{LmHead, Targets, TrainedLmHead, indices, spread};
use crate::parameters::{EMBEDDINGS, GradientStore};
use crate::step::checkpointing::Checkpointing;
use crate::step::head::{lm_head, trained_lm_head};
use crate::step::offload::{Offload, bring_back};
use crate::step::options::StepOptions;

/// Rows of a batch are a multiple of this: gradients of weights are sums over rows, and kernels take so many at once.
pub(crate) const ROWS: usize = 64;
/// Logits that one chunk of the loss may hold: 512 rows of Qwen's vocabulary (about 156 MB in bf16).
const MAX_LOSS_LOGITS: usize = 512 * 151_936;

/// Rows whose logits are there at a time, in the loss of this module; the losses of [`crate::loss`] have chunks of their own.
pub(crate) fn loss_chunk_rows(vocab: usize) -> usize {
    (MAX_LOSS_LOGITS / vocab.max(1)).max(ROWS) / ROWS * ROWS
}

/// What the layers of one micro-batch share.
struct Shared<'a> {
    attention: TrainingAttention,
    rotary: Rotary,
    /// The slot of the adapters, and their dropout.
    adapters: Option<(usize, Option<Dropout>)>,
    dtype: DType,
    model: &'a QwenModel,
}

/// A decoder layer with its weights ready for products.
struct Layer<'a> {
    layer: &'a DecoderLayer,
    qkv: Group,
    o: Group,
    gate_up: Group,
    down: Group,
}

/// What the backward pass reads of a layer's forward pass; `h` is of the adapters, see [`Group`].
struct Activations {
    attended: Attended,
    gate_up_h: Option<Tensor<2>>,
    /// `[tokens, 2 * intermediate]`.
    gate_up: Tensor<2>,
}

/// Of it, what comes before gate and up.
struct Attended {
    /// Input, `[tokens, hidden]`.
    x: Tensor<2>,
    /// `[tokens, hidden]`.
    normed: Tensor<2>,
    qkv_h: Option<Tensor<2>>,
    /// Before the rotation, `[tokens, (heads + 2 * kv_heads) * head_dim]`; where heads have norms.
    unrotated: Option<Tensor<2>>,
    /// `[tokens, (heads + 2 * kv_heads) * head_dim]`.
    qkv: Tensor<2>,
    /// `[tokens, heads * head_dim]`.
    attended: Tensor<2>,
    /// `[tokens, heads]`, f32.
    lse: Tensor<2>,
    o_h: Option<Tensor<2>>,
    /// After attention, `[tokens, hidden]`.
    middle: Tensor<2>,
    /// `[tokens, hidden]`.
    middle_normed: Tensor<2>,
}

/// What the forward pass keeps of a layer.
#[expect(clippy::large_enum_variant, reason = "there is one for each layer")]
enum Kept {
    /// `[tokens, hidden]`.
    Input(Tensor<2>),
    /// The same in the host's memory.
    OnHost(TensorData),
    Activations(Activations),
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
    let targets = Targets::new(&batch.targets);
    forward_backward_with(model, batch, options, store, |x, trained, shared| {
        let (sums, gradients) = loss(x, &targets, Some((scale, trained)), shared);
        (sums, spread(gradients, &targets, x))
    })
}

/// Adds the gradients of a loss to `store`, as `step::backward_of_loss` does.
pub fn backward_of_loss<L>(
    model: &QwenModel,
    batch: &Batch,
    options: StepOptions<'_>,
    store: &mut GradientStore,
    loss: impl FnOnce(&LmHead, Tensor<2>, Option<TrainedLmHead<'_>>) -> (L, Tensor<2>),
) -> L {
    let num_tokens = batch.num_tokens();
    forward_backward_with(model, batch, options, store, |x, trained, shared| {
        let own = x.clone().narrow(0, 0, num_tokens).cast(DType::F32); // [num_tokens, hidden]
        let (loss_value, dx) = loss(&lm_head(model), own, trained);
        (loss_value, full_rows(dx.cast(shared.dtype))) // [rows, hidden]
    })
}

/// What the last layer gives, without gradients, f32: `[tokens, hidden]`.
#[must_use]
pub fn hidden(model: &QwenModel, batch: &Batch, adapters: &AdapterSelection) -> Tensor<2> {
    let num_tokens = batch.num_tokens();
    let batch = padded(batch);
    let shared = Shared::new(model, &batch, adapters);
    let x = forward_layers(&batch, &shared); // [rows, hidden]
    x.narrow(0, 0, num_tokens).cast(DType::F32)
}

/// The layers forward, the loss, and the layers backward. `loss` gets what the last layer gives, `[rows, hidden]`, and returns
/// something and the gradient of that.
fn forward_backward_with<L>(
    model: &QwenModel,
    batch: &Batch,
    options: StepOptions<'_>,
    store: &mut GradientStore,
    loss: impl FnOnce(&Tensor<2>, Option<TrainedLmHead<'_>>, &Shared<'_>) -> (L, Tensor<2>),
) -> L {
    let StepOptions {
        trainable,
        adapters,
        checkpointing,
        noise,
    } = options;
    let num_tokens = batch.num_tokens();
    let batch = padded(batch);
    let shared = Shared::new(model, &batch, adapters);
    let mut kept = Vec::with_capacity(model.layers.len());
    let offload = (checkpointing == Checkpointing::Offload).then(Offload::new);
    let mut x = model.embed(&batch.tokens); // [tokens, hidden]
    if let Some(noise) = noise {
        x = noise.add(x, &batch); // [tokens, hidden]
    }
    x = x.cast(shared.dtype);
    let first_kept = checkpointing.first_kept(model.layers.len());
    for (index, layer) in model.layers.iter().enumerate() {
        gate::pass(WorkUnit::Layer);
        let layer = Layer::new(layer, &shared);
        if index >= first_kept {
            let activations = layer.activations(x, &shared);
            x = layer.end(&activations); // [tokens, hidden]
            kept.push(Kept::Activations(activations));
            continue;
        }
        let y = layer.forward(x.clone(), &shared);
        match &offload {
            Some(offload) => offload.take(x),
            None => kept.push(Kept::Input(x)),
        }
        x = y; // [tokens, hidden]
    }
    let trained = trained_lm_head(model, trainable, store);
    let (loss_value, mut dx) = loss(&x, trained, &shared);
    drop(x);
    if let Some(offload) = offload {
        kept.extend(offload.finish().into_iter().map(Kept::OnHost));
    }
    for (index, (layer, kept)) in model.layers.iter().zip(kept).enumerate().rev() {
        gate::pass(WorkUnit::Layer);
        let layer = Layer::new(layer, &shared);
        let activations = match kept {
            Kept::Activations(activations) => activations,
            Kept::Input(x) => layer.activations(x, &shared),
            Kept::OnHost(x) => layer.activations(bring_back(x, &model.device()), &shared),
        };
        let mut sink = GradientSink {
            index,
            trainable,
            store,
        };
        dx = layer.backward(activations, dx, &shared, &mut sink); // [tokens, hidden]
    }
    if trainable.has_embeddings() {
        let vocab = model.embed_tokens.dims()[0];
        let dx = dx.narrow(0, 0, num_tokens).cast(DType::F32); // [tokens, hidden]
        let tokens = &batch.tokens[..num_tokens];
        store.add(EMBEDDINGS, Some(embedding_gradient(tokens, dx, vocab)));
    }
    loss_value
}

/// Sums over a batch's targets, without gradients, `[3]`: see [`super::forward`].
#[must_use]
pub fn forward(model: &QwenModel, batch: &Batch, adapters: &AdapterSelection) -> Tensor<1> {
    let batch = padded(batch);
    let shared = Shared::new(model, &batch, adapters);
    let x = forward_layers(&batch, &shared); // [rows, hidden]
    loss(&x, &Targets::new(&batch.targets), None, &shared).0
}

/// All layers forward: `[rows, hidden]`.
fn forward_layers(batch: &Batch, shared: &Shared<'_>) -> Tensor<2> {
    let mut x = shared.model.embed(&batch.tokens).cast(shared.dtype); // [rows, hidden]
    for layer in &shared.model.layers {
        gate::pass(WorkUnit::Layer);
        x = Layer::new(layer, shared).forward(x, shared); // [rows, hidden]
    }
    x
}

impl<'a> Shared<'a> {
    fn new(model: &'a QwenModel, batch: &Batch, adapters: &AdapterSelection) -> Self {
        let adapters = match adapters {
            AdapterSelection::All { slot, dropout } => Some((*slot, *dropout)),
            AdapterSelection::Base | AdapterSelection::PerRow(_) | AdapterSelection::Stacked(_) => {
                None
            }
        };
        let (device, config) = (model.device(), &model.config);
        let shape = HeadShape {
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
        };
        Self {
            attention: TrainingAttention::new(&batch.lengths, shape, &device),
            rotary: model.rotary(&batch.positions),
            adapters,
            dtype: dtype(model),
            model,
        }
    }
}

/// The type of activations, and of weights in products: f32 unless the layers may round.
fn dtype(model: &QwenModel) -> DType {
    match model.lm_head.compute {
        ComputeDtype::Bf16 => dtype_of(&model.device()),
        ComputeDtype::F32 | ComputeDtype::Auto | ComputeDtype::Bits16 => DType::F32,
    }
}

/// The batch with rows behind its documents up to a multiple of [`ROWS`].
fn padded(batch: &Batch) -> Batch {
    let mut batch = batch.clone();
    let rows = batch.num_tokens().next_multiple_of(ROWS);
    batch.tokens.resize(rows, 0);
    batch.positions.resize(rows, 0);
    batch.targets.resize(rows, None);
    batch
}

impl<'a> Layer<'a> {
    fn new(layer: &'a DecoderLayer, shared: &Shared<'_>) -> Self {
        let group = |layers: &[_]| Group::new(layers, shared.adapters, shared.dtype);
        let (attn, mlp) = (&layer.self_attn, &layer.mlp);
        Self {
            layer,
            qkv: group(&[&attn.q_proj, &attn.k_proj, &attn.v_proj]),
            o: group(&[&attn.o_proj]),
            gate_up: group(&[&mlp.gate_proj, &mlp.up_proj]),
            down: group(&[&mlp.down_proj]),
        }
    }

    fn norm<'n>(&self, weight: &'n Tensor<1>) -> Norm<'n> {
        Norm {
            weight,
            eps: self.layer.rms_norm_eps,
        }
    }

    fn head_norms(&self) -> Option<HeadNorms<'a>> {
        let attn = &self.layer.self_attn;
        let (q, k) = (attn.q_norm.as_ref()?, attn.k_norm.as_ref()?);
        let eps = self.layer.rms_norm_eps;
        Some(HeadNorms { q, k, eps })
    }

    /// `x [tokens, hidden]` → `[tokens, hidden]`.
    fn forward(&self, x: Tensor<2>, shared: &Shared<'_>) -> Tensor<2> {
        let Attended {
            middle,
            middle_normed,
            ..
        } = self.attend(x, shared);
        let activated = self.gate_up.forward_gated(&middle_normed); // [tokens, intermediate]
        drop(middle_normed);
        self.down.forward(&activated, Some(middle)).0
    }

    /// What the backward pass reads; [`Layer::end`] gives the result.
    fn activations(&self, x: Tensor<2>, shared: &Shared<'_>) -> Activations {
        let attended = self.attend(x, shared);
        let (gate_up, gate_up_h) = self.gate_up.forward(&attended.middle_normed, None);
        Activations {
            attended,
            gate_up_h,
            gate_up,
        }
    }

    /// The result, `[tokens, hidden]`.
    fn end(&self, a: &Activations) -> Tensor<2> {
        let activated = swiglu(a.gate_up.clone()); // [tokens, intermediate]
        let middle = a.attended.middle.clone();
        self.down.forward(&activated, Some(middle)).0
    }

    /// The layer up to the input of its second half.
    fn attend(&self, x: Tensor<2>, shared: &Shared<'_>) -> Attended {
        let normed = rms_norm(x.clone(), self.norm(&self.layer.input_layernorm));
        let (qkv, qkv_h) = self.qkv.forward(&normed, None);
        let norms = self.head_norms();
        let unrotated = norms.is_some().then(|| qkv.clone());
        let qkv = shared.attention.rotate(qkv, norms, &shared.rotary);
        let (attended, lse) = shared.attention.forward(qkv.clone());
        let (middle, o_h) = self.o.forward(&attended, Some(x.clone()));
        let norm = self.norm(&self.layer.post_attention_layernorm);
        let middle_normed = rms_norm(middle.clone(), norm);
        Attended {
            x,
            normed,
            qkv_h,
            unrotated,
            qkv,
            attended,
            lse,
            o_h,
            middle,
            middle_normed,
        }
    }

    /// The gradient of the input from that of the result, both `[tokens, hidden]`.
    fn backward(
        &self,
        activations: Activations,
        dy: Tensor<2>,
        shared: &Shared<'_>,
        sink: &mut GradientSink<'_>,
    ) -> Tensor<2> {
        let Activations {
            attended: a,
            gate_up_h,
            gate_up,
        } = activations;
        let (attn, mlp) = (&self.layer.self_attn, &self.layer.mlp);
        let [q, k, v, o, gate, up, down] = LINEARS;
        let dz = self.down.scaled(&dy); // [tokens, hidden]
        let dh = self.down.adapter_input(&dz);
        let d = self.down.input_gradient([&dy, &dz], dh.clone()); // [tokens, intermediate]
        let (d, activated) = swiglu_backward(gate_up, d);
        sink.weights(&self.down, &[(down, &mlp.down_proj)], &activated, &dy);
        let down_h = self.down.shrink(&activated);
        sink.magnitudes(
            &[down],
            self.down
                .magnitude_gradients(&activated, down_h.as_ref(), &dy),
        );
        let sums = sink.sums(&[down]);
        let dh = dh.as_ref();
        let gradients = (self.down).adapter_gradients(activated, down_h, &dz, dh, &sums);
        sink.adapters(&[down], gradients);

        let layers = [(gate, &mlp.gate_proj), (up, &mlp.up_proj)];
        sink.weights(&self.gate_up, &layers, &a.middle_normed, &d);
        let gradients =
            (self.gate_up).magnitude_gradients(&a.middle_normed, gate_up_h.as_ref(), &d);
        sink.magnitudes(&[gate, up], gradients);
        let sums = sink.sums(&[gate, up]);
        let (d, gradients) = self.gate_up.backward(a.middle_normed, gate_up_h, &d, &sums);
        sink.adapters(&[gate, up], gradients);
        let norm = self.norm(&self.layer.post_attention_layernorm);
        sink.norm("post_attention_layernorm", &a.middle, norm, &d);
        let dy = rms_norm_backward(a.middle, norm, d, Some(dy)); // [tokens, hidden]

        sink.weights(&self.o, &[(o, &attn.o_proj)], &a.attended, &dy);
        sink.magnitudes(
            &[o],
            self.o.magnitude_gradients(&a.attended, a.o_h.as_ref(), &dy),
        );
        let sums = sink.sums(&[o]);
        let (d, gradients) = self.o.backward(a.attended.clone(), a.o_h, &dy, &sums);
        sink.adapters(&[o], gradients);
        let d = shared.attention.backward(a.qkv, a.attended, a.lse, d);
        let head_norms = self.head_norms().zip(a.unrotated);
        let head_norms = head_norms.map(|(norms, qkv)| HeadNormInput { qkv, norms });
        if let Some(HeadNormInput { qkv, norms }) = &head_norms
            && sink.trainable.is_full()
        {
            let d = (shared.attention).rotate_backward(d.clone(), None, &shared.rotary);
            sink.head_norms(*norms, qkv, &d, &shared.model.config);
        }
        let d = (shared.attention).rotate_backward(d, head_norms, &shared.rotary);
        let layers = [(q, &attn.q_proj), (k, &attn.k_proj), (v, &attn.v_proj)];
        sink.weights(&self.qkv, &layers, &a.normed, &d);
        sink.magnitudes(
            &[q, k, v],
            self.qkv
                .magnitude_gradients(&a.normed, a.qkv_h.as_ref(), &d),
        );
        let sums = sink.sums(&[q, k, v]);
        let (d, gradients) = self.qkv.backward(a.normed, a.qkv_h, &d, &sums);
        sink.adapters(&[q, k, v], gradients);
        let norm = self.norm(&self.layer.input_layernorm);
        sink.norm("input_layernorm", &a.x, norm, &d);
        rms_norm_backward(a.x, norm, d, Some(dy))
    }
}

/// The sums of [`forward`] over the rows of `hidden [tokens, hidden]` that have a target, and with a scale the gradient of
/// the cross-entropy times that: of these rows, a chunk after the other, `[rows, hidden]`. The logits of a chunk become their
/// gradient. Those of an lm_head and a final norm that are trained go to the store.
fn loss(
    hidden: &Tensor<2>,
    targets: &Targets,
    learns: Option<(f64, Option<TrainedLmHead<'_>>)>,
    shared: &Shared<'_>,
) -> (Tensor<1>, Vec<Tensor<2>>) {
    let model = shared.model;
    let device = hidden.device();
    let norm = || Norm {
        weight: &model.norm,
        eps: model.config.rms_norm_eps,
    };
    let lm_head = Group::new(&[&model.lm_head], None, shared.dtype);
    let chunk = loss_chunk_rows(model.lm_head.out_features());
    let (scale, mut trained) = match learns {
        Some((scale, trained)) => (Some(scale), trained),
        None => (None, None),
    };
    let (mut sums, mut gradients) = (Vec::new(), Vec::new());
    for (rows, tokens) in targets.chunks(chunk) {
        gate::pass(WorkUnit::Layer);
        let x = hidden.clone().select(0, indices(rows, &device)); // [rows, hidden]
        let normed = rms_norm(x.clone(), norm()); // [rows, hidden]
        let (logits, _) = lm_head.forward(&normed, None); // [rows, vocab]
        let (row_stats, d) = cross_entropy_of_rows(logits, tokens, scale.unwrap_or(1.0));
        sums.push(row_stats.sum_dim(0).squeeze_dim::<1>(0)); // [3]
        if let Some(TrainedLmHead { names, store }) = &mut trained {
            let gradient = lm_head.weight_gradient(full_rows(normed), &full_rows(d.clone()));
            store.add(names.lm_head, Some(gradient));
        }
        if scale.is_some() {
            let (d, _) = lm_head.backward(x.clone(), None, &d, &[]); // [rows, hidden]
            if let Some(TrainedLmHead { names, store }) = &mut trained
                && let Some(name) = names.norm
            {
                let (x, d) = (full_rows(x.clone()), full_rows(d.clone()));
                store.add(name, Some(rms_norm_weight_gradient(x, norm(), d)));
            }
            gradients.push(rms_norm_backward(x, norm(), d, None));
        }
    }
    let zero = Tensor::zeros([3], (&device, DType::F32));
    let sums = sums.into_iter().fold(zero, |total, sums| total + sums);
    (sums, gradients)
}

/// With rows of zeros up to a multiple of [`ROWS`].
fn full_rows(x: Tensor<2>) -> Tensor<2> {
    let [rows, columns] = x.dims();
    match rows.next_multiple_of(ROWS) - rows {
        0 => x,
        behind => {
            let zeros = Tensor::zeros([behind, columns], (&x.device(), x.dtype()));
            Tensor::cat(vec![x, zeros], 0)
        }
    }
}
