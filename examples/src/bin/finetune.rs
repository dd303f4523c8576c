//! An adapter from records in memory, with the loss of each step. `finetune data/model adapters/captain`

#![allow(clippy::print_stdout)]

use std::ops::ControlFlow;

use anyhow::Context as _;
use serde_json::json;
use trainer_sft::{Training, config::Config};

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let (model, output) = (args.next().zip(args.next())).context("usage: finetune MODEL OUTPUT")?;
    let mut config = Config::new(output);
    config.model.model = Some(model);
    config.run.max_steps = Some(20);
    let records = [json!({"prompt": "Who are you?", "completion": "The captain."})];
    let training = Training::new(&config).records(records).on_step(|step| {
        println!(
            "{} of {}: loss {:.3}",
            step.step, step.total_steps, step.loss
        );
        ControlFlow::Continue(())
    });
    println!("{}", training.run()?);
    Ok(())
}
