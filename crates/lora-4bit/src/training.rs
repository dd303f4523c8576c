//! A training step without an autodiff graph: the forward pass of layers that share an input, and its gradients.
//!
//! The trainer walks through a decoder layer forward and backward and calls these operations in turn. So it decides what is
//! kept, what is overwritten, and in which type; [`dtype_of`] names the fast one.
//!
//! A [`Group`] is the layers that share an input: queries, keys and values, or gate and up. `W` is their weights, one below
//! the other. `A` is the A of their adapters, also one below the other. `B` has the B of their adapters as the blocks of a
//! block-diagonal matrix; `s` is their scaling. A group computes:
//!
//! | | computes |
//! |---|---|
//! | forward | `h = x · Aᵀ`; `y = [x, h] · [W, s·B]ᵀ + bias` |
//! | gradient of `x` | `dh = dy · s·B`; `dx = [dy, dh] · [W; A]` |
//! | of the adapters | `dA = dhᵀ · x`; `dB = dyᵀ · h · s` |
//! | with DoRA | `z` is `y` without bias; `y = z · f + bias`; the gradients above are those of `dz = dy · f`; `dm` is the sum of the rows of `dy · z`, over the norm |
//! | with dropout | each adapter reads an input `x'` of its own, which a mask has taken values from: `h = x' · Aᵀ`; `dA = dhᵀ · x'`; `dx = dy · W + mask(dh · A)` |
//! | with both | `z = x' · Wᵀ + h · (s·B)ᵀ`; `y = x · Wᵀ + bias + z · f - x' · Wᵀ`; `dx = dy · W + mask((dz - dy) · W + dh · A)`; `dm` as with DoRA |
//! | of the layers themselves | `dW = dyᵀ · x`; of the bias the sum of the rows of `dy` |

use burn::tensor::{DType, Device, Tensor};

pub use crate::kernels::optimizer::{
    AdamWFactors, VIEW_ALIGNMENT, adamw, adamw_in_place, add_in_place, clear, eight_bit,
    sums_of_squares, writes_in_place,
};
use crate::kernels::tile;
use crate::kernels::training::{self as ops, Epilogue, Part, ProductOperand};
pub use crate::kernels::training::{
    rms_norm, rms_norm_backward, rms_norm_weight_gradient, sum_rows, swiglu, swiglu_backward,
};

mod dora;
mod dora_factors;
mod group;

pub use self::group::{Group, RANKS};

/// In how many parts a GPU with so many multiprocessors takes the inner dimension of a product `[m, n]` over `k` inner values, where
/// few tiles leave multiprocessors idle. Each part is a result of its own, in f32, and then they are added.
#[must_use]
pub fn splits([m, n, k]: [usize; 3], multiprocessors: usize) -> usize {
    let columns = match n {
        ..=64 => 64,
        65..=128 => 128,
        _ => 256,
    };
    let tiles = m.div_ceil(128) * n.div_ceil(columns);
    let steps = k / tile::INNER;
    let wanted = (multiprocessors / tiles.max(1)).clamp(1, tile::MAX_SPLITS);
    let wanted = wanted.min(steps / tile::MIN_GEMM_STEPS).max(1);
    steps.div_ceil(steps.div_ceil(wanted).max(1))
}

/// The type in which a training step on `device` is fast: bf16 where tensor cores multiply it, f32 elsewhere.
#[must_use]
pub fn dtype_of(device: &Device) -> DType {
    ops::dtype_of(device)
}

/// The gradients of a layer's adapter, f32.
#[derive(Clone, Debug)]
pub struct AdapterGradients {
    /// `[r, in]`.
    pub a: Tensor<2>,
    /// Of the transpose of B, `[r, out]`.
    pub b_t: Tensor<2>,
}

/// The gradients of a layer's own values, f32.
#[derive(Clone, Debug)]
pub struct LayerGradients {
    /// `[out, in]`.
    pub weight: Tensor<2>,
    /// `[out]`, also of a layer without a bias beside one that has it.
    pub bias: Option<Tensor<1>>,
}

impl Group {
    /// The result of all layers side by side, and what [`Group::backward`] needs of the adapters.
    ///
    /// # Shapes
    ///
    /// `x [tokens, in]`, `residual [tokens, out]` → `[tokens, out]` and `[tokens, ranks]`
    #[must_use]
    pub fn forward(
        &self,
        x: &Tensor<2>,
        residual: Option<Tensor<2>>,
    ) -> (Tensor<2>, Option<Tensor<2>>) {
        let h = self.shrink(x); // [tokens, ranks]
        let bias = self.bias.clone();
        let Some(dora) = &self.dora else {
            let epilogue = Epilogue {
                bias,
                residual,
                ..Epilogue::plain(x.dtype())
            };
            return (self.product(x, h.as_ref(), epilogue), h);
        };
        (self.with_dora(dora, (x, h.as_ref()), residual), h)
    }

