//! Many texts at once, with the base model and with an adapter. `batch data/model adapters/captain`

#![allow(clippy::print_stdout)]

use anyhow::Context as _;
use server::engine::Engine;
use server::text::TextRequest;

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let (model, adapter) = (args.next().zip(args.next())).context("usage: batch MODEL ADAPTER")?;
    let builder = Engine::builder(model).max_model_len(512);
    let engine = builder.adapter("mine", adapter).start()?;
    let requests = ["duck", "bear", "frog"].into_iter().flat_map(|animal| {
        let base = TextRequest::chat(format!("Tell me a story about a {animal}.")).max_tokens(64);
        [base.clone(), base.adapter("mine")]
    });
    for completion in engine.generate(requests) {
        println!("{}\n", completion?.text);
    }
    Ok(())
}
