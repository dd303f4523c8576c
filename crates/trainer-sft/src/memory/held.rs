//! The plan of a GPU's step against the tensors of a small run, and against the sizes of what the code makes.

use std::path::Path;

use burn::tensor::{DType, Device};
use model_qwen::{QwenConfig, QwenModel};

use super::ledger::Use;
use super::pages::ALIGNMENT;
use super::{Machine, MemoryPlan, step, step_shape};
use crate::batch::Batch;
use crate::config::{Config, Method, Optim};
use crate::flat;
use crate::footprint::Footprint;
use crate::lora::{self, SLOT};
use crate::optimizer::AdamWConfig;
use crate::parameters::{Trainable, visit_model};
use crate::trainer::{Trainer, TrainerOptions};

/// Tokens of a batch, all of them learnt but the last.
const TOKENS: usize = 64;

/// A model whose tensors have no bytes that CubeCL would round up.
fn model() -> QwenConfig {
    let json = r#"{"model_type": "qwen2", "vocab_size": 512, "hidden_size": 128, "intermediate_size": 256,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 64,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": false,
        "eos_token_id": 0, "torch_dtype": "bfloat16"}"#;
    QwenConfig::from_json(json, Path::new("config.json")).unwrap()
}

/// As CubeCL allocates.
fn whole(bytes: usize) -> u64 {
    (bytes as u64).next_multiple_of(ALIGNMENT)
}

/// Bytes that a GPU holds between the steps of a run: what is trained and none of the model's own, what DoRA keeps, moments, and the
/// gradients of an adapter. The run itself is on the CPU, which keeps no gradients: those are counted from the sizes.
fn held_by_a_run(config: &Config) -> u64 {
    let mut base = QwenModel::random(model(), 7, &Device::flex());
    let trainable = match config.run.full {
        true => Trainable::Full,
        false => {
            let adapter = lora::new_adapter(&config.lora, None, &base, 1);
            lora::put_adapter(&mut base, SLOT, adapter).unwrap();
            lora::trainable(SLOT, &config.lora.modules_to_save)
        }
    };
    let options = TrainerOptions {
        optimizer: AdamWConfig {
            eight_bit: config.optimizer.optim == Optim::Adamw8bit,
            ..AdamWConfig::default()
        },
        ..TrainerOptions::constant(trainable, 1e-3, 4)
    };
    let tokens: Vec<u32> = (0..TOKENS as u32).collect();
    let batch = Batch {
        positions: tokens.clone(),
        targets: tokens
            .iter()
            .skip(1)
            .copied()
            .map(Some)
            .chain([None])
            .collect(),
        lengths: vec![TOKENS],
        tokens,
        ..Batch::default()
    };
    let mut trainer = Trainer::new(base, options);
    let loss = trainer.step(&[batch.clone(), batch]).numbers().means.loss;
    assert!(loss.is_finite());

    let mut bytes = 0;
    if !config.run.full {
        let has_buffers = config.optimizer.optim != Optim::Adamw8bit;
        visit_model(&mut trainer.model, trainable, &mut |name, parameter| {
            let is_flat = has_buffers
                && name.contains(".lora_")
                && parameter.num_values().is_multiple_of(flat::ALIGNMENT);
            bytes += (1 + u64::from(is_flat)) * whole(4 * parameter.num_values());
        });
    }
    for (_, linear) in trainer.model.linears() {
        // The base's squared norms, and the norms of the rows as they are.
        if linear
            .adapter(SLOT)
            .is_some_and(|adapter| adapter.dora.is_some())
        {
            bytes += 2 * whole(4 * linear.out_features());
        }
    }
    for moments in trainer.optimizer().moments().values() {
        bytes += 2 * whole(4 * moments.mean.dims()[0]);
    }
    for (_, moments) in trainer.optimizer().byte_moments() {
        let (codes, blocks) = (moments.mean.codes.len(), moments.mean.absmax.len());
        // Both moments are in one tensor, and a card has their levels, too.
        bytes += whole(2 * codes) + whole(2 * 4 * blocks) + whole(2 * 4 * 256);
    }
    bytes
}

fn config(change: impl FnOnce(&mut Config)) -> Config {
    let mut config = Config::new("x");
    config.lora.r = 8;
    change(&mut config);
    config
}

