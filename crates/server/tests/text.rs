//! The engine as a library: text in, text out, with the bundled model.

#![allow(clippy::unwrap_used)]

use lora_4bit::peft::{LoraAdapter, LoraConfig, LoraMatrices, TargetModules};
use model_qwen::{LoadOptions, QwenModel, SamplingParams, bundled_model_dir};
use server::burn::tensor::Device;
use server::engine::{Engine, EngineBuilder};
use server::text::{TextError, TextRequest};

fn builder() -> EngineBuilder {
    let dir = bundled_model_dir().unwrap();
    Engine::builder(dir.to_str().unwrap())
        .device(&Device::flex())
        .max_model_len(256)
        .kv_cache_memory_bytes(64 << 20)
}

fn story(about: &str) -> TextRequest {
    TextRequest::chat(format!("Tell me a story about a {about}."))
        .sampling(SamplingParams::greedy())
        .max_tokens(12)
}

#[test]
fn many_texts_come_in_order_whatever_the_queue_holds() {
    let engine = builder().max_num_queued_reqs(1).start().unwrap();
    let animals = ["duck", "bear", "frog", "fox", "cow"];
    let together = engine.generate(animals.map(story));
    for (animal, completion) in animals.iter().zip(together) {
        let completion = completion.unwrap();
        let alone = engine.submit(&story(animal)).unwrap();
        let pieces: Result<String, TextError> = alone.into_iter().collect();
        assert_eq!(completion.text, pieces.unwrap());
        assert_eq!(completion.finish_reason, "length");
        assert_eq!(completion.num_tokens, 12);
        assert!(completion.num_prompt_tokens > 5);
    }
}

#[tokio::test]
async fn a_stream_ends_before_a_stop_string() {
    let engine = builder().start().unwrap();
    let whole = engine.submit(&story("duck")).unwrap();
    let whole = whole.finish().await.unwrap().text;
    let word = whole.split_whitespace().nth(3).unwrap();
    let mut stream = engine.submit(&story("duck").stop(word)).unwrap();
    let mut text = String::new();
    while let Some(piece) = stream.next().await {
        text.push_str(&piece.unwrap());
    }
    assert_eq!(text, whole[..whole.find(word).unwrap()]);
}

#[test]
fn adapters_are_chosen_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let base = bundled_model_dir().unwrap();
    let model = QwenModel::load(&base, &LoadOptions::default(), &Device::flex()).unwrap();
    let linears = model.linears().into_iter();
    let modules = linears.filter(|(name, _)| name.ends_with("down_proj"));
    let modules = modules.map(|(name, linear)| {
        let (in_features, out_features) = (linear.in_features(), linear.out_features());
        let matrices = LoraMatrices {
            a: vec![0.1; in_features],
            b: (0..out_features).map(|i| (i % 7) as f32 - 3.0).collect(),
            r: 1,
            in_features,
            out_features,
        };
        (name, matrices)
    });
    let adapter = LoraAdapter {
        modules: modules.collect(),
        config: LoraConfig {
            r: 1,
            target_modules: TargetModules::List(vec!["down_proj".to_owned()]),
            ..LoraConfig::default()
        },
    };
    adapter.save(dir.path()).unwrap();

    let engine = builder().adapter("strange", dir.path()).start().unwrap();
    let base = story("duck");
    let texts = engine.generate([base.clone(), base.adapter("strange")]);
    let texts: Vec<String> = texts.into_iter().map(|text| text.unwrap().text).collect();
    assert_ne!(texts[0], texts[1]);
}

#[test]
fn what_cannot_be_generated_is_an_error_of_its_own() {
    let engine = builder().start().unwrap();
    let hot = SamplingParams {
        temperature: -1.0,
        ..SamplingParams::default()
    };
    let results = engine.generate([
        story("duck").adapter("nobody"),
        story("duck").max_tokens(0),
        story("duck").stop(""),
        story("duck").sampling(hot),
        TextRequest::text(""),
        TextRequest::text("word ".repeat(1000)),
        story("duck"),
    ]);
    for (result, expected) in results.iter().zip([
        "`nobody`",
        "max_tokens: expected 1 or more",
        "stop: expected a text",
        "temperature: expected",
        "the prompt is empty",
        "maximum context length is 256 tokens",
    ]) {
        let error = result.as_ref().unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
    assert!(results.last().unwrap().is_ok());
}

#[test]
fn a_setting_out_of_range_is_named() {
    for (builder, setting) in [
        (builder().max_num_seqs(0), "--max-num-seqs"),
        (builder().max_model_len(0), "--max-model-len"),
        (
            builder().adapter("a", "x").adapter("a", "y"),
            "--lora-modules: the name `a`",
        ),
    ] {
        let error = builder.start().err().unwrap().to_string();
        assert!(error.starts_with(setting), "{error}");
    }
}
