//! Many completions at a time are those of each prompt by itself.

#![allow(clippy::unwrap_used)]

#[path = "support/adapter.rs"]
mod support;

use std::ops::ControlFlow;

use burn::tensor::Device;
use model_qwen::{
    GenerateRequest, LoadOptions, QwenModel, SamplingParams, Tokenizer, bundled_model_dir, generate,
};
use trainer_sft::burn;
use trainer_sft::generation::{Completion, Generator, Request};
use trainer_sft::lora::SLOT;

const END: u32 = 2;

fn model() -> (QwenModel, Tokenizer) {
    let dir = bundled_model_dir().unwrap();
    let mut model = QwenModel::load(&dir, &LoadOptions::default(), &Device::flex()).unwrap();
    let adapter = support::adapter(&model, 4);
    model.add_adapter(SLOT, &adapter).unwrap();
    (model, Tokenizer::from_dir(&dir).unwrap())
}

fn request(prompt: Vec<u32>, index: usize) -> Request {
    let sampling = SamplingParams {
        temperature: if index.is_multiple_of(2) { 0.0 } else { 0.9 },
        seed: Some(index as u64),
        ..SamplingParams::default()
    };
    Request {
        prompt,
        sampling,
        max_tokens: 3 + 5 * index,
    }
}

#[test]
fn completions_are_those_of_each_prompt_alone() {
    let (mut model, tokenizer) = model();
    let texts = [
        "Once upon a time",
        "The dog",
        "The dog",
        "Once upon a time",
        "I",
    ];
    let encode = |text: &str| tokenizer.encode(&text.repeat(9), false).unwrap();
    let requests: Vec<Request> = (texts.iter().enumerate())
        .map(|(index, text)| request(encode(text), index))
        .collect();
    for slot in [None, Some(SLOT)] {
        let generator = Generator {
            slot,
            stop_token_ids: vec![END],
        };
        let mut heard = vec![Vec::new(); texts.len()];
        let completions = generator
            .generate(&mut model, &requests, &mut |index, token| {
                heard[index].push(token);
                ControlFlow::Continue(())
            })
            .unwrap();
        for (index, (request, completion)) in requests.iter().zip(&completions).enumerate() {
            let alone = GenerateRequest {
                prompt: request.prompt.clone(),
                sampling: request.sampling.clone(),
                max_tokens: request.max_tokens,
                stop_token_ids: vec![END],
                adapter: slot,
            };
            let expected = generate(&model, &alone, |_| ControlFlow::Continue(())).unwrap();
            assert_eq!(completion.content(), expected, "{index} with {slot:?}");
            assert_eq!(completion.tokens, heard[index]);
            let is_full = completion.tokens.len() == request.max_tokens;
            assert!(completion.has_ended || is_full, "{index}");
        }
    }
}

#[test]
fn a_listener_ends_its_completion_and_no_other() {
    let (mut model, tokenizer) = model();
    let prompt = tokenizer.encode("The dog", false).unwrap();
    let requests = [request(prompt.clone(), 4), request(prompt, 6)];
    let generator = Generator {
        slot: None,
        stop_token_ids: Vec::new(),
    };
    let completions = generator.generate(&mut model, &requests, &mut |index, _| match index {
        0 => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    let lengths: Vec<usize> = completions
        .unwrap()
        .iter()
        .map(|c| c.tokens.len())
        .collect();
    assert_eq!(lengths, [1, 33]);
}

#[test]
fn prompts_that_do_not_fit_are_named() {
    let (mut model, _) = model();
    let generator = Generator {
        slot: None,
        stop_token_ids: Vec::new(),
    };
    let context = model.config.context_length();
    let vocab = model.config.vocab_size as u32;
    for (prompt, expected) in [
        (
            Vec::new(),
            "prompt 1: expected at least one token, found none".to_owned(),
        ),
        (
            vec![3; context],
            format!("prompt 1: expected fewer than {context} tokens"),
        ),
        (
            vec![vocab],
            format!("prompt 1: expected token ids below {vocab}"),
        ),
    ] {
        let requests = [request(vec![1], 0), request(prompt, 1)];
        let refused =
            generator.generate(&mut model, &requests, &mut |_, _| ControlFlow::Continue(()));
        let refused = refused.unwrap_err().to_string();
        assert!(refused.starts_with(&expected), "{refused}");
    }
    let nothing = generator.generate(&mut model, &[], &mut |_, _| ControlFlow::Continue(()));
    assert_eq!(nothing.unwrap(), Vec::<Completion>::new());
}
