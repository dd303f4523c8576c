//! Cross-entropy of the next token, a few hundred rows at a time.
//!
//! The logits of a whole batch are the largest tensor of a naive training step (rows × 151,936 values for Qwen). Here only
//! rows that are learnt from reach lm_head, in chunks, and the gradient of the logits is written down directly
//! (`softmax − one-hot`) and pulled back through lm_head before the next chunk is computed.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use lora_4bit::{AdapterSelection, Linear, Weight};
use lora_4bit::{Norm, inner_product, rms_norm};
use model_qwen::kernels::{cross_entropy, cross_entropy_of_rows, weighted_cross_entropy};

use crate::gate::{self, WorkUnit};
use crate::parameters::GradientStore;

/// Logits that one chunk may hold: 128 rows of Qwen's vocabulary (about 78 MB in f32).
const MAX_AUTODIFF_LOGITS: usize = 128 * 151_936;

/// The rows of a packed batch that are learnt from.
#[derive(Clone, Debug)]
pub struct Targets {
    /// Rows whose next token is a target, ascending.
    rows: Vec<i32>,
    /// That next token, per row.
    tokens: Vec<u32>,
}

impl Targets {
    /// Targets from one label per row: the token that should follow, or `None` where nothing is learnt.
    #[must_use]
    pub fn new(labels: &[Option<u32>]) -> Self {
        let (rows, tokens) = (0i32..)
            .zip(labels)
            .filter_map(|(row, label)| label.map(|token| (row, token)))
            .unzip();
        Self { rows, tokens }
    }

    /// Number of target tokens.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Rows and their tokens, at most `size` at a time.
    pub(crate) fn chunks(&self, size: usize) -> impl Iterator<Item = (&[i32], &[u32])> {
        self.rows.chunks(size).zip(self.tokens.chunks(size))
    }

    /// For each of `num_tokens` rows its number among the rows with a target, or the number of these.
    fn sources(&self, num_tokens: usize) -> Vec<i32> {
        let mut sources = vec![self.len() as i32; num_tokens];
        for (from, &to) in (0..).zip(&self.rows) {
            sources[to as usize] = from;
        }
        sources
    }

    /// Whether nothing is learnt from this batch.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

/// What a model says of one target token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct TokenStats {
    /// In nats: the negative of its log-probability.
    pub(crate) cross_entropy: f32,
    /// Whether no token is likelier.
    pub(crate) is_most_likely: bool,
    /// Of the whole prediction, in nats.
    pub(crate) entropy: f32,
}

impl From<[f32; 3]> for TokenStats {
    /// A row of what [`cross_entropy_of_rows`] gives.
    fn from([cross_entropy, is_most_likely, entropy]: [f32; 3]) -> Self {
        Self {
            cross_entropy,
            is_most_likely: is_most_likely > 0.5,
            entropy,
        }
    }
}

/// What turns the last layer's output into logits.
#[derive(Clone, Debug)]
pub struct LmHead {
    /// Weight of the final norm, `[hidden]`.
    pub norm: Tensor<1>,
    /// `eps` of the final norm.
    pub norm_eps: f64,
    /// Output projection, `[vocab, hidden]`.
    pub projection: Linear,
}

impl LmHead {
    /// Both `[rows, hidden]`.
    fn normalized(&self, hidden: Tensor<2>) -> Tensor<2> {
        let norm = Norm {
            weight: &self.norm,
            eps: self.norm_eps,
        };
        rms_norm(hidden, norm)
    }

    /// `[rows, hidden]` → `[rows, vocab]`.
    fn logits(&self, normalized: Tensor<2>) -> Tensor<2> {
        self.projection.forward(normalized, &AdapterSelection::Base)
    }

    fn chunk_rows(&self) -> usize {
        autodiff_chunk_rows(self.projection.out_features())
    }
}

/// Rows whose logits are there at a time, in the losses of this module; [`crate::step::explicit`] has chunks of its own.
pub(crate) fn autodiff_chunk_rows(vocab: usize) -> usize {
    (MAX_AUTODIFF_LOGITS / vocab.max(1)).max(128)
}

/// Names under which [`backward`] files the gradients of an lm_head that is trained.
#[derive(Clone, Copy, Debug)]
pub struct LmHeadNames<'a> {
    /// The final norm, if it is trained.
    pub norm: Option<&'a str>,
    /// The output projection (the embedding's name when they are tied).
    pub lm_head: &'a str,
}

/// An lm_head that is trained.
#[derive(Debug)]
pub struct TrainedLmHead<'a> {
    /// What its gradients are called.
    pub names: LmHeadNames<'a>,
    /// Where they are added.
    pub store: &'a mut GradientStore,
}

