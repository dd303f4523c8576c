//! The product of an adapter and its gradients, in f32.

use burn::backend::Flex;
use burn::backend::flex::{FlexTensor, Layout};
use burn::backend::tensor::FloatTensor;
use burn::tensor::{Bytes, DType, Shape};
use rayon::prelude::*;

use super::forward;
use super::product::{ProductShape, exact};
use super::simd::{Kernels, Output, PANEL, Rows};
use crate::kernels::elementwise::ElementwiseOps;
use crate::kernels::operand::{Adapters, LayerOperand, Maybe, WeightOperand};
use crate::kernels::ops::{LinearOps, LoraOps};

/// Multiplications that a thread should do at least.
const MIN_JOB_WORK: usize = 1 << 15;

/// What the gradients need of the forward product.
#[derive(Clone, Debug)]
pub(in super::super) struct LoraState {
    /// `[m, k]`.
    x: FlexTensor,
    /// `[r, k]`.
    a: FlexTensor,
    /// `[r, n]`.
    b: FlexTensor,
    /// `scaling · x · aᵀ`, `[m, r]`.
    low: FlexTensor,
    scaling: f32,
}

/// The gradients that are wanted.
pub(in super::super) struct LoraGradients {
    pub(in super::super) x: Option<FlexTensor>,
    pub(in super::super) a: Option<FlexTensor>,
    pub(in super::super) b: Option<FlexTensor>,
}

impl LoraOps for Flex {
    fn lora_add(
        y: FloatTensor<Self>,
        x: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        scaling: f32,
    ) -> FloatTensor<Self> {
        LoraState::forward(y, x, a, b, scaling).0
    }

    fn linear_with_adapter(
        x: FloatTensor<Self>,
        mut layer: LayerOperand<Self>,
    ) -> FloatTensor<Self> {
        let adapters = std::mem::replace(&mut layer.adapters, Adapters::None);
        let y = base(x.clone(), layer);
        match adapters {
            Adapters::One { a, b, scaling } => Self::lora_add(y, x, a, b, scaling),
            Adapters::None | Adapters::Stack { .. } => unreachable!("a layer with one adapter"),
        }
    }
}

impl LoraState {
    /// `y + scaling · (x · aᵀ) · b`, in place where `y` has no other handle.
    pub(in super::super) fn forward(
        y: FlexTensor,
        x: FlexTensor,
        a: FlexTensor,
        b: FlexTensor,
        scaling: f32,
    ) -> (FlexTensor, Self) {
        let [x, a, b] = [x, a, b].map(|tensor| tensor.to_contiguous());
        let mut y = exact(y);
        let low = low_product(values(&x), values(&a), dims(&a), scaling); // [m, r]
        let [m, n] = dims(&y);
        let size = [m, dims(&a)[0], n];
        add_product(&low, values(&b), size, y.storage_mut::<f32>());
        let low = matrix(low, [m, size[1]]);
        let state = Self {
            x,
            a,
            b,
            low,
            scaling,
        };
        (y, state)
    }

    /// The gradients of `x`, `a` and `b`, as far as wanted, from `dy [m, n]`.
    pub(in super::super) fn backward(&self, dy: &FlexTensor, wanted: [bool; 3]) -> LoraGradients {
        let dy = dy.to_contiguous();
        let dy = values(&dy);
        let ([m, k], [r, n]) = (dims(&self.x), dims(&self.b));
        let product = |left: &[f32], right: &FlexTensor, size: [usize; 3]| {
            let mut to = vec![0f32; size[0] * size[2]];
            add_product(left, values(right), size, &mut to);
            matrix(to, [size[0], size[2]])
        };
        let [wants_x, wants_a, wants_b] = wanted;
        let d_low = match wants_x || wants_a {
            true => low_product(dy, values(&self.b), [r, n], self.scaling), // [m, r]
            false => Vec::new(),
        };
        let x = wants_x.then(|| product(&d_low, &self.a, [m, r, k]));
        let a = wants_a.then(|| product(&transpose(&d_low, r), &self.x, [r, m, k]));
        let b = wants_b.then(|| {
            let low = transpose(values(&self.low), r); // [r, m]
            let mut db = vec![0f32; r * n];
            add_product(&low, dy, [r, m, n], &mut db);
            matrix(db, [r, n])
        });
        LoraGradients { x, a, b }
    }
}

/// `scaling · x · wᵀ`: `x [m, k]`, `w [r, k]` → `[m, r]`.
fn low_product(x: &[f32], w: &[f32], [r, k]: [usize; 2], scaling: f32) -> Vec<f32> {
    if x.is_empty() || w.is_empty() {
        return vec![0.0; x.len() / k.max(1) * r];
    }
    let shape = ProductShape {
        m: x.len() / k,
        inner: k,
        columns: r,
    };
    let mut low = vec![0f32; shape.m * r];
    forward::dense(Kernels::get(), x, w, shape, low.as_mut_ptr());
    low.iter_mut().for_each(|value| *value *= scaling);
    low
}

