//! Trains an adapter on records in memory, answers with it, and quantizes the model: each crate, from the outside.

use std::ops::ControlFlow;
use std::path::Path;

use model_qwen::burn::tensor::Device;
use model_qwen::quantize::{QuantizeOptions, quantize_checkpoint};
use model_qwen::{ChatModel, LoadOptions, ReplyOptions};
use serde_json::json;
use server::engine::Engine;
use server::text::TextRequest;
use trainer_sft::{Training, config::Config};

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let (Some(model), Some(folder)) = (args.next(), args.next()) else {
        anyhow::bail!("usage: outside MODEL FOLDER");
    };
    let (model, folder) = (model.as_str(), Path::new(&folder));
    let adapter = folder.join("adapter");
    train(model, &adapter)?;
    many(model, &adapter)?;

    let quantized = folder.join("nf4");
    let options = QuantizeOptions::default();
    let summary = quantize_checkpoint(Path::new(model), &quantized, &options, |_| {
        ControlFlow::Continue(())
    })?;
    println!("{} weights in NF4", summary.num_weights);
    one(&quantized.to_string_lossy())?;
    parts();
    Ok(())
}

fn train(model: &str, adapter: &Path) -> anyhow::Result<()> {
    let mut config = Config::new(adapter);
    config.model.model = Some(model.to_owned());
    config.run.max_steps = Some(2);
    let record = json!({"prompt": "Who are you?", "completion": "The captain."});
    let training = Training::new(&config).records([record]).on_step(|step| {
        println!("step {}: loss {:.3}", step.step, step.loss);
        ControlFlow::Continue(())
    });
    training.device(&Device::flex()).run()?;
    Ok(())
}

fn many(model: &str, adapter: &Path) -> anyhow::Result<()> {
    let engine = Engine::builder(model)
        .device(&Device::flex())
        .max_model_len(256)
        .adapter("captain", adapter)
        .start()?;
    let base = TextRequest::chat("Who are you?").max_tokens(8);
    for completion in engine.generate([base.clone(), base.adapter("captain")]) {
        println!("{}", completion?.text);
    }
    Ok(())
}

fn one(model: &str) -> anyhow::Result<()> {
    let chat = ChatModel::load(model, &LoadOptions::default(), &Device::flex())?;
    let messages = [json!({"role": "user", "content": "Who are you?"})];
    let options = ReplyOptions {
        max_tokens: 8,
        ..ReplyOptions::default()
    };
    chat.reply(&messages, &options, |text| {
        print!("{text}");
        ControlFlow::Continue(())
    })?;
    println!();
    Ok(())
}

/// The leaves by themselves.
fn parts() {
    use kv_paging::BlockPool;
    use lora_4bit::ComputeDtype;
    let compute = ComputeDtype::Auto.resolve(&Device::flex());
    println!("{compute:?}, {}", std::any::type_name::<BlockPool>());
}
