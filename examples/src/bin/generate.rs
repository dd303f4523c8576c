//! The libraries without a server: load a folder, render a chat, generate, print as the words come.
//!
//! `generate [MODEL_DIR] PROMPT`

#![allow(clippy::print_stdout)]

use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use burn::tensor::Device;
use model_qwen::{
    ChatTemplate, Detokenizer, GenerateRequest, GenerationConfig, LoadOptions, QwenModel,
    RenderOptions, SamplingParams, Tokenizer, bundled_model_dir, generate,
};
use serde_json::json;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (dir, prompt) = match args.as_slice() {
        [prompt] => (
            bundled_model_dir().context("no bundled model here: name a folder")?,
            prompt,
        ),
        [dir, prompt] => (PathBuf::from(dir), prompt),
        _ => bail!("usage: generate [MODEL_DIR] PROMPT"),
    };
    let options = LoadOptions {
        int8_lm_head: true,
        ..LoadOptions::default()
    };
    let model = QwenModel::load(&dir, &options, &Device::flex())?;
    let tokenizer = Tokenizer::from_dir(&dir)?;
    let template = ChatTemplate::from_dir(&dir)?.context("the model has no chat template")?;
    let options = RenderOptions {
        add_generation_prompt: true,
        ..RenderOptions::default()
    };
    let text = template.render(&[json!({"role": "user", "content": prompt})], &options)?;

    let request = GenerateRequest {
        prompt: tokenizer.encode(&text, false)?,
        sampling: SamplingParams {
            temperature: 0.0,
            ..SamplingParams::default()
        },
        max_tokens: 256,
        stop_token_ids: GenerationConfig::from_dir(&dir)?.eos_token_ids,
        adapter: None,
    };
    let mut words = Detokenizer::new(tokenizer, true);
    generate(&model, &request, |token| {
        print!("{}", words.push(token));
        match std::io::stdout().flush() {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    });
    println!("{}", words.finish());
    Ok(())
}