/// Sums over the targets, without gradients: cross-entropy, targets that are the likeliest token, and entropy of the prediction.
///
/// # Shapes
///
/// `hidden` is `[tokens, hidden]`, the result `[3]`.
#[must_use]
pub fn forward(lm_head: &LmHead, hidden: Tensor<2>, targets: &Targets) -> Tensor<1> {
    let device = hidden.device();
    let mut total = Tensor::zeros([3], (&device, DType::F32));
    for (rows, tokens) in targets.chunks(lm_head.chunk_rows()) {
        gate::pass(WorkUnit::Layer);
        let x = hidden.clone().select(0, indices(rows, &device)); // [rows, hidden]
        let logits = lm_head.logits(lm_head.normalized(x)); // [rows, vocab]
        total = total + cross_entropy(logits, tokens, 1.0).0;
    }
    total
}

/// The sums of [`forward`], and the gradient of `scale` times the cross-entropy with respect to `hidden`.
///
/// With `trained`, lm_head's own gradients are added to its store.
///
/// # Shapes
///
/// `hidden` and its gradient are `[tokens, hidden]`, the sums `[3]` (unscaled).
pub fn backward(
    lm_head: &LmHead,
    hidden: Tensor<2>,
    targets: &Targets,
    scale: f64,
    trained: Option<TrainedLmHead<'_>>,
) -> (Tensor<1>, Tensor<2>) {
    let device = hidden.device();
    let mut total = Tensor::zeros([3], (&device, DType::F32));
    let gradient = backward_by(
        lm_head,
        hidden,
        targets,
        trained,
        &mut |logits, _, tokens| {
            let (sums, gradient) = cross_entropy(logits, tokens, scale);
            total = total.clone() + sums;
            gradient
        },
    );
    (total, gradient)
}

/// [`backward`] of any loss of the target tokens: `loss` gets the logits of some target rows, the number of the first of them
/// among all targets, and their tokens, and gives the gradient of the logits.
///
/// # Shapes
///
/// `hidden` and the result are `[tokens, hidden]`, logits and their gradient `[rows, vocab]`.
pub(crate) fn backward_by(
    lm_head: &LmHead,
    hidden: Tensor<2>,
    targets: &Targets,
    trained: Option<TrainedLmHead<'_>>,
    loss: &mut dyn FnMut(Tensor<2>, usize, &[u32]) -> Tensor<2>,
) -> Tensor<2> {
    let gradients = chunk_gradients(lm_head, &hidden, targets, trained, loss);
    spread(gradients, targets, &hidden)
}

/// The gradients of [`backward_by`] of the rows with a target, a chunk of them after the other, `[rows, hidden]`.
fn chunk_gradients(
    lm_head: &LmHead,
    hidden: &Tensor<2>,
    targets: &Targets,
    mut trained: Option<TrainedLmHead<'_>>,
    loss: &mut dyn FnMut(Tensor<2>, usize, &[u32]) -> Tensor<2>,
) -> Vec<Tensor<2>> {
    let device = hidden.device();
    let mut lm_head = lm_head.clone();
    if let Some(TrainedLmHead { names, .. }) = &trained {
        if names.norm.is_some() {
            lm_head.norm = lm_head.norm.autodiff().require_grad();
        }
        if let Weight::Dense(weight) = lm_head.projection.weight {
            lm_head.projection.weight = Weight::Dense(weight.autodiff().require_grad());
        }
    }
    let mut gradients = Vec::new();
    let mut first = 0;
    for (rows, tokens) in targets.chunks(lm_head.chunk_rows()) {
        gate::pass(WorkUnit::Layer);
        let x = hidden
            .clone()
            .select(0, indices(rows, &device))
            .autodiff()
            .require_grad(); // [rows, hidden]
        let normalized = lm_head.normalized(x.clone()); // [rows, hidden]
        let (y, dy) = match trained {
            Some(_) => {
                let logits = lm_head.logits(normalized); // [rows, vocab]
                let d_logits = loss(logits.clone().inner(), first, tokens);
                (logits, d_logits)
            }
            // A frozen lm_head needs no graph: the logits become their own gradient.
            None => {
                let logits = lm_head.logits(normalized.clone().inner()); // [rows, vocab]
                let d_logits = loss(logits, first, tokens);
                let projection = &lm_head.projection;
                let dy = projection.weight.forward_t(d_logits, projection.compute); // [rows, hidden]
                (normalized, dy)
            }
        };
        first += rows.len();
        let mut grads = inner_product(y, dy.autodiff()).backward();
        gradients.extend(x.grad_remove(&mut grads)); // [rows, hidden]
        if let Some(TrainedLmHead { names, store }) = &mut trained {
            if let Some(name) = names.norm {
                store.add(name, lm_head.norm.grad_remove(&mut grads));
            }
            if let Weight::Dense(weight) = &lm_head.projection.weight {
                store.add(names.lm_head, weight.grad_remove(&mut grads));
            }
        }
    }
    gradients
}