#[test]
fn between_steps_the_plan_holds_what_a_run_holds() {
    let tables = || vec!["embed_tokens".to_owned(), "lm_head".to_owned()];
    for config in [
        config(|_| {}),
        config(|config| config.lora.target_modules = vec!["q_proj".into(), "up_proj".into()]),
        config(|config| config.lora.use_dora = true),
        config(|config| {
            config.lora.use_dora = true;
            config.lora.dropout = Some(0.1);
            config.lora.r = 64;
            config.optimizer.optim = Optim::Adamw8bit;
        }),
        config(|config| config.lora.modules_to_save = tables()),
        config(|config| config.run.full = true),
        config(|config| {
            config.run.full = true;
            config.optimizer.optim = Optim::Adamw8bit;
        }),
    ] {
        let model = model();
        let shape = step_shape(&config, &model, DType::BF16, TOKENS);
        let planned = step::walk(&shape).live(Use::Trained);
        assert_eq!(planned, held_by_a_run(&config), "{shape:?}");
    }
}

/// The shape of Qwen2.5-0.5B, whose head is its embeddings.
fn half_a_billion() -> QwenConfig {
    let json = r#"{"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 32768,
        "rope_theta": 1000000.0, "tie_word_embeddings": true, "rms_norm_eps": 1e-6, "torch_dtype": "bfloat16"}"#;
    QwenConfig::from_json(json, Path::new("config.json")).unwrap()
}

fn plan(change: impl FnOnce(&mut Config)) -> MemoryPlan {
    let card = Machine {
        gpu_dtype: Some(DType::BF16),
        total: Some(80 << 30),
        free: Some(80 << 30),
    };
    MemoryPlan::new(&config(change), &half_a_billion(), &card, TOKENS)
}

#[test]
fn the_loss_of_answers_has_its_gradient_in_both_types() {
    let (hidden, vocab) = (896, 151_936);
    // What the last layer gives, rows of it, the same after the norm and its gradient; logits, and their gradient in bf16.
    let expected = (4 * (4 * TOKENS * hidden + TOKENS * vocab) + 2 * TOKENS * vocab) as u64;
    for method in [Method::Dpo, Method::Orpo, Method::Kto, Method::Grpo] {
        let found = plan(|config| config.method.method = method);
        assert_eq!(found.loss, expected, "{method:?}");
        assert!(!found.is_exact);
    }
}

#[test]
fn keys_and_values_of_all_answers_are_counted() {
    let found = plan(|config| {
        config.method.method = Method::Grpo;
        config.run.batch_size = 4;
        config.run.gradient_accumulation = 8;
    });
    // 32 answers of 16 tokens, two heads of 64 values in each of 24 layers, keys and values in bf16.
    assert_eq!(found.answers, 32 * 16 * 2 * 2 * 2 * 64 * 24);
    assert!(
        found
            .parts()
            .contains(&("keys and values of answers", found.answers as i64))
    );
    assert_eq!(
        found.total() as i64,
        found.parts().iter().map(|part| part.1).sum::<i64>()
    );
    assert_eq!(plan(|_| {}).answers, 0);
}

#[test]
fn all_weights_have_gradients_and_moments_and_copies_for_products() {
    let (hidden, vocab) = (896, 151_936);
    let full = config(|config| config.run.full = true);
    let found = plan(|config| config.run.full = true);
    let footprint = Footprint::of(&full, &half_a_billion());
    assert_eq!(found.weights, footprint.weights);
    // The gradient of the embeddings is added to that of the head, which is the same table. Biases and norms are no matrices,
    // which the footprint counts.
    let more = found.trained - footprint.trained;
    let table = (4 * vocab * hidden) as u64;
    assert!((table..table + (8 << 20)).contains(&more), "{more}");
    // The head in bf16 and its gradient; rows before and after the norm, and logits.
    let expected = 6 * vocab * hidden + 2 * (2 * TOKENS * hidden + TOKENS * vocab);
    assert_eq!(found.loss, expected as u64);
}

#[test]
fn dora_takes_what_it_multiplies_once_more() {
    let plain = plan(|_| {});
    let dora = plan(|config| config.lora.use_dora = true);
    let both = plan(|config| {
        config.lora.use_dora = true;
        config.lora.dropout = Some(0.1);
    });
    assert!(plain.is_exact && !dora.is_exact && !both.is_exact);
    // Of a weight the squares are taken in f32.
    let largest = 4 * 896 * 4864;
    assert!(dora.layer >= 2 * largest);
    // Magnitudes, their gradients and moments, squares and norms of 24 layers.
    let outputs = 2 * 896 + 2 * 128 + 2 * 4864 + 896;
    let most = 24 * 6 * 4 * (outputs + 7 * 128) as u64;
    let more = dora.trained - plain.trained;
    assert!(
        more <= most && more >= 24 * 5 * 4 * outputs as u64,
        "{more}, {most}"
    );
    assert_eq!(both.trained, dora.trained);
}
