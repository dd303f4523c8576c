//! The trainable tensors, seen one by one under their names.
//!
//! A run trains either the adapter in one slot or every weight. The rest of the trainer does not care which: it walks over
//! a layer's parameters to make them leaves of an autodiff graph, to collect their gradients, and to update them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use burn::tensor::{DType, Device, Gradients, Tensor};
use lora_4bit::training::{AdapterGradients, add_in_place, sums_of_squares};
use lora_4bit::{Linear, Weight};
use model_qwen::{DecoderLayer, QwenModel};

use crate::flat::{Flat, FlatLayout};

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trainable {
    /// A and B of the LoRA adapter in this slot, with DoRA also the magnitudes.
    Adapter {
        /// Slot of the adapter in every linear layer.
        slot: usize,
    },
    /// The same, and the whole weights of embedding or lm_head; those must be dense and f32, and not one tensor.
    AdapterAndModules {
        /// Slot of the adapter in every linear layer.
        slot: usize,
        /// Whether the embedding is trained.
        embed_tokens: bool,
        /// Whether lm_head is.
        lm_head: bool,
    },
    /// Every weight, bias, norm and the embeddings; they must be dense and f32.
    Full,
}

impl Trainable {
    /// Whether every weight is trained, and no adapter.
    #[must_use]
    pub fn is_full(self) -> bool {
        self == Self::Full
    }

    /// The slot of the adapter.
    #[must_use]
    pub fn slot(self) -> Option<usize> {
        match self {
            Self::Adapter { slot } | Self::AdapterAndModules { slot, .. } => Some(slot),
            Self::Full => None,
        }
    }

    /// Whether the embedding is trained.
    #[must_use]
    pub fn has_embeddings(self) -> bool {
        match self {
            Self::Adapter { .. } => false,
            Self::AdapterAndModules { embed_tokens, .. } => embed_tokens,
            Self::Full => true,
        }
    }

    /// Whether lm_head is trained.
    #[must_use]
    pub fn has_lm_head(self) -> bool {
        match self {
            Self::Adapter { .. } => false,
            Self::AdapterAndModules { lm_head, .. } => lm_head,
            Self::Full => true,
        }
    }
}

