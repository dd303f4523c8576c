//! Compares greedy text with what transformers computed: `check_greedy MODEL_DIR EXPECTED.json`
//!
//! `xtask/golden/greedy.py` writes the expected file, for a checkpoint too large for the repository.

#![allow(clippy::print_stdout)]

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::Device;
use lora_4bit::ComputeDtype;
use model_qwen::{GenerateRequest, LoadOptions, QwenModel, SamplingParams, Tokenizer, generate};
use serde_json::Value;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [dir, expected] = args.as_slice() else {
        bail!("usage: check_greedy MODEL_DIR EXPECTED.json");
    };
    let text = fs::read_to_string(expected).with_context(|| expected.clone())?;
    let expected: Value = serde_json::from_str(&text).with_context(|| expected.clone())?;
    let options = LoadOptions {
        int8_lm_head: true,
        ..LoadOptions::default()
    };
    let mut model = QwenModel::load(Path::new(dir), &options, &Device::flex())?;
    // As the server does without flags.
    model.set_compute_dtype(ComputeDtype::Bits16);
    let tokenizer = Tokenizer::from_dir(Path::new(dir))?;
    let cases = expected["cases"].as_array().context("expected `cases`")?;
    let mut wrong = 0;
    for case in cases {
        let (prompt, want) = (ids(&case["prompt"])?, ids(&case["output"])?);
        ensure!(
            !prompt.is_empty() && !want.is_empty(),
            "a case without tokens"
        );
        let request = GenerateRequest {
            prompt,
            sampling: SamplingParams {
                temperature: 0.0,
                ..SamplingParams::default()
            },
            max_tokens: want.len(),
            stop_token_ids: Vec::new(),
            adapter: None,
        };
        let found = generate(&model, &request, |_| ControlFlow::Continue(()))?;
        let equal = found.iter().zip(&want).take_while(|(a, b)| a == b).count();
        println!(
            "{}: prompt of {} tokens, {equal} of {} tokens equal: {:?}",
            case["name"],
            request.prompt.len(),
            want.len(),
            tokenizer.decode(&found, false)?
        );
        wrong += usize::from(equal < want.len());
    }
    ensure!(wrong == 0, "{wrong} of {} texts differ", cases.len());
    Ok(())
}

fn ids(value: &Value) -> Result<Vec<u32>> {
    let ids = value.as_array().context("expected token ids")?;
    ids.iter()
        .map(|id| {
            id.as_u64()
                .map(|id| id as u32)
                .context("expected a token id")
        })
        .collect()
}
