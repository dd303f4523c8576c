//! LoRA adapters of one layer: each by itself, and all of them in one tensor so that one kernel serves rows with different
//! adapters.
//!
//! Source: LoRA (<https://arxiv.org/abs/2106.09685>), `peft/tuners/lora/layer.py` of PEFT.

mod dora;

use burn::backend::Dispatch;
use burn::tensor::{DType, Tensor};

use crate::adapter_selection::StackedRows;
use crate::kernels::{self, Adapters, STACK_PADDING, STACK_RANKS, StackOperand};
use crate::weight::Weight;
pub use dora::Dora;
pub(crate) use dora::DoraStack;
use dora::Update;

/// One LoRA adapter of one layer.
#[derive(Clone, Debug)]
pub struct LoraWeights {
    /// `[r, in]`, f32.
    pub a: Tensor<2>,
    /// The transpose of B, `[r, out]`, f32: both products and their gradients read it along its rows.
    pub b_t: Tensor<2>,
    /// Factor of the product, `alpha / r` or `alpha / √r`.
    pub scaling: f32,
    /// With DoRA, see [`LoraWeights::with_magnitude`].
    pub dora: Option<Dora>,
}

impl LoraWeights {
    /// The adapter of `a [r, in]` and `b [out, r]`.
    pub fn new(a: Tensor<2>, b: Tensor<2>, scaling: f32) -> Self {
        let b_t = b.transpose(); // [r, out]
        Self {
            a,
            b_t,
            scaling,
            dora: None,
        }
    }

    /// The adapter with DoRA on the layer of `weight`. Without a magnitude it starts from the one that changes nothing.
    #[must_use]
    pub fn with_magnitude(mut self, weight: &Weight, magnitude: Option<Tensor<1>>) -> Self {
        self.dora = Some(Dora::new(weight, self.update(), magnitude));
        self
    }

    /// Computes the norms of DoRA again, after A or B have changed.
    pub fn update_norm(&mut self, weight: &Weight) {
        if let Some(mut dora) = self.dora.take() {
            dora.update_norm(weight, self.update());
            self.dora = Some(dora);
        }
    }

    /// What the adapter adds to the weight.
    fn update(&self) -> Update<'_> {
        Update {
            a: &self.a,
            b_t: &self.b_t,
            scaling: self.scaling,
        }
    }

    /// The handles of the adapter, for the kernels.
    pub(crate) fn operand(&self) -> Adapters<Dispatch> {
        Adapters::One {
            a: self.a.clone().into_dispatch(),
            b: self.b_t.clone().into_dispatch(),
            scaling: self.scaling,
        }
    }

    /// `y + scaling·(x·Aᵀ)·Bᵀ`, without the factors of DoRA.
    ///
    /// # Shapes
    ///
    /// `y [tokens, out]`, `x [tokens, in]` → `[tokens, out]`
    pub fn add_to(&self, y: Tensor<2>, x: Tensor<2>) -> Tensor<2> {
        kernels::lora_add(y, x, self.a.clone(), self.b_t.clone(), self.scaling)
    }
}

/// The adapters of a layer, one after the other. A slot without an adapter is zero, and so are the ranks that an adapter lacks.
///
/// The tensors have one dimension: a device may leave room between the rows of a matrix.
#[derive(Clone, Debug)]
pub(crate) struct LoraStack {
    /// `[slots * rank * in]`.
    a: Tensor<1>,
    /// Times the scaling: `[out * slots * rank]`, the ranks of all slots next to each other, and [`STACK_PADDING`].
    b: Tensor<1>,
    rank: usize,
    num_slots: usize,
    dora: Option<DoraStack>,
}

impl LoraStack {
    /// `None` if no slot has an adapter.
    pub(crate) fn new(
        adapters: &[Option<LoraWeights>],
        bias: Option<&Tensor<1>>,
        dtype: DType,
    ) -> Option<Self> {
        let ranks = adapters.iter().flatten().map(|adapter| adapter.a.dims()[0]);
        let rank = ranks.max()?.next_multiple_of(STACK_RANKS);
        let first = adapters.iter().flatten().next()?;
        let (inner, outer) = (first.a.dims()[1], first.b_t.dims()[1]);
        let (device, num_slots) = (first.a.device(), adapters.len());
        let padded = |rows: Option<Tensor<2>>, width: usize| {
            let len = rows.as_ref().map_or(0, |rows| rows.dims()[0]);
            let zeros = || Tensor::zeros([rank - len, width], (&device, DType::F32));
            let rows = match rows {
                Some(rows) if len == rank => rows,
                Some(rows) => Tensor::cat(vec![rows, zeros()], 0),
                None => zeros(),
            };
            rows.cast(dtype)
        };
        let a = adapters.iter().map(|adapter| {
            let a = adapter.as_ref().map(|adapter| adapter.a.clone());
            padded(a, inner).reshape([rank * inner])
        });
        let b_t = adapters.iter().map(|adapter| {
            let b_t = adapter.as_ref().map(|a| a.b_t.clone() * a.scaling);
            padded(b_t, outer)
        });
        let b = Tensor::cat(b_t.collect(), 0).transpose(); // [out, slots * rank]
        let b = b.reshape([outer * num_slots * rank]);
        let padding = Tensor::zeros([STACK_PADDING], (&device, dtype));
        let dora = adapters
            .iter()
            .map(|adapter| adapter.as_ref()?.dora.as_ref());
        let dora: Vec<Option<&Dora>> = dora.collect();
        Some(Self {
            a: Tensor::cat(a.collect(), 0),
            b: Tensor::cat(vec![b, padding], 0),
            rank,
            num_slots,
            dora: DoraStack::new(&dora, bias),
        })
    }

    /// The factors of DoRA, if an adapter has any.
    pub(crate) fn dora(&self) -> Option<&DoraStack> {
        self.dora.as_ref()
    }

    /// A sum over all values, `[1]`: reading it tells whether the device had room for them.
    pub(crate) fn sum(&self) -> Tensor<1> {
        let sum = |tensor: &Tensor<1>| tensor.clone().cast(DType::F32).sum();
        sum(&self.a) + sum(&self.b)
    }

    /// The handles of the stack, with the slot of each row.
    pub(crate) fn operand(&self, rows: &StackedRows) -> Adapters<Dispatch> {
        Adapters::Stack {
            stack: StackOperand {
                a: self.a.clone().into_dispatch(),
                b: self.b.clone().into_dispatch(),
                rank: self.rank,
                num_slots: self.num_slots,
                slots: rows.slots.clone().into_dispatch(),
                at: rows.at,
            },
        }
    }
}
