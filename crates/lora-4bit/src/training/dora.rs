//! DoRA in a [`Group`]: what it does to the result, and the gradients of its magnitudes.

use burn::tensor::Tensor;

use super::dora_factors::DoraFactors;
use super::group::Group;
use crate::kernels::training::{self as ops, Epilogue, Part, ProductOperand, sum_rows};

impl Group {
    /// The result with DoRA. `h` is of [`Group::shrink`].
    ///
    /// # Shapes
    ///
    /// `x [tokens, in]`, `residual [tokens, out]` → `[tokens, out]`
    pub(super) fn with_dora(
        &self,
        dora: &DoraFactors,
        (x, h): (&Tensor<2>, Option<&Tensor<2>>),
        residual: Option<Tensor<2>>,
    ) -> Tensor<2> {
        let bias = self.bias.clone();
        let Some(masked) = self.through_masked(dora, x) else {
            let z = self.product(x, h, Epilogue::plain(x.dtype())); // [tokens, out]
            return ops::rescale(z, &dora.factor, bias, residual);
        };
        let base = Epilogue {
            bias,
            residual,
            ..Epilogue::plain(x.dtype())
        };
        let base = ops::product(
            ProductOperand::rows(x.clone(), None),
            ProductOperand::rows(self.weight.clone(), None),
            base,
        ); // [tokens, out]
        let y = ops::rescale(masked, &dora.change(), None, Some(base));
        match self.expand(h) {
            Some(update) => ops::rescale(update, &dora.factor, None, Some(y)),
            None => y,
        }
    }

    /// `x' · Wᵀ` of what dropout leaves to each layer with DoRA, zero for the others; `None` without dropout.
    ///
    /// # Shapes
    ///
    /// `x [tokens, in]` → `[tokens, out]`
    fn through_masked(&self, dora: &DoraFactors, x: &Tensor<2>) -> Option<Tensor<2>> {
        let dropout = self.adapters.as_ref()?.dropout?;
        let [tokens, _] = x.dims();
        let parts =
            (self.layers.iter().zip(&dora.has_dora)).map(|(part, &has_dora)| match has_dora {
                true => ops::product(
                    ProductOperand::rows(dropout.apply(part.id, x.clone()), None),
                    ProductOperand::rows(self.weight_of(part), None),
                    Epilogue::plain(x.dtype()),
                ),
                false => Tensor::zeros([tokens, part.rows], (&x.device(), x.dtype())),
            });
        let mut parts: Vec<_> = parts.collect();
        Some(match parts.len() {
            1 => parts.swap_remove(0),
            _ => Tensor::cat(parts, 1),
        })
    }

    /// `h · (s·B)ᵀ`.
    ///
    /// # Shapes
    ///
    /// `h [tokens, ranks]` → `[tokens, out]`
    fn expand(&self, h: Option<&Tensor<2>>) -> Option<Tensor<2>> {
        let (adapters, h) = (self.adapters.as_ref()?, h?);
        Some(ops::product(
            ProductOperand::rows(h.clone(), None),
            ProductOperand::rows(adapters.b.clone(), None),
            Epilogue::plain(h.dtype()),
        ))
    }

    /// The rows of the weight that are one layer's.
    ///
    /// # Shapes
    ///
    /// `[out of the layer, in]`
    pub(super) fn weight_of(&self, part: &Part) -> Tensor<2> {
        self.weight.clone().narrow(0, part.row, part.rows)
    }

    /// The gradient of `z`, of which those of the adapters are made, from that of the result: `dy` itself without DoRA.
    ///
    /// # Shapes
    ///
    /// `dy [tokens, out]` → `[tokens, out]`
    #[must_use]
    pub fn scaled(&self, dy: &Tensor<2>) -> Tensor<2> {
        match &self.dora {
            Some(dora) => ops::rescale(dy.clone(), &dora.factor, None, None),
            None => dy.clone(),
        }
    }

    /// `dz - dy` of [`Group::scaled`], with one rounding; `None` without DoRA.
    ///
    /// # Shapes
    ///
    /// `dy [tokens, out]` → `[tokens, out]`
    pub(super) fn change(&self, dy: &Tensor<2>) -> Option<Tensor<2>> {
        let dora = self.dora.as_ref()?;
        Some(ops::rescale(dy.clone(), &dora.change(), None, None))
    }

    /// The gradients of DoRA's magnitudes, f32: `[out]` of each layer that has it. `h` is what [`Group::forward`] gave with `x`.
    ///
    /// # Shapes
    ///
    /// `x [tokens, in]`, `dy [tokens, out]`, the gradient of the result
    #[must_use]
    pub fn magnitude_gradients(
        &self,
        x: &Tensor<2>,
        h: Option<&Tensor<2>>,
        dy: &Tensor<2>,
    ) -> Vec<Option<Tensor<1>>> {
        let Some(dora) = &self.dora else {
            return vec![None; self.layers.len()];
        };
        let z = match self.through_masked(dora, x) {
            None => self.product(x, h, Epilogue::plain(x.dtype())),
            Some(masked) => match self.expand(h) {
                Some(update) => masked + update,
                None => masked,
            },
        }; // [tokens, out]
        let dm = sum_rows(z * dy.clone()) / dora.norm.clone(); // [out]
        let gradients = (self.layers.iter().zip(&dora.has_dora))
            .map(|(part, &has_dora)| has_dora.then(|| dm.clone().narrow(0, part.row, part.rows)));
        gradients.collect()
    }
}
