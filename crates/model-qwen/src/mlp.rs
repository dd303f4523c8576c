//! The MLP of a layer.

use burn::tensor::Tensor;
use lora_4bit::device::is_untracked_cpu;
use lora_4bit::{AdapterSelection, Linear, Norm, linear_residual, norm_swiglu};

/// SwiGLU MLP (arXiv 2002.05202).
#[derive(Clone, Debug)]
pub struct Mlp {
    /// `[intermediate, hidden]`.
    pub gate_proj: Linear,
    /// `[intermediate, hidden]`.
    pub up_proj: Linear,
    /// `[hidden, intermediate]`.
    pub down_proj: Linear,
}

/// Rows of an MLP that a CPU takes together: enough rows to pay for unpacking the weights, and few enough for the allocator to
/// keep their memory, because the system clears every page that it hands out anew.
const CPU_ROWS: usize = 512;

impl Mlp {
    /// `x + mlp(norm(x))`: `[tokens, hidden]`.
    pub(crate) fn forward_residual(
        &self,
        x: Tensor<2>,
        norm: Norm<'_>,
        adapters: &AdapterSelection,
    ) -> Tensor<2> {
        let [tokens, _] = x.dims();
        if tokens <= CPU_ROWS || !adapters.is_uniform() || !is_untracked_cpu(&x) {
            return self.rows_residual(x, norm, adapters);
        }
        let parts = x.split(CPU_ROWS, 0).into_iter();
        Tensor::cat(
            parts
                .map(|x| self.rows_residual(x, norm, adapters))
                .collect(),
            0,
        )
    }

    fn rows_residual(
        &self,
        x: Tensor<2>,
        norm: Norm<'_>,
        adapters: &AdapterSelection,
    ) -> Tensor<2> {
        let h = norm_swiglu(&x, norm, [&self.gate_proj, &self.up_proj], adapters); // [tokens, intermediate]
        linear_residual(x, h, &self.down_proj, adapters) // [tokens, hidden]
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use burn::tensor::{DType, Device, Distribution};

    use super::*;
    use crate::QwenModel;
    use crate::load::LoadOptions;

    #[test]
    fn an_mlp_of_many_rows_equals_one_of_all_rows_together() {
        let dir = crate::bundled_model_dir().unwrap();
        let model = QwenModel::load(&dir, &LoadOptions::default(), &Device::flex()).unwrap();
        let layer = &model.layers[0];
        let norm = || Norm {
            weight: &layer.post_attention_layernorm,
            eps: layer.rms_norm_eps,
        };
        let random = Distribution::Normal(0.0, 1.0);
        let shape = [2 * CPU_ROWS + 7, model.config.hidden_size];
        let x = Tensor::random(shape, random, (&Device::flex(), DType::F32));
        let parts = layer
            .mlp
            .forward_residual(x.clone(), norm(), &AdapterSelection::Base);
        let whole = layer.mlp.rows_residual(x, norm(), &AdapterSelection::Base);
        assert_eq!(parts.dims(), shape);
        let parts: Vec<f32> = parts.into_data().try_into_vec().unwrap();
        let whole: Vec<f32> = whole.into_data().try_into_vec().unwrap();
        for (part, whole) in parts.into_iter().zip(whole) {
            assert!(
                (part - whole).abs() <= 1e-4 * (1.0 + whole.abs()),
                "{part} {whole}"
            );
        }
    }
}
