//! The names of tensors in GGUF files.

/// The parts of a decoder layer: their names in a checkpoint, and in a GGUF file.
const LAYER: [(&str, &str); 11] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// The name of a tensor such as `model.layers.0.self_attn.q_proj.weight` in a GGUF file, `blk.0.attn_q.weight`; `None` where
/// such a file has no place for it.
pub fn gguf_name(name: &str) -> Option<String> {
    match name {
        "lm_head.weight" => return Some("output.weight".to_owned()),
        "model.embed_tokens.weight" => return Some("token_embd.weight".to_owned()),
        "model.norm.weight" => return Some("output_norm.weight".to_owned()),
        _ => {}
    }
    let (layer, part) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (part, kind) = part.rsplit_once('.')?;
    let layer: usize = layer.parse().ok()?;
    let (_, short) = LAYER.iter().find(|(long, _)| *long == part)?;
    matches!(kind, "weight" | "bias").then(|| format!("blk.{layer}.{short}.{kind}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_llama_cpp() {
        for (name, expected) in [
            ("model.embed_tokens.weight", Some("token_embd.weight")),
            (
                "model.layers.12.mlp.down_proj.weight",
                Some("blk.12.ffn_down.weight"),
            ),
            (
                "model.layers.0.self_attn.k_proj.bias",
                Some("blk.0.attn_k.bias"),
            ),
            (
                "model.layers.3.self_attn.q_norm.weight",
                Some("blk.3.attn_q_norm.weight"),
            ),
            ("model.layers.x.self_attn.q_norm.weight", None),
            ("model.layers.0.self_attn.rotary_emb.inv_freq", None),
            ("score.weight", None),
        ] {
            assert_eq!(gguf_name(name).as_deref(), expected, "{name}");
        }
    }
}