    fn product(&self, x: &Tensor<2>, h: Option<&Tensor<2>>, epilogue: Epilogue) -> Tensor<2> {
        let b = self.adapters.as_ref().map(|adapters| adapters.b.clone());
        ops::product(
            ProductOperand::rows(x.clone(), h.cloned()),
            ProductOperand::rows(self.weight.clone(), b),
            epilogue,
        )
    }

    /// What [`Group::backward`] needs of the adapters: `x · Aᵀ`, of the inputs that dropout leaves.
    ///
    /// # Shapes
    ///
    /// `x [tokens, in]` → `[tokens, ranks]`
    #[must_use]
    pub fn shrink(&self, x: &Tensor<2>) -> Option<Tensor<2>> {
        let adapters = self.adapters.as_ref()?;
        let a = &adapters.a;
        let plain = |x: Tensor<2>, a: Tensor<2>| {
            let epilogue = Epilogue::plain(x.dtype());
            ops::product(
                ProductOperand::rows(x, None),
                ProductOperand::rows(a, None),
                epilogue,
            )
        };
        let Some(dropout) = adapters.dropout else {
            return Some(plain(x.clone(), a.clone()));
        };
        let [tokens, _] = x.dims();
        let mut all = self.with_adapters().map(|part| {
            let a = a.clone().narrow(0, part.rank, part.ranks);
            plain(dropout.apply(part.id, x.clone()), a) // [tokens, ranks of the layer]
        });
        let first = all.next();
        let ranks = self.with_adapters().map(|part| part.ranks).sum::<usize>();
        let padding = Tensor::zeros([tokens, a.dims()[0] - ranks], (&x.device(), x.dtype()));
        Some(Tensor::cat(
            first.into_iter().chain(all).chain([padding]).collect(),
            1,
        ))
    }

    fn with_adapters(&self) -> impl Iterator<Item = &Part> {
        self.layers.iter().filter(|part| part.ranks > 0)
    }

    /// [`swiglu`] of [`Group::forward`], for a group of a gate and what it multiplies.
    ///
    /// # Shapes
    ///
    /// `x [tokens, in]` → `[tokens, out / 2]`
    #[must_use]
    pub fn forward_gated(&self, x: &Tensor<2>) -> Tensor<2> {
        if self.bias.is_some() || self.dora.is_some() {
            return swiglu(self.forward(x, None).0);
        }
        let b = self.adapters.as_ref().map(|adapters| adapters.b.clone());
        ops::gated_product(
            ProductOperand::rows(x.clone(), self.shrink(x)),
            ProductOperand::rows(self.weight.clone(), b),
        )
    }

    /// The gradient with respect to the input, and those of each layer's adapter, as [`Group::adapter_gradients`] gives them.
    ///
    /// `h` is what [`Group::forward`] gave with `x`. The memory of `x` is free before that of its gradient is taken.
    ///
    /// # Shapes
    ///
    /// `x [tokens, in]`, `dy [tokens, out]` → `[tokens, in]`
    #[must_use]
    pub fn backward(
        &self,
        x: Tensor<2>,
        h: Option<Tensor<2>>,
        dy: &Tensor<2>,
        sums: &[Option<AdapterGradients>],
    ) -> (Tensor<2>, Vec<Option<AdapterGradients>>) {
        let dz = self.scaled(dy); // [tokens, out]
        let dh = self.adapter_input(&dz);
        let gradients = self.adapter_gradients(x, h, &dz, dh.as_ref(), sums);
        (self.input_gradient([dy, &dz], dh), gradients)
    }

    /// The gradient of what [`Group::forward`] gives besides its result, without the mask of dropout. `dz` is of
    /// [`Group::scaled`].
    ///
    /// # Shapes
    ///
    /// `dz [tokens, out]` → `[tokens, ranks]`
    #[must_use]
    pub fn adapter_input(&self, dz: &Tensor<2>) -> Option<Tensor<2>> {
        let adapters = self.adapters.as_ref()?;
        Some(ops::product(
            ProductOperand::rows(dz.clone(), None),
            ProductOperand::columns(adapters.b.clone(), None),
            Epilogue::plain(dz.dtype()),
        ))
    }