/// The stats of each target, in their order. Logits are divided by `temperature` first.
///
/// # Shapes
///
/// `hidden` is `[tokens, hidden]`.
pub(crate) fn stats_of_targets(
    lm_head: &LmHead,
    hidden: &Tensor<2>,
    targets: &Targets,
    temperature: f64,
) -> Vec<TokenStats> {
    let device = hidden.device();
    let mut stats = Vec::with_capacity(targets.len());
    for (rows, tokens) in targets.chunks(lm_head.chunk_rows()) {
        gate::pass(WorkUnit::Layer);
        let x = hidden.clone().select(0, indices(rows, &device)); // [rows, hidden]
        let logits = tempered(lm_head.logits(lm_head.normalized(x)), temperature); // [rows, vocab]
        let (found, _) = weighted_cross_entropy(logits, tokens, &|_, _| 0.0);
        stats.extend(found.into_iter().map(TokenStats::from));
    }
    stats
}

/// Logits divided by the temperature of sampling.
pub(crate) fn tempered(logits: Tensor<2>, temperature: f64) -> Tensor<2> {
    match temperature == 1.0 {
        true => logits,
        false => logits.div_scalar(temperature),
    }
}

/// As [`backward`], for a loss of which `weigh` says how fast it grows with the cross-entropy of each target.
///
/// # Shapes
///
/// `hidden` and the result are `[tokens, hidden]`.
pub(crate) fn backward_rows(
    lm_head: &LmHead,
    hidden: Tensor<2>,
    targets: &Targets,
    weigh: impl FnOnce(&[TokenStats]) -> Vec<f32>,
    trained: Option<TrainedLmHead<'_>>,
) -> Tensor<2> {
    if trained.is_none() {
        // The gradient of a row is linear in its weight, which may therefore come last.
        let mut stats = Vec::with_capacity(targets.len());
        let mut loss = |logits: Tensor<2>, _: usize, tokens: &[u32]| {
            let (found, d_logits) = cross_entropy_of_rows(logits, tokens, 1.0);
            read_stats(found, &mut stats);
            d_logits
        };
        let gradients = chunk_gradients(lm_head, &hidden, targets, None, &mut loss);
        let weights = weigh(&stats);
        let column = TensorData::new(weights, [stats.len(), 1]);
        let column = Tensor::<2>::from_data(column, (&hidden.device(), DType::F32)); // [targets, 1]
        let gradients = match gradients.is_empty() {
            true => Vec::new(),
            false => vec![Tensor::cat(gradients, 0) * column], // [targets, hidden]
        };
        return spread(gradients, targets, &hidden);
    }
    let weights = weigh(&stats_of_targets(lm_head, &hidden, targets, 1.0));
    backward_by(
        lm_head,
        hidden,
        targets,
        trained,
        &mut |logits, first, tokens| {
            weighted_cross_entropy(logits, tokens, &|row, _| weights[first + row]).1
        },
    )
}

/// Adds the rows of `found [rows, 3]`, which [`cross_entropy_of_rows`] gives, to `stats`.
fn read_stats(found: Tensor<2>, stats: &mut Vec<TokenStats>) {
    let values: Vec<f32> = found.into_data().iter::<f32>().collect();
    let (rows, _) = values.as_chunks::<3>();
    stats.extend(rows.iter().copied().map(TokenStats::from));
}

/// Puts gradients of the target rows back in their places; every other row is zero. `like` has the shape and the type.
///
/// A lookup into `[gradients; one zero row]`, because a scatter is sequential on GPUs.
pub(crate) fn spread(gradients: Vec<Tensor<2>>, targets: &Targets, like: &Tensor<2>) -> Tensor<2> {
    let device = like.device();
    let [num_tokens, width] = like.dims();
    let mut rows = gradients;
    rows.push(Tensor::zeros([1, width], (&device, like.dtype())));
    let source = targets.sources(num_tokens);
    Tensor::cat(rows, 0).select(0, indices(&source, &device)) // [tokens, hidden]
}

/// Row numbers or tokens on a device: `[values.len()]`, I32.
pub(crate) fn indices(values: &[i32], device: &Device) -> Tensor<1, Int> {
    Tensor::from_data(
        TensorData::new(values.to_vec(), [values.len()]),
        (device, DType::I32),
    )
}
