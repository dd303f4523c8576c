//! Random weights and adapters survive a round trip; random damage is an error or other data, never a panic.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use burn::tensor::DType;
use lora_4bit::bnb::{nf4_tensors, read_nf4};
use lora_4bit::nf4::Nf4Data;
use lora_4bit::peft::{LoraAdapter, LoraConfig, LoraMatrices, PatternMap, TargetModules};
use proptest::prelude::*;
use safetensors::{SafeTensors, serialize};

const NAME: &str = "model.layers.0.self_attn.q_proj.weight";

fn weights() -> impl Strategy<Value = Nf4Data> {
    let sizes = (1usize..20, 1usize..90, any::<bool>());
    sizes.prop_flat_map(|(rows, columns, double_quant)| {
        prop::collection::vec(-4.0f32..4.0, rows * columns).prop_map(move |weight| {
            Nf4Data::quantize(&weight, [rows, columns], DType::F16, double_quant)
        })
    })
}

fn matrices(r: usize) -> impl Strategy<Value = LoraMatrices> {
    (1usize..9, 1usize..9).prop_flat_map(move |(in_features, out_features)| {
        let a = prop::collection::vec(-1.0f32..1.0, r * in_features);
        let b = prop::collection::vec(-1.0f32..1.0, out_features * r);
        (a, b).prop_map(move |(a, b)| LoraMatrices {
            a,
            b,
            r,
            in_features,
            out_features,
            magnitude: None,
        })
    })
}

fn adapters() -> impl Strategy<Value = LoraAdapter> {
    let ranks = (1usize..5, 1usize..5, 1u32..256, any::<bool>());
    ranks.prop_flat_map(|(r, mlp_rank, quarter_alpha, use_rslora)| {
        (matrices(r), matrices(mlp_rank)).prop_map(move |(q_proj, up_proj)| LoraAdapter {
            config: LoraConfig {
                r,
                lora_alpha: f64::from(quarter_alpha) / 4.0,
                use_rslora,
                target_modules: TargetModules::List(vec![
                    "q_proj".to_owned(),
                    "up_proj".to_owned(),
                ]),
                rank_pattern: PatternMap(vec![(r"mlp\..*".to_owned(), mlp_rank)]),
                ..LoraConfig::default()
            },
            modules: [
                ("model.layers.0.self_attn.q_proj".to_owned(), q_proj),
                ("model.layers.0.mlp.up_proj".to_owned(), up_proj),
            ]
            .into(),
            saved: Default::default(),
        })
    })
}

/// Replaces some bytes and perhaps cuts the rest off.
fn damage(
    bytes: &mut Vec<u8>,
    edits: &[(prop::sample::Index, u8)],
    cut: Option<prop::sample::Index>,
) {
    for (index, byte) in edits {
        let index = index.index(bytes.len());
        bytes[index] = *byte;
    }
    if let Some(cut) = cut {
        bytes.truncate(cut.index(bytes.len()));
    }
}

fn edits() -> impl Strategy<Value = Vec<(prop::sample::Index, u8)>> {
    prop::collection::vec(any::<(prop::sample::Index, u8)>(), 1..6)
}

proptest! {
    #[test]
    fn weights_survive_a_round_trip(data in weights()) {
        let bytes = serialize(nf4_tensors(NAME, &data), None).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let read = read_nf4(&|name| file.tensor(name).ok(), NAME).unwrap();
        prop_assert_eq!(read, Some(data));
    }

    #[test]
    fn scales_bound_the_values(data in weights()) {
        let absmax = data.absmax.dequantize();
        for (i, value) in data.dequantize().iter().enumerate() {
            prop_assert!(value.abs() <= absmax[i / 64].abs());
        }
    }

    #[test]
    fn damaged_weights_never_panic(data in weights(), edits in edits(), cut in any::<Option<prop::sample::Index>>()) {
        let mut bytes = serialize(nf4_tensors(NAME, &data), None).unwrap();
        damage(&mut bytes, &edits, cut);
        if let Ok(file) = SafeTensors::deserialize(&bytes)
            && let Ok(Some(read)) = read_nf4(&|name| file.tensor(name).ok(), NAME)
        {
            prop_assert_eq!(read.dequantize().len(), read.shape[0] * read.shape[1]);
        }
    }

    #[test]
    fn damaged_states_never_panic(data in weights(), edits in edits()) {
        let mut tensors = nf4_tensors(NAME, &data);
        let (_, state) = tensors.iter_mut().find(|(name, _)| name.contains("quant_state")).unwrap();
        damage(&mut state.data, &edits, None);
        let bytes = serialize(tensors, None).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        if let Ok(Some(read)) = read_nf4(&|name| file.tensor(name).ok(), NAME) {
            prop_assert_eq!(read.dequantize().len(), read.shape[0] * read.shape[1]);
        }
    }

    #[test]
    fn adapters_survive_a_round_trip(adapter in adapters()) {
        let (config, weights) = adapter.to_bytes().unwrap();
        prop_assert_eq!(LoraAdapter::from_bytes(&config, &weights).unwrap(), adapter);
    }

    #[test]
    fn damaged_adapters_never_panic(
        adapter in adapters(),
        edits in edits(),
        cut in any::<Option<prop::sample::Index>>(),
        in_config in any::<bool>(),
    ) {
        let (mut config, mut weights) = adapter.to_bytes().unwrap();
        damage(if in_config { &mut config } else { &mut weights }, &edits, cut);
        if let Ok(read) = LoraAdapter::from_bytes(&config, &weights) {
            for (name, matrices) in &read.modules {
                prop_assert_eq!(matrices.r, read.config.rank_for(name));
                prop_assert_eq!(matrices.a.len(), matrices.r * matrices.in_features);
            }
        }
    }
}