    /// The gradients of each layer's adapter, of what [`Group::adapter_input`] gave as `dh`. The memory of `x` is free afterwards.
    ///
    /// Where `sums` has something for a layer, its gradients are added to that instead, [in place](writes_in_place), and the result has
    /// nothing for it.
    ///
    /// # Shapes
    ///
    /// `x [tokens, in]`, `h` and `dh` `[tokens, ranks]`, `dz [tokens, out]`
    #[must_use]
    pub fn adapter_gradients(
        &self,
        x: Tensor<2>,
        h: Option<Tensor<2>>,
        dz: &Tensor<2>,
        dh: Option<&Tensor<2>>,
        sums: &[Option<AdapterGradients>],
    ) -> Vec<Option<AdapterGradients>> {
        let (Some(adapters), Some(h), Some(dh)) = (&self.adapters, h, dh) else {
            return vec![None; self.layers.len()];
        };
        let in_f32 = Epilogue::plain(DType::F32);
        let db = ops::product(
            ProductOperand::columns(dz.clone(), None),
            ProductOperand::columns(h, None),
            in_f32.clone(),
        ); // [out, ranks]
        let tall = |x: Tensor<2>, dh: Tensor<2>| {
            ops::product(
                ProductOperand::columns(x, None),
                ProductOperand::columns(dh, None),
                in_f32.clone(),
            ) // [in, ranks]
        };
        let da = match adapters.dropout {
            None => tall(x, dh.clone()),
            Some(dropout) => {
                let parts = self.with_adapters().map(|part| {
                    let dh = dh.clone().narrow(1, part.rank, part.ranks);
                    tall(dropout.apply(part.id, x.clone()), dh)
                });
                Tensor::cat(parts.collect(), 1)
            }
        };
        let gradients = self.layers.iter().enumerate().map(|(layer, part)| {
            if part.ranks == 0 {
                return None;
            }
            if let Some(AdapterGradients { a, b_t }) = sums.get(layer).and_then(Option::as_ref) {
                ops::add_adapter_gradients([&da, &db], [a, b_t], *part);
                return None;
            }
            let [a, b_t] = ops::adapter_gradients(&da, &db, *part);
            Some(AdapterGradients { a, b_t })
        });
        gradients.collect()
    }

    /// The gradient of the weight, f32.
    ///
    /// # Shapes
    ///
    /// `x [tokens, in]`, `dy [tokens, out]` → `[out, in]`
    #[must_use]
    pub fn weight_gradient(&self, x: Tensor<2>, dy: &Tensor<2>) -> Tensor<2> {
        ops::product(
            ProductOperand::columns(dy.clone(), None),
            ProductOperand::columns(x, None),
            Epilogue::plain(DType::F32),
        )
    }

    /// The gradients of each layer's weight and bias. The memory of `x` is free afterwards.
    ///
    /// # Shapes
    ///
    /// `x [tokens, in]`, `dy [tokens, out]`
    #[must_use]
    pub fn layer_gradients(&self, x: Tensor<2>, dy: &Tensor<2>) -> Vec<LayerGradients> {
        let weight = self.weight_gradient(x, dy); // [out, in]
        let bias = self.bias.as_ref().map(|_| sum_rows(dy.clone())); // [out]
        let gradients = self.layers.iter().map(|part| LayerGradients {
            weight: weight.clone().narrow(0, part.row, part.rows),
            bias: bias.clone().map(|bias| bias.narrow(0, part.row, part.rows)),
        });
        gradients.collect()
    }

    /// The gradient with respect to the input. `dy` is the gradient of the result, `dz` is `dy` times the factors of DoRA
    /// ([`Group::scaled`]), and `dh` is what [`Group::adapter_input`] gave.
    ///
    /// # Shapes
    ///
    /// `dy`, `dz` `[tokens, out]`, `dh [tokens, ranks]` → `[tokens, in]`
    #[must_use]
    pub fn input_gradient(&self, [dy, dz]: [&Tensor<2>; 2], dh: Option<Tensor<2>>) -> Tensor<2> {
        let dtype = dy.dtype();
        let product = |dy: &Tensor<2>, dh, a| {
            ops::product(
                ProductOperand::rows(dy.clone(), dh),
                ProductOperand::columns(self.weight.clone(), a),
                Epilogue::plain(dtype),
            ) // [dy, dh] · [W; A]
        };
        let (Some(adapters), Some(dh)) = (&self.adapters, dh) else {
            return product(dz, None, None);
        };
        let Some(dropout) = adapters.dropout else {
            return product(dz, Some(dh), Some(adapters.a.clone()));
        };
        // With DoRA the masked input went through the weight, too.
        let change = self.change(dy); // [tokens, out]
        let all = product(dy, None, None);
        self.with_adapters().fold(all, |dx, part| {
            let dh = dh.clone().narrow(1, part.rank, part.ranks);
            let a = adapters.a.clone().narrow(0, part.rank, part.ranks);
            let through = ops::product(
                ProductOperand::rows(dh, None),
                ProductOperand::columns(a, None),
                Epilogue::plain(dtype),
            ); // [tokens, in]
            // Not in one product: few ranks are no size that kernels take.
            let through = match &change {
                Some(change) => ops::product(
                    ProductOperand::rows(change.clone().narrow(1, part.row, part.rows), None),
                    ProductOperand::columns(self.weight_of(part), None),
                    Epilogue {
                        residual: Some(through),
                        ..Epilogue::plain(dtype)
                    },
                ), // [tokens, in]
                None => through,
            };
            dx + dropout.apply(part.id, through)
        })
    }
}