/// `y += left · right`: `left [m, inner]`, `right [inner, columns]`, `y [m, columns]`.
///
/// `right` is read in place, because there are few rows in `left` or in `right` itself. The order of additions of a
/// value is that of `right`'s rows, whatever `m` is.
fn add_product(left: &[f32], right: &[f32], [m, inner, columns]: [usize; 3], y: &mut [f32]) {
    if left.is_empty() || right.is_empty() {
        return;
    }
    let kernels = Kernels::get();
    let whole = columns / PANEL * PANEL;
    let output = Output {
        start: y.as_mut_ptr(),
        stride: columns,
    };
    let left = Rows {
        values: left,
        stride: inner,
        num_rows: m,
    };
    let panels_per_job = MIN_JOB_WORK.div_ceil(m * inner * PANEL);
    let job = |first: usize| {
        let last = usize::min(first + panels_per_job * PANEL, whole);
        for column in (first..last).step_by(PANEL) {
            let panel = Rows {
                values: &right[column..],
                stride: columns,
                num_rows: inner,
            };
            // SAFETY: `kernels` fits the CPU; `y` has `m` rows and these columns, which are this job's only.
            unsafe { (kernels.outer)(left, panel, output.at(0, column), false) };
        }
    };
    let jobs = whole.div_ceil(panels_per_job * PANEL);
    (0..jobs)
        .into_par_iter()
        .with_max_len(1)
        .for_each(|i| job(i * panels_per_job * PANEL));
    // The columns past the last whole panel, in full width in a buffer.
    let rest = columns - whole;
    if rest > 0 {
        let mut panel = vec![0f32; inner * PANEL];
        for (to, from) in panel
            .chunks_exact_mut(PANEL)
            .zip(right.chunks_exact(columns))
        {
            to[..rest].copy_from_slice(&from[whole..]);
        }
        let mut edge = vec![0f32; m * PANEL];
        for (to, from) in edge.chunks_exact_mut(PANEL).zip(y.chunks_exact(columns)) {
            to[..rest].copy_from_slice(&from[whole..]);
        }
        let panel = Rows {
            values: &panel,
            stride: PANEL,
            num_rows: inner,
        };
        let output = Output {
            start: edge.as_mut_ptr(),
            stride: PANEL,
        };
        // SAFETY: `kernels` fits the CPU; `edge` has `m` rows of `PANEL` columns.
        unsafe { (kernels.outer)(left, panel, output, false) };
        for (from, to) in edge.chunks_exact(PANEL).zip(y.chunks_exact_mut(columns)) {
            to[whole..].copy_from_slice(&from[..rest]);
        }
    }
}

/// `[rows, columns]` → `[columns, rows]`.
fn transpose(values: &[f32], columns: usize) -> Vec<f32> {
    let rows = values.len() / columns.max(1);
    let mut transposed = vec![0.0; values.len()];
    for (i, row) in values.chunks_exact(columns.max(1)).enumerate() {
        for (j, value) in row.iter().enumerate() {
            transposed[j * rows + i] = *value;
        }
    }
    transposed
}

fn matrix(values: Vec<f32>, shape: [usize; 2]) -> FlexTensor {
    let layout = Layout::contiguous(Shape::new(shape));
    FlexTensor::new(Bytes::from_elems(values), layout, DType::F32)
}

fn values(tensor: &FlexTensor) -> &[f32] {
    tensor.storage::<f32>()
}

fn dims(tensor: &FlexTensor) -> [usize; 2] {
    tensor.layout().shape().dims()
}

/// `x · wᵀ + bias` of a layer.
pub(in super::super) fn base(x: FlexTensor, layer: LayerOperand<Flex>) -> FlexTensor {
    let compute = layer.compute;
    let y = match layer.weight {
        WeightOperand::Dense(weight) => Flex::dense_linear(x, weight, compute),
        WeightOperand::Nf4 { weight } => Flex::nf4_linear(x, weight, compute),
    };
    match layer.bias {
        Maybe::Some(bias) => Flex::cpu_add_bias(y, bias),
        Maybe::None => y,
    }
}

/// `dy · w` of a layer, the gradient of [`base`] with respect to `x`.
pub(in super::super) fn base_t(dy: FlexTensor, layer: LayerOperand<Flex>) -> FlexTensor {
    match layer.weight {
        WeightOperand::Dense(weight) => Flex::dense_linear_t(dy, weight, layer.compute),
        WeightOperand::Nf4 { weight } => Flex::nf4_linear_t(dy, weight, layer.compute),
    }
}
