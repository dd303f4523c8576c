//! Text from text, with the bundled model.

#![allow(clippy::unwrap_used)]

use std::ops::ControlFlow;

use model_qwen::burn::tensor::Device;
use model_qwen::{
    ChatError, ChatModel, LoadOptions, ReplyOptions, SamplingParams, bundled_model_dir,
};
use serde_json::json;

fn chat() -> ChatModel {
    let dir = bundled_model_dir().unwrap();
    let dir = dir.to_str().unwrap();
    ChatModel::load(dir, &LoadOptions::default(), &Device::flex()).unwrap()
}

fn greedy(max_tokens: usize) -> ReplyOptions {
    ReplyOptions {
        sampling: Some(SamplingParams::greedy()),
        max_tokens,
        ..ReplyOptions::default()
    }
}

#[test]
fn the_pieces_are_the_reply_and_may_end_it() {
    let chat = chat();
    let messages = [json!({"role": "user", "content": "Tell me a story about a duck."})];
    let mut pieces = String::new();
    let reply = chat.reply(&messages, &greedy(24), |text| {
        pieces.push_str(text);
        ControlFlow::Continue(())
    });
    let reply = reply.unwrap();
    assert_eq!(reply, pieces);
    assert!(!reply.is_empty());

    let first = chat.reply(&messages, &greedy(24), |_| ControlFlow::Break(()));
    let first = first.unwrap();
    assert!(first.len() < reply.len() && reply.starts_with(&first));
}

#[test]
fn what_cannot_be_answered_is_an_error() {
    let chat = chat();
    let say = |content: &str, options: &ReplyOptions| {
        let messages = [json!({"role": "user", "content": content})];
        chat.reply(&messages, options, |_| ControlFlow::Continue(()))
    };
    let long = "duck ".repeat(chat.model.config.max_position_embeddings);
    assert!(matches!(
        say(&long, &greedy(1)),
        Err(ChatError::TooLong { .. })
    ));
    let hot = ReplyOptions {
        sampling: Some(SamplingParams {
            temperature: -1.0,
            ..SamplingParams::default()
        }),
        ..ReplyOptions::default()
    };
    assert!(matches!(say("Hello", &hot), Err(ChatError::Sampling(_))));
    let nobody = chat.reply(&[json!({"content": 1})], &greedy(1), |_| {
        ControlFlow::Break(())
    });
    assert!(matches!(nobody, Err(ChatError::Template(_))));
}
