//! The names of all tensors that a config has a place for.

use std::collections::BTreeSet;
use std::path::Path;

use super::error::LoadError;
use super::{Loader, has_output_bias};
use crate::config::QwenConfig;
use crate::model::LINEARS;

impl Loader<'_> {
    /// Refuses files with tensors the config does not describe: a wrong `num_hidden_layers`, say,
    /// must not load half a model in silence.
    pub(super) fn check_names(&self, dir: &Path, config: &QwenConfig) -> Result<(), LoadError> {
        let mut expected: BTreeSet<String> = BTreeSet::new();
        // A tied head may be stored once more; a score is read by `score_weights`.
        let names = ["model.embed_tokens", "model.norm", "lm_head"];
        expected.extend(names.map(|module| self.checkpoint.stored(&format!("{module}.weight"))));
        expected.extend((!self.options.lm_head).then(|| "score.weight".to_owned()));
        for i in 0..config.num_hidden_layers {
            // With shapes and biases as in `build_layer`, which reads each of these names.
            let layer = |name: &str| self.checkpoint.stored(&format!("model.layers.{i}.{name}"));
            let norms = ["input_layernorm", "post_attention_layernorm"];
            expected.extend(norms.map(|norm| layer(&format!("{norm}.weight"))));
            if config.qk_norm {
                let norms = ["self_attn.q_norm", "self_attn.k_norm"];
                expected.extend(norms.map(|norm| layer(&format!("{norm}.weight"))));
            }
            for (module, has_bias) in linears(config) {
                expected.insert(layer(&format!("{module}.weight")));
                if has_bias {
                    expected.insert(layer(&format!("{module}.bias")));
                }
            }
        }
        let unexpected: Vec<&str> = self
            .checkpoint
            .names()
            .filter(|name| {
                // Old files store the frequencies, which config.json gives.
                !expected.contains(weight_of(name)) && !name.ends_with("rotary_emb.inv_freq")
            })
            .take(8)
            .collect();
        if unexpected.is_empty() {
            return Ok(());
        }
        Err(LoadError::Unexpected {
            dir: dir.to_owned(),
            names: unexpected.join(", "),
        })
    }
}

/// The weight that a tensor is a part of: bitsandbytes appends the parts to its name, `q_proj.weight.absmax`.
fn weight_of(name: &str) -> &str {
    let parts = ["absmax", "quant_map", "nested_absmax", "nested_quant_map"];
    let Some((module, part)) = name.split_once(".weight.") else {
        return name;
    };
    let is_part = parts.contains(&part) || part.starts_with("quant_state.bitsandbytes__");
    let is_linear = LINEARS.iter().any(|linear| module.ends_with(linear));
    match is_part && is_linear {
        true => &name[..module.len() + ".weight".len()],
        false => name,
    }
}

/// The linear layers of a decoder layer, and whether they have a bias.
fn linears(config: &QwenConfig) -> [(&'static str, bool); 7] {
    let [q, k, v, o, gate, up, down] = LINEARS;
    let bias = config.attention_bias;
    [
        (q, bias),
        (k, bias),
        (v, bias),
        (o, has_output_bias(config)),
        (gate, false),
        (up, false),
        (down, false),
    ]
}
