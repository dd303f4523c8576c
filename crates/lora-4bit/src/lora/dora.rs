//! DoRA: each row of `W + s·B·A` is given a length of its own, which is trained.
//!
//! `W' = m / ‖W + s·B·A‖ · (W + s·B·A)`, row by row. So a layer computes what it computes with the plain adapter, and then
//! `y · f + (1 - f) · bias` with the factor `f = m / ‖W + s·B·A‖` of each output. The norm is a constant in the gradient.
//!
//! Source: DoRA (<https://arxiv.org/abs/2402.09353>, section 4.3), `peft/tuners/lora/dora.py` of PEFT.

use burn::tensor::{DType, Int, Tensor};

use crate::kernels::ComputeDtype;
use crate::weight::Weight;

/// Least square of a norm, so that a row of zeros has a factor.
const MIN_SQUARE: f64 = 1e-24;

/// What an adapter adds to a weight: `s·B·A`.
#[derive(Clone, Copy)]
pub(super) struct Update<'a> {
    /// `[r, in]`.
    pub(super) a: &'a Tensor<2>,
    /// The transpose of B: `[r, out]`.
    pub(super) b_t: &'a Tensor<2>,
    pub(super) scaling: f32,
}

/// What DoRA adds to an adapter.
#[derive(Clone, Debug)]
pub struct Dora {
    /// The length of each row of the weight with the adapter, f32: `[out]`.
    pub magnitude: Tensor<1>,
    /// Squared length of each row of the base weight: `[out]`.
    base_squares: Tensor<1>,
    /// Length of each row of `W + s·B·A`: `[out]`.
    norm: Tensor<1>,
}

impl Dora {
    /// For an adapter on `weight`; without a magnitude, the one that changes nothing.
    pub(super) fn new(weight: &Weight, update: Update<'_>, magnitude: Option<Tensor<1>>) -> Self {
        let base = weight.dequantize(); // [out, in]
        let base_squares = (base.clone() * base).sum_dim(1).squeeze_dim::<1>(1); // [out]
        let norm = norm(weight, update, &base_squares);
        Self {
            magnitude: magnitude.unwrap_or_else(|| norm.clone()),
            base_squares,
            norm,
        }
    }

    /// Computes the norm again, after A or B have changed.
    pub(super) fn update_norm(&mut self, weight: &Weight, update: Update<'_>) {
        self.norm = norm(weight, update, &self.base_squares);
    }

    /// `‖W + s·B·A‖`: `[out]`.
    pub(crate) fn norm(&self) -> &Tensor<1> {
        &self.norm
    }

    /// `m / ‖W + s·B·A‖`: `[out]`.
    pub(crate) fn factor(&self) -> Tensor<1> {
        self.magnitude.clone() / self.norm.clone()
    }

    /// What the layer computes, from what it computes with the plain adapter.
    ///
    /// # Shapes
    ///
    /// `y [rows, out]` → `[rows, out]`
    pub(crate) fn scale(&self, y: Tensor<2>, bias: Option<&Tensor<1>>) -> Tensor<2> {
        let factor = self.factor();
        // Of a factor of one, this leaves every bit of `y` as it is.
        let offset = bias.map(|bias| (factor.clone().neg() + 1.0) * bias.clone()); // [out]
        let y = y * factor.unsqueeze(); // [rows, out]
        match offset {
            Some(offset) => y + offset.unsqueeze(),
            None => y,
        }
    }

    /// The factors of `scale` for a part of the input that has been added without them: `y + f · extra - base`.
    ///
    /// # Shapes
    ///
    /// `y`, `base` and `extra` `[rows, out]` → `[rows, out]`
    pub(crate) fn scale_dropped(
        &self,
        y: Tensor<2>,
        base: Tensor<2>,
        extra: Tensor<2>,
    ) -> Tensor<2> {
        y + extra * self.factor().unsqueeze() - base
    }
}

/// `‖W + s·B·A‖` of each row, from the squared lengths of the rows of `W`: `[out]`.
fn norm(weight: &Weight, update: Update<'_>, base_squares: &Tensor<1>) -> Tensor<1> {
    let Update { a, b_t, scaling } = update;
    let rows = |sums: Tensor<2>| sums.sum_dim(0).squeeze_dim::<1>(0); // [out]
    let crossed = weight.forward(a.clone(), ComputeDtype::F32) * b_t.clone(); // [r, out]
    let squared = a.clone().matmul(a.clone().transpose()).matmul(b_t.clone()) * b_t.clone(); // [r, out]
    let square = base_squares.clone()
        + rows(crossed) * (2.0 * scaling)
        + rows(squared) * (scaling * scaling);
    square.clamp_min(MIN_SQUARE).sqrt()
}

/// The factors of the adapters of a layer, one after the other.
#[derive(Clone, Debug)]
pub(crate) struct DoraStack {
    /// Those of row 0 belong to rows without an adapter: `[1 + slots, out]`.
    factors: Tensor<2>,
    /// What is added for the bias, `[1 + slots, out]`.
    offsets: Option<Tensor<2>>,
}

impl DoraStack {
    /// Those of the adapters, `None` where one has none; `None` if no adapter has any.
    pub(super) fn new(all: &[Option<&Dora>], bias: Option<&Tensor<1>>) -> Option<Self> {
        let first = all.iter().flatten().next()?;
        let ones = first.magnitude.ones_like(); // [out]
        let slots = all
            .iter()
            .map(|dora| dora.map_or_else(|| ones.clone(), Dora::factor));
        let factors: Vec<_> = [ones.clone()].into_iter().chain(slots).collect();
        let factors = Tensor::stack::<2>(factors, 0); // [1 + slots, out]
        let offsets = bias
            .map(|bias| (factors.clone().neg() + 1.0) * bias.clone().cast(DType::F32).unsqueeze());
        Some(Self { factors, offsets })
    }

    /// What the layer computes, from what it computes with the plain adapters.
    ///
    /// # Shapes
    ///
    /// `y [rows, out]`; `slots [rows]`, -1 for a row without an adapter → `[rows, out]`
    pub(crate) fn scale(&self, y: Tensor<2>, slots: Tensor<1, Int>) -> Tensor<2> {
        let num_slots = self.factors.dims()[0] as i32 - 1;
        let of_rows = slots + 1; // [rows]
        // The stack ends with the last adapter of this layer.
        let is_beyond = of_rows.clone().greater_elem(num_slots);
        let of_rows = of_rows.mask_fill(is_beyond, 0);
        let y = y * self.factors.clone().select(0, of_rows.clone());
        match &self.offsets {
            Some(offsets) => y + offsets.clone().select(0, of_rows),
            None => y,
        }
    }
}