/// One trainable tensor, borrowed from its model.
#[derive(Debug)]
pub enum ParameterMut<'a> {
    /// A bias or the weight of a norm: no weight decay.
    Vector(&'a mut Tensor<1>),
    /// DoRA's magnitudes: subject to weight decay.
    Magnitudes(&'a mut Tensor<1>),
    /// A weight matrix: subject to weight decay.
    Matrix(&'a mut Tensor<2>),
}

impl ParameterMut<'_> {
    /// Makes the tensor a leaf of autodiff graphs.
    pub fn make_leaf(self) {
        match self {
            Self::Vector(tensor) | Self::Magnitudes(tensor) => {
                *tensor = tensor.clone().autodiff().require_grad()
            }
            Self::Matrix(tensor) => *tensor = tensor.clone().autodiff().require_grad(),
        }
    }

    /// Takes the gradient of a leaf, as `[numel]`; `None` when the graph did not reach it.
    pub fn take_gradient(self, gradients: &mut Gradients) -> Option<Tensor<1>> {
        match self {
            Self::Vector(tensor) | Self::Magnitudes(tensor) => tensor.grad_remove(gradients),
            Self::Matrix(tensor) => tensor.grad_remove(gradients).map(flat),
        }
    }

    /// Whether weight decay applies.
    #[must_use]
    pub fn decays(&self) -> bool {
        matches!(self, Self::Matrix(_) | Self::Magnitudes(_))
    }

    /// Rows and columns; of a vector one row.
    #[must_use]
    pub fn dims(&self) -> [usize; 2] {
        match self {
            Self::Vector(tensor) | Self::Magnitudes(tensor) => [1, tensor.dims()[0]],
            Self::Matrix(tensor) => tensor.dims(),
        }
    }

    /// Number of values.
    #[must_use]
    pub fn num_values(&self) -> usize {
        self.dims().iter().product()
    }

    /// The value as `[numel]`.
    #[must_use]
    pub fn value(&self) -> Tensor<1> {
        match self {
            Self::Vector(tensor) | Self::Magnitudes(tensor) => (**tensor).clone(),
            Self::Matrix(tensor) => flat((**tensor).clone()),
        }
    }

    /// Replaces the value by `new(value)`, both `[numel]`. `new` gets the only handle, so that it may write in place.
    pub fn replace(self, new: impl FnOnce(Tensor<1>) -> Tensor<1>) {
        match self {
            Self::Vector(tensor) | Self::Magnitudes(tensor) => *tensor = new(take(tensor)),
            Self::Matrix(tensor) => {
                let dims = tensor.dims();
                *tensor = new(flat(take(tensor))).reshape(dims);
            }
        }
    }
}

/// The tensor itself, not a second handle; an empty one takes its place.
fn take<const D: usize>(tensor: &mut Tensor<D>) -> Tensor<D> {
    let empty = Tensor::empty([0; D], (&tensor.device(), DType::F32));
    std::mem::replace(tensor, empty)
}

/// `[rows, columns]` → `[rows · columns]`.
pub(crate) fn flat(tensor: Tensor<2>) -> Tensor<1> {
    let [rows, columns] = tensor.dims();
    tensor.reshape([rows * columns])
}

/// Calls `visit` with each trainable tensor of layer `index` and its name.
pub fn visit_layer(
    layer: &mut DecoderLayer,
    index: usize,
    trainable: Trainable,
    visit: &mut dyn FnMut(&str, ParameterMut<'_>),
) {
    let prefix = format!("model.layers.{index}");
    for (name, linear) in layer.linears_mut() {
        visit_linear(linear, &format!("{prefix}.{name}"), trainable, visit);
    }
    if trainable.is_full() {
        for (name, norm) in norms_mut(layer) {
            visit(
                &format!("{prefix}.{name}.weight"),
                ParameterMut::Vector(norm),
            );
        }
    }
}

/// Calls `visit` with each trainable tensor of the model and its name, in this order: layers, final norm, embeddings,
/// untied lm_head.
pub fn visit_model(
    model: &mut QwenModel,
    trainable: Trainable,
    visit: &mut dyn FnMut(&str, ParameterMut<'_>),
) {
    for (index, layer) in model.layers.iter_mut().enumerate() {
        visit_layer(layer, index, trainable, visit);
    }
    if let Trainable::AdapterAndModules { .. } = trainable {
        if trainable.has_embeddings() {
            visit(EMBEDDINGS, ParameterMut::Matrix(&mut model.embed_tokens));
        }
        if let (true, Weight::Dense(weight)) = (trainable.has_lm_head(), &mut model.lm_head.weight)
        {
            visit(LM_HEAD, ParameterMut::Matrix(weight));
        }
    }
    if trainable.is_full() {
        visit(FINAL_NORM, ParameterMut::Vector(&mut model.norm));
        if model.config.tie_word_embeddings {
            // Otherwise lm_head is a second handle of the embeddings while they are visited.
            let device = model.embed_tokens.device();
            model.lm_head.weight = Weight::Dense(Tensor::empty([0, 0], (&device, DType::F32)));
        }
        visit(EMBEDDINGS, ParameterMut::Matrix(&mut model.embed_tokens));
        if model.config.tie_word_embeddings {
            model.lm_head.weight = Weight::Dense(model.embed_tokens.clone());
        } else {
            visit_linear(&mut model.lm_head, "lm_head", trainable, visit);
        }
    }
}

/// How the name of an adapter's A ends.
pub const LORA_A: &str = ".lora_A";
/// How the name of an adapter's B, transposed, ends.
pub const LORA_B: &str = ".lora_B_t";
/// How the name of DoRA's magnitudes ends.
pub const LORA_MAGNITUDE: &str = ".lora_magnitude_vector";
/// Name of the embeddings, which are also lm_head of a model that ties them.
pub const EMBEDDINGS: &str = "model.embed_tokens.weight";
/// Name of the final norm's weight.
pub const FINAL_NORM: &str = "model.norm.weight";
/// Name of an untied lm_head's weight.
pub const LM_HEAD: &str = "lm_head.weight";

fn visit_linear(
    linear: &mut Linear,
    name: &str,
    trainable: Trainable,
    visit: &mut dyn FnMut(&str, ParameterMut<'_>),
) {
    match trainable {
        Trainable::Adapter { slot } | Trainable::AdapterAndModules { slot, .. } => {
            if let Some(adapter) = linear.adapter_mut(slot) {
                visit(
                    &format!("{name}{LORA_A}"),
                    ParameterMut::Matrix(&mut adapter.a),
                );
                visit(
                    &format!("{name}{LORA_B}"),
                    ParameterMut::Matrix(&mut adapter.b_t),
                );
                if let Some(dora) = &mut adapter.dora {
                    visit(
                        &format!("{name}{LORA_MAGNITUDE}"),
                        ParameterMut::Magnitudes(&mut dora.magnitude),
                    );
                }
            }
        }
        Trainable::Full => {
            if let Weight::Dense(weight) = &mut linear.weight {
                visit(&format!("{name}.weight"), ParameterMut::Matrix(weight));
            }
            if let Some(bias) = &mut linear.bias {
                visit(&format!("{name}.bias"), ParameterMut::Vector(bias));
            }
        }
    }
}

/// The norms of a layer with their names within it.
fn norms_mut(layer: &mut DecoderLayer) -> impl Iterator<Item = (&'static str, &mut Tensor<1>)> {
    let attn = &mut layer.self_attn;
    [
        ("input_layernorm", Some(&mut layer.input_layernorm)),
        ("self_attn.q_norm", attn.q_norm.as_mut()),
        ("self_attn.k_norm", attn.k_norm.as_mut()),
        (
            "post_attention_layernorm",
            Some(&mut layer.post_attention_layernorm),
        ),
    ]
    .into_iter()
    .filter_map(|(name, norm)| norm.map(|norm| (name, norm)))
}

/// Gradients in f32 by parameter name, `[numel]` each, summed over the micro-batches of one optimizer step.
#[derive(Debug, Default)]
pub struct GradientStore {
    gradients: BTreeMap<String, Tensor<1>>,
    /// Buffers that hold all gradients besides those of `flat`, and else only zeros; empty if each gradient is a tensor of its own.
    whole: Vec<Tensor<1>>,
    /// Where the gradients of an adapter lie, if not in tensors of their own.
    flat: Option<Flat>,
}

impl GradientStore {
    /// One whose gradients of an adapter are added up in `flat`, of which nothing stays.
    pub(crate) fn in_flat(flat: Flat) -> Self {
        flat.clear();
        Self {
            flat: Some(flat),
            ..Self::default()
        }
    }

    /// One with the gradients of these names in `flat`.
    pub(crate) fn of_flat(flat: Flat, names: &BTreeSet<String>) -> Self {
        let gradients = names
            .iter()
            .filter_map(|name| Some((name.clone(), flat.view(name)?)));
        Self {
            gradients: gradients.collect(),
            whole: Vec::new(),
            flat: Some(flat),
        }
    }

    /// Takes out the gradients of all that has a place, in buffers, if there are any. Those in tensors of their own are added up in
    /// `spare`.
    pub(crate) fn take_flat(
        &mut self,
        layout: &FlatLayout,
        spare: impl FnOnce() -> Flat,
    ) -> Option<Flat> {
        let taken = self.gradients.extract_if(.., |name, _| layout.has(name));
        let taken: Vec<_> = taken.collect();
        if taken.is_empty() {
            return None;
        }
        if let Some(flat) = self.flat.take() {
            return Some(flat);
        }
        let flat = spare();
        for (name, gradient) in taken {
            if let Some(sum) = flat.view(&name) {
                add_in_place(&sum, gradient);
            }
        }
        Some(flat)
    }

    /// The gradients of all that has a place, in buffers; zeros where there are none.
    pub(crate) fn into_flat(mut self, layout: &Arc<FlatLayout>, device: &Device) -> Flat {
        let zeros = || Flat::zeros(layout, device);
        self.take_flat(layout, zeros)
            .unwrap_or_else(|| match self.flat {
                // Nothing was added to it.
                Some(flat) => flat,
                None => zeros(),
            })
    }

    /// Where a kernel adds the gradients of an adapter's matrices A and B, transposed, by their names; it has to.
    pub(crate) fn sums(&mut self, names: [&str; 2]) -> Option<AdapterGradients> {
        let all = self.flat.as_ref()?;
        let [a, b_t] = names.map(|name| all.matrix(name));
        let sums = AdapterGradients { a: a?, b_t: b_t? };
        for (name, sum) in names.into_iter().zip([&sums.a, &sums.b_t]) {
            // Known since the first micro-batch.
            if !self.gradients.contains_key(name) {
                self.gradients.insert(name.to_owned(), flat(sum.clone()));
            }
        }
        Some(sums)
    }

    /// Adds one gradient; `None` adds nothing.
    pub fn add<const D: usize>(&mut self, name: &str, gradient: Option<Tensor<D>>) {
        let Some(gradient) = gradient else { return };
        let numel = gradient.shape().num_elements();
        let gradient = gradient.reshape([numel]); // [numel]
        if let Some(sum) = self.flat.as_ref().and_then(|flat| flat.view(name)) {
            add_in_place(&sum, gradient);
            self.gradients.insert(name.to_owned(), sum);
            return;
        }
        match self.gradients.remove(name) {
            Some(sum) => self.gradients.insert(name.to_owned(), sum + gradient),
            None => self.gradients.insert(name.to_owned(), gradient),
        };
    }

    /// Says that the gradients lie in these buffers, which hold nothing else but zeros.
    pub(crate) fn lie_in(&mut self, whole: impl IntoIterator<Item = Tensor<1>>) {
        self.whole = whole.into_iter().collect();
    }

    /// Takes one gradient out.
    pub fn remove(&mut self, name: &str) -> Option<Tensor<1>> {
        self.gradients.remove(name)
    }

    /// The gradient of one parameter.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Tensor<1>> {
        self.gradients.get(name)
    }

    /// Names of the parameters that have a gradient.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.gradients.keys().map(String::as_str)
    }

    /// L2 norm of all gradients together: `[1]`, on the device.
    #[must_use]
    pub fn norm(&self, device: &Device) -> Tensor<1> {
        let flat = self.flat.iter().flat_map(Flat::buckets);
        let is_own = |name: &str| (self.flat.iter()).all(|flat| !flat.layout().has(name));
        let own = self.gradients.iter().filter(|(name, _)| is_own(name));
        let tensors: Vec<_> = match self.whole.is_empty() {
            true => own.map(|(_, own)| own).chain(flat).collect(),
            false => self.whole.iter().chain(flat).collect(),
        };
        sums_of_squares(&tensors, device).sum().sqrt()
    }
}
