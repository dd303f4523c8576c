//! The forward pass against Hugging Face transformers, on tiny random checkpoints
//! (`xtask/golden/model.py` writes them).

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device};
use kv_paging::{
    AttentionBatch, CausalAttention, KvShape, PagedAttention, PagedKvCache, SequenceChunk,
};
use lora_4bit::AdapterSelection;
use model_qwen::{Dtype, GenerateRequest, LoadOptions, QwenModel, SamplingParams, generate};
use safetensors::SafeTensors;

const CASES: [&str; 4] = ["qwen2-tied", "qwen2-untied", "qwen2-yarn", "qwen3"];

fn folder(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../data/golden/model")
        .join(case)
}

struct Expected {
    tokens: Vec<u32>,
    /// Rows 0, 7, 14, ... of the logits.
    logits: Vec<f32>,
    greedy: Vec<u32>,
}

fn expected(case: &str) -> Expected {
    let bytes = std::fs::read(folder(case).join("expected.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let words = |name: &str| -> Vec<[u8; 4]> {
        let data = tensors.tensor(name).unwrap().data().to_vec();
        data.chunks_exact(4)
            .map(|c| c.try_into().unwrap())
            .collect()
    };
    let ids = |name| words(name).into_iter().map(u32::from_le_bytes).collect();
    Expected {
        tokens: ids("tokens"),
        logits: words("logits")
            .into_iter()
            .map(f32::from_le_bytes)
            .collect(),
        greedy: ids("greedy"),
    }
}

fn load(case: &str) -> QwenModel {
    QwenModel::load(&folder(case), &LoadOptions::default(), &Device::flex()).unwrap()
}

/// Every seventh row of the logits must agree to 1e-4 of the largest logit.
#[track_caller]
fn check_logits(case: &str, model: &QwenModel, hidden: burn::tensor::Tensor<2>) {
    let vocab = model.config.vocab_size;
    let logits = model
        .logits(hidden)
        .into_data()
        .try_into_vec::<f32>()
        .unwrap();
    let expected = expected(case).logits;
    let scale = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let rows = logits.chunks_exact(vocab).step_by(7);
    assert_eq!(rows.len(), expected.len() / vocab, "{case}");
    for (i, (row, want)) in rows.zip(expected.chunks_exact(vocab)).enumerate() {
        for (found, want) in row.iter().zip(want) {
            let error = (found - want).abs() / scale;
            assert!(
                error < 1e-4,
                "{case}, row {}: expected {want}, found {found}",
                7 * i
            );
        }
    }
}

#[test]
fn logits_equal_transformers_in_training_attention() {
    for case in CASES {
        let (model, want) = (load(case), expected(case));
        let positions: Vec<u32> = (0..want.tokens.len() as u32).collect();
        let mut kv = CausalAttention::new(&[want.tokens.len()]);
        let hidden = model.forward(&want.tokens, &positions, &AdapterSelection::Base, &mut kv);
        check_logits(case, &model, hidden);
    }
}

#[test]
fn rows_that_are_asked_for_are_those_of_all() {
    for case in CASES {
        let (model, want) = (load(case), expected(case));
        let positions: Vec<u32> = (0..want.tokens.len() as u32).collect();
        let causal = || CausalAttention::new(&[want.tokens.len()]);
        let tokens = &want.tokens;
        let last = tokens.len() - 1;
        let slots: Vec<Option<usize>> = (0..=last).map(|row| (row % 2 == 0).then_some(0)).collect();
        let of_rows = AdapterSelection::per_row(&slots, &model.device());
        for adapters in [AdapterSelection::Base, of_rows] {
            let all = model.forward(tokens, &positions, &adapters, &mut causal());
            for rows in [&[last][..], &[0, 7, last]] {
                let found = model.forward_rows(tokens, &positions, rows, &adapters, &mut causal());
                assert_eq!(found.dims()[0], rows.len(), "{case}");
                for (i, &row) in rows.iter().enumerate() {
                    let [found, expected] = [(&found, i), (&all, row)].map(|(x, row)| {
                        let row = x.clone().narrow(0, row, 1).into_data();
                        row.try_into_vec::<f32>().unwrap()
                    });
                    let scale = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                    for (found, expected) in found.iter().zip(&expected) {
                        let error = (found - expected).abs() / scale;
                        assert!(error < 1e-5, "{case}, row {row}: {found}, not {expected}");
                    }
                }
            }
        }
    }
}

#[test]
fn logits_equal_transformers_in_paged_chunks() {
    for case in CASES {
        let (model, want) = (load(case), expected(case));
        let config = &model.config;
        let block_table: Vec<u32> = (0..20).rev().collect();
        let shape = KvShape {
            num_layers: config.num_hidden_layers,
            num_kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            block_size: 8,
            num_blocks: 20,
            dtype: DType::F32,
        };
        let mut cache = PagedKvCache::new(&shape, &Device::flex());
        let mut rows = Vec::new();
        let mut start = 0;
        for len in [1, 63, 1, 30, 55] {
            let end = start + len;
            let chunk = SequenceChunk {
                query_len: len,
                context_len: end,
                block_table: &block_table,
            };
            let batch = AttentionBatch::new(&[chunk], 8);
            let mut kv = PagedAttention {
                cache: &mut cache,
                batch: &batch,
            };
            let positions: Vec<u32> = (start as u32..end as u32).collect();
            let tokens = &want.tokens[start..end];
            rows.push(model.forward(tokens, &positions, &AdapterSelection::Base, &mut kv));
            start = end;
        }
        check_logits(case, &model, burn::tensor::Tensor::cat(rows, 0));
    }
}

#[test]
fn greedy_text_equals_transformers() {
    for case in CASES {
        let (model, want) = (load(case), expected(case));
        let request = GenerateRequest {
            prompt: want.tokens[..20].to_vec(),
            sampling: SamplingParams {
                temperature: 0.0,
                ..SamplingParams::default()
            },
            max_tokens: want.greedy.len(),
            stop_token_ids: Vec::new(),
            adapter: None,
        };
        let found = generate(&model, &request, |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(found, want.greedy, "{case}");
    }
}

#[test]
fn a_saved_model_loads_as_it_was() {
    for case in CASES {
        let model = load(case);
        let dir = tempfile::tempdir().unwrap();
        model.save(dir.path(), DType::F32).unwrap();
        let again = QwenModel::load(dir.path(), &LoadOptions::default(), &Device::flex()).unwrap();
        assert_eq!(again.config, model.config, "{case}");
        let want = expected(case);
        let positions: Vec<u32> = (0..want.tokens.len() as u32).collect();
        let mut kv = CausalAttention::new(&[want.tokens.len()]);
        let hidden = again.forward(&want.tokens, &positions, &AdapterSelection::Base, &mut kv);
        check_logits(case, &again, hidden);
    }
}

#[test]
fn bf16_weights_stay_bf16_and_stay_close() {
    let case = "qwen2-untied";
    let options = LoadOptions {
        dtype: Dtype::Bf16,
        ..LoadOptions::default()
    };
    let model = QwenModel::load(&folder(case), &options, &Device::flex()).unwrap();
    assert_eq!(model.embed_tokens.dtype(), DType::BF16);
    let want = expected(case);
    let positions: Vec<u32> = (0..want.tokens.len() as u32).collect();
    let mut kv = CausalAttention::new(&[want.tokens.len()]);
    let hidden = model.forward(&want.tokens, &positions, &AdapterSelection::Base, &mut kv);
    let logits = model
        .logits(hidden)
        .into_data()
        .try_into_vec::<f32>()
        .unwrap();
    let vocab = model.config.vocab_size;
    let rows = logits.chunks_exact(vocab).step_by(7).flatten();
    let (mut error, mut norm) = (0.0f64, 0.0f64);
    for (found, want) in rows.zip(&want.logits) {
        error += f64::from(found - want).powi(2);
        norm += f64::from(*want).powi(2);
    }
    let relative = (error / norm).sqrt();
    assert!(
        relative > 1e-5 && relative < 2e-2,
        "relative error {relative}"
    );
}

#[test]
fn wrong_files_are_named() {
    let source = folder("qwen2-tied");
    let copy = |edit: &dyn Fn(&Path)| -> String {
        let dir = tempfile::tempdir().unwrap();
        for file in ["config.json", "model.safetensors"] {
            std::fs::copy(source.join(file), dir.path().join(file)).unwrap();
        }
        // The list has an entry for each layer, so that another number of layers contradicts it.
        let path = dir.path().join("config.json");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("\"layer_types\"", "\"_layer_types\"")).unwrap();
        edit(dir.path());
        let result = QwenModel::load(dir.path(), &LoadOptions::default(), &Device::flex());
        result.expect_err("must be refused").to_string()
    };
    let edit_config = |from: &'static str, to: &'static str| {
        move |dir: &Path| {
            let path = dir.join("config.json");
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.contains(from));
            std::fs::write(&path, text.replace(from, to)).unwrap();
        }
    };
    let missing = copy(&edit_config(
        "\"num_hidden_layers\": 2",
        "\"num_hidden_layers\": 3",
    ));
    assert!(
        missing.contains("model.layers.2.") && missing.contains("missing"),
        "{missing}"
    );
    let extra = copy(&edit_config(
        "\"num_hidden_layers\": 2",
        "\"num_hidden_layers\": 1",
    ));
    assert!(extra.contains("model.layers.1."), "{extra}");
    let shape = copy(&edit_config("\"vocab_size\": 200", "\"vocab_size\": 201"));
    assert!(
        shape.contains("embed_tokens") && shape.contains("[201, 48]"),
        "{shape}"
    );
    let gone = copy(&|dir| std::fs::remove_file(dir.join("model.safetensors")).unwrap());
    assert!(gone.contains("expected model.safetensors"), "{gone}");
    let cut = copy(&|dir| {
        let bytes = std::fs::read(dir.join("model.safetensors")).unwrap();
        std::fs::write(dir.join("model.safetensors"), &bytes[..bytes.len() - 9]).unwrap();
    });
    assert!(cut.contains("the file is cut: expected"), "{cut}");
}
