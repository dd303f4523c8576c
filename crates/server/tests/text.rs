//! The engine as a library: text in, text out, with the bundled model.

#![allow(clippy::unwrap_used)]

use lora_4bit::peft::{LoraAdapter, LoraConfig, LoraMatrices, TargetModules};
use model_qwen::{
    Grammar, JsonStyle, LoadOptions, QwenModel, RenderOptions, SamplingParams, bundled_model_dir,
};
use server::burn::tensor::Device;
use server::engine::{Engine, FinishReason};
use server::text::{TextEngine, TextError, TextRequest};
use server::{Config, EngineBuilder};

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
        assert_eq!(completion.finish_reason, FinishReason::Length);
        assert_eq!(completion.num_tokens, 12);
        assert_eq!(
            completion.num_prompt_tokens,
            num_prompt_tokens(&engine, animal)
        );
        assert_eq!(completion.logprobs, []);
    }
}

#[test]
fn texts_keep_to_a_grammar() {
    let engine = builder().start().unwrap();
    let schema = serde_json::json!({ "type": "object", "properties": { "animal": { "enum": ["duck", "bear"] } },
        "required": ["animal"], "additionalProperties": false });
    let compact = JsonStyle {
        compact: true,
        ..JsonStyle::default()
    };
    let grammars = [
        Grammar::Choice(vec!["yes".to_owned(), "no".to_owned()]),
        // So small a model goes on writing white space where it may.
        Grammar::JsonSchema(schema).styled(&compact),
        Grammar::Regex("[0-9]{4}".to_owned()),
    ];
    let requests = grammars.map(|grammar| story("duck").max_tokens(40).grammar(grammar));
    let texts = engine.generate(requests).into_iter();
    let texts: Vec<String> = texts
        .map(|completion| {
            let completion = completion.unwrap();
            assert_eq!(
                completion.finish_reason,
                FinishReason::Stop,
                "{completion:?}"
            );
            completion.text
        })
        .collect();
    assert!(texts[0] == "yes" || texts[0] == "no", "{texts:?}");
    let value: serde_json::Value = serde_json::from_str(&texts[1]).unwrap();
    assert!(value["animal"] == "duck" || value["animal"] == "bear");
    assert!(texts[2].len() == 4 && texts[2].parse::<u32>().is_ok());
    let broken = story("duck").grammar(Grammar::Regex("(".to_owned()));
    let error = engine.submit(&broken).unwrap_err();
    assert!(matches!(error, TextError::Grammar(_)), "{error}");
}

/// Tokens of the prompt of [`story`].
fn num_prompt_tokens(engine: &TextEngine, about: &str) -> usize {
    let template = engine.model().chat_template.as_ref().unwrap();
    let content = format!("Tell me a story about a {about}.");
    let options = RenderOptions {
        add_generation_prompt: true,
        ..RenderOptions::default()
    };
    let message = serde_json::json!({ "role": "user", "content": content });
    let prompt = template.render(&[message], &options).unwrap();
    engine
        .model()
        .tokenizer
        .encode(&prompt, false)
        .unwrap()
        .len()
}

#[test]
fn log_probabilities_come_with_the_text() {
    let engine = builder().start().unwrap();
    let sampling = SamplingParams {
        logprobs: Some(2),
        ..SamplingParams::greedy()
    };
    let plain = engine.generate([story("duck")]).remove(0).unwrap();
    let shown = engine.generate([story("duck").sampling(sampling)]);
    let shown = shown.into_iter().next().unwrap().unwrap();
    assert_eq!(shown.text, plain.text);
    assert_eq!(shown.logprobs.len(), 12);
    for token in &shown.logprobs {
        // Greedy takes the most likely one.
        assert_eq!(token.top.len(), 2);
        assert_eq!(token.top[0], (token.id, token.logprob));
        assert!(token.top[1].1 <= token.logprob && token.logprob < 0.0);
    }
}

#[test]
fn a_builder_takes_a_whole_configuration() {
    let dir = bundled_model_dir().unwrap();
    let flags = ["server", dir.to_str().unwrap(), "--max-model-len", "64"];
    let config = Config::from_command_line(flags).unwrap();
    let engine = EngineBuilder::from(config)
        .device(&Device::flex())
        .block_size(8)
        .max_lora_rank(4)
        .device_memory(4 << 30)
        .gpu_memory_utilization(0.5)
        .enforce_eager(true)
        .start()
        .unwrap();
    assert_eq!(engine.model().max_model_len, 64);
    let stats = engine.handle().stats();
    assert_eq!((stats.block_size, stats.max_loras), (8, 8));
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
    let expected = &whole[..whole.find(word).unwrap()];
    assert!(!expected.is_empty());
    assert_eq!(text, expected);
    // All was given already.
    let end = stream.finish().await.unwrap();
    assert_eq!((&*end.text, end.finish_reason), ("", FinishReason::Stop));
    assert!((1..12).contains(&end.num_tokens), "{}", end.num_tokens);
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
            magnitude: None,
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
        saved: Default::default(),
    };
    adapter.save(dir.path()).unwrap();
    let without = builder().start().unwrap();
    let without = without.generate([story("duck")]).remove(0).unwrap().text;
    let alone = builder().adapter("other", dir.path()).start().unwrap();
    let alone = alone.generate([story("duck").adapter("other")]);
    let alone = alone.into_iter().next().unwrap().unwrap().text;

    let engine = builder().adapter("strange", dir.path()).start().unwrap();
    let base = story("duck");
    let texts = engine.generate([base.clone(), base.adapter("strange")]);
    let texts: Vec<String> = texts.into_iter().map(|text| text.unwrap().text).collect();
    assert_ne!(without, alone);
    assert_eq!(texts, [without, alone]);
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
        (
            builder().adapter("", ""),
            "--lora-modules: an adapter's name",
        ),
        (
            builder().adapter("a", ""),
            "--lora-modules: the path of `a`",
        ),
        (builder().max_loras(0), "--max-loras"),
        (builder().max_lora_rank(0), "--max-lora-rank"),
        (
            builder().gpu_memory_utilization(1.5),
            "--gpu-memory-utilization",
        ),
    ] {
        let error = builder.start().err().unwrap().to_string();
        assert!(error.starts_with(setting), "{error}");
    }
}
