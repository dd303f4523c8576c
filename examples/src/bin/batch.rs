//! Many prompts at once, each with the base model or an adapter of its choice. `batch data/model adapters/captain`

#![allow(clippy::print_stdout)]

use server::engine::Engine;
use server::text::TextRequest;

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let mut engine =
        Engine::builder(args.next().unwrap_or("data/model".to_owned())).max_model_len(512);
    let mut names = vec![None];
    for path in args {
        names.push(Some(path.clone()));
        engine = engine.adapter(path.clone(), path);
    }
    let engine = engine.start()?;
    let animals =
        ["duck", "bear", "frog"].map(|animal| format!("Tell me a story about a {animal}."));
    let both = names
        .iter()
        .flat_map(|name| animals.iter().map(move |text| (name, text)));
    let requests = both.map(|(name, text)| {
        let request = TextRequest::chat(text).max_tokens(64);
        name.iter()
            .fold(request, |request, name| request.adapter(name))
    });
    for completion in engine.generate(requests) {
        println!("{}\n", completion?.text);
    }
    Ok(())
}
