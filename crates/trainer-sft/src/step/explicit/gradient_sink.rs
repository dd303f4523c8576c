//! The gradients of a layer's trained tensors, by name.

use burn::tensor::Tensor;
use kv_paging::HeadNorms;
use lora_4bit::training::{AdapterGradients, Group, rms_norm_weight_gradient};
use lora_4bit::{Linear, Norm};
use model_qwen::QwenConfig;

use crate::parameters::{GradientStore, LORA_A, LORA_B, LORA_MAGNITUDE, Trainable};

/// Where the gradients of a layer go.
pub(super) struct GradientSink<'a> {
    pub(super) index: usize,
    pub(super) trainable: Trainable,
    pub(super) store: &'a mut GradientStore,
}

impl GradientSink<'_> {
    /// Where kernels add the gradients of the adapters of a group's layers; nothing where they are tensors of their own.
    pub(super) fn sums(&mut self, modules: &[&str]) -> Vec<Option<AdapterGradients>> {
        let sums = modules.iter().map(|module| {
            let [a, b_t] = self.names_of_adapter(module);
            self.store.sums([&a, &b_t])
        });
        sums.collect()
    }

    /// Of the adapters of a group's layers.
    pub(super) fn adapters(&mut self, modules: &[&str], gradients: Vec<Option<AdapterGradients>>) {
        for (module, gradients) in modules.iter().zip(gradients) {
            let Some(AdapterGradients { a, b_t }) = gradients else {
                continue;
            };
            let [name_of_a, name_of_b] = self.names_of_adapter(module);
            self.store.add(&name_of_a, Some(a));
            self.store.add(&name_of_b, Some(b_t));
        }
    }

    /// Of DoRA's magnitudes.
    pub(super) fn magnitudes(&mut self, modules: &[&str], gradients: Vec<Option<Tensor<1>>>) {
        for (module, gradient) in modules.iter().zip(gradients) {
            let name = format!("{}{LORA_MAGNITUDE}", self.name(module));
            self.store.add(&name, gradient);
        }
    }

    /// Of a group's layers themselves, from its input and the gradient of its result, where they are trained.
    pub(super) fn weights(
        &mut self,
        group: &Group,
        layers: &[(&str, &Linear)],
        x: &Tensor<2>,
        dy: &Tensor<2>,
    ) {
        if !self.trainable.is_full() {
            return;
        }
        for ((module, layer), gradients) in layers.iter().zip(group.layer_gradients(x.clone(), dy))
        {
            let name = self.name(module);
            let weight = Some(gradients.weight);
            self.store.add(&format!("{name}.weight"), weight);
            let bias = gradients.bias.filter(|_| layer.bias.is_some());
            self.store.add(&format!("{name}.bias"), bias);
        }
    }

    /// Of a norm's weight, from its input and the gradient of its result, where it is trained.
    pub(super) fn norm(&mut self, module: &str, x: &Tensor<2>, norm: Norm<'_>, dy: &Tensor<2>) {
        if self.trainable.is_full() {
            let gradient = rms_norm_weight_gradient(x.clone(), norm, dy.clone());
            let name = format!("{}.weight", self.name(module));
            self.store.add(&name, Some(gradient));
        }
    }

    /// Of the norms of heads, from queries, keys and values before them and the gradient of what was normalised. Of a full step.
    pub(super) fn head_norms(
        &mut self,
        norms: HeadNorms<'_>,
        x: &Tensor<2>,
        d: &Tensor<2>,
        config: &QwenConfig,
    ) {
        let [tokens, _] = x.dims();
        let (width, eps) = (config.head_dim, norms.eps);
        let mut first = 0;
        for (module, weight, heads) in [
            ("self_attn.q_norm", norms.q, config.num_attention_heads),
            ("self_attn.k_norm", norms.k, config.num_key_value_heads),
        ] {
            let [x, d] = [x, d].map(|all| {
                let own = all.clone().narrow(1, first, heads * width);
                own.reshape([tokens * heads, width])
            });
            self.norm(module, &x, Norm { weight, eps }, &d);
            first += heads * width;
        }
    }

    fn names_of_adapter(&self, module: &str) -> [String; 2] {
        let name = self.name(module);
        [LORA_A, LORA_B].map(|ending| format!("{name}{ending}"))
    }

    fn name(&self, module: &str) -> String {
        format!("model.layers.{}.{module}", self.index)
    }
}
